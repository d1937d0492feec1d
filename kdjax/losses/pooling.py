"""Feature maps in another size, or two of them in one.

Maps are channels-last, [batch, height, width, channels]; neither side need be square. Values in
float32, or float64 for float64. Nothing is stopped.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from kdjax.losses import checks

Maps = Float[Array | np.ndarray, "batch height width channels"]

MAPS = "batch height width channels"


def adaptive_average_pool(
    features: Maps, size: tuple[int, int]
) -> Float[Array, "batch pooled_height pooled_width channels"]:
    """Average pooling to a given size, whatever the size that comes in.

        out_i = mean of in_j over floor(i n / m) <= j < ceil((i + 1) n / m),   n -> m positions

    along the height and along the width. Windows are equal, and disjoint, where m divides n;
    otherwise they overlap, and for m > n positions are repeated. This is PyTorch's
    `adaptive_avg_pool2d`.

    Args:
      features: floats [batch, height, width, channels]. Differentiated.
      size: (height, width) of the result, integers >= 1.

    Returns:
      [batch, *size, channels].

    Raises:
      ValueError: another rank, a size < 1. TypeError: features that are not floats.

    Source: PyTorch's `AdaptiveAvgPool2d`.

    >>> import jax.numpy as jnp
    >>> features = jnp.array([1.0, 2.0, 3.0]).reshape(1, 1, 3, 1)
    >>> adaptive_average_pool(features, (1, 2)).ravel().tolist()
    [1.5, 2.5]
    """
    (features,) = checks.shaped({"features": MAPS}, features=features)
    height, width = size
    checks.count(1, height=height, width=width)
    for axis, length in ((1, height), (2, width)):
        if features.shape[axis] != length:
            windows = jnp.asarray(_windows(features.shape[axis], length), features.dtype)
            pooled = jnp.tensordot(
                features, windows, axes=(axis, 1), precision=jax.lax.Precision.HIGHEST
            )
            features = jnp.moveaxis(pooled, -1, axis)
    return features


def match_spatial(
    first: Float[Array | np.ndarray, "batch first_height first_width first_channels"],
    second: Float[Array | np.ndarray, "batch second_height second_width second_channels"],
) -> tuple[
    Float[Array, "batch height width first_channels"],
    Float[Array, "batch height width second_channels"],
]:
    """Two maps in one size: the larger is average-pooled to the smaller.

    Heights and widths are matched each for itself, by `adaptive_average_pool`; the published
    codes, which know square maps only, look at the heights. Stops nothing.

    Args:
      first: floats [batch, height, width, channels]. Differentiated.
      second: floats [batch, height, width, channels], of any size and width. Differentiated.

    Returns:
      Both, [batch, min of the heights, min of the widths, their own channels].

    Raises:
      ValueError: another rank, batches that differ. TypeError: arrays that are not floats.

    Source: Tian et al. 2020 (the benchmark's feature losses), arXiv:1910.10699.

    >>> import jax.numpy as jnp
    >>> first, second = match_spatial(jnp.ones((2, 8, 4, 3)), jnp.ones((2, 4, 4, 5)))
    >>> first.shape, second.shape
    ((2, 4, 4, 3), (2, 4, 4, 5))
    """
    first, second = checks.shaped(
        {
            "first": "batch first_height first_width first_channels",
            "second": "batch second_height second_width second_channels",
        },
        first=first,
        second=second,
    )
    size = tuple(min(a, b) for a, b in zip(first.shape[1:3], second.shape[1:3]))
    return adaptive_average_pool(first, size), adaptive_average_pool(second, size)


def _windows(length: int, pooled: int) -> np.ndarray:
    """[pooled, length]: the weight of each position in each window."""
    at, window = np.arange(length), np.arange(pooled)[:, None]
    inside = (at >= window * length // pooled) & (at < -(-(window + 1) * length // pooled))
    return inside / np.sum(inside, axis=1, keepdims=True)
