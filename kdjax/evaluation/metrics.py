"""How good the logits of one classifier are: accuracy, likelihood, calibration, confusion.

Every function takes logits `[..., C]` and labels `[...]`, computes in float64 on the host, and
returns one number or one array over the classes. `where` keeps the examples on which it is True;
what the others hold (a padding label of -1, say) is never looked at. A tie between logits goes to
the smaller class, as `argmax` has it.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.special import log_softmax, xlogy

Array = jax.Array | np.ndarray
Logits = Float[Array, "*batch classes"]
Labels = Int[Array, "*batch"]
Mask = Bool[Array, "*batch"]


class Bins(NamedTuple):
    """What a reliability diagram shows. Every array but `edges` is `[num_bins]`.

    Attributes:
      edges: `[num_bins + 1]`, in [0, 1]; bin i holds the confidences in (edges[i], edges[i + 1]].
      count: examples in the bin.
      confidence: their mean confidence; NaN in an empty bin.
      accuracy: the share of them that is right; NaN in an empty bin.
    """

    edges: np.ndarray
    count: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray


def rows(name: str, logits: Logits, where: Mask | None = None) -> np.ndarray:
    """The kept examples of `logits` as a finite float64 array `[N, C]` with N >= 1.

    Raises:
      ValueError: no class axis, no example left, or a value that is not finite.
    """
    values = np.asarray(logits)
    if values.ndim < 2:
        raise ValueError(f"{name} must be [..., classes], got shape {values.shape}")
    if where is None:
        values = values.reshape(-1, values.shape[-1])
    else:
        mask = np.asarray(where)
        if mask.dtype != bool or mask.shape != values.shape[:-1]:
            raise ValueError(
                f"where must be bool {values.shape[:-1]} like {name} without its classes, "
                f"got {mask.dtype} {mask.shape}"
            )
        values = values[mask]
    if not values.size:
        raise ValueError(f"{name} holds no example to evaluate")
    values = values.astype(np.float64)
    if not np.isfinite(values).all():
        bad = int(np.argmin(np.isfinite(values).all(-1)))
        raise ValueError(f"{name} is not finite in example {bad} of those evaluated")
    return values


def labelled(
    logits: Logits, labels: Labels, where: Mask | None = None, name: str = "logits"
) -> tuple[np.ndarray, np.ndarray]:
    """The kept examples as `(logits [N, C], labels [N])`, checked.

    Raises:
      ValueError: as `rows`; labels of another shape, not integers, or outside the classes.
    """
    values, classes = rows(name, logits, where), np.asarray(labels)
    if classes.shape != np.shape(logits)[:-1]:
        raise ValueError(
            f"labels must have shape {np.shape(logits)[:-1]}, that of {name} without its classes, "
            f"got {classes.shape}"
        )
    if not np.issubdtype(classes.dtype, np.integer):
        raise ValueError(f"labels must be integers, got {classes.dtype}")
    classes = classes.reshape(-1) if where is None else classes[np.asarray(where)]
    outside = (classes < 0) | (classes >= values.shape[-1])
    if outside.any():
        raise ValueError(
            f"labels must lie in [0, {values.shape[-1]}), got {int(classes[outside][0])}"
        )
    return values, classes.astype(np.int64)


def top_k(values: np.ndarray, k: int) -> np.ndarray:
    """The k best classes of each row, best first, `[N, k]`; a tie goes to the smaller class.

    Raises:
      ValueError: k outside [1, C].
    """
    if not 1 <= k <= values.shape[-1]:
        raise ValueError(f"k must lie in [1, {values.shape[-1]}], the number of classes, got {k}")
    return np.argsort(-values, axis=-1, kind="stable")[:, :k]


def accuracy(logits: Logits, labels: Labels, where: Mask | None = None) -> float:
    """The share of examples whose label has the largest logit: mean [argmax_c z_c = y].

    Args:
      logits: `[..., C]`, finite.
      labels: `[...]`, integers in [0, C).
      where: `[...]`, bool; the examples that count. None: all.

    Returns:
      A number in [0, 1].

    Raises:
      ValueError: shapes that do not match, no example, logits that are not finite, or a label
        outside the classes.

    >>> accuracy(np.array([[2.0, 1.0], [0.0, 3.0]]), np.array([0, 0]))
    0.5
    """
    return top_k_accuracy(logits, labels, 1, where)


def top_k_accuracy(logits: Logits, labels: Labels, k: int, where: Mask | None = None) -> float:
    """The share of examples whose label is among the k largest logits.

    Args:
      logits: `[..., C]`, finite.
      labels: `[...]`, integers in [0, C).
      k: in [1, C].
      where: `[...]`, bool; the examples that count. None: all.

    Returns:
      A number in [0, 1].

    Raises:
      ValueError: as `accuracy`; k outside [1, C].

    >>> top_k_accuracy(np.array([[3.0, 1.0, 2.0], [0.0, 1.0, 2.0]]), np.array([2, 0]), k=2)
    0.5
    """
    values, classes = labelled(logits, labels, where)
    return float((top_k(values, k) == classes[:, None]).any(-1).mean())


def nll(logits: Logits, labels: Labels, where: Mask | None = None) -> float:
    """The mean negative log-likelihood of the labels, in nats: mean -log softmax(z)_y.

    Args:
      logits: `[..., C]`, finite.
      labels: `[...]`, integers in [0, C).
      where: `[...]`, bool; the examples that count. None: all.

    Returns:
      A number >= 0; log C for constant logits.

    Raises:
      ValueError: as `accuracy`.

    >>> round(nll(np.zeros((1, 4)), np.array([2])), 6)  # log 4
    1.386294
    """
    values, classes = labelled(logits, labels, where)
    return float(-log_softmax(values, -1)[np.arange(len(classes)), classes].mean())


def brier(logits: Logits, labels: Labels, where: Mask | None = None) -> float:
    """The multi-class Brier score: mean sum_c (softmax(z)_c - [c = y])^2.

    Args:
      logits: `[..., C]`, finite.
      labels: `[...]`, integers in [0, C).
      where: `[...]`, bool; the examples that count. None: all.

    Returns:
      A number in [0, 2].

    Raises:
      ValueError: as `accuracy`.

    Source: Brier 1950, Verification of forecasts expressed in terms of probability.

    >>> brier(np.zeros((1, 2)), np.array([0]))
    0.5
    """
    values, classes = labelled(logits, labels, where)
    error = np.exp(log_softmax(values, -1))
    error[np.arange(len(classes)), classes] -= 1
    return float(np.square(error).sum(-1).mean())


def entropy(logits: Logits, where: Mask | None = None) -> np.ndarray:
    """The entropy of each prediction, in nats: -sum_c p_c log p_c with p = softmax(z).

    Args:
      logits: `[..., C]`, finite.
      where: `[...]`, bool; the examples that count. None: all.

    Returns:
      `[N]` for the N examples that count, each in [0, log C].

    Raises:
      ValueError: as `accuracy`, but for the labels.

    >>> entropy(np.array([[0.0, 0.0], [100.0, 0.0]])).round(4).tolist()
    [0.6931, 0.0]
    """
    probabilities = np.exp(log_softmax(rows("logits", logits, where), -1))
    return np.maximum(-xlogy(probabilities, probabilities).sum(-1), 0.0)


def reliability_bins(
    logits: Logits,
    labels: Labels,
    *,
    num_bins: int = 15,
    adaptive: bool = False,
    where: Mask | None = None,
) -> Bins:
    """Groups examples by confidence, the largest probability, and compares it with accuracy.

    Bin i holds the confidences in (edge_i, edge_{i+1}]. Edges are i / num_bins, or, where
    `adaptive`, the quantiles of the confidences, so that the bins hold equally many examples as
    far as ties allow: equal confidences always share a bin.

    Args:
      logits: `[..., C]`, finite.
      labels: `[...]`, integers in [0, C).
      num_bins: at least 1.
      adaptive: bins of equal mass instead of equal width.
      where: `[...]`, bool; the examples that count. None: all.

    Raises:
      ValueError: as `accuracy`; num_bins below 1.

    Source: Guo et al. 2017 (arXiv:1706.04599), section 2; equal mass: Nguyen and O'Connor 2015
    (arXiv:1508.05154).

    >>> bins = reliability_bins(np.array([[0.0, 0.0], [9.0, 0.0]]), np.array([1, 0]), num_bins=2)
    >>> bins.count.tolist(), bins.accuracy.tolist()
    ([1, 1], [0.0, 1.0])
    """
    values, classes = labelled(logits, labels, where)
    if num_bins < 1:
        raise ValueError(f"num_bins must be at least 1, got {num_bins}")
    confidence = np.exp(log_softmax(values, -1).max(-1))
    right = values.argmax(-1) == classes
    edges = np.linspace(0.0, 1.0, num_bins + 1)
    if adaptive:
        last = np.ceil(len(confidence) * edges[1:-1]).astype(int) - 1
        edges[1:-1] = np.sort(confidence)[np.maximum(last, 0)]
    index = np.searchsorted(edges[1:-1], confidence, side="left")
    count = np.bincount(index, minlength=num_bins)
    filled = np.where(count > 0, count, np.nan)
    return Bins(
        edges,
        count,
        np.bincount(index, confidence, num_bins) / filled,
        np.bincount(index, right, num_bins) / filled,
    )


def expected_calibration_error(
    logits: Logits,
    labels: Labels,
    *,
    num_bins: int = 15,
    adaptive: bool = False,
    where: Mask | None = None,
) -> float:
    """The gap between confidence and accuracy: sum_i n_i / N |accuracy_i - confidence_i|.

    Args:
      logits: `[..., C]`, finite.
      labels: `[...]`, integers in [0, C).
      num_bins: at least 1.
      adaptive: bins of equal mass instead of equal width; see `reliability_bins`.
      where: `[...]`, bool; the examples that count. None: all.

    Returns:
      A number in [0, 1]. It is biased upwards on few examples: compare models on the same ones.

    Raises:
      ValueError: as `reliability_bins`.

    Source: Guo et al. 2017 (arXiv:1706.04599), equation 3.

    >>> expected_calibration_error(np.zeros((2, 2)), np.array([0, 0]))  # half sure, always right
    0.5
    """
    bins = reliability_bins(logits, labels, num_bins=num_bins, adaptive=adaptive, where=where)
    gap = np.abs(bins.accuracy - bins.confidence)
    return float(np.nansum(bins.count * gap) / bins.count.sum())


def confusion_matrix(
    logits: Logits, labels: Labels, where: Mask | None = None
) -> Int[np.ndarray, "classes classes"]:
    """Counts `[C, C]`: entry (i, j) is how many examples of class i were predicted as class j.

    Args:
      logits: `[..., C]`, finite.
      labels: `[...]`, integers in [0, C).
      where: `[...]`, bool; the examples that count. None: all.

    Raises:
      ValueError: as `accuracy`.

    >>> confusion_matrix(np.array([[2.0, 1.0], [0.0, 3.0]]), np.array([0, 0])).tolist()
    [[1, 1], [0, 0]]
    """
    values, classes = labelled(logits, labels, where)
    return joint_counts(classes, values.argmax(-1), values.shape[-1])


def joint_counts(first: np.ndarray, second: np.ndarray, num_classes: int) -> np.ndarray:
    """Counts `[C, C]` of the pairs (first, second) of class indices `[N]`."""
    pairs = np.bincount(first * num_classes + second, minlength=num_classes**2)
    return pairs.reshape(num_classes, num_classes)


def per_class_accuracy(
    logits: Logits, labels: Labels, where: Mask | None = None
) -> Float[np.ndarray, " classes"]:
    """The accuracy on the examples of each class, `[C]`; NaN for a class without examples.

    Args:
      logits: `[..., C]`, finite.
      labels: `[...]`, integers in [0, C).
      where: `[...]`, bool; the examples that count. None: all.

    Raises:
      ValueError: as `accuracy`.

    >>> per_class_accuracy(np.array([[2.0, 1.0], [0.0, 3.0]]), np.array([0, 0])).tolist()
    [0.5, nan]
    """
    counts = confusion_matrix(logits, labels, where)
    total = counts.sum(-1)
    return np.diag(counts) / np.where(total > 0, total, np.nan)
