"""Affine transformations of images with gradients in the transformation.

A grid says where in the input each output pixel looks, in coordinates in which the image reaches
from -1 to 1: pixel j of W has its centre at x_j = (2 j + 1) / W - 1. (That is PyTorch's
`align_corners=False`.) Outside the image there are zeros.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates
from jaxtyping import Array, Float


def affine_grid(
    theta: Float[Array, "batch 2 3"], height: int, width: int
) -> Float[Array, "batch height width 2"]:
    """Where each output pixel looks: `(x, y) = theta (x', y', 1)`, x' and y' its own centre.

    Args:
      theta: floats [B, 2, 3]. Differentiated.
      height, width: of the output, >= 1.

    Returns:
      [B, H, W, 2], x before y; the image is [-1, 1] x [-1, 1].

    Raises:
      ValueError: theta of another shape, an empty output.

    Source: Jaderberg et al. 2015 (Spatial Transformer Networks), arXiv:1506.02025, eq. 1.

    >>> identity = jnp.array([[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]])
    >>> affine_grid(identity, 1, 2)[0, 0].tolist()
    [[-0.5, 0.0], [0.5, 0.0]]
    """
    theta = jnp.asarray(theta, jnp.float32)
    if theta.ndim != 3 or theta.shape[1:] != (2, 3):
        raise ValueError(f"theta must be shaped [batch, 2, 3], got shape {theta.shape}")
    if height < 1 or width < 1:
        raise ValueError(f"height and width must be at least 1, got {height} and {width}")
    x = (2 * jnp.arange(width, dtype=jnp.float32) + 1) / width - 1
    y = (2 * jnp.arange(height, dtype=jnp.float32) + 1) / height - 1
    x, y = jnp.meshgrid(x, y)
    centres = jnp.stack([x, y, jnp.ones_like(x)], -1)
    return jnp.einsum("bij,hwj->bhwi", theta, centres, precision=jax.lax.Precision.HIGHEST)


def grid_sample_bilinear(
    image: Float[Array, "batch height width channels"], grid: Float[Array, "batch rows columns 2"]
) -> Float[Array, "batch rows columns channels"]:
    """The image at the places of a grid, interpolated between the four pixels around each.

    Args:
      image: floats [B, H, W, C]. Differentiated.
      grid: floats [B, H', W', 2], from `affine_grid`; what lies outside [-1, 1] sees zeros, and a
        border pixel fades into them. Differentiated; where a place is exactly a pixel's centre,
        the slope is that towards the next pixel.

    Returns:
      [B, H', W', C], within the range of the image and 0.

    Raises:
      ValueError: shapes that do not fit.

    Source: Jaderberg et al. 2015 (Spatial Transformer Networks), arXiv:1506.02025, eq. 5.

    >>> image = jnp.array([1.0, 3.0]).reshape(1, 1, 2, 1)
    >>> grid_sample_bilinear(image, jnp.array([0.0, 0.0]).reshape(1, 1, 1, 2)).item()
    2.0
    """
    image, grid = jnp.asarray(image), jnp.asarray(grid)
    if image.ndim != 4:
        raise ValueError(
            f"image must be shaped [batch, height, width, channels], got {image.shape}"
        )
    if grid.ndim != 4 or grid.shape[-1] != 2 or grid.shape[0] != image.shape[0]:
        raise ValueError(
            f"grid must be shaped [batch, rows, columns, 2] with batch = {image.shape[0]}, "
            f"got {grid.shape}"
        )
    height, width = image.shape[1:3]
    columns = ((grid[..., 0] + 1) * width - 1) / 2
    rows = ((grid[..., 1] + 1) * height - 1) / 2

    def one(plane, rows, columns):
        return map_coordinates(plane, [rows, columns], order=1, mode="constant", cval=0.0)

    channels = jax.vmap(one, in_axes=(-1, None, None), out_axes=-1)
    return jax.vmap(channels)(image, rows, columns)


FAMILIES = {"translation": 2, "rigid": 3, "affine": 6}


def affine_matrices(
    parameters: Float[Array, "batch parameters"],
    family: str,
    *,
    height: int,
    width: int,
    max_shift: float = 3.0,
    max_angle: float = 0.5,
    max_linear: float = 0.3,
) -> Float[Array, "batch 2 3"]:
    """The `theta` of `affine_grid` of parameters in [-1, 1]; all zero is the identity.

    | family | parameters | what they move |
    | --- | --- | --- |
    | `translation` | 2 | the image right and down, by at most `max_shift` pixels each |
    | `rigid` | 3 | that, then turn it clockwise by at most `max_angle` radians |
    | `affine` | 6 | that, and each entry of the linear part, by at most `max_linear` |

    Of `affine` the first two shift, the others are the entries [xx, xy, yx, yy]. Turns are about
    the image's centre and keep angles in pixels: an image that is not square is not sheared.

    Raises:
      ValueError: an unknown family, another number of parameters.

    >>> right = affine_matrices(jnp.array([[1.0, 0.0]]), "translation", height=8, width=8)
    >>> right[0].tolist()
    [[1.0, 0.0, -0.75], [0.0, 1.0, -0.0]]
    """
    if family not in FAMILIES:
        raise ValueError(f"family must be one of {sorted(FAMILIES)}, got {family!r}")
    if parameters.ndim != 2 or parameters.shape[1] != FAMILIES[family]:
        raise ValueError(
            f"{family} has {FAMILIES[family]} parameters: they must be shaped "
            f"[batch, {FAMILIES[family]}], got {parameters.shape}"
        )
    batch = parameters.shape[0]
    linear = jnp.broadcast_to(jnp.eye(2), (batch, 2, 2))
    if family == "rigid":
        cosine, sine = (f(max_angle * parameters[:, 2]) for f in (jnp.cos, jnp.sin))
        ratio = height / width
        rows = [jnp.stack([cosine, sine * ratio], -1), jnp.stack([-sine / ratio, cosine], -1)]
        linear = jnp.stack(rows, -2)
    elif family == "affine":
        linear = linear + max_linear * parameters[:, 2:].reshape(batch, 2, 2)
    # The grid says where to look: to move the image right, look to the left of it.
    look = -2 * max_shift * parameters[:, :2] / jnp.array([width, height], jnp.float32)
    return jnp.concatenate([linear, look[..., None]], -1)


def affine_transform(
    image: Float[Array, "batch height width channels"],
    parameters: Float[Array, "batch parameters"],
    family: str,
    **ranges: float,
) -> Float[Array, "batch height width channels"]:
    """The images moved by `affine_matrices`, of the same size.

    >>> image = jnp.arange(3.0).reshape(1, 1, 3, 1) + 1
    >>> moved = affine_transform(image, jnp.array([[1.0, 0.0]]), "translation", max_shift=1.0)
    >>> print(jnp.round(moved[0, 0, :, 0], 4))
    [0. 1. 2.]
    """
    height, width = image.shape[1:3]
    theta = affine_matrices(parameters, family, height=height, width=width, **ranges)
    return grid_sample_bilinear(image, affine_grid(theta, height, width))
