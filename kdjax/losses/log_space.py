"""Sums over probabilities in log-space that survive -inf, in value and in gradient.

A class whose logit is -inf (the padding of a vocabulary) has probability 0 and adds nothing. The
functions here keep two promises that the textbook formulas break: 0 * inf never appears, not even
in the branch of a `where` that is not taken (its gradient would be NaN), and a NaN that comes in
is never hidden.

The three functions of whole rows of logits (`softmax`, `safe_log_softmax`, `softmax_kl`) state
their derivatives: automatic ones would pass over the classes several times more, to form
exponentials again and to mask. Masks here are one value a row, which costs nothing, wherever a
class at -inf comes out right by itself (exp(-inf) = 0). The derivatives are JVPs written in these
same functions, so forward mode, vmap and higher derivatives work.
"""

import jax
import jax.numpy as jnp
from jax import Array
from jax.custom_derivatives import SymbolicZero


@jax.custom_jvp
def softmax(logits: Array) -> Array:
    """softmax over the last axis; a row without any support is 0 and has no gradient."""
    _, exponentials, total = _exponentials(logits)
    return exponentials / total


@softmax.defjvp
def _softmax_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    probs, (tangent,) = softmax(*primals), tangents
    return probs, probs * (tangent - jnp.sum(probs * tangent, axis=-1, keepdims=True))


@jax.custom_jvp
def safe_log_softmax(logits: Array) -> Array:
    """log softmax over the last axis; a row without any support is -inf and has no gradient."""
    shifted, _, total = _exponentials(logits)
    return shifted - jnp.log(total)


@safe_log_softmax.defjvp
def _safe_log_softmax_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    log_probs, probs, (tangent,) = safe_log_softmax(*primals), softmax(*primals), tangents
    centred = tangent - jnp.sum(probs * tangent, axis=-1, keepdims=True)
    return log_probs, jnp.where(log_probs == -jnp.inf, 0.0, centred)


@jax.custom_jvp
def softmax_kl(p_logits: Array, q_logits: Array) -> Array:
    """KL(p || q) of p = softmax(p_logits), q = softmax(q_logits) over the last axis.

        dKL = sum_c p_c (log p_c - log q_c - KL) dp_logits_c + sum_c (q_c - p_c) dq_logits_c

    `kl` of two `safe_log_softmax` has this value. The probabilities of the value serve the
    gradient, and an argument that is not differentiated (a stopped teacher) costs it nothing.
    """
    log_p, log_q = safe_log_softmax(p_logits), safe_log_softmax(q_logits)
    return jnp.sum(_kl_terms(softmax(p_logits), log_p, log_q)[0], axis=-1)


def _softmax_kl_jvp(
    primals: tuple[Array, Array], tangents: tuple[Array | SymbolicZero, Array | SymbolicZero]
) -> tuple[Array, Array]:
    (p_logits, q_logits), (p_tangent, q_tangent) = primals, tangents
    p, q = softmax(p_logits), softmax(q_logits)
    terms, gap = _kl_terms(p, safe_log_softmax(p_logits), safe_log_softmax(q_logits))
    value = jnp.sum(terms, axis=-1)
    slope = jnp.zeros_like(value)
    if not isinstance(p_tangent, SymbolicZero):
        slope += jnp.sum(p * (gap - value[..., None]) * p_tangent, axis=-1)
    if not isinstance(q_tangent, SymbolicZero):
        no_p = jnp.max(p_logits, axis=-1, keepdims=True) == -jnp.inf
        slope += jnp.sum((jnp.where(no_p, 0.0, q) - p) * q_tangent, axis=-1)
    return value, slope


softmax_kl.defjvp(_softmax_kl_jvp, symbolic_zeros=True)


def kl(log_p: Array, log_q: Array) -> Array:
    """sum p (log p - log q) over the last axis; classes with p = 0 add nothing."""
    return jnp.sum(_kl_terms(jnp.exp(log_p), log_p, log_q)[0], axis=-1)


def cross_entropy(log_p: Array, log_q: Array) -> Array:
    """-sum p log q over the last axis; classes with p = 0 add nothing."""
    p = jnp.exp(log_p)
    return -jnp.sum(p * jnp.where(p == 0, 0.0, log_q), axis=-1)


def log_mixture(log_p: Array, log_q: Array, weight: Array) -> Array:
    """log(weight p + (1 - weight) q), elementwise; the weight may be 0 or 1."""
    weight = jnp.asarray(weight, log_p.dtype)
    first = log_p + jnp.log(weight)
    second = log_q + jnp.log1p(-weight)
    absent = jnp.maximum(first, second) == -jnp.inf
    total = jnp.logaddexp(jnp.where(absent, 0.0, first), jnp.where(absent, 0.0, second))
    return jnp.where(absent, -jnp.inf, total)


def bernoulli_kl(p_logits: Array, q_logits: Array) -> Array:
    """KL between Bernoulli distributions with these logits, elementwise."""
    p_pair = jnp.stack([jax.nn.log_sigmoid(p_logits), jax.nn.log_sigmoid(-p_logits)], axis=-1)
    q_pair = jnp.stack([jax.nn.log_sigmoid(q_logits), jax.nn.log_sigmoid(-q_logits)], axis=-1)
    return kl(p_pair, q_pair)


def logsumexp(logits: Array, axis: int = -1) -> Array:
    """log sum exp over an axis; a row without any support is -inf and has no gradient."""
    # The derivative is right, of any order, with the shift taken for a constant.
    largest = jax.lax.stop_gradient(jnp.max(logits, axis=axis, keepdims=True))
    shift = jnp.where(jnp.isfinite(largest), largest, 0.0)
    total = jnp.sum(jnp.exp(logits - shift), axis=axis, keepdims=True)
    empty = largest == -jnp.inf
    log_total = jnp.where(empty, -jnp.inf, jnp.log(jnp.where(empty, 1.0, total)) + shift)
    return jnp.squeeze(log_total, axis)


def _exponentials(logits: Array) -> tuple[Array, Array, Array]:
    """Logits less the largest of their row, their exponentials, and the sum of these.

    A row without any support gives -inf, 0 and 1.
    """
    largest = jnp.max(logits, axis=-1, keepdims=True)
    empty = largest == -jnp.inf
    shifted = logits - jnp.where(empty, 0.0, largest)
    exponentials = jnp.exp(shifted)
    total = jnp.sum(exponentials, axis=-1, keepdims=True)
    return shifted, exponentials, jnp.where(empty, 1.0, total)


def _kl_terms(p: Array, log_p: Array, log_q: Array) -> tuple[Array, Array]:
    """p (log p - log q) and log p - log q, elementwise; both 0 where p is."""
    # The difference is linear: an infinity that the `where` drops leaves no NaN in the gradient.
    gap = jnp.where(p == 0, 0.0, log_p - log_q)
    return p * gap, gap
