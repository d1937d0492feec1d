"""DistiLLM: whose rows a step trains on follows the validation loss, and nothing else."""

import dataclasses

import jax
import jax.numpy as jnp
import language_toys as toys
import numpy as np
import pytest

from kdjax import methods
from kdjax.data import Split
from kdjax.methods import distillm, rollouts, sequence_kd
from kdjax.methods.distillm import BUFFER, DATA, STUDENT
from kdjax.training import MetricWriter, Settings, run

CONFIG = distillm.Config(capacity=16, threshold=1.0)


def task_with_corpus():
    data = toys.dataset()
    splits = {**data.splits, "corpus": Split.of(toys.rows(24, 9), "toys/corpus")}
    training = {**toys.task().training}
    training["student"] = dataclasses.replace(training["student"], batch_size=8)
    return toys.given(dataset=dataclasses.replace(data, splits=splits), training=training)


@pytest.fixture(scope="module")
def stage():
    config = dataclasses.replace(CONFIG, corpus_weight=0.5)
    return distillm.recipe(task_with_corpus(), config).send(None)


@pytest.fixture(scope="module")
def ready(stage):
    return toys.prepared(stage, {"train": toys.batch(8), "corpus": toys.batch(8, 6)})


def test_new_rows_enter_the_buffer_and_are_trained_on(stage, ready):
    batch, memory = ready
    assert set(batch) == {"train", "corpus"}
    assert batch["train"]["source"].tolist() == [STUDENT] * 8
    assert int(memory["buffer"]["written"]) == 8
    for name in rollouts.ROW:
        np.testing.assert_array_equal(memory["buffer"][name][:8], batch["train"][name])
    assert float(memory["threshold"]) == 1.0


def test_gradients_do_not_depend_on_padding_or_micro_batches(stage, ready):
    batch, memory = ready
    whole = toys.gradient_of(stage, batch, memory=memory)
    more = {name: toys.padded(part) for name, part in batch.items()}
    toys.close(toys.gradient_of(stage, more, 3, memory), whole)
    metrics = whole[1]
    assert (metrics["generated"], metrics["replayed"], metrics["threshold"]) == (1, 0, 1)
    total = metrics["loss/skewed_kl"] + 0.5 * metrics["loss/corpus"]
    np.testing.assert_allclose(metrics["loss"], total, rtol=1e-6)


@pytest.mark.parametrize("replay", distillm.REPLAY)
def test_the_source_follows_the_threshold_and_the_buffer(replay):
    rng = np.random.default_rng(0)
    for _ in range(200):
        u, phi, progress, full = rng.random(), rng.random(), rng.random(), rng.random() < 0.5
        share = {"decreasing": phi * (1 - progress), "constant": phi * 0.5}
        s = share.get(replay, phi * progress)
        if u < s or (u < phi and not full):
            wanted = STUDENT
        else:
            wanted = BUFFER if u < phi else DATA
        assert int(distillm.source(u, phi, progress, full, replay)) == wanted


def test_the_threshold_rises_only_where_the_loss_does():
    config, phi, reference = distillm.Config(), jnp.float32(0.0), jnp.float32(jnp.nan)
    kept = []
    for loss in (3.0, 2.0, 3.05, 3.1, 3.15, 9.0):
        phi, reference = distillm.raised(phi, reference, jnp.float32(loss), config)
        kept.append((round(float(phi), 2), round(float(reference), 2)))
    assert kept == [(0, 3.0), (0, 3.0), (0, 3.0), (0.1, 3.1), (0.1, 3.1), (0.2, 9.0)]
    assert float(distillm.raised(0.95, 1.0, 2.0, config)[0]) == 1.0


