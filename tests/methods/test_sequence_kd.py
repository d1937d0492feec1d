"""Distillation on the data's rows, the teacher's and the student's: what the methods promise."""

import dataclasses

import jax
import jax.numpy as jnp
import language_toys as toys
import numpy as np
import pytest

from kdjax import losses, methods
from kdjax.data import Split
from kdjax.methods import gkd, language_model, prompted, rollouts, sequence_kd
from kdjax.methods.language_task import head_of, read, targets
from kdjax.methods.token_divergence import DIVERGENCES, Divergence, terms
from kdjax.networks.transformer import project
from kdjax.training import Compute, Stage, run


def stage_of(module, config, task=None) -> Stage:
    return module.recipe(task or toys.given(), config).send(None)


@pytest.fixture(scope="module")
def word():
    return stage_of(sequence_kd, sequence_kd.Config(label_weight=0.5, temperature=2.0))


def test_gradients_do_not_depend_on_padding_or_micro_batches(word):
    batch = toys.batch(8)
    ready, _ = toys.prepared(word, {"train": batch})
    more, _ = toys.prepared(word, {"train": toys.padded(batch, rows_=4, places=2)})
    toys.close(toys.gradient_of(word, more, microbatches=3), toys.gradient_of(word, ready))


EXPECTED = {
    "kl": lambda p, q: losses.kl_divergence(p, q),
    "reverse_kl": lambda p, q: losses.kl_divergence(q, p),
    "generalized_jsd": lambda p, q: losses.generalized_jsd(p, q, beta=0.3),
    "skewed_kl": lambda p, q: losses.skewed_forward_kl(p, q, lam=0.2),
    "skewed_reverse_kl": lambda p, q: losses.skewed_reverse_kl(p, q, lam=0.2),
    "total_variation": lambda p, q: losses.total_variation(p, q),
}


def test_every_divergence_is_its_kernel_on_the_tokens_to_be_predicted(word):
    assert set(EXPECTED) == set(DIVERGENCES)
    student, teacher, batch = word.variables["student"], word.variables["teacher"], toys.batch(8)

    @jax.jit
    def found(batch):
        own, other = read(toys.STUDENT, student, batch), read(toys.TEACHER, teacher, batch)
        features = jnp.pad(other.hidden, ((0, 0), (0, 1), (0, 0)), constant_values=jnp.nan)
        head, (_, where) = head_of(toys.TEACHER, teacher), targets(batch)
        p, q = project(other.hidden, other.head.weight), project(own.hidden, own.head.weight)
        pairs = {}
        for name in DIVERGENCES:
            config = Divergence(name, beta=0.3, lam=0.2, temperature=2.0, scale_by_t2=True)
            (term,) = terms(config, own, features, head, batch).values()
            wanted = jnp.where(where, EXPECTED[name](p / 2, q / 2), 0).sum()
            pairs[name] = (term.total, wanted, term.weight, where.sum(), term.coefficient)
        return pairs

    for total, wanted, weight, count, coefficient in found(batch).values():
        np.testing.assert_allclose(total, wanted, rtol=1e-4, atol=1e-6)
        assert (weight, coefficient) == (count, 4.0)
        assert total > 0


def test_without_the_teacher_it_is_language_modelling():
    config = sequence_kd.Config(label_weight=1.0, distillation_weight=0.0)
    one = stage_of(sequence_kd, config)
    plain = stage_of(language_model, language_model.Config())
    batch = {"train": toys.batch(8)}
    assert one.program.prepare is None
    toys.close(toys.gradient_of(one, batch), toys.gradient_of(plain, batch))


def test_gkd_without_student_samples_and_with_the_kl_is_word_level():
    config = gkd.Config(divergence="kl", on_policy=0.0)
    plain = stage_of(sequence_kd, sequence_kd.Config())
    batch = {"train": toys.batch(8)}
    found = [
        toys.gradient_of(stage, toys.prepared(stage, batch)[0])
        for stage in (stage_of(gkd, config), plain)
    ]
    toys.close(found[0][0], found[1][0])
    assert found[0][1]["on_policy"] == 0


def test_gkd_trains_on_what_the_student_writes_and_not_through_the_sampling():
    stage = stage_of(gkd, gkd.Config(on_policy=1.0))
    batch = {"train": toys.batch(8)}
    ready, _ = toys.prepared(stage, batch)
    step = jax.random.fold_in(jax.random.key(0), 3)  # of `toys.prepared`
    rng = jax.random.split(jax.random.fold_in(step, 0))[1]
    options = dict(prompt_length=toys.PROMPT, stop=(toys.TOKENIZER.end,), temperature=0.9)
    own = rollouts.roll_out(
        toys.STUDENT, stage.variables["student"], batch["train"], rng, **options
    )
    for name in rollouts.ROW:
        np.testing.assert_array_equal(ready["train"][name], own.batch[name])
    assert ready["train"]["on_policy"].tolist() == [1] * 8


def test_speculative_kd_trains_on_what_the_student_writes_and_the_teacher_mends():
    """With K = 1 and no randomness of the teacher's: on its most probable answers."""
    config = gkd.Config(on_policy=1.0, accept_top_k=1, correction_temperature=0.0)
    stage = stage_of(gkd, config)
    ready, _ = toys.prepared(stage, {"train": toys.batch(8)})
    options = dict(prompt_length=toys.PROMPT, stop=(toys.TOKENIZER.end,), temperature=0.0)
    greedy = rollouts.roll_out(
        toys.TEACHER, stage.variables["teacher"], toys.batch(8), jax.random.key(0), **options
    )
    for name in rollouts.ROW:
        np.testing.assert_array_equal(ready["train"][name], greedy.batch[name])
    counted = ready["train"]["completion"]
    _, metrics = toys.gradient_of(stage, ready)
    assert not ready["train"]["corrected"][~counted].any()
    share = ready["train"]["corrected"][counted].mean()
    np.testing.assert_allclose(metrics["corrected"], share, rtol=1e-6)
    assert 0 < share < 1


