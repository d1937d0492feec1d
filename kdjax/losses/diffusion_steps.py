"""Solver steps of diffusion and flows, and the guidance of what they step with.

Levels (alpha, sigma, times) have the leading axes of the arrays they belong to, as in
kdjax/losses/diffusion.py. Nothing here is stopped.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from kdjax.losses import checks
from kdjax.losses.checks import Scalar
from kdjax.losses.diffusion import Data, aligned
from kdjax.losses.noise_schedules import Level, cosine_schedule, level


def ddim_step(
    noisy: Data,
    clean: Data,
    alpha: Level,
    sigma: Level,
    next_alpha: Level,
    next_sigma: Level,
) -> Data:
    """One step of DDIM: the predicted data, with the noise that it implies, at another level.

        z_s = alpha_s x + (sigma_s / sigma_t) (z_t - alpha_t x)

    Exact where the prediction of the data is the same along the step. It is Euler's step of EDM in
    the exploding schedule, and of the flow in its schedule.

    Args:
      noisy: floats [batch, ...], z_t. Differentiated.
      clean: floats of the shape of noisy, the prediction of the data at z_t. Differentiated.
      alpha: floats, the leading axes of noisy. Differentiated.
      sigma: floats > 0, the leading axes of noisy. Differentiated.
      next_alpha: floats, the leading axes of noisy. Differentiated.
      next_sigma: floats, the leading axes of noisy. Differentiated.

    Returns:
      z_s, floats of the shape of noisy.

    Raises:
      ValueError: shapes that do not fit, a known sigma <= 0. TypeError: arrays that are not floats.

    Source: Song et al. 2021, arXiv:2010.02502, equation 12 without its noise.

    >>> import jax.numpy as jnp
    >>> print(ddim_step(jnp.array([2.0]), jnp.array([1.0]), 0.5, 1.0, 1.0, 0.5))
    [1.75]
    """
    (noisy, clean), (alpha, sigma, next_alpha, next_sigma) = aligned(
        dict(noisy=noisy, clean=clean),
        dict(alpha=alpha, sigma=sigma, next_alpha=next_alpha, next_sigma=next_sigma),
        above_zero=("sigma",),
    )
    return next_alpha * clean + next_sigma / sigma * (noisy - alpha * clean)


def ddim_sample(
    noise: Data,
    times: Float[Array | np.ndarray, " times"],
    *,
    denoiser: Callable[[Array, Array], Array],
    schedule: Callable[[Level], tuple[Array, Array]] = cosine_schedule,
) -> Data:
    """The end of a trajectory of DDIM that begins with noise.

        z_0 = eps,   z_{i+1} = ddim(z_i, f(z_i, t_i),  t_i -> t_{i+1})

    One `ddim_step` and one prediction for each pair of neighbouring times.

    Args:
      noise: floats [batch, ...], eps. Differentiated.
      times: floats [times >= 2], falling from the noisiest; sigma must be > 0 but at the last.
        Differentiated.
      denoiser: f, (noisy, times [batch]) -> prediction of the data.
      schedule: times -> (alpha, sigma).

    Returns:
      z at the last time, floats of the shape of noise.

    Raises:
      ValueError: other shapes, known times that do not fall or have no noise before the last.
      TypeError: arrays that are not floats.

    Source: Song et al. 2021, arXiv:2010.02502.

    >>> import jax.numpy as jnp
    >>> denoiser = lambda noisy, times: jnp.full_like(noisy, 3.0)
    >>> print(ddim_sample(jnp.ones((1, 1)), jnp.array([1.0, 0.5, 0.0]), denoiser=denoiser))
    [[3.]]
    """
    noise, times = checks.shaped({"noise": "...", "times": "times>=2"}, noise=noise, times=times)
    if noise.ndim < 1:
        raise ValueError(f"noise must be shaped [batch, ...], got shape {noise.shape}")
    if not isinstance(times, jax.core.Tracer) and (np.diff(np.asarray(times)) >= 0).any():
        raise ValueError(f"times must fall, got {np.asarray(times).tolist()}")
    alpha, sigma = schedule(times)
    level("sigma(times)", sigma[:-1], above_zero=True)

    def step(noisy, levels):
        time, now, following = levels
        clean = denoiser(noisy, jnp.full(noisy.shape[:1], time))
        return ddim_step(noisy, clean, *now, *following), None

    levels = (times[:-1], (alpha[:-1], sigma[:-1]), (alpha[1:], sigma[1:]))
    return jax.lax.scan(step, noise, levels)[0]


def ddim_inverse(
    noisy: Data,
    next_noisy: Data,
    alpha: Level,
    sigma: Level,
    next_alpha: Level,
    next_sigma: Level,
) -> Data:
    """The data that `ddim_step` must have been told to step from one state to another.

        x = (z_s - r z_t) / (alpha_s - r alpha_t),   r = sigma_s / sigma_t

    Args:
      noisy: floats [batch, ...], z_t. Differentiated.
      next_noisy: floats of the shape of noisy, z_s. Differentiated.
      alpha: floats, the leading axes of noisy. Differentiated.
      sigma: floats > 0, the leading axes of noisy. Differentiated.
      next_alpha: floats, the leading axes of noisy. Differentiated.
      next_sigma: floats, the leading axes of noisy; another level than the first. Differentiated.

    Returns:
      Floats of the shape of noisy.

    Raises:
      ValueError: shapes that do not fit, a known sigma <= 0. TypeError: arrays that are not floats.

    Source: Salimans & Ho 2022, arXiv:2202.00512, algorithm 2.

    >>> import jax.numpy as jnp
    >>> print(ddim_inverse(jnp.array([2.0]), jnp.array([1.75]), 0.5, 1.0, 1.0, 0.5))
    [1.]
    """
    (noisy, next_noisy), (alpha, sigma, next_alpha, next_sigma) = aligned(
        dict(noisy=noisy, next_noisy=next_noisy),
        dict(alpha=alpha, sigma=sigma, next_alpha=next_alpha, next_sigma=next_sigma),
        above_zero=("sigma",),
    )
    ratio = next_sigma / sigma
    return (next_noisy - ratio * noisy) / (next_alpha - ratio * alpha)


def euler_step(noisy: Data, slope: Data, time: Level, next_time: Level) -> Data:
    """One step of Euler along an ordinary differential equation.

        z' = z + (t' - t) dz/dt

    The slope of a flow is `flow_velocity`; that of EDM is `noise_from_clean` with alpha = 1.

    Args:
      noisy: floats [batch, ...]. Differentiated.
      slope: floats of the shape of noisy. Differentiated.
      time: floats, the leading axes of noisy. Differentiated.
      next_time: floats, the leading axes of noisy. Differentiated.

    Returns:
      Floats of the shape of noisy.

    Raises:
      ValueError: shapes that do not fit. TypeError: arrays that are not floats.

    Source: Liu et al. 2022, arXiv:2209.03003; Karras et al. 2022 (EDM), arXiv:2206.00364.

    >>> import jax.numpy as jnp
    >>> print(euler_step(jnp.array([3.0]), jnp.array([2.0]), 1.0, 0.5))
    [2.]
    """
    (noisy, slope), (time, next_time) = aligned(
        dict(noisy=noisy, slope=slope), dict(time=time, next_time=next_time)
    )
    return noisy + (next_time - time) * slope


def heun_step(
    noisy: Data,
    sigma: Level,
    next_sigma: Level,
    *,
    denoiser: Callable[[Array, Array], Array],
) -> Data:
    """One step of Heun for exploding noise: Euler's, with the slopes of both ends averaged.

        d = (z - f(z, sigma)) / sigma,   z_e = z + (sigma' - sigma) d
        z' = z + (sigma' - sigma) (d + (z_e - f(z_e, sigma')) / sigma') / 2

    Where sigma' is 0 there is no second slope, and the step is Euler's.

    Args:
      noisy: floats [batch, ...]. Differentiated.
      sigma: floats > 0, the leading axes of noisy. Differentiated.
      next_sigma: floats >= 0 of the shape of sigma. Differentiated.
      denoiser: (noisy, sigma) -> prediction of the data, of the shape of noisy.

    Returns:
      Floats of the shape of noisy.

    Raises:
      ValueError: shapes that do not fit, a known sigma <= 0. TypeError: arrays that are not floats.

    Source: Karras et al. 2022 (EDM), arXiv:2206.00364, algorithm 1.

    >>> import jax.numpy as jnp
    >>> denoiser = lambda noisy, sigma: noisy / (1 + sigma**2)
    >>> print(heun_step(jnp.array([2.0]), 1.0, 0.5, denoiser=denoiser))
    [1.6]
    """
    sigma, next_sigma = jnp.asarray(sigma), jnp.asarray(next_sigma)
    (noisy,), (wide, next_wide) = aligned(
        dict(noisy=noisy), dict(sigma=sigma, next_sigma=next_sigma), above_zero=("sigma",)
    )
    sigma, next_sigma = sigma.astype(noisy.dtype), next_sigma.astype(noisy.dtype)
    slope = (noisy - denoiser(noisy, sigma)) / wide
    euler = noisy + (next_wide - wide) * slope
    last = next_wide == 0
    next_slope = (euler - denoiser(euler, next_sigma)) / jnp.where(last, 1.0, next_wide)
    return noisy + (next_wide - wide) * (slope + jnp.where(last, slope, next_slope)) / 2


def guided(unconditional: Data, conditional: Data, *, scale: Scalar) -> Data:
    """Classifier-free guidance: away from the prediction without the condition.

        x = x_u + w (x_c - x_u)

    w = 0 is the unconditional prediction, w = 1 the conditional one. Code that writes
    (1 + w) x_c - w x_u (Ho & Salimans, Self-Forcing, LiveTalk) has w - 1 of this one. The same for
    predictions of data, noise and velocity, which are linear in each other.

    Args:
      unconditional: floats [...]. Differentiated.
      conditional: floats of the same shape. Differentiated.
      scale: scalar, may be traced.

    Returns:
      Floats of the same shape.

    Raises:
      ValueError: shapes that differ, a scale that is not finite.
      TypeError: arrays that are not floats.

    Source: Ho & Salimans 2022, arXiv:2207.12598.

    >>> import jax.numpy as jnp
    >>> print(guided(jnp.array([1.0]), jnp.array([2.0]), scale=3.0))
    [4.]
    """
    unconditional, conditional = checks.shaped(
        {"unconditional": "...", "conditional": "..."},
        unconditional=unconditional,
        conditional=conditional,
    )
    checks.finite(scale=scale)
    return unconditional + scale * (conditional - unconditional)


def guided_by_two(
    unconditional: Data,
    first_only: Data,
    both: Data,
    *,
    first_scale: Scalar,
    second_scale: Scalar,
) -> Data:
    """Classifier-free guidance by two conditions with scales of their own.

        x = x_u + w_1 (x_1 - x_u) + w_2 (x_12 - x_1)

    With both scales 1 it is the prediction given both; with equal scales w it is `guided`.

    Args:
      unconditional: floats [...]. Differentiated.
      first_only: floats of the same shape, given the first condition only. Differentiated.
      both: floats of the same shape, given both. Differentiated.
      first_scale: scalar, may be traced.
      second_scale: scalar, may be traced.

    Returns:
      Floats of the same shape.

    Raises:
      ValueError: shapes that differ, scales that are not finite.
      TypeError: arrays that are not floats.

    Source: Brooks et al. 2022 (InstructPix2Pix), arXiv:2211.09800, equation 3.

    >>> import jax.numpy as jnp
    >>> x = jnp.array([[1.0], [2.0], [4.0]])
    >>> print(guided_by_two(*x, first_scale=2.0, second_scale=0.5))
    [4.]
    """
    axes = dict.fromkeys(("unconditional", "first_only", "both"), "...")
    unconditional, first_only, both = checks.shaped(
        axes, unconditional=unconditional, first_only=first_only, both=both
    )
    checks.finite(first_scale=first_scale, second_scale=second_scale)
    return (
        unconditional
        + first_scale * (first_only - unconditional)
        + second_scale * (both - first_only)
    )
