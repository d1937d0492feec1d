"""Networks beyond teacher and student: a config names them, its method needs them."""

import dataclasses

import jax
import ml_collections
import numpy as np
import pytest

from experiments import configuration, tasks
from kdjax import data, networks
from kdjax.training import save_variables
from kdjax.training.optimizers import Training

WHERE = "config.method"
KD = ml_collections.ConfigDict(dict(name="kd", temperature=1.0))


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


@pytest.fixture
def several():
    """A config of three networks, for a method that needs them."""
    config = configuration.defaults()
    config.data.name = "digits"
    config.teacher.network = dict(name="mlp", widths=(32,))
    config.student.network = dict(name="mlp", widths=(12,))
    network = dict(name="mlp", widths=(7,))
    config.cross_modal_teacher = configuration.role_fields(network=network)
    layers = dict(teacher_layers=("dense0/out",), cross_modal_layers=("dense0/out",))
    config.method = dict(name="mst_distill", **layers)
    return config


def check(config, digits):
    """What a command does before it begins."""
    task, (module, chosen) = tasks.task(config, digits), tasks.method(config, config.method, WHERE)
    tasks.check_roles(task, {WHERE: (module, chosen)})
    tasks.check(module, chosen, task, WHERE)


def test_a_further_role_is_a_network_of_the_task_with_its_own_input(several, digits):
    several.cross_modal_teacher.precision = "bfloat16"
    several.sharding.cross_modal_teacher = "fsdp"
    task = tasks.task(several, digits)
    assert configuration.roles(several) == ("teacher", "student", "cross_modal_teacher")
    plain = networks.build("mlp", 10, widths=(7,))
    assert task.networks["cross_modal_teacher"] is networks.in_precision(plain, "bfloat16")
    assert task.reads("cross_modal_teacher") == ("image",)
    assert set(task.training) == {"teacher", "student"}
    other = task.network_with("cross_modal_teacher", {"widths": (9,)})
    assert other is networks.in_precision(networks.build("mlp", 10, widths=(9,)), "bfloat16")
    layout = configuration.settings(several).layout
    configuration.check_layout(layout, task)
    assert layout.rules["cross_modal_teacher"] == "fsdp"
    check(several, digits)


def test_a_further_role_may_have_a_training_and_weights_of_its_own(several, digits, tmp_path):
    training = dict(dataclasses.asdict(Training()), steps=3)
    several.cross_modal_teacher.training = training
    assert tasks.task(several, digits).training["cross_modal_teacher"] == Training(steps=3)
    weights = tasks.task(several, digits).variables("cross_modal_teacher")
    weights = jax.tree.map(lambda x: x + 1, weights)
    save_variables(tmp_path / "weights", weights)
    several.cross_modal_teacher.checkpoint = str(tmp_path / "weights")
    given = tasks.task(several, digits).given
    assert set(given) == {"cross_modal_teacher"}
    jax.tree.map(np.testing.assert_array_equal, given["cross_modal_teacher"], weights)


ROLES = {
    "missing": (
        lambda c: c.__delitem__("cross_modal_teacher"),
        r"config\.method: mst_distill needs a network of the role 'cross_modal_teacher': give "
        r"config\.cross_modal_teacher",
    ),
    "no method needs it": (
        lambda c: c.__setitem__("method", KD),
        r"config\.cross_modal_teacher: no method needs this role",
    ),
    "misspelt": (
        lambda c: c.update(cross_modal_techer=configuration.role_fields()),
        r"config\.cross_modal_techer: no method needs this role; did you mean 'cross_modal_teach",
    ),
    "not whole": (
        lambda c: c.cross_modal_teacher.__delitem__("precision"),
        r"config\.cross_modal_teacher has no 'precision'; `configuration\.role_fields` makes",
    ),
    "no role": (
        lambda c: c.update(cross_modal_techer=dict(input=("image",))),
        r"config has no field 'cross_modal_techer'; did you mean 'cross_modal_teacher'",
    ),
    "field": (
        lambda c: c.cross_modal_teacher.update(netwrk=1),
        r"config\.cross_modal_teacher has no field 'netwrk'; did you mean 'network'",
    ),
    "field of the data": (
        lambda c: c.cross_modal_teacher.update(input=("audio",)),
        "'digits', cross_modal_teacher: a network reads the field 'audio'",
    ),
    "cached": (
        lambda c: c.cross_modal_teacher.update(cached=True),
        r"config\.cross_modal_teacher has no field 'cached'",
    ),
    "quantised": (
        lambda c: c.cross_modal_teacher.update(quantize="int8"),
        r"config\.cross_modal_teacher\.quantize='int8': the cross_modal_teacher is trained",
    ),
    "a student's checkpoint": (
        lambda c: c.student.update(checkpoint="weights"),
        r"config\.student has no field 'checkpoint'",
    ),
    "training that the method does not use": (
        lambda c: c.cross_modal_teacher.update(training=dataclasses.asdict(Training())),
        r"config\.method: cross_modal_teacher\.training: MST-Distill trains both teachers itself",
    ),
    "cached teacher": (
        lambda c: c.teacher.update(cached=True),
        r"config\.method: teacher\.cached: MST-Distill trains the teacher",
    ),
}


@pytest.mark.parametrize("case", ROLES)
def test_roles_that_do_not_fit_are_refused(case, several, digits):
    change, message = ROLES[case]
    several.unlock()
    change(several)
    with pytest.raises(ValueError, match=message):
        check(several, digits)
