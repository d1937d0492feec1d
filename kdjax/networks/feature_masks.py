"""Masks of a frozen teacher's features, and the gate that picks among the teachers they make.

MST-Distill (Li et al. 2025, arXiv:2507.07015; sizes and layers are those of the released code).
Maps are channels-last, [batch, height, width, channels].
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

from kdjax.networks.initializers import linear_bias, linear_kernel


def mask_width(channels: int, *, heads: int = 3, factor: int = 2) -> int:
    """The width of a `MaskNet`'s tokens: floor(channels / (factor heads)) heads.

    Args:
      channels: D, of the feature.
      heads: of the attention, >= 1.
      factor: how much narrower a token is than the feature, >= 1.

    Raises:
      ValueError: a number below 1, or channels < factor heads, where nothing would be left.

    >>> mask_width(64)
    30
    >>> mask_width(5)
    Traceback (most recent call last):
    ValueError: a mask with heads=3 and factor=2 needs at least 6 channels, got 5
    """
    for name, value in (("heads", heads), ("factor", factor)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if channels < factor * heads:
        raise ValueError(
            f"a mask with heads={heads} and factor={factor} needs at least {factor * heads} "
            f"channels, got {channels}"
        )
    return channels // (factor * heads) * heads


class MaskNet(nn.Module):
    """A mask of a feature's channels, from the feature: `sigmoid(w . attention(tokens) + b)`.

    `tokens = W x + b`, one of `mask_width` a channel: D D h weights, so raise `factor` for wide
    layers. Of a map, x is `mean over space of relu(norm(conv1x1(depthwise3x3(map))))`; a map of
    1 x 1 is a vector.

    Attributes:
      heads: of the self-attention.
      factor: see `mask_width`.
    """

    heads: int = 3
    factor: int = 2

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """`[B, D]` or `[B, H, W, D]` -> `[B, D]`, in (0, 1).

        Raises:
          ValueError: an input of another rank, or too few channels.
        """
        if x.ndim not in (2, 4):
            raise ValueError(
                f"a mask is for features [batch, channels] or [batch, height, width, channels], "
                f"got shape {x.shape}"
            )
        channels = x.shape[-1]
        width = mask_width(channels, heads=self.heads, factor=self.factor)
        if x.ndim == 4 and x.shape[1:3] == (1, 1):
            x = x[:, 0, 0]
        if x.ndim == 4:
            x = _downsampled(channels, channels, False, "depthwise")(x)
            x = nn.Conv(
                channels, (1, 1), use_bias=False, kernel_init=linear_kernel, name="pointwise"
            )(x)
            x = nn.BatchNorm(use_running_average=not train, momentum=0.9, name="norm")(x)
            x = jnp.mean(nn.relu(x), axis=(1, 2))
        x = _dense(channels * width, channels, "tokens")(x).reshape(-1, channels, width)
        x = nn.MultiHeadDotProductAttention(self.heads, name="attention")(x)
        return nn.sigmoid(_dense(1, width, "mask")(x)[..., 0])


class GateNet(nn.Module):
    """Logits of the teachers, from the student's logits: one row an example.

    Two linear layers without anything between them; of a dense prediction
    `linear(mean over space of relu(depthwise3x3(relu(conv1x1(x)))))`.

    Attributes:
      num_teachers: M.
    """

    num_teachers: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """`[B, C]` or `[B, H, W, C]` -> `[B, M]`; softmax is the caller's.

        Raises:
          ValueError: an input of another rank.
        """
        if x.ndim not in (2, 4):
            raise ValueError(
                f"a gate is for logits [batch, classes] or [batch, height, width, classes], "
                f"got shape {x.shape}"
            )
        classes = x.shape[-1]
        x = _dense(2 * classes, classes, "hidden")(x)
        if x.ndim == 4:
            x = nn.relu(_downsampled(2 * classes, 2 * classes, True, "depthwise")(nn.relu(x)))
            x = jnp.mean(x, axis=(1, 2))
        return _dense(self.num_teachers, 2 * classes, "logits")(x)


def masked_feature(x: jax.Array, mask: jax.Array) -> jax.Array:
    """`x * mask`, one value a channel, the same at every place.

    Args:
      x: `[B, D]` or `[B, H, W, D]`.
      mask: `[B, D]`.

    Raises:
      ValueError: another batch or number of channels.

    >>> masked_feature(jnp.ones((1, 2, 2, 2)), jnp.array([[0.25, 1.0]])).sum((1, 2)).tolist()
    [[1.0, 4.0]]
    """
    if mask.shape != (x.shape[0], x.shape[-1]):
        raise ValueError(
            f"mask must be [batch, channels] = {[x.shape[0], x.shape[-1]]}, got {list(mask.shape)}"
        )
    places = tuple(range(1, x.ndim - 1))
    return x * jnp.expand_dims(mask, places).astype(x.dtype)


def _dense(width: int, fan_in: int, name: str) -> nn.Dense:
    return nn.Dense(width, kernel_init=linear_kernel, bias_init=linear_bias(fan_in), name=name)


def _downsampled(channels: int, groups: int, bias: bool, name: str) -> nn.Conv:
    """A depthwise 3 x 3 convolution of stride 2, started as PyTorch's."""
    return nn.Conv(
        channels,
        (3, 3),
        strides=2,
        padding=1,
        feature_group_count=groups,
        use_bias=bias,
        kernel_init=linear_kernel,
        bias_init=linear_bias(9),
        name=name,
    )
