"""Runs one stage: dispatches steps, reads their reports late, saves, validates, stops cleanly."""

from __future__ import annotations

import collections
import dataclasses
import signal
import time
import zlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from kdjax.training import pmap, stream_states
from kdjax.training.checkpoint import Checkpoints
from kdjax.training.interrupts import Interrupted, Interrupts
from kdjax.training.metrics import MetricWriter
from kdjax.training.nonfinite import POLICIES, NonFiniteLoss, NonFinitePolicy
from kdjax.training.profiling import Profile, Profiler
from kdjax.training.progress import Display
from kdjax.training.reports import Reports, check_parameters
from kdjax.training.sharding import Layout, place
from kdjax.training.stage import Stage, abstract
from kdjax.training.state import State, check_values, initial, strong
from kdjax.training.step import compiled_start, compiled_step, frozen_of
from kdjax.training.validation import Validator

_LAG = 8  # steps between dispatching a step and reading whether its stage has ended


@dataclasses.dataclass(frozen=True)
class Settings:
    """How stages are run: nothing here changes what they compute while losses are finite.

    Attributes:
      checkpoint_every: steps between checkpoints; 0: only finished stages are kept.
      keep: checkpoints of an unfinished stage that stay on disk.
      log_every: steps a line of metrics averages over.
      layout: mesh and partition rules.
      backend: "jit", or "pmap": a program a device, see `pmap.py`. What is on disk is the same.
      profile: steps that are traced; None: none.
      nonfinite: what a loss or gradient that is not finite does: "stop" the run; "skip" the update,
        which then changes nothing; "rollback": the stage goes back to its newest checkpoint at a
        multiple of `checkpoint_every` (else to its start) and on in another order of its data.
      nonfinite_limit: updates skipped in a row, or rollbacks of a stage, after which it stops.
      on_step: called with (stage name, steps dispatched) after each step; for tests and tools.
    """

    checkpoint_every: int = 0
    keep: int = 2
    log_every: int = 50
    layout: Layout = dataclasses.field(default_factory=Layout)
    backend: str = "jit"
    profile: Profile | None = None
    nonfinite: str = "stop"
    nonfinite_limit: int = 10
    on_step: Callable[[str, int], None] | None = None

    def __post_init__(self):
        if self.checkpoint_every < 0:
            raise ValueError(f"checkpoint_every must not be negative, got {self.checkpoint_every}")
        if self.keep < 1:
            raise ValueError(f"keep must be at least 1, got {self.keep}")
        if self.log_every < 1:
            raise ValueError(f"log_every must be at least 1, got {self.log_every}")
        if self.nonfinite not in POLICIES:
            raise ValueError(f"nonfinite must be one of {POLICIES}, got {self.nonfinite!r}")
        if self.nonfinite_limit < 1:
            raise ValueError(f"nonfinite_limit must be at least 1, got {self.nonfinite_limit}")
        if self.backend not in ("jit", "pmap"):
            raise ValueError(f"backend must be 'jit' or 'pmap', got {self.backend!r}")


def stage_keys(stage: Stage, key: jax.Array) -> jax.Array:
    """The random key of a stage's steps, one a member where there are members."""
    seed, name = stage.origin or (None, stage.name)
    key = key if seed is None else jax.random.key(seed)
    if not stage.seeds:
        return jax.random.fold_in(key, _number(name))
    names = stage.names or (name,) * len(stage.seeds)
    return jnp.stack(
        [jax.random.fold_in(jax.random.key(s), _number(n)) for s, n in zip(stage.seeds, names)]
    )


def _number(name: str) -> np.uint32:
    return np.uint32(zlib.crc32(name.encode()))


