"""A plain convolutional network: a space of students by width and depth for small images."""

from __future__ import annotations

import jax
from flax import linen as nn

from kdjax.networks.initializers import linear_bias, linear_kernel
from kdjax.networks.resnet import batch_norm, conv1x1, conv3x3


class NormalizedConvNet(nn.Module):
    """`depth` 3x3 convolutions of one width, then a 1x1 convolution to `features` channels.

    A batch normalisation and a ReLU follow each convolution; nothing is strided. The width of the
    classifier is that of the last convolution, so that networks of every width and depth have
    classifiers of one shape.

    Attributes:
      num_classes: C.
      width: of the 3x3 convolutions.
      depth: their number.
      features: of the 1x1 convolution, whose maps are tapped as `last/out`.

    Raises:
      ValueError: an attribute below 1.
    """

    num_classes: int
    width: int = 32
    depth: int = 4
    features: int = 32

    def __post_init__(self):
        super().__post_init__()
        for name in ("width", "depth", "features"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} of a NormalizedConvNet must be at least 1, got {self}")

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> dict[str, jax.Array]:
        """`[B, H, W, channels] -> {"logits": [B, C], "features": [B, features]}`."""
        for i in range(self.depth):
            x = conv3x3(self.width, 1, f"conv{i}")(x)
            x = nn.relu(batch_norm(train, f"norm{i}")(x))
        x = Last(self.features, name="last")(x, train)
        x = x.mean((1, 2))
        head = nn.Dense(
            self.num_classes,
            kernel_init=linear_kernel,
            bias_init=linear_bias(x.shape[-1]),
            name="head",
        )
        return {"logits": head(x), "features": x}


class Last(nn.Module):
    """1x1 convolution, batch normalisation, ReLU: a module, so that its output has a name."""

    features: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = conv1x1(self.features, 1, "conv")(x)
        return nn.relu(batch_norm(train, "norm")(x))
