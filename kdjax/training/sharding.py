"""Where arrays live: a mesh with named axes, and `regex -> PartitionSpec` rules for each role."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, Sharding
from jax.sharding import PartitionSpec as P

from kdjax.training.partition_rules import RULE_SETS, RuleSet
from kdjax.training.stage import Deferred, PyTree, Stage, abstract
from kdjax.training.state import State, flatten

Rules = str | RuleSet | Sequence[tuple[str, P]]


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


def _names(axes: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """The mesh axes of one entry of a `PartitionSpec`."""
    return (axes,) if isinstance(axes, str) else tuple(axes or ())


@dataclasses.dataclass(frozen=True)
class Layout:
    """The mesh of a run and the partition rules of its roles.

    Attributes:
      mesh: named axes; batches are sharded over `data`.
      rules: role -> its rules; a role without is replicated. Optimizer slots follow their
        parameter. Rules are the name of a ready set (`partition_rules.RULE_SETS`), a function
        like those, or pairs of a regex and a `PartitionSpec`: the first regex found in a
        variable's path (`params/head/kernel`) decides, and a variable that none matches is
        replicated.

    Raises:
      ValueError: no rule set of that name, no regular expression, or an axis the mesh has not.

    >>> Layout(make_mesh(devices=jax.devices()[:1]), {"teacher": "fdsp"})
    Traceback (most recent call last):
    ValueError: 'teacher': there is no rule set 'fdsp'; did you mean 'fsdp'?
    """

    mesh: Mesh = dataclasses.field(default_factory=make_mesh)
    rules: Mapping[str, Rules] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        for role, rules in self.rules.items():
            if isinstance(rules, str):
                if rules not in RULE_SETS:
                    close = difflib.get_close_matches(rules, RULE_SETS, 1)
                    hint = (
                        f"did you mean {close[0]!r}?" if close else f"there are {list(RULE_SETS)}"
                    )
                    raise ValueError(f"{role!r}: there is no rule set {rules!r}; {hint}")
            elif not callable(rules):
                for regex, rule in rules:
                    self._check_rule(role, regex, rule)

    def _check_rule(self, role: str, regex: str, rule: P) -> None:
        try:
            re.compile(regex)
        except re.error as error:
            raise ValueError(
                f"{role!r}: the rule {regex!r} is no regular expression: {error}"
            ) from error
        names = [name for axes in rule for name in _names(axes)]
        unknown = [name for name in names if name not in self.mesh.shape]
        if unknown:
            raise ValueError(
                f"{role!r}: the rule {regex!r} names the axis {unknown[0]!r}; the mesh has "
                f"{list(self.mesh.shape)}"
            )
        if len(set(names)) < len(names):
            raise ValueError(f"{role!r}: the rule {regex!r} names an axis twice: {rule}")

    @property
    def replicated(self) -> NamedSharding:
        return NamedSharding(self.mesh, P())

    def _find(self, role: str, name: str, shape: tuple[int, ...]) -> tuple[str | None, P]:
        """`(the regex that decided, the rule)` of one variable."""
        rules = self.rules.get(role, ())
        if isinstance(rules, str):
            rules = RULE_SETS[rules]
        if callable(rules):
            rule = rules(name, shape, self.mesh)
            self._check_shape(f"{role}/{name}", shape, rule)
            return None, rule
        for regex, rule in rules:
            if re.search(regex, name):
                self._check_shape(f"{role}/{name}", shape, rule)
                return regex, rule
        return None, P()

    def role(self, role: str, tree: PyTree, members: bool = False) -> PyTree:
        """The sharding of every variable of a role, of shapes; members are a leading axis, not cut.

        Args:
          role: whose rules.
          tree: its variables, or their shapes (`jax.eval_shape`); nothing is computed.
          members: whether the variables have a leading axis of members.

        Raises:
          ValueError: a rule matches nothing, or does not fit the variable that it matches; names
            rule, variable, shape and axis.
        """
        found = {}

        def sharding(path, x):
            name, shape = _path(path), tuple(x.shape)
            regex, rule = self._find(role, name, shape[1:] if members else shape)
            found[name] = regex
            return NamedSharding(self.mesh, P(None, *rule) if members and any(rule) else rule)

        shardings = jax.tree_util.tree_map_with_path(sharding, tree)
        rules = self.rules.get(role, ())
        whole = all(where.is_fully_replicated for where in jax.tree.leaves(shardings))
        if rules == "tensor_parallel" and whole and self.mesh.shape["model"] > 1:
            raise ValueError(
                f"tensor_parallel cuts no variable of {role!r} over the "
                f"{self.mesh.shape['model']} devices of 'model': it has {sorted(found)[:8]}"
            )
        if not isinstance(rules, str) and not callable(rules):
            unused = [regex for regex, _ in rules if regex not in found.values()]
            if unused:
                raise ValueError(
                    f"the rule {unused[0]!r} matches no variable of {role!r}, or only ones that an "
                    f"earlier rule has; it has {sorted(found)[:8]}"
                )
        return shardings

    def _check_shape(self, name: str, shape: tuple[int, ...], rule: P) -> None:
        if len(rule) > len(shape):
            raise ValueError(f"rule {rule} has more axes than {name} of shape {shape}")
        for size, axes in zip(shape, rule):
            parts = math.prod(self.mesh.shape[axis] for axis in _names(axes))
            if size % parts:
                raise ValueError(
                    f"{name} of shape {shape} cannot be cut by {rule}: {size} is not a multiple "
                    f"of {parts}, the size of {_names(axes)}"
                )

    def make(self, role: str, variables: PyTree, members: bool = False) -> PyTree:
        """A role's variables where its rules say: `Deferred` ones are made there, others placed."""
        shardings = self.role(role, abstract(variables), members)
        if isinstance(variables, Deferred):
            return variables.make(shardings)
        return place(variables, shardings)

    def state(self, stage: Stage, shapes: State) -> State:
        """The sharding of everything in a state."""
        members = bool(stage.seeds)
        variables = {
            role: self.role(role, tree, members) for role, tree in shapes.variables.items()
        }
        trained = {n.partition(":")[0] for update in stage.program.updates for n in update.trains}
        params = {role: flatten(shapes.variables[role]["params"]) for role in trained}
        wheres = {role: flatten(variables[role]["params"]) for role in trained}

        def optimizer(path, x):
            # Slots are trees {role: {path of the parameter: slot}}. One of another shape than its
            # parameter (the rows and columns of a factored moment) is small, and whole.
            keys = [getattr(entry, "key", None) for entry in path]
            for role, name in itertools.pairwise(keys):
                parameter = params.get(role, {}).get(name)
                if parameter is not None and parameter.shape == x.shape:
                    return wheres[role][name]
            return self.replicated

        everywhere = jax.tree.map(lambda _: self.replicated, shapes)
        selected = everywhere.selected
        if selected:
            selected = {**selected, "variables": variables}
        return everywhere._replace(
            variables=variables,
            optimizers=jax.tree_util.tree_map_with_path(optimizer, shapes.optimizers),
            selected=selected,
        )

    def frozen(self, stage: Stage, frozen: Mapping[str, PyTree]) -> dict[str, PyTree]:
        """Frozen roles, made or placed where they live."""
        return {
            role: self.make(role, tree, bool(stage.seeds) and role not in stage.shared)
            for role, tree in frozen.items()
        }

    def item(self, item: PyTree, members: bool) -> PyTree:
        """A host item on the devices: the batch axis over `data`, scalars everywhere.

        On one device the arrays go with the call itself, which is cheaper.
        """
        if self.mesh.size == 1 and jax.process_count() == 1:
            return item
        axis = 1 if members else 0
        cut = NamedSharding(self.mesh, P(*[None] * axis, "data"))

        def place(x):
            x = np.asarray(x)
            sharding = cut if x.ndim > axis else self.replicated
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
