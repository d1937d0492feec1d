"""The CIFAR ResNets of He et al. 2016 (arXiv:1512.03385), as distillation benchmarks define them.

The definition is that of Tian et al. 2020 (arXiv:1910.10699) and Zhao et al. 2022
(arXiv:2203.08679): three stages of basic blocks of n = (depth - 2) / 6; stages 2 and 3 begin with
stride 2; where the shape changes the shortcut is a 1x1 convolution with batch normalisation (not
the zero padding of the original paper); convolutions have no bias. The `x4` variants are
32, 64, 128, 256 wide instead of 16, 16, 32, 64, so that their first stage widens too.

Two things differ from PyTorch, and only in the last digits: running variances average the biased
variance of a batch, those of PyTorch the unbiased one (a factor of n / (n - 1), n the batch times
the positions); and the final pooling is over all positions, which for 32x32 inputs is their 8x8
window and for others is what makes them work.
"""

from __future__ import annotations

import jax
from flax import linen as nn

from kdjax.networks.initializers import conv_kernel, linear_bias, linear_kernel
from kdjax.networks.rematerialization import check_remat, rematerialized


def conv3x3(width: int, stride: int, name: str) -> nn.Conv:
    """A 3x3 convolution with padding 1 on each side; SAME pads otherwise at stride 2."""
    return nn.Conv(
        width,
        (3, 3),
        strides=stride,
        padding=1,
        use_bias=False,
        kernel_init=conv_kernel,
        name=name,
    )


def conv1x1(width: int, stride: int, name: str) -> nn.Conv:
    """A 1x1 convolution without padding: the projection of a shortcut."""
    return nn.Conv(
        width,
        (1, 1),
        strides=stride,
        padding=0,
        use_bias=False,
        kernel_init=conv_kernel,
        name=name,
    )


def batch_norm(train: bool, name: str) -> nn.BatchNorm:
    """PyTorch's `BatchNorm2d`: its momentum 0.1 is 0.9 here. Statistics are float32."""
    return nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=1e-5, name=name)


class BasicBlock(nn.Module):
    """`relu(norm2(conv2(relu(norm1(conv1(x))))) + shortcut(x))`; sows the sum as `preact`."""

    width: int
    stride: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """`[B, H, W, C] -> [B, ceil(H / stride), ceil(W / stride), width]`."""
        h = nn.relu(batch_norm(train, "norm1")(conv3x3(self.width, self.stride, "conv1")(x)))
        h = batch_norm(train, "norm2")(conv3x3(self.width, 1, "conv2")(h))
        if self.stride != 1 or x.shape[-1] != self.width:
            x = conv1x1(self.width, self.stride, "shortcut_conv")(x)
            x = batch_norm(train, "shortcut_norm")(x)
        h = h + x
        self.sow("intermediates", "preact", h)
        return nn.relu(h)


class Stage(nn.Module):
    """`num_blocks` blocks, the first with `stride`."""

    width: int
    num_blocks: int
    stride: int
    remat: str = ""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        block = rematerialized(BasicBlock, self.remat, static=(2,))
        for i in range(self.num_blocks):
            x = block(self.width, self.stride if i == 0 else 1, name=f"block{i}")(x, train)
        return x


class ResNet(nn.Module):
    """A CIFAR ResNet.

    Attributes:
      num_classes: C.
      depth: 6n + 2; or the number of blocks of each of the three stages, as spaces of students
        have it (Dong et al. 2023, arXiv:2303.15678).
      widths: of the first convolution and of the three stages.
      remat: what of the blocks is kept for the backward pass (see `rematerialization.py`).

    Raises:
      ValueError: another depth, an unknown `remat`.
    """

    num_classes: int
    depth: int | tuple[int, int, int] = 20
    widths: tuple[int, int, int, int] = (16, 16, 32, 64)
    remat: str = ""

    def __post_init__(self):
        super().__post_init__()
        check_remat(self.remat)
        if not isinstance(self.depth, int):
            if len(self.depth) != 3 or any(blocks < 1 for blocks in self.depth):
                raise ValueError(
                    f"depth of a ResNet must be 6n + 2, or three numbers of blocks, each at least "
                    f"1, got {self.depth}"
                )
        elif self.depth < 8 or (self.depth - 2) % 6:
            raise ValueError(f"depth of a ResNet must be 6n + 2 (8, 14, 20, ...), got {self.depth}")
        if len(self.widths) != 4:
            raise ValueError(f"widths must be of the stem and three stages, got {self.widths}")

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> dict[str, jax.Array]:
        """`[B, H, W, channels] -> {"logits": [B, C], "features": [B, widths[3]]}`."""
        x = nn.relu(batch_norm(train, "norm")(conv3x3(self.widths[0], 1, "conv")(x)))
        of_stage = ((self.depth - 2) // 6,) * 3 if isinstance(self.depth, int) else self.depth
        for i, (width, blocks) in enumerate(zip(self.widths[1:], of_stage), start=1):
            stride = 1 if i == 1 else 2
            x = Stage(width, blocks, stride, self.remat, name=f"stage{i}")(x, train)
        x = x.mean((1, 2))
        head = nn.Dense(
            self.num_classes,
            kernel_init=linear_kernel,
            bias_init=linear_bias(x.shape[-1]),
            name="head",
        )
        return {"logits": head(x), "features": x}
