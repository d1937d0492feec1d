"""How good a segmentation is: intersection over union, Dice, pixel accuracy.

Every function computes in float64 on the host. Over a data set, add the confusion matrices of all
images and take the scores of the sum: the mean of the scores of the images is another number.
"""

from __future__ import annotations

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from kdjax.evaluation import metrics

Array = jax.Array | np.ndarray
Counts = Int[Array, "classes classes"]
Masks = Bool[Array, "batch *positions"] | Int[Array, "batch *positions"]


def segmentation_confusion(
    predictions: Int[Array, "*pixels"],
    labels: Int[Array, "*pixels"],
    num_classes: int,
    *,
    ignore_label: int | None = 255,
) -> Int[np.ndarray, "classes classes"]:
    """Counts `[K, K]`: entry (i, j) is how many pixels of class i were predicted as class j.

    Args:
      predictions: `[...]`, integers in [0, K) wherever the label counts.
      labels: `[...]`, integers in [0, K), or `ignore_label`: such a pixel does not count.
      num_classes: K, at least 1.
      ignore_label: an integer outside [0, K), or None.

    Returns:
      The counts; all 0 where no pixel counts.

    Raises:
      ValueError: shapes that differ, not integers, a prediction or label outside the classes,
        ignore_label among them, num_classes below 1.

    >>> segmentation_confusion(np.array([0, 0, 1, 1]), np.array([0, 1, 1, 255]), 2).tolist()
    [[1, 0], [1, 1]]
    """
    predictions, labels = np.asarray(predictions), np.asarray(labels)
    if predictions.shape != labels.shape:
        raise ValueError(
            f"predictions must have shape {labels.shape} like labels, got {predictions.shape}"
        )
    if num_classes < 1:
        raise ValueError(f"num_classes must be at least 1, got {num_classes}")
    if ignore_label is not None and 0 <= ignore_label < num_classes:
        raise ValueError(f"ignore_label must lie outside [0, {num_classes}), got {ignore_label}")
    counted = np.ones(labels.shape, bool) if ignore_label is None else labels != ignore_label
    classes = []
    for name, values in (("labels", labels), ("predictions", predictions)):
        if not np.issubdtype(values.dtype, np.integer):
            raise ValueError(f"{name} must be integers, got {values.dtype}")
        values = values[counted].astype(np.int64)
        outside = (values < 0) | (values >= num_classes)
        if outside.any():
            raise ValueError(
                f"{name} must lie in [0, {num_classes}), got {int(values[outside][0])}"
            )
        classes.append(values)
    return metrics.joint_counts(*classes, num_classes)


def iou(confusion: Counts, *, absent: str = "exclude") -> Float[np.ndarray, " classes"]:
    """Intersection over union of each class: TP / (TP + FP + FN).

    Args:
      confusion: `[K, K]`, counts; rows are the labels.
      absent: what a class is worth that is in no label and no prediction: "exclude", NaN, which
        `class_mean` leaves out, or "zero".

    Returns:
      `[K]`, in [0, 1].

    Raises:
      ValueError: a confusion that is not square, negative counts, unknown absent.

    >>> iou(np.array([[1, 0], [1, 2]])).round(4).tolist()
    [0.5, 0.6667]
    """
    hits, predicted, labelled = _counts(confusion)
    return _share(hits, predicted + labelled - hits, absent)


def dice(confusion: Counts, *, absent: str = "exclude") -> Float[np.ndarray, " classes"]:
    """Dice, or F1, of each class: 2 TP / (2 TP + FP + FN) = 2 IoU / (1 + IoU).

    Args:
      confusion: `[K, K]`, counts; rows are the labels.
      absent: "exclude" (NaN) or "zero", for a class in no label and no prediction.

    Returns:
      `[K]`, in [0, 1].

    Raises:
      ValueError: as `iou`.

    >>> dice(np.array([[1, 0], [1, 2]])).round(4).tolist()
    [0.6667, 0.8]
    """
    hits, predicted, labelled = _counts(confusion)
    return _share(2 * hits, predicted + labelled, absent)


def pixel_accuracy(confusion: Counts, *, absent: str = "exclude") -> Float[np.ndarray, " classes"]:
    """The share of the pixels of each class that are predicted right: TP / (TP + FN).

    Args:
      confusion: `[K, K]`, counts; rows are the labels.
      absent: "exclude" (NaN) or "zero", for a class in no label.

    Returns:
      `[K]`, in [0, 1].

    Raises:
      ValueError: as `iou`.

    >>> pixel_accuracy(np.array([[1, 0], [1, 2]])).round(4).tolist()
    [1.0, 0.6667]
    """
    hits, _, labelled = _counts(confusion)
    return _share(hits, labelled, absent)


