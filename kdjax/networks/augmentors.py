"""Augmentors: networks that say how an example is to be changed, and what can be changed."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float


class Augmentor(nn.Module):
    """`u = tanh(W relu(V [x_1; ...; x_n; noise] + b) + start)`: the parameters of a change.

    W starts at zero, so that every change starts at tanh(start): with `start` 0 at the identity, of
    a change that is the identity where its parameters are 0.

    Attributes:
      num_parameters: P.
      hidden: width.
      start: where the parameters start, before tanh.
    """

    num_parameters: int
    hidden: int = 64
    start: float = 0.0

    @nn.compact
    def __call__(self, *inputs: jax.Array) -> jax.Array:
        """Inputs `[B, ...]`, the last of them the noise `[B, N]` -> `[B, P]` in (-1, 1)."""
        x = jnp.concatenate([x.reshape(x.shape[0], -1) for x in inputs], -1)
        x = nn.relu(nn.Dense(self.hidden, name="hidden")(x))
        last = nn.Dense(
            self.num_parameters,
            kernel_init=nn.initializers.zeros,
            bias_init=nn.initializers.constant(self.start),
            name="last",
        )
        return jnp.tanh(last(x))


def mix_images(
    image: Float[Array, "batch height width channels"],
    partner: Float[Array, "batch height width channels"],
    parameters: Float[Array, "batch cells"],
    mask_size: int,
) -> Float[Array, "batch height width channels"]:
    """Two images mixed by a mask: `m image + (1 - m) partner`.

    Args:
      image, partner: floats [B, H, W, C]. Differentiated.
      parameters: floats [B, mask_size^2] in [-1, 1]; the mask is (1 + parameters) / 2 on a grid of
        so many cells, made as large as the image bilinearly. Differentiated.
      mask_size: H' = W'.

    Returns:
      [B, H, W, C], between the two images in every pixel.

    Raises:
      ValueError: shapes that do not fit.

    >>> image, partner = jnp.ones((1, 4, 4, 1)), jnp.zeros((1, 4, 4, 1))
    >>> mix_images(image, partner, jnp.full((1, 4), 0.5), 2)[0, 0, 0, 0].item()
    0.75
    """
    if image.shape != partner.shape:
        raise ValueError(
            f"image and partner must have one shape, got {image.shape} and {partner.shape}"
        )
    if parameters.shape != (image.shape[0], mask_size**2):
        raise ValueError(
            f"parameters must be shaped {[image.shape[0], mask_size**2]}, got {parameters.shape}"
        )
    coarse = parameters.reshape(-1, mask_size, mask_size, 1)
    mask = (1 + jax.image.resize(coarse, (*image.shape[:3], 1), "bilinear")) / 2
    return mask * image + (1 - mask) * partner