def test_the_threshold_follows_the_stages_own_validation_and_no_other():
    """A learning rate far too high: the loss rises above that of the untrained student."""
    training = toys.task().training
    wild = dataclasses.replace(training["student"], learning_rate=3.0)
    task = toys.given(training={**training, "student": wild}, validate_every=3)
    config = distillm.Config(epsilon=0.0, threshold_step=0.25, capacity=16)
    recipe = distillm.recipe(task, config)
    stage = recipe.send(None)
    assert set(stage.data) == {"train"}  # the step reads no rows of the split
    recipe.close()

    writer = MetricWriter(None)
    run(distillm.recipe(task, config), settings=Settings(log_every=1), metrics=writer)
    rows = task.dataset.splits["validation"].arrays()
    batch = {**rows, "id": np.arange(16), "where": np.ones(16, bool)}
    first = jax.jit(stage.validation.evaluate)(stage.variables, batch)["log_likelihood"]
    losses = {0: -float(first.total / first.weight)}
    losses |= {r["step"]: -r["log_likelihood"] for r in writer.rows if r["kind"] == "validation"}
    assert list(losses) == [0, 3, 6, 9, 12]
    phi, reference, wanted = 0.0, np.inf, {}
    for step in range(12):
        if step in losses and losses[step] >= reference:
            phi, reference = min(phi + 0.25, 1.0), losses[step]
        reference = losses[0] if step == 0 else reference
        wanted[step + 1] = phi
    assert len(set(wanted.values())) > 1
    assert wanted == {r["step"]: r["threshold"] for r in writer.rows if r["kind"] == "train"}


@pytest.mark.slow
def test_without_student_rows_it_is_word_level_distillation_with_the_skewed_kl():
    task = toys.given()
    config = distillm.Config(threshold_step=0.0, capacity=16)
    found = run(distillm.recipe(task, config))
    plain = run(sequence_kd.recipe(task, sequence_kd.Config(divergence="skewed_kl")))
    toys.close(found.last, plain.last, rtol=1e-4)


class Stop(Exception):
    pass


@pytest.mark.slow
def test_a_run_that_is_stopped_goes_on_with_its_buffer_and_threshold(tmp_path):
    task, config = toys.given(), distillm.Config(capacity=16, threshold=0.6, epsilon=0.0)
    whole = run(distillm.recipe(task, config), workdir=tmp_path / "whole")

    def stop(name, step):
        if step == 8:
            raise Stop

    settings = Settings(checkpoint_every=5)
    stopping = dataclasses.replace(settings, on_step=stop)
    with pytest.raises(Stop):
        run(distillm.recipe(task, config), workdir=tmp_path / "cut", settings=stopping)
    again = run(distillm.recipe(task, config), workdir=tmp_path / "cut", settings=settings)
    jax.tree.map(np.testing.assert_array_equal, again.last, whole.last)


def test_a_task_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="capacity=8 must hold a batch of the student's, 16"):
        distillm.recipe(toys.given(), distillm.Config(capacity=8)).send(None)
    with pytest.raises(ValueError, match=r"corpus_weight=1.0 needs a split 'corpus'"):
        distillm.recipe(toys.given(), distillm.Config(corpus_weight=1.0)).send(None)


BAD = {
    ("replay", "falling"): "replay must be one of",
    ("threshold", 1.5): r"threshold must be in \[0, 1\]",
    ("threshold_step", -0.1): r"threshold_step must be in \[0, 1\]",
    ("epsilon", -1.0): "epsilon must not be negative",
    ("corpus_weight", -1.0): "corpus_weight must not be negative",
    ("sampling_temperature", -1.0): "sampling_temperature must not be negative",
    ("capacity", 0): "capacity must be at least 1",
    ("label_weight", 1.0): "its own samples",
    ("lam", 2.0): r"lam must be in \[0, 1\]",
}


@pytest.mark.parametrize(("field", "value"), BAD)
def test_a_bad_config_is_refused(field, value):
    with pytest.raises(ValueError, match=BAD[field, value]):
        methods.configure("distillm", **{field: value})


def test_a_step_trains_on_a_batch_and_on_one_of_the_corpus(stage):
    assert stage.examples == 2 * 8  # of the rows, and of the corpus
