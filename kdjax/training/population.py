"""Several runs of one recipe, run together: their stages become one, under `vmap`."""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kdjax.training.journal import Recipe
from kdjax.training.stage import Compute, Deferred, Outcome, PyTree, Stage, made
from kdjax.training.state import State


class Bundle:
    """One stream a member, read in step: the items of all members stacked.

    Attributes:
      table_axis: None where all members read one table, 0 where each has its own.
    """

    def __init__(self, streams: Sequence[Any]):
        first = streams[0]
        if any(s.assemble is not first.assemble for s in streams):
            raise ValueError("the members' streams process their records in different ways")
        if any(s.batch_size != first.batch_size for s in streams):
            raise ValueError("the members' streams have different batch sizes")
        self.streams = streams
        self.batch_size, self.assemble = first.batch_size, first.assemble
        self.stateful = getattr(first, "stateful", False)
        leaves = [jax.tree.leaves(s.table) for s in streams]
        one = all(len(x) == len(leaves[0]) for x in leaves) and all(
            a is b for other in leaves for a, b in zip(leaves[0], other)
        )
        self.table_axis = None if one else 0
        self.table = first.table if one else _stack([s.table for s in streams])
        if hasattr(first, "batches"):
            self.batches = first.batches

    def reordered(self, attempt: int) -> Bundle:
        lacking = [s for s in self.streams if not hasattr(s, "reordered")]
        if lacking:
            raise ValueError(f"{type(lacking[0]).__name__} has one order only")
        other = copy.copy(self)
        other.streams = [s.reordered(attempt) for s in self.streams]
        return other

    def items(self, *arguments) -> Iterator[PyTree]:
        if self.stateful:
            return _Stateful(self.streams, *arguments)
        members = [s.items(*arguments) for s in self.streams]
        return (jax.tree.map(lambda *x: np.stack(x), *items) for items in zip(*members))


class _Stateful:
    def __init__(self, streams, start=0, state=None):
        states = json.loads(state["members"]) if state else [None] * len(streams)
        self._members = [s.items(start, kept) for s, kept in zip(streams, states)]

    def __iter__(self):
        return self

    def __next__(self):
        return jax.tree.map(lambda *x: np.stack(x), *[next(m) for m in self._members])

    def state(self) -> dict:
        return {"members": json.dumps([m.state() for m in self._members])}


def _stack(trees: Sequence[PyTree]) -> PyTree:
    return jax.tree.map(lambda *x: jnp.stack([jnp.asarray(a) for a in x]), *trees)


def _join(trees: Sequence[PyTree]) -> PyTree:
    return jax.tree.map(lambda *x: jnp.concatenate(x), *trees)


@functools.lru_cache(maxsize=64)
def _each(function: Callable) -> Callable:
    return jax.vmap(function)


def _starts(trees: Sequence[PyTree | Deferred], join: Callable) -> PyTree | Deferred:
    """A role's variables of all members; what is not made yet is made for all at once."""
    functions = {tree.function if isinstance(tree, Deferred) else None for tree in trees}
    if len(functions) > 1 or None in functions:
        return join([made(tree) for tree in trees])
    (function,) = functions
    each = _each(function) if join is _stack else function
    return Deferred(each, join([tree.arguments for tree in trees]))


def _same(values: Sequence[Any]) -> bool:
    return all(value is values[0] for value in values)


def _same_leaves(trees: Sequence[PyTree]) -> bool:
    leaves = [jax.tree.leaves(tree) for tree in trees]
    return all(
        len(x) == len(leaves[0]) and all(map(lambda a, b: a is b, x, leaves[0])) for x in leaves
    )


def _agree(nodes: Sequence[Any], what: str, values: Sequence[Any]) -> None:
    if any(value != values[0] for value in values):
        raise ValueError(
            f"stages {nodes[0].name!r} of the members cannot run together: their {what} differ"
        )


def _member(state: State, i: int, size: int) -> State:
    """The state of member i, or of the members of group i where a group has `size` of them."""
    part = slice(i * size, (i + 1) * size) if size else i
    rest = jax.tree.map(lambda x: x[part], state._replace(step=(), done=()))
    return rest._replace(step=state.step, done=state.done)


