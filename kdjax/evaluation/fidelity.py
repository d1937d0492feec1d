"""How much of a teacher a student has taken over: agreement, divergence, ranking, transfer.

Conventions are those of `kdjax.evaluation.metrics`: logits `[..., C]`, float64 on the host, ties to
the smaller class, `where` keeps examples. Fidelity is not accuracy: a student may agree more and
be right less often (Stanton et al. 2021, arXiv:2106.05945).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Int
from scipy.special import log_softmax
from scipy.stats import rankdata

from kdjax.evaluation.metrics import (
    Labels,
    Logits,
    Mask,
    accuracy,
    brier,
    confusion_matrix,
    expected_calibration_error,
    joint_counts,
    nll,
    per_class_accuracy,
    rows,
    top_k,
)

_PAIRS = 2**22  # pairs of classes compared at once: 32 MiB a float64 array of them


class RankCorrelation(NamedTuple):
    """Mean correlations over examples, each in [-1, 1]."""

    kendall: float
    spearman: float


class Transfer(NamedTuple):
    """Class by class what distillation changed; every array is `[C]`, NaN where undefined.

    Attributes:
      count: examples of the class.
      teacher, alone, distilled: accuracies on them.
      gain: distilled - alone.
      closed: gain / (teacher - alone), the share of the gap that was closed; NaN where the teacher
        is no better than the student alone.
    """

    count: np.ndarray
    teacher: np.ndarray
    alone: np.ndarray
    distilled: np.ndarray
    gain: np.ndarray
    closed: np.ndarray


def _pair(
    student_logits: Logits, teacher_logits: Logits, where: Mask | None
) -> tuple[np.ndarray, np.ndarray]:
    """Both as `[N, C]`, checked to be about the same examples and classes."""
    if np.shape(student_logits) != np.shape(teacher_logits):
        raise ValueError(
            f"student_logits {np.shape(student_logits)} and teacher_logits "
            f"{np.shape(teacher_logits)} must have the same shape"
        )
    return rows("student_logits", student_logits, where), rows(
        "teacher_logits", teacher_logits, where
    )


def agreement(
    student_logits: Logits, teacher_logits: Logits, k: int = 1, where: Mask | None = None
) -> float:
    """How far the k best classes of student and teacher are the same: mean |S_k ∩ T_k| / k.

    For k = 1 the share of examples on which both predict the same class. Symmetric.

    Args:
      student_logits, teacher_logits: `[..., C]`, finite.
      k: in [1, C].
      where: `[...]`, bool; the examples that count. None: all.

    Returns:
      A number in [0, 1].

    Raises:
      ValueError: shapes that differ, no example, logits that are not finite, k outside [1, C].

    Source: top-1 agreement as in Stanton et al. 2021 (arXiv:2106.05945).

    >>> agreement(np.array([[3.0, 2.0, 1.0]]), np.array([[3.0, 1.0, 2.0]]), k=2)
    0.5
    """
    student, teacher = _pair(student_logits, teacher_logits, where)
    shared = top_k(student, k)[:, :, None] == top_k(teacher, k)[:, None, :]
    return float(shared.sum((1, 2)).mean() / k)


def kl_to_teacher(
    student_logits: Logits, teacher_logits: Logits, where: Mask | None = None
) -> float:
    """The mean divergence KL(t || s) = sum_c t_c (log t_c - log s_c) at temperature 1, in nats.

    Args:
      student_logits, teacher_logits: `[..., C]`, finite.
      where: `[...]`, bool; the examples that count. None: all.

    Returns:
      A number >= 0; 0 where the two distributions are the same.

    Raises:
      ValueError: as `agreement`.

    >>> round(kl_to_teacher(np.zeros((1, 2)), np.array([[np.log(3.0), 0.0]])), 6)
    0.130812
    """
    student, teacher = (log_softmax(x, -1) for x in _pair(student_logits, teacher_logits, where))
    divergence = (np.exp(teacher) * (teacher - student)).sum(-1).mean()
    return float(max(divergence, 0.0))  # rounding may leave -1e-17 where the two are equal


def _kendall(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """tau-b of each row of a with the same row of b, `[N]`; 0 where a row is constant."""

    def orders(x):
        return np.sign(x[:, :, None] - x[:, None, :])

    def size(x):
        return np.square(x).sum((1, 2))

    out = np.empty(len(a))
    step = max(1, _PAIRS // a.shape[-1] ** 2)
    for start in range(0, len(a), step):
        x, y = orders(a[start : start + step]), orders(b[start : start + step])
        scale = np.sqrt(size(x) * size(y))
        out[start : start + step] = (x * y).sum((1, 2)) / np.where(scale > 0, scale, 1.0)
    return out


def _spearman(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Pearson's correlation of the mid-ranks of each row, `[N]`; 0 where a row is constant."""
    x, y = (rankdata(z, axis=-1) - (z.shape[-1] + 1) / 2 for z in (a, b))
    scale = np.sqrt(np.square(x).sum(-1) * np.square(y).sum(-1))
    return (x * y).sum(-1) / np.where(scale > 0, scale, 1.0)


