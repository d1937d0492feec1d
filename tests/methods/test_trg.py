"""TRG: graphs of tokens teach the student alone, however a batch is cut or padded."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from step_toys import RNG, close, first_batch, gradient_of, padded, stage_of

from kdjax import losses, methods, networks
from kdjax.methods import kd, trg
from kdjax.methods.sweep import program_of
from kdjax.methods.task import Task
from kdjax.training import divide, read_metrics, run
from kdjax.training.optimizers import Training
from kdjax.training.stage import Context

CONFIG = trg.Config(student_map="block0/out", teacher_map="block0/out", embedding_width=6)
# All tokens: which are drawn then does not matter.
WHOLE = dataclasses.replace(CONFIG, tokens_per_image=16)
STUDENT, TEACHER = (jax.random.normal(jax.random.key(i), (6, 9, d)) for i, d in ((1, 3), (2, 5)))
WHERE = jnp.arange(6) < 4


@pytest.fixture(scope="module")
def task(digits):
    nets = {
        role: networks.build("convnet", 10, widths=(width,), strides=(2,))
        for role, width in (("teacher", 8), ("student", 6))
    }
    training = dict.fromkeys(nets, Training(steps=4, batch_size=16, learning_rate=3e-3))
    return Task(digits, nets, training, validate_every=4)


@pytest.fixture(scope="module")
def batch(task):
    return first_batch(task, 8)


@pytest.fixture(scope="module")
def whole(task, batch):
    return gradient_of(stage_of(task, trg, WHOLE), batch)


def test_the_step_does_not_depend_on_padding_or_micro_batches(task, batch, whole):
    grads, metrics = whole
    names = ("cross_entropy", "kd", "inner", "local", "global")
    parts = jnp.stack([metrics[f"loss/{name}"] for name in names])
    np.testing.assert_allclose(metrics["loss"], jnp.dot(jnp.array([1, 1, 5, 0.3, 0.1]), parts))
    cut = gradient_of(stage_of(task, trg, WHOLE, microbatches=4), padded(batch))
    close(cut[0], grads, rtol=1e-4)
    close(cut[1], metrics, rtol=1e-4)


def test_the_student_and_both_projections_are_trained_and_nothing_else(task, whole):
    stage = stage_of(task, trg, WHOLE)
    assert stage.program.live == ("student", "student_projector", "teacher_projector")
    for role in ("student_projector", "teacher_projector"):
        (kernel,) = jax.tree.leaves(whole[0][role])
        assert kernel.shape[1] == 6
        assert np.any(kernel != 0)
    with pytest.raises(ValueError, match="compares the"):
        dataclasses.replace(stage.program.updates[0], microbatches=2)


def test_without_its_weights_it_is_kd_and_the_graphs_are_measured(task, batch, whole):
    weights = dict(inner_weight=0.0, local_weight=0.0, global_weight=0.0)
    found = gradient_of(stage_of(task, trg, dataclasses.replace(WHOLE, **weights)), batch)
    usual = kd.Config(label_weight=1.0, distillation_weight=1.0)
    expected = gradient_of(stage_of(task, kd, usual), batch)
    close(found[0]["student"], expected[0]["student"], rtol=1e-4)
    for role in trg.ROLES:
        assert all(np.all(x == 0) for x in jax.tree.leaves(found[0][role]))
    for name in ("inner", "local", "global"):
        np.testing.assert_allclose(found[1][f"loss/{name}"], whole[1][f"loss/{name}"], rtol=1e-4)


graph_of = jax.jit(trg.compare, static_argnums=4)


@jax.jit
def compared(student, teacher, where=WHERE):
    """The gradients of both losses in both sides, and the graph."""

    def loss(student, teacher):
        found = trg.compare(student, teacher, where, RNG, WHOLE)
        return found.local.sum() + found.inner.sum(), found

    return jax.grad(loss, argnums=(0, 1), has_aux=True)(student, teacher)


def test_images_that_do_not_count_may_hold_anything():
    hidden = jnp.where(WHERE[:, None, None], 0.0, jnp.nan)
    (of_student, of_teacher), found = compared(STUDENT + hidden, TEACHER + hidden)
    (expected, _), alone = compared(STUDENT, TEACHER)
    np.testing.assert_array_equal(of_student, expected)
    np.testing.assert_array_equal(of_student[4:], jnp.zeros((2, 9, 3)))
    np.testing.assert_array_equal(of_teacher, jnp.zeros_like(TEACHER))
    np.testing.assert_array_equal(found.local, alone.local)
    np.testing.assert_array_equal(found.local[36:], jnp.zeros(18))
    np.testing.assert_array_equal(found.overlap[:36], alone.overlap[:36])


def test_equal_networks_have_equal_graphs():
    found = graph_of(TEACHER, TEACHER, WHERE, RNG, WHOLE)
    np.testing.assert_allclose(found.local, jnp.zeros(54), atol=1e-6)
    np.testing.assert_array_equal(found.inner, jnp.zeros(6))
    np.testing.assert_array_equal(found.overlap, jnp.ones(54))


FIELDS = {
    "several": dict(self_edges=True, neighbors="teacher", sigma=0.5, num_neighbors=3),
    "direction": dict(direction="reverse"),
    "self-edges": dict(self_edges=True),
    "neighbours": dict(neighbors="teacher"),
    "sigma": dict(sigma=0.5),
    "k": dict(num_neighbors=3),
    "temperature": dict(local_temperature=1.0),
}
DAILY = ("several", "direction")


@pytest.mark.parametrize(
    "case", [pytest.param(c, marks=() if c in DAILY else pytest.mark.slow) for c in FIELDS]
)
def test_every_field_reaches_the_graphs(case):
    config = dataclasses.replace(WHOLE, **FIELDS[case])
    there = jnp.repeat(WHERE, 9)
    edges = dict(k=config.num_neighbors, self_edges=config.self_edges, where=there)

    @jax.jit
    def by_hand(student, teacher):
        of_teacher = losses.token_neighbors(teacher, **edges)
        return losses.token_local_loss(
            losses.token_knn_adjacency(
                student,
                **edges,
                sigma=config.sigma or None,
                neighbors=of_teacher if config.neighbors == "teacher" else None,
            ),
            losses.token_knn_adjacency(teacher, **edges, sigma=config.sigma or None),
            local_temperature=config.local_temperature,
            direction=config.direction,
            where=there,
        )

    expected = by_hand(STUDENT.reshape(54, 3), TEACHER.reshape(54, 5))
    found = graph_of(STUDENT, TEACHER, WHERE, RNG, config)
    np.testing.assert_allclose(found.local, expected, rtol=1e-4, atol=1e-6)
    usual = graph_of(STUDENT, TEACHER, WHERE, RNG, WHOLE).local
    assert not np.allclose(found.local, usual, rtol=1e-3)


def test_the_overlap_is_the_share_of_common_neighbours():
    found = compared(STUDENT, TEACHER)[1]
    there = jnp.repeat(WHERE, 9)
    neighbors = jax.jit(lambda x: losses.token_neighbors(x.reshape(54, -1), k=8, where=there))
    own, taught = neighbors(STUDENT), neighbors(TEACHER)
    for i in (0, 7, 35):
        common = set(own[i].tolist()) & set(taught[i].tolist())
        np.testing.assert_allclose(found.overlap[i], len(common) / 8)


def test_a_sum_over_tokens_is_not_divided():
    values, where = jnp.arange(4.0), jnp.array([True, True, True, False])
    total = dataclasses.replace(CONFIG, reduction="sum")
    for config, expected in ((CONFIG, 1.0), (total, 3.0)):
        term = trg.over_tokens(values, where, 0.5, config)
        assert (float(divide(*term[:2])), term.coefficient) == (expected, 0.5)


def test_each_image_gives_so_many_tokens_each_at_most_once_and_all_alike():
    draw = jax.jit(jax.vmap(lambda rng: trg.sample_tokens(rng, 3, 5, 2)))
    drawn = np.asarray(draw(jax.random.split(RNG, 400)))
    assert drawn.shape == (400, 6)
    assert np.all(np.diff(drawn, axis=1) > 0)
    np.testing.assert_array_equal(drawn // 5, np.tile([0, 0, 1, 1, 2, 2], (400, 1)))
    np.testing.assert_allclose(np.bincount(drawn.ravel()), 400 * 2 / 5, rtol=0.25)


def test_a_draw_takes_the_same_tokens_of_both_networks():
    both = graph_of(TEACHER[..., :3], TEACHER, WHERE, RNG, CONFIG)
    np.testing.assert_array_equal(both.student, both.teacher[:, :3])
    assert both.student.shape == (24, 3)
    other = graph_of(TEACHER[..., :3], TEACHER, WHERE, jax.random.key(5), CONFIG)
    assert not np.array_equal(both.teacher, other.teacher)


def test_the_global_temperature_falls_by_a_cosine():
    schedule = [float(trg.global_temperature(step, 5, 0.5, 0.07)) for step in range(5)]
    expected = [0.07 + 0.43 * (1 + np.cos(np.pi * i / 4)) / 2 for i in range(5)]
    np.testing.assert_allclose(schedule, expected, rtol=1e-5)
    assert trg.global_temperature(0, 1, 0.5, 0.07) == 0.5


def test_a_tap_becomes_a_grid_of_tokens():
    large, small = jnp.zeros((2, 16, 16, 3)), jnp.zeros((2, 8, 8, 3))
    assert trg.token_grid(large, 0, 0).shape == (2, 8, 8, 12)
    assert trg.token_grid(small, 0, 0).shape == (2, 8, 8, 3)
    assert trg.token_grid(small, 4, 0).shape == (2, 2, 2, 48)
    assert trg.token_grid(jnp.zeros((2, 17, 3)), 0, 1).shape == (2, 4, 4, 3)
    assert trg.token_grid(jnp.zeros((2, 17, 3)), 0, 0).shape == (2, 17, 3)


def test_the_finer_grid_is_pooled_to_the_coarser():
    student, teacher = jnp.arange(16.0).reshape(1, 4, 4, 1), jnp.zeros((1, 2, 2, 3))
    found, other = trg.match_tokens(student, teacher)
    np.testing.assert_allclose(found.ravel(), [2.5, 4.5, 10.5, 12.5])
    assert other.shape == (1, 4, 3)
    with pytest.raises(ValueError, match="the student has 17 tokens an image, the teacher 4"):
        trg.match_tokens(jnp.zeros((1, 17, 3)), teacher)


def test_leading_tokens_of_a_vit_are_left_out(digits):
    vit = networks.build("vit", 10, patch=4, width=8, depth=1, heads=2)
    task = Task(digits, dict.fromkeys(trg.SIDES, vit), dict.fromkeys(trg.SIDES, Training()))
    taps = dict(student_map="norm/out", teacher_map="norm/out")
    for prefix, tokens in ((1, 4), (0, 5)):
        config = dataclasses.replace(CONFIG, **taps, student_prefix=prefix, teacher_prefix=prefix)
        assert [x.shape for x in trg.token_shapes(task, config)] == [(1, tokens, 8)] * 2


@pytest.mark.slow  # compiles a ViT
def test_a_vit_learns_from_a_convolution(digits):
    nets = {
        "teacher": networks.build("convnet", 10, widths=(8,), strides=(2,)),
        "student": networks.build("vit", 10, patch=4, width=8, depth=1, heads=2),
    }
    task = Task(digits, nets, dict.fromkeys(nets, Training(steps=2, batch_size=16)))
    config = dataclasses.replace(CONFIG, student_map="norm/out", student_prefix=1)
    assert [x.shape for x in trg.token_shapes(task, config)] == [(1, 4, 8), (1, 4, 8)]
    metrics = gradient_of(stage_of(task, trg, config), first_batch(task, 8))[1]
    assert all(metrics[f"loss/{name}"] > 0 for name in ("inner", "local", "global"))


@pytest.mark.slow
def test_a_recipe_measures_the_graphs_of_unseen_images_and_leaves_the_teacher_alone(task, tmp_path):
    teacher = task.variables("teacher")
    before = [np.asarray(x).tobytes() for x in jax.tree.leaves(teacher)]
    run(trg.recipe(task.with_teacher(teacher), CONFIG), workdir=tmp_path)
    assert before == [np.asarray(x).tobytes() for x in jax.tree.leaves(teacher)]
    (row,) = [row for row in read_metrics(tmp_path) if row["kind"] == "validation"]
    assert 0 < row["neighbor_overlap"] < 1
    assert row["inner"] > 0
    assert row["local"] > 0


@pytest.mark.slow  # that they are measured at all is tested above
def test_the_graphs_of_a_validation_are_those_of_batches_of_training(task):
    nets, variables = task.networks, {role: task.variables(role) for role in task.networks}
    split = task.dataset.splits["validation"]
    batch = {
        "image": jnp.asarray(split.arrays()["image"][:10] / 255.0),
        "label": jnp.asarray(split.labels()[:10]),
        "where": jnp.arange(10) < 9,
    }
    evaluate = trg.validation_metrics(nets["student"], nets["teacher"], 6, CONFIG)
    found = jax.jit(evaluate)(variables, batch)
    grids = [
        trg.read(nets[side], variables[side], (batch["image"],), side, CONFIG)[1]
        for side in ("student", "teacher")
    ]
    tokens, total = trg.match_tokens(*grids), 0.0
    for i, rows in enumerate((slice(0, 6), slice(6, 9))):
        there = jnp.ones(rows.stop - rows.start, bool)
        rng = jax.random.fold_in(jax.random.key(0), i)
        padding = [(0, 6 - len(there)), (0, 0), (0, 0)]
        part = [jnp.pad(x[rows], padding) for x in tokens]
        total += graph_of(*part, jnp.pad(there, padding[0]), rng, CONFIG).local.sum()
    np.testing.assert_allclose(found["local"].total, total, rtol=1e-4)
    assert (found["local"].weight, found["inner"].weight) == (36, 9)
    assert {"accuracy", "cross_entropy"} < set(found)


def test_students_that_differ_in_weights_train_together(task):
    weak = dataclasses.replace(CONFIG, inner_weight=0.0, temperature=2.0)
    assert program_of(trg, (task, CONFIG)) == program_of(trg, (task, weak))
    stages = [stage_of(task, trg, config) for config in (CONFIG, weak)]
    assert stages[0].program is stages[1].program
    assert stages[0].validation.evaluate is stages[1].validation.evaluate


def test_a_cached_teacher_is_run_for_its_tokens(task):
    cached = dataclasses.replace(task, cache_teacher=True)
    recipe = trg.recipe(cached.with_teacher(task.variables("teacher")), CONFIG)
    assert recipe.send(None).name == "teacher_logits"
    logits = np.zeros((len(task.dataset.splits["train"]), 10), np.float32)
    stage = recipe.send({"logits": logits})
    stream = stage.data["train"]
    batch = {"train": stream.assemble(stream.table, next(stream.items()))}
    prepared, _ = stage.program.prepare(stage.variables, batch, Context({}, RNG, 0, {}))
    assert np.all(prepared["train"]["teacher_logits"] == 0)
    assert prepared["train"]["teacher_grid"].shape == (16, 4, 4, 8)


BAD = {
    "temperature": (dict(temperature=0.0), "temperature must be positive, got 0.0"),
    "local temperature": (dict(local_temperature=-1.0), "local_temperature must be positive"),
    "end": (dict(temperature_end=0.0), "temperature_end must be positive, got 0.0"),
    "rising": (dict(temperature_end=0.6), "temperature_start must be at least temperature_end"),
    "weight": (dict(inner_weight=-0.1), "inner_weight must not be negative, got -0.1"),
    "no number": (dict(local_weight=float("nan")), "local_weight must not be negative, got nan"),
    "sigma": (dict(sigma=-1.0), "sigma must not be negative, got -1"),
    "neighbours": (dict(num_neighbors=0), "num_neighbors must be >= 1, got 0"),
    "tokens": (dict(tokens_per_image=0), "tokens_per_image must be >= 1, got 0"),
    "width": (dict(embedding_width=0), "embedding_width must be >= 1, got 0"),
    "patch": (dict(patch=-1), "patch must be >= 0, got -1"),
    "prefix": (dict(student_prefix=-1), "student_prefix must be >= 0, got -1"),
    "limit": (dict(max_tokens=1), "max_tokens must be >= 2, got 1"),
    "direction": (dict(direction="both"), "direction must be one of 'forward', 'reverse'"),
    "edges": (dict(neighbors="student"), "neighbors must be one of 'own', 'teacher'"),
    "reduction": (dict(reduction="max"), "reduction must be one of 'mean', 'sum'"),
    "unknown": (dict(alpha=1.0), "trg has no field 'alpha'"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_config_is_refused(case):
    fields, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        methods.configure("trg", **fields)


def test_maps_and_sizes_that_do_not_fit_are_refused_before_anything_is_trained(task):
    def first(**changes):
        return trg.recipe(task, dataclasses.replace(CONFIG, **changes)).send(None)

    with pytest.raises(ValueError, match="matches nothing; nearest"):
        first(student_map="stage3/out")
    with pytest.raises(ValueError, match=r"student_map='\*\*/out' must match one value"):
        first(student_map="**/out")
    with pytest.raises(ValueError, match="patch=3 must divide the feature map, 4 x 4"):
        first(patch=3)
    with pytest.raises(ValueError, match="no leading tokens to leave out, but prefix=1"):
        first(teacher_prefix=1)
    with pytest.raises(ValueError, match=r"more than 0 tokens, got shape \(1, 6\)"):
        first(student_map="features")
    with pytest.raises(ValueError, match="64 tokens, at most max_tokens=63"):
        first(max_tokens=63)
    with pytest.raises(ValueError, match="num_neighbors=64 of 64 tokens"):
        first(num_neighbors=64)
