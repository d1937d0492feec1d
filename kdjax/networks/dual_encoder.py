"""A dual encoder of images and texts: two towers that meet in one space of unit vectors.

CLIP (Radford et al. 2021, arXiv:2103.00020), with a small text tower that reads whole captions.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

from kdjax.networks.vit import EncoderBlock

_EPSILON = 1e-6  # of layer normalisation
_SMALLEST = 1e-12  # of a squared norm
LARGEST_SCALE = 100.0  # as in CLIP


class TextEncoder(nn.Module):
    """Token and position embeddings, pre-norm encoder blocks, the mean over the tokens.

    Attributes:
      vocabulary: number of token ids.
      width: D; must be a multiple of `heads`.
      depth: number of blocks `block0`, `block1`, ...
      heads: of attention.
      mlp_ratio: hidden width of a block's MLP over D.
      dropout: probability, in attention and after each branch.
      max_length: the longest text, in tokens.
    """

    vocabulary: int
    width: int = 64
    depth: int = 2
    heads: int = 4
    mlp_ratio: int = 2
    dropout: float = 0.0
    max_length: int = 128

    def __post_init__(self):
        super().__post_init__()
        if self.width % self.heads:
            raise ValueError(f"width={self.width} must be a multiple of heads={self.heads}")

    @nn.compact
    def __call__(
        self, tokens: jax.Array, segments: jax.Array, train: bool = False
    ) -> dict[str, jax.Array]:
        """`tokens` int `[B, L]`, `segments` int `[B, L]` (0: padding, which nothing sees) ->
        `{"features": [B, width]}`."""
        length, where = tokens.shape[1], segments > 0
        if length > self.max_length:
            raise ValueError(f"texts of {length} tokens are longer than {self.max_length=}")
        x = nn.Embed(self.vocabulary, self.width, name="embedding")(tokens)
        shape = (1, self.max_length, self.width)
        x = x + self.param("positions", nn.initializers.normal(0.02), shape)[:, :length]
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        for i in range(self.depth):
            block = EncoderBlock(self.heads, self.mlp_ratio, self.dropout, name=f"block{i}")
            x = block(x, train, where)
        x = nn.LayerNorm(_EPSILON, name="norm")(x)
        count = jnp.maximum(where.sum(1, keepdims=True), 1)
        return {"features": jnp.where(where[..., None], x, 0.0).sum(1) / count}


class DualEncoder(nn.Module):
    """`image = unit(W_i f_i(x))`, `text = unit(W_t f_t(s))`, `scale = min(exp(a), 100)`.

    `scale` is 1 / temperature and is learned by its logarithm a.

    Attributes:
      image: a module whose output has `features` `[B, D_i]`; its logits are not read.
      text: a module of (tokens, segments) whose output has `features` `[B, D_t]`.
      embedding: D, of the common space.
      temperature: at the start, > 0.
    """

    image: nn.Module
    text: nn.Module
    embedding: int = 64
    temperature: float = 0.07

    def __post_init__(self):
        super().__post_init__()
        if not self.temperature > 0:
            raise ValueError(f"temperature must be positive, got {self.temperature}")

    @nn.compact
    def __call__(
        self,
        image: jax.Array | None,
        tokens: jax.Array | None,
        segments: jax.Array | None,
        train: bool = False,
    ) -> dict[str, jax.Array]:
        """`image` `[B, H, W, C]`, `tokens` and `segments` int `[B, L]` ->
        `{"image": [B, D], "text": [B, D], "scale": []}`, unit vectors.

        A tower whose input is None is not run, and has no entry in the output.
        """
        out = {}
        if image is not None:
            tower = self.image.copy(parent=self, name="image_encoder")
            out["image"] = self._project(tower(image, train=train)["features"], "image_projection")
        if tokens is not None:
            tower = self.text.copy(parent=self, name="text_encoder")
            features = tower(tokens, segments, train=train)["features"]
            out["text"] = self._project(features, "text_projection")
        log_scale = self.param(
            "log_scale", nn.initializers.constant(-jnp.log(self.temperature)), ()
        )
        return {**out, "scale": jnp.minimum(jnp.exp(log_scale), LARGEST_SCALE)}

    def _project(self, features: jax.Array, name: str) -> jax.Array:
        x = nn.Dense(self.embedding, use_bias=False, name=name)(features)
        return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x**2, -1, keepdims=True), _SMALLEST))