def rank_correlation(
    student_logits: Logits, teacher_logits: Logits, where: Mask | None = None
) -> RankCorrelation:
    """Whether a student ranks the classes as its teacher does: Kendall's tau-b and Spearman's rho.

    Both are taken between the logits of one example and averaged over examples. An example on
    which either model ranks nothing, all its logits being equal, counts as 0. Time grows with C^2.

    Args:
      student_logits, teacher_logits: `[..., C]`, finite, C >= 2.
      where: `[...]`, bool; the examples that count. None: all.

    Raises:
      ValueError: as `agreement`; fewer than two classes.

    Source: Kendall 1945, The treatment of ties in ranking problems; Spearman 1904.

    >>> rank_correlation(np.array([[1.0, 2.0, 3.0]]), np.array([[1.0, 3.0, 2.0]]))
    RankCorrelation(kendall=0.3333333333333333, spearman=0.5)
    """
    student, teacher = _pair(student_logits, teacher_logits, where)
    if student.shape[-1] < 2:
        raise ValueError("student_logits must have at least 2 classes to rank, got 1")
    return RankCorrelation(
        float(_kendall(student, teacher).mean()), float(_spearman(student, teacher).mean())
    )


def agreement_matrix(
    student_logits: Logits, teacher_logits: Logits, where: Mask | None = None
) -> Int[np.ndarray, "classes classes"]:
    """Counts `[C, C]`: entry (i, j) is on how many examples the teacher says i, the student j.

    Args:
      student_logits, teacher_logits: `[..., C]`, finite.
      where: `[...]`, bool; the examples that count. None: all.

    Raises:
      ValueError: as `agreement`.

    >>> agreement_matrix(np.array([[0.0, 1.0]]), np.array([[1.0, 0.0]])).tolist()
    [[0, 1], [0, 0]]
    """
    student, teacher = _pair(student_logits, teacher_logits, where)
    return joint_counts(teacher.argmax(-1), student.argmax(-1), student.shape[-1])


def per_class_transfer(
    labels: Labels, teacher: Logits, alone: Logits, distilled: Logits, where: Mask | None = None
) -> Transfer:
    """What distillation changed on each class, between the student alone and its teacher.

    Args:
      labels: `[...]`, integers in [0, C).
      teacher, alone, distilled: the logits `[..., C]` of the three models, finite.
      where: `[...]`, bool; the examples that count. None: all.

    Raises:
      ValueError: as `kdjax.evaluation.accuracy`, and where the three shapes differ.

    >>> teacher, alone = np.array([[1.0, 0.0]] * 2), np.array([[0.0, 1.0]] * 2)
    >>> distilled = np.array([[1.0, 0.0], [0.0, 1.0]])
    >>> per_class_transfer(np.array([0, 0]), teacher, alone, distilled).closed.tolist()
    [0.5, nan]
    """
    if not np.shape(teacher) == np.shape(alone) == np.shape(distilled):
        raise ValueError(
            f"teacher {np.shape(teacher)}, alone {np.shape(alone)} and distilled "
            f"{np.shape(distilled)} must have the same shape"
        )
    right = [per_class_accuracy(x, labels, where) for x in (teacher, alone, distilled)]
    gain, gap = right[2] - right[1], right[0] - right[1]
    return Transfer(
        confusion_matrix(teacher, labels, where).sum(-1),
        *right,
        gain=gain,
        closed=gain / np.where(gap > 0, gap, np.nan),
    )


def scores(
    logits: Logits, labels: Labels, teacher_logits: Logits | None = None
) -> dict[str, float]:
    """Every number that a report or a record gives of one model.

    Args:
      logits: `[..., C]`, finite.
      labels: `[...]`, integers in [0, C).
      teacher_logits: `[..., C]`, finite; None: nothing that needs a teacher.

    Returns:
      `accuracy`, `nll`, `brier`, `ece` (15 bins of equal width), `adaptive_ece` (of equal mass),
      and with a teacher `agreement`, `kl_to_teacher`, `kendall`, `spearman`.

    Raises:
      ValueError: as `kdjax.evaluation.accuracy` and `agreement`.

    >>> sorted(scores(np.array([[1.0, 0.0]]), np.array([0])))
    ['accuracy', 'adaptive_ece', 'brier', 'ece', 'nll']
    """
    out = {
        "accuracy": accuracy(logits, labels),
        "nll": nll(logits, labels),
        "brier": brier(logits, labels),
        "ece": expected_calibration_error(logits, labels),
        "adaptive_ece": expected_calibration_error(logits, labels, adaptive=True),
    }
    if teacher_logits is not None:
        out["agreement"] = agreement(logits, teacher_logits)
        out["kl_to_teacher"] = kl_to_teacher(logits, teacher_logits)
        out |= rank_correlation(logits, teacher_logits)._asdict()
    return out
