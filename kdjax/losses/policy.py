"""Reverse-KL distillation as a policy gradient: rewards, returns, weights and clipped losses.

Arrays are per token, [..., length], of the tokens that were sampled: `selective_log_softmax` gives
their log-probabilities. `old_log_probs` are the student's at the time of sampling, constants.
MiniLLM's loss is `clipped_policy_gradient`, plus the token mean of `reverse_kl`, which is exact for
the reward of the token itself.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float
from numpy import ndarray

from kdjax.losses import checks, log_space
from kdjax.losses.checks import Scalar

Values = Float[Array | ndarray, "..."]
Mask = Bool[Array | ndarray, "..."]

# exp(20) is far beyond any clip, and leaves room for products in float32.
LARGEST_LOG_RATIO = 20.0


def minillm_rewards(
    old_log_probs: Values,
    teacher_log_probs: Values,
    *,
    scaling: Scalar = 0.5,
    clip: Scalar = 100.0,
) -> Float[Array, "..."]:
    """The reward of each token: how much more likely it is to the teacher than to the student.

        r = clip( (log p(y) - log q_old(y)) / scaling, -clip, clip )

    Args:
      old_log_probs: floats [..., length]. Stopped.
      teacher_log_probs: floats [..., length]. Stopped.
      scaling: scalar > 0, may be traced.
      clip: scalar > 0, may be traced.

    Returns:
      [..., length].

    Raises:
      ValueError: shapes that differ, scaling or clip <= 0. TypeError: arrays that are not floats.

    Source: Gu et al. 2023 (MiniLLM), arXiv:2306.08543.

    >>> import jax.numpy as jnp
    >>> print(minillm_rewards(jnp.array([-3.0, -1.0]), jnp.array([-1.0, -2.0])))
    [ 4. -2.]
    """
    old, teacher = _constants(old_log_probs, teacher_log_probs)
    checks.positive(scaling=scaling, clip=clip)
    return jnp.clip((teacher - old) / scaling, -clip, clip)


def discounted_returns(
    rewards: Values,
    *,
    gamma: Scalar = 0.95,
    length_normalized: bool = True,
    where: Mask | None = None,
) -> Float[Array, "..."]:
    """The discounted sum of the rewards from each token on, per token that is left.

        R_t = sum_(i >= t) gamma^(i - t) w_i r_i / n_t,   n_t = sum_(i >= t) w_i   (n_t = 1 without)

    As in the authors' code R_t begins with r_t; the paper's begins with r_(t + 1), and leaves r_t
    to the term of a single step.

    Args:
      rewards: floats [..., length]. Differentiated.
      gamma: scalar in [0, 1], may be traced.
      length_normalized: divide by the number of tokens left.
      where: booleans [..., length]. Elsewhere the reward counts 0, and the return is 0.

    Returns:
      [..., length].

    Raises:
      ValueError: shapes that differ, gamma outside [0, 1]. TypeError: rewards that are not floats,
        a mask that is not boolean.

    Source: Gu et al. 2023 (MiniLLM), arXiv:2306.08543.

    >>> import jax.numpy as jnp
    >>> print(discounted_returns(jnp.array([1.0, 2.0, 3.0]), gamma=1.0))
    [2.  2.5 3. ]
    """
    (rewards,) = checks.shaped({"rewards": "... length"}, rewards=rewards)
    checks.fraction(gamma=gamma)
    where = _mask(where, rewards, "rewards")
    returns = _discounted(jnp.where(where, rewards, 0.0), gamma)
    if length_normalized:
        left = jax.lax.cumsum(where.astype(rewards.dtype), axis=rewards.ndim - 1, reverse=True)
        returns = returns / jnp.maximum(left, 1)
    return jnp.where(where, returns, 0.0)


def reverse_kl_advantage(
    old_log_probs: Values,
    teacher_log_probs: Values,
    *,
    gamma: Scalar = 0.0,
    length_normalized: bool = True,
    where: Mask | None = None,
) -> Float[Array, "..."]:
    """The advantage TRL's MiniLLM adds to that of GRPO: a discounted mean of the rewards to come.

        A_t = sum_(i >= t) gamma^(i - t) w_i r_i / sum_(i >= t) gamma^(i - t) w_i
        r_i = log p(y_i) - log q_old(y_i)

    With gamma = 0 it is r_t. TRL counts a masked token 1e-4 in the denominator, and without
    length_normalized it leaves the factor gamma^t in the numerator; neither is done here.

    Args:
      old_log_probs: floats [..., length]. Stopped.
      teacher_log_probs: floats [..., length]. Stopped.
      gamma: scalar in [0, 1], may be traced.
      length_normalized: divide by the discounted number of tokens left.
      where: booleans [..., length]. Elsewhere the reward counts 0, and the advantage is 0.

    Returns:
      [..., length].

    Raises:
      ValueError: shapes that differ, gamma outside [0, 1]. TypeError: log-probabilities that are
        not floats, a mask that is not boolean.

    Source: von Werra et al. 2020 (TRL); Gu et al. 2023 (MiniLLM), arXiv:2306.08543.

    >>> import jax.numpy as jnp
    >>> print(reverse_kl_advantage(jnp.array([-3.0, -1.0]), jnp.array([-1.0, -2.0]), gamma=0.5))
    [ 1. -1.]
    """
    old, teacher = _constants(old_log_probs, teacher_log_probs, "... length")
    checks.fraction(gamma=gamma)
    where = _mask(where, old, "old_log_probs")
    old, teacher = (jnp.where(where, x, 0.0) for x in (old, teacher))
    advantages = _discounted(teacher - old, gamma)
    if length_normalized:
        left = _discounted(where.astype(old.dtype), gamma)
        advantages = advantages / jnp.where(where, left, 1.0)
    return jnp.where(where, advantages, 0.0)


def whiten(
    values: Values, *, epsilon: Scalar = 1e-8, where: Mask | None = None
) -> Float[Array, "..."]:
    """Values less their mean, divided by their standard deviation, over all axes.

        (v - mean v) / sqrt(var v + epsilon),   var with n - 1

    The statistics are of the whole batch. MiniLLM takes them over padding too: no `where`.

    Args:
      values: floats [...]. Differentiated.
      epsilon: scalar > 0, may be traced.
      where: booleans [...]: what is whitened. Elsewhere 0.

    Returns:
      [...]; all 0 for a single value.

    Raises:
      ValueError: shapes that differ, epsilon <= 0. TypeError: values that are not floats, a mask
        that is not boolean.

    Source: Gu et al. 2023 (MiniLLM), arXiv:2306.08543.

    >>> import jax.numpy as jnp
    >>> print(whiten(jnp.array([1.0, 2.0, 3.0])))
    [-1.  0.  1.]
    """
    (values,) = checks.shaped({"values": "..."}, values=values)
    checks.positive(epsilon=epsilon)
    where = _mask(where, values, "values")
    count = jnp.sum(where, dtype=values.dtype)
    mean = jnp.sum(jnp.where(where, values, 0.0)) / jnp.maximum(count, 1)
    centred = jnp.where(where, values, mean) - mean
    variance = jnp.sum(centred**2) / jnp.maximum(count - 1, 1)
    return centred * jax.lax.rsqrt(variance + epsilon)


def teacher_mixed_weights(
    old_log_probs: Values, teacher_log_probs: Values, *, alpha: Scalar = 0.2
) -> Float[Array, "..."]:
    """Importance weights of tokens sampled from a mixture of student and teacher.

        w = q_old(y) / ( (1 - alpha) q_old(y) + alpha p(y) )

    Args:
      old_log_probs: floats [..., length]. Stopped.
      teacher_log_probs: floats [..., length]. Stopped.
      alpha: scalar in [0, 1], may be traced; the teacher's share. At 0 all weights are 1.

    Returns:
      [..., length], in [0, 1 / (1 - alpha)].

    Raises:
      ValueError: shapes that differ, alpha outside [0, 1]. TypeError: arrays that are not floats.

    Source: Gu et al. 2023 (MiniLLM), arXiv:2306.08543.

    >>> import jax.numpy as jnp
    >>> old, teacher = jnp.log(jnp.array([0.2])), jnp.log(jnp.array([0.5]))
    >>> print(f"{teacher_mixed_weights(old, teacher, alpha=0.2)[0]:.4f}")
    0.7692
    """
    old, teacher = _constants(old_log_probs, teacher_log_probs)
    checks.fraction(alpha=alpha)
    mixture = log_space.log_mixture(teacher, old, alpha)
    impossible = mixture == -jnp.inf
    difference = jnp.where(impossible, -jnp.inf, old - jnp.where(impossible, 0.0, mixture))
    # At alpha = 1 the weight is p's inverse times q: as large as a ratio may be.
    return jnp.exp(jnp.minimum(difference, LARGEST_LOG_RATIO))


def clipped_policy_gradient(
    log_probs: Values,
    old_log_probs: Values,
    advantages: Values,
    weights: Values | None = None,
    *,
    clip: Scalar = 0.2,
) -> Float[Array, "..."]:
    """PPO's clipped surrogate of each token, with importance weights on the ratio.

        ratio = w q(y) / q_old(y),   L = max( -A ratio, -A clip(ratio, 1 - clip, 1 + clip) )

    The caller's mean over the tokens of the completions is the published loss. Log-ratios are held
    to +-20, without a gradient beyond.

    Args:
      log_probs: floats [..., length], the student's. Differentiated.
      old_log_probs: floats [..., length], the student's when it sampled. Stopped.
      advantages: floats [..., length]. Stopped.
      weights: floats [..., length], >= 0, as of `teacher_mixed_weights`. Stopped. By default 1.
      clip: scalar in [0, 1], may be traced.

    Returns:
      [..., length].

    Raises:
      ValueError: shapes that differ, clip outside [0, 1]. TypeError: arrays that are not floats.

    Source: Schulman et al. 2017 (PPO), arXiv:1707.06347; Gu et al. 2023 (MiniLLM),
      arXiv:2306.08543.

    >>> import jax.numpy as jnp
    >>> old, new = jnp.log(jnp.array([0.2, 0.2])), jnp.log(jnp.array([0.3, 0.22]))
    >>> print(clipped_policy_gradient(new, old, jnp.array([1.0, 1.0])))
    [-1.2 -1.1]
    """
    arrays = {"log_probs": log_probs, "old_log_probs": old_log_probs, "advantages": advantages}
    arrays |= {} if weights is None else {"weights": weights}
    new, old, advantages, *given = checks.shaped(dict.fromkeys(arrays, "..."), **arrays)
    checks.fraction(clip=clip)
    old, advantages = jax.lax.stop_gradient((old, advantages))
    ratio = jnp.exp(jnp.clip(new - old, -LARGEST_LOG_RATIO, LARGEST_LOG_RATIO))
    for weight in jax.lax.stop_gradient(given):
        ratio = ratio * weight
    return jnp.maximum(-advantages * ratio, -advantages * jnp.clip(ratio, 1 - clip, 1 + clip))


def reverse_kl_estimate(log_probs: Values, teacher_log_probs: Values) -> Float[Array, "..."]:
    """An estimate of the reverse KL from sampled tokens that is never negative ("k3").

        d = log p(y) - log q(y),   estimate = exp(d) - 1 - d

    Its mean over y ~ q is KL(q || p), with less variance than that of -d. For watching, or as a
    penalty; d is held to 20 in the exponential.

    Args:
      log_probs: floats [..., length], the student's. Differentiated.
      teacher_log_probs: floats [..., length]. Stopped.

    Returns:
      [..., length], >= 0.

    Raises:
      ValueError: shapes that differ. TypeError: arrays that are not floats.

    Source: Schulman 2020, "Approximating KL divergence".

    >>> import jax.numpy as jnp
    >>> print(f"{reverse_kl_estimate(jnp.array([-2.0]), jnp.array([-1.0]))[0]:.4f}")
    0.7183
    """
    axes = {"log_probs": "...", "teacher_log_probs": "..."}
    student, teacher = checks.shaped(axes, log_probs=log_probs, teacher_log_probs=teacher_log_probs)
    difference = jax.lax.stop_gradient(teacher) - student
    small = jnp.abs(difference) < 0.01
    near = jnp.where(small, difference, 0.0)
    # expm1(d) - d cancels where d is small.
    series = near**2 * (1 / 2 + near * (1 / 6 + near * (1 / 24 + near * (1 / 120 + near / 720))))
    whole = jnp.expm1(jnp.minimum(difference, LARGEST_LOG_RATIO)) - difference
    return jnp.where(small, series, jnp.maximum(whole, 0.0))


def _constants(
    old_log_probs: Values, teacher_log_probs: Values, axes: str = "..."
) -> tuple[Array, Array]:
    named = {"old_log_probs": old_log_probs, "teacher_log_probs": teacher_log_probs}
    return jax.lax.stop_gradient(checks.shaped(dict.fromkeys(named, axes), **named))


def _mask(where: Mask | None, values: Array, name: str) -> Array:
    if where is None:
        return jnp.ones(values.shape, bool)
    return checks.boolean("where", where, values.shape, name)


def _discounted(values: Array, gamma: Scalar) -> Array:
    """sum_(i >= t) gamma^(i - t) v_i along the last axis."""

    def join(later: tuple[Array, Array], earlier: tuple[Array, Array]) -> tuple[Array, Array]:
        (factor, value), (own_factor, own_value) = later, earlier
        return factor * own_factor, own_value + own_factor * value

    factors = jnp.full_like(values, gamma)
    axis = values.ndim - 1
    return jax.lax.associative_scan(join, (factors, values), reverse=True, axis=axis)[1]
