"""What TGeo-KD learns and from what, its limits, and what it refuses."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import networks
from kdjax.data import Split, augmentations
from kdjax.methods import kd, supervised, tgeo_kd
from kdjax.training import MetricWriter, Stage, made, run
from kdjax.training.gradients import gradient
from kdjax.training.stage import Context
from kdjax.training.state import pick, values_at

PER_EXAMPLE = tgeo_kd.Config(ratio="per_example")


@pytest.fixture
def taught(task):
    """The task with a teacher, given as it is initialised, and six steps for the student."""
    training = {**task.training}
    training["student"] = dataclasses.replace(training["student"], steps=6)
    task = dataclasses.replace(task, training=training, validate_every=6)
    return task.with_teacher(task.variables("teacher"))


def stage_of(task, config, module=tgeo_kd) -> Stage:
    """The stage that trains the student, what is computed before it computed."""
    recipe = module.recipe(task, config)
    node = next(recipe)
    while not isinstance(node, Stage):
        node = recipe.send(node.function(np.random.default_rng(0)))
    return node


def batch_of(stage):
    """The first batch of each stream, the teacher's answers in it."""
    batch = {n: s.assemble(s.table, next(s.items())) for n, s in stage.data.items()}
    return stage.program.prepare(stage.variables, batch, context_of(stage))[0]


def context_of(stage, step=3):
    values = values_at(stage.program.schedules, stage.values, jnp.int32(step), stage.steps)
    return Context(stage.memory, jax.random.key(0), jnp.int32(step), values)


def gradient_of(stage, batch, which=0, parts=1, **roles):
    """(gradient, metrics) of an update on a batch."""
    update = dataclasses.replace(stage.program.updates[which], microbatches=parts)
    variables = {**{role: made(x) for role, x in stage.variables.items()}, **roles}
    live = {role: variables[role] for role in stage.program.live}
    frozen = {role: x for role, x in variables.items() if role not in live}

    @jax.jit
    def compute(live, frozen, batch):
        params = pick({**frozen, **live}, update.trains)
        result = gradient(update, params, live, frozen, batch, context_of(stage))
        return result.gradient, result.metrics

    return compute(live, frozen, batch)


def close(a, b, rtol=1e-4):
    scale = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(b))
    assert scale > 0
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=rtol * scale), a, b)


def moved(before, after):
    pairs = zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
    return [not np.array_equal(a, b) for a, b in pairs]


@pytest.mark.slow
def test_student_and_controller_are_trained_and_nothing_else(taught):
    stage = dataclasses.replace(stage_of(taught, tgeo_kd.Config()), validation=None)
    frozen = {role: stage.variables[role] for role in ("teacher", "class_means")}
    before = jax.tree.map(lambda x: np.asarray(x).tobytes(), frozen)
    metrics = MetricWriter(None)

    def alone():
        return (yield stage)

    outcome = run(alone(), metrics=metrics)
    assert set(outcome.variables) == {"student", "controller"}
    for role, variables in outcome.variables.items():
        assert all(moved(made(stage.variables[role]), variables)), role
    assert jax.tree.map(lambda x: np.asarray(x).tobytes(), frozen) == before
    (row,) = (row for row in metrics.rows if "ratio" in row)
    assert 0 < row["ratio"] < 1
    assert row["taught"] == 1
    assert row["controller/virtual_gradient_norm"] > 0
    assert row["controller/loss/cross_entropy"] > 0


@pytest.mark.slow  # that it is not trained is also told by the program, below
def test_the_controller_as_it_is_initialised_stays_so(taught):
    found = run(tgeo_kd.recipe(taught, tgeo_kd.Config(ratio="untrained")))
    start = made(tgeo_kd.start_controller(taught, tgeo_kd.Config()))
    assert not any(moved(start, found.weighing["controller"]))


@pytest.mark.parametrize("ratio", [*tgeo_kd.RULES, *tgeo_kd.LEARNED])
def test_only_a_learned_ratio_has_an_update_and_held_out_examples(taught, ratio):
    stage = stage_of(taught, tgeo_kd.Config(ratio=ratio))
    learned = ratio in tgeo_kd.LEARNED
    assert len(stage.program.updates) == 1 + learned
    assert ("held_out" in stage.data) is learned
    placed = ratio in ("geometry", "untrained")
    assert ("class_means" in stage.variables) is placed
    assert ("controller" in stage.variables) is (placed or learned)
    assert ("controller" in stage.program.live) is learned


