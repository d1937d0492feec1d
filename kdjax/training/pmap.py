"""The pmap back-end: one program a device, and collectives where the devices must agree.

The same pure step as under `jax.jit`, but every device sees its own rows of a batch and nothing
else. Weights of terms are summed over the devices before the one division, gradients and metrics
after it, so that values and gradients are those of the whole batch, to the order of summation.

Two things are a device's own. Batch statistics are of its rows; their running averages are
averaged. Random numbers are drawn with the device's number, so that dropout is another on each
device, and is not what `jit` draws. What `prepare` and an objective keep in memory must come out
equal on all devices (see `gathered` in `stage.py`); it is compared after the first step of a
stage and whenever the state is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from kdjax.training.sharding import Layout
from kdjax.training.stage import Context, PyTree, Stage
from kdjax.training.state import State

AXIS = "data"


def check(stage: Stage, layout: Layout) -> None:
    """Refuses, before any compute, a stage that cannot run on one program a device."""
    where = f"stage {stage.name!r}: backend='pmap'"
    if jax.process_count() > 1:
        raise ValueError(f"{where} is for one process, got {jax.process_count()}; use 'jit'")
    cut = sorted(role for role, rules in layout.rules.items() if rules and rules != "replicated")
    if layout.mesh.shape["model"] > 1 or cut:
        raise ValueError(
            f"{where} replicates all variables: it takes no partition rules and no mesh axis "
            f"'model', got rules for {cut} and "
            f"model={layout.mesh.shape['model']}; use 'jit'"
        )
    if stage.seeds:
        raise ValueError(f"{where} trains no members together; use 'jit'")
    for update in stage.program.updates:
        name = f"update {update.name!r}" if update.name else "its update"
        if update.batchwise or update.embed is not None:
            raise ValueError(
                f"{where} shows a device its own rows only, but {name} compares the examples of "
                "a batch; use 'jit'"
            )


def item(layout: Layout, stage: Stage, name: str, item: PyTree) -> PyTree:
    """An item as `[devices, batch / devices, ...]`, a part a device; scalars on each."""
    devices = layout.mesh.shape["data"]
    where = NamedSharding(layout.mesh, P("data"))

    def cut(x):
        x = np.asarray(x)
        rows = x.reshape(devices, -1, *x.shape[1:]) if x.ndim else np.broadcast_to(x, devices)
        return jax.device_put(rows, where)

    return jax.tree.map(cut, item)


def compiled(step: Callable, layout: Layout) -> Callable:
    """`(state, frozen, tables, items, values, steps, keys) -> (state, report)`, one a device."""
    in_axes, devices = (None, None, None, 0, None, None, None), list(layout.mesh.devices.flat)
    return jax.pmap(
        step, AXIS, in_axes=in_axes, out_axes=(None, None), devices=devices, donate_argnums=0
    )


def place(state: State, layout: Layout) -> State:
    """The state as the step returns it: placed otherwise, the step would be compiled twice."""
    mesh = Mesh(layout.mesh.devices.reshape(-1), (AXIS,))
    return jax.device_put(state, NamedSharding(mesh, P()))


def own(context: Context) -> Context:
    """The context with random numbers of this device."""
    if context.axis is None:
        return context
    return context._replace(rng=jax.random.fold_in(context.rng, lax.axis_index(context.axis)))


def total(tree: PyTree, axis: str | None) -> PyTree:
    """The sum over all devices."""
    return tree if axis is None else lax.psum(tree, axis)


def share(part: float, axis: str | None) -> float:
    """The part of a device in what `total` sums to `part`."""
    return part if axis is None else part / lax.axis_size(axis)


def averaged(before: PyTree, after: PyTree, axis: str | None) -> PyTree:
    """Live variables whose collections, other than params, are averaged over the devices.

    The change is averaged: what did not change keeps its bits. Integers (counters) and random keys
    stay as each device has them.
    """
    if axis is None:
        return after

    def average(old, new):
        if not jnp.issubdtype(new.dtype, jnp.inexact):
            return new
        return old + lax.pmean(new - old, axis)

    return {
        role: {
            name: tree if name == "params" else jax.tree.map(average, before[role][name], tree)
            for name, tree in collections.items()
        }
        for role, collections in after.items()
    }


def check_equal(stage: Stage, state: State, step: int) -> None:
    """Refuses a state that is not the same on all devices: only the first one's would be kept."""

    def compare(path: Any, x: jax.Array) -> None:
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x = jax.random.key_data(x)
        first, *others = (np.asarray(shard.data).tobytes() for shard in x.addressable_shards)
        if any(other != first for other in others):
            raise ValueError(
                f"stage {stage.name!r}, step {step}: the devices hold different values of "
                f"{jax.tree_util.keystr(path)}; under backend='pmap' gather what a device "
                "computed of its rows before it is kept (kdjax.training.gathered)"
            )

    jax.tree_util.tree_map_with_path(compare, state)
