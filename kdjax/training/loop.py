"""Runs one stage: dispatches steps, reads their reports late, saves, validates, stops cleanly."""

from __future__ import annotations

import collections
import dataclasses
import signal
import threading
import time
import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kdjax.training.checkpoint import Checkpoints
from kdjax.training.metrics import MetricWriter
from kdjax.training.progress import Display
from kdjax.training.sharding import Layout, place
from kdjax.training.stage import Stage
from kdjax.training.state import State, initial
from kdjax.training.step import (
    compiled_step,
    compiled_validation,
    frozen_of,
    population_axes,
)

_LAG = 8  # steps between dispatching a step and reading whether its stage has ended


class NonFiniteLoss(RuntimeError):
    """A term of a loss became infinite or not a number; names stage, step and term."""


class Interrupted(SystemExit):
    """The run was asked to stop, has saved, and continues when it is started again."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """How stages are run: nothing here changes what they compute.

    Attributes:
      checkpoint_every: steps between checkpoints; 0: only finished stages are kept.
      keep: checkpoints of an unfinished stage that stay on disk.
      log_every: steps a line of metrics averages over.
      layout: mesh and partition rules.
      on_step: called with (stage name, steps dispatched) after each step; for tests and tools.
    """

    checkpoint_every: int = 0
    keep: int = 2
    log_every: int = 50
    layout: Layout = dataclasses.field(default_factory=Layout)
    on_step: Callable[[str, int], None] | None = None

    def __post_init__(self):
        if self.checkpoint_every < 0:
            raise ValueError(f"checkpoint_every must not be negative, got {self.checkpoint_every}")
        if self.keep < 1:
            raise ValueError(f"keep must be at least 1, got {self.keep}")
        if self.log_every < 1:
            raise ValueError(f"log_every must be at least 1, got {self.log_every}")


class Interrupts:
    """Turns SIGTERM and Ctrl-C into a request to save and stop; a second Ctrl-C stops at once."""

    def __init__(self):
        self.signal: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def _handle(self, number, frame):
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number

    def __exit__(self, *error):
        for number, handler in self._previous.items():
            signal.signal(number, handler)


class _Reports:
    """Reports of steps that were dispatched, read one window late so that nothing waits."""

    def __init__(self, stage: Stage, names: list[str], every: int, pending: list, metrics, display):
        self._stage, self._names, self._every = stage, names, every
        self._metrics, self._display = metrics, display
        self._open = [np.asarray(row, np.float32) for row in pending]  # of the unfinished window
        self._closed: tuple | None = None
        self._time, self._waited = time.monotonic(), 0.0

    def add(self, step: int, report: jax.Array, waited: float) -> None:
        """The report of `step` (counted from 1) and the time its item was waited for."""
        self._open.append(report)
        self._waited += waited
        if step % self._every == 0 or step == self._stage.steps:
            self.close(step)

    def close(self, step: int) -> None:
        """Ends the window at `step`, and writes the one before it."""
        if not self._open:
            return
        self.write()
        now = time.monotonic()
        self._closed = (step, self._open, self._waited, now - self._time)
        self._open, self._waited, self._time = [], 0.0, now

    def read(self, step: int, rows: list) -> list[np.ndarray]:
        rows = jax.device_get(rows)
        for i, row in enumerate(rows):
            if not np.all(np.isfinite(row)):
                self._fail(step - len(rows) + i + 1, row)
        return rows

    def _fail(self, step: int, row: np.ndarray) -> None:
        bad = ~np.isfinite(row).all(axis=-1)
        members = bad if bad.ndim == 1 else bad.any(axis=0)
        names = [name for name, is_bad in zip(self._names, members) if is_bad]
        terms = [name for name in names if "loss/" in name] or names
        who = ""
        if bad.ndim == 2:
            who = f" of seed {self._stage.seeds[int(np.flatnonzero(bad.any(axis=1))[0])]}"
        raise NonFiniteLoss(
            f"stage {self._stage.name!r}, step {step}: the term {terms[0]!r}{who} is not finite"
        )

    def pending(self, step: int) -> list:
        """The reports of the unfinished window, checked: what a checkpoint keeps of it."""
        self.write()
        return [row.tolist() for row in self.read(step, self._open)]

    def write(self, last: bool = False) -> None:
        """Writes the window that was ended; the last one lasts until it is computed."""
        if self._closed is None:
            return
        (step, rows, waited, seconds), self._closed = self._closed, None
        rows = self.read(step, rows)
        total = np.sum(np.asarray(rows, np.float64), axis=0)
        count = len(rows)
        if last:
            seconds += time.monotonic() - self._time
        values: dict[str, Any] = {}
        for i, name in enumerate(self._names):
            sums, weights = total[..., i, 0], total[..., i, 1]
            if np.all(weights > 0):
                values[name] = sums / weights
        members = max(len(self._stage.seeds), 1)
        size = sum(stream.batch_size for stream in self._stage.data.values()) * members
        values["examples_per_second"] = count * size / seconds
        values["stall"] = waited / seconds
        self._metrics.write(self._stage.name, step, "train", values)
        losses = [x for name, x in values.items() if name.rpartition("/")[2] == "loss"]
        loss = float(np.mean(losses[0])) if losses else float("nan")
        self._display.update(step, loss, values["examples_per_second"])


class _Validator:
    """Evaluates the live variables without waiting, and lets the state keep the best."""

    def __init__(self, stage: Stage, frozen, layout: Layout, first: int):
        validation = stage.validation
        axes = None
        if stage.seeds:
            frozen_axes, _, _ = population_axes(stage)
            shared = "validation" in stage.shared
            table = None if shared else getattr(validation.stream, "table_axis", 0)
            axes = (tuple(sorted(frozen_axes.items())), table, None if shared else 0)
        self._score, self._choose, self.names = compiled_validation(
            validation.evaluate, validation.stream.assemble, validation.score, axes
        )
        members = axes is not None and axes[2] == 0
        self._items = [layout.item(item, members) for item in validation.stream.items()]
        self._table = place(validation.stream.table, layout.replicated)
        self._stage, self._frozen = stage, frozen
        self._waiting: tuple | None = None
        self.last = first  # the last step that was evaluated, or the one before all

    def due(self, step: int) -> bool:
        return step % self._stage.validation.every == 0 or step == self._stage.steps

    def __call__(self, state: State, metrics: MetricWriter) -> State:
        self.write(metrics)
        rows = [self._score(state.variables, self._frozen, self._table, x) for x in self._items]
        # A copy: the step that comes next donates the state's own counter.
        at = jnp.copy(state.step)
        selected, total = self._choose(state.selected, rows, at, state.variables)
        self._waiting = (at, total)
        return state._replace(selected=selected)

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


def stage_keys(stage: Stage, key: jax.Array) -> jax.Array:
    """The random key of a stage's steps, one a member where there are members."""
    seed, name = stage.origin or (None, stage.name)
    number = np.uint32(zlib.crc32(name.encode()))
    key = key if seed is None else jax.random.key(seed)
    if not stage.seeds:
        return jax.random.fold_in(key, number)
    return jnp.stack([jax.random.fold_in(jax.random.key(s), number) for s in stage.seeds])


