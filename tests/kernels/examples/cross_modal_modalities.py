"""Examples of missing modalities."""

import numpy as np

from kdjax.losses import modalities
from kernels.examples.example import Example, Refused, draw, normal

WHERE = np.array([[True, False, True], [True, True, True]])
KEY = np.array([0, 7], np.uint32)
HIDDEN = {"features": (0, 1)}
REFUSED = (
    Refused({"where": WHERE[:, :2]}, "where must have the shape"),
    Refused({"where": WHERE * 1}, "where must be boolean", TypeError),
    Refused({"features": np.zeros(2, np.float32)}, r"features must be shaped \[batch, modalities"),
    Refused({"features": np.zeros((2, 3), int)}, "features must be a floating", TypeError),
)
TOO_MANY = Refused({"num_modalities": 17}, "num_modalities must be >= 1 and <= 16, got 17")
EMPTY_BATCH = Refused({"batch_size": 0}, "batch_size must be >= 1, got 0")

EXAMPLES = {
    "all_modality_subsets": Example(
        modalities.all_modality_subsets,
        draw(),
        {"num_modalities": 3},
        jitted=False,
        refused=(TOO_MANY, Refused({"num_modalities": 0}, "num_modalities must be >= 1")),
    ),
    "sample_subset_mask": Example(
        modalities.sample_subset_mask,
        draw(key=KEY, probs=np.arange(7, dtype=np.float32)),
        {"num_modalities": 3, "batch_size": 4},
        refused=(
            TOO_MANY,
            EMPTY_BATCH,
            Refused({"probs": np.ones(3, np.float32)}, r"probs must be shaped \[7\], one a subset"),
        ),
    ),
    "sample_subset_by_size": Example(
        modalities.sample_subset_by_size,
        draw(key=KEY),
        {"num_modalities": 3},
        refused=(TOO_MANY,),
    ),
    "bernoulli_mask": Example(
        modalities.bernoulli_mask,
        draw(key=KEY),
        {"num_modalities": 3, "batch_size": 4, "drop_rate": 0.5},
        refused=(
            TOO_MANY,
            EMPTY_BATCH,
            Refused({"drop_rate": 2.0}, r"drop_rate must lie in \[0, 1\], got 2.0"),
        ),
    ),
    "fixed_missing_lists": Example(
        modalities.fixed_missing_lists,
        draw(),
        {"seed": 0, "num_examples": 10, "rates": {"image": 0.6, "text": 0.2}},
        jitted=False,
        refused=(
            Refused({"rates": {"image": 0.6, "text": 0.6}}, "rates must sum to at most 1.*12 of"),
            Refused({"rates": {"image": -0.1}}, r"rates\['image'\] must lie in \[0, 1\]"),
            Refused({"num_examples": 0}, "num_examples must be >= 1, got 0"),
        ),
    ),
    "apply_modality_mask": Example(
        modalities.apply_modality_mask,
        draw(features=normal(2, 3, 4), where=WHERE),
        differentiated=("features",),
        extreme=("features",),
        batched=("features", "where"),
        masked=HIDDEN,
        refused=REFUSED,
    ),
    "apply_modality_mask: placeholders": Example(
        modalities.apply_modality_mask,
        draw(features=normal(2, 3, 4), placeholders=normal(3, 4), where=WHERE),
        differentiated=("features", "placeholders"),
        extreme=("features", "placeholders"),
        batched=("features", "where"),
        masked=HIDDEN,
        refused=(
            Refused({"placeholders": np.zeros(4, np.float32)}, "placeholders must have the shape"),
        ),
    ),
    "masked_mean_fusion": Example(
        modalities.masked_mean_fusion,
        draw(features=normal(2, 3, 4), where=WHERE),
        differentiated=("features",),
        extreme=("features",),
        batched=("features", "where"),
        masked=HIDDEN,
        refused=REFUSED,
    ),
}
