"""How PyTorch starts its layers: what the benchmarks' networks were published with."""

from __future__ import annotations

import math

import jax
from jax.nn import initializers

# kaiming_normal_(mode="fan_out", nonlinearity="relu"): N(0, 2 / (height * width * out)).
conv_kernel = initializers.variance_scaling(2.0, "fan_out", "normal")
# nn.Linear: U(-1/sqrt(fan_in), 1/sqrt(fan_in)).
linear_kernel = initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def linear_bias(fan_in: int) -> initializers.Initializer:
    """`U(-1/sqrt(fan_in), 1/sqrt(fan_in))`: the bias of PyTorch's `nn.Linear`.

    >>> bias = linear_bias(4)(jax.random.key(0), (100,), "float32")
    >>> bool(abs(bias).max() <= 0.5), bool(abs(bias).max() > 0.4)
    (True, True)
    """
    bound = 1 / math.sqrt(fan_in)

    def initialize(key, shape, dtype):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return initialize
