"""How one role is trained: optimizer, learning-rate schedule, batch size, steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax

from kdjax.training import traced
from kdjax.training.loss_scale import LossScale

OPTIMIZERS = ("adamw", "adam", "sgd")
SCHEDULES = ("constant", "cosine", "linear", "steps")


@dataclasses.dataclass(frozen=True)
class Training:
    """How a role is trained; hashable, so that programs built on it are shared.

    Attributes:
      steps: optimizer steps.
      batch_size: examples of a global batch.
      optimizer: "adamw" (decoupled weight decay), "adam", or "sgd" (Nesterov off; weight decay is
        added to the gradient, as the CIFAR literature does).
      learning_rate: the peak.
      schedule: "constant", "cosine" or "linear" (to zero), or "steps" (times `decay` at each of
        `boundaries`).
      warmup: fraction of the steps over which the rate rises linearly from zero.
      boundaries: fractions of the steps, for the schedule "steps".
      weight_decay, momentum, clip: `clip` is the largest global gradient norm; 0: no clipping.
      microbatches: parts a batch is accumulated over.
      augment: names and options of augmentations, as `kdjax.data` takes them.
      loss_scale: the first scale of a loss whose network computes in float16; 0: not scaled.
      loss_scale_growth: finite gradients in a row after which it doubles.
    """

    traced: ClassVar[tuple[str, ...]] = ("learning_rate", "weight_decay")

    steps: int = 1000
    batch_size: int = 64
    optimizer: str = "adamw"
    learning_rate: float = 1e-3
    schedule: str = "constant"
    warmup: float = 0.0
    boundaries: tuple[float, ...] = (0.625, 0.75, 0.875)
    decay: float = 0.1
    weight_decay: float = 1e-4
    momentum: float = 0.9
    clip: float = 0.0
    microbatches: int = 1
    augment: tuple[Any, ...] = ()
    loss_scale: float = 0.0
    loss_scale_growth: int = 2000

    def __post_init__(self):
        for name, least in (("steps", 1), ("batch_size", 1), ("microbatches", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        for name, options in (("optimizer", OPTIMIZERS), ("schedule", SCHEDULES)):
            if getattr(self, name) not in options:
                raise ValueError(f"{name} must be one of {options}, got {getattr(self, name)!r}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate}")
        for name in ("weight_decay", "momentum", "clip", "decay"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.loss_scale != 0 and not self.loss_scale >= 1:
            raise ValueError(f"loss_scale must be 0 or at least 1, got {self.loss_scale}")
        if self.loss_scale_growth < 1:
            raise ValueError(f"loss_scale_growth must be at least 1, got {self.loss_scale_growth}")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup is a fraction in [0, 1), got {self.warmup}")
        if any(not 0 < b < 1 for b in self.boundaries):
            raise ValueError(f"boundaries are fractions in (0, 1), got {self.boundaries}")
        if self.batch_size % self.microbatches:
            raise ValueError(
                f"microbatches={self.microbatches} does not divide batch_size={self.batch_size}"
            )

    def rate(self, step: jax.Array, steps: jax.Array) -> jax.Array:
        """The learning rate at `step` of `steps`, traced.

        >>> linear = Training(learning_rate=1.0, schedule="linear", warmup=0.2)
        >>> [round(float(linear.rate(step, 10)), 3) for step in (0, 1, 6, 10)]
        [0.5, 1.0, 0.5, 0.0]
        """
        done = step / steps
        decaying = jnp.clip((done - self.warmup) / (1 - self.warmup), 0, 1)
        if self.schedule == "cosine":
            factor = 0.5 * (1 + jnp.cos(jnp.pi * decaying))
        elif self.schedule == "linear":
            factor = 1 - decaying
        elif self.schedule == "steps":
            passed = sum(jnp.where(done >= b, 1, 0) for b in self.boundaries)
            factor = self.decay**passed
        else:
            factor = 1.0
        if self.warmup:
            factor = factor * jnp.minimum(1.0, (step + 1) / (self.warmup * steps))
        return traced.factor(self.learning_rate) * factor

    @property
    def schedules(self) -> dict[str, Callable]:
        """What a program adds to its schedules."""
        return {"learning_rate": self.rate}

    @property
    def scaling(self) -> LossScale | None:
        """What an `Update` takes as its loss scale."""
        return LossScale(self.loss_scale, self.loss_scale_growth) if self.loss_scale else None

    def transformation(self, values: Mapping[str, jax.Array]) -> optax.GradientTransformation:
        """What an `Update` takes as its optimizer: reads `values["learning_rate"]`."""
        rate, weight_decay = values["learning_rate"], traced.bind(self, values).weight_decay
        if self.optimizer == "sgd":
            parts = [optax.add_decayed_weights(weight_decay)]
            parts.append(optax.sgd(rate, momentum=self.momentum or None))
        elif self.optimizer == "adam":
            parts = [optax.adam(rate)]
        else:
            parts = [optax.adamw(rate, weight_decay=weight_decay)]
        if self.clip:
            parts.insert(0, optax.clip_by_global_norm(self.clip))
        return optax.chain(*parts)
