"""Where arrays live: a mesh with named axes, and `regex -> PartitionSpec` rules for each role."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, Sharding
from jax.sharding import PartitionSpec as P

from kdjax.training.members import GROUP, axis
from kdjax.training.stage import PyTree, Stage
from kdjax.training.state import State

Rules = Sequence[tuple[str, P]]


def make_mesh(data: int = -1, model: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh with the axes `data` (batches are cut along it) and `model`.

    Args:
      data: devices along `data`; -1: all that are left.
      model: devices along `model`.
      devices: default: all of the run's devices.

    >>> make_mesh(data=1, devices=jax.devices()[:1]).axis_names
    ('data', 'model')
    """
    devices = list(jax.devices() if devices is None else devices)
    if model < 1 or len(devices) % model:
        raise ValueError(f"model={model} does not divide the {len(devices)} devices")
    data = len(devices) // model if data == -1 else data
    if data < 1 or data * model != len(devices):
        raise ValueError(
            f"data={data} x model={model} is not the number of devices, {len(devices)}"
        )
    grid = np.array(devices).reshape(data, model)
    return Mesh(grid, ("data", "model"), axis_types=(AxisType.Auto, AxisType.Auto))


def place(tree: PyTree, shardings: PyTree) -> PyTree:
    """The arrays where one sharding, or a tree of them, says; every process brings all of them."""
    if jax.process_count() == 1:
        return jax.device_put(tree, shardings)
    if isinstance(shardings, Sharding):
        shardings = jax.tree.map(lambda _: shardings, tree)
    return jax.tree.map(_place, tree, shardings)


def _place(x: Any, sharding: Sharding) -> jax.Array:
    if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        wrap = functools.partial(jax.random.wrap_key_data, impl=jax.random.key_impl(x))
        return jax.jit(wrap, out_shardings=sharding)(_place(jax.random.key_data(x), sharding))
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        return jax.jit(lambda x: x, out_shardings=sharding)(x)
    x = np.asarray(x)
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])


def gather(tree: PyTree) -> PyTree:
    """The arrays whole, on every process; all processes must call it."""

    def whole(x):
        if not isinstance(x, jax.Array) or x.is_fully_addressable:
            return x
        if x.is_fully_replicated:
            return np.asarray(x.addressable_data(0))
        return multihost_utils.process_allgather(x, tiled=True)

    return jax.tree.map(whole, tree)


def _path(path) -> str:
    parts = []
    for entry in path:
        for name in ("key", "name", "idx"):
            if hasattr(entry, name):
                parts.append(str(getattr(entry, name)))
                break
    return "/".join(parts)


