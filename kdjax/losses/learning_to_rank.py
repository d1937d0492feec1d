"""Learning to rank: scores of a list of items against relevances, grades or a teacher's scores.

    [..., items] -> [...], one loss a list;  where=False items (padding) take no part

The relevance is a constant: with a teacher's scores in its place these are ranking distillation. A
list that is all padding is 0. Values in float32 (float64 for float64). For a given permutation
see `plackett_luce_nll`.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float
from numpy import ndarray

from kdjax.losses import checks, log_space
from kdjax.losses.checks import Losses, Scalar
from kdjax.losses.ranking import plackett_luce_nll

Scores = Float[Array | ndarray, "*batch items"]
Items = Bool[Array | ndarray, "*batch items"]
Pairs = Bool[Array, "*batch items items"]


def listnet(
    scores: Scores, relevance: Scores, *, epsilon: Scalar = 0.0, where: Items | None = None
) -> Losses:
    """ListNet: cross-entropy from the softmax of the relevances to the softmax of the scores.

        L = -sum_i softmax(y)_i log( softmax(s)_i + epsilon )

    The likelihood of the first place only. Not 0 at s = y: the rest is the entropy of softmax(y).
    allRank adds epsilon = 1e-10.

    Args:
      scores: floats [..., items]. Differentiated.
      relevance: floats [..., items]; grades, or a teacher's scores. Stopped.
      epsilon: scalar >= 0, may be traced.
      where: booleans [..., items]; False items take no part.

    Returns:
      [...].

    Raises:
      ValueError: shapes that differ, epsilon < 0. TypeError: scores or relevance that are not
        floats, where that is not boolean.

    Source: Cao et al. 2007.

    >>> import jax.numpy as jnp
    >>> print(f"{listnet(jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0])):.6f}")
    1.044320
    """
    where, scores, relevance = _lists(scores, relevance, where)
    checks.not_negative(epsilon=epsilon)
    scores, relevance = (jnp.where(where, x, -jnp.inf) for x in (scores, relevance))
    log_q = log_space.safe_log_softmax(scores)
    if not (isinstance(epsilon, int | float) and epsilon == 0):
        shift = jnp.log(jnp.asarray(epsilon, log_q.dtype))
        log_q = jnp.where(where, jnp.logaddexp(jnp.where(where, log_q, 0.0), shift), -jnp.inf)
    return log_space.cross_entropy(log_space.safe_log_softmax(relevance), log_q)


def listmle(scores: Scores, relevance: Scores, *, where: Items | None = None) -> Losses:
    """ListMLE: the likelihood of the whole ranking, drawn place after place.

        L = sum_k ( logsumexp_{l >= k} s_{r_l} - s_{r_k} ),   r = items by descending y

    `plackett_luce_nll` with a weight of 1 a step; other code divides by the number of items
    (`listmle_weights`). Items of one relevance are ranked in the order of their index: shuffle the
    list, or use `partial_listmle`, where their order must not be taught.

    Args:
      scores: floats [..., items]. Differentiated.
      relevance: floats [..., items], no NaN (which no order has a place for). Stopped.
      where: booleans [..., items]; False items take no part.

    Returns:
      [...], >= 0.

    Raises:
      ValueError: shapes that differ. TypeError: scores or relevance that are not floats, where
        that is not boolean.

    Source: Xia et al. 2008.

    >>> import jax.numpy as jnp
    >>> print(f"{listmle(jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0])):.6f}")
    1.313262
    """
    where, scores, relevance = _lists(scores, relevance, where)
    return _listmle(scores, relevance, where, where)


def partial_listmle(
    scores: Scores, relevance: Scores, valid: Items, *, where: Items | None = None
) -> Losses:
    """ListMLE of which only some items are taught; the others are what they must outrank.

        L = sum_{k: r_k valid} ( logsumexp_{l >= k} s_{r_l} - s_{r_k} ),   r = items by descending y

    With a prefix of the ranking as the valid items this is top-k ListMLE, and contrastive partial
    ranking distillation (CPRD): each valid item is the positive of a contrastive loss whose
    negatives are the items ranked below it. The authors' temperature divides the scores; divide
    by the number of valid items for a loss whose size does not depend on it.

    Args:
      scores: floats [..., items]. Differentiated.
      relevance: floats [..., items], no NaN; a teacher's scores in CPRD. Stopped.
      valid: booleans [..., items], by item, not by place; none valid: 0.
      where: booleans [..., items]; False items take no part, not even as negatives.

    Returns:
      [...], >= 0.

    Raises:
      ValueError: shapes that differ. TypeError: scores or relevance that are not floats, valid or
        where that is not boolean.

    Source: Chen et al. 2024 (CPRD), arXiv:2407.07479; Xia et al. 2009 (top-k ListMLE).

    >>> import jax.numpy as jnp
    >>> scores, teacher = jnp.zeros(4), jnp.array([0.9, 0.8, 0.1, 0.2])
    >>> print(f"{partial_listmle(scores, teacher, teacher > 0.5):.6f}")  # log 4 + log 3
    2.484907
    """
    where, scores, relevance = _lists(scores, relevance, where)
    valid = checks.boolean("valid", valid, scores.shape, "the scores")
    return _listmle(scores, relevance, valid & where, where)


def ordered_pairs(relevance: Scores, *, where: Items | None = None) -> Pairs:
    """The pairs that have an order: (i, j) with y_i > y_j, neither of them padding.

    Args:
      relevance: floats [..., items]. Not differentiable.
      where: booleans [..., items]; False items are in no pair.

    Returns:
      Booleans [..., items, items], entry (i, j): item i should outrank item j.

    Raises:
      ValueError: where of another shape. TypeError: relevance that is not of floats, where that is
        not boolean.

    Source: Burges et al. 2005.

    >>> import jax.numpy as jnp
    >>> ordered_pairs(jnp.array([0.0, 1.0])).tolist()
    [[False, False], [True, False]]
    """
    where, relevance, _ = _lists(relevance, relevance, where)
    above = relevance[..., :, None] > relevance[..., None, :]
    return above & where[..., :, None] & where[..., None, :]


def ranknet(
    scores: Scores,
    relevance: Scores,
    *,
    weighted: bool = False,
    where: Items | None = None,
) -> Losses:
    """RankNet: the logistic loss of every ordered pair.

        L = mean_{(i, j): y_i > y_j} w_ij log(1 + exp(-(s_i - s_j))),   w = 1, or y_i - y_j

    0 for a list without an ordered pair. allRank averages over the pairs of the whole batch: weigh
    each list by its number of `ordered_pairs`.

    Args:
      scores: floats [..., items]. Differentiated.
      relevance: floats [..., items]. Stopped.
      weighted: whether a pair counts by the difference of its relevances.
      where: booleans [..., items]; False items take no part.

    Returns:
      [...], >= 0.

    Raises:
      ValueError: shapes that differ. TypeError: scores or relevance that are not floats, where
        that is not boolean.

    Source: Burges et al. 2005.

    >>> import jax.numpy as jnp
    >>> print(f"{ranknet(jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0])):.6f}")
    1.313262
    """
    where, scores, relevance = _lists(scores, relevance, where)
    pairs = ordered_pairs(relevance, where=where)
    losses = jax.nn.softplus(-_differences(scores))
    if weighted:
        losses = losses * _differences(relevance)
    total = jnp.sum(jnp.where(pairs, losses, 0.0), axis=(-2, -1))
    return total / jnp.maximum(jnp.sum(pairs, axis=(-2, -1)), 1)


def lambdarank(scores: Scores, relevance: Scores, *, where: Items | None = None) -> Losses:
    """LambdaRank: RankNet's pairs, each weighed by what swapping the two would change in the NDCG.

        L = sum_{(i, j): y_i > y_j} |G_i - G_j| |1/D_i - 1/D_j| log(1 + exp(-(s_i - s_j)))
        G = (2^y - 1) / max DCG,   D = log2(1 + rank by s)

    A sum, not a mean, over the pairs, in nats (allRank: log 2, and optionally the mean). The ranks
    are constants of the gradient: equal scores rank in the order of their index.

    Args:
      scores: floats [..., items], no NaN. Differentiated; the ranks are not.
      relevance: floats [..., items], grades >= 0 (2^y must not overflow). Stopped.
      where: booleans [..., items]; False items take no part.

    Returns:
      [...], >= 0.

    Raises:
      ValueError: shapes that differ. TypeError: scores or relevance that are not floats, where
        that is not boolean.

    Source: Burges 2010 (From RankNet to LambdaRank to LambdaMART); Wang et al. 2018 (LambdaLoss).

    >>> import jax.numpy as jnp
    >>> print(f"{lambdarank(jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0])):.6f}")
    0.484686
    """
    where, scores, relevance = _lists(scores, relevance, where)
    gains = _gains(relevance, where)
    known = jnp.where(where, jax.lax.stop_gradient(scores), -jnp.inf)
    order = jnp.argsort(known, axis=-1, stable=True, descending=True)
    ranks = jnp.argsort(order, axis=-1) + 1
    discounts = 1 / jnp.log2(1.0 + ranks.astype(scores.dtype))
    weights = jnp.abs(_differences(gains) * _differences(discounts))
    losses = weights * jax.nn.softplus(-_differences(scores))
    return jnp.sum(jnp.where(ordered_pairs(relevance, where=where), losses, 0.0), axis=(-2, -1))


def approx_ndcg(
    scores: Scores,
    relevance: Scores,
    *,
    alpha: Scalar = 1.0,
    where: Items | None = None,
) -> Losses:
    """ApproxNDCG: the negative NDCG with a rank that has a gradient.

        rank_i = 1 + sum_{j != i} sigmoid(-alpha (s_i - s_j))
        L = -sum_i G_i / log2(1 + rank_i),   G = (2^y - 1) / max DCG

    Goes to -NDCG for alpha -> inf. 0, with no gradient, for a list in which nothing is relevant.

    Args:
      scores: floats [..., items]. Differentiated.
      relevance: floats [..., items], grades >= 0 (2^y must not overflow). Stopped.
      alpha: scalar > 0, may be traced; how sharp the ranks are.
      where: booleans [..., items]; False items take no part.

    Returns:
      [...], in [-1, 0].

    Raises:
      ValueError: shapes that differ, alpha <= 0. TypeError: scores or relevance that are not
        floats, where that is not boolean.

    Source: Qin et al. 2010; Bruch et al. 2019.

    >>> import jax.numpy as jnp
    >>> scores, relevance = jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0])
    >>> print(f"{approx_ndcg(scores, relevance, alpha=50.0):.4f}")  # 1 / log2(3)
    -0.6309
    """
    where, scores, relevance = _lists(scores, relevance, where)
    checks.positive(alpha=alpha)
    others = where[..., None, :] & ~jnp.eye(scores.shape[-1], dtype=bool)
    outranked_by = jax.nn.sigmoid(-alpha * _differences(scores))
    ranks = 1 + jnp.sum(jnp.where(others, outranked_by, 0.0), axis=-1)
    return -jnp.sum(_gains(relevance, where) / jnp.log2(1 + ranks), axis=-1)


def margin_mse(
    student_positive_scores: Float[Array | ndarray, "..."],
    student_negative_scores: Float[Array | ndarray, "..."],
    teacher_positive_scores: Float[Array | ndarray, "..."],
    teacher_negative_scores: Float[Array | ndarray, "..."],
) -> Float[Array, "..."]:
    """Margin MSE: the student's margin between a relevant and another item is the teacher's.

        L = ( (s+ - s-) - (t+ - t-) )^2

    Args:
      student_positive_scores: floats [...]. Differentiated.
      student_negative_scores: floats [...]. Differentiated.
      teacher_positive_scores: floats [...]. Stopped.
      teacher_negative_scores: floats [...]. Stopped.

    Returns:
      [...], >= 0.

    Raises:
      ValueError: shapes that differ. TypeError: scores that are not floats.

    Source: Hofstaetter et al. 2020, arXiv:2010.02666.

    >>> import jax.numpy as jnp
    >>> print(margin_mse(jnp.array(3.0), jnp.array(1.0), jnp.array(5.0), jnp.array(4.0)))
    1.0
    """
    named = {
        "student_positive_scores": student_positive_scores,
        "student_negative_scores": student_negative_scores,
        "teacher_positive_scores": teacher_positive_scores,
        "teacher_negative_scores": teacher_negative_scores,
    }
    arrays = checks.shaped(dict.fromkeys(named, "..."), **named)
    student_margin = arrays[0] - arrays[1]
    teacher_margin = jax.lax.stop_gradient(arrays[2] - arrays[3])
    return (student_margin - teacher_margin) ** 2


def _lists(scores: Scores, relevance: Scores, where: Items | None) -> tuple[Array, Array, Array]:
    """The mask, and scores and constant relevances with 0 where it is False."""
    scores, relevance = checks.shaped(
        {"scores": "... items", "relevance": "... items"}, scores=scores, relevance=relevance
    )
    where = jnp.ones(scores.shape, bool) if where is None else where
    where = checks.boolean("where", where, scores.shape, "the scores")
    relevance = jax.lax.stop_gradient(relevance)
    return where, jnp.where(where, scores, 0.0), jnp.where(where, relevance, 0.0)


def _listmle(scores: Array, relevance: Array, taught: Array, where: Array) -> Array:
    # Where padding ends up makes no difference: its score is -inf, and its weight 0.
    ranking = jnp.argsort(relevance, axis=-1, stable=True, descending=True)
    weights = jnp.take_along_axis(taught, ranking, axis=-1).astype(scores.dtype)
    return plackett_luce_nll(jnp.where(where, scores, -jnp.inf), ranking, weights)


def _differences(values: Array) -> Array:
    """x_i - x_j, [..., items] -> [..., items, items]."""
    return values[..., :, None] - values[..., None, :]


def _gains(relevance: Array, where: Array) -> Array:
    """(2^y - 1) / max DCG; 0 for padding and where nothing is relevant."""
    gains = jnp.where(where, jnp.exp2(relevance) - 1, 0.0)
    ideal = jnp.sort(gains, axis=-1, descending=True)
    discounts = 1 / jnp.log2(2.0 + jnp.arange(gains.shape[-1], dtype=gains.dtype))
    largest = jnp.sum(ideal * discounts, axis=-1, keepdims=True)
    return jnp.where(largest > 0, gains / jnp.where(largest > 0, largest, 1.0), 0.0)
