"""A small vision transformer (Dosovitskiy et al. 2021, arXiv:2010.11929)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

from kdjax.networks.rematerialization import check_remat, rematerialized

_EPSILON = 1e-6  # of layer normalisation, as in the paper's code


class EncoderBlock(nn.Module):
    """`x += attention(norm1(x))`, `x += mlp(norm2(x))`, each branch with dropout.

    The attention maps `[B, heads, N, N]` are the tap `<block>/attention/attention_weights`.
    """

    heads: int
    mlp_ratio: int
    dropout: float

    @nn.compact
    def __call__(
        self, x: jax.Array, train: bool = False, where: jax.Array | None = None
    ) -> jax.Array:
        """`[B, N, D] -> [B, N, D]`; nothing attends to places where `where` `[B, N]` is False."""
        width = x.shape[-1]
        attention = nn.MultiHeadDotProductAttention(
            self.heads,
            kernel_init=nn.initializers.xavier_uniform(),
            force_fp32_for_softmax=True,
            dropout_rate=self.dropout,
            deterministic=not train,
            name="attention",
        )
        mask = None if where is None else where[:, None, None, :]
        h = attention(nn.LayerNorm(_EPSILON, name="norm1")(x), mask=mask, sow_weights=True)
        x = x + nn.Dropout(self.dropout, deterministic=not train)(h)
        h = nn.LayerNorm(_EPSILON, name="norm2")(x)
        xavier = nn.initializers.xavier_uniform()
        h = nn.Dense(self.mlp_ratio * width, kernel_init=xavier, name="mlp_in")(h)
        h = nn.Dense(width, kernel_init=xavier, name="mlp_out")(nn.gelu(h, approximate=False))
        return x + nn.Dropout(self.dropout, deterministic=not train)(h)


class ViT(nn.Module):
    """Patches, positions, pre-norm encoder blocks, a class token or mean pooling, a linear head.

    Attributes:
      num_classes: C.
      patch: side of a patch; must divide height and width.
      width: D; must be a multiple of `heads`.
      depth: number of blocks `block0`, `block1`, ...
      heads: of attention.
      mlp_ratio: hidden width of a block's MLP over D.
      dropout: probability, in attention and after each branch.
      pool: "token" (a learned class token) or "mean" (over patches).
      remat: what of the blocks is kept for the backward pass (see `rematerialization.py`).

    Raises:
      ValueError: heads do not divide width, patches the image; an unknown `pool` or `remat`.
    """

    num_classes: int
    patch: int = 4
    width: int = 64
    depth: int = 4
    heads: int = 4
    mlp_ratio: int = 4
    dropout: float = 0.0
    pool: str = "token"
    remat: str = ""

    def __post_init__(self):
        super().__post_init__()
        check_remat(self.remat)
        if self.pool not in ("token", "mean"):
            raise ValueError(f"pool must be 'token' or 'mean', got {self.pool!r}")
        if self.width % self.heads:
            raise ValueError(f"width={self.width} must be a multiple of heads={self.heads}")

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> dict[str, jax.Array]:
        """`[B, H, W, channels] -> {"logits": [B, C], "features": [B, width]}`."""
        batch, height, breadth, _ = x.shape
        if height % self.patch or breadth % self.patch:
            raise ValueError(f"patch={self.patch} must divide the image, {height} x {breadth}")
        size = (self.patch, self.patch)
        x = nn.Conv(self.width, size, strides=size, padding="VALID", name="patches")(x)
        x = x.reshape(batch, -1, self.width)
        if self.pool == "token":
            token = self.param("token", nn.initializers.zeros, (1, 1, self.width))
            x = jnp.concatenate([jnp.tile(token, (batch, 1, 1)), x], axis=1)
        shape = (1, x.shape[1], self.width)
        x = x + self.param("positions", nn.initializers.normal(0.02), shape)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        for i in range(self.depth):
            block = rematerialized(EncoderBlock, self.remat, static=(2,))
            x = block(self.heads, self.mlp_ratio, self.dropout, name=f"block{i}")(x, train)
        x = nn.LayerNorm(_EPSILON, name="norm")(x)
        x = x[:, 0] if self.pool == "token" else x.mean(1)
        return {"logits": nn.Dense(self.num_classes, name="head")(x), "features": x}