def abstract_state(stage: Stage, layout: Layout) -> State:
    """Shapes, types and shardings of a stage's state, without computing anything."""
    shapes = jax.eval_shape(lambda: initial(stage))
    shardings = layout.state(stage, shapes)
    return jax.tree.map(
        lambda s, where: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=where), shapes, shardings
    )


def continued(stage: Stage) -> Stage:
    """The stage with the live variables and the memory of the stage that it continues."""
    if stage.continues is None:
        return stage
    old = stage.continues.load()
    variables = {**stage.variables, **old.variables}
    return dataclasses.replace(stage, variables=variables, memory=old.memory)


def check_stage(stage: Stage, layout: Layout) -> None:
    """Refuses, before any compute, a stage that cannot run."""
    if stage.steps < 1:
        raise ValueError(f"stage {stage.name!r}: steps must be at least 1, got {stage.steps}")
    if not stage.data:
        raise ValueError(f"stage {stage.name!r}: data must hold at least one stream")
    for name, stream in stage.data.items():
        layout.check_batch(name, stream.batch_size)


def start(stage: Stage, layout: Layout) -> State:
    """The state before the first step, created where it lives."""
    if stage.continues is not None:
        old = stage.continues.load()
        like = abstract_state(stage, layout)
        shapes = [jax.tree.map(lambda x: (x.shape, x.dtype), t) for t in (old, like)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"stage {stage.name!r} continues a stage whose optimizers or validation are of "
                "other shapes"
            )
        fresh = jax.tree.map(lambda x, s: place(jnp.copy(x), s.sharding), old, like)
        state = fresh._replace(step=fresh.step * 0, done=jnp.zeros_like(fresh.done))
        if state.selected:
            scores = jnp.full_like(state.selected["score"], -jnp.inf)
            state = state._replace(selected={**state.selected, "score": scores})
        return place(state, jax.tree.map(lambda s: s.sharding, like))
    state = initial(stage)
    return place(state, layout.state(stage, state))


