"""A small convolutional network whose answer hardly depends on where an object is."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn


class ConvNet(nn.Module):
    """`h_i = relu(conv3x3(h_{i-1}))`, `features = max_places h_n`, `logits = W features + b`.

    Attributes:
      num_classes: C.
      widths: channels of the convolutions, all of stride 1.
    """

    num_classes: int
    widths: tuple[int, ...] = (24, 48)

    @nn.compact
    def __call__(self, x: jax.Array) -> dict[str, jax.Array]:
        """`[B, H, W, channels]` -> `{"logits": [B, C], "features": [B, widths[-1]]}`."""
        for i, width in enumerate(self.widths):
            x = nn.relu(nn.Conv(width, (3, 3), name=f"conv{i}")(x))
        x = jnp.max(x, axis=(1, 2))
        return {"logits": nn.Dense(self.num_classes, name="head")(x), "features": x}
