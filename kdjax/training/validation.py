"""Validation inside a stage: nothing waits for it; the state keeps the best variables, and what the
program wants to remember of it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from kdjax.training.members import axis, population_axes, table_axis
from kdjax.training.metrics import MetricWriter
from kdjax.training.sharding import Layout, place
from kdjax.training.stage import PyTree, Stage
from kdjax.training.state import State
from kdjax.training.step import compiled_validation, same


class Validator:
    """Evaluates the live variables without waiting, and lets the state keep the best.

    Args:
      stage: has a validation.
      frozen: its frozen roles, placed.
      layout: mesh and rules.
      first: the step that the stage begins or goes on at.
      shardings: of the state.
    """

    def __init__(self, stage: Stage, frozen, layout: Layout, first: int, shardings: State):
        validation = stage.validation
        axes = None
        if stage.seeds:
            frozen_axes, _, _ = population_axes(stage)
            table = table_axis(stage, "validation", validation.stream)
            axes = (tuple(sorted(frozen_axes.items())), table, axis(stage, "validation"))
        self._score, choose, self.names = compiled_validation(
            validation.evaluate,
            validation.stream.assemble,
            validation.score,
            axes,
            stage.groups,
            validation.conclude,
        )
        # What it returns lies as the state says, else the next step would be compiled anew.
        kept = (shardings.selected, None)
        self._choose = jax.jit(choose, donate_argnums=0, out_shardings=kept)
        self._remember = jax.jit(self._after, out_shardings=shardings.memory)
        self._items = [layout.item(stage, "validation", item) for item in validation.stream.items()]
        self._table = place(validation.stream.table, layout.replicated)
        self._stage, self._frozen = stage, frozen
        self._waiting: tuple | None = None
        self.last = first  # the last step that was evaluated, or the one before all

    def due(self, step: int) -> bool:
        return step % self._stage.validation.every == 0 or step == self._stage.steps

    def begin(self, state: State) -> State:
        """The state of a stage that has not made a step yet, with what `after` keeps of it."""
        if self._stage.validation.after is None:
            return state
        selected = jax.tree.map(jnp.copy, state.selected)  # which the choice donates
        _, total = self._choose(selected, self._rows(state), state.step, state.variables)
        memory = self._remember(state.memory, total, state.step, np.int32(-1))
        return state._replace(memory=memory)

    def __call__(self, state: State, metrics: MetricWriter) -> State:
        self.write(metrics)
        # A copy: the step that comes next donates the state's own counter.
        at = jnp.copy(state.step)
        selected, total = self._choose(state.selected, self._rows(state), at, state.variables)
        self._waiting = (at, total)
        state = state._replace(selected=selected)
        if self._stage.validation.after is None:
            return state
        memory = self._remember(state.memory, total, at, np.int32(self.last))
        return state._replace(memory=memory)

    def _rows(self, state: State) -> list:
        return [self._score(state.variables, self._frozen, self._table, x) for x in self._items]

    def _after(self, memory: PyTree, total: jax.Array, at: jax.Array, last: jax.Array) -> PyTree:
        """What `after` makes of the memory; nothing where the step `at` was evaluated last."""

        def after(memory, total):
            means = dict(zip(self.names, total[:, 0] / total[:, 1]))
            return same(memory, self._stage.validation.after(memory, means), "memory")

        new = (jax.vmap(after) if self._stage.seeds else after)(memory, total)
        return jax.tree.map(lambda old, x: jnp.where(at > last, x, old), memory, new)

    def write(self, metrics: MetricWriter) -> None:
        if self._waiting is None:
            return
        (at, total), self._waiting = self._waiting, None
        step = int(at)
        if step == self.last:  # steps that were dispatched past an early end
            return
        self.last = step
        total = np.asarray(jax.device_get(total), np.float64)
        values = {n: total[..., i, 0] / total[..., i, 1] for i, n in enumerate(self.names)}
        metrics.write(self._stage.name, step, "validation", values)
