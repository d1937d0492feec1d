"""Networks of several inputs: each role reads its own fields, from training to the test split."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import data, methods, networks
from kdjax.methods import kd
from kdjax.methods.task import Task, inputs
from kdjax.training import run
from kdjax.training.optimizers import Training
from kdjax.training.stage import Context

READS = {"teacher": ("left", "right", "present"), "student": "left"}


@pytest.fixture(scope="module")
def halves():
    """8 x 8 digits cut in two: two modalities, the right one missing every fifth time."""
    digits, splits = data.load("digits"), {}
    for split, records in digits.splits.items():
        found = records.arrays()
        images = found["image"].astype(np.float32) / 255
        present = np.stack([np.ones(len(images)), np.arange(len(images)) % 5 > 0], 1).astype(bool)
        fields = {"left": images[:, :, :4], "right": images[:, :, 4:], "present": present}
        splits[split] = data.Split.of({**fields, "label": found["label"]}, f"halves/{split}")
    return data.Dataset("halves", splits, digits.class_names)


def make(halves, **changes):
    tower = {"name": "mlp", "widths": (16,)}
    nets = {
        "teacher": networks.build("fusion", 10, encoders=(tower, tower), hidden=16),
        "student": networks.build("mlp", 10, widths=(8,)),
    }
    training = {role: Training(steps=12, batch_size=32, learning_rate=3e-3) for role in nets}
    options = dict(training=training, input=READS, validate_every=6)
    return Task(halves, nets, **{**options, **changes})


SLOW = [
    pytest.param(name, marks=pytest.mark.slow)
    for name in ("plackett_luce", "dual_head_kd", "sinkd")
]


@pytest.mark.parametrize("name", ["kd", *SLOW])
def test_every_method_distils_from_a_teacher_that_sees_more(halves, name):
    task = make(halves)
    config = methods.configure(name)
    taught = task.variables("teacher")
    trained = run(methods.get(name).recipe(task.with_teacher(taught), config))
    scores = task.scores("student", trained.last, task.reference(taught))
    assert np.isfinite(list(scores.values())).all()
    # The student's answer is a function of the left half alone.
    left = inputs(halves.splits["test"].arrays(), "left")
    out = task.networks["student"].apply(trained.last, *left).output["logits"]
    np.testing.assert_allclose(task.predict("student", trained.last), out, atol=1e-4)


def test_the_teacher_is_asked_on_its_own_fields(halves):
    task = make(halves)
    taught, batch = task.variables("teacher"), halves.splits["train"].stack(np.arange(8))
    prepare = kd.teach(task.networks["teacher"], task.reads("teacher"))
    found, _ = prepare({"teacher": taught}, {"train": batch}, Context({}, None, jnp.int32(0), {}))
    fields = inputs(batch, READS["teacher"])
    expected = task.networks["teacher"].apply(taught, *fields).output["logits"]
    np.testing.assert_array_equal(found["train"]["teacher_logits"], expected)
    cached = dataclasses.replace(task, cache_teacher=True).predict("teacher", taught, "train")
    np.testing.assert_allclose(cached[:8], expected, atol=1e-4)


def test_what_is_absent_has_no_influence(halves):
    task = make(halves)
    taught = task.variables("teacher")
    batch = halves.splits["test"].stack(np.arange(10))
    changed = {
        **batch,
        "right": np.where(batch["present"][:, 1, None, None, None], batch["right"], 7),
    }
    answers = [
        task.networks["teacher"].apply(taught, *inputs(b, READS["teacher"])).output["logits"]
        for b in (batch, changed)
    ]
    assert (batch["right"] != changed["right"]).any()
    np.testing.assert_array_equal(*answers)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input": "image"}, "'halves', teacher: a network reads the field 'image', but there are"),
        ({"input": {"teacher": READS["teacher"]}}, "input does not say what the student reads"),
        ({"input": ("left", "right", "depth")}, "a network reads the field 'depth'"),
    ],
)
def test_fields_that_are_not_there_are_refused(halves, changes, message):
    with pytest.raises(ValueError, match=message):
        make(halves, **changes)


def test_mixup_of_one_modality_is_refused(halves):
    mixed = Training(steps=1, batch_size=8, augment=data.augmentations(["mixup"]))
    plain = Training(steps=1, batch_size=8)
    with pytest.raises(ValueError, match="mixup mixes images alone, but the student reads left"):
        make(halves, training={"teacher": plain, "student": mixed})


def test_a_fusion_refuses_another_number_of_inputs_or_a_mask_of_another_shape():
    fusion = networks.build("fusion", 3, encoders=({"name": "mlp", "widths": (4,)},) * 2)
    x = jnp.ones((2, 3))
    variables = fusion.init(jax.random.key(0), x, x)
    with pytest.raises(ValueError, match="2 encoders need 2 inputs"):
        fusion.apply(variables, x)
    with pytest.raises(ValueError, match=r"present must be \[batch, modalities\] = \[2, 2\]"):
        fusion.apply(variables, x, x, jnp.ones((2, 3), bool))