def _merge(stages: Sequence[Stage], seeds: tuple[int, ...], names: tuple[str, ...]) -> Stage:
    """One stage of several; those that have members already become its groups."""
    first = stages[0]
    grouped = bool(first.seeds)
    _agree(stages, "steps", [s.steps for s in stages])
    _agree(stages, "streams", [sorted(s.data) for s in stages])
    _agree(stages, "roles", [sorted(s.variables) for s in stages])
    _agree(stages, "values", [sorted(s.values) for s in stages])
    _agree(stages, "numbers of members", [len(s.seeds) for s in stages])
    _agree(stages, "groups", [s.groups for s in stages])
    _agree(stages, "shared roles and streams", [s.shared for s in stages])
    if first.groups > 1:
        raise ValueError(f"stage {first.name!r}: groups of groups of members cannot run together")
    if not _same([s.program for s in stages]):
        raise ValueError(
            f"stages {first.name!r} of the members cannot run together: each built a program of "
            "its own; build the program once, outside the recipe"
        )
    join = _join if grouped else _stack
    shared, common, variables, data = set(), set(), {}, {}

    def streams_of(name: str, streams: Sequence[Any]) -> Any:
        if _same(streams):
            shared.add(name)
            return streams[0]
        if name in first.shared:
            common.add(name)
        elif grouped:
            streams = [member for bundle in streams for member in bundle.streams]
        return Bundle(streams)

    for role in first.variables:
        trees = [s.variables[role] for s in stages]
        own = grouped and role not in first.shared  # an axis of members
        deferred = any(isinstance(tree, Deferred) for tree in trees)
        frozen = role not in first.program.live and not own and not deferred
        if frozen and _same_leaves(trees):
            shared.add(role)
            variables[role] = trees[0]
            continue
        if role in first.shared:
            common.add(role)
        variables[role] = _starts(trees, _join if own else _stack)
    for name in first.data:
        data[name] = streams_of(name, [s.data[name] for s in stages])
    validation = first.validation
    if validation is not None:
        _agree(stages, "validations", [s.validation.every for s in stages])
        stream = streams_of("validation", [s.validation.stream for s in stages])
        validation = dataclasses.replace(validation, stream=stream)
    continues = None
    if first.continues is not None:
        kept = [s.continues for s in stages]

        def load() -> State:
            states = [outcome.load() for outcome in kept]
            joined = join([s._replace(step=(), done=()) for s in states])
            return joined._replace(step=states[0].step, done=states[0].done)

        continues = Outcome(load, kept[0].steps)
    return dataclasses.replace(
        first,
        variables=variables,
        data=data,
        memory=join([s.memory for s in stages]),
        validation=validation,
        continues=continues,
        values=join([dict(s.values) for s in stages]),
        seeds=sum((s.seeds for s in stages), ()) if grouped else seeds,
        names=sum((s.names for s in stages), ()) if grouped else names,
        shared=frozenset(shared),
        groups=len(stages) if grouped else 1,
        grouped=frozenset(common),
    )


def _alone(node: Compute, seed: int, name: str, label: str) -> Compute:
    """A member's computation, with the random numbers of a run of that seed alone."""
    number = zlib.crc32(name.encode())

    def function(rng: np.random.Generator, *arguments):
        return node.function(np.random.default_rng([seed, number]), *arguments)

    return dataclasses.replace(node, name=f"{node.name}/{label}", function=function)


def together(
    recipes: Sequence[Recipe],
    seeds: Sequence[int],
    apart: Sequence[str] = (),
    names: Sequence[str] = (),
) -> Recipe:
    """One recipe that runs several in lockstep; returns the list of their results.

    Stages that come up together must share their program, steps and stream names; what differs
    (initial variables, data order, random numbers, `Stage.values`) becomes a leading axis of
    members. A frozen role, or a stream, that is one and the same object for all members is not
    copied, so one teacher forward serves all where the batches are shared too. Members compute
    what they would alone, to float32 rounding.

    The recipes may themselves be made by `together`, one a seed: what the members of a seed have
    in common is then kept, and its teacher's forward computed, once a seed.

    Args:
      recipes: one a member.
      seeds: of each member's random numbers.
      apart: stages that run one after the other all the same: a convolution under `vmap` over its
        kernels is slower than its members in turn on a CPU.
      names: what members of one seed are called; each has the random numbers of its recipe
        `prefixed` with that name. Empty: the seeds tell them apart.
    """
    recipes, seeds, names = list(recipes), tuple(int(s) for s in seeds), tuple(names)
    if len(recipes) != len(seeds) or not recipes:
        raise ValueError(f"got {len(recipes)} recipes for {len(seeds)} seeds")
    if names and len(names) != len(recipes):
        raise ValueError(f"got {len(recipes)} recipes for {len(names)} names")
    labels = names or tuple(f"seed-{seed}" for seed in seeds)
    if len(set(labels)) < len(labels):
        raise ValueError(f"members must have different names, or seeds, got {labels}")
    values: list[Any] = [None] * len(recipes)
    while True:
        nodes, results = [], []
        for recipe, value in zip(recipes, values):
            try:
                nodes.append(recipe.send(value))
            except StopIteration as end:
                results.append(end.value)
        if results and nodes:
            raise ValueError(f"{len(results)} members ended while {nodes[0].name!r} was to come")
        if results:
            return results
        _agree(nodes, "names", [node.name for node in nodes])
        first = nodes[0]
        # What each node would be called in a run of its member alone.
        own = tuple(f"{name}/{first.name}" for name in names) or (first.name,) * len(nodes)
        if isinstance(first, Compute):
            values = []
            for node, *rest in zip(nodes, seeds, own, labels):
                values.append((yield _alone(node, *rest)))
            continue
        if first.name in apart:
            values = []
            for node, seed, name, label in zip(nodes, seeds, own, labels):
                values.append(
                    (
                        yield dataclasses.replace(
                            node, name=f"{node.name}/{label}", origin=(seed, name)
                        )
                    )
                )
            continue
        outcome = yield _merge(nodes, seeds, own if names else ())
        size = len(first.seeds)
        values = [
            Outcome(lambda i=i, n=size, o=outcome: _member(o.load(), i, n), outcome.steps)
            for i in range(len(seeds))
        ]


def prefixed(recipe: Recipe, prefix: str) -> Recipe:
    """A recipe whose nodes are called `prefix/name`: several recipes can then follow in one."""
    value = None
    while True:
        try:
            node = recipe.send(value)
        except StopIteration as end:
            return end.value
        value = yield dataclasses.replace(node, name=f"{prefix}/{node.name}")