def abstract_state(stage: Stage, layout: Layout) -> State:
    """Shapes, types and shardings of a stage's state, without computing anything."""

    def state(variables, memory):
        return initial(dataclasses.replace(stage, variables=variables, memory=memory))

    variables = {role: abstract(tree) for role, tree in stage.variables.items()}
    shapes = jax.eval_shape(state, variables, stage.memory)
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
    check_values(stage)
    layout.check_members(stage)
    for name, stream in stage.data.items():
        if not layout.cuts_members(stage):
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
    shardings = jax.tree.map(lambda s: s.sharding, abstract_state(stage, layout))
    lead = layout.lead(stage)
    variables = {
        role: dict(layout.make(role, stage.variables[role], lead)) for role in stage.program.live
    }
    memory = place(strong(stage.memory), shardings.memory)
    values = {name: np.asarray(x, np.float32) for name, x in stage.values.items()}
    return compiled_start(stage, shardings)(variables, memory, stage.steps, values)


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
    stage = continued(stage)
    check_stage(stage, settings.layout)
    if settings.backend == "pmap":
        pmap.check(stage, settings.layout)
    policy = NonFinitePolicy(stage, settings.nonfinite, settings.nonfinite_limit)
    while True:
        try:
            return _attempt(stage, key, settings, checkpoints, metrics, display, interrupts, policy)
        except NonFiniteLoss as error:
            display.say(policy.roll_back(error))
        if checkpoints:
            checkpoints.forget_irregular()


def _attempt(stage, key, settings, checkpoints, metrics, display, interrupts, policy) -> State:
    layout, per_device = settings.layout, settings.backend == "pmap"
    found = checkpoints.newest(abstract_state(stage, layout)) if checkpoints else None
    state, extra = found if found else (start(stage, layout), {})
    if per_device:
        state = pmap.place(state, layout)
    first = int(state.step)
    policy.restore(extra)
    if found:
        display.say(f"{stage.name}: continues at step {first}")
    for number in metrics.rewind(stage.name, first):
        display.say(f"metrics.jsonl: line {number} was damaged and is left out")

    shardings = jax.tree.map(lambda x: x.sharding, state)
    compiled = compiled_step(stage, shardings, policy.skips, layout if per_device else None)
    put = pmap.item if per_device else Layout.item
    frozen = layout.frozen(stage, frozen_of(stage))
    tables = {name: place(s.table, layout.replicated) for name, s in stage.data.items()}
    keys = place(policy.keys(stage_keys(stage, key)), layout.members(stage))
    steps = place(jnp.int32(stage.steps), layout.replicated)
    values = place({n: jnp.float32(x) for n, x in stage.values.items()}, layout.members(stage))
    kept = stream_states.of_this(stage, extra.get("stream_states", ()))
    streams = {
        name: policy.stream(stream).items(first, kept.get(name))
        for name, stream in stage.data.items()
    }
    reports = Reports(
        stage,
        compiled.names,
        settings.log_every,
        extra.get("pending", []),
        policy,
        metrics,
        display,
    )
    validator = None
    if stage.validation:
        validator = Validator(stage, frozen, layout, first, shardings)
        if not found:
            state = validator.begin(state)
    lag = 0 if stage.program.stop is None else _LAG
    dispatched: collections.deque = collections.deque()  # reports that may lie past an early end
    flags: list[jax.Array] = []
    saved = first

    def check(step: int) -> None:
        check_parameters(stage, state, step)
        if per_device:
            pmap.check_equal(stage, state, step)

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
        check(step)
        states = {n: streams[n].state() for n, stream in stage.data.items() if stream.stateful}
        states = stream_states.of_all(states)
        kept = {"pending": pending, "stream_states": states, "nonfinite": policy.kept()}
        checkpoints.save(step, state, kept)

    profiler = Profiler(settings.profile, stage.name, display)
    display.begin(stage.name, first, stage.steps)
    started, step, report = time.monotonic(), first, None
    try:
        for step in range(first + 1, stage.steps + 1):
            if bool(flags) and len(flags) > _LAG and bool(flags[-1 - _LAG]):
                break
            number = interrupts.reached()
            if number is not None:
                if bool(state.done):
                    break
                _stop(stage, checkpoints, save, step - 1, number, display)
            profiler.before(step, report)
            before = time.monotonic()
            raw = {name: next(stream) for name, stream in streams.items()}
            ready = time.monotonic()
            # While an earlier step is still computed, the data was not waited for.
            idle = report is None or report.is_ready()
            waited = ready - before if idle else 0.0
            items = {name: put(layout, stage, name, item) for name, item in raw.items()}
            state, report = compiled.function(state, frozen, tables, items, values, steps, keys)
            reports.clock.add(ready - before, time.monotonic() - ready)
            if per_device and step == first + 1:
                check(step)
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
        check(step)
    finally:
        display.close()
        profiler.close(report)
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
