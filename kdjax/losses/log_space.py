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

Rows without support are kept out by a `maximum`, not by a `where`, and what a softmax computes on
its way is not read from outside: XLA then compiles the whole of it to one loop on a CPU (jaxlib
0.10). What that gained was measured there only.
"""

import jax
import jax.numpy as jnp
from jax import Array
from jax.custom_derivatives import SymbolicZero

# XLA's own loops take one row at a time, so that on a CPU the classes beyond the last full vector
# cost as much as several vectors: nothing beside many classes, most of it beside few. Up to this
# many classes, `softmax_kl` therefore leaves the exponentials to the fused softmax.
FEW_CLASSES = 128
VECTOR = 8  # float32 in a vector of 256 bits


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
    p = softmax(p_logits)
    ratio, of_row = _log_ratio_parts(p_logits, q_logits)
    value = jnp.sum(jnp.where(p == 0, 0.0, p * ratio), axis=-1)
    return value + jnp.where(_empty(p_logits), 0.0, of_row)[..., 0]


def _softmax_kl_jvp(
    primals: tuple[Array, Array], tangents: tuple[Array | SymbolicZero, Array | SymbolicZero]
) -> tuple[Array, Array]:
    (p_logits, q_logits), (p_tangent, q_tangent) = primals, tangents
    p, q, value = softmax(p_logits), softmax(q_logits), softmax_kl(p_logits, q_logits)
    slope = jnp.zeros_like(value)
    if not isinstance(p_tangent, SymbolicZero):
        gap = _log_ratio(p_logits, q_logits)
        slope += jnp.sum(p * (gap - value[..., None]) * p_tangent, axis=-1)
    if not isinstance(q_tangent, SymbolicZero):
        present = jnp.where(_empty(p_logits), 0.0, q)
        slope += jnp.sum((present - p) * q_tangent, axis=-1)
    return value, slope


softmax_kl.defjvp(_softmax_kl_jvp, symbolic_zeros=True)


@jax.custom_jvp
def _log_ratio(p_logits: Array, q_logits: Array) -> Array:
    """log p - log q of softmax(p_logits), softmax(q_logits), elementwise; 0 where p is."""
    ratio, of_row = _log_ratio_parts(p_logits, q_logits)
    return jnp.where(softmax(p_logits) == 0, 0.0, ratio + of_row)


@_log_ratio.defjvp
def _log_ratio_jvp(
    primals: tuple[Array, Array], tangents: tuple[Array, Array]
) -> tuple[Array, Array]:
    p, q = map(softmax, primals)
    (p_slope, q_slope) = (
        tangent - jnp.sum(probs * tangent, axis=-1, keepdims=True)
        for probs, tangent in zip((p, q), tangents, strict=True)
    )
    return _log_ratio(*primals), jnp.where(p == 0, 0.0, p_slope - q_slope)


def _log_ratio_parts(p_logits: Array, q_logits: Array) -> tuple[Array, Array]:
    """log p - log q, where p is not 0, as a part of each class and one of the row, to be added."""
    ratio = (p_logits - _shift(p_logits)) - (q_logits - _shift(q_logits))
    return ratio, _log_total(q_logits) - _log_total(p_logits)


def _log_total(logits: Array) -> Array:
    """log of the sum of `_exponentials`, [..., 1]."""
    classes = logits.shape[-1]
    if classes > FEW_CLASSES or classes % VECTOR == 0:
        return jnp.log(_exponentials(logits)[2])
    # Its inverse is the largest probability. Read from there, the sum has no other reader than the
    # softmax, which then stays one loop.
    return -jnp.log(jnp.max(softmax(logits), axis=-1, keepdims=True))


def kl(log_p: Array, log_q: Array) -> Array:
    """sum p (log p - log q) over the last axis; classes with p = 0 add nothing."""
    p = jnp.exp(log_p)
    # The difference is linear: an infinity that the `where` drops leaves no NaN in the gradient.
    return jnp.sum(p * jnp.where(p == 0, 0.0, log_p - log_q), axis=-1)


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


def _empty(logits: Array) -> Array:
    """The rows without any support, [..., 1]."""
    return jnp.max(logits, axis=-1, keepdims=True) == -jnp.inf


def _shift(logits: Array) -> Array:
    """The largest of each row, [..., 1]; of a row without any support, a finite number."""
    return jnp.maximum(jnp.max(logits, axis=-1, keepdims=True), jnp.finfo(logits.dtype).min)


def _exponentials(logits: Array) -> tuple[Array, Array, Array]:
    """Logits less the largest of their row, their exponentials, and the sum of these.

    A row without any support gives -inf, 0 and 1.
    """
    shifted = logits - _shift(logits)
    exponentials = jnp.exp(shifted)
    # The largest adds 1 to the sum of any other row.
    return shifted, exponentials, jnp.maximum(jnp.sum(exponentials, axis=-1, keepdims=True), 1.0)
