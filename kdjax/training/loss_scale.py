"""Dynamic loss scaling: what float16 needs so that small gradients do not vanish."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

PyTree = Any


@dataclasses.dataclass(frozen=True)
class LossScale:
    """The loss is multiplied by a scale before its gradient is taken, the gradient divided by it.

    After `growth_interval` finite gradients in a row the scale doubles. Where a gradient is not
    finite the scale is halved, never below 1, and the update does not act: nothing of it changes.
    A gradient that is not finite at a scale of 1 is no matter of scaling, and is reported as it
    is. Micikevicius et al. 2018 (arXiv:1710.03740), section 3.2. (`DynamicScale` of Flax does the
    same for the gradient of one scalar function; here gradients are accumulated, taken term by
    term, or pulled back in parts.)

    Attributes:
      initial: the first scale; at least 1; best a power of two, for then scaling rounds nothing.
      growth_interval: at least 1.
    """

    initial: float = 2.0**15
    growth_interval: int = 2000

    def __post_init__(self):
        if not self.initial >= 1:
            raise ValueError(f"initial must be at least 1, got {self.initial}")
        if self.growth_interval < 1:
            raise ValueError(f"growth_interval must be at least 1, got {self.growth_interval}")


class ScaledSlots(NamedTuple):
    """The optimizer slots of an update whose loss is scaled, and the state of its scale."""

    scale: jax.Array
    finite_steps: jax.Array  # finite gradients since the scale last changed
    slots: PyTree


def begin(loss_scale: LossScale | None, slots: PyTree) -> PyTree:
    """An update's optimizer slots before the first step."""
    if loss_scale is None:
        return slots
    return ScaledSlots(jnp.float32(loss_scale.initial), jnp.int32(0), slots)


def all_finite(tree: PyTree) -> jax.Array:
    """Whether every number of every array is finite; a scalar bool.

    >>> bool(all_finite({"a": jnp.ones(2), "b": jnp.array([1.0, jnp.inf])}))
    False
    """
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(tree)]))


def adjust(loss_scale: LossScale, before: ScaledSlots, finite: jax.Array) -> ScaledSlots:
    """Scale and count after a gradient; the slots are those of `before`.

    >>> slots = begin(LossScale(4.0, growth_interval=1), ())
    >>> [float(adjust(LossScale(4.0, 1), slots, jnp.array(x)).scale) for x in (True, False)]
    [8.0, 2.0]
    """
    count = before.finite_steps + 1
    grows = finite & (count >= loss_scale.growth_interval)
    largest = jnp.finfo(jnp.float32).max / 2
    grown = jnp.where(grows & (before.scale <= largest), before.scale * 2, before.scale)
    scale = jnp.where(finite, grown, jnp.maximum(before.scale / 2, 1.0))
    return before._replace(scale=scale, finite_steps=jnp.where(finite & ~grows, count, 0))
