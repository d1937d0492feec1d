"""Diffusion: what a network may predict of noisy data, and each prediction from another.

    z = alpha x + sigma eps        noisy = alpha clean + sigma noise

Everything takes the levels (alpha, sigma) of a schedule in kdjax/losses/noise_schedules.py, and so
holds for all of them. Levels have the leading axes of the arrays they belong to: a scalar,
[batch], or [batch, frames] for [batch, frames, height, width, channels]. Nothing here is stopped.
"""

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from kdjax.losses import checks
from kdjax.losses.noise_schedules import Level, level

Data = Float[Array | np.ndarray, "..."]


def add_noise(clean: Data, noise: Data, alpha: Level, sigma: Level) -> Data:
    """Data with noise: a draw from q(z | x).

        z = alpha x + sigma eps

    Also the state of a signal (`clean_from_noise`) in BOOT, and the fresh noise between the steps
    of a few-step generator: alpha = 1 - s', sigma = s' in a flow; for a consistency model alpha = 1
    and sigma = sqrt(s'^2 - sigma_min^2).

    Args:
      clean: floats [batch, ...]. Differentiated.
      noise: floats of the shape of clean. Differentiated.
      alpha: floats, the leading axes of clean. Differentiated.
      sigma: floats, the leading axes of clean. Differentiated.

    Returns:
      Floats of the shape of clean.

    Raises:
      ValueError: shapes that do not fit. TypeError: arrays that are not floats.

    Source: Ho et al. 2020, arXiv:2006.11239, equation 4.

    >>> import jax.numpy as jnp
    >>> print(add_noise(jnp.array([1.0]), jnp.array([2.0]), 0.75, 0.25))
    [1.25]
    """
    (clean, noise), (alpha, sigma) = aligned(
        dict(clean=clean, noise=noise), dict(alpha=alpha, sigma=sigma)
    )
    return alpha * clean + sigma * noise


def clean_from_noise(noisy: Data, noise: Data, alpha: Level, sigma: Level) -> Data:
    """The data that a prediction of the noise means.

        x = (z - sigma eps) / alpha

    With the first noise of a trajectory in place of a prediction it is BOOT's signal y_t.

    Args:
      noisy: floats [batch, ...], z. Differentiated.
      noise: floats of the shape of noisy. Differentiated.
      alpha: floats > 0, the leading axes of noisy. Differentiated.
      sigma: floats, the leading axes of noisy. Differentiated.

    Returns:
      Floats of the shape of noisy.

    Raises:
      ValueError: shapes that do not fit, a known alpha <= 0 (pure noise tells of no data).
      TypeError: arrays that are not floats.

    Source: Ho et al. 2020, arXiv:2006.11239.

    >>> import jax.numpy as jnp
    >>> print(clean_from_noise(jnp.array([1.25]), jnp.array([2.0]), 0.75, 0.25))
    [1.]
    """
    (noisy, noise), (alpha, sigma) = aligned(
        dict(noisy=noisy, noise=noise), dict(alpha=alpha, sigma=sigma), above_zero=("alpha",)
    )
    return (noisy - sigma * noise) / alpha


def noise_from_clean(noisy: Data, clean: Data, alpha: Level, sigma: Level) -> Data:
    """The noise that a prediction of the data means.

        eps = (z - alpha x) / sigma

    Args:
      noisy: floats [batch, ...], z. Differentiated.
      clean: floats of the shape of noisy. Differentiated.
      alpha: floats, the leading axes of noisy. Differentiated.
      sigma: floats > 0, the leading axes of noisy. Differentiated.

    Returns:
      Floats of the shape of noisy.

    Raises:
      ValueError: shapes that do not fit, a known sigma <= 0 (data tell of no noise).
      TypeError: arrays that are not floats.

    Source: Ho et al. 2020, arXiv:2006.11239.

    >>> import jax.numpy as jnp
    >>> print(noise_from_clean(jnp.array([1.25]), jnp.array([1.0]), 0.75, 0.25))
    [2.]
    """
    (noisy, clean), (alpha, sigma) = aligned(
        dict(noisy=noisy, clean=clean), dict(alpha=alpha, sigma=sigma), above_zero=("sigma",)
    )
    return (noisy - alpha * clean) / sigma


def velocity(clean: Data, noise: Data, alpha: Level, sigma: Level) -> Data:
    """The velocity v of variance preserving diffusion.

        v = alpha eps - sigma x,    dz/dt = pi/2 v  in the cosine schedule

    The velocity of a flow is another one, `flow_velocity`.

    Args:
      clean: floats [batch, ...]. Differentiated.
      noise: floats of the shape of clean. Differentiated.
      alpha: floats, the leading axes of clean. Differentiated.
      sigma: floats, the leading axes of clean. Differentiated.

    Returns:
      Floats of the shape of clean.

    Raises:
      ValueError: shapes that do not fit. TypeError: arrays that are not floats.

    Source: Salimans & Ho 2022, arXiv:2202.00512, section 4.

    >>> import jax.numpy as jnp
    >>> print(velocity(jnp.array([1.0]), jnp.array([2.0]), 0.8, 0.6))
    [1.]
    """
    (clean, noise), (alpha, sigma) = aligned(
        dict(clean=clean, noise=noise), dict(alpha=alpha, sigma=sigma)
    )
    return alpha * noise - sigma * clean


