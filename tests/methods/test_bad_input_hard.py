"""HARD: teachers that have batch statistics, and augmentors that do not hear their noise."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import networks
from kdjax.methods import hard
from kdjax.training.stage import Context, made

CONFIG = hard.Config(max_shift=1.5, hidden=8)


@pytest.fixture
def stage(task):
    nets = {**task.networks, "teacher": networks.build("mlp", 10, widths=(16,), norm=True)}
    taught = dataclasses.replace(task, networks=nets)
    return next(hard.recipe(taught.with_teacher(taught.variables("teacher")), CONFIG))


def batch_of(stage, rows):
    stream = stage.data["train"]
    batch = stream.assemble(stream.table, next(iter(stream.items())))
    return {name: np.asarray(x)[:rows] for name, x in batch.items() if np.ndim(x)}


def test_a_frozen_teacher_answers_with_the_statistics_it_keeps(stage):
    variables = {role: made(x) for role, x in stage.variables.items()}
    assert "batch_stats" in variables["teacher"]

    def answers(rows):
        context = Context(stage.memory, jax.random.key(0), jnp.int32(0), {})
        batch, _ = stage.program.prepare(variables, {"train": batch_of(stage, rows)}, context)
        return batch["train"]["teacher_logits"]

    # In training mode an answer would depend on the other examples of its batch.
    np.testing.assert_allclose(answers(3), answers(8)[:3], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("hears", [False, True])
def test_the_spread_shows_an_augmentor_that_makes_one_view_of_all_noise(stage, hears):
    variables = {role: made(x) for role, x in stage.variables.items()}
    params = dict(variables["augmentor"]["params"])
    if hears:
        kernel = jax.random.normal(jax.random.key(1), params["last"]["kernel"].shape)
        params["last"] = {**params["last"], "kernel": kernel}
    variables["augmentor"] = {"params": params}
    context = Context(stage.memory, jax.random.key(0), jnp.int32(0), {})
    batch, _ = stage.program.prepare(variables, {"train": batch_of(stage, 4)}, context)
    objective = stage.program.updates[1].objective
    found = jax.jit(lambda *given: objective(*given, context).metrics["spread"])(variables, batch)
    assert (float(found.total) > 0) == hears
