"""MST-Distill: who learns in which stage, from whom, and what it comes down to."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import data, losses, networks
from kdjax.methods import mst_distill
from kdjax.methods.task import Task
from kdjax.training import NonFiniteLoss, Stage, divide, run
from kdjax.training.gradients import gradient
from kdjax.training.optimizers import Training
from kdjax.training.stage import Context
from kdjax.training.state import pick, values_at

CONFIG = mst_distill.Config(
    teacher_layers=("hidden/in", "hidden/out"),
    cross_modal_layers=("dense0/out",),
    heads=2,
    cotraining_steps=3,
    mask_steps=4,
)


STUDENT = Training(steps=4, batch_size=16, learning_rate=1e-2)


@pytest.fixture(scope="session")
def halves():
    rng = np.random.default_rng(0)
    splits = {}
    for name, size in (("train", 40), ("validation", 16), ("test", 16)):
        label = rng.integers(3, size=size).astype(np.int32)
        sides = rng.normal(size=(2, size, 4)).astype(np.float32) + label[:, None]
        arrays = {"left": sides[0], "right": sides[1], "label": label}
        splits[name] = data.Split.of(arrays, f"halves/{name}")
    return data.Dataset("halves", splits, ("a", "b", "c"))


@pytest.fixture
def task(halves):
    encoder = {"name": "mlp", "widths": (6,)}
    nets = {
        "teacher": networks.build("fusion", 3, encoders=(encoder, encoder), hidden=8),
        "cross_modal_teacher": networks.build("mlp", 3, widths=(8,)),
        "student": networks.build("mlp", 3, widths=(5,)),
    }
    reads = {"teacher": ("left", "right"), "cross_modal_teacher": "right", "student": "left"}
    return Task(halves, nets, {"student": STUDENT}, input=reads, validate_every=2)


@pytest.fixture
def play(task):
    """`(cast, variables of all roles, a batch)` of a config."""

    def of(config=CONFIG, microbatches=1):
        training = dataclasses.replace(task.training["student"], microbatches=microbatches)
        changed = dataclasses.replace(task, training={"student": training})
        cast = mst_distill.cast_of(changed, config)
        roles = {role: task.variables(role) for role in mst_distill.PEERS}
        for role in (*config.masks, "gate"):
            roles[role] = dict(mst_distill.start(cast, task, role))
        stream = task.stream("student")
        return cast, roles, {"train": stream.assemble(stream.table, next(stream.items()))}

    return of


def compute(program, variables, batch, k=0):
    update = program.updates[k]
    values = values_at(program.schedules, {}, 0, 4)
    context = Context({}, jax.random.key(0), jnp.int32(0), values)
    live = {role: variables[role] for role in program.live}
    frozen = {role: x for role, x in variables.items() if role not in live}

    @jax.jit
    def go(live, frozen, batch):
        if program.prepare is not None:
            batch, _ = program.prepare({**frozen, **live}, batch, context)
        params = pick({**frozen, **live}, update.trains)
        result = gradient(update, params, live, frozen, batch, context)
        return result.gradient, {n: divide(*t[:2]) for n, t in result.metrics.items()}

    return go(live, frozen, batch)


def size(tree):
    return sum(float(jnp.abs(x).sum()) for x in jax.tree.leaves(tree))


def watched(task, config=CONFIG):
    """`(what the recipe returns, name -> (stage, its outcome))` of a run."""
    stages = {}

    def recipe():
        made, sent = mst_distill.recipe(task, config), None
        while True:
            try:
                stage = made.send(sent)
            except StopIteration as end:
                return end.value
            sent = yield stage
            stages[stage.name] = stage, sent

    return run(recipe(), seed=0), stages


def close(a, b, rtol=2e-5):
    scale = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(b))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=rtol * scale), a, b)


@pytest.mark.slow
def test_every_stage_trains_its_own_and_nothing_else(task):
    result, stages = watched(task)
    assert list(stages) == ["cotraining", "masks", "distill"]
    (_, first), (second, masks), (third, last) = stages.values()
    assert set(first.variables) == set(mst_distill.PEERS)
    assert set(masks.variables) == {"mask0", "mask1", "mask2"}
    assert set(last.variables) == {"student", "gate"}
    assert third.validation.score == mst_distill.SCORE
    for stage in (second, third):  # the bytes after the run are those of stage 1
        for role in mst_distill.PEERS:
            jax.tree.map(
                np.testing.assert_array_equal, stage.variables[role], first.variables[role]
            )
    assert size(jax.tree.map(jnp.subtract, result.last, first.variables["student"])) > 0
    for role in masks.variables:
        before = dict(second.variables[role])
        assert size(jax.tree.map(jnp.subtract, masks.variables[role], before)) > 0


@pytest.mark.slow
def test_a_mask_moves_towards_the_student_and_alone(play):
    cast, variables, batch = play()
    program, train = mst_distill.specialization(cast), batch["train"]
    target, _ = cast.logits(variables, "student", train)
    for m, role in enumerate(CONFIG.masks):
        grads, metrics = compute(program, variables, batch, m)
        assert list(grads) == [role]
        before, _ = mst_distill.alignment(cast, variables, m, train, target)
        np.testing.assert_allclose(metrics["loss/alignment"], before.mean(), rtol=1e-5)
        assert len(grads[role]) == len(jax.tree.leaves(variables[role]["params"]))
        assert size(grads) > 0


@pytest.mark.slow
def test_the_gate_learns_from_its_balance_alone_unless_it_weighs(play):
    def slope(**changes):
        config = dataclasses.replace(CONFIG, **changes)
        cast, variables, batch = play(config)
        grads, _ = compute(mst_distill.distillation(cast), variables, batch)
        return size(grads["gate"])

    assert slope(balance_weight=0.0) == 0
    assert slope() > 0
    assert slope(balance_weight=0.0, gate_weighted=True, active_teachers=2) > 0


@pytest.mark.slow
def test_one_teacher_without_a_mask_is_kd(play):
    config = dataclasses.replace(
        CONFIG, teacher_layers=(), cross_modal_layers=None, balance_weight=0.0
    )
    cast, variables, batch = play(config)
    found, metrics = compute(mst_distill.distillation(cast), variables, batch)

    def loss(student):
        logits, _ = cast.logits({**variables, "student": student}, "student", batch["train"])
        taught, _ = cast.logits(variables, "teacher", batch["train"])
        hard = losses.cross_entropy(logits, batch["train"]["label"])
        return jnp.mean(hard + losses.kd(logits, taught))

    assert metrics["share/0"] == 1
    value, expected = jax.value_and_grad(loss)(variables["student"])
    np.testing.assert_allclose(metrics["loss"], value, rtol=1e-5)
    np.testing.assert_allclose(size(found["student"]), size(expected), rtol=1e-4)


def test_the_student_with_the_lowest_cross_entropy_is_kept(play):
    cast, variables, batch = play()
    found = mst_distill.student_metrics(cast)(variables, batch["train"])
    score, entropy = found[mst_distill.SCORE], found["cross_entropy"]
    assert (score.total, score.weight) == (-entropy.total, entropy.weight)
    assert entropy.total > 0


def test_micro_batches_change_nothing(play):
    cast, variables, batch = play()
    whole = compute(mst_distill.distillation(cast), variables, batch)
    cut = compute(mst_distill.distillation(play(microbatches=4)[0]), variables, batch)
    close(cut[0], whole[0])
    close(cut[1], whole[1])


def test_padding_changes_nothing(play):
    cast, variables, batch = play()
    whole = compute(mst_distill.distillation(cast), variables, batch)
    padded = jax.tree.map(lambda x: jnp.concatenate([x, 3 * x]), batch["train"])
    padded["where"] = jnp.arange(32) < 16
    found = compute(mst_distill.distillation(cast), variables, {"train": padded})
    close(found[0], whole[0])


def test_weights_fall_after_the_first_epoch(play):
    schedules = mst_distill.distillation(play()[0]).schedules
    for name, after in (("distillation_weight", 0.5), ("balance_weight", 0.9)):
        found = [float(schedules[name](step, 4)) for step in (0, 2, 3)]  # 40 examples, 16 a step
        np.testing.assert_allclose(found, [1.0, 1.0, after])


CONFIGS = {
    "more teachers than there are": (
        dict(active_teachers=5),
        "active_teachers must be >= 1 and <= 4, got 5",
    ),
    "no teacher": (dict(active_teachers=0), "active_teachers must be >= 1"),
    "temperature": (dict(temperature=0.0), "temperature must be finite and > 0"),
    "routing": (dict(routing="best"), "routing must be one of"),
    "nobody": (dict(teacher_layers=None, cross_modal_layers=None), "nobody teaches"),
    "no tuple": (dict(teacher_layers="hidden/in"), "teacher_layers must be a tuple"),
    "variation of one": (
        dict(teacher_layers=(), cross_modal_layers=None, balance="cv"),
        "balance='cv' of one teacher is 0 / 0; use 'kl'",
    ),
    "decay": (dict(balance_decay=1.5), r"balance_decay must lie in \[0, 1\]"),
    "steps": (dict(mask_steps=0), "mask_steps must be >= 1"),
    "heads": (dict(heads=0), "heads must be >= 1"),
    "weight": (dict(balance_weight=-1.0), "balance_weight must be finite and >= 0"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_bad_configs_are_refused(case):
    changes, message = CONFIGS[case]
    with pytest.raises(ValueError, match=message):
        mst_distill.Config(**changes)


def _networks(task, **changes):
    held = {**task.networks, **changes}
    return dict(networks={role: network for role, network in held.items() if network})


# What changes of the task, and of the config -> the message.
TASKS = {
    "no such layer": (lambda t: {}, dict(teacher_layers=("hiden/in",)), "no value 'hiden/in'; it"),
    "too narrow for a mask": (
        lambda t: {},
        dict(factor=20),
        "a mask with heads=2 and factor=20 needs at least 40 channels, got 12",
    ),
    "no cross-modal teacher": (
        lambda t: _networks(t, cross_modal_teacher=None),
        {},
        "'cross_modal_teacher' is not among",
    ),
    "other classes": (
        lambda t: _networks(t, cross_modal_teacher=networks.build("mlp", 4, widths=(8,))),
        {},
        "the cross_modal_teacher has 4 classes, the data set 'halves' has 3",
    ),
    "an empty batch": (
        lambda t: dict(training={"student": dataclasses.replace(STUDENT, batch_size=0)}),
        {},
        "batch_size must be at least 1, got 0",
    ),
    "cached": (lambda t: dict(cache_teacher=True), {}, "teacher.cached: MST-Distill trains"),
    "quantised": (lambda t: dict(teacher_weights="int8"), {}, "teacher.quantize='int8'"),
    "given": (
        lambda t: dict(given={"cross_modal_teacher": t.variables("cross_modal_teacher")}),
        {},
        "cross_modal_teacher.checkpoint: MST-Distill trains both teachers itself",
    ),
    "trained in a way of its own": (
        lambda t: dict(training={"student": STUDENT, "cross_modal_teacher": STUDENT}),
        {},
        "cross_modal_teacher.training: MST-Distill trains both teachers itself",
    ),
}


@pytest.mark.parametrize("case", TASKS)
def test_tasks_that_do_not_fit_are_refused_before_anything_is_trained(case, task):
    of_task, of_config, message = TASKS[case]
    config = dataclasses.replace(CONFIG, **of_config)
    with pytest.raises(ValueError, match=message):
        mst_distill.check(dataclasses.replace(task, **of_task(task)), config)
    if of_config:  # who calls the recipe is told too
        with pytest.raises(ValueError, match=message):
            next(mst_distill.recipe(task, config))


def test_a_teacher_that_is_not_finite_stops_the_run(play, task):
    cast, variables, _ = play()
    broken = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), variables["teacher"])
    stream = {"train": task.stream("student")}
    program = mst_distill.distillation(cast)
    stage = Stage("distill", program, {**variables, "teacher": broken}, stream, 4)

    def recipe():
        return (yield stage)

    with pytest.raises(NonFiniteLoss, match="distill"):
        run(recipe(), seed=0)


@pytest.mark.slow
def test_the_statistics_of_frozen_teachers_stand_still(task):
    """Batch normalisation is in test mode in stages 2 and 3, the student's in training mode."""
    norm = networks.build("mlp", 3, widths=(8, 8), norm=True)
    config = dataclasses.replace(CONFIG, cross_modal_layers=("dense1/out",))
    task = dataclasses.replace(task, **_networks(task, cross_modal_teacher=norm, student=norm))
    result, stages = watched(task, config)
    moved = stages["cotraining"][1].variables
    begun = task.variables("cross_modal_teacher")
    assert size(statistics(moved["cross_modal_teacher"], begun)) > 0  # stage 1 trains
    for name in ("masks", "distill"):
        stage, outcome = stages[name]
        assert "cross_modal_teacher" not in outcome.variables
        assert (
            size(statistics(stage.variables["cross_modal_teacher"], moved["cross_modal_teacher"]))
            == 0
        )
    assert size(statistics(result.last, moved["student"])) > 0
    # What a teacher says of an example does not depend on the others of its batch.
    cast = mst_distill.cast_of(task, config)
    stream = task.stream("student")
    batch = stream.assemble(stream.table, next(stream.items()))
    roles = {**moved, **stages["masks"][1].variables}
    m = list(config.specialists).index(("cross_modal_teacher", "dense1/out"))
    whole, _ = cast.specialist(roles, m, batch, train=True, rng=jax.random.key(0))
    one, _ = cast.specialist(
        roles, m, jax.tree.map(lambda x: x[:1], batch), train=True, rng=jax.random.key(0)
    )
    np.testing.assert_allclose(whole[:1], one, rtol=1e-5, atol=1e-6)


def statistics(one, other):
    """How the variables besides the parameters differ."""
    return jax.tree.map(
        jnp.subtract, *({k: x for k, x in dict(v).items() if k != "params"} for v in (one, other))
    )