@pytest.mark.slow  # a compilation each
@pytest.mark.parametrize("ratio", [*tgeo_kd.RULES, "per_example"])
def test_every_ratio_trains_a_student(taught, ratio):
    stage = stage_of(taught, tgeo_kd.Config(ratio=ratio))
    grads, metrics = gradient_of(stage, batch_of(stage))
    assert all(np.any(x) for x in jax.tree.leaves(grads["student"]["head/kernel"]))
    assert 0 <= float(metrics["ratio"].total / metrics["ratio"].weight) <= 1


def test_a_ratio_of_0_is_supervised_training(taught):
    whole = stage_of(taught, tgeo_kd.Config(ratio="fixed", fixed_ratio=0.0))
    batch = batch_of(whole)
    plain = Stage(
        "plain",
        supervised.program(
            "student", taught.networks["student"], taught.training["student"], supervised.Config()
        ),
        {"student": made(whole.variables["student"])},
        {},
        6,
    )
    close(gradient_of(whole, batch)[0], gradient_of(plain, batch)[0])


@pytest.mark.slow  # the kernel's own test tells of both limits
def test_a_ratio_of_1_is_kd(taught):
    soft = stage_of(taught, tgeo_kd.Config(ratio="fixed", fixed_ratio=1.0, temperature=2.0))
    config = kd.Config(label_weight=0.0, distillation_weight=1.0, temperature=2.0)
    batch = batch_of(soft)
    close(gradient_of(soft, batch)[0], gradient_of(stage_of(taught, config, kd), batch)[0])


@pytest.mark.slow
def test_the_student_sees_its_ratios_as_constants(taught):
    """The gradient is that under the same numbers, written down an example at a time."""
    stage, free = stage_of(taught, tgeo_kd.Config()), stage_of(taught, PER_EXAMPLE)
    batch = batch_of(stage)
    train, variables = batch["train"], {r: made(x) for r, x in stage.variables.items()}
    logits = taught.networks["student"].apply(variables["student"], train["image"]).output
    alpha = tgeo_kd.ratios(tgeo_kd.Config(), variables, logits["logits"], train, 0.5)
    assert float(jnp.std(alpha)) > 1e-4
    table = jnp.zeros(len(taught.dataset.splits["train"]))
    table = table.at[train["id"]].set(jnp.log(alpha) - jnp.log1p(-alpha))
    written = gradient_of(free, batch, controller={"params": {"logits": table}})[0]
    close(gradient_of(stage, batch)[0], written)


def test_the_outer_gradient_raises_a_ratio_where_the_teacher_is_right_and_the_label_wrong(taught):
    """Two examples: one with a wrong label, one with a wrong teacher; both held out as they are."""
    stage = stage_of(taught, PER_EXAMPLE)
    batch = batch_of(stage)
    two = {n: jax.tree.map(lambda x: x[:2], batch[n]) for n in batch}
    true = jnp.array([3, 7])
    answers = 8.0 * jax.nn.one_hot(jnp.array([3, 2]), 10)
    images = {"image": two["train"]["image"]}
    train = {**two["train"], "label": jnp.array([5, 7]), "teacher_logits": answers}
    held_out = {**two["held_out"], **images, "label": true}
    slope = gradient_of(stage, {"train": train, "held_out": held_out}, 1)[0]
    first, second = slope["controller"]["logits"][train["id"]]
    assert float(first) < 0 < float(second)
    others = jnp.delete(slope["controller"]["logits"], train["id"])
    assert not np.any(others)


@pytest.mark.slow  # as the toy of tests/training/test_bilevel.py
def test_a_virtual_step_of_rate_0_teaches_the_controller_nothing(taught):
    stage = stage_of(taught, tgeo_kd.Config(virtual_rate=0.0))
    slope = gradient_of(stage, batch_of(stage), 1)[0]["controller"]
    assert not any(np.any(x) for x in jax.tree.leaves(slope))