@dataclasses.dataclass(frozen=True)
class Layout:
    """The mesh of a run and the partition rules of its roles.

    Attributes:
      mesh: named axes; batches are sharded over `data`.
      rules: role -> rules; the first regex found in a variable's path (`params/head/kernel`)
        decides its `PartitionSpec`; a variable that none matches, and a role without rules, is
        replicated. Optimizer slots follow their parameter.
      members_over_data: a stage with members lays them along `data`, and every device reads the
        whole batch; stages without members are cut by their batch as ever.
    """

    mesh: Mesh = dataclasses.field(default_factory=make_mesh)
    rules: Mapping[str, Rules] = dataclasses.field(default_factory=dict)
    members_over_data: bool = False

    @property
    def replicated(self) -> NamedSharding:
        return NamedSharding(self.mesh, P())

    def cuts_members(self, stage: Stage) -> bool:
        """Whether the stage's members, instead of its batches, lie along `data`."""
        return self.members_over_data and bool(stage.seeds)

    def _lead(self, stage: Stage) -> tuple[str | None, ...]:
        """The start of every spec: of the axis of members, where there is one."""
        return ("data" if self.members_over_data else None,) if stage.seeds else ()

    def members(self, stage: Stage) -> NamedSharding:
        """The sharding of arrays with nothing but an axis of members, or without one."""
        return self._sharding(self._lead(stage))

    def _sharding(self, lead: tuple[str | None, ...]) -> NamedSharding:
        return NamedSharding(self.mesh, P(*lead)) if any(lead) else self.replicated

    def check_members(self, stage: Stage) -> None:
        if not self.cuts_members(stage):
            return
        members, devices = len(stage.seeds), self.mesh.shape["data"]
        if members % devices:
            raise ValueError(
                f"stage {stage.name!r}: its {members} members are not a multiple of the {devices} "
                "devices along 'data', over which members_over_data lays them"
            )
        if jax.process_count() > 1:
            raise ValueError("members_over_data is for one process: each reads its part of a batch")

    def role(self, role: str, tree: PyTree, lead: tuple[str | None, ...] = ()) -> PyTree:
        """The sharding of every variable of a role; `lead` is the spec of an axis before theirs."""
        used = set()

        def spec(path, x):
            name = _path(path)
            for regex, rule in self.rules.get(role, ()):
                if re.search(regex, name):
                    used.add(regex)
                    rule = P(*lead, *rule)
                    self._check(f"{role}/{name}", x.shape, rule)
                    return NamedSharding(self.mesh, rule)
            return self._sharding(lead)

        shardings = jax.tree_util.tree_map_with_path(spec, tree)
        unused = [regex for regex, _ in self.rules.get(role, ()) if regex not in used]
        if unused:
            raise ValueError(f"the rule {unused[0]!r} matches no variable of {role!r}")
        return shardings

    def _check(self, name: str, shape: tuple[int, ...], rule: P) -> None:
        if len(rule) > len(shape):
            raise ValueError(f"rule {rule} has more axes than {name} of shape {shape}")
        for size, axes in zip(shape, rule):
            axes = (axes,) if isinstance(axes, str) else axes or ()
            parts = int(np.prod([self.mesh.shape[axis] for axis in axes]))
            if size % parts:
                raise ValueError(
                    f"{name} of shape {shape} cannot be cut by {rule}: {size} is not a multiple "
                    f"of {parts}, the size of {axes}"
                )

    def state(self, stage: Stage, shapes: State) -> State:
        """The sharding of everything in a state."""
        lead, usual = self._lead(stage), self.members(stage)
        variables = {role: self.role(role, tree, lead) for role, tree in shapes.variables.items()}

        def optimizer(path, x):
            # A slot's path ends with its role and the flat path of its parameter.
            name = _path(path)
            for role in variables:
                _, found, parameter = name.rpartition(f"{role}/")
                for regex, rule in self.rules.get(role, ()) if found else ():
                    if re.search(regex, f"params/{parameter}") and len(rule) <= x.ndim:
                        return NamedSharding(self.mesh, P(*lead, *rule))
            return usual

        everywhere = jax.tree.map(lambda _: usual, shapes)
        selected = everywhere.selected
        if selected:
            selected = {**selected, "variables": variables}
        return everywhere._replace(
            step=self.replicated,
            done=self.replicated,
            variables=variables,
            optimizers=jax.tree_util.tree_map_with_path(optimizer, shapes.optimizers),
            selected=selected,
        )

    def frozen(self, stage: Stage, frozen: Mapping[str, PyTree]) -> dict[str, PyTree]:
        """Frozen roles, placed."""
        leads = {0: self._lead(stage), GROUP: (None,), None: ()}
        return {
            role: place(tree, self.role(role, tree, leads[axis(stage, role)]))
            for role, tree in frozen.items()
        }

    def item(self, stage: Stage, name: str, item: PyTree) -> PyTree:
        """An item of a stream on the devices: the batch axis over `data`, scalars everywhere.

        On one device the arrays go with the call itself, which is cheaper.
        """
        if self.mesh.size == 1 and jax.process_count() == 1:
            return item
        own = axis(stage, name)
        before = 0 if own is None else 1
        cut = NamedSharding(self.mesh, P(*[None] * before, "data"))
        if self.cuts_members(stage):
            before, cut = 0, self.members(stage) if own == 0 else self.replicated

        def place(x):
            x = np.asarray(x)
            sharding = cut if x.ndim > before else self.replicated
            if jax.process_count() == 1:
                return jax.device_put(x, sharding)
            return jax.make_array_from_process_local_data(sharding, x)

        return jax.tree.map(place, item)

    def check_batch(self, name: str, batch_size: int) -> None:
        devices = self.mesh.shape["data"]
        if batch_size % devices:
            raise ValueError(
                f"batch_size={batch_size} of stream {name!r} is not a multiple of the {devices} "
                "devices along 'data'"
            )
