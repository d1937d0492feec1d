"""A multi-layer perceptron."""

from __future__ import annotations

import jax
from flax import linen as nn


class MLP(nn.Module):
    """`features = h_n`, `h_i = dropout(relu(norm(W_i h_{i-1} + b_i)))`, `logits = W h_n + b`.

    Attributes:
      num_classes: C.
      widths: of the hidden layers.
      norm: batch normalisation before each ReLU.
      dropout: probability, after each ReLU.
      negative_slope: of the ReLU below zero; 0.01 is the usual leaky ReLU.
    """

    num_classes: int
    widths: tuple[int, ...] = (256, 256)
    norm: bool = False
    dropout: float = 0.0
    negative_slope: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> dict[str, jax.Array]:
        """`[B, ...]`, flattened -> `{"logits": [B, C], "features": [B, widths[-1]]}`."""
        x = x.reshape(x.shape[0], -1)
        for i, width in enumerate(self.widths):
            x = nn.Dense(width, name=f"dense{i}")(x)
            if self.norm:
                x = nn.BatchNorm(not train, momentum=0.9, name=f"norm{i}")(x)
            x = nn.leaky_relu(x, self.negative_slope) if self.negative_slope else nn.relu(x)
            if self.dropout:
                x = nn.Dropout(self.dropout, deterministic=not train, name=f"dropout{i}")(x)
        return {"logits": nn.Dense(self.num_classes, name="head")(x), "features": x}
