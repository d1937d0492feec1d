"""Hard negatives of retrieval: which items are mined, which are taught, and in what order.

A query has N items, of which some are its own. The student's scores say which others are hard, the
teacher's in what order these belong.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
from numpy import ndarray

from kdjax.losses import checks
from kdjax.losses.checks import Losses, Scalar
from kdjax.losses.learning_to_rank import Items, Scores, partial_listmle


class HardNegatives(NamedTuple):
    """The negatives of each query, hardest first.

    Attributes:
      indices: int32 [queries, K], columns of the scores.
      found: booleans [queries, K]; False where a query has fewer than K negatives: such a column
        is no negative of the query and must take no part.
    """

    indices: Int[Array, "queries negatives"]
    found: Bool[Array, "queries negatives"]


def mine_hard_negatives(
    student_scores: Float[Array | ndarray, "queries items"],
    positives: Bool[Array | ndarray, "queries items"],
    *,
    negatives: int,
    where: Bool[Array | ndarray, "queries items"] | None = None,
) -> HardNegatives:
    """The K items of each query that the student scores highest, without the query's own.

    Args:
      student_scores: floats [queries, items], no NaN. Not differentiable. Ties: lower index first.
      positives: booleans [queries, items]: all items that belong to the query, such as every
        caption of an image, not only the one it is paired with.
      negatives: K, an integer in [2, items).
      where: booleans [queries, items]; False pairs (padding) are not mined.

    Returns:
      `HardNegatives`.

    Raises:
      ValueError: shapes that differ, K < 2 or K >= items. TypeError: scores that are not floats,
        masks that are not boolean, K that is not an integer.

    Source: Chen et al. 2024 (CPRD), arXiv:2407.07479.

    >>> import jax.numpy as jnp
    >>> own = jnp.array([[True, False, False, False]])
    >>> mined = mine_hard_negatives(jnp.array([[0.9, 0.1, 0.7, 0.3]]), own, negatives=2)
    >>> mined.indices.tolist(), mined.found.tolist()
    ([[2, 3]], [[True, True]])
    """
    (scores,) = checks.shaped({"student_scores": "queries items"}, student_scores=student_scores)
    checks.count(2, scores.shape[1] - 1, negatives=negatives)
    allowed = ~checks.boolean("positives", positives, scores.shape, "the student_scores")
    if where is not None:
        allowed &= checks.boolean("where", where, scores.shape, "the student_scores")
    scores = jnp.where(allowed, jax.lax.stop_gradient(scores), -jnp.inf)
    _, indices = jax.lax.top_k(scores, negatives)
    return HardNegatives(indices, jnp.take_along_axis(allowed, indices, axis=1))


def valid_negatives(
    teacher_scores: Scores,
    *,
    fraction: Scalar = 0.5,
    threshold: Scalar | None = None,
    where: Items | None = None,
) -> Bool[Array, "*batch items"]:
    """The items that the teacher ranks high enough for their order to be knowledge.

    They are a prefix of the teacher's ranking: its first ceil(fraction * items) items, and with a
    threshold only those whose score is above it. The paper's rule is not known.

    Args:
      teacher_scores: floats [..., items]. Not differentiable. NaN: not valid. Ties: lower index
        first.
      fraction: scalar in [0, 1], may be traced; of the items that take part.
      threshold: scalar, may be traced, in the unit of the scores; None: none.
      where: booleans [..., items]; False items are not valid and are not counted.

    Returns:
      Booleans [..., items], by item, not by place.

    Raises:
      ValueError: fraction outside [0, 1], threshold that is not finite, where of another shape.
      TypeError: scores that are not floats, where that is not boolean.

    Source: Chen et al. 2024 (CPRD), arXiv:2407.07479.

    >>> import jax.numpy as jnp
    >>> valid_negatives(jnp.array([0.1, 0.9, 0.3, 0.8])).tolist()
    [False, True, False, True]
    """
    (scores,) = checks.shaped({"teacher_scores": "... items"}, teacher_scores=teacher_scores)
    checks.fraction(fraction=fraction)
    where = jnp.ones(scores.shape, bool) if where is None else where
    where = checks.boolean("where", where, scores.shape, "the teacher_scores")
    scores, known = jax.lax.stop_gradient(scores), where & ~jnp.isnan(scores)
    count = jnp.ceil(fraction * jnp.sum(where, axis=-1, keepdims=True))
    order = jnp.argsort(_last(scores, known), axis=-1, stable=True, descending=True)
    valid = known & (jnp.argsort(order, axis=-1) < count)
    if threshold is not None:
        checks.finite(threshold=threshold)
        valid &= jnp.where(known, scores, -jnp.inf) > threshold
    return valid


def partial_ranking_contrastive_loss(
    student_scores: Scores,
    teacher_scores: Scores,
    valid: Items,
    *,
    temperature: Scalar = 0.07,
    tie_tolerance: Scalar = 0.0,
    where: Items | None = None,
) -> Losses:
    """CPRD: each valid item is the positive of a contrast with all that the teacher ranks below.

        L = sum_{j: valid} ( logsumexp_{k >= j} s_k / T - s_j / T ),   by descending teacher score

    `partial_listmle` with a temperature; the last item adds 0. Divide by the number of valid items
    for a loss whose size does not depend on it. It reads the teacher's order, never its values.

    Args:
      student_scores: floats [..., items], cosines. Differentiated.
      teacher_scores: floats [..., items]. Stopped. NaN: the item is not valid, and ranked last.
      valid: booleans [..., items], by item; none valid: 0.
      temperature: scalar > 0, may be traced (and differentiated).
      tie_tolerance: scalar >= 0, may be traced. If > 0, an item that is not more than this above
        the next one is no positive: such an order is noise.
      where: booleans [..., items]; False items take no part, not even as negatives.

    Returns:
      [...], >= 0.

    Raises:
      ValueError: shapes that differ, fewer than two items, temperature <= 0, tie_tolerance < 0.
      TypeError: scores that are not floats, masks that are not boolean.

    Source: Chen et al. 2024 (CPRD), arXiv:2407.07479.

    >>> import jax.numpy as jnp
    >>> student, teacher = jnp.array([2.0, 1.0, 0.0, -1.0]), jnp.array([0.9, 0.8, 0.2, 0.1])
    >>> valid = valid_negatives(teacher)
    >>> loss = partial_ranking_contrastive_loss(student, teacher, valid, temperature=1.0)
    >>> print(f"{loss:.6f}")
    0.847796
    """
    student, teacher = checks.shaped(
        {"student_scores": "... items", "teacher_scores": "... items"},
        student_scores=student_scores,
        teacher_scores=teacher_scores,
    )
    if student.shape[-1] < 2:
        raise ValueError(f"student_scores must have at least two items, got {student.shape}")
    checks.positive(temperature=temperature)
    checks.not_negative(tie_tolerance=tie_tolerance)
    valid = checks.boolean("valid", valid, student.shape, "the student_scores")
    where = jnp.ones(student.shape, bool) if where is None else where
    where = checks.boolean("where", where, student.shape, "the student_scores")
    teacher = jax.lax.stop_gradient(teacher)
    known = where & ~jnp.isnan(teacher)
    teacher = _last(teacher, known)
    order = jnp.argsort(teacher, axis=-1, stable=True, descending=True)
    ranked = jnp.take_along_axis(teacher, order, axis=-1)
    # The next one of the last item is nothing, and neither is a gap of -inf to -inf.
    below = jnp.concatenate([ranked[..., 1:], jnp.full_like(ranked[..., :1], -jnp.inf)], axis=-1)
    finite = jnp.isfinite(ranked) & jnp.isfinite(below)
    gap = jnp.where(finite, jnp.where(finite, ranked, 0) - jnp.where(finite, below, 0), jnp.inf)
    apart = (gap > tie_tolerance) | (jnp.asarray(tie_tolerance) == 0)
    apart = jnp.take_along_axis(apart, jnp.argsort(order, axis=-1), axis=-1)
    student = jnp.where(where, student, 0.0) / temperature
    return partial_listmle(student, teacher, valid & known & apart, where=where)


def _last(scores: Array, known: Array) -> Array:
    return jnp.where(known, scores, -jnp.inf)
