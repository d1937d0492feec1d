"""SinKD: a batch is moved onto a batch, however it is cut, padded or spread over devices."""

import dataclasses
import functools
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from step_toys import close, first_batch, gradient_of, padded, stage_of

from kdjax import losses, methods
from kdjax.methods import kd, sinkd, supervised
from kdjax.training import Compute, divide, read_metrics, run

STUDENT = jax.random.normal(jax.random.key(1), (8, 5)) * 3
TEACHER = jax.random.normal(jax.random.key(2), (8, 5)) * 3
WHERE = jnp.arange(8) < 6
RNG = jax.random.key(0)
STRONG = sinkd.Config(sinkhorn_weight=1.0)


@pytest.fixture
def batch(task):
    return first_batch(task)


def test_the_step_does_not_depend_on_padding_or_micro_batches(task, batch):
    config = dataclasses.replace(STRONG, shuffled=True)
    grads, metrics = gradient_of(stage_of(task, sinkd, config), batch)
    parts = [
        metrics[f"loss/{name}"] for name in ("cross_entropy", "soft_cross_entropy", "sinkhorn")
    ]
    np.testing.assert_allclose(
        metrics["loss"], jnp.dot(jnp.array([0.1, 0.9, 1.0]), jnp.stack(parts))
    )
    cut = gradient_of(stage_of(task, sinkd, config, microbatches=4), padded(batch))
    close(cut[0], grads)
    close(cut[1], metrics)


def test_a_cut_batch_is_refused_where_its_logits_are_not_joined(task):
    (update,) = stage_of(task, sinkd, STRONG).program.updates
    with pytest.raises(ValueError, match="compares the"):
        dataclasses.replace(update, microbatches=2)


def test_with_a_weight_of_0_it_is_kd_and_the_cost_is_measured(task, batch):
    config = sinkd.Config(sinkhorn_weight=0.0, temperature=3.0)
    grads, metrics = gradient_of(stage_of(task, sinkd, config), batch)
    usual = kd.Config(label_weight=0.1, distillation_weight=0.9 / 9, temperature=3.0)
    close(grads, gradient_of(stage_of(task, kd, usual), batch)[0])
    np.testing.assert_allclose(metrics["loss/sinkhorn"], metrics["transport_cost"], rtol=1e-5)
    assert 0 < metrics["transport_cost"] < 2
    assert 0 < metrics["diagonal_mass"] < 1


def test_with_labels_only_it_is_supervised(task, batch):
    config = sinkd.Config(label_weight=1.0, distillation_weight=0.0, sinkhorn_weight=0.0)
    grads, _ = gradient_of(stage_of(task, sinkd, config), batch)
    close(grads, gradient_of(stage_of(task, supervised, supervised.Config()), batch)[0])


def test_the_temperature_is_annealed_to_1(task):
    config = sinkd.Config(temperature=5.0, anneal=True)
    temperature = stage_of(task, sinkd, config).program.schedules["temperature"]
    assert [float(temperature(step, 30)) for step in (0, 29)] == [5.0, 1.0]
    assert temperature(0, 1) == 5.0  # a single step


@functools.partial(jax.jit, static_argnums=3)
def transported(student_logits, teacher_logits, where, config):
    """The gradients of the transport in both logits, its term and its metrics."""

    def cost(*logits):
        term, metrics = sinkd.transport(*logits, where, config, RNG)
        return term.total, (term, metrics)

    return jax.grad(cost, argnums=(0, 1), has_aux=True)(student_logits, teacher_logits)