def class_mean(scores: Float[Array, " classes"]) -> float:
    """The mean over the classes that have a score, such as the mIoU of `iou`.

    Args:
      scores: `[K]`; a NaN is left out.

    Returns:
      A number; NaN where no class has a score.

    >>> class_mean(np.array([0.5, np.nan, 1.0]))
    0.75
    """
    values = np.asarray(scores, np.float64)
    kept = values[~np.isnan(values)]
    return float(kept.mean()) if kept.size else float("nan")


def dice_score(
    predictions: Masks, targets: Masks, *, smooth: float = 1.0
) -> Float[np.ndarray, " batch"]:
    """Dice of each image's binary mask: (2 |P and T| + smooth) / (|P| + |T| + smooth).

    The convention of medical segmentation, averaged over the images. With smooth > 0 two empty
    masks score 1.

    Args:
      predictions: `[B, ...]`, bool, or integers 0 and 1.
      targets: `[B, ...]`, the same.
      smooth: at least 0. At 0 two empty masks are NaN.

    Returns:
      `[B]`, in [0, 1].

    Raises:
      ValueError: shapes that differ, masks of other values, smooth below 0.

    >>> dice_score(np.array([[1, 1, 0, 0]]), np.array([[1, 0, 0, 0]])).tolist()
    [0.75]
    """
    both, predicted, labelled = _masks(predictions, targets, smooth)
    return _share(2 * both + smooth, predicted + labelled + smooth, "exclude")


def iou_score(
    predictions: Masks, targets: Masks, *, smooth: float = 1.0
) -> Float[np.ndarray, " batch"]:
    """Intersection over union of each image's binary mask, both counts with `smooth` added.

        (|P and T| + smooth) / (|P or T| + smooth)

    Args:
      predictions: `[B, ...]`, bool, or integers 0 and 1.
      targets: `[B, ...]`, the same.
      smooth: at least 0. At 0 two empty masks are NaN.

    Returns:
      `[B]`, in [0, 1].

    Raises:
      ValueError: as `dice_score`.

    >>> iou_score(np.array([[1, 1, 1, 0]]), np.array([[1, 0, 0, 0]])).tolist()
    [0.5]
    """
    both, predicted, labelled = _masks(predictions, targets, smooth)
    return _share(both + smooth, predicted + labelled - both + smooth, "exclude")


def _counts(confusion: Counts) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Right pixels, predicted pixels and labelled pixels of each class."""
    counts = np.asarray(confusion)
    if counts.ndim != 2 or counts.shape[0] != counts.shape[1]:
        raise ValueError(f"confusion must be [classes, classes], got shape {counts.shape}")
    if (counts < 0).any():
        raise ValueError(f"confusion must hold counts, got {counts.min()}")
    return np.diag(counts), counts.sum(0), counts.sum(1)


def _share(part: np.ndarray, whole: np.ndarray, absent: str) -> np.ndarray:
    if absent not in ("exclude", "zero"):
        raise ValueError(f"absent must be 'exclude' or 'zero', got {absent!r}")
    value = np.nan if absent == "exclude" else 0.0
    return np.where(whole > 0, part / np.where(whole > 0, whole, 1), value)


def _masks(
    predictions: Masks, targets: Masks, smooth: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The sizes of the intersection and of both masks, of each image."""
    if not smooth >= 0:
        raise ValueError(f"smooth must be at least 0, got {smooth}")
    pair = []
    for name, mask in (("predictions", predictions), ("targets", targets)):
        mask = np.asarray(mask)
        if mask.ndim < 2 or not np.isin(mask, (0, 1)).all():
            raise ValueError(f"{name} must be [batch, ...] of 0 and 1, got shape {mask.shape}")
        pair.append(mask.astype(bool))
    predicted, labelled = pair
    if predicted.shape != labelled.shape:
        raise ValueError(
            f"predictions must have shape {labelled.shape} like targets, got {predicted.shape}"
        )
    axes = tuple(range(1, predicted.ndim))
    return (predicted & labelled).sum(axes), predicted.sum(axes), labelled.sum(axes)
