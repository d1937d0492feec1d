"""Everything of a stage that changes, as one pytree, and how parameters are picked out of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import traverse_util

from kdjax.training.loss_scale import begin
from kdjax.training.stage import PyTree, Stage, Update, Variables


class State(NamedTuple):
    """What a step reads and writes; the compiled step donates it."""

    step: jax.Array
    variables: Variables  # live roles only
    optimizers: tuple
    memory: PyTree
    selected: PyTree  # {} or {"score", "step", "variables"}
    done: jax.Array


def flatten(tree: PyTree) -> dict[str, jax.Array]:
    """`{"a": {"b": x}}` as `{"a/b": x}`."""
    return traverse_util.flatten_dict(tree, sep="/")


def pick(variables: Variables, trains: tuple[str, ...]) -> dict[str, dict[str, jax.Array]]:
    """The parameters that `trains` names, as `{role: {path: array}}`.

    >>> params = {"head": {"bias": 1}, "body": {"bias": 2}}
    >>> pick({"student": {"params": params}}, ("student:^head",))
    {'student': {'head/bias': 1}}
    """
    picked: dict[str, dict[str, jax.Array]] = {}
    for name in trains:
        role, _, pattern = name.partition(":")
        if role not in variables:
            raise ValueError(f"trains names the role {role!r}; the stage has {sorted(variables)}")
        if "params" not in variables[role]:
            raise ValueError(
                f"the variables of {role!r} need a 'params' collection, got {list(variables[role])}"
            )
        paths = flatten(variables[role]["params"])
        found = {path: leaf for path, leaf in paths.items() if re.search(pattern, path)}
        if not found:
            raise ValueError(
                f"trains={name!r} matches no parameter of {role!r}; it has {sorted(paths)}"
            )
        picked.setdefault(role, {}).update(found)
    return picked


def put(variables: Variables, params: Mapping[str, Mapping[str, jax.Array]]) -> dict:
    """`variables` with the parameters of `pick` replaced."""
    out = dict(variables)
    for role, paths in params.items():
        merged = {**flatten(variables[role]["params"]), **paths}
        out[role] = {**variables[role], "params": traverse_util.unflatten_dict(merged, sep="/")}
    return out


def strong(tree: PyTree) -> PyTree:
    """Arrays of fixed type: a weakly typed scalar would compile the step a second time."""

    def fix(x):
        x = jnp.asarray(x)
        return x if jnp.issubdtype(x.dtype, jax.dtypes.extended) else x.astype(x.dtype).copy()

    return jax.tree.map(fix, tree)


def initial(stage: Stage) -> State:
    """The state before the first step: traceable, so shapes can be had without computing.

    The stage's variables of the live roles are copied: the engine donates only what it owns.
    """
    program = stage.program
    missing = [role for role in program.live if role not in stage.variables]
    if missing:
        raise ValueError(
            f"stage {stage.name!r}: variables has no role {missing[0]!r} that its program trains; "
            f"it has {sorted(stage.variables)}"
        )
    variables = {role: dict(stage.variables[role]) for role in program.live}
    return first(
        program.updates,
        program.schedules,
        len(stage.seeds),
        stage.validation is not None,
        variables,
        stage.memory,
        stage.steps,
    )


def first(
    updates: tuple[Update, ...],
    schedules: Mapping[str, Callable],
    members: int,
    validated: bool,
    variables: Variables,
    memory: PyTree,
    steps: int | jax.Array,
) -> State:
    """The first state of a stage of so many members, 0 for one alone, from its live variables."""
    values = {
        name: jnp.asarray(schedule(jnp.int32(0), jnp.int32(steps)), jnp.float32)
        for name, schedule in schedules.items()
    }

    def slots(variables):
        return tuple(
            begin(update.loss_scale, update.optimizer(values).init(pick(variables, update.trains)))
            for update in updates
        )

    variables = strong(variables)
    opts = jax.vmap(slots)(variables) if members else slots(variables)
    selected = {}
    if validated:
        shape = (members,) if members else ()
        selected = {
            "score": jnp.full(shape, -jnp.inf, jnp.float32),
            "step": jnp.zeros(shape, jnp.int32),
            "variables": strong(variables),
        }
    done = jnp.zeros((), bool)
    return State(jnp.zeros((), jnp.int32), variables, strong(opts), strong(memory), selected, done)
