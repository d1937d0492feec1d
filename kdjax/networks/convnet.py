"""A plain convolutional network."""

from __future__ import annotations

import jax
from flax import linen as nn


class ConvBlock(nn.Module):
    """`relu(conv3x3(x))`, with bias and without normalisation."""

    width: int
    stride: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[B, H, W, C] -> [B, ceil(H / stride), ceil(W / stride), width]`."""
        return nn.relu(nn.Conv(self.width, (3, 3), strides=self.stride, padding=1, name="conv")(x))


class ConvNet(nn.Module):
    """Blocks `block0`, `block1`, ... of a 3x3 convolution and a ReLU, mean pooling, a linear head.

    Attributes:
      num_classes: C.
      widths: of the convolutions.
      strides: of the convolutions, as many.

    Raises:
      ValueError: numbers of widths and strides that differ.
    """

    num_classes: int
    widths: tuple[int, ...] = (32, 64, 64)
    strides: tuple[int, ...] = (1, 2, 1)

    def __post_init__(self):
        super().__post_init__()
        if not self.widths or len(self.widths) != len(self.strides):
            raise ValueError(
                f"widths and strides must be of the same convolutions, at least one, "
                f"got {self.widths} and {self.strides}"
            )

    @nn.compact
    def __call__(self, x: jax.Array) -> dict[str, jax.Array]:
        """`[B, H, W, channels] -> {"logits": [B, C], "features": [B, widths[-1]]}`."""
        for i, (width, stride) in enumerate(zip(self.widths, self.strides)):
            x = ConvBlock(width, stride, name=f"block{i}")(x)
        x = x.mean((1, 2))
        return {"logits": nn.Dense(self.num_classes, name="head")(x), "features": x}
