"""Divergences as terms of a sum over the vocabulary: (log p, log q) -> an array of their shape.

The sums over the last axis are those of `kdjax.losses.divergences`. They are kept apart so that
a vocabulary which is cut over devices can be summed across them, in the value and in the gradient.
"""

import jax.numpy as jnp
from jaxtyping import Array

from kdjax.losses import divergences, log_space


def kl(log_p: Array, log_q: Array) -> Array:
    """p (log p - log q); 0 where p = 0."""
    p = jnp.exp(log_p)
    absent = p == 0
    return p * (jnp.where(absent, 0.0, log_p) - jnp.where(absent, 0.0, log_q))


def reverse_kl(log_p: Array, log_q: Array) -> Array:
    """q (log q - log p); 0 where q = 0."""
    return kl(log_q, log_p)


def cross_entropy(log_p: Array, log_q: Array) -> Array:
    """-p log q; 0 where p = 0."""
    p = jnp.exp(log_p)
    return -p * jnp.where(p == 0, 0.0, log_q)


def inner_jsd(log_p: Array, log_q: Array, *, beta: Array) -> Array:
    """beta KL(p || m) + (1 - beta) KL(q || m), m = beta p + (1 - beta) q, for 0 < beta < 1."""
    log_mean = log_space.log_mixture(log_p, log_q, beta)
    return beta * kl(log_p, log_mean) + (1 - beta) * kl(log_q, log_mean)


def generalized_jsd(log_p: Array, log_q: Array, *, beta: Array) -> Array:
    """`inner_jsd`; KL(p || q) at beta = 0 and KL(q || p) at 1."""
    at_zero, at_one = beta == 0, beta == 1
    # What is not chosen is computed between equal numbers, or its infinities would turn the
    # gradient into NaN.
    forward = kl(jnp.where(at_zero, log_p, 0.0), jnp.where(at_zero, log_q, 0.0))
    reverse = kl(jnp.where(at_one, log_q, 0.0), jnp.where(at_one, log_p, 0.0))
    inner = inner_jsd(log_p, log_q, beta=beta)
    return jnp.where(at_zero, forward, jnp.where(at_one, reverse, inner))


def skewed_forward_kl(log_p: Array, log_q: Array, *, lam: Array) -> Array:
    """The terms of KL(p || lam p + (1 - lam) q)."""
    return kl(log_p, log_space.log_mixture(log_p, log_q, lam))


def skewed_reverse_kl(log_p: Array, log_q: Array, *, lam: Array) -> Array:
    """The terms of KL(q || (1 - lam) p + lam q)."""
    return kl(log_q, log_space.log_mixture(log_q, log_p, lam))


def total_variation(log_p: Array, log_q: Array) -> Array:
    """|p - q| / 2."""
    return 0.5 * jnp.abs(jnp.exp(log_p) - jnp.exp(log_q))


def alpha_beta(log_p: Array, log_q: Array, *, alpha: Array, beta: Array) -> Array:
    """The terms of the alpha-beta divergence, with its continuous limits."""
    swap = jnp.abs(beta) > jnp.abs(alpha)
    alpha, beta = jnp.where(swap, beta, alpha), jnp.where(swap, alpha, beta)
    log_p, log_q = jnp.where(swap, log_q, log_p), jnp.where(swap, log_p, log_q)
    return divergences._alpha_beta_terms(log_p, log_q, alpha, beta)


SKEWED = {"forward": skewed_forward_kl, "reverse": skewed_reverse_kl}
TAID = {"cross_entropy": cross_entropy, "kl": kl}
