"""One step of a method by itself: its first stage, a batch, the gradient of a step of 30."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from kdjax.training import divide
from kdjax.training.gradients import gradient
from kdjax.training.stage import Context
from kdjax.training.state import pick, values_at

RNG = jax.random.key(0)


def stage_of(task, module, config, microbatches=1):
    training = dataclasses.replace(task.training["student"], microbatches=microbatches)
    task = dataclasses.replace(task, training={**task.training, "student": training})
    return module.recipe(task.with_teacher(task.variables("teacher")), config).send(None)


def gradient_of(stage, batch, step=3):
    """The gradient of all that is trained and the metrics of a step of 30."""
    (update,), prepare = stage.program.updates, stage.program.prepare
    values = values_at(stage.program.schedules, stage.values, step, 30)
    context = Context({}, RNG, jnp.int32(step), values)
    live = {role: stage.variables[role] for role in stage.program.live}
    frozen = {role: x for role, x in stage.variables.items() if role not in live}

    @jax.jit
    def compute(live, frozen, batch):
        if prepare is not None:
            batch, _ = prepare({**frozen, **live}, batch, context)
        params = pick(live, update.trains)
        result = gradient(update, params, live, frozen, batch, context)
        return result.gradient, {n: divide(*term[:2]) for n, term in result.metrics.items()}

    return compute(live, frozen, batch)


def close(a, b, rtol=2e-5):
    scale = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(b))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=rtol * scale), a, b)


def first_batch(task, size=16):
    stream = task.stream("student")
    whole = jax.jit(stream.assemble)(stream.table, next(stream.items()))
    return {"train": jax.tree.map(lambda x: x[:size], whole)}


def padded(batch):
    padding = {
        "image": jnp.full((8, 8, 8, 1), 1e4),
        "label": jnp.full(8, -100, jnp.int32),
        "id": jnp.zeros(8, jnp.int32),
        "where": jnp.zeros(8, bool),
    }
    return {"train": {n: jnp.concatenate([x, padding[n]]) for n, x in batch["train"].items()}}
