"""What dual-head distillation claims of its heads, features and gradients; schedules, mixup."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from kdjax import losses, networks
from kdjax.methods import dual_head_kd, kd, plackett_luce
from kdjax.networks import from_linen
from kdjax.training import MetricWriter, run
from kdjax.training.gradients import gradient
from kdjax.training.stage import Context
from kdjax.training.state import pick, values_at


@pytest.fixture
def taught(task):
    """The task with a teacher, given as it is initialised, and five steps for the student."""
    training = {**task.training}
    training["student"] = dataclasses.replace(training["student"], steps=5)
    task = dataclasses.replace(task, training=training, validate_every=5)
    return task.with_teacher(task.variables("teacher"))


def stage_of(task, config):
    return dual_head_kd.recipe(task, config).send(None)


def with_student(task, network):
    return dataclasses.replace(task, networks={**task.networks, "student": network})


def change(task, role, **fields):
    changed = dataclasses.replace(task.training[role], **fields)
    return dataclasses.replace(task, training={**task.training, role: changed})


def part(gradients, head):
    return {k: x for k, x in gradients["student"].items() if k.startswith("head/") is head}


def conflicting(task, config):
    """The gradients of both losses, heads alike, the teacher sure that the labels are wrong."""
    stage = stage_of(task, config)
    stream = task.stream("student")
    batch = stream.assemble(stream.table, next(stream.items()))
    against = -8.0 * jax.nn.one_hot(batch["label"], 10)
    batch = {"train": {**batch, "teacher_logits": against}}
    program, (update,) = stage.program, stage.program.updates
    values = values_at(program.schedules, stage.values, 0, 1)
    context = Context({}, jax.random.key(0), jnp.int32(0), values)
    live = {role: stage.variables[role] for role in program.live}
    if "auxiliary" in live:
        live["auxiliary"] = {"params": {"logits": live["student"]["params"]["head"]}}
    params = pick(live, update.trains)
    return gradient(update, params, live, {}, batch, context).gradient


def test_both_heads_and_the_backbone_are_trained_and_the_teacher_is_not(taught):
    stage = stage_of(taught, dual_head_kd.Config())

    def alone():
        return (yield stage)

    outcome = run(alone())
    assert set(outcome.variables) == {"student", "auxiliary"}
    for role, variables in outcome.variables.items():
        before = jax.tree.leaves(stage.variables[role]["params"])
        for old, new in zip(before, jax.tree.leaves(variables["params"]), strict=True):
            assert not np.array_equal(old, new), role


def test_each_loss_reaches_its_own_head_and_both_the_backbone(taught):
    config = dual_head_kd.Config(alignment="shared")
    grads = conflicting(taught, config)
    labels, logits = grads["cross_entropy"], grads["binary_kl_norm"]
    assert float(optax.tree.norm(part(logits, True))) == 0
    assert float(optax.tree.norm(labels["auxiliary"])) == 0
    for nonzero in (part(labels, True), logits["auxiliary"], part(labels, False)):
        assert float(optax.tree.norm(nonzero)) > 0
    assert float(optax.tree.norm(part(logits, False))) > 0


@pytest.mark.parametrize("heads", ["dual", "single"])
def test_shared_alignment_leaves_nothing_in_the_backbone_that_opposes_the_labels(taught, heads):
    config = dual_head_kd.Config(heads=heads, alignment="shared", report_conflict=True)
    grads = conflicting(taught, config)
    merged, metrics = dual_head_kd.combine(config, grads)
    main, before = (part(grads[n], False) for n in ("cross_entropy", "binary_kl_norm"))
    assert float(optax.tree.vdot(main, before)) < 0
    assert -1 <= float(metrics["cosine/backbone"].total) < 0
    after = jax.tree.map(jnp.subtract, part(merged, False), main)
    cosine = losses.gradient_cosine(main, after)
    assert float(cosine) > -1e-5
    # Heads are added up as they are.
    both = [part(grads[n], True) for n in ("cross_entropy", "binary_kl_norm")]
    jax.tree.map(
        lambda found, a, b: np.testing.assert_allclose(found, a + b, rtol=1e-6),
        part(merged, True),
        *both,
    )


@pytest.mark.parametrize("heads", ["dual", "single"])
def test_the_reported_conflict_is_a_cosine(taught, heads):
    metrics = MetricWriter(None)
    config = dual_head_kd.Config(heads=heads, report_conflict=True)
    run(dual_head_kd.recipe(taught, config), metrics=metrics)
    found = [row for row in metrics.rows if row["kind"] == "train"]
    assert found
    for row in found:
        assert -1 <= row["cosine/backbone"] <= 1
        assert -1 <= row["cosine/head"] <= 1
        if heads == "dual":  # the logit loss never reaches the student's own head
            assert row["cosine/head"] == 0


def test_a_student_without_features_is_refused_and_a_tap_helps(taught):
    class Plain(nn.Module):
        @nn.compact
        def __call__(self, x, train: bool = False):
            x = nn.relu(nn.Dense(12, name="body")(x.reshape(len(x), -1)))
            return nn.Dense(10, name="head")(x)

    task = with_student(taught, from_linen(Plain()))
    with pytest.raises(ValueError, match="the student's output has no 'features'; set `features`"):
        stage_of(task, dual_head_kd.Config())
    stage = stage_of(task, dual_head_kd.Config(features="head/in"))
    kernel = stage.variables["auxiliary"]["params"]["logits"]["kernel"]
    assert kernel.shape == (12, 10)
    stage_of(task, dual_head_kd.Config(heads="single"))  # reads no features


@pytest.mark.parametrize(
    ("features", "message"),
    [("hed/in", "matches nothing; nearest of .*head/in"), ("*/in", "must match one value")],
)
def test_features_must_name_one_value(taught, features, message):
    with pytest.raises(ValueError, match=message):
        stage_of(taught, dual_head_kd.Config(features=features))


@pytest.mark.parametrize("pattern", ["^classifier/", ""])
def test_the_own_head_must_be_found(pattern):
    config = dual_head_kd.Config(main_head=pattern, report_conflict=True)
    paths = {"student": {"body/kernel": jnp.ones(2), "head/kernel": jnp.ones(2)}}
    grads = {"cross_entropy": paths, "binary_kl_norm": paths}
    with pytest.raises(ValueError, match="must find some of the student's parameters, not all"):
        dual_head_kd.combine(config, grads)


def test_a_nonlinear_head_refuses_a_batch_of_one(taught):
    config = dual_head_kd.Config(auxiliary="nonlinear", hidden=16)
    with pytest.raises(ValueError, match="cannot train on a batch of 1"):
        run(dual_head_kd.recipe(change(taught, "student", batch_size=1), config))


def test_seeds_share_one_auxiliary_network():
    config = dual_head_kd.Config()
    assert dual_head_kd.auxiliary_head(10, config) is dual_head_kd.auxiliary_head(10, config)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(temperature=0.0), "temperature must be positive, got 0.0"),
        (dict(label_weight=-1.0), "label_weight must not be negative"),
        (dict(distillation_weight=float("nan")), "distillation_weight must not be negative"),
        (dict(loss="kd"), r"loss must be one of \('binary_kl_norm', 'binary_kl'\), got 'kd'"),
        (dict(heads="two"), "heads must be one of"),
        (dict(auxiliary="mlp"), "auxiliary must be one of"),
        (dict(auxiliary="nonlinear", hidden=0), "hidden must be at least 1"),
        (dict(dropout=1.0), r"dropout must be in \[0, 1\)"),
    ],
)
def test_a_bad_dual_head_config_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        dual_head_kd.Config(**fields)


def test_the_weight_of_dkd_rises_over_the_warmup(taught):
    config = kd.Config.of("dkd", distillation_weight=2.0, warmup=0.1)
    stage = kd.recipe(taught, config).send(None)

    def weight(stage, step):
        values = values_at(stage.program.schedules, stage.values, jnp.int32(step), jnp.int32(100))
        return float(values["distillation_weight"])

    found = [weight(stage, step) for step in (0, 4, 9, 10, 99)]
    np.testing.assert_allclose(found, [0.2, 1.0, 2.0, 2.0, 2.0], rtol=1e-6)
    assert weight(kd.recipe(taught, kd.Config()).send(None), 0) == 1.0


def test_plackett_luce_refuses_mixup_and_kd_takes_it(taught):
    mixed = change(taught, "student", augment=("mixup",))
    with pytest.raises(ValueError, match="it cannot train on mixup"):
        run(plackett_luce.recipe(mixed, plackett_luce.Config()))
    run(kd.recipe(mixed, kd.Config()))


def test_a_student_of_other_classes_is_refused(task):
    with pytest.raises(ValueError, match="the student has 9 classes, the data set 'digits' has 10"):
        with_student(task, networks.build("mlp", 9, widths=(12,)))