def train(
    stage: Stage,
    key: jax.Array,
    settings: Settings,
    checkpoints: Checkpoints | None,
    metrics: MetricWriter,
    display: Display,
    interrupts: Interrupts,
) -> State:
    """Runs a stage to its end, from its newest checkpoint if it has one."""
    layout, stage = settings.layout, continued(stage)
    check_stage(stage, layout)
    found = checkpoints.newest(abstract_state(stage, layout)) if checkpoints else None
    state, extra = found if found else (start(stage, layout), {})
    first = int(state.step)
    if found:
        display.say(f"{stage.name}: continues at step {first}")
    metrics.rewind(stage.name, first)

    shardings = jax.tree.map(lambda x: x.sharding, state)
    compiled = compiled_step(stage, shardings)
    frozen = layout.frozen(stage, frozen_of(stage))
    tables = {name: place(s.table, layout.replicated) for name, s in stage.data.items()}
    keys = place(stage_keys(stage, key), layout.replicated)
    steps = place(jnp.int32(stage.steps), layout.replicated)
    members = {name: bool(stage.seeds) and name not in stage.shared for name in stage.data}
    streams = {
        name: stream.items(first, extra.get("streams", {}).get(name))
        for name, stream in stage.data.items()
    }
    reports = _Reports(
        stage, compiled.names, settings.log_every, extra.get("pending", []), metrics, display
    )
    validator = _Validator(stage, frozen, layout, first) if stage.validation else None
    lag = 0 if stage.program.stop is None else _LAG
    dispatched: collections.deque = collections.deque()  # reports that may lie past an early end
    flags: list[jax.Array] = []
    saved = first

    def settle() -> int:
        """Waits for what was dispatched, and keeps the reports of the steps that counted."""
        end = int(state.step)
        while dispatched:
            entry = dispatched.popleft()
            if entry[0] <= end:
                reports.add(*entry)
        return end

    def save(step: int) -> None:
        nonlocal saved
        if settle() < step or step == saved:  # the stage has ended, or is saved
            return
        saved = step
        pending = reports.pending(step)
        if validator:
            validator.write(metrics)
        _check_parameters(stage, state, step)
        states = {n: streams[n].state() for n, stream in stage.data.items() if stream.stateful}
        checkpoints.save(step, state, {"pending": pending, "streams": states})

    display.begin(stage.name, first, stage.steps)
    started, step, report = time.monotonic(), first, None
    try:
        for step in range(first + 1, stage.steps + 1):
            if bool(flags) and len(flags) > _LAG and bool(flags[-1 - _LAG]):
                break
            if interrupts.signal is not None:
                if bool(state.done):
                    break
                _stop(stage, checkpoints, save, step - 1, interrupts.signal, display)
            before = time.monotonic()
            raw = {name: next(stream) for name, stream in streams.items()}
            # While an earlier step is still computed, the data was not waited for.
            idle = report is None or report.is_ready()
            waited = time.monotonic() - before if idle else 0.0
            items = {name: layout.item(item, members[name]) for name, item in raw.items()}
            state, report = compiled.function(state, frozen, tables, items, steps, keys)
            if stage.program.stop is not None:
                flags.append(jnp.copy(state.done))
                flags = flags[-1 - _LAG :]
            dispatched.append((step, report, waited))
            if len(dispatched) > lag:
                reports.add(*dispatched.popleft())
            if validator and validator.due(step):
                state = validator(state, metrics)
            if settings.on_step is not None:
                settings.on_step(stage.name, step)
            every = settings.checkpoint_every
            if checkpoints and every and step % every == 0 and step < stage.steps:
                save(step)
        step = settle()
        reports.close(step)
        reports.write(last=True)
        if validator:
            validator.write(metrics)
            if validator.last != step:
                state = validator(state, metrics)
                validator.write(metrics)
        _check_parameters(stage, state, step)
    finally:
        display.close()
    jax.block_until_ready(state)
    seconds = time.monotonic() - started
    display.end(f"{step} steps in {seconds:.1f} s")
    return state


def _stop(stage, checkpoints, save, step, number, display) -> None:
    name = signal.Signals(number).name
    display.close()
    if checkpoints is None:
        raise KeyboardInterrupt if number == signal.SIGINT else Interrupted(128 + number)
    if step:
        save(step)
        checkpoints.wait()
    display.say(f"{name}: saved {stage.name!r} at step {step}; the same command goes on from there")
    raise Interrupted(128 + number)


@jax.jit
def _finite(tree) -> jax.Array:
    leaves = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return jnp.all(jnp.array([jnp.all(jnp.isfinite(x)) for x in leaves]))


def _check_parameters(stage: Stage, state: State, step: int) -> None:
    """A gradient can be infinite where its loss was not: never keep what it has spoilt."""
    for role, tree in state.variables.items():
        if "params" in tree and not bool(_finite(tree["params"])):
            raise NonFiniteLoss(
                f"stage {stage.name!r}, step {step}: a parameter of {role!r} is not finite, "
                "though no term of the loss was: the gradient overflowed"
            )
