"""Divergences between categorical distributions, given as logits.

    p = softmax(p_logits),  q = softmax(q_logits),  over the last axis: [..., classes] -> [...]

A divergence is mathematics: it stops no gradient and knows no temperature. For a softened one
divide both logits by the temperature; to train a student against a fixed teacher pass
`jax.lax.stop_gradient(teacher_logits)`. Throughout, p is the reference (in distillation the
teacher), so that "forward" is KL(p || q). Values are in nats, in float32 (float64 for float64).

A class at -inf on both sides (vocabulary padding) adds nothing, nor does one whose probability
underflows to 0. A row of -inf alone is no distribution.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from kdjax.losses import checks, log_space
from kdjax.losses.checks import Logits, Losses, Scalar


def kl_divergence(p_logits: Logits, q_logits: Logits) -> Losses:
    """Kullback-Leibler divergence KL(p || q), the forward KL of distillation.

        KL(p || q) = sum_c p_c (log p_c - log q_c)

    Infinite where q has no mass and p has. Code that calls the cross-entropy -sum p log q a KL
    (DistiLLM, torchtune's ForwardKLLoss) differs from this by the entropy of p, a constant for a
    fixed teacher: the gradients in q agree.

    Args:
      p_logits: the reference, floats [..., classes]. Differentiated.
      q_logits: what is compared with it, floats [..., classes]. Differentiated.

    Returns:
      [...], >= 0.

    Raises:
      ValueError: shapes that differ. TypeError: arrays that are not floats.

    Source: Kullback and Leibler 1951; Hinton et al. 2015, arXiv:1503.02531.

    >>> import jax.numpy as jnp
    >>> p_logits, q_logits = jnp.array([0.0, 1.0, 2.0]), jnp.array([2.0, 1.0, 0.0])
    >>> print(f"{kl_divergence(p_logits, q_logits):.4f}")
    1.1504
    """
    return log_space.softmax_kl(*checks.logits(p_logits=p_logits, q_logits=q_logits))


forward_kl = kl_divergence


def standard_normal_kl(
    mean: Float[Array, "*batch latent"], log_variance: Float[Array, "*batch latent"]
) -> Losses:
    """KL of a diagonal normal from the standard normal: what a variational autoencoder pays.

        KL(N(m, e^v) || N(0, 1)) = 1/2 sum_i (e^v_i + m_i^2 - 1 - v_i)

    Args:
      mean: m, floats [..., latent]. Differentiated.
      log_variance: v, floats [..., latent]. Differentiated.

    Returns:
      [...], >= 0, in nats; infinite where e^v is.

    Raises:
      ValueError: shapes that differ. TypeError: arrays that are not floats.

    Source: Kingma and Welling 2014, arXiv:1312.6114, appendix B.

    >>> import jax.numpy as jnp
    >>> print(f"{standard_normal_kl(jnp.array([2.0, 0.0]), jnp.zeros(2)):.1f}")
    2.0
    """
    axes = {"mean": "... latent", "log_variance": "... latent"}
    m, v = checks.shaped(axes, mean=mean, log_variance=log_variance)
    # expm1(v) - v >= 0: no cancellation where the two distributions are almost one.
    return 0.5 * jnp.sum(m**2 + (jnp.expm1(v) - v), axis=-1)


def reverse_kl(p_logits: Logits, q_logits: Logits) -> Losses:
    """Reverse Kullback-Leibler divergence KL(q || p): seeks a mode of p.

        KL(q || p) = sum_c q_c (log q_c - log p_c)

    Args:
      p_logits: the reference, floats [..., classes]. Differentiated.
      q_logits: what is compared with it, floats [..., classes]. Differentiated.

    Returns:
      [...], >= 0.

    Raises:
      ValueError: shapes that differ. TypeError: arrays that are not floats.

    Source: Gu et al. 2023 (MiniLLM), arXiv:2306.08543.

    >>> import jax.numpy as jnp
    >>> p_logits, q_logits = jnp.array([0.0, 0.0]), jnp.array([100.0, 0.0])
    >>> print(f"{reverse_kl(p_logits, q_logits):.4f} {forward_kl(p_logits, q_logits):.4f}")
    0.6931 49.3069
    """
    p_logits, q_logits = checks.logits(p_logits=p_logits, q_logits=q_logits)
    return log_space.softmax_kl(q_logits, p_logits)


def jeffreys(p_logits: Logits, q_logits: Logits) -> Losses:
    """Jeffreys divergence, the symmetric sum of both KL divergences.

        J(p, q) = KL(p || q) + KL(q || p)

    DistiLLM's symmetric KL is the weighted (1 - lam) KL(p || q) + lam KL(q || p): half of this at
    lam = 0.5, otherwise a weighted sum of `forward_kl` and `reverse_kl`.

    Args:
      p_logits: floats [..., classes]. Differentiated.
      q_logits: floats [..., classes]. Differentiated.

    Returns:
      [...], >= 0.

    Raises:
      ValueError: shapes that differ. TypeError: arrays that are not floats.

    Source: Jeffreys 1946.

    >>> import jax.numpy as jnp
    >>> print(f"{jeffreys(jnp.array([0.0, 1.0, 2.0]), jnp.array([2.0, 1.0, 0.0])):.4f}")
    2.3008
    """
    p_logits, q_logits = checks.logits(p_logits=p_logits, q_logits=q_logits)
    return log_space.softmax_kl(p_logits, q_logits) + log_space.softmax_kl(q_logits, p_logits)


def generalized_jsd(p_logits: Logits, q_logits: Logits, *, beta: Scalar = 0.5) -> Losses:
    """Generalised Jensen-Shannon divergence, with the end points of GKD.

        m = beta p + (1 - beta) q
        JSD = beta KL(p || m) + (1 - beta) KL(q || m)      0 < beta < 1
        KL(p || q) at beta = 0,  KL(q || p) at beta = 1

    The end points are those of the GKD code (TRL, Liger): the limits of JSD / beta and of
    JSD / (1 - beta). The formula itself goes to 0 there, so the value jumps: a schedule of beta
    should stay inside (0, 1). No squared temperature is applied.

    Other conventions: DistiLLM's js_distance(lam) is beta = 1 - lam. EasyDeL has the end points
    the other way round and m = (1 - beta) p + beta q, which agrees at beta = 0.5 only.

    Args:
      p_logits: the reference, floats [..., classes]. Differentiated.
      q_logits: what is compared with it, floats [..., classes]. Differentiated.
      beta: scalar in [0, 1], may be traced.

    Returns:
      [...], >= 0; for 0 < beta < 1 at most the entropy of (beta, 1 - beta), hence log 2.

    Raises:
      ValueError: shapes that differ, beta outside [0, 1]. TypeError: arrays that are not floats.

    Source: Agarwal et al. 2023 (GKD), arXiv:2306.13649.

    >>> import jax.numpy as jnp
    >>> p_logits, q_logits = jnp.array([0.0, 1.0, 2.0]), jnp.array([2.0, 1.0, 0.0])
    >>> print(f"{generalized_jsd(p_logits, q_logits, beta=0.5):.4f}")
    0.2476
    """
    p_logits, q_logits = checks.logits(p_logits=p_logits, q_logits=q_logits)
    checks.fraction(beta=beta)
    beta = jnp.asarray(beta, p_logits.dtype)
    at_zero, at_one = beta == 0, beta == 1
    log_p, log_q = log_space.safe_log_softmax(p_logits), log_space.safe_log_softmax(q_logits)
    log_mean = log_space.log_mixture(log_p, log_q, beta)
    jsd = beta * log_space.kl(log_p, log_mean) + (1 - beta) * log_space.kl(log_q, log_mean)
    # A divergence that is not chosen is computed between equal distributions, or its infinities
    # would turn the gradient into NaN.
    forward = log_space.softmax_kl(*(jnp.where(at_zero, x, 0.0) for x in (p_logits, q_logits)))
    reverse = log_space.softmax_kl(*(jnp.where(at_one, x, 0.0) for x in (q_logits, p_logits)))
    return jnp.where(at_zero, forward, jnp.where(at_one, reverse, jsd))


def skewed_forward_kl(p_logits: Logits, q_logits: Logits, *, lam: Scalar = 0.1) -> Losses:
    """Skewed forward KL: p against a mixture of itself and q. Bounded by -log lam.

        SKL = KL(p || lam p + (1 - lam) q)

    The gradient flows through the mixture. DistiLLM's code leaves out sum p log p, a constant for
    a fixed teacher: its value is larger by the entropy of p, its gradient in q is this one.

    Args:
      p_logits: the reference, floats [..., classes]. Differentiated.
      q_logits: what is compared with it, floats [..., classes]. Differentiated.
      lam: scalar in [0, 1], may be traced. At 0 the forward KL, at 1 zero.

    Returns:
      [...], in [0, -log lam].

    Raises:
      ValueError: shapes that differ, lam outside [0, 1]. TypeError: arrays that are not floats.

    Source: Ko et al. 2024 (DistiLLM), arXiv:2402.03898.

    >>> import jax.numpy as jnp
    >>> p_logits, q_logits = jnp.array([0.0, 1.0, 2.0]), jnp.array([2.0, 1.0, 0.0])
    >>> print(f"{skewed_forward_kl(p_logits, q_logits, lam=0.1):.4f}")
    0.8299
    """
    log_p, log_q = _log_probabilities(p_logits, q_logits)
    checks.fraction(lam=lam)
    return log_space.kl(log_p, log_space.log_mixture(log_p, log_q, lam))


def skewed_reverse_kl(p_logits: Logits, q_logits: Logits, *, lam: Scalar = 0.1) -> Losses:
    """Skewed reverse KL: q against a mixture of itself and p. Bounded by -log lam.

        SRKL = KL(q || (1 - lam) p + lam q)

    Args:
      p_logits: the reference, floats [..., classes]. Differentiated.
      q_logits: what is compared with it, floats [..., classes]. Differentiated.
      lam: scalar in [0, 1], may be traced. At 0 the reverse KL, at 1 zero.

    Returns:
      [...], in [0, -log lam].

    Raises:
      ValueError: shapes that differ, lam outside [0, 1]. TypeError: arrays that are not floats.

    Source: Ko et al. 2024 (DistiLLM), arXiv:2402.03898.

    >>> import jax.numpy as jnp
    >>> p_logits, q_logits = jnp.array([0.0, 1.0, 2.0]), jnp.array([2.0, 1.0, 0.0])
    >>> print(f"{skewed_reverse_kl(p_logits, q_logits, lam=0.1):.4f}")
    0.8299
    """
    log_p, log_q = _log_probabilities(p_logits, q_logits)
    checks.fraction(lam=lam)
    return log_space.kl(log_q, log_space.log_mixture(log_q, log_p, lam))


def total_variation(p_logits: Logits, q_logits: Logits) -> Losses:
    """Total variation distance, half the L1 distance of the probabilities.

        TV(p, q) = 1/2 sum_c |p_c - q_c|

    Args:
      p_logits: floats [..., classes]. Differentiated.
      q_logits: floats [..., classes]. Differentiated (0 where p_c = q_c).

    Returns:
      [...], in [0, 1].

    Raises:
      ValueError: shapes that differ. TypeError: arrays that are not floats.

    Source: Wen et al. 2023 (f-distill), arXiv:2307.15190.

    >>> import jax.numpy as jnp
    >>> print(f"{total_variation(jnp.array([0.0, 1.0, 2.0]), jnp.array([2.0, 1.0, 0.0])):.4f}")
    0.5752
    """
    p_logits, q_logits = checks.logits(p_logits=p_logits, q_logits=q_logits)
    gap = log_space.softmax(p_logits) - log_space.softmax(q_logits)
    return 0.5 * jnp.sum(jnp.abs(gap), axis=-1)


def alpha_beta_divergence(
    p_logits: Logits,
    q_logits: Logits,
    *,
    alpha: Scalar = 0.2,
    beta: Scalar = 0.7,
    official_special_cases: bool = False,
) -> Losses:
    """Alpha-beta divergence: forward and reverse KL, Hellinger and more on two dials.

        D = -1/(a b) sum_c [ p^a q^b - a/(a+b) p^(a+b) - b/(a+b) q^(a+b) ],  a = alpha, b = beta

    and its limits where a, b or a + b is 0: (1, 0) is KL(p || q), (0, 1) is KL(q || p), (0, 0) is
    1/2 sum (log q - log p)^2. The limits are continuous: with b = 0 the factor is 1/a^2. The
    authors' code has 1/a there (1/b for a = 0, 1/a for a + b = 0), which `official_special_cases`
    gives; both agree where that parameter is 1.

    With a, b > 0 the value is finite even where one side has no mass. With a negative parameter a
    power can overflow: exponents are clipped at half the logarithm of the largest float, and a
    clipped term has no gradient. Parameters both below the square root of the float's epsilon in
    size are taken for 0.

    Args:
      p_logits: the reference, floats [..., classes]. Differentiated.
      q_logits: what is compared with it, floats [..., classes]. Differentiated.
      alpha: finite scalar, may be traced.
      beta: finite scalar, may be traced.
      official_special_cases: the factors of the authors' code in the limits.

    Returns:
      [...], >= 0 with the continuous limits.

    Raises:
      ValueError: shapes that differ, alpha or beta not finite. TypeError: arrays not of floats.

    Source: Cichocki et al. 2011, Entropy 13(1); Wang et al. 2025 (ABKD), arXiv:2505.04560.

    >>> import jax.numpy as jnp
    >>> p_logits, q_logits = jnp.array([0.0, 1.0, 2.0]), jnp.array([2.0, 1.0, 0.0])
    >>> print(f"{alpha_beta_divergence(p_logits, q_logits, alpha=0.2, beta=0.7):.4f}")
    1.2293
    """
    log_p, log_q = _log_probabilities(p_logits, q_logits)
    checks.finite(alpha=alpha, beta=beta)
    factor = 1.0
    if official_special_cases:
        factor = jnp.where(
            (alpha == 0) & (beta == 0), 1.0, jnp.where(jnp.asarray(alpha) == 0, beta, alpha)
        )
        special = jnp.asarray(alpha == 0) | (beta == 0) | (alpha + beta == 0)
        factor = jnp.where(special, factor, 1.0).astype(log_p.dtype)

    # D is unchanged when (a, p) and (b, q) change places, so a may be the larger parameter: the
    # one that is divided by.
    alpha, beta = jnp.asarray(alpha, log_p.dtype), jnp.asarray(beta, log_p.dtype)
    swap = jnp.abs(beta) > jnp.abs(alpha)
    alpha, beta = jnp.where(swap, beta, alpha), jnp.where(swap, alpha, beta)
    log_p, log_q = jnp.where(swap, log_q, log_p), jnp.where(swap, log_p, log_q)
    return factor * jnp.sum(_alpha_beta_terms(log_p, log_q, alpha, beta), axis=-1)


def _alpha_beta_terms(log_p: Array, log_q: Array, alpha: Array, beta: Array) -> Array:
    """The term of each class, for |alpha| >= |beta|.

    With s = alpha + beta and d = log q - log p the definition is a difference of two slopes,

        D_c = 1/alpha ( [q^s - p^s] / s  -  [p^alpha q^beta - p^s] / beta )

    whose limits at s = 0 and beta = 0 are ordinary values.
    """
    total = alpha + beta
    no_p, no_q = log_p == -jnp.inf, log_q == -jnp.inf
    base = jnp.where(no_p | no_q, 0.0, log_p)
    difference = jnp.where(no_p | no_q, 0.0, log_q - jnp.where(no_p, 0.0, log_p))
    tiny = jnp.abs(alpha) < jnp.sqrt(jnp.finfo(log_p.dtype).eps)
    slopes = _slope(total * base, total, difference) - _slope(total * base, beta, difference)
    both = jnp.where(tiny, 0.5 * difference**2, slopes / jnp.where(tiny, 1.0, alpha))

    def one_sided(log_present: Array, present: Array, exponent: Array) -> Array:
        bounded = (total > 0) & (exponent > 0) & ~tiny
        log_safe = jnp.where(present & bounded, log_present, 0.0)
        value = jnp.exp(total * log_safe) / jnp.where(bounded, total * exponent, 1.0)
        return jnp.where(bounded, value, jnp.inf)

    only_p = one_sided(log_p, no_q & ~no_p, beta)
    only_q = one_sided(log_q, no_p & ~no_q, alpha)
    one = jnp.where(no_q, only_p, only_q)
    return jnp.where(no_p & no_q, 0.0, jnp.where(no_p | no_q, one, both))


def _slope(base: Array, exponent: Array, difference: Array) -> Array:
    """(exp(base + exponent * difference) - exp(base)) / exponent; its limit at exponent 0."""
    largest = 0.5 * jnp.log(jnp.finfo(base.dtype).max)
    divisor = jnp.where(exponent == 0, 1.0, exponent)
    step = exponent * difference
    small = jnp.abs(step) < 1
    ratio = jnp.expm1(jnp.where(small, step, 0.0)) / divisor
    ratio = jnp.where(exponent == 0, difference, ratio)
    start = jnp.exp(jnp.minimum(base, largest))
    apart = (jnp.exp(jnp.minimum(base + step, largest)) - start) / divisor
    return jnp.where(small, start * ratio, apart)


def _log_probabilities(p_logits: Logits, q_logits: Logits) -> tuple[Array, Array]:
    p_logits, q_logits = checks.logits(p_logits=p_logits, q_logits=q_logits)
    return log_space.safe_log_softmax(p_logits), log_space.safe_log_softmax(q_logits)
