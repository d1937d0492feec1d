"""MiniLLM: a round of answers, what is learnt from it, and that it is one compiled step."""

import dataclasses

import jax
import jax.numpy as jnp
import language_toys as toys
import numpy as np
import pytest

from kdjax import losses, methods
from kdjax.data import Split
from kdjax.methods import minillm
from kdjax.methods.language_task import read, targets
from kdjax.networks.transformer import project
from kdjax.training import run

CONFIG = minillm.Config(rollouts=16, epochs=2, corpus_weight=0.5)


def task_with_corpus(**changes):
    data = toys.dataset()
    splits = {**data.splits, "corpus": Split.of(toys.rows(24, 9), "toys/corpus")}
    training = {**toys.task().training}
    training["student"] = dataclasses.replace(training["student"], batch_size=8)
    data = dataclasses.replace(data, splits=splits)
    return toys.given(dataset=data, training=training, **changes)


@pytest.fixture(scope="module")
def stage():
    return minillm.recipe(task_with_corpus(), CONFIG).send(None)


@pytest.fixture(scope="module")
def steps(stage):
    """`(batch, memory)` of steps 0, 1, 2 and 3: two epochs of two parts each."""
    batch, found = {"train": toys.batch(16), "corpus": toys.batch(8, 6)}, []
    compute = toys.preparing(stage)
    memory = stage.memory
    for step in range(5):
        ready, memory = compute(stage.variables, memory, batch, jnp.int32(step))
        found.append((ready, memory))
    return found


def test_a_round_is_written_once_and_gone_over_in_epochs(steps):
    rounds = [memory["rows"]["tokens"] for _, memory in steps]
    for later in rounds[1:4]:
        np.testing.assert_array_equal(later, rounds[0])
    assert (rounds[4] != rounds[0]).any()
    ids = [batch["train"]["id"].tolist() for batch, _ in steps]
    assert sorted(ids[0] + ids[1]) == sorted(ids[2] + ids[3]) == list(range(16))
    assert ids[:2] != ids[2:4]


def test_what_a_round_holds_is_that_of_student_and_teacher(stage, steps):
    train = steps[0][0]["train"]
    labels, where = targets(train)

    @jax.jit
    def wanted(variables):
        found = []
        for role, config in (("student", toys.STUDENT), ("teacher", toys.TEACHER)):
            reading = read(config, variables[role], train)
            logits = project(reading.hidden, reading.head.weight)
            found.append(losses.selective_log_softmax(logits, labels))
        return found

    for name, expected in zip(("old_log_probs", "teacher_log_probs"), wanted(stage.variables)):
        np.testing.assert_allclose(train[name], expected, rtol=1e-5)
    inside = np.asarray(train["advantages"])[np.asarray(where)]
    np.testing.assert_allclose([inside.mean(), inside.std(ddof=1)], [0, 1], atol=1e-5)
    assert not np.asarray(train["advantages"])[~np.asarray(where)].any()


def test_at_the_rounds_beginning_the_gradient_is_that_of_the_weighted_reinforce(stage, steps):
    batch, memory = steps[0]
    train, variables = batch["train"], stage.variables["student"]
    plain = dataclasses.replace(CONFIG, single_step=False, corpus_weight=0.0, clip=1.0)
    only = minillm.recipe(task_with_corpus(), plain).send(None)

    @jax.jit
    @jax.grad
    def wanted(params):
        labels, where = targets(train)
        reading = read(toys.STUDENT, {"params": params}, train)
        log_q = losses.selective_log_softmax(project(reading.hidden, reading.head.weight), labels)
        gains = train["weights"] * train["advantages"] * log_q
        return -jnp.where(where, gains, 0).sum() / where.sum()

    found, metrics = toys.gradient_of(only, {"train": train}, memory=memory)
    expected = wanted(variables["params"])
    toys.close(found["student"], {n: _at(expected, n) for n in found["student"]}, rtol=1e-4)
    assert 0 < metrics["importance_weight"] <= 1.25


def _at(tree, path):
    for key in path.split("/"):
        tree = tree[key]
    return tree


@pytest.mark.slow
def test_gradients_do_not_depend_on_padding_or_micro_batches(stage, steps):
    batch, memory = steps[1]
    whole = toys.gradient_of(stage, batch, memory=memory)
    more = {name: toys.padded(part) for name, part in batch.items()}
    toys.close(toys.gradient_of(stage, more, 3, memory), whole)
    terms = {"loss/policy_gradient": 1, "loss/single_step": 1}
    terms |= {"loss/corpus_kl": 0.25, "loss/corpus_cross_entropy": 0.25}
    total = sum(weight * whole[1][name] for name, weight in terms.items())
    np.testing.assert_allclose(whole[1]["loss"], total, rtol=1e-5)


def test_log_probabilities_place_by_place_are_those_of_the_logits():
    hidden = jax.random.normal(jax.random.key(0), (3, 4, 5))
    weight = jax.random.normal(jax.random.key(1), (7, 5))
    tokens = jnp.arange(12).reshape(3, 4) % 7

    def place(hidden, weight):
        return jnp.sin(minillm.token_log_probs(hidden, losses.Head(weight), tokens)).sum()

    def whole(hidden, weight):
        return jnp.sin(losses.selective_log_softmax(hidden @ weight.T, tokens)).sum()

    found, wanted = (jax.jit(jax.grad(f, (0, 1)))(hidden, weight) for f in (place, whole))
    toys.close(found, wanted)


@pytest.mark.slow
def test_a_run_is_deterministic_and_leaves_its_teacher_alone():
    task = task_with_corpus(warm_up=3)
    before = jax.tree.map(lambda x: np.asarray(x).tobytes(), task.given["teacher"])
    runs = [run(minillm.recipe(task, CONFIG)) for _ in range(2)]
    jax.tree.map(np.testing.assert_array_equal, runs[0].last, runs[1].last)
    assert before == jax.tree.map(lambda x: np.asarray(x).tobytes(), task.given["teacher"])


def test_a_round_that_does_not_fit_is_refused():
    for size in (24, 64):
        with pytest.raises(ValueError, match=f"rollouts={size} must be a multiple"):
            minillm.recipe(toys.given(), minillm.Config(rollouts=size)).send(None)


BAD = {
    ("rollouts", 0): "rollouts must be at least 1",
    ("epochs", 0): "epochs must be at least 1",
    ("alpha", 1.0): r"alpha must be in \[0, 1\)",
    ("gamma", 1.5): r"gamma must be in \[0, 1\]",
    ("clip", -0.1): r"clip must be in \[0, 1\]",
    ("reward_scaling", 0.0): "reward_scaling must be positive",
    ("reward_clip", 0.0): "reward_clip must be positive",
    ("corpus_weight", -1.0): "corpus_weight must not be negative",
    ("sampling_temperature", -1.0): "sampling_temperature must not be negative",
}


@pytest.mark.parametrize(("field", "value"), BAD)
def test_a_bad_config_is_refused(field, value):
    with pytest.raises(ValueError, match=BAD[field, value]):
        methods.configure("minillm", **{field: value})


def test_a_step_trains_on_a_batch_not_on_the_prompts_of_a_round(stage):
    assert stage.data["train"].batch_size == CONFIG.rollouts
    assert stage.examples == 2 * 8  # of the answers, and of the corpus
