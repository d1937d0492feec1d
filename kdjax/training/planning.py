"""What the stages of a recipe will need, before anything is allocated: the recipe, traced.

A recipe is replayed under a JAX trace: networks are initialised as shapes, each stage is sent back
an outcome of shapes, and nothing is trained. The step of every stage is then compiled for these
shapes and the layout of the run, and the compiler says what it needs beside the arrays that are
held. What comes after a computation whose results are not known beforehand is not planned.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kdjax.training.flops import matrix_flops
from kdjax.training.journal import Recipe
from kdjax.training.loop import abstract_state, check_stage, continued, stage_keys
from kdjax.training.sharding import Layout
from kdjax.training.stage import Compute, Context, Outcome, PyTree, Stage, abstract
from kdjax.training.state import State, initial, values_at
from kdjax.training.step import compiled_step, compiled_validation, frozen_of


@dataclasses.dataclass(frozen=True)
class StagePlan:
    """What one stage needs. Bytes are those of the fullest device.

    Attributes:
      name, steps: of the stage.
      parameters: role -> entries of its `params`, over all devices.
      live, frozen: role -> bytes of its variables; frozen roles have no optimizer.
      optimizers: bytes of the optimizers' slots.
      kept: bytes of the program's memory, and of the best variables that a validation keeps.
      inputs: bytes of the streams' tables, the validation's among them, and of one batch's items.
      cache: bytes of the teacher's outputs among `inputs`, and of the whole cache on the host where
        they are read batch by batch; 0 where the teacher is run.
      temporaries: bytes that the compiled step needs beside its arguments: activations,
        gradients, outputs that are not written in place.
      validation: the same of the validation of one batch; 0 where there is none.
      prepare_flops, forward_flops, backward_flops: of matrix products and convolutions in one step
        on the whole batch: what is outside every gradient (the teacher's forward pass), the
        objectives, and the rest (`kdjax.training.flops`).
      compiled_flops: what XLA's cost analysis says of the compiled step, a device; it counts the
        body of a loop once.
    """

    name: str
    steps: int
    parameters: Mapping[str, int]
    live: Mapping[str, int]
    frozen: Mapping[str, int]
    optimizers: int
    kept: int
    inputs: int
    cache: int
    temporaries: int
    validation: int
    prepare_flops: int
    forward_flops: int
    backward_flops: int
    compiled_flops: float

    @property
    def held(self) -> int:
        """Bytes a device of the arrays that lie there for the whole stage."""
        roles = sum(self.live.values()) + sum(self.frozen.values())
        return roles + self.optimizers + self.kept + self.inputs

    @property
    def peak(self) -> int:
        """Bytes a device: what is held, and the temporaries of a step or of a validation."""
        return self.held + max(self.temporaries, self.validation)


@dataclasses.dataclass(frozen=True)
class Unplanned:
    """Where a plan ends before its recipe does.

    Attributes:
      name: the last node that was reached.
      reason: why nothing after it is planned.
    """

    name: str
    reason: str


def without_values(tree: PyTree) -> PyTree:
    """Arrays of the same shapes and types; under a trace nothing is allocated for them."""
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), tree)


def replay(make: Callable[[], Recipe]) -> tuple[list[Stage], Unplanned | None]:
    """The stages of a recipe, their variables and memory as `jax.ShapeDtypeStruct`.

    `make` is called under the trace. Where the best validated step is asked for, it is the last.
    """
    stages: list[Stage] = []
    end: list[Unplanned] = []

    def trace() -> None:
        recipe, value, name = make(), None, "the start"
        while True:
            try:
                node = recipe.send(value)
            except StopIteration:
                return
            except jax.errors.JAXTypeError:
                end.append(Unplanned(name, "what follows depends on values computed by the run"))
                return
            name = node.name
            if isinstance(node, Compute):
                if node.shapes is None:
                    reason = "what follows this computation depends on its values"
                    end.append(Unplanned(name, reason))
                    return
                value = {
                    k: np.broadcast_to(np.zeros((), s.dtype), s.shape)
                    for k, s in node.shapes.items()
                }
                continue
            node = continued(node)
            state = _ended(initial(node), node.steps)
            value = Outcome(lambda state=state: state, node.steps)
            variables = {role: abstract(tree) for role, tree in node.variables.items()}
            variables, memory = jax.tree.map(_shape, (variables, node.memory))
            stages.append(
                dataclasses.replace(node, variables=variables, memory=memory, continues=None)
            )

    jax.eval_shape(trace)
    return stages, end[0] if end else None


def _shape(x: Any) -> jax.ShapeDtypeStruct:
    x = x if hasattr(x, "dtype") else np.asarray(x)
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


def _ended(state: State, steps: int) -> State:
    last = np.int32(steps)
    selected = {**state.selected, "step": last} if state.selected else {}
    return state._replace(step=last, selected=selected)


def bytes_of(tree: PyTree) -> int:
    """Bytes a device of arrays or shapes: of one shard where they have a sharding."""

    def size(x) -> int:
        sharding = getattr(x, "sharding", None)
        shape = x.shape if sharding is None else sharding.shard_shape(x.shape)
        return math.prod(shape) * x.dtype.itemsize

    return sum(map(size, jax.tree.leaves(tree)))


def plan_stage(stage: Stage, layout: Layout) -> StagePlan:
    """What a stage of `replay` needs. Its step is compiled, and nothing is run.

    Raises:
      ValueError: the stage cannot run with this layout.
    """
    check_stage(stage, layout)
    if stage.seeds:
        raise ValueError(f"stage {stage.name!r}: members trained together are not planned")
    state = abstract_state(stage, layout)
    shardings = jax.tree.map(lambda s: s.sharding, state)
    frozen = {
        role: _placed(tree, layout.role(role, tree)) for role, tree in frozen_of(stage).items()
    }
    tables = {name: _everywhere(stream.table, layout) for name, stream in stage.data.items()}
    items = {
        name: layout.item(stage, name, next(iter(stream.items(0, None))))
        for name, stream in stage.data.items()
    }
    keys = jax.eval_shape(lambda: stage_keys(stage, jax.random.key(0)))
    values = {name: jax.ShapeDtypeStruct((), jnp.float32) for name in stage.values}
    steps = jax.ShapeDtypeStruct((), jnp.int32)
    values, steps, keys = _everywhere((values, steps, keys), layout)
    arguments = (state, frozen, tables, items, values, steps, keys)

    traced = compiled_step(stage, shardings).function.trace(*arguments)
    compiled = traced.lower().compile()
    prepare, forward = (
        matrix_flops(jax.make_jaxpr(part)(*arguments)) for part in _parts(stage, arguments)
    )
    inputs, validation = bytes_of((tables, items)), 0
    if stage.validation is not None:
        table, validation = _validation(stage, layout, state, frozen)
        # Tables are shared where two streams read one split.
        shared = any(stage.validation.stream.table is s.table for s in stage.data.values())
        inputs += 0 if shared else table
    return StagePlan(
        name=stage.name,
        steps=stage.steps,
        parameters={role: _entries(tree) for role, tree in stage.variables.items()},
        live={role: bytes_of(tree) for role, tree in state.variables.items()},
        frozen={role: bytes_of(tree) for role, tree in frozen.items()},
        optimizers=bytes_of(state.optimizers),
        kept=bytes_of((state.memory, state.selected)),
        inputs=inputs,
        cache=sum(_cached(stream) for stream in stage.data.values()),
        temporaries=_needed(compiled),
        validation=validation,
        prepare_flops=prepare,
        forward_flops=forward - prepare,
        backward_flops=matrix_flops(traced.jaxpr) - forward,
        compiled_flops=float((compiled.cost_analysis() or {}).get("flops", float("nan"))),
    )


def _placed(tree: PyTree, shardings: PyTree) -> PyTree:
    return jax.tree.map(
        lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), tree, shardings
    )


def _everywhere(tree: PyTree, layout: Layout) -> PyTree:
    return _placed(tree, jax.tree.map(lambda _: layout.replicated, tree))


def _entries(variables: PyTree) -> int:
    leaves = jax.tree.leaves(variables.get("params", variables))
    return sum(math.prod(x.shape) for x in leaves)


def _cached(stream) -> int:
    fields = stream.table if isinstance(stream.table, Mapping) else {}
    return sum(x.nbytes for name, x in fields.items() if name.startswith("teacher_"))


def _needed(compiled) -> int:
    """Bytes beside the arguments. Outputs that take the place of a donated argument are none."""
    found = compiled.memory_analysis()
    if found is None:
        raise ValueError(f"XLA reports no memory use on {jax.default_backend()}")
    outputs = found.output_size_in_bytes - found.alias_size_in_bytes
    return found.temp_size_in_bytes + max(outputs, 0)


def _validation(stage: Stage, layout: Layout, state: State, frozen) -> tuple[int, int]:
    """Bytes of a validation's table, and of what scoring one batch needs beside its arguments."""
    validation, stream = stage.validation, stage.validation.stream
    score, _, _ = compiled_validation(
        validation.evaluate, stream.assemble, validation.score, None, 1, validation.conclude
    )
    table = _everywhere(stream.table, layout)
    item = layout.item(stage, "validation", next(iter(stream.items())))
    compiled = score.lower(state.variables, frozen, table, item).compile()
    return bytes_of(table), _needed(compiled)


def _parts(stage: Stage, arguments) -> tuple[Callable, Callable]:
    """A step up to `prepare`, and up to the values of the objectives."""
    program = stage.program

    def prepare(state, frozen, tables, items, values, steps, key):
        batch = {n: s.assemble(tables[n], items[n]) for n, s in stage.data.items()}
        values = values_at(program.schedules, values, state.step, steps)
        context = Context(state.memory, key, state.step, values)
        if program.prepare is None:
            return batch, context
        batch, memory = program.prepare({**frozen, **state.variables}, batch, context)
        return batch, context._replace(memory=memory)

    def forward(state, frozen, *rest):
        batch, context = prepare(state, frozen, *rest)
        variables, terms = {**frozen, **state.variables}, []
        for update in program.updates:
            seen = batch
            if update.embed is not None:
                embeddings, _ = update.embed(variables, batch, context)
                seen = {**batch, "embeddings": embeddings}
            terms.append(update.objective(variables, seen, context).terms)
        return batch, context, terms

    return prepare, forward


def plan(
    make: Callable[[], Recipe], layout: Layout, only: Collection[str] | None = None
) -> tuple[list[StagePlan], Unplanned | None]:
    """The plans of a recipe's stages, and where they end before the recipe does.

    Args:
      make: builds the recipe; called under a trace.
      layout: mesh and partition rules of the run.
      only: names of the stages to plan; None: all.

    Raises:
      ValueError: a stage cannot run with this layout, or `only` names none of the recipe's.
    """
    stages, end = replay(make)
    known = [stage.name for stage in stages]
    for name in only or ():
        if name not in known:
            raise ValueError(f"there is no stage {name!r} to plan; there are {known}")
    return [plan_stage(s, layout) for s in stages if only is None or s.name in only], end
