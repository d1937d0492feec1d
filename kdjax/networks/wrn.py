"""Wide residual networks of Zagoruyko and Komodakis 2016 (arXiv:1605.07146).

As distillation benchmarks define them (Tian et al. 2020, arXiv:1910.10699): pre-activation blocks
of n = (depth - 4) / 6 in three stages, 16k, 32k, 64k wide. Where a block changes the width, its
first normalisation and ReLU come before the branches part, and the shortcut is a bare 1x1
convolution; else the shortcut is the block's input itself. What `resnet.py` says of batch
normalisation and pooling holds here too.
"""

from __future__ import annotations

import jax
from flax import linen as nn

from kdjax.networks.initializers import linear_kernel
from kdjax.networks.rematerialization import check_remat, rematerialized
from kdjax.networks.resnet import batch_norm, conv1x1, conv3x3


class WideBlock(nn.Module):
    """`a = relu(norm1(x))`, `conv2(dropout(relu(norm2(conv1(a))))) + (x or shortcut_conv(a))`."""

    width: int
    stride: int = 1
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """`[B, H, W, C] -> [B, ceil(H / stride), ceil(W / stride), width]`."""
        h = nn.relu(batch_norm(train, "norm1")(x))
        if x.shape[-1] != self.width:
            x = conv1x1(self.width, self.stride, "shortcut_conv")(h)
        h = conv3x3(self.width, self.stride, "conv1")(h)
        h = nn.relu(batch_norm(train, "norm2")(h))
        if self.dropout:
            h = nn.Dropout(self.dropout, deterministic=not train, name="dropout")(h)
        return x + conv3x3(self.width, 1, "conv2")(h)


class WideStage(nn.Module):
    """`num_blocks` blocks, the first with `stride`."""

    width: int
    num_blocks: int
    stride: int
    dropout: float
    remat: str = ""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        block = rematerialized(WideBlock, self.remat, static=(2,))
        for i in range(self.num_blocks):
            stride = self.stride if i == 0 else 1
            x = block(self.width, stride, self.dropout, name=f"block{i}")(x, train)
        return x


class WideResNet(nn.Module):
    """WRN-depth-widen.

    The pre-activation features of a benchmark's "feature before ReLU" are the taps
    `stage2/block0/norm1/out`, `stage3/block0/norm1/out` and `norm/out`.

    Attributes:
      num_classes: C.
      depth: 6n + 4.
      widen: k.
      dropout: probability, between the convolutions of a block.
      remat: what of the blocks is kept for the backward pass (see `rematerialization.py`).

    Raises:
      ValueError: another depth, k < 1, an unknown `remat`.
    """

    num_classes: int
    depth: int = 16
    widen: int = 2
    dropout: float = 0.0
    remat: str = ""

    def __post_init__(self):
        super().__post_init__()
        check_remat(self.remat)
        if self.depth < 10 or (self.depth - 4) % 6:
            raise ValueError(f"depth of a WRN must be 6n + 4 (10, 16, 22, ...), got {self.depth}")
        if self.widen < 1:
            raise ValueError(f"widen of a WRN must be at least 1, got {self.widen}")

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> dict[str, jax.Array]:
        """`[B, H, W, channels] -> {"logits": [B, C], "features": [B, 64 * widen]}`."""
        x = conv3x3(16, 1, "conv")(x)
        for i, width in enumerate((16, 32, 64), start=1):
            stage = WideStage(
                width * self.widen,
                (self.depth - 4) // 6,
                stride=1 if i == 1 else 2,
                dropout=self.dropout,
                remat=self.remat,
                name=f"stage{i}",
            )
            x = stage(x, train)
        x = nn.relu(batch_norm(train, "norm")(x)).mean((1, 2))
        head = nn.Dense(self.num_classes, kernel_init=linear_kernel, name="head")
        return {"logits": head(x), "features": x}
