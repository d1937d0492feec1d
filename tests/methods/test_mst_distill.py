"""MST-Distill: who learns in which stage, from whom, and what it comes down to."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import data, losses, networks
from kdjax.methods import mst_distill
from kdjax.methods.task import Task
from kdjax.training import divide, run
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
    training = {"student": Training(steps=4, batch_size=16, learning_rate=1e-2)}
    return Task(halves, nets, training, input=reads, validate_every=2)


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


def close(a, b, rtol=2e-5):
    scale = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(b))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=rtol * scale), a, b)


@pytest.mark.slow
def test_every_stage_trains_its_own_and_nothing_else(task):
    stages = {}

    def watched():
        recipe, sent = mst_distill.recipe(task, CONFIG), None
        while True:
            try:
                stage = recipe.send(sent)
            except StopIteration as end:
                return end.value
            sent = yield stage
            stages[stage.name] = stage, sent

    result = run(watched(), seed=0)
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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"active_teachers": 5}, "active_teachers must be >= 1 and <= 4, got 5"),
        ({"active_teachers": 0}, "active_teachers must be >= 1"),
        ({"temperature": 0.0}, "temperature must be finite and > 0"),
        ({"routing": "best"}, "routing must be one of"),
        ({"teacher_layers": None, "cross_modal_layers": None}, "nobody teaches"),
        ({"teacher_layers": "hidden/in"}, "teacher_layers must be a tuple"),
        ({"teacher_layers": (), "cross_modal_layers": None, "balance": "cv"}, "0 / 0"),
        ({"balance_decay": 1.5}, r"balance_decay must lie in \[0, 1\]"),
        ({"mask_steps": 0}, "mask_steps must be >= 1"),
    ],
)
def test_bad_configs_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        mst_distill.Config(**changes)


def test_tasks_that_do_not_fit_are_refused_before_anything_is_trained(task):
    def first(task, **changes):
        return next(mst_distill.recipe(task, dataclasses.replace(CONFIG, **changes)))

    with pytest.raises(ValueError, match="no value 'hiden/in'; it has"):
        first(task, teacher_layers=("hiden/in",))
    with pytest.raises(ValueError, match="needs at least 40 channels, got 12"):
        first(task, factor=20)
    two = {r: n for r, n in task.networks.items() if r != "cross_modal_teacher"}
    with pytest.raises(ValueError, match="'cross_modal_teacher' is not among"):
        first(dataclasses.replace(task, networks=two))