def clean_from_velocity(noisy: Data, velocity: Data, alpha: Level, sigma: Level) -> Data:
    """The data that a prediction of `velocity` means.

        x = (alpha z - sigma v) / (alpha^2 + sigma^2)

    Args:
      noisy: floats [batch, ...], z. Differentiated.
      velocity: floats of the shape of noisy, v. Differentiated.
      alpha: floats, the leading axes of noisy; not 0 where sigma is. Differentiated.
      sigma: floats, the leading axes of noisy. Differentiated.

    Returns:
      Floats of the shape of noisy.

    Raises:
      ValueError: shapes that do not fit. TypeError: arrays that are not floats.

    Source: Salimans & Ho 2022, arXiv:2202.00512, section 4.

    >>> import jax.numpy as jnp
    >>> print(clean_from_velocity(jnp.array([2.0]), jnp.array([1.0]), 0.8, 0.6))
    [1.]
    """
    (noisy, velocity), (alpha, sigma) = aligned(
        dict(noisy=noisy, velocity=velocity), dict(alpha=alpha, sigma=sigma)
    )
    return (alpha * noisy - sigma * velocity) / (alpha**2 + sigma**2)


def noise_from_velocity(noisy: Data, velocity: Data, alpha: Level, sigma: Level) -> Data:
    """The noise that a prediction of `velocity` means.

        eps = (sigma z + alpha v) / (alpha^2 + sigma^2)

    Args:
      noisy: floats [batch, ...], z. Differentiated.
      velocity: floats of the shape of noisy, v. Differentiated.
      alpha: floats, the leading axes of noisy; not 0 where sigma is. Differentiated.
      sigma: floats, the leading axes of noisy. Differentiated.

    Returns:
      Floats of the shape of noisy.

    Raises:
      ValueError: shapes that do not fit. TypeError: arrays that are not floats.

    Source: Salimans & Ho 2022, arXiv:2202.00512, section 4.

    >>> import jax.numpy as jnp
    >>> print(noise_from_velocity(jnp.array([2.0]), jnp.array([1.0]), 0.8, 0.6))
    [2.]
    """
    (noisy, velocity), (alpha, sigma) = aligned(
        dict(noisy=noisy, velocity=velocity), dict(alpha=alpha, sigma=sigma)
    )
    return (sigma * noisy + alpha * velocity) / (alpha**2 + sigma**2)


def flow_velocity(clean: Data, noise: Data) -> Data:
    """The velocity of a flow from data to noise, the same at every time.

        v = eps - x = dz/dt   in the flow schedule

    Code whose flow runs from noise at 0 to data at 1 has the other sign.

    Args:
      clean: floats [batch, ...]. Differentiated.
      noise: floats of the shape of clean. Differentiated.

    Returns:
      Floats of the shape of clean.

    Raises:
      ValueError: shapes that differ. TypeError: arrays that are not floats.

    Source: Liu et al. 2022, arXiv:2209.03003; Lipman et al. 2022, arXiv:2210.02747.

    >>> import jax.numpy as jnp
    >>> print(flow_velocity(jnp.array([1.0]), jnp.array([3.0])))
    [2.]
    """
    (clean, noise), _ = aligned(dict(clean=clean, noise=noise), {})
    return noise - clean


def clean_from_flow(noisy: Data, velocity: Data, alpha: Level, sigma: Level) -> Data:
    """The data that a prediction of `flow_velocity` means.

        x = (z - sigma v) / (alpha + sigma)

    In the flow schedule alpha + sigma is 1. The noise is x + v.

    Args:
      noisy: floats [batch, ...], z. Differentiated.
      velocity: floats of the shape of noisy, v = eps - x. Differentiated.
      alpha: floats, the leading axes of noisy; not 0 where sigma is. Differentiated.
      sigma: floats, the leading axes of noisy. Differentiated.

    Returns:
      Floats of the shape of noisy.

    Raises:
      ValueError: shapes that do not fit. TypeError: arrays that are not floats.

    Source: Liu et al. 2022, arXiv:2209.03003; Lipman et al. 2022, arXiv:2210.02747.

    >>> import jax.numpy as jnp
    >>> print(clean_from_flow(jnp.array([1.5]), jnp.array([2.0]), 0.75, 0.25))
    [1.]
    """
    (noisy, velocity), (alpha, sigma) = aligned(
        dict(noisy=noisy, velocity=velocity), dict(alpha=alpha, sigma=sigma)
    )
    return (noisy - sigma * velocity) / (alpha + sigma)


def aligned(
    arrays: dict[str, ArrayLike], levels: dict[str, ArrayLike], *, above_zero: tuple[str, ...] = ()
) -> tuple[list[Array], list[Array]]:
    """(arrays, levels) in one dtype of at least float32, levels with axes of size 1 appended.

    The arrays must have one shape, and the levels its leading axes; a level in `above_zero` must
    be > 0 where its values are known.
    """
    arrays = dict(zip(arrays, checks.shaped(dict.fromkeys(arrays, "..."), **arrays)))
    first, data = next(iter(arrays.items()))
    aligned_levels = []
    for name, values in levels.items():
        values = level(name, values, above_zero=name in above_zero, signed=True)
        if values.shape != data.shape[: values.ndim]:
            raise ValueError(
                f"{name} must have the leading axes of {first}, got shape {values.shape} for "
                f"{data.shape}"
            )
        aligned_levels.append(values)
    dtype = jnp.result_type(data, *aligned_levels)
    return (
        [array.astype(dtype) for array in arrays.values()],
        [
            values.astype(dtype).reshape(values.shape + (1,) * (data.ndim - values.ndim))
            for values in aligned_levels
        ],
    )