def test_every_field_reaches_the_transport():
    options = dict(epsilon=0.5, num_iterations=1, p=2, stop_plan_gradient=True)
    config = sinkd.Config(**options, sinkhorn_temperature=1.0, sinkhorn_weight=0.5)
    (found, taught), (term, metrics) = transported(STUDENT, TEACHER, WHERE, config)

    def cost(x):
        return losses.sinkhorn_kd(x, TEACHER, where=WHERE, temperature=1.0, **options).sum()

    expected, gradients = jax.jit(jax.value_and_grad(cost))(STUDENT)
    close(found, gradients)
    np.testing.assert_array_equal(taught, jnp.zeros_like(TEACHER))
    assert (term.weight, term.coefficient) == (6, 0.5)
    np.testing.assert_allclose(term.total, expected, rtol=1e-5)
    np.testing.assert_allclose(metrics["transport_cost"].total, expected, rtol=1e-5)


def test_the_order_of_the_teachers_rows_does_not_count():
    shuffled = dataclasses.replace(STRONG, shuffled=True)
    assert not jnp.array_equal(sinkd.shuffle(TEACHER, WHERE, RNG), TEACHER)
    found, plain = (transported(STUDENT, TEACHER, WHERE, config) for config in (shuffled, STRONG))
    close(found, plain)


@pytest.mark.parametrize("shuffled", [False, True])
def test_rows_that_do_not_count_may_hold_anything(shuffled):
    config = dataclasses.replace(STRONG, shuffled=shuffled)
    hidden = jnp.where(WHERE[:, None], 0.0, jnp.nan)
    found = transported(STUDENT + hidden, TEACHER + hidden, WHERE, config)
    close(found, transported(STUDENT, TEACHER, WHERE, config))
    np.testing.assert_array_equal(found[0][0][~WHERE], jnp.zeros((2, 5)))
    nothing = transported(STUDENT, TEACHER, jnp.zeros(8, bool), config)
    jax.tree.map(np.testing.assert_array_equal, nothing[0], (0 * STUDENT, 0 * TEACHER))
    assert nothing[1][0][:2] == (0, 0)


def test_the_diagonal_mass_is_the_share_of_the_plan_that_keeps_the_pairs():
    q, p = jnp.array([[0.8, 0.2], [0.3, 0.7]]), jnp.array([[0.6, 0.4], [0.1, 0.9]])
    config = sinkd.Config(sinkhorn_temperature=1.0)
    both = jnp.ones(2, bool)

    @jax.jit
    def mass(student, teacher):
        found = sinkd.measure(jnp.log(student), jnp.log(teacher), both, config)
        return [divide(*term[:2]) for term in found.values()]

    np.testing.assert_allclose(mass(q, p), [(0.9788075 + 0.9997163) / 2, 0.8045222 / 2], rtol=1e-5)
    np.testing.assert_allclose(mass(q, p[::-1])[0], (0.0211925 + 0.0002837) / 2, rtol=1e-4)


def test_the_plan_of_a_validation_is_measured_in_batches_of_training(task):
    nets, variables = task.networks, {role: task.variables(role) for role in task.networks}
    images = jnp.asarray(task.dataset.splits["validation"].arrays()["image"][:10] / 255.0)
    labels = jnp.asarray(task.dataset.splits["validation"].labels()[:10])
    batch = {"image": images, "label": labels, "where": jnp.arange(10) < 9}
    evaluate = sinkd.validation_metrics(nets["student"], nets["teacher"], 4, STRONG)
    found = jax.jit(evaluate)(variables, batch)
    student, teacher = (
        nets[role].apply(variables[role], images).output["logits"]
        for role in ("student", "teacher")
    )
    measure = jax.jit(lambda *arrays: sinkd.measure(*arrays, STRONG))
    there = jnp.ones(4, bool)
    parts = [measure(student[at], teacher[at], there) for at in (slice(0, 4), slice(4, 8))]
    parts.append(measure(student[-4:], teacher[-4:], jnp.array([False, False, True, False])))
    for name in ("diagonal_mass", "transport_cost"):
        by_hand = sum(part[name].total for part in parts)
        np.testing.assert_allclose(found[name].total, by_hand, rtol=1e-5)
        assert found[name].weight == 9
    assert {"accuracy", "cross_entropy"} < set(found)


