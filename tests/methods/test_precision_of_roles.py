"""A student in half precision, taught by a teacher that is kept in fewer bits."""

import dataclasses
import importlib.util

import jax
import jax.numpy as jnp
import language_toys
import numpy as np
import pytest

from kdjax.methods import kd, sequence_kd
from kdjax.networks import in_precision
from kdjax.networks.quantization import quantizable
from kdjax.training import run, together
from kdjax.training.optimizers import Training

STUDENT = Training(steps=30, batch_size=32, learning_rate=3e-3, loss_scale=2.0**15)
QWIX = importlib.util.find_spec("qwix") is not None


def narrow(task, precision, weights=None):
    nets = {role: in_precision(net, precision) for role, net in task.networks.items()}
    nets["teacher"] = quantizable(nets["teacher"])
    given = {"teacher": task.variables("teacher")}
    training = {**task.training, "student": STUDENT} if precision == "float16" else task.training
    return dataclasses.replace(
        task, networks=nets, given=given, training=training, teacher_weights=weights or precision
    )


def stages(recipe, log):
    """A recipe whose stages are noted."""
    value = None
    while True:
        try:
            node = recipe.send(value)
        except StopIteration as end:
            return end.value
        log.append(node)
        value = yield node


def dtypes(tree):
    return {str(leaf.dtype) for leaf in jax.tree.leaves(tree)}


def test_a_float16_student_learns_with_a_scaled_loss_and_float32_slots(task):
    log = []

    def noted(recipe):
        outcome = yield from stages(recipe, log)
        return outcome

    task = narrow(task, "float16")
    trained = run(noted(kd.recipe(task, kd.Config.of("kd"))))
    (stage,) = log
    assert dtypes(trained.last) == {"float32"}
    assert dtypes(stage.variables["teacher"]) == {"float16", "float32"}
    scores = task.scores("student", trained.last, None)
    assert scores["accuracy"] > task.scores("student", task.variables("student"), None)["accuracy"]


def test_members_share_one_narrow_copy_of_a_given_teacher(task):
    task = narrow(task, "bfloat16")
    members = [dataclasses.replace(task, seed=seed) for seed in (0, 1)]
    log = []
    recipe = together([kd.recipe(member, kd.Config.of("kd")) for member in members], (0, 1))
    next(stages(recipe, log))
    assert log[0].shared >= {"teacher"}
    kept = task.kept("teacher", task.given["teacher"])
    for a, b in zip(*map(jax.tree.leaves, (log[0].variables["teacher"], kept))):
        assert a is b


@pytest.mark.skipif(not QWIX, reason="pip install 'kdjax[quantization]'")
@pytest.mark.parametrize("kind", ["int8", "float8"])
def test_a_quantised_teacher_teaches_in_the_step(task, kind):
    task, log = narrow(task, "float32", kind), []
    run(stages(kd.recipe(task, kd.Config.of("kd")), log))
    kernel = log[0].variables["teacher"]["params"]["head"]["kernel"]
    assert kernel.values.dtype.itemsize == 1
    exact = dataclasses.replace(task, teacher_weights="float32")
    found, wanted = (t.predict("teacher", task.given["teacher"]) for t in (task, exact))
    assert 0 < np.abs(found - wanted).max() < 0.1 * np.abs(wanted).max()


@pytest.mark.slow
@pytest.mark.parametrize("cached", [False, True])
def test_a_language_teacher_in_bfloat16_has_the_same_bits_stored_or_cast(
    cached, monkeypatch, tmp_path
):
    monkeypatch.setenv("KDJAX_DATA_DIR", str(tmp_path))
    decoders = {
        role: dataclasses.replace(config, dtype="bfloat16")
        for role, config in language_toys.task().decoders.items()
    }
    outcomes = []
    for weights in ("float32", "bfloat16"):
        task = language_toys.given(decoders=decoders, teacher_weights=weights, cache_teacher=cached)
        trained = run(sequence_kd.recipe(task, sequence_kd.Config()))
        assert dtypes(trained.last) == {"float32"}
        outcomes.append((trained.last, task.reference(task.given["teacher"])))
    jax.tree.map(np.testing.assert_array_equal, outcomes[0][0], outcomes[1][0])
    assert outcomes[1][1]["params"]["embedding"]["embedding"].dtype == jnp.bfloat16
