"""HARD: who learns from what, who acts when, and what its views are."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import losses
from kdjax.methods import hard, kd
from kdjax.training import run
from kdjax.training.gradients import gradient
from kdjax.training.stage import Context, made
from kdjax.training.state import pick

CONFIG = hard.Config(max_shift=1.5, hidden=8, autoencoder_steps=2, autoencoder_hidden=8)


@pytest.fixture
def taught(task):
    return task.with_teacher(task.variables("teacher"))


def last_stage(task, config):
    """The stage that distils; stages before it give their starting point."""

    class Start:
        def __init__(self, stage):
            self.variables = {role: made(x) for role, x in stage.variables.items()}

    recipe = hard.recipe(task, config)
    stage = recipe.send(None)
    while stage.name != "distill":
        stage = recipe.send(Start(stage))
    return stage


def batch_of(stage, rows=8):
    stream = stage.data["train"]
    batch = stream.assemble(stream.table, next(iter(stream.items())))
    return {name: np.asarray(x)[:rows] for name, x in batch.items() if np.ndim(x)}


def away(variables):
    """The variables, with an augmentor that has left its start."""
    params = variables["augmentor"]["params"]
    kernel = 0.3 * jax.random.normal(jax.random.key(5), params["last"]["kernel"].shape)
    last = {**params["last"], "kernel": kernel}
    return {**variables, "augmentor": {"params": {**params, "last": last}}}


def evaluate(stage, update, batch, parts=1, switched=1, moved=True, variables=None):
    """(gradient, metrics) of an update of a stage, with an augmentor that has left its start."""
    variables = variables or {role: made(x) for role, x in stage.variables.items()}
    if moved and "augmentor" in variables:
        variables = away(variables)
    memory = stage.memory
    if memory:
        controller = memory.controller._replace(n_switches=jnp.int32(switched))
        memory = memory._replace(controller=controller)
    values = {name: jnp.float32(0.1) for name in (*stage.values, *stage.program.schedules)}
    update = dataclasses.replace(update, microbatches=parts)
    live = {role: variables[role] for role in stage.program.live}
    frozen = {role: x for role, x in variables.items() if role not in live}

    @jax.jit
    def go(live, frozen, batch):
        context = Context(memory, jax.random.key(1), jnp.int32(0), values)
        batch, _ = stage.program.prepare({**frozen, **live}, {"train": batch}, context)
        found = gradient(update, pick(live, update.trains), live, frozen, batch, context)
        return found.gradient, found.metrics

    return go(live, frozen, batch)


def mean_of(term):
    return float(term.total / term.weight)


def size(tree):
    return max(float(jnp.abs(x).max()) for x in jax.tree.leaves(tree))


def close(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("which", [0, 1])
def test_neither_update_depends_on_micro_batches_or_padding(taught, which):
    stage = last_stage(taught, CONFIG)
    update, batch = stage.program.updates[which], batch_of(stage)
    whole, _ = evaluate(stage, update, batch)
    assert size(whole) > 0
    close(evaluate(stage, update, batch, parts=4)[0], whole)
    padded = {name: np.concatenate([x, x[:4]]) for name, x in batch.items()}
    padded["where"] = np.arange(12) < 8
    close(evaluate(stage, update, padded)[0], whole)


@pytest.mark.parametrize(
    "family", ["translation", *(pytest.param(x, marks=pytest.mark.slow) for x in hard.FAMILIES[1:])]
)
def test_each_update_trains_its_own_role_and_views_have_a_gradient(taught, family):
    stage = last_stage(taught, dataclasses.replace(CONFIG, family=family))
    student, augmentor = stage.program.updates
    assert (student.trains, augmentor.trains) == (("student",), ("augmentor",))
    assert stage.program.live == ("augmentor", "student")
    batch = batch_of(stage)
    assert size(evaluate(stage, student, batch)[0]) > 0
    found, metrics = evaluate(stage, augmentor, batch)
    assert size(found) > 0
    assert mean_of(metrics["spread"]) > 0


def test_of_a_student_that_is_the_teacher_nothing_is_learned_and_no_gap_is_found(taught):
    same = dataclasses.replace(
        taught, networks=dict.fromkeys(("student", "teacher"), taught.networks["student"])
    )
    same = same.with_teacher(same.variables("student"))
    stage = last_stage(same, dataclasses.replace(CONFIG, consistency_weight=0.0))
    batch = batch_of(stage)
    for update in stage.program.updates:
        found, metrics = evaluate(stage, update, batch)
        assert mean_of(metrics["gap"]) < 1e-6
        assert size(found) < 1e-5


def test_a_step_of_the_augmentor_widens_the_gap_and_goes_through_the_teacher(taught):
    stage = last_stage(taught, dataclasses.replace(CONFIG, consistency_weight=0.0))
    update, batch = stage.program.updates[1], batch_of(stage)
    # Away from the start, where the slope in a shift is that towards one side only.
    variables = away({role: made(x) for role, x in stage.variables.items()})
    slope, metrics = evaluate(stage, update, batch, moved=False, variables=variables)
    before, (step,) = mean_of(metrics["gap"]), slope.values()
    params, scale = variables["augmentor"]["params"], 0.01 / size(slope)
    moved = {
        layer: {name: x - scale * step[f"{layer}/{name}"] for name, x in parts.items()}
        for layer, parts in params.items()
    }
    variables["augmentor"] = {"params": moved}
    _, metrics = evaluate(stage, update, batch, moved=False, variables=variables)
    assert mean_of(metrics["gap"]) > before


def test_at_its_start_an_augmentor_changes_nothing(taught):
    stage = last_stage(taught, CONFIG)
    _, metrics = evaluate(stage, stage.program.updates[1], batch_of(stage), moved=False)
    assert mean_of(metrics["loss/consistency"]) < 1e-6


@pytest.mark.slow
def test_until_the_first_switch_the_student_is_distilled_on_the_images_themselves(taught):
    stage = last_stage(taught, CONFIG)
    student, batch = stage.program.updates[0], batch_of(stage)
    early, metrics = evaluate(stage, student, batch, switched=0)
    np.testing.assert_allclose(
        mean_of(metrics["loss/view_kd"]), mean_of(metrics["loss/kd"]), rtol=1e-5
    )
    usual = kd.Config(temperature=1.0, label_weight=0.0, distillation_weight=1.0)
    one = next(kd.recipe(taught, usual))
    values = {name: jnp.float32(1) for name in (*one.values, *one.program.schedules)}
    values["label_weight"] = jnp.float32(0)
    variables = {role: made(x) for role, x in one.variables.items()}
    context = Context({}, jax.random.key(1), jnp.int32(0), values)
    ready, _ = one.program.prepare(variables, {"train": batch}, context)
    live, (update,) = {"student": variables["student"]}, one.program.updates
    plain = gradient(
        update, pick(live, update.trains), live, {"teacher": variables["teacher"]}, ready, context
    )
    close(early, jax.tree.map(lambda x: 2 * x, plain.gradient))


def kept(recipe, outcomes):
    value = None
    while True:
        try:
            node = recipe.send(value)
        except StopIteration as end:
            return end.value
        value = yield node
        outcomes.append(value)


@pytest.mark.slow
def test_a_fixed_rhythm_is_kept_and_the_run_ends_with_the_students_last_step(taught):
    before = jax.tree.map(np.array, taught.given["teacher"])
    config = dataclasses.replace(CONFIG, alternate=(3, 2), augmentor_budget=0.4)
    outcomes = []
    run(kept(hard.recipe(taught, config), outcomes), seed=0)
    memory = outcomes[-1].memory
    # 30 student steps; of the augmentor's only 12, so the rhythm ends after 6 rounds.
    assert (int(memory.student_steps), int(memory.augmentor_steps)) == (30, 12)
    assert int(memory.controller.n_switches) == 12
    jax.tree.map(np.testing.assert_array_equal, before, taught.given["teacher"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [{}, {"family": "mix"}, {"family": "latent"}, {"views": "random"}, {"views": "adversarial"}],
)
def test_every_kind_of_view_runs(taught, changes):
    config = dataclasses.replace(CONFIG, l_min=2.0, l_max=3.0, **changes)
    trained = run(hard.recipe(taught, config), seed=0)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(trained.last))


def test_adversarial_views_stay_near_and_widen_the_gap(taught):
    config = dataclasses.replace(CONFIG, views="adversarial")
    cast = hard.Cast(taught.networks["student"], taught.networks["teacher"])
    variables = {role: taught.variables(role) for role in ("student", "teacher")}
    batch = batch_of(last_stage(taught, config))
    views = jax.jit(functools.partial(hard.prepare_batch, cast, config))
    found = views(variables, batch, jax.random.key(0))
    view, pixels = found["view"], found["pixels"]
    assert float(jnp.abs(view - pixels).max()) <= config.radius + 1e-6
    assert 0 <= float(view.min()) <= float(view.max()) <= 1

    def apart(x):
        taught_, learned = (
            cast.look(role, variables, x).output["logits"] for role in ("teacher", "student")
        )
        return float(jnp.mean(losses.kl_divergence(taught_, learned)))

    assert apart(view) > apart(pixels)


def test_views_are_made_before_the_normalisation(taught):
    normal = dataclasses.replace(taught, mean=(0.3,), std=(0.5,))
    stage = last_stage(normal, CONFIG)
    plain = last_stage(taught, CONFIG)
    cast = hard.Cast(
        taught.networks["student"], taught.networks["teacher"], mean=(0.3,), std=(0.5,)
    )
    variables = {role: taught.variables(role) for role in ("student", "teacher")}
    none = dataclasses.replace(CONFIG, views="none")
    found = hard.prepare_batch(cast, none, variables, batch_of(stage), jax.random.key(0))
    np.testing.assert_allclose(found["pixels"], batch_of(plain)["image"], atol=1e-6)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"views": "some"}, "views must be one of 'learned'"),
        (
            {"family": "flip"},
            "family must be one of .* got 'flip': an augmentation is only learned",
        ),
        ({"temperature": 0.0}, "temperature must be positive, got 0.0"),
        ({"augmentor_budget": 0.0}, "augmentor_budget must be positive"),
        ({"consistency_weight": -1.0}, "consistency_weight must not be negative"),
        ({"l_min": 1.0, "l_max": 1.0}, "l_min=1.0 must be below l_max=1.0"),
        ({"decay": 1.0}, r"decay must be in \[0, 1\), got 1.0"),
        ({"alternate": (1,)}, "alternate must be"),
        ({"alternate": (0, 1)}, "student_steps must be >= 1, got 0"),
        ({"max_phase_steps": 0}, "max_phase_steps must be >= 1, got 0"),
        ({"distillation_weight": 0.0}, "are both 0: nothing is learned"),
    ],
)
def test_bad_configs_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        hard.Config(**fields)


def test_tasks_without_such_views_are_refused(taught):
    with pytest.raises(ValueError, match="cache_teacher keeps no answers"):
        next(hard.recipe(dataclasses.replace(taught, cache_teacher=True), CONFIG))
    with pytest.raises(ValueError, match=r"max_shift=8.0 would move all of an image of \[8, 8\]"):
        next(hard.recipe(taught, dataclasses.replace(CONFIG, max_shift=8.0)))
