"""A variational autoencoder of small images."""

from __future__ import annotations

import math

import jax
from flax import linen as nn


class VariationalAutoencoder(nn.Module):
    """`z ~ N(mean(x), exp(log_variance(x)))`, `x = sigmoid(decoder(z))`: one hidden layer each way.

    Kingma and Welling 2014 (arXiv:1312.6114).

    Attributes:
      shape: of an image, `(H, W, C)`, values in [0, 1].
      latent: L.
      hidden: width of the hidden layers.
    """

    shape: tuple[int, int, int]
    latent: int = 8
    hidden: int = 128

    def setup(self):
        self.encoder = nn.Dense(self.hidden)
        self.mean = nn.Dense(self.latent)
        self.log_variance = nn.Dense(self.latent)
        self.decoder = nn.Dense(self.hidden)
        self.pixels = nn.Dense(math.prod(self.shape))

    def __call__(self, x: jax.Array, noise: jax.Array) -> dict[str, jax.Array]:
        """`[B, H, W, C]`, noise `[B, L]` -> `{"logits": [B, H, W, C], "mean", "log_variance"}`.

        The logits are those of the pixels; mean and logarithm of the variance are `[B, L]`.
        """
        mean, log_variance = self.encode(x)
        z = mean + jax.numpy.exp(log_variance / 2) * noise
        return {"logits": self._logits(z), "mean": mean, "log_variance": log_variance}

    def encode(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """`[B, H, W, C]` -> mean and logarithm of the variance, `[B, L]` each."""
        h = nn.relu(self.encoder(x.reshape(x.shape[0], -1)))
        return self.mean(h), self.log_variance(h)

    def decode(self, z: jax.Array) -> jax.Array:
        """`[B, L]` -> images `[B, H, W, C]` in (0, 1)."""
        return nn.sigmoid(self._logits(z))

    def _logits(self, z: jax.Array) -> jax.Array:
        h = nn.relu(self.decoder(z))
        return self.pixels(h).reshape(z.shape[0], *self.shape)