def test_a_recipe_measures_the_plan_on_the_validation_split(task, tmp_path):
    recipe = sinkd.recipe(task.with_teacher(task.variables("teacher")), STRONG)
    run(recipe, workdir=tmp_path)
    rows = [row for row in read_metrics(tmp_path) if row["kind"] == "validation"]
    assert [row["step"] for row in rows] == [20, 30]
    assert all(0 < row["diagonal_mass"] < 1 for row in rows)


def test_a_cached_teacher_stays_for_the_validation(task):
    task = dataclasses.replace(task, cache_teacher=True)
    recipe = sinkd.recipe(task.with_teacher(task.variables("teacher")), STRONG)
    assert isinstance(recipe.send(None), Compute)
    logits = np.zeros((len(task.dataset.splits["train"]), 10), np.float32)
    stage = recipe.send({"logits": logits})
    assert set(stage.variables) == {"student", "teacher"}
    stream = stage.data["train"]
    batch = stream.assemble(stream.table, next(stream.items()))
    assert batch["teacher_logits"].shape == (32, 10)


def test_token_positions_are_those_that_count_each_once():
    where = jax.random.bernoulli(jax.random.key(3), 0.4, (4, 10))
    count = int(where.sum())
    rows, counts = sinkd.token_positions(where, RNG, max_positions=100)
    assert rows.shape == (40,)
    assert int(counts.sum()) == count
    np.testing.assert_array_equal(jnp.sort(rows[counts]), jnp.flatnonzero(where))

    def draw(rng):
        return sinkd.token_positions(where, rng, max_positions=5)

    rows, counts = jax.jit(jax.vmap(draw))(jax.random.split(RNG, 400))
    assert bool(counts.all())
    assert all(len(set(draw)) == 5 for draw in rows.tolist())
    chosen = np.bincount(rows.ravel(), minlength=40)
    np.testing.assert_array_equal(chosen > 0, where.reshape(-1))
    np.testing.assert_allclose(chosen[chosen > 0], 2000 / count, rtol=0.4)


def test_the_transport_of_tokens_is_that_of_the_positions_that_count():
    where = jnp.array([[False, True, True, True], [False, False, True, True]])
    student, teacher = STUDENT.reshape(2, 4, 5), TEACHER.reshape(2, 4, 5)

    def tokens(max_positions):
        rows, counts = sinkd.token_positions(where, RNG, max_positions=max_positions)
        flat = (x.reshape(-1, 5)[rows] for x in (student, teacher))
        return transported(*flat, counts, STRONG)[1][0]

    every = transported(STUDENT, TEACHER, where.reshape(-1), STRONG)[1][0]
    close(tokens(8), every, rtol=1e-5)
    assert every.weight == 5
    assert tokens(3).weight == 3


@pytest.mark.parametrize("loss", ["reverse_kl", "jsd"])
def test_a_divergence_of_kd_teaches_the_student_only(loss):
    def value(x, teacher):
        labels = jnp.zeros(8, jnp.int32)
        return kd.distance(kd.Config.of(loss, temperature=2.0))(x, teacher, labels, WHERE)

    p, q = jax.nn.softmax(TEACHER / 2), jax.nn.softmax(STUDENT / 2)
    m = (p + q) / 2

    def kl(a, b):
        return jnp.sum(a * jnp.log(a / b), axis=-1)

    expected = {"reverse_kl": kl(q, p), "jsd": (kl(p, m) + kl(q, m)) / 2}[loss]
    np.testing.assert_allclose(value(STUDENT, TEACHER), 4 * expected, rtol=1e-4)
    taught = jax.grad(lambda t: value(STUDENT, t).sum())(TEACHER)
    np.testing.assert_array_equal(taught, jnp.zeros_like(TEACHER))


