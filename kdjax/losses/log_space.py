"""Sums over probabilities in log-space that survive -inf, in value and in gradient.

A class whose logit is -inf (the padding of a vocabulary) has probability 0 and adds nothing. The
functions here keep two promises that the textbook formulas break: 0 * inf never appears, not even
in the branch of a `where` that is not taken (its gradient would be NaN), and a NaN that comes in
is never hidden.
"""

import jax
import jax.numpy as jnp
from jax import Array


def safe_log_softmax(logits: Array) -> Array:
    """log softmax over the last axis; a row without any support is -inf and has no gradient."""
    absent = logits == -jnp.inf
    empty = jnp.all(absent, axis=-1, keepdims=True)
    log_probs = jax.nn.log_softmax(jnp.where(empty, 0.0, logits), axis=-1)
    return jnp.where(absent, -jnp.inf, log_probs)


def kl(log_p: Array, log_q: Array) -> Array:
    """sum p (log p - log q) over the last axis; classes with p = 0 add nothing."""
    p = jnp.exp(log_p)
    absent = p == 0
    difference = jnp.where(absent, 0.0, log_p) - jnp.where(absent, 0.0, log_q)
    return jnp.sum(p * difference, axis=-1)


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


def logsumexp(logits: Array) -> Array:
    """log sum exp over the last axis; a row without any support is -inf and has no gradient."""
    empty = jnp.all(logits == -jnp.inf, axis=-1)
    total = jax.nn.logsumexp(jnp.where(empty[..., None], 0.0, logits), axis=-1)
    return jnp.where(empty, -jnp.inf, total)
