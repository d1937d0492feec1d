"""What active learning with a teacher claims of its rounds, queries and few-shot teachers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.data.selection import covering_radius, k_center_greedy
from kdjax.methods import active_kd, dho, zero_shot
from kdjax.methods.task import Task
from kdjax.training import Compute, Stage, run
from kdjax.training.stage import Context
from kdjax.training.step import _compiled

ROUNDS = dict(rounds=2, queries=7, labels_per_class=1, labeled_batch_size=16)


@pytest.fixture
def taught(task, digits):
    train = digits.splits["train"].arrays()
    images = train["image"].reshape(len(train["image"]), -1) / 255.0
    means = jnp.asarray(
        np.stack([images[train["label"] == c].mean(0) for c in range(10)]), jnp.float32
    )
    training = {
        "student": dataclasses.replace(task.training["student"], steps=6),
        "teacher": dataclasses.replace(
            task.training["teacher"], steps=5, batch_size=16, optimizer="sgd", learning_rate=0.1
        ),
    }
    nets = {**task.networks, "teacher": zero_shot.classifier(10, scale=20.0)}
    task = Task(digits, nets, training, validate_every=6)
    return task.with_teacher({"params": {"class_embeddings": means}})


def played(recipe):
    """The nodes of a recipe and its result, run without a journal."""
    nodes, value = [], None

    def watch():
        nonlocal value
        inner = recipe
        while True:
            try:
                node = inner.send(value)
            except StopIteration as end:
                return end.value
            nodes.append(node)
            value = yield node

    return nodes, run(watch())


def test_rounds_share_one_compiled_step_and_start_from_one_student(taught):
    teacher = [np.asarray(x).tobytes() for x in jax.tree.leaves(taught.given)]
    nodes, found = played(active_kd.recipe(taught, active_kd.Config(**ROUNDS, epochs=8)))
    assert teacher == [np.asarray(x).tobytes() for x in jax.tree.leaves(taught.given)]
    stages = [node for node in nodes if isinstance(node, Stage)]
    assert [s.name for s in stages] == ["round/00", "round/01", "round/02"]
    assert len({id(s.program) for s in stages}) == 1
    (compiled,) = _compiled[stages[0].program].values()
    assert compiled.function._cache_size() == 1  # however many labels there are
    assert [s.steps for s in stages] == [5, 9, 12]  # 8 epochs of 10, 17, 24 in batches of 16
    for stage in stages[1:]:
        jax.tree.map(
            np.testing.assert_array_equal,
            dict(stage.variables["student"]),
            dict(stages[0].variables["student"]),
        )
    for before, after in zip(found.labeled, found.labeled[1:]):
        assert after[: len(before)].tolist() == before.tolist()
        assert len(set(after)) == len(before) + 7
    assert len(found.rounds) == 3
    jax.tree.map(np.testing.assert_array_equal, found.rounds[-1], found.last)
    scores = found.on(taught).scores("student", found.last, None)
    assert np.isfinite(list(scores.values())).all()


def test_pcoreset_asks_for_the_predictions_that_are_farthest(taught):
    _, found = played(active_kd.recipe(taught, active_kd.Config(**ROUNDS)))
    task = found.on(taught)
    probs = np.exp(dho.answers(task, found.rounds[0], "train")["logits"].astype(np.float64))
    labeled = found.labeled[0]
    pool = np.setdiff1d(np.arange(len(probs)), labeled)
    expected = pool[k_center_greedy(probs[pool], probs[labeled], 7)]
    assert found.labeled[1][10:].tolist() == expected.tolist()
    expected = covering_radius(probs[pool], probs[found.labeled[1]])
    assert found.radius[0] == pytest.approx(expected, rel=1e-4)


def test_without_a_teacher_only_labels_train(taught):
    config = active_kd.Config(**ROUNDS, lam=1.0, alpha=1.0)
    stage = active_kd.recipe(taught, config).send(None)
    assert stage.values["lam"] == 1.0
    assert float(stage.variables["student"]["interpolation"]["alpha"]) == 1.0


def test_candidates_bound_the_pool(taught):
    task = dho.dual_task(taught, dho.Config())
    rows = dho.labeled_rows(task, 1)
    config = active_kd.Config(candidates=7, strategy="entropy")
    ask = active_kd.query(task, config, task.variables("student"), rows, 7)
    first, other = (ask(np.random.default_rng(s))["rows"][10:] for s in (0, 1))
    assert set(first) != set(other)  # all of seven that were drawn


@pytest.mark.parametrize("lag", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_few_shot_teacher_is_fitted_before_or_after_its_round(taught, lag):
    config = active_kd.Config(**{**ROUNDS, "rounds": 1}, teacher="clap", lag=lag)
    nodes, _ = played(active_kd.recipe(taught, config))
    names = [n.name for n in nodes]
    fits = ["round/00/clap/weights", "round/00/clap"]
    if lag:
        assert names == ["round/00", *fits, "round/00/query", "round/01"]
    else:
        second = [n.replace("00", "01") for n in fits]
        assert names == [*fits, "round/00", "round/00/query", *second, "round/01"]
    students = [n for n in nodes if n.name in ("round/00", "round/01")]
    zero = taught.given["teacher"]["params"]["class_embeddings"]
    used = [s.variables["teacher"]["params"]["class_embeddings"] for s in students]
    assert np.array_equal(used[0], zero) is lag
    assert not np.array_equal(used[0], used[1])
    assert students[0].program is students[1].program


@pytest.mark.slow
def test_what_holds_the_few_shot_teacher_does_not_depend_on_micro_batches(taught):
    rows = dho.labeled_rows(taught, 2)
    ends = []
    for parts in (1, 4):
        training = {**taught.training}
        training["teacher"] = dataclasses.replace(training["teacher"], microbatches=parts)
        task = dataclasses.replace(taught, training=training)

        def recipe(task=task):
            return (yield from active_kd.fitted(task, taught.given["teacher"], rows, "clap"))

        ends.append(run(recipe())["params"]["class_embeddings"])
    np.testing.assert_allclose(*ends, rtol=1e-5, atol=1e-6)
    zero = taught.given["teacher"]["params"]["class_embeddings"]
    assert float(jnp.abs(ends[0] - zero).max()) > 1e-4


@pytest.mark.slow
def test_a_query_is_a_computation_that_a_journal_keeps(taught, tmp_path):
    config = active_kd.Config(**ROUNDS, strategy="random")
    first = run(active_kd.recipe(taught, config), workdir=tmp_path)
    again = run(active_kd.recipe(taught, config), workdir=tmp_path)
    assert [r.tolist() for r in first.labeled] == [r.tolist() for r in again.labeled]
    jax.tree.map(np.testing.assert_array_equal, first.last, again.last)
    node = active_kd.recipe(taught, config)
    assert not isinstance(node.send(None), Compute)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(strategy="margin"), "strategy must be one of"),
        (dict(teacher="clip"), "teacher must be one of"),
        (dict(rounds=-1), "rounds must not be negative"),
        (dict(labels_per_class=0), "labels_per_class must be at least 1"),
        (dict(lag=True), 'lag needs teacher="clap"'),
        (dict(beta=0.0), "beta must be positive"),
        (dict(lam=2.0), r"lam must be in \[0, 1\]"),
        (dict(temperature=0.0), "temperature must be positive, got 0.0"),
        (dict(alpha=1.5), r"alpha must be in \[0, 1\], got 1.5"),
        (dict(labeled_batch_size=0), "labeled_batch_size must be at least 1"),
        (dict(class_order=(0, 2)), r"class_order must be a permutation, got \(0, 2\)"),
        (dict(class_order=(1, 0), teacher="clap"), "learns in the order of the labels"),
    ],
)
def test_a_bad_config_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        active_kd.Config(**fields)


def test_a_teacher_of_another_class_order_is_refused_or_read_in_that_of_the_labels(taught):
    order = tuple(np.random.default_rng(0).permutation(10).tolist())  # column of each class
    words = taught.given["teacher"]["params"]["class_embeddings"]
    shuffled = jnp.zeros_like(words).at[np.array(order)].set(words)

    def lesson(embeddings, **options):
        task = taught.with_teacher({"params": {"class_embeddings": embeddings}})
        stage = active_kd.recipe(task, active_kd.Config(**ROUNDS, **options)).send(None)
        batch = {n: s.assemble(s.table, next(s.items())) for n, s in stage.data.items()}
        context = Context({}, jax.random.key(0), jnp.int32(0), {})
        found, _ = stage.program.prepare(stage.variables, batch, context)
        return found["unlabeled"]["teacher_logits"]

    np.testing.assert_allclose(lesson(shuffled, class_order=order), lesson(words), rtol=1e-6)
    with pytest.raises(ValueError, match="class_order has 2 classes, the teacher 10"):
        lesson(words, class_order=(1, 0))


def test_bad_tasks_are_refused(taught):
    with pytest.raises(ValueError, match="ask for 9010 labels, but train has"):
        active_kd.recipe(taught, active_kd.Config(rounds=1, queries=9000)).send(None)
    trained = taught.with_teacher({"params": {"w": jnp.ones(1)}})
    with pytest.raises(ValueError, match=r"needs a zero_shot\.classifier"):
        active_kd.recipe(trained, active_kd.Config(rounds=1, teacher="clap")).send(None)
    cached = dataclasses.replace(taught, cache_teacher=True)
    with pytest.raises(ValueError, match="keeps one teacher, but"):
        active_kd.recipe(cached, active_kd.Config(rounds=1, teacher="clap")).send(None)
