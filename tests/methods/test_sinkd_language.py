"""SinKD on tokens: the plan is one of positions to be predicted, and of nothing else."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import language_toys as toys
import numpy as np
import pytest

from kdjax.methods import sinkd
from kdjax.training import run
from kdjax.training.gradients import gradient
from kdjax.training.stage import Context
from kdjax.training.state import pick

ALL = sinkd.Config(sinkhorn_weight=1.0, max_positions=48)


@functools.cache
def compiled(config):
    stage = sinkd.recipe(toys.given(), config).send(None)
    (update,) = stage.program.updates
    live = {"student": stage.variables["student"]}
    frozen = {"teacher": stage.variables["teacher"]}
    values = {n: jnp.asarray(f(3, 30), jnp.float32) for n, f in stage.program.schedules.items()}

    @jax.jit
    def compute(batch):
        context = Context({}, jax.random.key(0), jnp.int32(3), values)
        batch, _ = stage.program.prepare({**frozen, **live}, {"train": batch}, context)
        result = gradient(update, pick(live, update.trains), live, frozen, batch, context)
        return result.gradient, {n: t.total / t.weight for n, t in result.metrics.items()}

    return compute


def test_what_is_not_to_be_predicted_is_in_no_plan():
    batch = toys.batch(8)
    whole, metrics = compiled(ALL)(batch)
    padded = {name: np.concatenate([x, x[:4]]) for name, x in batch.items()}
    padded["where"] = np.arange(12) < 8
    same, same_metrics = compiled(ALL)(padded)
    for x, y in zip(jax.tree.leaves((same, same_metrics)), jax.tree.leaves((whole, metrics))):
        np.testing.assert_allclose(x, y, rtol=2e-4, atol=2e-6)
    assert 0 < metrics["diagonal_mass"] <= 1


@pytest.mark.slow
def test_the_term_reaches_the_student():
    batch = toys.batch(8)
    strong, _ = compiled(ALL)(batch)
    none, _ = compiled(sinkd.Config(sinkhorn_weight=0.0, max_positions=48))(batch)
    changed = [
        bool(jnp.any(x != y)) for x, y in zip(jax.tree.leaves(strong), jax.tree.leaves(none))
    ]
    assert all(changed)


@pytest.mark.slow
def test_a_recipe_trains_the_student_and_leaves_the_teacher():
    task = toys.given()
    before = jax.tree.map(np.asarray, task.given["teacher"])
    trained = run(sinkd.recipe(task, ALL), seed=0)
    for x, y in zip(jax.tree.leaves(before), jax.tree.leaves(task.given["teacher"])):
        np.testing.assert_array_equal(x, y)
    start = task.variables("student")
    assert any(
        np.any(x != y) for x, y in zip(jax.tree.leaves(trained.last), jax.tree.leaves(start))
    )


def test_micro_batches_and_a_single_position_are_refused():
    with pytest.raises(ValueError, match="max_positions must be >= 2, got 1"):
        sinkd.Config(max_positions=1)
    task = toys.given()
    cut = {
        **task.training,
        "student": dataclasses.replace(task.training["student"], microbatches=2),
    }
    with pytest.raises(ValueError, match="microbatches=2"):
        sinkd.recipe(toys.given(training=cut), ALL).send(None)
