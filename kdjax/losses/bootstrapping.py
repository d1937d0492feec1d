"""BOOT: targets with which a one-step generator learns a diffusion model from noise alone.

    z_t = alpha_t y_t + sigma_t eps        dy/dlambda = y - f(z_t, t),   lambda = log(sigma / alpha)

eps is the noise that a trajectory of the model begins with, f its prediction of the data, and y_t
the signal: `clean_from_noise` of the state with the first noise, whose inverse is `add_noise`. The
student says y_t from eps and t. Its own signal at t and one prediction f make its target at the
next, smaller time s; the loss is `target_regression`. Targets have no gradient.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from kdjax.losses import checks
from kdjax.losses.diffusion import Data, aligned
from kdjax.losses.noise_schedules import Level, Levels, cosine_schedule, level, log_snr
from kdjax.losses.step_distillation import Denoiser, Schedule

BOOT_WEIGHTINGS = ("uniform", "inverse_step", "inverse_squared_step", "inverse_squared_time")


def boot_target_exact(
    signal: Data,
    clean: Data,
    times: Level,
    next_times: Level,
    *,
    schedule: Schedule = cosine_schedule,
) -> Data:
    """The signal after one step of DDIM, whatever noise the trajectory began with.

        y_s = (1 - r) f + r y_t,   r = alpha_t sigma_s / (alpha_s sigma_t)

    Exact where f is the same along the step. With s = t it is y_t, with sigma_s = 0 it is f.

    Args:
      signal: floats [batch, ...], y_t. Stopped.
      clean: floats of the shape of signal, f: the teacher's prediction of the data, with its
        guidance (`guided`), at add_noise(y_t, eps, alpha_t, sigma_t). Stopped.
      times: floats t, the leading axes of signal; alpha_t and sigma_t must be > 0. Stopped.
      next_times: floats s <= t of the shape of times; alpha_s must be > 0. Stopped.
      schedule: times -> (alpha, sigma), any.

    Returns:
      Floats of the shape of signal, with no gradient.

    Raises:
      ValueError: shapes that do not fit, known times without signal or noise or in another order.
      TypeError: arrays that are not floats.

    Source: Gu et al. 2023, arXiv:2306.05544; the step of Song et al. 2021, arXiv:2010.02502.

    >>> import jax.numpy as jnp
    >>> target = boot_target_exact(jnp.array([[0.0]]), jnp.array([[1.0]]), 1 / 2, 1 / 3)
    >>> print(f"{target[0, 0]:.4f}")
    0.4226
    """
    _check_order(times, next_times)
    (signal, clean), (alpha, sigma), (next_alpha, next_sigma) = _at(
        dict(signal=signal, clean=clean), times, next_times, schedule
    )
    step = _step(alpha, sigma, next_alpha, next_sigma)
    return jax.lax.stop_gradient(signal + step * (clean - signal))


def boot_target_euler(
    signal: Data,
    clean: Data,
    times: Level,
    next_times: Level,
    *,
    schedule: Schedule = cosine_schedule,
) -> Data:
    """The signal after one step of Euler in time, as the paper writes it.

        y_s = y_t + (t - s) lambda'_t (f - y_t)

    lambda' is the schedule's own derivative (pi / sin(pi t) of the cosine's). It agrees with
    `boot_target_exact` to O((t - s)^2); near t = 0 and t = 1 lambda' is large, and the step goes
    past f.

    Args:
      signal: floats [batch, ...], y_t. Stopped.
      clean: floats of the shape of signal, f; see `boot_target_exact`. Stopped.
      times: floats t, the leading axes of signal; alpha_t and sigma_t must be > 0. Stopped.
      next_times: floats s <= t of the shape of times; alpha_s must be > 0. Stopped.
      schedule: times -> (alpha, sigma), differentiable.

    Returns:
      Floats of the shape of signal, with no gradient.

    Raises:
      ValueError: shapes that do not fit, known times without signal or noise or in another order.
      TypeError: arrays that are not floats.

    Source: Gu et al. 2023, arXiv:2306.05544.

    >>> import jax.numpy as jnp
    >>> target = boot_target_euler(jnp.array([[0.0]]), jnp.array([[1.0]]), 1 / 2, 1 / 3)
    >>> print(f"{target[0, 0]:.4f}")
    0.5236
    """
    _check_order(times, next_times)
    arrays = dict(signal=signal, clean=clean)
    _at(arrays, times, next_times, schedule)  # the checks of the levels
    times, next_times = (jnp.asarray(x) for x in (times, next_times))

    def negative_half_log_snr(t):
        return -log_snr(*schedule(t)) / 2

    _, slope = jax.jvp(negative_half_log_snr, (times,), (jnp.ones_like(times),))
    (signal, clean), (step,) = aligned(arrays, {"times": (times - next_times) * slope})
    return jax.lax.stop_gradient(signal + step * (clean - signal))


def boot_target_heun(
    signal: Data,
    noise: Data,
    times: Level,
    next_times: Level,
    *,
    teacher: Denoiser,
    schedule: Schedule = cosine_schedule,
) -> Data:
    """The signal after one step of Heun in lambda: two predictions, errors of the second order.

        h = lambda_t - lambda_s,   y_e = y_t + h (f(z_t, t) - y_t)
        y_s = y_t + h/2 ( f(z_t, t) - y_t + f(alpha_s y_e + sigma_s eps, s) - y_e )

    Args:
      signal: floats [batch, ...], y_t. Stopped.
      noise: floats of the shape of signal, eps. Stopped.
      times: floats t, the leading axes of signal; alpha_t and sigma_t must be > 0. Stopped.
      next_times: floats s <= t of the shape of times; alpha_s and sigma_s must be > 0. Stopped.
      teacher: f, (noisy, times) -> prediction of the data. Stopped.
      schedule: times -> (alpha, sigma), any.

    Returns:
      Floats of the shape of signal, with no gradient.

    Raises:
      ValueError: shapes that do not fit, known times without signal or noise or in another order.
      TypeError: arrays that are not floats.

    Source: Gu et al. 2023, arXiv:2306.05544; Karras et al. 2022, arXiv:2206.00364, algorithm 1.

    >>> import jax.numpy as jnp
    >>> signal, times = jnp.array([[0.0]]), jnp.array([0.5])
    >>> teacher = lambda noisy, times: jnp.ones_like(noisy)
    >>> print(f"{boot_target_heun(signal, signal, times, times / 1.5, teacher=teacher)[0, 0]:.4f}")
    0.3984
    """
    _check_order(times, next_times)
    (signal, noise), start, end = _at(
        dict(signal=signal, noise=noise), times, next_times, schedule, noisy_end=True
    )
    times, next_times = (jnp.asarray(x) for x in (times, next_times))
    step = -_log_ratio(*start, *end)
    slope = teacher(start[0] * signal + start[1] * noise, times) - signal
    euler = signal + step * slope
    next_slope = teacher(end[0] * euler + end[1] * noise, next_times) - euler
    return jax.lax.stop_gradient(signal + step * (slope + next_slope) / 2)


def boot_weight(
    times: Level,
    next_times: Level,
    *,
    weighting: str = "uniform",
    schedule: Schedule = cosine_schedule,
) -> Levels:
    """The weight of an example of bootstrapping, by the length of its step.

        uniform                1
        inverse_step           1 / (1 - r)      r as in `boot_target_exact`
        inverse_squared_step   1 / (1 - r)^2
        inverse_squared_time   1 / (t - s)^2    the paper's, up to a factor w_t that it leaves open

    The error of a target grows with 1 - r, so that the second and third weigh short steps more.

    Args:
      times: floats [...], t; alpha_t and sigma_t must be > 0. Stopped.
      next_times: floats of the same shape, s < t; alpha_s must be > 0. Stopped.
      weighting: one of the four names.
      schedule: times -> (alpha, sigma), any.

    Returns:
      [...], > 0, with no gradient. Infinite for s = t, but for `uniform`.

    Raises:
      ValueError: shapes that differ, known times without signal or noise or in another order,
      s = t where the weight is infinite, another weighting. TypeError: times that are not floats.

    Source: Gu et al. 2023, arXiv:2306.05544.

    >>> print(f"{boot_weight(1 / 2, 1 / 3, weighting='inverse_step'):.4f}")
    2.3660
    """
    checks.choice("weighting", weighting, BOOT_WEIGHTINGS)
    _check_order(times, next_times, equal=weighting == "uniform")
    times, next_times = checks.shaped(
        {"times": "...", "next_times": "..."},
        times=level("times", times),
        next_times=level("next_times", next_times),
    )
    _, start, end = _at(dict(times=times), times, next_times, schedule)
    match weighting:
        case "uniform":
            weight = jnp.ones_like(times)
        case "inverse_step":
            weight = 1 / _step(*start, *end)
        case "inverse_squared_step":
            weight = 1 / _step(*start, *end) ** 2
        case _:
            weight = 1 / (times - next_times) ** 2
    return jax.lax.stop_gradient(weight)


def _check_order(times: Level, next_times: Level, equal: bool = True) -> None:
    """Refuses a step that does not go towards the data, where the times are known."""
    if any(isinstance(x, jax.core.Tracer) for x in (times, next_times)):
        return
    now, later = np.asarray(times), np.asarray(next_times)
    if now.shape != later.shape:
        raise ValueError(f"next_times must have the shape of times {now.shape}, got {later.shape}")
    wrong = later > now if equal else later >= now
    if wrong.any():
        first = np.argmax(wrong)
        raise ValueError(
            f"next_times must be {'at most' if equal else 'less than'} times, got "
            f"{later.flat[first]:g} for {now.flat[first]:g}"
        )


def _at(
    arrays: dict[str, Data],
    times: Level,
    next_times: Level,
    schedule: Callable,
    noisy_end: bool = False,
) -> tuple[list[Array], list[Array], list[Array]]:
    """The arrays, and (alpha, sigma) at both times with axes of size 1 appended."""
    names = ("alpha(times)", "sigma(times)", "alpha(next_times)", "sigma(next_times)")
    for name, values in (("times", times), ("next_times", next_times)):
        level(name, values)
    levels = dict(zip(names, (*schedule(times), *schedule(next_times))))
    arrays, levels = aligned(arrays, levels, above_zero=names if noisy_end else names[:3])
    return arrays, levels[:2], levels[2:]


def _log_ratio(alpha: Array, sigma: Array, next_alpha: Array, next_sigma: Array) -> Array:
    """log r: of logarithms, which no product of small levels can underflow; 0 for s = t."""
    return (jnp.log(alpha) - jnp.log(next_alpha)) + (jnp.log(next_sigma) - jnp.log(sigma))


def _step(*levels: Array) -> Array:
    """1 - r without cancellation; exactly 1 where the next sigma is 0."""
    return -jnp.expm1(_log_ratio(*levels))
