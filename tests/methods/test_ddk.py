"""DDK: what is drawn when, what is kept, and that all intervals are one training."""

import dataclasses
import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import language_toys as toys
import numpy as np
import optax
import pytest

from kdjax import methods
from kdjax.data import Split, TextDataset, mixture
from kdjax.losses import domain_mixture
from kdjax.methods import ddk, language_model, sequence_kd
from kdjax.methods.language_task import read, targets
from kdjax.networks.transformer import project
from kdjax.training import Compute, Settings, Stage, read_metrics, run, together
from kdjax.training import step as engine

DOMAINS = ("prose", "code", "maths")
CONFIG = ddk.Config(interval=5)


@functools.lru_cache(maxsize=1)
def dataset() -> TextDataset:
    """The toys' rows in three domains of 1/2, 1/3 and 1/6."""
    splits = {}
    for name, split in toys.dataset().splits.items():
        domain = np.array([0, 1, 0, 2, 0, 1], np.int32)[np.arange(len(split)) % 6]
        splits[name] = Split.of({**split.arrays(), "domain": domain}, split.where)
    return TextDataset("toys", splits, (), DOMAINS, {}, {})


def task(**changes):
    """The toys' task with domains, and a learning rate that rises and falls once."""
    training = dict(toys.task().training)
    training["student"] = dataclasses.replace(
        training["student"], schedule="cosine", warmup=0.2, clip=1.0
    )
    return toys.given(dataset=dataset(), training=training, **changes)


@pytest.fixture(scope="module")
def whole():
    """The nodes of an uninterrupted run, each with what it was sent, and what it returned."""
    seen = []

    def watch():
        recipe, value = ddk.recipe(task(), CONFIG), None
        while True:
            try:
                node = recipe.send(value)
            except StopIteration as end:
                return end.value
            value = yield node
            seen.append((node, value))

    result = run(watch())
    return seen, result


@pytest.fixture(scope="module")
def stage(whole):
    return next(node for node, _ in whole[0] if isinstance(node, Stage))


def batch(count=8):
    return toys.batch(count, domain=(np.arange(count) % 3).astype(np.int32))


def test_intervals_are_measured_drawn_and_trained_in_turn(whole):
    seen, _ = whole
    assert [node.name for node, _ in seen] == [
        "teacher_perplexity",
        *[f"{what}/{k:04d}" for k in range(3) for what in ("mixture", "distill")],
    ]
    stages = [node for node, _ in seen if isinstance(node, Stage)]
    assert [x.steps for x in stages] == [5, 5, 2]
    measured = [x for node, x in seen if isinstance(node, Compute)]
    teacher, *measured = measured
    assert (measured[0]["ratio"] != measured[1]["ratio"]).all()
    rows, cursors = task().dataset.domain_rows("train"), np.zeros(3, int)
    factor = domain_mixture.domain_discrepancy_init(measured[0]["ratio"], np.ones(3, np.float32))
    for k, found in enumerate(measured):
        if k:
            factor = domain_mixture.domain_discrepancy_update(
                factor, found["ratio"], np.ones(3, np.float32)
            )
        np.testing.assert_allclose(found["factor"], factor, rtol=1e-5)
        read = [np.isin(found["rows"], x).sum() for x in rows.values()]
        assert sum(read) == stages[k].steps * 16
        cursors = cursors + read
        np.testing.assert_array_equal(found["cursors"], cursors)
    assert (teacher["teacher"] > 1).all()


def test_the_first_interval_is_the_corpus_and_later_ones_follow_the_factor(monkeypatch):
    shares = []

    def draw(rows, cursors, share, size, **options):
        shares.append(np.asarray(share))
        return kept(rows, cursors, share, size, **options)

    kept = mixture.draw
    monkeypatch.setattr(mixture, "draw", draw)
    corpus = np.array([3, 2, 1]) / 6
    expected = {
        "discrepancy": lambda found, before: found["factor"] if before else corpus,
        "natural": lambda found, before: corpus,
        "equal": lambda found, before: np.full(3, 1 / 3),
    }
    for name, share_of in expected.items():
        shares.clear()
        recipe = ddk.recipe(task(), ddk.Config(interval=5, mixture=name))
        teacher = dict(recipe.send(None).function(None))
        first = dict(recipe.send(teacher).function(None))
        stage = recipe.send(first)
        np.testing.assert_allclose(shares[0], share_of(first, False), rtol=1e-6)
        second = dict(recipe.send(Trained(stage)).function(None))
        np.testing.assert_allclose(shares[1], share_of(second, True), rtol=1e-6)


