"""A program, compiled once: prepare, then each update in order, then the end of the stage."""

from __future__ import annotations

import dataclasses
import functools
import weakref
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax
from jax import lax

from kdjax.training import pmap
from kdjax.training.gradients import gradient
from kdjax.training.loss_scale import adjust, all_finite
from kdjax.training.members import over_members, population_axes
from kdjax.training.nonfinite import none_acted, unless_finite
from kdjax.training.sharding import Layout
from kdjax.training.stage import Context, Program, PyTree, Stage, Term, Update, Variables
from kdjax.training.state import State, first, pick, put, values_at


@dataclasses.dataclass
class CompiledStep:
    """A jitted step and the names of the rows of its report, known once it has been traced."""

    function: Callable  # (state, frozen, tables, items, values, steps, keys) -> (state, report)
    names: list[str]


def _act(update: Update, live, frozen, opt, memory, batch, context):
    """One update that acts: gradient, optimizer, what comes after."""
    context = context._replace(memory=memory)
    params = pick({**frozen, **live}, update.trains)
    before, scaled = (live, opt, memory), update.loss_scale is not None
    result = gradient(update, params, live, frozen, batch, context, opt.scale if scaled else None)
    grads, metrics, extra = result.gradient, dict(result.metrics), {}
    finite = all_finite(grads) if scaled else None
    if update.combine is not None:
        grads, extra = update.combine(grads)
    extra = {**extra, "gradient_norm": Term(optax.tree.norm(grads), jnp.float32(1))}
    if scaled:
        # What an overflow spoils is not reported, unless it is none of the scale's.
        told, one = finite | (opt.scale <= 1), jnp.float32(1)
        extra = jax.tree.map(lambda x: jnp.where(told, x, 0), extra)
        extra["loss_scale"] = Term(opt.scale, one)
        extra["overflow"] = Term(jnp.where(finite, 0.0, 1.0), one)
    metrics.update(extra)
    slots = opt.slots if scaled else opt
    changes, slots = update.optimizer(context.values).update(grads, slots, params)
    opt = opt._replace(slots=slots) if scaled else slots
    live, memory = put(result.variables, optax.apply_updates(params, changes)), result.memory
    if update.after is not None:
        after = context._replace(memory=memory)
        new, memory = update.after({**frozen, **live}, after, metrics)
        others = {role: x for role, x in new.items() if role not in live}
        changed = [role for role, x in others.items() if x is not frozen.get(role)]
        if changed:
            raise ValueError(f"after changed the frozen role {changed[0]!r}; name it in `carries`")
        live = {role: new[role] for role in live}
    if scaled:
        kept = map(same, before, (live, opt, memory), ("variables", "optimizers", "memory"))
        live, opt, memory = jax.tree.map(
            lambda old, new: jnp.where(finite, new, old), before, tuple(kept)
        )
        opt = adjust(update.loss_scale, before[1], finite)._replace(slots=opt.slots)
    prefix = f"{update.name}/" if update.name else ""
    return live, opt, memory, {prefix + name: term for name, term in metrics.items()}


def same(before: PyTree, after: PyTree, what: str) -> PyTree:
    """`after` with strong types, refused where structure, shape or type has changed."""
    if jax.tree.structure(before) != jax.tree.structure(after):
        raise ValueError(
            f"a step must keep the structure of {what}: "
            f"{jax.tree.structure(before)} became {jax.tree.structure(after)}"
        )

    def check(path, old, new):
        new = jnp.asarray(new)
        if old.shape != new.shape or old.dtype != new.dtype:
            raise ValueError(
                f"a step must keep shape and type of {what}{jax.tree_util.keystr(path)}: "
                f"{old.dtype}{list(old.shape)} became {new.dtype}{list(new.shape)}"
            )
        extended = jnp.issubdtype(new.dtype, jax.dtypes.extended)
        return new if extended else new.astype(old.dtype)

    return jax.tree_util.tree_map_with_path(check, before, after)