@pytest.mark.slow
def test_the_virtual_step_is_no_longer_than_its_clip(taught):
    def outer(**fields):
        stage = stage_of(taught, tgeo_kd.Config(**fields))
        variables = {role: made(x) for role, x in stage.variables.items()}
        objective, context = stage.program.updates[1].objective, context_of(stage)

        @jax.jit
        def compute(variables, batch):
            found = objective(variables, batch, context)
            return found.terms["cross_entropy"], dict(found.metrics)

        term, metrics = compute(variables, batch_of(stage))
        clipped = [float(x.total) for n, x in metrics.items() if n == "virtual_clipped"]
        return float(term.total / term.weight), clipped

    still, _ = outer(virtual_rate=0.0)
    assert outer(virtual_rate=1.0, virtual_clip=1e-6) == (pytest.approx(still, abs=1e-4), [1.0])
    free, unknown = outer(virtual_rate=1.0, virtual_clip=0.0)
    assert unknown == []
    assert abs(free - still) > 1e-2


def test_the_outer_gradient_is_that_of_finite_differences(taught):
    """Along a random direction of the controller, in float64."""
    stage = stage_of(taught, tgeo_kd.Config())
    batch = jax.tree.map(lambda x: x[:8] if x.ndim else x, batch_of(stage))
    objective = stage.program.updates[1].objective
    variables = {role: made(x) for role, x in stage.variables.items()}
    context = context_of(stage)
    with jax.enable_x64(True):

        def wide(tree):
            return jax.tree.map(
                lambda x: (
                    jnp.asarray(x, jnp.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x
                ),
                tree,
            )

        variables, batch = wide(variables), wide(batch)
        flat, unravel = jax.flatten_util.ravel_pytree(variables["controller"])
        direction = jnp.asarray(np.random.default_rng(0).normal(size=flat.shape))

        def along(t):
            controller = unravel(flat + t * direction)
            found = objective({**variables, "controller": controller}, batch, context)
            term = found.terms["cross_entropy"]
            return term.total / term.weight

        along = jax.jit(along)
        slope = float(jax.grad(along)(0.0))
        measured = (float(along(1e-4)) - float(along(-1e-4))) / 2e-4
    assert abs(measured) > 1e-7
    assert slope == pytest.approx(measured, rel=1e-3)


@pytest.mark.parametrize("ratio", ["geometry", pytest.param("wls", marks=pytest.mark.slow)])
def test_the_students_gradient_does_not_depend_on_how_the_batch_is_cut(taught, ratio):
    stage = stage_of(taught, tgeo_kd.Config(ratio=ratio))
    batch = batch_of(stage)
    close(gradient_of(stage, batch, parts=4)[0], gradient_of(stage, batch)[0])


@pytest.mark.parametrize("which", [0, 1])
def test_padding_and_rows_without_an_answer_or_a_label_change_no_gradient(taught, which):
    stage = stage_of(taught, tgeo_kd.Config())
    batch = batch_of(stage)
    train, held_out = batch["train"], batch["held_out"]
    rows = jnp.arange(len(train["where"]))

    def keeping(train, held_out):
        return gradient_of(stage, {"train": train, "held_out": held_out}, which)

    few = {
        "train": jax.tree.map(lambda x: x[3:], train),
        "held_out": jax.tree.map(lambda x: x[1:], held_out),
    }
    answers = train["teacher_logits"].at[0].set(jnp.nan).at[2].set(9.0)
    spoilt = {
        **train,
        "teacher_logits": answers,
        "label": train["label"].at[1].set(-1),
        "where": rows != 2,
        "image": train["image"].at[2].set(7.0),
    }
    held = {**held_out, "label": held_out["label"].at[0].set(-100)}
    found, metrics = keeping(spoilt, held)
    close(found, gradient_of(stage, few, which)[0])
    if not which:
        assert float(metrics["taught"].total) == len(rows) - 3
        assert float(metrics["taught"].weight) == len(rows) - 1


@pytest.mark.parametrize(
    "features",
    ["norms", *(pytest.param(f, marks=pytest.mark.slow) for f in ("vertices+edges", "angles"))],
)
def test_ratios_stay_between_0_and_1_whatever_the_controller_is(taught, features):
    config = tgeo_kd.Config(features=features)
    start = made(tgeo_kd.start_controller(taught, config))
    variables = {
        "controller": jax.tree.map(lambda x: 1e3 * jnp.ones_like(x), start),
        "class_means": {"teacher_probs": jnp.eye(10)},
    }
    batch = {"teacher_logits": 1e3 * jnp.eye(10), "label": jnp.arange(10)}
    compute = jax.jit(
        lambda variables, logits: tgeo_kd.ratios(config, variables, logits, batch, 0.0)
    )
    found = compute(variables, -1e3 * jnp.eye(10))
    assert np.all((found >= 0) & (found <= 1))
    plain = compute({**variables, "controller": start}, jnp.eye(10))
    assert np.all((plain > 0) & (plain < 1))


def test_class_means_leave_out_what_has_no_answer(taught):
    logits = np.log(np.full((len(taught.dataset.splits["train"]), 10), 0.1, np.float32))
    logits[0] = np.nan
    spoilt = dataclasses.replace(taught)
    object.__setattr__(spoilt, "predict", lambda *arguments: logits)
    np.testing.assert_allclose(tgeo_kd.class_means(spoilt, None), np.full((10, 10), 0.1), rtol=1e-5)


@pytest.mark.slow
def test_a_stage_ends_when_the_outer_loss_is_calm(taught):
    config = tgeo_kd.Config(patience=2, tolerance=100.0, check_every=1)
    found = run(tgeo_kd.recipe(taught, config))
    assert int(found.selected_step) <= 3
    stage = stage_of(taught, config)

    def alone():
        return (yield stage)

    assert int(run(alone()).load().step) == 3  # the first check has none before it
    restless = dataclasses.replace(config, tolerance=1e-12)
    stage = stage_of(taught, restless)
    assert int(run(alone()).load().step) == 6


def test_checks_are_means_and_only_calm_ones_in_a_row_count():
    config = tgeo_kd.Config(patience=2, tolerance=0.5, check_every=2)
    memory, calm = tgeo_kd.WATCHED, []
    for step, loss in enumerate([1.0, 3.0, 2.0, 2.2, 9.0, 9.0, 8.9, 9.3, 9.0, 9.0]):
        context = Context(memory, jax.random.key(0), jnp.int32(step), {})
        metrics = {"loss/cross_entropy": tgeo_kd.Term(jnp.float32(4 * loss), jnp.float32(4))}
        _, memory = tgeo_kd.watch(config, {}, context, metrics)
        calm.append(int(memory["calm"]))
    assert calm == [0, 0, 0, 1, 1, 0, 0, 1, 1, 2]


def test_a_tenth_is_held_out_in_the_classes_proportions(taught):
    whole, divided = taught.dataset, tgeo_kd.with_held_out(taught, tgeo_kd.Config()).dataset
    parts = [divided.splits[name] for name in ("train", "held_out")]
    assert [len(part) for part in parts] == [1131, 126]
    counts = np.bincount(parts[1].labels(), minlength=10)
    assert max(counts) - min(counts) <= 1
    both = [p.arrays()["image"].reshape(len(p), -1) for p in (*parts, whole.splits["train"])]
    a, b = (
        np.sort(x.view([("", x.dtype)] * x.shape[1]), 0)
        for x in (np.concatenate(both[:2]), both[2])
    )
    np.testing.assert_array_equal(a, b)
    again = tgeo_kd.with_held_out(dataclasses.replace(taught, seed=5), tgeo_kd.Config()).dataset
    assert again is divided  # seeds share it


def test_held_out_examples_that_are_trained_on_are_refused(taught):
    train, validation = (taught.dataset.splits[n] for n in ("train", "validation"))
    arrays = {
        n: np.concatenate([validation.arrays()[n], x[5:7]]) for n, x in train.arrays().items()
    }
    splits = {**taught.dataset.splits, "extra": Split.of(arrays, "digits/extra")}
    task = dataclasses.replace(taught, dataset=dataclasses.replace(taught.dataset, splits=splits))
    message = r"digits/extra is to be held out, but 2 of its 182 .* the first at row 180"
    with pytest.raises(ValueError, match=message):
        next(tgeo_kd.recipe(task, tgeo_kd.Config(held_out_split="extra")))
    with pytest.raises(
        ValueError, match=r"held_out_split='more': 'digits' has the splits \['extra"
    ):
        next(tgeo_kd.recipe(task, tgeo_kd.Config(held_out_split="more")))
    alone = tgeo_kd.with_held_out(task, tgeo_kd.Config(held_out_split="validation")).dataset
    assert len(alone.splits["train"]) == len(train)


def test_too_few_held_out_examples_are_refused(taught):
    with pytest.raises(ValueError, match=r"13 examples are held out, fewer than a batch .* 32"):
        next(tgeo_kd.recipe(taught, tgeo_kd.Config(held_out=0.01)))
    with pytest.raises(ValueError, match=r"held_out=0.0001 of the 1257 .* leaves one side without"):
        next(tgeo_kd.recipe(taught, tgeo_kd.Config(held_out=0.0001)))


def change(task, augment=(), **fields):
    fields["augment"] = augmentations(augment)
    student = dataclasses.replace(task.training["student"], **fields)
    return dataclasses.replace(task, training={**task.training, "student": student})


def test_what_it_cannot_train_on_is_refused(taught):
    with pytest.raises(ValueError, match="it cannot train on mixup"):
        run(tgeo_kd.recipe(change(taught, augment=("mixup",)), tgeo_kd.Config()))
    with pytest.raises(ValueError, match="does not scale the loss of its virtual step"):
        stage_of(change(taught, loss_scale=8.0), tgeo_kd.Config())


def test_held_out_images_are_not_augmented(taught):
    plain, flipped = (
        stage_of(change(taught, augment=views), tgeo_kd.Config()).data for views in ((), ("flip",))
    )
    assert flipped["held_out"].assemble is plain["held_out"].assemble is plain["train"].assemble
    assert flipped["train"].assemble is not plain["train"].assemble


@pytest.mark.slow
def test_cached_teachers_answer_for_the_examples_that_are_left(taught):
    live, cached = (
        stage_of(dataclasses.replace(taught, cache_teacher=cache), tgeo_kd.Config())
        for cache in (False, True)
    )
    assert "teacher" not in cached.variables
    close(batch_of(cached)["train"], batch_of(live)["train"])


@pytest.mark.slow
def test_a_student_with_batch_statistics_is_trained(taught):
    nets = {**taught.networks, "student": networks.build("mlp", 10, widths=(12,), norm=True)}
    found = run(tgeo_kd.recipe(dataclasses.replace(taught, networks=nets), tgeo_kd.Config()))
    assert all(moved(nets["student"].init(jax.random.key(0), jnp.zeros((1, 64))), found.last))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            dict(ratio="learned"),
            r"ratio must be one of \('geometry', 'per_example'.*, got 'learned'",
        ),
        (dict(features="edges"), "features must be one of .*, got 'edges'"),
        (dict(temperature=0.0), "temperature must be positive, got 0.0"),
        (dict(tolerance=0.0), "tolerance must be positive"),
        (dict(controller_learning_rate=-1.0), "controller_learning_rate must be positive"),
        (dict(virtual_rate=-0.1), "virtual_rate must not be negative, got -0.1"),
        (dict(virtual_clip=float("nan")), "virtual_clip must not be negative, got nan"),
        (dict(controller_weight_decay=-1.0), "controller_weight_decay must not be negative"),
        (dict(levels=1), "levels must be at least 2, got 1"),
        (dict(check_every=0), "check_every must be at least 1, got 0"),
        (dict(hidden=(0,)), r"hidden must hold positive widths, got \(0,\)"),
        (dict(fixed_ratio=1.5), r"fixed_ratio must be in \[0, 1\], got 1.5"),
        (dict(held_out=0.0), r"held_out is a fraction in \(0, 1\), got 0.0"),
        (dict(held_out_split="test"), "held_out_split='test': .* neither trained on nor reported"),
        (dict(ratio="wls", patience=3), "patience=3 watches the outer loss of a learned ratio"),
    ],
)
def test_a_bad_config_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        tgeo_kd.Config(**fields)