class Trained:
    """The outcome of a stage, as far as the recipe reads it, without training."""

    def __init__(self, stage, score=0.0):
        self.variables, self.score = {"student": stage.variables["student"]}, score
        self.selected, self.selected_step = {"student": score, "score": score}, 1

    def load(self):
        return self


def test_perplexities_are_sums_over_all_rows_of_a_domain_before_the_exponential():
    found = ddk.perplexities(task(), "student", task().variables("student"))
    arrays = dataset().splits["validation"].arrays()
    count = len(arrays["tokens"])
    batch = {**arrays, "where": np.ones(count, bool)}
    own = read(toys.STUDENT, task().variables("student"), batch)
    labels, where = targets({n: jnp.asarray(x) for n, x in batch.items()})
    logits = project(own.hidden, own.head.weight)
    nll = np.where(where, optax.softmax_cross_entropy_with_integer_labels(logits, labels), 0)
    for domain in range(3):
        mine = arrays["domain"] == domain
        expected = np.exp(nll[mine].sum() / np.asarray(where)[mine].sum())
        np.testing.assert_allclose(found[domain], expected, rtol=1e-5)


@pytest.mark.slow
def test_the_gradient_does_not_depend_on_padding_or_micro_batches(stage):
    ready, _ = toys.prepared(stage, {"train": batch()})
    more, _ = toys.prepared(stage, {"train": toys.padded(batch(), rows_=4, places=2)})
    one, reported = toys.gradient_of(stage, ready)
    other, padded = toys.gradient_of(stage, more, microbatches=3)
    toys.close(other, one)
    toys.close(padded, reported)
    np.testing.assert_allclose(reported["share/prose"], 3 / 8)


def test_without_gamma_it_is_language_modelling(stage):
    loss = dataclasses.replace(CONFIG, distillation_weight=0.0).loss
    training = task().training["student"]
    plain = ddk.program(toys.STUDENT, toys.TEACHER, training, loss, DOMAINS)
    assert plain.prepare is None
    ready = {"train": batch()}
    alone = language_model.recipe(task(), language_model.Config()).send(None)
    found = toys.gradient_of(dataclasses.replace(stage, program=plain), ready)[0]
    toys.close(found, toys.gradient_of(alone, ready)[0])


def test_all_intervals_are_one_word_level_distillation_on_one_compiled_step(whole):
    """The same batches in one stage give the same student, with a schedule over all steps."""
    seen, result = whole
    stages = [node for node, _ in seen if isinstance(node, Stage)]
    assert len({id(x.program) for x in stages}) == 1
    (compiled,) = engine._compiled[stages[0].program].values()
    assert compiled.function._cache_size() == 1

    class Joined:
        def __init__(self):
            first = stages[0].data["train"]
            self.batch_size, self.table, self.assemble = 16, first.table, first.assemble
            self.stateful = False

        def items(self, start=0, state=None):
            for x in stages:
                items = x.data["train"].items()
                yield from (next(items) for _ in range(x.steps))

    def once():
        training = task().training["student"]
        program = sequence_kd.program(toys.STUDENT, toys.TEACHER, training, CONFIG.loss)
        variables = {n: x for n, x in stages[0].variables.items() if n != "mixture"}
        return (yield Stage("once", program, variables, {"train": Joined()}, training.steps))

    student = run(once()).variables["student"]
    toys.close(result.last, student, rtol=1e-4)


def test_the_teacher_is_left_alone_and_a_run_repeats_itself(whole):
    _, result = whole
    given = task()
    before = jax.tree.map(lambda x: np.asarray(x).tobytes(), given.given["teacher"])
    again = run(ddk.recipe(given, CONFIG))
    jax.tree.map(np.testing.assert_array_equal, again.last, result.last)
    after = jax.tree.map(lambda x: np.asarray(x).tobytes(), given.given["teacher"])
    assert before == after
    assert 1 <= result.selected_step <= 12


class Killed(Exception):
    pass


def test_a_killed_run_continues_with_the_same_bits(whole, tmp_path):
    def kill(name, step):
        if (name, step) == ("distill/0001", 4):
            raise Killed

    with pytest.raises(Killed):
        run(
            ddk.recipe(task(), CONFIG),
            workdir=tmp_path,
            settings=Settings(checkpoint_every=2, on_step=kill),
        )
    again = run(ddk.recipe(task(), CONFIG), workdir=tmp_path)
    jax.tree.map(np.testing.assert_array_equal, again.last, whole[1].last)
    assert again.selected_step == whole[1].selected_step
    rows = [r for r in read_metrics(tmp_path) if r["kind"] == "train"]
    assert [r["stage"] for r in rows] == [f"distill/{k:04d}" for k in range(3)]
    assert sum(rows[1][f"factor/{name}"] for name in DOMAINS) == pytest.approx(1, abs=1e-5)
    assert sum(rows[1][f"share/{name}"] for name in DOMAINS) == pytest.approx(1, abs=1e-5)


