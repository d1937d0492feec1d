"""DisWOT: the score of a pool, the searches, the student that comes out of them."""

import dataclasses

import jax
import numpy as np
import pytest

from experiments import configuration
from kdjax import losses, networks
from kdjax.methods import configure, diswot, kd
from kdjax.methods.task import Task
from kdjax.training import Compute, Stage, run
from kdjax.training.optimizers import Training

CONFIG = diswot.Config(
    choices={"width": (2, 4), "depth": (1, 2)},
    student_map="last/out",
    teacher_map="last/out",
    batch_size=16,
    population=2,
    tournament=2,
    evaluations=3,
    finalists=2,
    final_repeats=1,
)
EVERY = dataclasses.replace(CONFIG, search="exhaustive", finalists=1)


def student(changes):
    options = networks.changed({"width": 2, "depth": 1, "features": 4}, changes)
    return networks.build("normalized_convnet", 10, **options)


TEACHER = networks.build("normalized_convnet", 10, width=4, depth=2, features=4)


@pytest.fixture(scope="module")
def task(digits):
    training = {"teacher": Training(steps=2), "student": Training(steps=4, batch_size=32)}
    return Task(
        digits,
        {"teacher": TEACHER, "student": student({})},
        training,
        validate_every=4,
        variants={"student": student},
    )


@pytest.fixture(scope="module")
def searched(task):
    return diswot.search(np.random.default_rng(0), task, EVERY)


def test_the_teachers_own_architecture_on_its_own_start_is_scored_highest(task, monkeypatch):
    # With one key for both roles the candidate that is the teacher has its variables too.
    monkeypatch.setattr(Task, "key", lambda self, name: jax.random.key(0))
    found = diswot.search(np.random.default_rng(0), task, EVERY)
    best = diswot.Space.of(EVERY.choices).options(found["genomes"][found["best"]])
    assert best == {"width": 4, "depth": 2}
    np.testing.assert_allclose(found["measures"][found["best"]], 0, atol=1e-6)


def test_a_search_keeps_the_baselines_beside_the_scores(searched):
    assert [tuple(g) for g in searched["genomes"]] == [(0, 0), (0, 1), (1, 0), (1, 1)]

    def parameters(width, depth):  # 3x3 convolutions and their norms, the 1x1 one, the head
        first, others = 9 * width + 2 * width, (depth - 1) * (9 * width**2 + 2 * width)
        return first + others + width * 4 + 2 * 4 + 4 * 10 + 10

    expected = [parameters(width, depth) for width in (2, 4) for depth in (1, 2)]
    assert searched["parameters"].tolist() == expected
    assert np.all(np.diff(searched["flops"][[0, 1, 3]]) > 0)
    assert searched["best"] == np.argmax(searched["scores"])
    assert np.all(searched["measures"] <= 0)


def test_scores_are_means_over_repeats_of_the_combined_similarities():
    measures = -np.random.default_rng(0).random((5, 3, 2))
    for combine in ("rank_sum", "zscore", "sum"):
        score = diswot.combined(dataclasses.replace(CONFIG, combine=combine))(measures)
        of = [losses.diswot(*measures[:, r].T, combine=combine) for r in range(3)]
        np.testing.assert_allclose(score, np.mean(of, axis=0), rtol=1e-6)
    for i, name in enumerate(diswot.SIMILARITIES):
        config = dataclasses.replace(CONFIG, similarities=(name,))
        score = diswot.combined(config)(measures[:, :, i : i + 1])
        np.testing.assert_allclose(score, measures[:, :, i].mean(1), rtol=1e-6)


def test_repeats_are_other_starts_and_batches_and_finalists_see_fresh_ones(task, searched):
    scorer = diswot.Scorer(task, CONFIG)
    several = scorer.measure((0, 1), range(3))
    assert len(np.unique(several[:, 0])) == len(np.unique(several[:, 1])) == 3
    np.testing.assert_array_equal(several[0], searched["measures"][1, 0])
    finals = dataclasses.replace(EVERY, finalists=4, final_repeats=2)
    found = diswot.search(np.random.default_rng(0), task, finals)
    finalists = [tuple(found["genomes"][i]) for i in found["finalists"]]
    fresh = np.stack([scorer.measure(genome, range(1, 3)) for genome in finalists])
    np.testing.assert_allclose(found["final_scores"], diswot.combined(CONFIG)(fresh))
    assert found["best"] == found["finalists"][np.argmax(found["final_scores"])]


@pytest.mark.parametrize("name", ["evolution", "steady_state"])
def test_searches_stay_within_the_budget(task, searched, name):
    limit = int(np.sort(searched["parameters"])[1])
    config = dataclasses.replace(CONFIG, search=name, max_parameters=limit)
    found = diswot.search(np.random.default_rng(1), task, config)
    assert found["parameters"].max() <= limit
    few = dataclasses.replace(CONFIG, search=name, max_flops=1, max_tries=20)
    with pytest.raises(ValueError, match=r"max_tries=20 .* budget"):
        diswot.search(np.random.default_rng(1), task, few)


