"""Divergences and rankings from a sparse teacher: a few token ids and their log-probabilities.

How a sparse teacher is written, padded and made tells `kdjax.losses.sparse_targets`. What is done
about the mass that is missing is `missing`: "zero", the teacher has nothing outside its list,
which is renormalised; "tail", all tokens outside are one bucket more, on both sides. With "tail" a
divergence is at most the one on the whole vocabulary (data processing).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kdjax.losses import checks, log_space
from kdjax.losses.checks import Logits, Losses, Scalar
from kdjax.losses.sparse_targets import (
    LogProbs,
    TokenIds,
    gather,
    members,
    sparse_target_log_probs,
    support,
)

Buckets = Float[Array, "*batch buckets"]


def sparse_buckets(
    student_logits: Logits,
    teacher_ids: TokenIds,
    teacher_log_probs: LogProbs,
    *,
    missing: str = "zero",
    temperature: Scalar = 1.0,
    generation_temperature: Scalar = 1.0,
) -> tuple[Buckets, Buckets]:
    """Both sides' log-probabilities of the k listed tokens and of all others together.

        log Q = ( log q(y_1), .., log q(y_k), log sum_(v not listed) q_v ),   q = softmax(s / T)
        log P = `sparse_target_log_probs`

    Any divergence on logits takes these: `generalized_jsd(log_p, log_q, beta=0.1)`. The student's
    tail is summed over the tokens outside, not 1 minus the others: exact however small it is.

    Args:
      student_logits: floats [..., vocabulary]. Differentiated.
      teacher_ids: integers [..., k], different ones.
      teacher_log_probs: floats [..., k], of the whole vocabulary; -inf: no entry. Stopped.
      missing: "zero" or "tail".
      temperature: scalar > 0, may be traced, of both sides.
      generation_temperature: scalar > 0, may be traced: that of teacher_log_probs.

    Returns:
      (student's, teacher's), each [..., k + 1], the tail last.

    Raises:
      ValueError: shapes that do not fit, k > vocabulary, temperatures <= 0, unknown missing.
      TypeError: ids that are not integers, other arrays that are not floats.

    Source: Arcee AI 2024 (DistillKit).

    >>> import jax.numpy as jnp
    >>> student = jnp.log(jnp.array([0.4, 0.3, 0.2, 0.1]))
    >>> ids, log_probs = jnp.array([0, 1]), jnp.log(jnp.array([0.5, 0.3]))
    >>> log_q, log_p = sparse_buckets(student, ids, log_probs, missing="tail")
    >>> print(" ".join(f"{x:.2f}" for x in jnp.exp(jnp.append(log_q, log_p))))
    0.40 0.30 0.30 0.50 0.30 0.20
    """
    student, ids, log_probs = _sparse(student_logits, teacher_ids, teacher_log_probs)
    target, tail = sparse_target_log_probs(
        log_probs,
        missing=missing,
        temperature=temperature,
        generation_temperature=generation_temperature,
    )
    present = target > -jnp.inf
    student = student / temperature
    normalizer = log_space.logsumexp(student)[..., None]
    listed = jnp.where(present, gather(student, ids), -jnp.inf)
    outside = jnp.where(members(ids, present, student.shape[-1]), -jnp.inf, student)
    rest = log_space.logsumexp(outside)[..., None]
    if ids.shape[-1] == student.shape[-1]:
        # Nothing is outside: what is left of the teacher's mass is rounding.
        tail = jnp.where(jnp.all(present, axis=-1), -jnp.inf, tail)
    student_buckets = jnp.concatenate([listed, rest], axis=-1) - normalizer
    return student_buckets, jnp.concatenate([target, tail[..., None]], axis=-1)


def sparse_kl(
    student_logits: Logits,
    teacher_ids: TokenIds,
    teacher_log_probs: LogProbs,
    *,
    missing: str = "zero",
    temperature: Scalar = 1.0,
    generation_temperature: Scalar = 1.0,
) -> Losses:
    """Forward KL from a sparse teacher, on the buckets of `sparse_buckets`.

        "zero": L = sum_i P_i (log P_i - log q(y_i)),   P renormalised
        "tail": L = the same sum, P not renormalised, + P_tail log(P_tail / Q_tail)

    Not the sum over the k with unnormalised P ("naive top-k"): its optimum is q = p / a on the
    list and 0 outside, an over-confident student. Tunix and MaxText are "zero" with T^2, DistillKit
    has both, with T^2; here there is none.

    Args:
      student_logits: floats [..., vocabulary]. Differentiated.
      teacher_ids: integers [..., k], different ones.
      teacher_log_probs: floats [..., k], of the whole vocabulary; -inf: no entry. Stopped.
      missing: "zero" or "tail".
      temperature: scalar > 0, may be traced, of both sides.
      generation_temperature: scalar > 0, may be traced: that of teacher_log_probs.

    Returns:
      [...], >= 0.

    Raises:
      ValueError: shapes that do not fit, k > vocabulary, temperatures <= 0, unknown missing.
      TypeError: ids that are not integers, other arrays that are not floats.

    Source: Arcee AI 2024 (DistillKit); Anshumann et al. 2025, arXiv:2503.16870, on the bias.

    >>> import jax.numpy as jnp
    >>> student = jnp.log(jnp.array([0.4, 0.3, 0.2, 0.1]))
    >>> sparse = jnp.array([0, 1]), jnp.log(jnp.array([0.5, 0.3]))
    >>> zero, tail = (sparse_kl(student, *sparse, missing=m) for m in ("zero", "tail"))
    >>> print(f"{zero:.4f} {tail:.4f}")
    0.3626 0.0305
    """
    log_q, log_p = sparse_buckets(
        student_logits,
        teacher_ids,
        teacher_log_probs,
        missing=missing,
        temperature=temperature,
        generation_temperature=generation_temperature,
    )
    return log_space.kl(log_p, log_q)


def sparse_js(
    student_logits: Logits,
    teacher_ids: TokenIds,
    teacher_log_probs: LogProbs,
    *,
    missing: str = "zero",
    temperature: Scalar = 1.0,
    generation_temperature: Scalar = 1.0,
) -> Losses:
    """Jensen-Shannon divergence from a sparse teacher, on the buckets of `sparse_buckets`.

        L = 1/2 KL(P || M) + 1/2 KL(Q || M),   M = (P + Q) / 2

    With "zero" the student's mass outside the list costs 1/2 log 2 times itself.

    Args:
      student_logits: floats [..., vocabulary]. Differentiated.
      teacher_ids: integers [..., k], different ones.
      teacher_log_probs: floats [..., k], of the whole vocabulary; -inf: no entry. Stopped.
      missing: "zero" or "tail".
      temperature: scalar > 0, may be traced, of both sides.
      generation_temperature: scalar > 0, may be traced: that of teacher_log_probs.

    Returns:
      [...], in [0, log 2].

    Raises:
      ValueError: shapes that do not fit, k > vocabulary, temperatures <= 0, unknown missing.
      TypeError: ids that are not integers, other arrays that are not floats.

    Source: Arcee AI 2024 (DistillKit); Wen et al. 2023 (f-distill), arXiv:2307.15190.

    >>> import jax.numpy as jnp
    >>> student = jnp.log(jnp.array([0.4, 0.3, 0.2, 0.1]))
    >>> sparse = jnp.array([0, 1]), jnp.log(jnp.array([0.5, 0.3]))
    >>> print(f"{sparse_js(student, *sparse, missing='tail'):.4f}")
    0.0078
    """
    log_q, log_p = sparse_buckets(
        student_logits,
        teacher_ids,
        teacher_log_probs,
        missing=missing,
        temperature=temperature,
        generation_temperature=generation_temperature,
    )
    log_mean = log_space.log_mixture(log_p, log_q, 0.5)
    return 0.5 * (log_space.kl(log_p, log_mean) + log_space.kl(log_q, log_mean))


def sparse_tvd(
    student_logits: Logits,
    teacher_ids: TokenIds,
    teacher_log_probs: LogProbs,
    *,
    missing: str = "zero",
    temperature: Scalar = 1.0,
    generation_temperature: Scalar = 1.0,
) -> Losses:
    """Total variation distance from a sparse teacher, on the buckets of `sparse_buckets`.

        L = 1/2 sum_i |P_i - Q_i|

    Args:
      student_logits: floats [..., vocabulary]. Differentiated (0 where P_i = Q_i).
      teacher_ids: integers [..., k], different ones.
      teacher_log_probs: floats [..., k], of the whole vocabulary; -inf: no entry. Stopped.
      missing: "zero" or "tail".
      temperature: scalar > 0, may be traced, of both sides.
      generation_temperature: scalar > 0, may be traced: that of teacher_log_probs.

    Returns:
      [...], in [0, 1].

    Raises:
      ValueError: shapes that do not fit, k > vocabulary, temperatures <= 0, unknown missing.
      TypeError: ids that are not integers, other arrays that are not floats.

    Source: Arcee AI 2024 (DistillKit); Wen et al. 2023 (f-distill), arXiv:2307.15190.

    >>> import jax.numpy as jnp
    >>> student = jnp.log(jnp.array([0.4, 0.3, 0.2, 0.1]))
    >>> sparse = jnp.array([0, 1]), jnp.log(jnp.array([0.5, 0.3]))
    >>> print(f"{sparse_tvd(student, *sparse, missing='tail'):.4f}")
    0.1000
    """
    log_q, log_p = sparse_buckets(
        student_logits,
        teacher_ids,
        teacher_log_probs,
        missing=missing,
        temperature=temperature,
        generation_temperature=generation_temperature,
    )
    return 0.5 * jnp.sum(jnp.abs(jnp.exp(log_p) - jnp.exp(log_q)), axis=-1)


def sparse_cross_entropy(
    student_logits: Logits,
    teacher_ids: TokenIds,
    teacher_weights: LogProbs,
    *,
    temperature: Scalar = 1.0,
) -> Losses:
    """Cross-entropy of the student under weighted tokens, `random_sample_targets` for one.

        L = -sum_i w_i log q(y_i),   q = softmax(s / T),   dL/ds = ( q sum_i w_i - w ) / T

    Weights that sum to a < 1, a teacher's probabilities of its top k, bias it: the optimum is
    q = w / a, more confident than the teacher. An id may come several times.

    Args:
      student_logits: floats [..., vocabulary]. Differentiated.
      teacher_ids: integers [..., k].
      teacher_weights: floats [..., k], >= 0; 0: no entry. Stopped.
      temperature: scalar > 0, may be traced.

    Returns:
      [...], >= 0.

    Raises:
      ValueError: shapes that do not fit, temperature <= 0. TypeError: ids that are not integers,
        other arrays that are not floats.

    Source: Anshumann et al. 2025 (RS-KD), arXiv:2503.16870.

    >>> import jax.numpy as jnp
    >>> student, ids = jnp.log(jnp.array([0.5, 0.3, 0.2])), jnp.array([0, 0, 2])
    >>> print(f"{sparse_cross_entropy(student, ids, jnp.ones(3) / 3):.4f}")
    0.9986
    """
    student, ids, weights = _sparse(
        student_logits, teacher_ids, teacher_weights, name="teacher_weights", distinct=False
    )
    checks.positive(temperature=temperature)
    student = student / temperature
    log_q = gather(student, ids) - log_space.logsumexp(student)[..., None]
    present = (weights != 0) & (ids >= 0) & (ids < student.shape[-1])
    return -jnp.sum(weights * jnp.where(present, log_q, 0.0), axis=-1)


def hinge_ranking(
    student_logits: Logits, teacher_ids: TokenIds, teacher_log_probs: LogProbs
) -> tuple[Losses, Losses]:
    """Hinge on the differences of probabilities: the student's at least as large as the teacher's.

        total = sum_(i, j) relu( (P_i - P_j) - (q_i - q_j) ),   pairs = number of (i, j)
        over listed tokens with P_i > P_j + 1e-8 and P_j > 1e-8

    The published loss is the sum of the totals of a batch divided by that of the pairs.

    Args:
      student_logits: floats [..., vocabulary]; q = softmax(s). Differentiated.
      teacher_ids: integers [..., k], different ones.
      teacher_log_probs: floats [..., k], of the whole vocabulary; -inf: no entry. Stopped.

    Returns:
      (total [...], pairs [...]).

    Raises:
      ValueError: shapes that do not fit, k > vocabulary. TypeError: ids that are not integers,
        other arrays that are not floats.

    Source: Arcee AI 2024 (DistillKit).

    >>> import jax.numpy as jnp
    >>> student = jnp.log(jnp.array([0.4, 0.3, 0.2, 0.1]))
    >>> total, pairs = hinge_ranking(student, jnp.array([0, 1]), jnp.log(jnp.array([0.5, 0.3])))
    >>> print(f"{total:.4f} {pairs:.0f}")
    0.1000 1
    """
    student, ids, log_probs = _sparse(student_logits, teacher_ids, teacher_log_probs)
    probs, pairs = _ranked_pairs(log_probs)
    chosen = jnp.exp(gather(student, ids) - log_space.logsumexp(student)[..., None])
    costs = jax.nn.relu(_differences(probs) - _differences(chosen))
    return _pair_total(costs, pairs)


def logistic_ranking(
    student_logits: Logits, teacher_ids: TokenIds, teacher_log_probs: LogProbs
) -> tuple[Losses, Losses]:
    """Logistic loss on the order of the student's logits: RankNet on the teacher's list.

        total = sum_(i, j) log(1 + exp(-(s_i - s_j))),   pairs = number of (i, j)
        over listed tokens with P_i > P_j + 1e-8 and P_j > 1e-8

    The published loss is the sum of the totals of a batch divided by that of the pairs.

    Args:
      student_logits: floats [..., vocabulary]. Differentiated.
      teacher_ids: integers [..., k], different ones.
      teacher_log_probs: floats [..., k], of the whole vocabulary; -inf: no entry. Stopped.

    Returns:
      (total [...], pairs [...]).

    Raises:
      ValueError: shapes that do not fit, k > vocabulary. TypeError: ids that are not integers,
        other arrays that are not floats.

    Source: Burges et al. 2005 (RankNet); Arcee AI 2024 (DistillKit).

    >>> import jax.numpy as jnp
    >>> student = jnp.array([2.0, 1.0, 0.0])
    >>> total, pairs = logistic_ranking(student, jnp.array([0, 1]), jnp.log(jnp.array([0.5, 0.3])))
    >>> print(f"{total:.4f} {pairs:.0f}")
    0.3133 1
    """
    student, ids, log_probs = _sparse(student_logits, teacher_ids, teacher_log_probs)
    _, pairs = _ranked_pairs(log_probs)
    differences = _differences(gather(student, ids))
    return _pair_total(jax.nn.softplus(-jnp.where(pairs, differences, 0.0)), pairs)


def _sparse(
    student_logits: Logits,
    teacher_ids: TokenIds,
    teacher_values: LogProbs,
    *,
    name: str = "teacher_log_probs",
    distinct: bool = True,
) -> tuple[Array, Array, Array]:
    """The student's logits, the ids and the values of a sparse teacher, which is stopped."""
    axes = {"student_logits": "... vocabulary", name: "... k"}
    student, values = checks.shaped(
        axes, **{"student_logits": student_logits, name: teacher_values}
    )
    ids = support("teacher_ids", teacher_ids, student)
    if ids.shape != values.shape:
        raise ValueError(
            f"teacher_ids and {name} must have one shape [..., k], "
            f"got {ids.shape} and {values.shape}"
        )
    if distinct:
        checks.count(1, student.shape[-1], k=ids.shape[-1])
    values = jax.lax.stop_gradient(values)
    known = (ids >= 0) & (ids < student.shape[-1])
    return student, ids, jnp.where(known, values, -jnp.inf if distinct else 0.0)


def _ranked_pairs(log_probs: Array) -> tuple[Array, Array]:
    """Probabilities, and booleans [..., k, k]: the teacher has i clearly before j."""
    probs = jnp.exp(log_probs)
    above = _differences(probs) > 1e-8
    return probs, above & (probs > 1e-8)[..., None, :]


def _differences(values: Array) -> Array:
    return values[..., :, None] - values[..., None, :]


def _pair_total(costs: Array, pairs: Array) -> tuple[Array, Array]:
    total = jnp.sum(jnp.where(pairs, costs, 0.0), axis=(-2, -1))
    return total, jnp.sum(pairs, axis=(-2, -1), dtype=costs.dtype)
