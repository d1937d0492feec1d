"""Sparse teacher targets: token ids with log-probabilities or weights, and how they are made.

A sparse teacher is a pair [..., k] of token ids and log-probabilities of the whole vocabulary, so
that sum exp(log-probabilities) = a <= 1. An entry of log-probability -inf, or of an id outside
[0, vocabulary), is no entry: so shorter lists are padded. Ids must differ; `merge_duplicates`
adds up those that do not. The losses are in `kdjax.losses.sparse`.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
from numpy import ndarray

from kdjax.losses import checks, log_space
from kdjax.losses.checks import Logits, Scalar

TokenIds = Int[Array | ndarray, "*batch k"]
LogProbs = Float[Array | ndarray, "*batch k"]
MISSING = ("zero", "tail")


def gathered_log_softmax(logits: Logits, token_ids: TokenIds) -> Float[Array, "*batch k"]:
    """Log-probabilities of some tokens, normalised over the whole vocabulary.

        log p(y_i) = z_(y_i) - logsumexp(z)

    Never a softmax over the k alone, which would hide all the mass outside of them.

    Args:
      logits: floats [..., vocabulary]. Differentiated.
      token_ids: integers [..., k]. Outside [0, vocabulary): -inf, with gradient 0.

    Returns:
      [..., k], <= 0.

    Raises:
      ValueError: other leading axes. TypeError: ids that are not integers, logits that are not
        floats.

    Source: Anshumann et al. 2025 (RS-KD), arXiv:2503.16870.

    >>> import jax.numpy as jnp
    >>> logits = jnp.log(jnp.array([0.7, 0.2, 0.1]))
    >>> print(gathered_log_softmax(logits, jnp.array([2, 0])).round(4))
    [-2.3026 -0.3567]
    """
    (logits,) = checks.logits(logits=logits)
    token_ids = support("token_ids", token_ids, logits)
    return gather(logits, token_ids) - log_space.logsumexp(logits)[..., None]


def sparse_target_log_probs(
    teacher_log_probs: LogProbs,
    *,
    missing: str = "zero",
    temperature: Scalar = 1.0,
    generation_temperature: Scalar = 1.0,
) -> tuple[Float[Array, "*batch k"], Float[Array, "*batch"]]:
    """The teacher's sparse distribution at another temperature, and the mass of its tail.

        "zero": log P_i = r v_i - log sum_j exp(r v_j)                        r = T_gen / T
        "tail": log P_i = r v_i - log( sum_j exp(r v_j) + (1 - a)^r ),   a = sum_j exp(v_j)

    The tail counts as ONE token of probability 1 - a: its true softened mass is not known. A mass
    a > 1 - 8 eps is taken for 1.

    Args:
      teacher_log_probs: floats [..., k], v. Stopped.
      missing: "zero" or "tail".
      temperature: T, scalar > 0, may be traced.
      generation_temperature: T_gen, scalar > 0, may be traced: that of teacher_log_probs.

    Returns:
      (log P [..., k], log of the tail's mass [...], -inf for "zero").

    Raises:
      ValueError: temperatures <= 0, unknown missing. TypeError: an array that is not of floats.

    Source: Arcee AI 2024 (DistillKit).

    >>> import jax.numpy as jnp
    >>> log_probs = jnp.log(jnp.array([0.5, 0.3]))
    >>> target, tail = sparse_target_log_probs(log_probs, missing="tail", temperature=2.0)
    >>> print(" ".join(f"{x:.4f}" for x in jnp.exp(jnp.append(target, tail))))
    0.4154 0.3218 0.2628
    """
    (log_probs,) = checks.logits(teacher_log_probs=teacher_log_probs)
    checks.choice("missing", missing, MISSING)
    checks.positive(temperature=temperature, generation_temperature=generation_temperature)
    log_probs = jax.lax.stop_gradient(log_probs)
    ratio = generation_temperature / temperature
    scaled = ratio * log_probs
    tail = jnp.full(scaled.shape[:-1], -jnp.inf, scaled.dtype)
    if missing == "tail":
        rest = -jnp.expm1(jnp.minimum(log_space.logsumexp(log_probs), 0.0))
        rest = jnp.where(rest > 8 * jnp.finfo(rest.dtype).eps, rest, 0.0)
        tail = ratio * jnp.log(rest)
    every = log_space.safe_log_softmax(jnp.concatenate([scaled, tail[..., None]], axis=-1))
    return every[..., :-1], every[..., -1]


def random_sample_targets(
    key: Array, teacher_logits: Logits, *, num_samples: int, tau: Scalar = 1.0
) -> tuple[Int[Array, "*batch k"], Float[Array, "*batch k"]]:
    """A sample of the teacher's tokens whose weights are, in the mean, its probabilities (RS-KD).

        y_1 .. y_N ~ r = softmax(tau log p),   w_i = p(y_i) / (N r(y_i))
        E[ sum_(i: y_i = v) w_i ] = p_v

    drawn with replacement. With tau = 1 the weights are 1 / N: counts. The gradient of
    `sparse_cross_entropy` with them is that of the whole vocabulary in the mean, where the top k
    are biased. 50 samples of a language model hold about 12 different tokens: `merge_duplicates`
    before storing them.

    Args:
      key: a JAX random key.
      teacher_logits: floats [..., vocabulary]. Not differentiable.
      num_samples: N >= 1.
      tau: scalar >= 0, may be traced. Below 1 rare tokens come more often, at 0 all equally.

    Returns:
      (ids, int32 [..., num_samples], weights [..., num_samples]).

    Raises:
      ValueError: num_samples < 1, tau < 0. TypeError: logits that are not floats.

    Source: Anshumann et al. 2025 (RS-KD), arXiv:2503.16870.

    >>> import jax, jax.numpy as jnp
    >>> logits = jnp.log(jnp.array([0.7, 0.2, 0.1]))
    >>> ids, weights = random_sample_targets(jax.random.key(0), logits, num_samples=1000)
    >>> print((jnp.zeros(3).at[ids].add(weights)).round(1))
    [0.7 0.2 0.1]
    """
    (logits,) = checks.logits(teacher_logits=teacher_logits)
    checks.count(1, num_samples=num_samples)
    checks.not_negative(tau=tau)
    log_p = log_space.safe_log_softmax(jax.lax.stop_gradient(logits))
    # A token the teacher excludes stays excluded at tau = 0.
    absent = log_p == -jnp.inf
    log_r = jnp.where(absent, -jnp.inf, tau * jnp.where(absent, 0.0, log_p))
    log_r = log_space.safe_log_softmax(log_r)
    samples = jax.random.categorical(key, log_r, shape=(num_samples, *log_r.shape[:-1]))
    ids = jnp.moveaxis(samples, 0, -1).astype(jnp.int32)
    # Equal at tau = 1 up to rounding, where the weights are to be exactly 1 / N.
    log_ratio = jnp.where(jnp.asarray(tau) == 1, 0.0, gather(log_p, ids) - gather(log_r, ids))
    return ids, jnp.exp(log_ratio) / num_samples


def merge_duplicates(
    token_ids: TokenIds, weights: LogProbs
) -> tuple[Int[Array, "*batch k"], Float[Array, "*batch k"]]:
    """Adds up the weights of equal ids; the repetitions get id -1 and weight 0, at the end.

        w_v = sum_(i: y_i = v) w_i

    Args:
      token_ids: integers [..., k]. Negative: no entry, whose weight is dropped.
      weights: floats [..., k], not logarithms. Differentiated.

    Returns:
      (ids [..., k], ascending and then -1, weights [..., k]).

    Raises:
      ValueError: shapes that differ. TypeError: ids that are not integers, weights that are not
        floats.

    Source: Anshumann et al. 2025 (RS-KD), arXiv:2503.16870, stores such counts.

    >>> import jax.numpy as jnp
    >>> ids, weights = merge_duplicates(jnp.array([7, 3, 7, 5]), jnp.array([0.25] * 4))
    >>> print(ids, weights)
    [ 3  5  7 -1] [0.25 0.25 0.5  0.  ]
    """
    (weights,) = checks.logits(weights=weights)
    ids = checks.integers("token_ids", token_ids, weights.shape, "weights")
    length = ids.shape[-1]
    last = jnp.iinfo(ids.dtype).max
    order = jnp.argsort(jnp.where(ids < 0, last, ids), axis=-1)
    ids, weights = (jnp.take_along_axis(x, order, axis=-1) for x in (ids, weights))
    weights = jnp.where(ids < 0, 0.0, weights)
    first = jnp.concatenate(
        [jnp.ones_like(ids[..., :1], bool), ids[..., 1:] != ids[..., :-1]], axis=-1
    )
    slot = jnp.cumsum(first, axis=-1) - 1
    into = slot[..., :, None] == jnp.arange(length)
    sums = jnp.sum(jnp.where(into, weights[..., :, None], 0.0), axis=-2)
    merged = jnp.max(jnp.where(into, ids[..., :, None], -1), axis=-2)
    return merged, sums


def topk_student_support(
    student_logits: Logits,
    teacher_logits: Logits,
    *,
    k: int,
    add_tail: bool = True,
    temperature: Scalar = 1.0,
) -> tuple[Float[Array, "*batch buckets"], Float[Array, "*batch buckets"]]:
    """Both sides' log-probabilities on the student's top k tokens (SDFT).

        add_tail:  log of (p_1 .. p_k, sum of the others)
        without:   log of (p_1 .. p_k) / sum_i p_i            on each side

    For any divergence on logits: `reverse_kl(log_p, log_q)`, `generalized_jsd(log_p, log_q)`. The
    choice of the support has no gradient. The tail is summed over the tokens outside, so it needs
    no clamp, where TRL's is log(1 - sum) with the sum clamped at 1 - 1e-7.

    Args:
      student_logits: floats [..., vocabulary]. Differentiated.
      teacher_logits: floats [..., vocabulary]. Stopped.
      k: 1 <= k <= vocabulary.
      add_tail: add the bucket of the others; without, renormalise over the k.
      temperature: scalar > 0, may be traced.

    Returns:
      (student's, teacher's), each [..., k + 1] with the tail last, or [..., k].

    Raises:
      ValueError: shapes that differ, k out of range, temperature <= 0. TypeError: arrays that are
        not floats.

    Source: the SDFT trainer of TRL.

    >>> import jax.numpy as jnp
    >>> student, teacher = jnp.log(jnp.array([[0.1, 0.6, 0.3], [0.5, 0.2, 0.3]]))
    >>> log_q, log_p = topk_student_support(student, teacher, k=1)
    >>> print(" ".join(f"{x:.2f}" for x in jnp.exp(jnp.append(log_q, log_p))))
    0.60 0.40 0.20 0.80
    """
    student, teacher = checks.logits(student_logits=student_logits, teacher_logits=teacher_logits)
    checks.count(1, student.shape[-1], k=k)
    checks.positive(temperature=temperature)
    student, teacher = student / temperature, jax.lax.stop_gradient(teacher) / temperature
    _, ids = jax.lax.top_k(jax.lax.stop_gradient(student), k)
    listed = members(ids, jnp.ones(ids.shape, bool), student.shape[-1])

    def log_probs(logits: Array) -> Array:
        chosen = gather(logits, ids)
        if add_tail:
            outside = log_space.logsumexp(jnp.where(listed, -jnp.inf, logits))
            chosen = jnp.concatenate([chosen, outside[..., None]], axis=-1)
        return log_space.safe_log_softmax(chosen)

    return log_probs(student), log_probs(teacher)


def support(name: str, token_ids: TokenIds, logits: Array) -> Array:
    """The ids, after a check that they are integers [..., k] with the leading axes of logits."""
    token_ids = checks.integers(name, token_ids, None, "")
    batch = logits.shape[:-1]
    if token_ids.ndim != logits.ndim or token_ids.shape[:-1] != batch or token_ids.shape[-1] < 1:
        raise ValueError(
            f"{name} must be shaped {[*batch, 'k']} with k >= 1, got shape {token_ids.shape}"
        )
    return token_ids


def gather(logits: Array, token_ids: Array) -> Array:
    """logits at the ids, -inf at ids outside the vocabulary."""
    known = (token_ids >= 0) & (token_ids < logits.shape[-1])
    gathered = jnp.take_along_axis(logits, jnp.where(known, token_ids, 0), axis=-1)
    return jnp.where(known, gathered, -jnp.inf)


def members(token_ids: Array, present: Array, vocabulary: int) -> Array:
    """Booleans [..., vocabulary]: the tokens that are listed."""
    ids = jnp.where(present, token_ids, 0).reshape(-1, token_ids.shape[-1])
    rows = jnp.arange(ids.shape[0])[:, None]
    members = jnp.zeros((ids.shape[0], vocabulary), bool)
    members = members.at[rows, ids].max(present.reshape(ids.shape))
    return members.reshape(*token_ids.shape[:-1], vocabulary)