BAD = {
    "temperature": (dict(temperature=0.0), ValueError, "temperature must be positive, got 0.0"),
    "sinkhorn temperature": (dict(sinkhorn_temperature=-1.0), ValueError, "sinkhorn_temperature"),
    "epsilon": (dict(epsilon=0.0), ValueError, "epsilon must be positive"),
    "iterations": (dict(num_iterations=-1), ValueError, "num_iterations must be >= 0, got -1"),
    "broken iterations": (dict(num_iterations=2.5), TypeError, "num_iterations must be an integer"),
    "norm": (dict(p=3), ValueError, "p must be 1 or 2, got 3"),
    "label weight": (dict(label_weight=-0.1), ValueError, "label_weight must not be negative"),
    "distillation weight": (
        dict(distillation_weight=-0.1),
        ValueError,
        "distillation_weight must not be negative",
    ),
    "sinkhorn weight": (
        dict(sinkhorn_weight=-0.1),
        ValueError,
        "sinkhorn_weight must not be negative",
    ),
    "unknown": (dict(iterations=3), ValueError, "sinkd has no field 'iterations'"),
    "no number": (dict(epsilon=float("nan")), ValueError, "epsilon must be positive, got nan"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_config_is_refused(case):
    fields, error, message = BAD[case]
    with pytest.raises(error, match=message):
        methods.configure("sinkd", **fields)


def test_arrays_that_cannot_be_compared_are_refused():
    with pytest.raises(ValueError, match="classes = 5 as in student_logits"):
        sinkd.transport(STUDENT, TEACHER[:, :4], WHERE, STRONG, RNG)
    with pytest.raises(ValueError, match="max_positions must be >= 1, got 0"):
        sinkd.token_positions(WHERE, RNG, max_positions=0)
    with pytest.raises(TypeError, match="where must be boolean"):
        sinkd.token_positions(jnp.ones((2, 3)), RNG, max_positions=4)


SCRIPT = """
import json
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from kdjax import networks
from kdjax.methods import sinkd
from kdjax.training.optimizers import Training
from kdjax.training.stage import Context

jax.config.update("jax_disable_most_optimizations", True)
student = networks.build("mlp", 3, widths=(5,))
config = sinkd.Config(sinkhorn_weight=1.0, shuffled=True)
(update,) = sinkd.program(student, student, Training(), config).updates
batch = {
    "image": np.sin(np.arange(64.0, dtype=np.float32) ** 2).reshape(16, 4),
    "teacher_logits": 3 * np.cos(np.arange(48.0, dtype=np.float32) ** 2).reshape(16, 3),
    "label": np.arange(16) % 3,
    "where": np.arange(16) < 13,
}
variables = jax.jit(student.init)(jax.random.key(0), batch["image"])

@jax.jit
def gradient(variables, batch):
    context = Context({}, jax.random.key(1), jnp.int32(0), {"temperature": jnp.float32(4.0)})

    def loss(variables):
        found = update.objective({"student": variables}, {"train": batch}, context)
        return sum(term.coefficient * term.total / term.weight for term in found.terms.values())

    return jax.grad(loss)(variables)

spread = NamedSharding(Mesh(np.array(jax.devices()), "data"), PartitionSpec("data"))
one, eight = (gradient(variables, x) for x in (batch, jax.device_put(batch, spread)))
apart = jax.tree.map(lambda x, y: np.abs(np.asarray(x) - np.asarray(y)).max(), one, eight)
largest = lambda tree: float(max(np.abs(x).max() for x in jax.tree.leaves(tree)))
print(json.dumps([len(jax.devices()), largest(apart), largest(one)]))
"""


@pytest.mark.slow
def test_one_plan_joins_the_rows_of_eight_devices():
    flags = "--xla_force_host_platform_device_count=8"
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    devices, apart, size = json.loads(done.stdout.splitlines()[-1])
    assert devices == 8
    assert apart < 1e-5 * size
