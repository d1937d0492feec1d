"""Heads on a network's features: small modules that are roles of their own."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

from kdjax.networks.initializers import linear_bias, linear_kernel


class ClassifierHead(nn.Module):
    """Logits from features `[B, D]`, linear or with one hidden layer.

    The non-linear head is Linear(D, hidden), Dropout, BatchNorm, ReLU, Linear(hidden, classes),
    as the auxiliary head of Yang et al. 2024 (arXiv:2411.08937). Layers start as PyTorch's do,
    uniform in +-1/sqrt(D).

    Attributes:
      num_classes: C.
      hidden: width of the hidden layer; 0: a linear head.
      dropout: probability of the hidden layer's dropout.
    """

    num_classes: int
    hidden: int = 0
    dropout: float = 0.1

    @nn.compact
    def __call__(self, features, train: bool = False):
        x = features
        if self.hidden:
            if train and x.shape[0] == 1:
                raise ValueError(
                    "a non-linear head normalises over the batch: it cannot train on a batch of 1"
                )
            x = self._dense(self.hidden, x.shape[-1], "hidden")(x)
            x = nn.Dropout(self.dropout)(x, deterministic=not train)
            x = nn.BatchNorm(use_running_average=not train, momentum=0.9, name="norm")(x)
            x = nn.relu(x)
        return self._dense(self.num_classes, x.shape[-1], "logits")(x)

    def _dense(self, width: int, fan_in: int, name: str) -> nn.Dense:
        return nn.Dense(width, kernel_init=linear_kernel, bias_init=linear_bias(fan_in), name=name)


class InstanceTemperature(nn.Module):
    """CTKD's temperature of each example, from both networks' logits.

        theta_b = 1 + w . relu(W [t_b, s_b] + b)

    for `losses.learned_temperature(losses.gradient_reversal(theta, scale=...))`. Every example
    starts with the authors' theta of 1: w begins at 0. The logits are stopped, so that what is
    learned here reaches the student through the temperature alone (Li et al. 2023,
    arXiv:2211.16231; the width is not given there).

    Attributes:
      hidden: width of the hidden layer.
    """

    hidden: int = 128

    @nn.compact
    def __call__(
        self, student_logits: jax.Array, teacher_logits: jax.Array, train: bool = False
    ) -> jax.Array:
        """`[B, C], [B, C] -> [B]`, theta."""
        x = jax.lax.stop_gradient(jnp.concatenate([teacher_logits, student_logits], axis=-1))
        x = nn.relu(nn.Dense(self.hidden, name="hidden")(x))
        theta = nn.Dense(1, kernel_init=nn.initializers.zeros, name="theta")(x)
        return 1 + theta[..., 0]
