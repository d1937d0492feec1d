"""Several seeds of one recipe, run together: their stages become one, under `vmap`."""

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
from kdjax.training.stage import Compute, Deferred, Outcome, PyTree, Stage, Validation, made
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
        self._streams = streams
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
        lacking = [s for s in self._streams if not hasattr(s, "reordered")]
        if lacking:
            raise ValueError(f"{type(lacking[0]).__name__} has one order only")
        other = copy.copy(self)
        other._streams = [s.reordered(attempt) for s in self._streams]
        return other

    def items(self, *arguments) -> Iterator[PyTree]:
        if self.stateful:
            return _Stateful(self._streams, *arguments)
        members = [s.items(*arguments) for s in self._streams]
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


@functools.lru_cache(maxsize=64)
def _each(function: Callable) -> Callable:
    return jax.vmap(function)


def _starts(trees: Sequence[PyTree | Deferred]) -> PyTree | Deferred:
    """A role's variables of all members; what is not made yet is made for all at once."""
    functions = {tree.function if isinstance(tree, Deferred) else None for tree in trees}
    if len(functions) > 1 or None in functions:
        return _stack([made(tree) for tree in trees])
    return Deferred(_each(*functions), _stack([tree.arguments for tree in trees]))


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


def _member(state: State, i: int) -> State:
    """The state of member i."""
    rest = jax.tree.map(lambda x: x[i], state._replace(step=(), done=()))
    return rest._replace(step=state.step, done=state.done)


def _merge(stages: Sequence[Stage], seeds: tuple[int, ...]) -> Stage:
    first = stages[0]
    _agree(stages, "steps", [s.steps for s in stages])
    _agree(stages, "streams", [sorted(s.data) for s in stages])
    _agree(stages, "roles", [sorted(s.variables) for s in stages])
    if not _same([s.program for s in stages]):
        raise ValueError(
            f"stages {first.name!r} of the members cannot run together: each built a program of "
            "its own; build the program once, outside the recipe"
        )
    shared, variables, data = set(), {}, {}
    for role in first.variables:
        trees = [s.variables[role] for s in stages]
        deferred = any(isinstance(tree, Deferred) for tree in trees)
        if role not in first.program.live and not deferred and _same_leaves(trees):
            shared.add(role)
            variables[role] = trees[0]
        else:
            variables[role] = _starts(trees)
    for name in first.data:
        streams = [s.data[name] for s in stages]
        if _same(streams):
            shared.add(name)
            data[name] = streams[0]
        else:
            data[name] = Bundle(streams)
    validation = first.validation
    if validation is not None:
        streams = [s.validation.stream for s in stages]
        _agree(stages, "validations", [s.validation.every for s in stages])
        if _same(streams):
            shared.add("validation")
        else:
            validation = Validation(
                validation.evaluate, Bundle(streams), validation.every, validation.score
            )
    continues = None
    if first.continues is not None:
        kept = [s.continues for s in stages]

        def load() -> State:
            states = [outcome.load() for outcome in kept]
            stacked = _stack([s._replace(step=(), done=()) for s in states])
            return stacked._replace(step=states[0].step, done=states[0].done)

        continues = Outcome(load, kept[0].steps)
    return dataclasses.replace(
        first,
        variables=variables,
        data=data,
        memory=_stack([s.memory for s in stages]),
        validation=validation,
        continues=continues,
        seeds=seeds,
        shared=frozenset(shared),
    )


def _alone(node: Compute, seed: int) -> Compute:
    """A member's computation, with the random numbers of a run of that seed alone."""
    number = zlib.crc32(node.name.encode())

    def function(rng: np.random.Generator, *arguments):
        return node.function(np.random.default_rng([seed, number]), *arguments)

    return Compute(f"{node.name}/seed-{seed}", function, node.arguments)


def together(recipes: Sequence[Recipe], seeds: Sequence[int], apart: Sequence[str] = ()) -> Recipe:
    """One recipe that runs several, one a seed, in lockstep; returns the list of their results.

    Stages that come up together must share their program, steps and stream names; what differs
    (initial variables, data order, random numbers) becomes a leading axis of members. A frozen
    role, or a stream, that is one and the same object for all members is not copied, so one
    teacher forward serves all where the batches are shared too. Members compute what they would
    alone, to float32 rounding. Stages named in `apart` run one after the other all the same: a
    convolution under `vmap` over its kernels is slower than its members in turn on a CPU.
    """
    recipes, seeds = list(recipes), tuple(int(s) for s in seeds)
    if len(recipes) != len(seeds) or not recipes:
        raise ValueError(f"got {len(recipes)} recipes for {len(seeds)} seeds")
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
        if isinstance(nodes[0], Compute):
            values = []
            for node, seed in zip(nodes, seeds):
                values.append((yield _alone(node, seed)))
            continue
        if nodes[0].name in apart:
            values = []
            for node, seed in zip(nodes, seeds):
                name = f"{node.name}/seed-{seed}"
                values.append(
                    (yield dataclasses.replace(node, name=name, origin=(seed, node.name)))
                )
            continue
        outcome = yield _merge(nodes, seeds)
        values = [
            Outcome(lambda i=i, o=outcome: _member(o.load(), i), outcome.steps)
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
