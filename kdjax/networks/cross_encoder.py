"""A cross-encoder of images and texts: a network that sees both and says how well they match."""

from __future__ import annotations

import jax
from flax import linen as nn


class CrossEncoder(nn.Module):
    """`score_ij = MLP([a_i, b_j, a_i * b_j])`, with a the features of image i, b those of text j.

    It scores every image with every text, and has no embedding that could be indexed. The fusion
    is late, so that I + T towers and I T small MLPs are run, not I T towers.

    Attributes:
      image: a module whose output has `features` `[I, D_i]`; its logits are not read.
      text: a module of (tokens, segments) whose output has `features` `[T, D_t]`.
      embedding: D, of a and b.
      hidden: width of the MLP.
    """

    image: nn.Module
    text: nn.Module
    embedding: int = 64
    hidden: int = 64

    @nn.compact
    def __call__(
        self,
        image: jax.Array,
        tokens: jax.Array,
        segments: jax.Array,
        train: bool = False,
    ) -> dict[str, jax.Array]:
        """`image` `[I, H, W, C]`, `tokens` and `segments` int `[T, L]` -> `{"score": [I, T]}`,
        logits of a match."""
        tower = self.image.copy(parent=self, name="image_encoder")
        a = nn.Dense(self.embedding, name="image_projection")(tower(image, train=train)["features"])
        tower = self.text.copy(parent=self, name="text_encoder")
        features = tower(tokens, segments, train=train)["features"]
        b = nn.Dense(self.embedding, name="text_projection")(features)
        # The first layer in three parts: those of a and of b alone do not depend on the pair.
        joint = nn.Dense(self.hidden, name="joint")(a[:, None] * b[None])
        alone = nn.Dense(self.hidden, use_bias=False, name="image_part")(a)[:, None]
        other = nn.Dense(self.hidden, use_bias=False, name="text_part")(b)[None]
        hidden = nn.gelu(joint + alone + other)
        return {"score": nn.Dense(1, name="score")(hidden)[..., 0]}