def test_the_search_comes_before_the_first_stage(task, searched):
    recipe = diswot.recipe(task, EVERY)
    node = next(recipe)
    assert (type(node), node.name) == (Compute, "search")
    stage = recipe.send(searched)
    assert (type(stage), stage.name) == (Stage, "teacher")


@pytest.mark.slow
def test_the_search_comes_first_and_its_student_is_distilled_like_kd(task):
    """What follows the search is KD of the network that it found, from the same start."""
    config = dataclasses.replace(EVERY, choices={"width": (3,)})
    names = []

    def seen(recipe, value=None):
        while True:
            try:
                node = recipe.send(value)
            except StopIteration as end:
                return end.value
            names.append((type(node), node.name))
            value = yield node

    found = run(seen(diswot.recipe(task, config)))
    assert names == [(Compute, "search"), (Stage, "teacher"), (Stage, "distill")]
    assert found.changes == {"width": 3}
    chosen = found.on(task)
    assert chosen.networks["student"] is student({"width": 3})
    alone = run(kd.recipe(chosen, config.distillation))
    jax.tree.map(np.testing.assert_array_equal, found.last, alone.last)
    scores = chosen.scores("student", found.last, None)
    assert 0 <= scores["accuracy"] <= 1


def test_a_task_without_variants_says_so(task):
    bare = dataclasses.replace(task, variants={})
    with pytest.raises(ValueError, match=r"no variants of the student, so that \['width'\]"):
        bare.network_with("student", {"width": 2})


def test_a_config_gives_its_task_variants_in_the_same_precision():
    config = configuration.defaults()
    config.data.name = "digits"
    config.student.network = dict(name="resnet", depth=(1, 1, 1), widths=(2, 2, 2, 2))
    config.student.precision = "bfloat16"
    task = configuration.task(config)
    assert task.network_with("student", {}) is task.networks["student"]
    made = task.network_with("student", {"depth/2": 3})
    expected = networks.build("resnet", 10, depth=(1, 1, 3), widths=(2, 2, 2, 2))
    assert made is networks.in_precision(expected, "bfloat16")
    with pytest.raises(ValueError, match=r"config.student.network: .*'depth/3'"):
        task.network_with("student", {"depth/3": 3})


def narrow(changes):
    return networks.build("normalized_convnet", 10, width=2, depth=1, features=3, **changes)


@pytest.mark.parametrize(
    ("changes", "variants", "message"),
    [
        ({"choices": {"wide": (2,)}}, student, "has no option 'wide'; did you mean 'width'"),
        (
            {"choices": {"width": (2, 0)}},
            student,
            "width of a NormalizedConvNet must be at least 1",
        ),
        ({"student_map": "stage3/out"}, student, "student: .*'stage3/out' matches nothing"),
        ({"teacher_map": "**/conv*/out"}, student, "teacher: map=.* must match one value"),
        ({"choices": {"remat": ("",)}}, narrow, "no option 'remat'"),
        ({"choices": {"seed": (1,)}}, None, "no variants of the student"),
    ],
)
def test_wrong_spaces_and_taps_are_refused(task, changes, variants, message):
    given = {} if variants is None else {"student": variants}
    with pytest.raises(ValueError, match=message):
        diswot.search(
            np.random.default_rng(0),
            dataclasses.replace(task, variants=given),
            dataclasses.replace(EVERY, **changes),
        )


def test_classifiers_of_other_widths_have_no_semantic_similarity(task):
    other = dataclasses.replace(task, variants={"student": lambda changes: narrow({})})
    config = dataclasses.replace(EVERY, choices={"x": (1,)})
    with pytest.raises(ValueError, match=r"\(10, 3\) in the student .*=\('relation',\)"):
        diswot.search(np.random.default_rng(0), other, config)
    config = dataclasses.replace(config, similarities=("relation",))
    assert diswot.search(np.random.default_rng(0), other, config)["measures"].shape == (1, 1, 1)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"choices": {}}, "choices must name"),
        ({"similarities": ()}, "similarities must be"),
        ({"similarities": ("semantic", "relation")}, "in that order"),
        ({"combine": "mean"}, "combine must be one of .*got 'mean'"),
        ({"initialization": "xavier"}, "initialization must be"),
        ({"search": "random"}, "search must be"),
        ({"batch_size": 1}, "batch_size must be at least 2, got 1"),
        ({"repeats": 0}, "repeats must be at least 1"),
        ({"finalists": 0}, "finalists must be at least 1"),
        ({"max_flops": -1}, "max_flops must be at least 0"),
        ({"population": 4}, "tournament=8 is drawn from a population of 4"),
        ({"temperature": 0.0}, "temperature must be positive"),
    ],
)
def test_bad_configs_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        configure("diswot", **fields)


def test_the_published_sizes_of_the_searches():
    assert diswot.Config.of("evolution") == diswot.Config()
    large = diswot.Config.of("steady_state")
    assert (large.population, large.evaluations) == (512, 5000)
