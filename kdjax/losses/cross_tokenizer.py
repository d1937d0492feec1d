"""Distillation between vocabularies: universal logit distance (ULD), and its hybrid with matches.

The host aligns the two tokenisations of one text (`align_spans`) and the two vocabularies
(`matched_tokens`), with NumPy. On the device `merge_spans` makes one vector of probabilities of
each span, after which both sides have the same number of positions, and the losses compare them.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from numpy import ndarray

from kdjax.losses import checks, log_space
from kdjax.losses.checks import Losses, Scalar

Probs = Float[Array | ndarray, "..."]
HostInts = Int[ndarray, "..."]
SMALLEST_PROB = 1e-8


def align_spans(
    student_ends: Sequence[int] | ndarray, teacher_ends: Sequence[int] | ndarray
) -> tuple[HostInts, HostInts, int]:
    """The smallest spans of a text that both tokenisations cut out, on the host.

        a span ends wherever a student's and a teacher's token end together

    What follows the last common end is one span more. A span that has tokens on one side only is
    dropped. Tokens of no length (special ones) join the span that ends where they stand, where
    walking both lists step by step would shift all that follow.

    Args:
      student_ends: integers [length], where in the text each token ends (bytes or characters), not
        decreasing.
      teacher_ends: integers [length of the teacher], the same.

    Returns:
      (span of each student token, span of each teacher token, number of spans); span -1 for tokens
      that were dropped.

    Raises:
      ValueError: ends that are not a list, or decrease. TypeError: ends that are not integers.

    Source: the GOLD trainer of TRL.

    >>> align_spans([2, 3, 5, 9], [1, 3, 5, 7, 9])
    (array([0, 0, 1, 2]), array([0, 0, 1, 2, 2]), 3)
    """
    ends = [_ends("student_ends", student_ends), _ends("teacher_ends", teacher_ends)]
    common = np.intersect1d(*ends)
    spans = [np.searchsorted(common, each) for each in ends]
    kept = np.intersect1d(*spans)
    numbers = np.full(len(common) + 1, -1)
    numbers[kept] = np.arange(len(kept))
    student, teacher = (numbers[each] for each in spans)
    return student, teacher, len(kept)


def matched_tokens(
    student_vocabulary: Sequence[str], teacher_vocabulary: Sequence[str]
) -> tuple[HostInts, HostInts]:
    """The tokens both vocabularies have, by their strings, on the host.

        student_vocabulary[student_ids[m]] == teacher_vocabulary[teacher_ids[m]]

    Args:
      student_vocabulary: the string of each id, in one normal form for both (byte-level, word
        boundary marks).
      teacher_vocabulary: the string of each id.

    Returns:
      (student_ids [matches], teacher_ids [matches]), ascending in the teacher's. A string that a
      vocabulary has twice is matched by its first id.

    Raises:
      TypeError: a token that is no string (ids in place of a vocabulary).

    Source: the GOLD trainer of TRL.

    >>> matched_tokens(["a", "b", "cd"], ["cd", "x", "a"])
    (array([2, 0]), array([0, 2]))
    """
    named = {"student_vocabulary": student_vocabulary, "teacher_vocabulary": teacher_vocabulary}
    for name, vocabulary in named.items():
        for i, token in enumerate(vocabulary):
            if not isinstance(token, str):
                raise TypeError(f"{name} must hold strings, got {token!r} at {i}")
    student = {token: i for i, token in reversed(list(enumerate(student_vocabulary)))}
    teacher = {token: i for i, token in reversed(list(enumerate(teacher_vocabulary)))}
    pairs = sorted((teacher[token], student[token]) for token in student.keys() & teacher.keys())
    matches = np.array(pairs, dtype=int).reshape(-1, 2)
    return matches[:, 1], matches[:, 0]


def merge_spans(
    logits: Float[Array | ndarray, "*batch length vocabulary"],
    tokens: Int[Array | ndarray, "*batch length"],
    spans: Int[Array | ndarray, "*batch length"],
    *,
    num_spans: int,
    rule: str = "bayesian",
) -> Float[Array, "*batch {num_spans} vocabulary"]:
    """One vector of probabilities for each span of tokens.

        "bayesian": P_g(v) = p_last(v) prod_(i in g, not the last) max(p_i(y_i), 1e-8)
        "observed": P_g(v) = p_first(v) prod_(i in g, not the first) max(p_i(y_i), 1e-8)

    Not normalised: it is a joint probability with the other tokens of the span. "bayesian" wants
    the logits that predict the tokens (position - 1), as usual; TRL's older "observed" takes those
    AT the tokens.

    Args:
      logits: floats [..., length, vocabulary], row i of token i. Differentiated.
      tokens: integers [..., length], in [0, vocabulary) where spans >= 0.
      spans: integers [..., length], of `align_spans`; outside [0, num_spans): no part of a span.
      num_spans: the number of rows of the result.
      rule: "bayesian" or "observed".

    Returns:
      [..., num_spans, vocabulary], in [0, 1]; a span without tokens is 0.

    Raises:
      ValueError: shapes that do not fit, num_spans < 1, unknown rule. TypeError: tokens or spans
        that are not integers, logits that are not floats.

    Source: the GOLD trainer of TRL.

    >>> import jax.numpy as jnp
    >>> logits = jnp.log(jnp.array([[0.5, 0.5], [0.2, 0.8], [0.9, 0.1]]))
    >>> tokens, spans = jnp.array([0, 1, 0]), jnp.array([0, 0, 1])
    >>> for row in merge_spans(logits, tokens, spans, num_spans=2):
    ...     print(" ".join(f"{x:.2f}" for x in row))
    0.10 0.40
    0.90 0.10
    """
    (logits,) = checks.shaped({"logits": "... length vocabulary"}, logits=logits)
    shape = logits.shape[:-1]
    tokens = checks.integers("tokens", tokens, shape, "logits without their vocabulary")
    spans = checks.integers("spans", spans, shape, "logits without their vocabulary")
    checks.count(1, num_spans=num_spans)
    checks.choice("rule", rule, ("bayesian", "observed"))
    length = shape[-1]
    log_probs = log_space.safe_log_softmax(logits)
    chosen = jnp.arange(logits.shape[-1]) == tokens[..., None]
    factors = jnp.sum(jnp.where(chosen, log_probs, 0.0), axis=-1)
    factors = jnp.maximum(factors, jnp.log(SMALLEST_PROB))

    members = spans[..., None, :] == jnp.arange(num_spans)[:, None]
    positions = jnp.arange(length)
    if rule == "bayesian":
        kept = jnp.max(jnp.where(members, positions, 0), axis=-1)
    else:
        kept = jnp.min(jnp.where(members, positions, length - 1), axis=-1)
    others = members & (positions != kept[..., None])
    joint = jnp.sum(jnp.where(others, factors[..., None, :], 0.0), axis=-1)
    rows = jnp.take_along_axis(log_probs, kept[..., None], axis=-2)
    nonempty = jnp.any(members, axis=-1)[..., None]
    return jnp.where(nonempty, jnp.exp(rows + joint[..., None]), 0.0)


def uld(student_probs: Probs, teacher_probs: Probs) -> Losses:
    """Universal logit distance: the L1 distance of the sorted probabilities.

        L = sum_i | q_(i) - p_(i) |,   both sorted descending, the shorter padded with zeros

    The Wasserstein distance with cost 1 between any two tokens. It does not see which token has
    what probability. The caller's mean over the positions of a sequence, then over the sequences,
    is the published loss.

    Args:
      student_probs: floats [..., student_vocabulary], >= 0. Differentiated.
      teacher_probs: floats [..., teacher_vocabulary], >= 0. Stopped.

    Returns:
      [...], >= 0.

    Raises:
      ValueError: leading axes that differ. TypeError: arrays that are not floats.

    Source: Boizard et al. 2024, arXiv:2402.12030.

    >>> import jax.numpy as jnp
    >>> print(f"{uld(jnp.array([0.7, 0.2, 0.1]), jnp.array([0.1, 0.6, 0.2, 0.1])):.4f}")
    0.2000
    """
    return _sorted_distance(*_sides(student_probs, teacher_probs))


def hybrid_uld_terms(
    student_probs: Probs,
    teacher_probs: Probs,
    student_ids: Int[Array | ndarray, " matches"],
    teacher_ids: Int[Array | ndarray, " matches"],
    *,
    beta: Scalar = 0.5,
) -> tuple[Losses, Losses]:
    """The two parts of the hybrid: a JSD on tokens both vocabularies have, ULD on the others.

        matched   = beta sum_m p_m log(p_m / M_m) + (1 - beta) sum_m q_m log(q_m / M_m)
                    M = beta p + (1 - beta) q, all probabilities at least 1e-8
        unmatched = `uld` of the probabilities of the other tokens

    With beta = 0 matched is sum p log(p / q), with beta = 1 sum q log(q / p), as in
    `generalized_jsd`; here nothing is renormalised over the matches, so it may be negative.

    Args:
      student_probs: floats [..., student_vocabulary], >= 0. Differentiated.
      teacher_probs: floats [..., teacher_vocabulary], >= 0. Stopped.
      student_ids: integers [matches], different ones, of `matched_tokens`.
      teacher_ids: integers [matches], different ones.
      beta: scalar in [0, 1], may be traced.

    Returns:
      (matched [...], unmatched [...]).

    Raises:
      ValueError: leading axes or numbers of ids that differ, beta outside [0, 1]. TypeError: ids
        that are not integers, arrays that are not floats.

    Source: the GOLD trainer of TRL.

    >>> import jax.numpy as jnp
    >>> student, teacher = jnp.array([0.7, 0.2, 0.1]), jnp.array([0.2, 0.6, 0.2])
    >>> ids = jnp.array([0]), jnp.array([1])
    >>> matched, unmatched = hybrid_uld_terms(student, teacher, *ids)
    >>> print(f"{matched:.4f} {unmatched:.4f}")
    0.0019 0.1000
    """
    student, teacher = _sides(student_probs, teacher_probs)
    checks.fraction(beta=beta)
    student_ids = checks.integers("student_ids", student_ids, None, "")
    if student_ids.ndim != 1:
        raise ValueError(f"student_ids must be shaped [matches], got shape {student_ids.shape}")
    teacher_ids = checks.integers("teacher_ids", teacher_ids, student_ids.shape, "student_ids")
    log_q, log_p = (
        jnp.log(jnp.maximum(probs[..., ids], SMALLEST_PROB))
        for probs, ids in ((student, student_ids), (teacher, teacher_ids))
    )
    beta = jnp.asarray(beta, log_p.dtype)
    log_mean = log_space.log_mixture(log_p, log_q, beta)
    matched = beta * log_space.kl(log_p, log_mean) + (1 - beta) * log_space.kl(log_q, log_mean)
    matched = jnp.where(beta == 0, log_space.kl(log_p, log_q), matched)
    matched = jnp.where(beta == 1, log_space.kl(log_q, log_p), matched)
    others = (
        jnp.where(jnp.zeros(probs.shape[-1], bool).at[ids].set(True), 0.0, probs)
        for probs, ids in ((student, student_ids), (teacher, teacher_ids))
    )
    return matched, _sorted_distance(*others)


def hybrid_uld(
    student_probs: Probs,
    teacher_probs: Probs,
    student_ids: Int[Array | ndarray, " matches"],
    teacher_ids: Int[Array | ndarray, " matches"],
    *,
    beta: Scalar = 0.5,
    matched_weight: Scalar | None = None,
) -> Losses:
    """The hybrid of GOLD: a JSD on tokens both vocabularies have, ULD on the others.

        L = w matched + (1 - w) unmatched,   w = matches / teacher_vocabulary by default

    of `hybrid_uld_terms`. The caller's mean over the positions is the published loss.

    Args:
      student_probs: floats [..., student_vocabulary], >= 0. Differentiated.
      teacher_probs: floats [..., teacher_vocabulary], >= 0. Stopped.
      student_ids: integers [matches], different ones, of `matched_tokens`.
      teacher_ids: integers [matches], different ones.
      beta: scalar in [0, 1], may be traced.
      matched_weight: w, scalar in [0, 1], may be traced.

    Returns:
      [...].

    Raises:
      ValueError: leading axes or numbers of ids that differ, beta or matched_weight outside
        [0, 1]. TypeError: ids that are not integers, arrays that are not floats.

    Source: the GOLD trainer of TRL.

    >>> import jax.numpy as jnp
    >>> student, teacher = jnp.array([0.7, 0.2, 0.1]), jnp.array([0.2, 0.6, 0.2])
    >>> ids = jnp.array([0]), jnp.array([1])
    >>> print(f"{hybrid_uld(student, teacher, *ids, matched_weight=0.5):.4f}")
    0.0510
    """
    matched, unmatched = hybrid_uld_terms(
        student_probs, teacher_probs, student_ids, teacher_ids, beta=beta
    )
    if matched_weight is None:
        matched_weight = jnp.shape(teacher_ids)[0] / jnp.shape(teacher_probs)[-1]
    checks.fraction(matched_weight=matched_weight)
    return matched_weight * matched + (1 - matched_weight) * unmatched


def _sides(student_probs: Probs, teacher_probs: Probs) -> tuple[Array, Array]:
    axes = {"student_probs": "... student_vocabulary", "teacher_probs": "... teacher_vocabulary"}
    student, teacher = checks.shaped(axes, student_probs=student_probs, teacher_probs=teacher_probs)
    return student, jax.lax.stop_gradient(teacher)


def _sorted_distance(student: Array, teacher: Array) -> Array:
    """L1 of the sorted probabilities. Zeros are the smallest, so padding may come first."""
    size = max(student.shape[-1], teacher.shape[-1])

    def ordered(probs: Array) -> Array:
        missing = [(0, 0)] * (probs.ndim - 1) + [(size - probs.shape[-1], 0)]
        return jnp.sort(jnp.pad(probs, missing), axis=-1)

    return jnp.sum(jnp.abs(ordered(student) - ordered(teacher)), axis=-1)


def _ends(name: str, ends: Sequence[int] | ndarray) -> ndarray:
    ends = np.asarray(ends)
    if ends.size == 0:
        ends = ends.astype(int)
    if not np.issubdtype(ends.dtype, np.integer):
        raise TypeError(f"{name} must be integers, got dtype {ends.dtype}")
    if ends.ndim != 1:
        raise ValueError(f"{name} must be shaped [length], got shape {ends.shape}")
    if np.any(np.diff(ends) < 0):
        raise ValueError(f"{name} must not decrease, got {ends.tolist()}")
    return ends
