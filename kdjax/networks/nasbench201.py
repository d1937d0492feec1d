"""The networks of NAS-Bench-201, Dong and Yang 2020 (arXiv:2001.00326).

A cell has four nodes; node i is the sum over the nodes j before it of an operation on j, one of
five. Three groups of equal cells, 16, 32 and 64 wide, with a residual block of stride 2 between
them: 5^6 = 15,625 networks.
"""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from kdjax.networks.initializers import conv_kernel, linear_bias, linear_kernel
from kdjax.networks.resnet import batch_norm

OPERATIONS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
SOURCES = (0, 0, 1, 0, 1, 2)  # of the six edges
TARGETS = (1, 2, 2, 3, 3, 3)


def edges_of(cell: str) -> tuple[str, ...]:
    """The operations of the six edges of a cell, from the string that the benchmark names it by.

    Raises:
      ValueError: no such string.

    >>> edges_of("|none~0|+|skip_connect~0|none~1|+|none~0|none~1|nor_conv_3x3~2|")
    ('none', 'skip_connect', 'none', 'none', 'none', 'nor_conv_3x3')
    """
    found = re.findall(r"([a-z_0-9]+)~(\d)", cell)
    edges = tuple(name for name, _ in found)
    wrong = [name for name in edges if name not in OPERATIONS]
    if [int(source) for _, source in found] != list(SOURCES) or wrong:
        raise ValueError(
            f"cell must be '|op~0|+|op~0|op~1|+|op~0|op~1|op~2|' of {OPERATIONS}, got {cell!r}"
        )
    return edges


class NASBench201(nn.Module):
    """A network of the benchmark.

    Attributes:
      num_classes: C.
      edges: operations on the edges 0-1, 0-2, 1-2, 0-3, 1-3, 2-3; see `edges_of`.
      cells: in each of the three groups.
      width: of the first group; doubled twice.

    Raises:
      ValueError: another number of edges, an unknown operation, cells or width below 1.
    """

    num_classes: int
    edges: tuple[str, ...] = ("nor_conv_3x3",) * 6
    cells: int = 5
    width: int = 16

    def __post_init__(self):
        super().__post_init__()
        wrong = [edge for edge in self.edges if edge not in OPERATIONS]
        if len(self.edges) != len(SOURCES) or wrong:
            raise ValueError(f"edges must be six of {OPERATIONS}, got {self.edges}")
        for name in ("cells", "width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> dict[str, jax.Array]:
        """`[B, H, W, channels] -> {"logits": [B, C], "features": [B, 4 width]}`."""
        x = batch_norm(train, "norm")(_conv(self.width, 3, 1, "conv")(x))
        for group in range(3):
            width = self.width * 2**group
            if group:
                x = Reduction(width, name=f"reduction{group}")(x, train)
            for i in range(self.cells):
                x = Cell(self.edges, width, name=f"group{group}_cell{i}")(x, train)
        x = Last(name="last")(x, train)
        x = x.mean((1, 2))
        head = nn.Dense(
            self.num_classes,
            kernel_init=linear_kernel,
            bias_init=linear_bias(x.shape[-1]),
            name="head",
        )
        return {"logits": head(x), "features": x}


class Cell(nn.Module):
    """Four nodes and six edges."""

    edges: tuple[str, ...]
    width: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        nodes = [x, *[jnp.zeros_like(x)] * 3]
        for i, (edge, source, target) in enumerate(zip(self.edges, SOURCES, TARGETS)):
            if edge == "none":
                continue
            value = nodes[source]
            if edge.startswith("nor_conv"):
                size = int(edge[-1])
                value = ReLUConvNorm(self.width, size, name=f"edge{i}")(value, train)
            elif edge == "avg_pool_3x3":
                value = _mean_3x3(value)
            nodes[target] = nodes[target] + value
        return nodes[3]


class ReLUConvNorm(nn.Module):
    """ReLU, convolution, batch normalisation."""

    width: int
    size: int
    stride: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = _conv(self.width, self.size, self.stride, "conv")(nn.relu(x))
        return batch_norm(train, "norm")(x)


class Reduction(nn.Module):
    """A residual block of stride 2; its shortcut is a mean over 2x2, then a 1x1 convolution."""

    width: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        h = ReLUConvNorm(self.width, 3, 2, name="first")(x, train)
        h = ReLUConvNorm(self.width, 3, 1, name="second")(h, train)
        return h + _conv(self.width, 1, 1, "shortcut")(nn.avg_pool(x, (2, 2), strides=(2, 2)))


class Last(nn.Module):
    """Batch normalisation and ReLU: a module, so that its input and output have names."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        return nn.relu(batch_norm(train, "norm")(x))


def _mean_3x3(x: jax.Array) -> jax.Array:
    """The mean over a 3x3 window, of what is inside the map.

    Counted here, not by `nn.avg_pool`: it pools an array of ones of the size of the batch, on which
    the compiler folds constants for half a minute a cell.
    """
    inside = [
        np.minimum(np.arange(n) + 2, n) - np.maximum(np.arange(n) - 1, 0) for n in x.shape[1:3]
    ]
    count = np.multiply.outer(*inside)[:, :, None]
    total = nn.pooling.pool(x, 0.0, jax.lax.add, (3, 3), (1, 1), ((1, 1), (1, 1)))
    return total / jnp.asarray(count, x.dtype)


def _conv(width: int, size: int, stride: int, name: str) -> nn.Conv:
    return nn.Conv(
        width,
        (size, size),
        strides=stride,
        padding=size // 2,
        use_bias=False,
        kernel_init=conv_kernel,
        name=name,
    )
