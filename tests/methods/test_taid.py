"""TAID: what moves t, what the student learns from, and what it reduces to."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import language_toys as toys
import numpy as np
import pytest

from kdjax import losses
from kdjax.methods import sequence_kd, taid
from kdjax.training import Term, read_metrics, run
from kdjax.training.gradients import gradient
from kdjax.training.stage import Context
from kdjax.training.state import pick


@functools.cache
def compiled(config, parts=1, module=taid):
    """(gradient of the student, loss) at a t, with the batch in so many parts, compiled."""
    task = toys.given()
    stage = module.recipe(task, config).send(None)
    (update,) = stage.program.updates
    update = dataclasses.replace(update, microbatches=parts)
    frozen = {"teacher": stage.variables["teacher"]}

    @jax.jit
    def run(student, batch, t):
        state = losses.TaidState(jnp.float32(t), jnp.float32(jnp.inf), jnp.float32(0))
        values = {n: jnp.float32(0.5) for n in stage.program.schedules}
        context = Context(state, jax.random.key(0), jnp.int32(3), values)
        live = {"student": student}
        batch, _ = stage.program.prepare({**frozen, **live}, {"train": batch}, context)
        params = pick(live, update.trains)
        result = gradient(update, params, live, frozen, batch, context)
        return result.gradient, result.metrics["loss"]

    return run, stage.variables["student"]


DEFAULT = taid.Config()


def loss_and_gradient(batch, t=0.4, config=DEFAULT, parts=1, module=taid):
    run, student = compiled(config, parts, module)
    found, loss = run(student, batch, t)
    return found, float(loss.total / loss.weight)


def close(a, b, rtol=2e-5):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=rtol, atol=1e-6)


@pytest.mark.slow
def test_it_does_not_depend_on_micro_batches_or_padding():
    batch = toys.batch(8)
    whole = loss_and_gradient(batch)
    close(loss_and_gradient(batch, parts=4), whole)
    padded = {name: np.concatenate([x, x[:4]]) for name, x in batch.items()}
    padded["where"] = np.arange(12) < 8
    close(loss_and_gradient(padded), whole)


def test_at_the_student_itself_nothing_is_learnt():
    found, loss = loss_and_gradient(toys.batch(8), t=0.0)
    assert loss > 0
    assert max(float(jnp.max(jnp.abs(x))) for x in jax.tree.leaves(found)) < 1e-6


def test_at_the_teacher_it_is_word_level_distillation():
    batch = toys.batch(8)
    found, _ = loss_and_gradient(batch, t=1.0)
    expected, kl = loss_and_gradient(batch, config=sequence_kd.Config(), module=sequence_kd)
    close(found, expected, rtol=1e-4)
    kl_form = loss_and_gradient(batch, t=1.0, config=taid.Config(signal="kl"))
    np.testing.assert_allclose(kl_form[1], kl, rtol=1e-4)


def test_t_rises_to_its_end_and_is_part_of_what_is_kept(tmp_path):
    task = toys.given()
    config = taid.Config(t_start=0.2, alpha=0.3)
    steps = task.training["student"].steps
    outcome = {}

    def recipe():
        outcome["state"] = yield taid.recipe(task, config).send(None)
        return outcome["state"]

    state = run(recipe(), seed=0, workdir=tmp_path).memory
    assert 0.2 + 0.8 * (steps - 1) / steps <= float(state.t) <= 1
    assert np.isfinite(state.previous_loss)
    (row,) = [r for r in read_metrics(tmp_path) if r["kind"] == "train"]
    assert 0.2 < row["t"] < 1


def test_a_batch_without_tokens_leaves_the_controller_on_its_line():
    stage = taid.recipe(toys.given(), taid.Config()).send(None)
    (update,) = stage.program.updates
    state = losses.TaidState(jnp.float32(0.45), jnp.float32(2), jnp.float32(0.1))
    context = Context(state, None, jnp.int32(0), {"progress": jnp.float32(0.5)})
    empty = {"loss/taid": Term(jnp.float32(0), jnp.float32(0))}
    _, after = update.after({}, context, empty)
    np.testing.assert_allclose(after.t, 0.7, rtol=1e-6)
    assert after.previous_loss == 2


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"t_start": 1.0}, r"t_start must be in \[0, 1\), got 1.0"),
        ({"t_end": 0.0}, r"t_end must be in \(0, 1\], got 0.0"),
        ({"t_start": 0.9, "t_end": 0.5}, "t_start=0.9 must not be above t_end=0.5"),
        ({"alpha": -0.1}, r"alpha must be in \[0, 1\], got -0.1"),
        ({"beta": 1.0}, r"beta must be in \[0, 1\), got 1.0"),
        ({"signal": "mse"}, "signal must be"),
        ({"label_weight": -1.0}, "label_weight must not be negative"),
        ({"distillation_weight": 0.0}, "distillation_weight must be positive"),
    ],
)
def test_bad_configs_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        taid.Config(**fields)
