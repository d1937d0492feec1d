"""Examples of objects as points."""

import numpy as np

from kdjax.losses import centers
from kernels.examples.example import Example, Refused, draw, normal

CELLS = np.array([[True, False, True, True]] * 2)
HEAT = np.array([[1.0, 0.3, 0.0, 0.6]] * 2, np.float32)
INDICES = np.array([[4, 0, 5], [2, -1, 3]])
OBJECTS = np.array([[True, True, False], [True, True, True]])

EXAMPLES = {
    "centernet_focal": Example(
        centers.centernet_focal,
        draw(logits=normal(2, 4), targets=HEAT, where=CELLS),
        differentiated=("logits",),
        stopped=("targets",),
        extreme=("logits",),
        batched=("logits", "targets", "where"),
        masked={"logits": (0, 1), "targets": (0, 1)},
        refused=(
            Refused({"targets": HEAT[:1]}, "targets must be shaped"),
            Refused({"beta": -1.0}, "beta must be finite and >= 0, got -1"),
            Refused({"epsilon": 2.0}, r"epsilon must lie in \[0, 1\], got 2"),
            Refused({"where": CELLS[0]}, "where must have the shape"),
        ),
    ),
    "centernet_focal: unbounded": Example(
        centers.centernet_focal,
        draw(logits=normal(2, 4), targets=HEAT),
        {"epsilon": 0.0},
        differentiated=("logits",),
        stopped=("targets",),
        extreme=("logits",),
        batched=("logits", "targets"),
    ),
    "binary_focal": Example(
        centers.binary_focal,
        draw(logits=normal(2, 4), targets=HEAT == 1, where=CELLS),
        differentiated=("logits",),
        extreme=("logits",),
        batched=("logits", "targets", "where"),
        masked={"logits": (0, 1)},
        refused=(
            Refused({"targets": HEAT}, "targets must be boolean", TypeError),
            Refused({"alpha": 2.0}, r"alpha must lie in \[0, 1\], got 2"),
            Refused({"gamma": -1.0}, "gamma must be finite and >= 0, got -1"),
        ),
    ),
    "gaussian_radius": Example(
        centers.gaussian_radius,
        draw(
            width=np.array([4.0, 5.0, 0.0], np.float32),
            height=np.array([6.0, 1.0, 0.0], np.float32),
        ),
        stopped=("width", "height"),
        batched=("width", "height"),
        refused=(
            Refused({"height": np.zeros(2, np.float32)}, "height must be shaped"),
            Refused({"min_overlap": 1.5}, r"min_overlap must lie in \[0, 1\], got 1.5"),
        ),
    ),
    "draw_gaussian": Example(
        centers.draw_gaussian,
        draw(
            centres=np.array([[0, 3], [2, 2], [9, 9]]),
            radii=np.array([2, 1, 3]),
            where=np.array([True, True, False]),
        ),
        {"height": 4, "width": 5},
        refused=(
            Refused({"centres": np.zeros((3, 2))}, "centres must be integers", TypeError),
            Refused({"centres": np.zeros((3, 3), int)}, r"centres must be shaped \[objects, 2\]"),
            Refused({"radii": np.zeros(2, int)}, "radii must have the shape"),
            Refused({"height": 0}, "height must be >= 1, got 0"),
        ),
    ),
    "gather_at_centres": Example(
        centers.gather_at_centres,
        draw(maps=normal(2, 2, 3, 4), indices=INDICES, where=OBJECTS),
        differentiated=("maps",),
        extreme=("maps",),
        batched=("maps", "indices", "where"),
        refused=(
            Refused({"indices": INDICES[:1]}, "indices must be shaped .*batch = 2 as in maps"),
            Refused({"indices": INDICES * 1.0}, "indices must be integers", TypeError),
            Refused({"where": OBJECTS[:1]}, "where must have the shape"),
        ),
    ),
    "center_regression_l1": Example(
        centers.center_regression_l1,
        draw(maps=normal(2, 2, 3, 4), indices=INDICES, targets=normal(2, 3, 4), where=OBJECTS),
        differentiated=("maps",),
        stopped=("targets",),
        extreme=("maps", "targets"),
        batched=("maps", "indices", "targets", "where"),
        masked={"targets": (0, 2)},
        refused=(
            Refused({"targets": np.zeros((2, 3, 5), np.float32)}, "targets .*channels = 4 as in"),
            Refused({"indices": INDICES[:, :2]}, "indices must have the shape"),
        ),
    ),
    "decode_centres": Example(
        centers.decode_centres,
        draw(heatmaps=normal(2, 4, 5, 3), offsets=normal(2, 4, 5, 2)),
        {"k": 4},
        differentiated=("heatmaps", "offsets"),
        extreme=("heatmaps", "offsets"),
        batched=("heatmaps", "offsets"),
        refused=(
            Refused({"k": 61}, "k must be >= 1 and <= 60, got 61"),
            Refused(
                {"offsets": np.zeros((2, 4, 5, 3), np.float32)}, "offsets must have 2 channels"
            ),
            Refused({"offsets": np.zeros((2, 4, 4, 2), np.float32)}, "offsets must be shaped"),
        ),
    ),
}
