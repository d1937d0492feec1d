"""What every method promises, and what each one claims of itself."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import methods, networks
from kdjax.methods import dual_head_kd, kd, plackett_luce, supervised
from kdjax.training import Stage, run, together
from kdjax.training.gradients import gradient
from kdjax.training.stage import Context
from kdjax.training.state import pick, values_at

ARMS = {
    "supervised": (supervised, supervised.Config(label_smoothing=0.1)),
    **{loss: (kd, kd.Config.of(loss)) for loss in kd.DEFAULTS},
    **{
        f"plackett_luce-{w}": (plackett_luce, plackett_luce.Config(weighting=w))
        for w in plackett_luce.WEIGHTINGS
    },
    "dual": (dual_head_kd, dual_head_kd.Config()),
    "dual-aligned": (dual_head_kd, dual_head_kd.Config(alignment="all", report_conflict=True)),
    "dual-shared": (dual_head_kd, dual_head_kd.Config(alignment="shared")),
    "single-shared": (dual_head_kd, dual_head_kd.Config(heads="single", alignment="shared")),
    "single": (dual_head_kd, dual_head_kd.Config(heads="single", loss="binary_kl")),
}


def stage_of(task, module, config) -> Stage:
    """The stage that trains the student, its teacher given."""
    node = module.recipe(task.with_teacher(task.variables("teacher")), config).send(None)
    assert isinstance(node, Stage)
    return node


def combined_gradient(stage, batch, parts=1):
    program = stage.program
    (update,) = program.updates
    values = values_at(program.schedules, stage.values, 3, 30)
    context = Context({}, jax.random.key(0), jnp.int32(3), values)
    live = {role: stage.variables[role] for role in program.live}
    frozen = {r: v for r, v in stage.variables.items() if r not in live}

    @jax.jit
    def compute(live, frozen, batch):
        if program.prepare is not None:
            batch, _ = program.prepare({**frozen, **live}, batch, context)
        cut = dataclasses.replace(update, microbatches=parts)
        params = pick(live, update.trains)
        result = gradient(cut, params, live, frozen, batch, context)
        grads = result.gradient if update.combine is None else update.combine(result.gradient)[0]
        return grads, result.metrics["loss"].total

    return compute(live, frozen, batch)


def batch_of(task, rows=16):
    stream = task.stream("student")
    batch = jax.jit(stream.assemble)(stream.table, next(stream.items()))
    return {"train": jax.tree.map(lambda x: x[:rows], batch)}


def close(a, b, rtol=2e-5):
    scale = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(b))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=rtol * scale), a, b)


# Those whose terms are combined in the ways of others below.
LIKE_OTHERS = ("reverse_kl", "jsd", "nkd", "dual-aligned", "single-shared", "dual-shared")


@pytest.mark.parametrize(
    "arm", [pytest.param(a, marks=pytest.mark.slow if a in LIKE_OTHERS else ()) for a in ARMS]
)
def test_gradients_do_not_depend_on_padding_or_micro_batches(task, arm):
    module, config = ARMS[arm]
    stage, batch = stage_of(task, module, config), batch_of(task)
    whole = combined_gradient(stage, batch)
    padding = {
        "image": jnp.full((8, 8, 8, 1), 1e4),
        "label": jnp.full(8, -100, jnp.int32),
        "id": jnp.zeros(8, jnp.int32),
        "where": jnp.zeros(8, bool),
    }
    padded = {"train": {n: jnp.concatenate([x, padding[n]]) for n, x in batch["train"].items()}}
    if arm != "dist":
        close(combined_gradient(stage, padded, parts=4), whole)
    else:  # its relation within classes compares the rows
        close(combined_gradient(stage, padded), whole)
        with pytest.raises(ValueError, match="compares the"):
            combined_gradient(stage, batch, parts=4)


@pytest.mark.parametrize("arm", ["supervised", "kd", "plackett_luce-teacher", "dual"])
def test_a_recipe_leaves_its_teacher_alone_and_is_deterministic(task, arm):
    module, config = ARMS[arm]
    teacher = task.variables("teacher")
    before = [np.asarray(x).tobytes() for x in jax.tree.leaves(teacher)]
    first = run(module.recipe(task.with_teacher(teacher), config))
    assert before == [np.asarray(x).tobytes() for x in jax.tree.leaves(teacher)]
    again = run(module.recipe(task.with_teacher(teacher), config))
    jax.tree.map(np.testing.assert_array_equal, first.last, again.last)


def test_every_method_starts_from_one_student_and_one_order(task):
    stages = [stage_of(task, *arm) for arm in ARMS.values()]
    for stage in stages[1:]:
        jax.tree.map(
            np.testing.assert_array_equal,
            stage.variables["student"],
            stages[0].variables["student"],
        )
        items = [next(s.data["train"].items(7)) for s in (stage, stages[0])]
        jax.tree.map(np.testing.assert_array_equal, *items)


def test_the_teacher_is_trained_unless_it_is_given(task):
    assert plackett_luce.recipe(task, plackett_luce.Config()).send(None).name == "teacher"
    assert stage_of(task, plackett_luce, plackett_luce.Config()).name == "distill"


def test_the_rare_classes_of_a_long_tail_are_scored_by_themselves(task):
    splits, variables = task.dataset.splits, task.variables("student")
    assert "few_shot_accuracy" not in task.scores("student", variables, None)
    tail = {**splits, "train": splits["train"].long_tailed(20, seed=0)}
    tailed = dataclasses.replace(task, dataset=dataclasses.replace(task.dataset, splits=tail))
    assert tailed.few_shot_classes().tolist() == [False] * 6 + [True] * 4
    right = task.predict("student", variables).argmax(-1) == splits["test"].labels()
    expected = right[splits["test"].labels() >= 6].mean()
    found = tailed.scores("student", variables, None)["few_shot_accuracy"]
    np.testing.assert_allclose(found, expected)


def test_a_role_may_learn_from_another_split(task):
    splits = {**task.dataset.splits, "few": task.dataset.splits["train"].subset(50, seed=0)}
    both = dataclasses.replace(task, dataset=dataclasses.replace(task.dataset, splits=splits))
    task = dataclasses.replace(both, learns_from={"teacher": "few"})
    assert [len(task.stream(r).table["label"]) for r in ("teacher", "student")] == [50, 1257]
    with pytest.raises(ValueError, match="the student learns from the split 'rare', but 'digits'"):
        dataclasses.replace(task, learns_from={"student": "rare"})


def test_a_cached_teacher_gives_the_student_of_a_live_one(task):
    teacher = task.variables("teacher")
    cached = dataclasses.replace(task, cache_teacher=True)
    runs = [run(kd.recipe(t.with_teacher(teacher), kd.Config())) for t in (task, cached)]
    close(runs[0].last, runs[1].last, rtol=1e-4)


def test_seeds_together_equal_seeds_alone(task):
    tasks = [dataclasses.replace(task, seed=seed) for seed in (0, 1)]
    recipes = [plackett_luce.recipe(t, plackett_luce.Config()) for t in tasks]
    group = run(together(recipes, (0, 1), apart=("teacher",)))
    for t, found in zip(tasks, group):
        alone = run(plackett_luce.recipe(t, plackett_luce.Config()), seed=t.seed)
        close(found.last, alone.last, rtol=1e-4)
        assert found.selected_step == alone.selected_step


def test_first_weights_are_cross_entropy(task):
    batch = batch_of(task)
    first = stage_of(task, plackett_luce, plackett_luce.Config(weighting="first"))
    plain = stage_of(task, supervised, supervised.Config())
    close(combined_gradient(first, batch), combined_gradient(plain, batch))


def test_kd_without_the_teacher_is_supervised(task):
    batch = batch_of(task)
    config = kd.Config(label_weight=1.0, distillation_weight=0.0)
    plain = stage_of(task, supervised, supervised.Config())
    close(combined_gradient(stage_of(task, kd, config), batch), combined_gradient(plain, batch))


def test_without_its_loss_the_auxiliary_head_changes_nothing(task):
    given = task.with_teacher(task.variables("teacher"))
    training = dataclasses.replace(task.training["student"], optimizer="adam")
    given = dataclasses.replace(given, training={**task.training, "student": training})
    two = run(dual_head_kd.recipe(given, dual_head_kd.Config(distillation_weight=0.0)))
    one = run(supervised.recipe(given, supervised.Config()))
    close(two.last, one.last, rtol=1e-4)


def test_features_by_a_tap_are_the_features(task):
    batch = batch_of(task)
    plain = stage_of(task, dual_head_kd, dual_head_kd.Config())
    tapped = stage_of(task, dual_head_kd, dual_head_kd.Config(features="head/in"))
    close(combined_gradient(tapped, batch), combined_gradient(plain, batch))


def test_alignment_takes_out_what_opposes_the_labels():
    main = {"student": {"head/k": jnp.array([1.0, 0.0]), "body/k": jnp.array([1.0, 0.0])}}
    other = {"student": {"head/k": jnp.array([0.0, 2.0]), "body/k": jnp.array([-1.0, 1.0])}}
    config = dual_head_kd.Config(alignment="shared", report_conflict=True)
    grads = {"cross_entropy": main, "binary_kl_norm": other}
    merged, metrics = dual_head_kd.combine(config, grads)
    np.testing.assert_allclose(merged["student"]["body/k"], [1.0, 1.0])
    np.testing.assert_allclose(merged["student"]["head/k"], [1.0, 2.0])
    assert float(metrics["cosine/backbone"].total) == pytest.approx(-(0.5**0.5))
    merged, _ = dual_head_kd.combine(dataclasses.replace(config, alignment="all"), grads)
    np.testing.assert_allclose(merged["student"]["body/k"], [0.5, 1.0])
    np.testing.assert_allclose(merged["student"]["head/k"], [1.5, 2.0])


def test_the_nonlinear_head_trains_and_stays_behind(task):
    config = dual_head_kd.Config(auxiliary="nonlinear", hidden=16)
    found = run(dual_head_kd.recipe(task.with_teacher(task.variables("teacher")), config))
    assert set(found.last) == {"params"}
    stage = stage_of(task, dual_head_kd, config)
    assert "batch_stats" in stage.variables["auxiliary"]
    assert stage.program.updates[0].trains == ("student", "auxiliary")


BAD = {
    "temperature": (lambda: methods.configure("kd", temperature=0.0), "temperature must be"),
    "weight": (lambda: methods.configure("kd", label_weight=-1.0), "label_weight must not"),
    "loss": (lambda: methods.configure("kd", loss="kld"), "loss must be one of"),
    "weighting": (
        lambda: methods.configure("plackett_luce", weighting="x"),
        "weighting must be one of",
    ),
    "alignment": (
        lambda: methods.configure("dual_head_kd", alignment="x"),
        "alignment must be one of",
    ),
    "method": (lambda: methods.get("plackettluce"), "did you mean 'plackett_luce'"),
    "field": (lambda: methods.configure("kd", temprature=1.0), "did you mean 'temperature'"),
    "smoothing": (lambda: methods.configure("supervised", label_smoothing=1.0), "in \\[0, 1\\)"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_config_is_refused(case):
    make, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        make()


def test_a_bad_task_is_refused(task):
    small = {**task.training}
    small["student"] = dataclasses.replace(small["student"], batch_size=2000)
    with pytest.raises(ValueError, match="batch_size=2000 of the student is larger"):
        dataclasses.replace(task, training=small)
    nets = {**task.networks, "teacher": networks.build("mlp", 9, widths=(32,))}
    with pytest.raises(ValueError, match="the teacher has 9 classes"):
        dataclasses.replace(task, networks=nets)