def _step(program_parts, names: list[str], state: State, frozen, batch, values, steps, key):
    """One step of a program on one batch; the report's rows are (total, weight) by `names`."""
    updates, prepare, schedules, stop, skip, axis = program_parts
    values = values_at(schedules, values, state.step, steps)
    rng = jax.random.fold_in(key, state.step)
    context = Context(state.memory, rng, state.step, values, axis)
    live, memory, opts = dict(state.variables), state.memory, list(state.optimizers)
    metrics: dict[str, Term] = {f"values/{n}": Term(values[n], jnp.float32(1)) for n in schedules}
    if prepare is not None:
        batch, memory = prepare({**frozen, **live}, batch, pmap.own(context))
    for k, update in enumerate(updates):
        c = context._replace(memory=memory, rng=jax.random.fold_in(rng, k + 1))

        def act(kept, update=update, c=c):
            *new, report = _act(update, kept[0], frozen, *kept[1:], batch, c)
            new = tuple(map(same, kept, new, ("variables", "optimizers", "memory")))
            if skip:
                prefix = f"{update.name}/" if update.name else ""
                new, report = unless_finite(kept, new, report, prefix)
            return (*new, report)

        kept = (live, opts[k], memory)
        if callable(update.when) or update.when > 1:
            shapes = jax.eval_shape(act, kept)[3]
            zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
            acts = update.when(c) if callable(update.when) else state.step % update.when == 0
            live, opts[k], memory, report = lax.cond(acts, act, lambda a, z=zero: (*a, z), kept)
        else:
            live, opts[k], memory, report = act(kept)
        twice = sorted(set(report) & set(metrics))
        if twice:
            raise ValueError(f"two updates report {twice[0]!r}: give them names (Update.name)")
        metrics.update(report)
    if skip and prepare is not None:  # what was prepared for skipped updates is not remembered
        lost = none_acted(metrics)
        memory = jax.tree.map(lambda old, new: jnp.where(lost, old, new), state.memory, memory)
    done = state.done if stop is None else stop(context._replace(memory=memory))
    memory = same(state.memory, memory, "memory")  # what prepare returned of it
    names[:] = list(metrics)
    rows = [jnp.stack([jnp.asarray(x, jnp.float32) for x in metrics[n][:2]]) for n in names]
    done = jnp.asarray(done, bool)
    return State(state.step + 1, live, tuple(opts), memory, state.selected, done), jnp.stack(rows)


_compiled: weakref.WeakKeyDictionary[Program, dict] = weakref.WeakKeyDictionary()


def compiled_step(
    stage: Stage, shardings: State, skip: bool = False, per_device: Layout | None = None
) -> CompiledStep:
    """The compiled step of a stage: shared by stages of one program that process data alike.

    With `skip`, an update whose loss or gradient is not finite changes nothing.

    Only the state is donated. Frozen variables and tables are arguments: never closed over,
    donated or returned. The returned function is
    `(state, frozen, tables, items, values, steps, keys) -> (state, report)`; with the layout
    `per_device` it is one program on each of its devices (see `pmap.py`).
    """
    program = stage.program
    leaves, structure = jax.tree.flatten(shardings)
    assembles = {name: stream.assemble for name, stream in stage.data.items()}
    processing = tuple((name, assembles[name]) for name in sorted(assembles))
    axes = population_axes(stage) if stage.seeds else ()
    # As pairs: the axes decide what vmap makes of the step, so they are part of the key.
    across = tuple(tuple(sorted(part.items())) for part in axes)
    over = tuple(per_device.mesh.devices.flat) if per_device else ()
    key = (processing, across, stage.groups, over, tuple(leaves), structure, skip)
    cache = _compiled.setdefault(program, {})
    if key in cache:
        return cache[key]
    names: list[str] = []
    # The parts, not the program: a value that held its key would never leave the weak dictionary.
    axis = pmap.AXIS if per_device else None
    parts = (program.updates, program.prepare, dict(program.schedules), program.stop, skip, axis)
    member = functools.partial(_member_step, parts, names, assembles)
    if stage.seeds:
        if program.stop is not None:
            raise ValueError(f"stage {stage.name!r}: members trained together cannot stop early")
        state_axes = State(None, 0, 0, 0, 0, None)
        in_axes = (state_axes, *axes, 0, None, 0)
        member = over_members(member, in_axes, (state_axes, 0), stage.groups)
    if per_device:
        function = pmap.compiled(member, per_device)
    else:
        function = jax.jit(member, donate_argnums=0, out_shardings=(shardings, None))
    cache[key] = CompiledStep(function, names)
    return cache[key]


