"""How good detected centres are: average precision by distance, not by overlap."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int

Array = jax.Array | np.ndarray


class Objects(NamedTuple):
    """Centres of objects in a data set, detected or true.

    Attributes:
      images: `[N]`, integers; which image.
      classes: `[N]`, integers; which class.
      positions: `[N, D]`, finite, in the unit of the thresholds.
    """

    images: Int[Array, " objects"]
    classes: Int[Array, " objects"]
    positions: Float[Array, "objects axes"]


class CenterPrecision(NamedTuple):
    """Average precision of detected centres.

    Attributes:
      mean: over thresholds and classes.
      classes: `[K]`, the classes that occur among the targets, ascending.
      precision: `[K, T]`, of each class at each threshold, in [0, 1].
    """

    mean: float
    classes: np.ndarray
    precision: np.ndarray


def center_ap(
    detections: Objects,
    scores: Float[Array, " detections"],
    targets: Objects,
    *,
    thresholds: Sequence[float] = (0.5, 1.0, 2.0, 4.0),
    min_recall: float = 0.1,
) -> CenterPrecision:
    """Average precision of centres, matched by distance.

    Detections, best score first, take the nearest target of their image and class that none has
    taken; one is right that is less than a threshold away. With the precision at recall r the
    largest of those at recall >= r,

        AP = mean of the precision over r = min_recall, min_recall + 0.01, ..., 1

    0 where that recall is not reached. nuScenes also takes 0.1 off the precision and rescales.
    Equal scores are taken in their order. Classes without a target do not count.

    Args:
      detections: `Objects`.
      scores: `[N]`, finite, of the detections.
      targets: `Objects`, at least one.
      thresholds: distances > 0.
      min_recall: in [0, 1].

    Returns:
      `CenterPrecision`.

    Raises:
      ValueError: shapes that do not fit, values that are not finite or not integers, no target, a
        threshold or min_recall out of range.

    Source: Caesar et al. 2020 (nuScenes), arXiv:1903.11027.

    >>> one, zero = np.ones(1, int), np.zeros(1, int)
    >>> found = Objects(zero, one, np.array([[0.0, 3.0]]))
    >>> true = Objects(zero, one, np.array([[0.0, 0.0]]))
    >>> center_ap(found, np.array([0.9]), true).precision.tolist()
    [[0.0, 0.0, 0.0, 1.0]]
    """
    detections, targets = _checked("detections", detections), _checked("targets", targets)
    scores = np.asarray(scores, np.float64)
    if scores.shape != detections.images.shape:
        raise ValueError(
            f"scores must have shape {detections.images.shape}, one a detection, got {scores.shape}"
        )
    if not np.isfinite(scores).all():
        raise ValueError(f"scores is not finite in detection {np.argmin(np.isfinite(scores))}")
    if not targets.images.size:
        raise ValueError("targets holds no object")
    if detections.positions.shape[1] != targets.positions.shape[1]:
        raise ValueError(
            f"detections must have {targets.positions.shape[1]} axes like targets, "
            f"got {detections.positions.shape[1]}"
        )
    if not all(threshold > 0 for threshold in thresholds):
        raise ValueError(f"thresholds must be > 0, got {thresholds}")
    if not 0 <= min_recall <= 1:
        raise ValueError(f"min_recall must lie in [0, 1], got {min_recall}")
    order = np.argsort(-scores, kind="stable")
    detections = Objects(*(column[order] for column in detections))
    classes = np.unique(targets.classes)
    precision = np.zeros((len(classes), len(thresholds)))
    for row, name in enumerate(classes):
        found, true = _of_class(detections, name), _of_class(targets, name)
        for column, threshold in enumerate(thresholds):
            right = _matched(found, true, threshold)
            precision[row, column] = _average_precision(right, len(true.images), min_recall)
    return CenterPrecision(float(precision.mean()), classes, precision)


def _checked(name: str, objects: Objects) -> Objects:
    images, classes, positions = (np.asarray(column) for column in objects)
    if positions.ndim != 2 or not images.shape == classes.shape == positions.shape[:1]:
        raise ValueError(
            f"{name} must hold images [N], classes [N] and positions [N, D], "
            f"got {images.shape}, {classes.shape} and {positions.shape}"
        )
    for column, values in (("images", images), ("classes", classes)):
        if not np.issubdtype(values.dtype, np.integer):
            raise ValueError(f"{column} of {name} must be integers, got {values.dtype}")
    positions = positions.astype(np.float64)
    if not np.isfinite(positions).all():
        bad = int(np.argmin(np.isfinite(positions).all(-1)))
        raise ValueError(f"positions of {name} are not finite in object {bad}")
    return Objects(images, classes, positions)


def _of_class(objects: Objects, name: int) -> Objects:
    return Objects(*(column[objects.classes == name] for column in objects))


def _matched(found: Objects, true: Objects, threshold: float) -> np.ndarray:
    """Which detections, best first, take a target."""
    free = np.ones(len(true.images), bool)
    right = np.zeros(len(found.images), bool)
    for row, (image, position) in enumerate(zip(found.images, found.positions)):
        candidates = np.flatnonzero(free & (true.images == image))
        if not candidates.size:
            continue
        distances = np.linalg.norm(true.positions[candidates] - position, axis=1)
        nearest = int(np.argmin(distances))
        if distances[nearest] < threshold:
            right[row], free[candidates[nearest]] = True, False
    return right


def _average_precision(right: np.ndarray, num_targets: int, min_recall: float) -> float:
    hits = np.cumsum(right)
    precision = hits / np.arange(1, len(right) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    # Recalls in hundredths: k / 100 >= r is then exact.
    wanted = np.arange(round(100 * min_recall), 101)
    reached = np.searchsorted(100 * hits, wanted * num_targets, side="left")
    return float(np.append(envelope, 0.0)[reached].mean())
