"""Noise schedules of diffusion and flows, and the weights and scalings of their noise levels.

    z = alpha x + sigma eps        noisy = alpha clean + sigma noise

A schedule maps times to (alpha, sigma): variance preserving (alpha^2 + sigma^2 = 1), variance
exploding (alpha = 1, sigma is the time) or a flow (alpha = 1 - sigma). Elementwise, any shape.
Values out of range are refused where they are known, that is outside a compiled function.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from kdjax.losses import checks
from kdjax.losses.checks import Scalar

Level = float | Float[Array | np.ndarray, "..."]
Levels = Float[Array, "..."]

WEIGHTINGS = ("uniform", "snr", "truncated_snr", "snr_plus_one", "karras")


def cosine_schedule(times: Level) -> tuple[Levels, Levels]:
    """The cosine schedule, variance preserving, without clipping.

        alpha = cos(pi t / 2),  sigma = sin(pi t / 2),  log SNR = -2 log tan(pi t / 2)

    Args:
      times: floats [...] in [0, 1]: 0 is data, 1 is noise. Differentiated.

    Returns:
      (alpha, sigma), each [...] in [0, 1].

    Raises:
      ValueError: known times outside [0, 1]. TypeError: times that are not floats.

    Source: Nichol & Dhariwal 2021, arXiv:2102.09672; Salimans & Ho 2022, arXiv:2202.00512.

    >>> alpha, sigma = cosine_schedule(0.5)
    >>> print(f"{alpha:.4f} {sigma:.4f}")
    0.7071 0.7071
    """
    times = level("times", times, maximum=1.0)
    # The sine of the complement is exactly 0 at t = 1, where a cosine would be -4e-8.
    return jnp.sin(math.pi / 2 * (1 - times)), jnp.sin(math.pi / 2 * times)


def linear_schedule(
    times: Level, *, beta_min: Scalar = 0.1, beta_max: Scalar = 20.0
) -> tuple[Levels, Levels]:
    """The schedule whose rate of noise grows linearly in time, variance preserving.

        beta(t) = beta_min + t (beta_max - beta_min)
        alpha = exp(-t beta_min / 2 - t^2 (beta_max - beta_min) / 4),  sigma = sqrt(1 - alpha^2)

    The limit of DDPM's 1000 steps with betas from 1e-4 to 0.02. alpha(1) is 0.0066, not 0.

    Args:
      times: floats [...] in [0, 1]: 0 is data, 1 is noise. Differentiated, but at 0.
      beta_min: scalar >= 0, may be traced.
      beta_max: scalar >= 0, may be traced.

    Returns:
      (alpha, sigma), each [...] in [0, 1].

    Raises:
      ValueError: known times outside [0, 1], beta_min or beta_max < 0.
      TypeError: times that are not floats.

    Source: Ho et al. 2020, arXiv:2006.11239; Song et al. 2021, arXiv:2011.13456.

    >>> alpha, sigma = linear_schedule(0.5)
    >>> print(f"{alpha:.4f} {sigma:.4f}")
    0.2812 0.9597
    """
    times = level("times", times, maximum=1.0)
    checks.not_negative(beta_min=beta_min, beta_max=beta_max)
    log_alpha = -(times**2) * (beta_max - beta_min) / 4 - times * beta_min / 2
    variance = -jnp.expm1(2 * log_alpha)
    # The slope of the root at 0 is infinite.
    sigma = jnp.where(variance == 0, 0.0, jnp.sqrt(jnp.where(variance == 0, 1.0, variance)))
    return jnp.exp(log_alpha), sigma


def flow_schedule(times: Level) -> tuple[Levels, Levels]:
    """The straight line between data and noise of flow matching and rectified flow.

        alpha = 1 - t,  sigma = t

    Args:
      times: floats [...] in [0, 1]: 0 is data, 1 is noise (the other way round in code where the
        flow runs from noise at 0). Differentiated.

    Returns:
      (alpha, sigma), each [...] in [0, 1].

    Raises:
      ValueError: known times outside [0, 1]. TypeError: times that are not floats.

    Source: Liu et al. 2022, arXiv:2209.03003; Lipman et al. 2022, arXiv:2210.02747.

    >>> alpha, sigma = flow_schedule(0.25)
    >>> print(alpha, sigma)
    0.75 0.25
    """
    times = level("times", times, maximum=1.0)
    return 1 - times, times


def exploding_schedule(sigma: Level) -> tuple[Levels, Levels]:
    """The variance exploding schedule of EDM, whose time is the noise level itself.

        alpha = 1,  sigma = sigma

    Args:
      sigma: floats [...] >= 0. Differentiated.

    Returns:
      (alpha, sigma), each [...].

    Raises:
      ValueError: a known sigma < 0. TypeError: a sigma that is not a float.

    Source: Karras et al. 2022 (EDM), arXiv:2206.00364.

    >>> alpha, sigma = exploding_schedule(80.0)
    >>> print(alpha, sigma)
    1.0 80.0
    """
    sigma = level("sigma", sigma)
    return jnp.ones_like(sigma), sigma


def karras_sigmas(
    fractions: Level,
    *,
    sigma_min: Scalar = 0.002,
    sigma_max: Scalar = 80.0,
    rho: Scalar = 7.0,
) -> Levels:
    """Noise levels of EDM, spaced evenly in their rho-th root, from the noisiest to the cleanest.

        sigma = (sigma_max^(1/rho) + f (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho

    The i-th of N levels has the fraction f = i / (N - 1). Consistency training draws i and counts
    N up (`consistency_schedule`); progressive distillation in N steps has f = i / N for its ends
    and (i + 1/2) / N for the middle of a step. EDM appends a last level 0.

    Args:
      fractions: floats [...] in [0, 1]: 0 gives sigma_max, 1 gives sigma_min. Differentiated.
      sigma_min: scalar > 0, may be traced.
      sigma_max: scalar > 0, may be traced.
      rho: scalar > 0, may be traced; large values crowd the levels near sigma_min.

    Returns:
      [...], from sigma_min to sigma_max.

    Raises:
      ValueError: known fractions outside [0, 1], sigma_min, sigma_max or rho <= 0.
      TypeError: fractions that are not floats.

    Source: Karras et al. 2022 (EDM), arXiv:2206.00364, equation 5.

    >>> import jax.numpy as jnp
    >>> print(" ".join(f"{sigma:.3f}" for sigma in karras_sigmas(jnp.linspace(0.0, 1.0, 4))))
    80.000 9.723 0.470 0.002
    """
    fractions = level("fractions", fractions, maximum=1.0)
    checks.positive(sigma_min=sigma_min, sigma_max=sigma_max, rho=rho)
    lowest, highest = (
        jnp.asarray(end, fractions.dtype) ** (1 / rho) for end in (sigma_min, sigma_max)
    )
    return (highest + fractions * (lowest - highest)) ** rho


def shift_sigmas(sigma: Level, *, shift: Scalar) -> Levels:
    """Noise levels of a flow moved towards the noise, for data of higher resolution.

        sigma' = shift sigma / (1 + (shift - 1) sigma)

    shift = 1 changes nothing; 0 and 1 stay. Video models use 3 to 8.

    Args:
      sigma: floats [...] in [0, 1]. Differentiated.
      shift: scalar > 0, may be traced.

    Returns:
      [...] in [0, 1].

    Raises:
      ValueError: a known sigma outside [0, 1], shift <= 0. TypeError: a sigma that is no float.

    Source: Esser et al. 2024 (Stable Diffusion 3), arXiv:2403.03206, equation 23.

    >>> print(shift_sigmas(0.75, shift=5.0))
    0.9375
    """
    sigma = level("sigma", sigma, maximum=1.0)
    checks.positive(shift=shift)
    return shift * sigma / (1 + (shift - 1) * sigma)


def log_snr(alpha: Level, sigma: Level) -> Levels:
    """The logarithm of the signal-to-noise ratio.

        log SNR = 2 (log alpha - log sigma)

    Half of it, with the other sign, is the lambda of BOOT.

    Args:
      alpha: floats [...] > 0. Differentiated.
      sigma: floats [...] > 0. Differentiated.

    Returns:
      [...].

    Raises:
      ValueError: shapes that differ, a known alpha or sigma <= 0.
      TypeError: arrays that are not floats.

    Source: Kingma et al. 2021, arXiv:2107.00630.

    >>> print(f"{log_snr(0.8, 0.6):.4f}")
    0.5754
    """
    alpha, sigma = _levels(alpha, sigma, above_zero=("alpha", "sigma"))
    return 2 * (jnp.log(alpha) - jnp.log(sigma))


def loss_weight(
    alpha: Level, sigma: Level, *, weighting: str = "truncated_snr", sigma_data: Scalar = 0.5
) -> Levels:
    """The weight of the squared error of the data at a noise level.

        uniform         1
        snr             SNR = (alpha / sigma)^2     the squared error of the noise
        truncated_snr   max(SNR, 1)                 progressive distillation
        snr_plus_one    SNR + 1                     the squared error of `velocity`
        karras          SNR + 1 / sigma_data^2      EDM, and the critic of DMD2 on EDM

    The squared error of a `flow_velocity` is that of the data times 1 / sigma^2.

    Args:
      alpha: floats [...]. Differentiated.
      sigma: floats [...] > 0. Differentiated.
      weighting: one of the five names.
      sigma_data: scalar > 0, may be traced; the data's standard deviation, read by karras only.

    Returns:
      [...], > 0.

    Raises:
      ValueError: shapes that differ, a known sigma <= 0, sigma_data <= 0, another weighting.
      TypeError: arrays that are not floats.

    Source: Salimans & Ho 2022, arXiv:2202.00512, section 4; Karras et al. 2022, arXiv:2206.00364.

    >>> print(loss_weight(0.5, 1.0), loss_weight(0.5, 1.0, weighting="snr_plus_one"))
    1.0 1.25
    """
    alpha, sigma = _levels(alpha, sigma, above_zero=("sigma",))
    checks.choice("weighting", weighting, WEIGHTINGS)
    checks.positive(sigma_data=sigma_data)
    ratio = (alpha / sigma) ** 2
    match weighting:
        case "uniform":
            return jnp.ones_like(ratio)
        case "snr":
            return ratio
        case "truncated_snr":
            return jnp.maximum(ratio, 1.0)
        case "snr_plus_one":
            return ratio + 1
        case _:
            return ratio + 1 / sigma_data**2


def bell_weights(times: Float[Array | np.ndarray, " times"]) -> Levels:
    """Weights of a grid of times, largest in the middle, 0 at the ends, and 1 on average.

        y = exp(-2 ((t - n/2) / n)^2),   w = n (y - min y) / sum (y - min y)

    for n times on the scale of n. The weight of a flow's loss in DiffSynth and LiveTalk.

    Args:
      times: floats [times], the whole grid, from 0 to its length (1000 sigma on 1000 levels).
        Differentiated.

    Returns:
      [times], >= 0, with mean 1.

    Raises:
      ValueError: another rank. TypeError: times that are not floats.

    Source: the DiffSynth-Studio project, on the flow of Lipman et al. 2022, arXiv:2210.02747.

    >>> import jax.numpy as jnp
    >>> print(" ".join(f"{weight:.3f}" for weight in bell_weights(jnp.arange(4.0))))
    0.000 1.168 1.665 1.168
    """
    (times,) = checks.shaped({"times": "times>=2"}, times=times)
    count = times.size
    exponents = 2 * ((times - count / 2) / count) ** 2
    # y - min y up to a factor, without its cancellation at the ends.
    above = jnp.expm1(jnp.max(exponents) - exponents)
    return above * count / jnp.sum(above)


def karras_scalings(
    sigma: Level, *, sigma_data: Scalar = 0.5, sigma_min: Scalar = 0.0
) -> tuple[Levels, Levels, Levels]:
    """The scalings of a network F that make it a denoiser of exploding noise.

        x = c_skip z + c_out F(c_in z, log(sigma) / 4)
        c_skip = sd^2 / ((sigma - sigma_min)^2 + sd^2)
        c_out = (sigma - sigma_min) sd / sqrt(sigma^2 + sd^2),   c_in = 1 / sqrt(sigma^2 + sd^2)

    sigma_min = 0 is EDM. A consistency model takes that of its noise levels, so that at sigma_min
    it returns z whatever the network says. Its authors' code tells the network 250 log(sigma).

    Args:
      sigma: floats [...] >= 0. Differentiated.
      sigma_data: scalar > 0, may be traced; the data's standard deviation.
      sigma_min: scalar >= 0, may be traced.

    Returns:
      (c_skip, c_out, c_in), each [...].

    Raises:
      ValueError: a known sigma < 0, sigma_data <= 0, sigma_min < 0. TypeError: a sigma that is
      not a float.

    Source: Karras et al. 2022 (EDM), arXiv:2206.00364, table 1; Song et al. 2023,
      arXiv:2303.01469, appendix C.

    >>> print(*(f"{scaling:.4f}" for scaling in karras_scalings(0.5)))
    0.5000 0.3536 1.4142
    """
    sigma = level("sigma", sigma)
    checks.positive(sigma_data=sigma_data)
    checks.not_negative(sigma_min=sigma_min)
    excess = sigma - sigma_min
    scale = jax.lax.rsqrt(sigma**2 + sigma_data**2)
    return sigma_data**2 / (excess**2 + sigma_data**2), excess * sigma_data * scale, scale


def _levels(alpha: Level, sigma: Level, above_zero: tuple[str, ...]) -> tuple[Array, Array]:
    named = {
        name: level(name, values, above_zero=name in above_zero, signed=True)
        for name, values in (("alpha", alpha), ("sigma", sigma))
    }
    return checks.shaped({"alpha": "...", "sigma": "..."}, **named)


def level(
    name: str,
    values: Level,
    *,
    maximum: float = math.inf,
    above_zero: bool = False,
    signed: bool = False,
) -> Array:
    """The level in at least float32, after a check of its values where they are known."""
    array = jnp.asarray(values)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(f"{name} must be floating-point, got dtype {array.dtype}")
    if not isinstance(array, jax.core.Tracer) and array.size and array.is_fully_addressable:
        # NumPy: inside a compiled function jnp.min of a constant would be unknown.
        known = np.asarray(array).astype(np.float64)
        smallest, largest = known.min(), known.max()
        if above_zero and not smallest > 0:
            raise ValueError(f"{name} must be > 0, got {smallest}")
        if not signed and not (smallest >= 0 and largest <= maximum):
            wrong = largest if smallest >= 0 else smallest
            bounds = f"lie in [0, {maximum:g}]" if maximum < math.inf else "be >= 0"
            raise ValueError(f"{name} must {bounds}, got {wrong}")
    # A Python number takes float64 only beside float64 arrays.
    weak = isinstance(values, float)
    return array if weak else array.astype(jnp.result_type(jnp.float32, array.dtype))