_starts: weakref.WeakKeyDictionary[Program, dict] = weakref.WeakKeyDictionary()


def compiled_start(stage: Stage, shardings: State) -> Callable:
    """`(live variables, memory, steps, values) -> state` before the first step, made in place.

    Compiled once for stages of one program, as their step is. What it is given is copied.
    """
    leaves, structure = jax.tree.flatten(shardings)
    validated, members = stage.validation is not None, len(stage.seeds)
    key = (validated, members, tuple(leaves), structure)
    cache = _starts.setdefault(stage.program, {})
    if key not in cache:
        parts = stage.program.updates, dict(stage.program.schedules)
        start = functools.partial(first, *parts, members, validated)
        cache[key] = jax.jit(start, out_shardings=shardings)
    return cache[key]


def _member_step(parts, names, assembles, state, frozen, tables, items, values, steps, key):
    batch = {name: assembles[name](tables[name], items[name]) for name in assembles}

    def go(state):
        return _step(parts, names, state, frozen, batch, values, steps, key)

    if parts[3] is None:
        return go(state)
    # A finished stage ignores the steps that were already dispatched.
    shape = jax.eval_shape(go, state)[1]
    return lax.cond(state.done, lambda s: (s, jnp.zeros(shape.shape, shape.dtype)), go, state)


@functools.lru_cache(maxsize=64)
def compiled_validation(
    evaluate: Callable,
    assemble: Callable,
    score: str,
    axes: tuple | None,
    groups: int = 1,
    conclude: Callable | None = None,
):
    """`(score_batch, choose, names)` of a validation, shared by stages that validate alike.

    `score_batch(variables, frozen, table, item)` gives the rows (total, weight) of a batch;
    `choose(selected, rows of all batches, step, variables)`, not compiled yet, gives the better of
    the two and the summed rows, or one of weight 1 for each that `conclude` makes of them. `axes`:
    None for one member, else the axes of (frozen, table, item) over members, frozen as pairs.
    """
    names: list[str] = []

    def score_batch(variables, frozen, table, item):
        metrics = evaluate({**frozen, **variables}, assemble(table, item))
        if conclude is not None:
            pairs = {n: [jnp.asarray(x, jnp.float32) for x in metrics[n][:2]] for n in metrics}
            return {n: jnp.stack(jnp.broadcast_arrays(*pair)) for n, pair in pairs.items()}
        known(metrics)
        return jnp.stack(
            [jnp.stack([jnp.asarray(x, jnp.float32) for x in metrics[n][:2]]) for n in names]
        )

    def known(metrics):
        if score not in metrics:
            raise ValueError(f"score {score!r} is not among the metrics {sorted(metrics)}")
        names[:] = list(metrics)

    def choose(selected, rows, step, variables):
        if conclude is None:
            total = sum(rows)
        else:
            sums = jax.tree.map(lambda *x: sum(x), *rows)
            metrics = conclude({n: x[0] / x[1] for n, x in sums.items()})
            known(metrics)
            values = jnp.stack([jnp.asarray(metrics[n], jnp.float32) for n in names])
            total = jnp.stack([values, jnp.ones_like(values)], -1)
        value = total[names.index(score), 0] / total[names.index(score), 1]
        better = value > selected["score"]
        new = {"score": value, "step": step, "variables": variables}
        return jax.tree.map(lambda old, x: jnp.where(better, x, old), selected, new), total

    if axes is not None:
        frozen_axes, table_axis, item_axis = axes
        in_axes = (0, dict(frozen_axes), table_axis, item_axis)
        score_batch = over_members(score_batch, in_axes, 0, groups)
        choose = jax.vmap(choose, in_axes=(0, 0, None, 0))
    return jax.jit(score_batch), choose, names


def frozen_of(stage: Stage) -> Mapping[str, Variables]:
    """The roles that the program reads but never changes."""
    live = stage.program.live
    return {role: tree for role, tree in stage.variables.items() if role not in live}
