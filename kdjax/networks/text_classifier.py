"""A bidirectional encoder of tokens with a linear head: sentences to classes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Int

from kdjax.networks.attention import rotary_tables
from kdjax.networks.transformer import DecoderBlock, DecoderConfig, RMSNorm


class TextClassifier(nn.Module):
    """Embeddings, blocks that see the whole sentence, the mean over its tokens, a linear head.

    The blocks are those of the `Decoder` (RMS normalisation, rotary positions, gated MLP) with
    every token of a sentence visible to every other. Its taps are theirs: `block0/out`, ...

    Attributes:
      num_classes: C.
      vocabulary: V, number of token ids.
      width: D.
      num_layers: number of blocks `block0`, `block1`, ...
      num_heads: of attention; must divide `width`.
      hidden: width of the MLPs.
      max_length: the longest sentence that is accepted.
      dropout: probability, of embeddings and of the pooled features.

    Raises:
      ValueError: what `DecoderConfig` refuses, or a dropout outside [0, 1).

    >>> network = TextClassifier(num_classes=2, vocabulary=9, width=8, num_layers=1, num_heads=2)
    >>> tokens, segments = jnp.array([[4, 2, 7], [5, 0, 0]]), jnp.array([[1, 1, 1], [1, 0, 0]])
    >>> out, _ = network.init_with_output(jax.random.key(0), tokens, segments)
    >>> out["logits"].shape, out["features"].shape
    ((2, 2), (2, 8))
    """

    num_classes: int
    vocabulary: int
    width: int = 64
    num_layers: int = 2
    num_heads: int = 4
    hidden: int = 128
    max_length: int = 512
    dropout: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")
        _ = self.blocks  # which refuses what it cannot be

    @property
    def blocks(self) -> DecoderConfig:
        """What the blocks are."""
        return DecoderConfig(
            vocabulary=self.vocabulary,
            width=self.width,
            num_layers=self.num_layers,
            num_heads=self.num_heads,
            hidden=self.hidden,
            max_length=self.max_length,
        )

    @nn.compact
    def __call__(
        self,
        tokens: Int[Array, "batch length"],
        segments: Int[Array, "batch length"],
        train: bool = False,
    ) -> dict[str, jax.Array]:
        """`[B, L] -> {"logits": [B, C], "features": [B, D]}`.

        Args:
          tokens: ids in [0, V); an id outside gives NaN.
          segments: 0 is padding, which neither sees nor is seen. A row of padding alone has
            features of 0.
          train: whether dropout acts.

        Raises:
          TypeError: integers are needed. ValueError: not [B, L], or longer than `max_length`.
        """
        for name, array in (("tokens", tokens), ("segments", segments)):
            if not jnp.issubdtype(array.dtype, jnp.integer):
                raise TypeError(f"{name} must be integers, got dtype {array.dtype}")
        if tokens.shape != segments.shape:
            raise ValueError(
                f"segments must have the shape {tokens.shape} of tokens, got {segments.shape}"
            )
        if tokens.ndim != 2 or tokens.shape[1] > self.max_length:
            raise ValueError(
                f"tokens must be shaped [batch, length] with length <= {self.max_length}, "
                f"got shape {tokens.shape}"
            )
        config, where = self.blocks, segments > 0
        positions = jnp.maximum(jnp.cumsum(where, axis=1, dtype=jnp.int32) - 1, 0)
        tables = rotary_tables(positions, config.head_width, config.rope_base)
        seen = where[:, :, None] & where[:, None, :]
        drop = nn.Dropout(self.dropout, deterministic=not train)
        start = nn.initializers.normal(0.02)
        embed = nn.Embed(self.vocabulary, self.width, embedding_init=start, name="embedding")
        x = drop(embed(tokens))
        for layer in range(self.num_layers):
            x = DecoderBlock(config, name=f"block{layer}")(x, tables, seen)
        x = RMSNorm(config.norm_epsilon, name="final_norm")(x)
        total = jnp.sum(jnp.where(where[:, :, None], x, 0), axis=1)
        features = total / jnp.maximum(where.sum(1, keepdims=True), 1)
        return {
            "logits": nn.Dense(self.num_classes, name="head")(drop(features)),
            "features": features,
        }