def test_the_selected_student_is_the_best_of_all_intervals():
    recipe = ddk.recipe(task(), ddk.Config(interval=5, mixture="equal"))
    value = recipe.send(None).function(None)
    node = recipe.send(value)
    for score in (1.0, 3.0, 2.0):
        stage = recipe.send(node.function(None))
        try:
            node = recipe.send(Trained(stage, score))
        except StopIteration as end:
            result = end.value
    assert (result.selected, result.selected_step) == (3.0, 6)


def test_rows_without_a_domain_and_domains_without_rows_are_refused():
    with pytest.raises(ValueError, match="rows that know their domain"):
        ddk.recipe(toys.given(), CONFIG).send(None)
    four = dataclasses.replace(dataset(), domains=(*DOMAINS, "law"))
    with pytest.raises(ValueError, match="toys/train has no rows of the domain 'law'"):
        ddk.recipe(toys.given(dataset=four), CONFIG).send(None)
    splits = dict(dataset().splits)
    arrays = splits["validation"].arrays()
    first = {**arrays, "domain": np.zeros_like(arrays["domain"])}
    splits["validation"] = Split.of(first, "toys/validation")
    missing = dataclasses.replace(dataset(), splits=splits)
    with pytest.raises(ValueError, match="toys/validation has no rows of the domain 'code'"):
        ddk.recipe(toys.given(dataset=missing), CONFIG).send(None)


def test_a_perplexity_that_is_not_finite_names_its_domain():
    variables = jax.tree.map(np.asarray, task().variables("student"))
    table = variables["params"]["embedding"]["embedding"].copy()
    table[...] = np.nan
    broken = {"params": {**variables["params"], "embedding": {"embedding": table}}}
    with pytest.raises(ValueError, match="the student's perplexity in the domain 'prose' of val"):
        ddk.perplexities(task(), "student", broken)


@pytest.mark.slow
def test_cached_hidden_states_give_the_same_student(whole, tmp_path, monkeypatch):
    monkeypatch.setenv("KDJAX_DATA_DIR", str(tmp_path))
    found = run(ddk.recipe(task(cache_teacher=True), CONFIG))
    toys.close(found.last, whole[1].last, rtol=1e-4)


@pytest.mark.slow
def test_seeds_that_train_together_are_the_seeds_alone():
    given = task()
    tasks = [dataclasses.replace(given, seed=seed) for seed in (0, 1)]
    found = run(together([ddk.recipe(one, CONFIG) for one in tasks], (0, 1)))
    for one, member in zip(tasks, found, strict=True):
        toys.close(member.last, run(ddk.recipe(one, CONFIG), seed=one.seed).last, rtol=1e-4)


SCRIPT = """
import json
import jax
import numpy as np
import test_ddk
from kdjax.methods import ddk
from kdjax.training import Settings, run
from kdjax.training.sharding import Layout, make_mesh

jax.config.update("jax_disable_most_optimizations", True)
layouts = [Layout(make_mesh(devices=jax.devices()[:1])), Layout(make_mesh())]
runs = [run(ddk.recipe(test_ddk.task(), test_ddk.CONFIG), settings=Settings(layout=x)).last
        for x in layouts]
apart = jax.tree.map(lambda a, b: float(abs(np.asarray(a) - np.asarray(b)).max()), *runs)
print(json.dumps([len(jax.devices()), max(jax.tree.leaves(apart))]))
"""


@pytest.mark.slow
def test_eight_devices_give_the_student_of_one():
    flags = "--xla_force_host_platform_device_count=8"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    environment["PYTHONPATH"] = str(Path(__file__).parent)
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    devices, apart = json.loads(done.stdout.splitlines()[-1])
    assert devices == 8
    assert apart < 1e-4


BAD = {
    ("interval", 0): "interval must be at least 1, got 0",
    ("mixture", "uniform"): "mixture must be one of",
    ("draw", "random"): "draw must be one of",
    ("alpha", 1.5): r"alpha must be in \[0, 1\], got 1.5",
    ("max_ratio", 0.0): "max_ratio must be positive, got 0.0",
    ("distillation_weight", -0.1): "distillation_weight must not be negative",
    ("temperature", 0.0): "temperature must be positive",
}


@pytest.mark.parametrize(("field", "value"), BAD)
def test_a_bad_config_is_refused(field, value):
    with pytest.raises(ValueError, match=BAD[field, value]):
        methods.configure("ddk", **{field: value})