def test_what_speculative_kd_cannot_judge_is_refused_before_the_teacher_is_trained():
    with pytest.raises(ValueError, match="accept_top_k=25 must be at most the vocabulary, 12"):
        stage_of(gkd, gkd.Config(**gkd.SPECULATIVE), toys.task())
    with pytest.raises(ValueError, match="with on_policy=0 it never does"):
        gkd.Config(on_policy=0.0, accept_top_k=4)


@pytest.mark.slow
def test_the_gradient_of_gkd_does_not_depend_on_padding_or_micro_batches():
    stage = stage_of(gkd, gkd.Config(on_policy=0.5, seq_kd=True, accept_top_k=4))
    ready, _ = toys.prepared(stage, {"train": toys.batch(8)})
    more = {"train": toys.padded(ready["train"])}
    toys.close(toys.gradient_of(stage, more, 3), toys.gradient_of(stage, ready))


@pytest.mark.slow
def test_gkd_draws_who_answers_and_leaves_its_teacher_alone():
    task = toys.given()
    before = jax.tree.map(lambda x: np.asarray(x).tobytes(), task.given["teacher"])
    runs = [run(gkd.recipe(task, gkd.Config(on_policy=0.5, seq_kd=True))) for _ in range(2)]
    jax.tree.map(np.testing.assert_array_equal, runs[0].last, runs[1].last)
    assert before == jax.tree.map(lambda x: np.asarray(x).tobytes(), task.given["teacher"])


def test_sequence_level_takes_the_teachers_answers_in_place_of_the_datas():
    task, config = toys.given(), sequence_kd.Config(**sequence_kd.SEQUENCE_LEVEL)
    recipe = sequence_kd.recipe(task, config)
    node = recipe.send(None)
    assert isinstance(node, Compute)
    found = {n: np.asarray(x) for n, x in node.function(np.random.default_rng(0)).items()}
    stage = recipe.send(found)
    held = stage.data["train"].table
    arrays, start = task.dataset.splits["train"].arrays(), toys.PROMPT
    np.testing.assert_array_equal(held["tokens"], found["tokens"])
    np.testing.assert_array_equal(found["tokens"][:, :start], arrays["tokens"][:, :start])
    assert (found["tokens"] != arrays["tokens"]).any()
    assert found["completion"][:, start].all()  # of every row, the last incomplete batch too


@pytest.mark.slow
def test_the_teachers_answers_do_not_depend_on_their_batches():
    task, found = toys.given(), []
    for size in (256, 20):
        node = prompted.answered(task, task.given["teacher"], 1.0, batch_size=size).send(None)
        found.append(dict(node.function(np.random.default_rng(0))))
    jax.tree.map(np.testing.assert_array_equal, *found)


def split_with(**changes):
    data = toys.dataset()
    arrays = {**data.splits["train"].arrays(), **changes}
    splits = {**data.splits, "train": Split.of(arrays, "toys/train")}
    return toys.given(dataset=dataclasses.replace(data, splits=splits))


def test_rows_that_cannot_be_answered_are_refused():
    arrays = toys.dataset().splits["train"].arrays()
    completion = arrays["completion"].copy()
    completion[3, toys.PROMPT - 1] = True
    with pytest.raises(ValueError, match="begin at 4 in row 0 and at 3 in row 3"):
        stage_of(gkd, gkd.Config(), split_with(completion=completion))
    completion[3] = False
    with pytest.raises(ValueError, match="nowhere in row 3"):
        stage_of(gkd, gkd.Config(), split_with(completion=completion))
    segments = arrays["segments"].copy()
    segments[5, -1] = 2
    with pytest.raises(ValueError, match="row 5 of toys/train holds 2"):
        stage_of(gkd, gkd.Config(), split_with(segments=segments))
    with pytest.raises(ValueError, match="rows that a model writes"):
        stage_of(gkd, gkd.Config(), toys.given(cache_teacher=True))


BAD = {
    ("sequence_kd", "divergence", "kld"): "divergence must be one of",
    ("sequence_kd", "beta", 1.1): r"beta must be in \[0, 1\]",
    ("sequence_kd", "lam", -0.1): r"lam must be in \[0, 1\]",
    ("sequence_kd", "temperature", 0.0): "temperature must be positive",
    ("sequence_kd", "label_weight", -1.0): "label_weight must not be negative",
    ("sequence_kd", "distillation_weight", 0.0): "must not both be 0",
    ("sequence_kd", "answers", "student"): "answers must be 'data' or 'teacher'",
    ("sequence_kd", "answer_temperature", -1.0): "answer_temperature must not be negative",
    ("gkd", "on_policy", 1.5): r"on_policy must be in \[0, 1\]",
    ("gkd", "sampling_temperature", -0.1): "sampling_temperature must not be negative",
    ("gkd", "label_weight", 0.5): "its own samples",
    ("gkd", "accept_top_k", -1): "accept_top_k must not be negative",
    ("gkd", "correction_temperature", -1.0): "correction_temperature must not be negative",
    ("gkd", "top_p", 0.0): r"top_p must be in \(0, 1\]",
}


@pytest.mark.parametrize(("name", "field", "value"), BAD)
def test_a_bad_config_is_refused(name, field, value):
    with pytest.raises(ValueError, match=BAD[name, field, value]):
        methods.configure(name, **{field: value})
