"""Distilling a diffusion model into few steps: regression, progressive, consistency.

Data are [batch, ...] of any rank, times and noise levels [batch]; a loss is [batch], the mean over
the other axes, so that the caller's mean is the published loss. Networks enter as predictions
already computed, or as pure functions (noisy, time) -> prediction of the data. Where a loss needs
a target, no gradient reaches it.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from kdjax.losses import checks
from kdjax.losses.checks import Scalar
from kdjax.losses.diffusion import add_noise
from kdjax.losses.diffusion_steps import ddim_inverse, ddim_step, heun_step
from kdjax.losses.noise_schedules import Level, cosine_schedule

Batch = Float[Array | np.ndarray, "batch ..."]
Levels = Float[Array | np.ndarray, " batch"]
Weight = Scalar | Float[Array | np.ndarray, " batch"]
Mask = Bool[Array | np.ndarray, "batch ..."]
Losses = Float[Array, " batch"]
Denoiser = Callable[[Array, Array], Array]
Schedule = Callable[[Level], tuple[Array, Array]]


def target_regression(
    student_prediction: Batch,
    teacher_target: Batch,
    *,
    weight: Weight = 1.0,
    where: Mask | None = None,
) -> Losses:
    """The weighted squared error to a target that is held fixed.

        L = w mean_d (s_d - y_d)^2

    With other targets it is the loss of a denoiser or critic (the noise, the data, a velocity),
    of progressive distillation (`progressive_target`), of the regression to the ends of stored
    trajectories, and of bootstrapping (a target made from the student's own prediction).

    The mean is over the entries in `where`. Code that divides by the number of unmasked entries
    of the whole batch (LiveTalk) weighs the examples by their numbers.

    Args:
      student_prediction: floats [batch, ...]. Differentiated.
      teacher_target: floats of the same shape. Stopped, whoever made it.
      weight: scalar or floats [batch], may be traced; see `loss_weight`.
      where: booleans of the same shape; False entries take no part. 0 for an example without any.

    Returns:
      [batch], >= 0 for weights >= 0.

    Raises:
      ValueError: shapes that do not fit. TypeError: arrays that are not floats, where that is not
      boolean.

    Source: Ho et al. 2020, arXiv:2006.11239, equation 14; Salimans & Ho 2022, arXiv:2202.00512.

    >>> import jax.numpy as jnp
    >>> print(target_regression(jnp.array([[1.0, 2.0]]), jnp.array([[0.0, 4.0]])))
    [2.5]
    """
    student, target, where = masked(
        where, student_prediction=student_prediction, teacher_target=teacher_target
    )
    return example_weight(weight, student) * example_mean(
        (student - jax.lax.stop_gradient(target)) ** 2, where
    )


def progressive_target(
    noisy: Batch,
    times: Levels,
    middle_times: Levels,
    end_times: Levels,
    *,
    teacher: Denoiser,
    schedule: Schedule = cosine_schedule,
) -> Batch:
    """The prediction of the data with which one step does what the teacher does in two.

        z'  = ddim(z,  f(z, t),    t  -> t')
        z'' = ddim(z', f(z', t'),  t' -> t'')
        x   = (z'' - (sigma''/sigma) z) / (alpha'' - (sigma''/sigma) alpha)

    The loss is `target_regression` of the student's prediction at (z, t), with the weight
    max(SNR, 1). In N student steps t is one of 1/N, 2/N, ..., 1, t' = t - 1/(2N), t'' = t - 1/N;
    then the student becomes the teacher and N is halved. For EDM the times are sigmas and the
    schedule is `exploding_schedule`.

    Args:
      noisy: floats [batch, ...], z. Stopped.
      times: floats [batch]. Stopped.
      middle_times: floats [batch], between the two. Stopped.
      end_times: floats [batch], less than times. Stopped.
      teacher: (noisy, times) -> prediction of the data. Stopped.
      schedule: times -> (alpha, sigma).

    Returns:
      Floats of the shape of noisy, with no gradient.

    Raises:
      ValueError: shapes that do not fit, known times at which sigma is 0.
      TypeError: arrays that are not floats.

    Source: Salimans & Ho 2022, arXiv:2202.00512, algorithm 2.

    >>> import jax.numpy as jnp
    >>> noisy, times = jnp.array([[2.0]]), jnp.array([0.5])
    >>> teacher = lambda noisy, times: jnp.ones_like(noisy)
    >>> target = progressive_target(noisy, times, times - 0.1, times - 0.2, teacher=teacher)
    >>> print(f"{target[0, 0]:.4f}")
    1.0000
    """
    (noisy,), (times, middle_times, end_times) = _batch(
        dict(noisy=noisy), dict(times=times, middle_times=middle_times, end_times=end_times)
    )
    start, middle, end = map(schedule, (times, middle_times, end_times))
    halfway = ddim_step(noisy, teacher(noisy, times), *start, *middle)
    arrived = ddim_step(halfway, teacher(halfway, middle_times), *middle, *end)
    return jax.lax.stop_gradient(ddim_inverse(noisy, arrived, *start, *end))


def consistency_distillation(
    noisy: Batch,
    sigma: Levels,
    next_sigma: Levels,
    *,
    student: Denoiser,
    target: Denoiser,
    teacher: Denoiser,
    weight: Weight = 1.0,
    distance: Callable[[Array, Array], Array] | None = None,
) -> Losses:
    """Consistency distillation: one data point for both ends of a step of the teacher.

        L = w d( f(z, sigma), stop f_ema(z^, sigma') ),   z^ = heun(z, sigma -> sigma'; teacher)

    with sigma' the next, smaller level of `karras_sigmas`. f and f_ema keep sigma_min fixed (see
    `karras_scalings`), and share their dropout. Of N levels the first N - 1 are drawn uniformly.

    Args:
      noisy: floats [batch, ...], data plus sigma times noise. Differentiated, through f only.
      sigma: floats [batch] > 0. Differentiated, through f only.
      next_sigma: floats [batch] >= 0, less than sigma. Stopped.
      student: f, (noisy, sigma) -> prediction of the data. Differentiated.
      target: f with averaged parameters. Stopped.
      teacher: (noisy, sigma) -> prediction of the data of the diffusion model. Stopped.
      weight: scalar or floats [batch], may be traced.
      distance: (prediction, target) -> [batch]; None is the mean squared error.

    Returns:
      [batch].

    Raises:
      ValueError: shapes that do not fit, a known sigma <= 0. TypeError: arrays that are not floats.

    Source: Song et al. 2023, arXiv:2303.01469, algorithm 2.

    >>> import jax.numpy as jnp
    >>> denoiser = lambda noisy, sigma: noisy / (1 + sigma[:, None] ** 2)
    >>> noisy, sigma = jnp.array([[2.0]]), jnp.array([1.0])
    >>> networks = dict(student=denoiser, target=denoiser, teacher=denoiser)
    >>> print(f"{consistency_distillation(noisy, sigma, sigma / 2, **networks)[0]:.4f}")
    0.0784
    """
    (noisy,), (sigma, next_sigma) = _batch(
        dict(noisy=noisy), dict(sigma=sigma, next_sigma=next_sigma)
    )
    moved = heun_step(noisy, sigma, next_sigma, denoiser=teacher)
    return _consistency(student(noisy, sigma), target(moved, next_sigma), weight, distance)


def consistency_training(
    clean: Batch,
    noise: Batch,
    sigma: Levels,
    next_sigma: Levels,
    *,
    student: Denoiser,
    target: Denoiser,
    weight: Weight = 1.0,
    distance: Callable[[Array, Array], Array] | None = None,
) -> Losses:
    """Consistency training: `consistency_distillation` without a teacher.

        L = w d( f(x + sigma eps, sigma), stop f_ema(x + sigma' eps, sigma') )

    The data itself stands for the teacher's prediction, with which Euler's step and Heun's agree.

    Args:
      clean: floats [batch, ...]. Differentiated, through f only.
      noise: floats of the shape of clean. Differentiated, through f only.
      sigma: floats [batch] >= 0. Differentiated, through f only.
      next_sigma: floats [batch] >= 0, less than sigma. Stopped.
      student: f, (noisy, sigma) -> prediction of the data. Differentiated.
      target: f with averaged parameters. Stopped.
      weight: scalar or floats [batch], may be traced.
      distance: (prediction, target) -> [batch]; None is the mean squared error.

    Returns:
      [batch].

    Raises:
      ValueError: shapes that do not fit. TypeError: arrays that are not floats.

    Source: Song et al. 2023, arXiv:2303.01469, algorithm 3.

    >>> import jax.numpy as jnp
    >>> denoiser = lambda noisy, sigma: noisy / (1 + sigma[:, None] ** 2)
    >>> clean, noise, sigma = jnp.array([[1.0]]), jnp.array([[1.0]]), jnp.array([1.0])
    >>> networks = dict(student=denoiser, target=denoiser)
    >>> print(f"{consistency_training(clean, noise, sigma, sigma / 2, **networks)[0]:.4f}")
    0.0400
    """
    (clean, noise), (sigma, next_sigma) = _batch(
        dict(clean=clean, noise=noise), dict(sigma=sigma, next_sigma=next_sigma)
    )
    alpha = jnp.ones_like(sigma)
    noisy, moved = (add_noise(clean, noise, alpha, level) for level in (sigma, next_sigma))
    return _consistency(student(noisy, sigma), target(moved, next_sigma), weight, distance)


def consistency_schedule(
    step: int | Int[Array | np.ndarray, ""],
    *,
    total_steps: int,
    start_levels: int = 2,
    end_levels: int = 150,
    start_decay: float = 0.95,
) -> tuple[Int[Array, ""], Float[Array, ""]]:
    """How many noise levels consistency training has at a step, and how slow its average is.

        n = ceil( sqrt( k/K ((s1 + 1)^2 - s0^2) + s0^2 ) - 1 ),   N = n + 1,   mu = mu0^(s0 / n)

    The first of the N levels is `karras_sigmas` at 0, the last at 1. In the paper mu has N in the
    place of n; this is the authors' code.

    Args:
      step: integer k from 0 to total_steps, may be traced.
      total_steps: integer K >= 1.
      start_levels: integer s0 >= 2.
      end_levels: integer s1 >= start_levels.
      start_decay: number mu0 in (0, 1].

    Returns:
      (N, an integer >= 2; the decay mu of the average of the parameters).

    Raises:
      ValueError: values out of range. TypeError: counts that are not integers.

    Source: Song et al. 2023, arXiv:2303.01469, appendix C.

    >>> levels, decay = consistency_schedule(0, total_steps=1000)
    >>> print(levels, f"{decay:.4f}")
    2 0.9025
    """
    checks.count(1, total_steps=total_steps)
    checks.count(2, start_levels=start_levels)
    checks.count(start_levels, end_levels=end_levels)
    checks.fraction(start_decay=start_decay)
    checks.positive(start_decay=start_decay)
    step = checks.integers("step", step, (), "a scalar")
    progress = step / total_steps
    square = progress * ((end_levels + 1) ** 2 - start_levels**2) + start_levels**2
    intervals = jnp.maximum(jnp.ceil(jnp.sqrt(square) - 1), 1.0)
    decay = jnp.exp(start_levels * math.log(start_decay) / intervals)
    return intervals.astype(jnp.int32) + 1, decay


def _consistency(prediction: Array, target: Array, weight: Weight, distance) -> Losses:
    target = jax.lax.stop_gradient(target)
    if distance is None:
        return target_regression(prediction, target, weight=weight)
    return example_weight(weight, prediction) * distance(prediction, target)


def _batch(arrays: dict, levels: dict) -> tuple[list[Array], list[Array]]:
    """The arrays of one shape [batch, ...] and the levels [batch], in one dtype."""
    arrays = dict(zip(arrays, checks.shaped(dict.fromkeys(arrays, "..."), **arrays)))
    first, data = next(iter(arrays.items()))
    if data.ndim < 1:
        raise ValueError(f"{first} must be shaped [batch, ...], got shape {data.shape}")
    sizes = {"batch": (data.shape[0], first)}
    for name, values in levels.items():
        checks.axis_shapes(name, jnp.asarray(values), "batch", sizes)
    levels = checks.shaped(dict.fromkeys(levels, "batch"), **levels)
    dtype = jnp.result_type(data, *levels)
    return [x.astype(dtype) for x in arrays.values()], [x.astype(dtype) for x in levels]


def masked(where: Mask | None, **arrays: Batch) -> tuple[Array | None, ...]:
    """The arrays of one shape [batch, ...], 0 where masked, and the mask."""
    data, _ = _batch(arrays, {})
    if where is None:
        return *data, None
    where = checks.boolean("where", where, data[0].shape, "the data")
    return *(jnp.where(where, array, 0.0) for array in data), where


def example_mean(values: Array, where: Array | None) -> Array:
    """The mean of each example over its entries in `where`, 0 if there are none."""
    axes = tuple(range(1, values.ndim))
    if where is None:
        return jnp.mean(values, axis=axes)
    count = jnp.maximum(jnp.sum(where, axis=axes), 1)
    return jnp.sum(jnp.where(where, values, 0.0), axis=axes) / count


def example_weight(weight: Weight, data: Array) -> Array:
    weight = jnp.asarray(weight, data.dtype)
    if weight.shape not in ((), data.shape[:1]):
        raise ValueError(
            f"weight must be a scalar or shaped [batch] = {data.shape[:1]}, got {weight.shape}"
        )
    return weight
