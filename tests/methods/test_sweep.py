"""Configs that differ in traced fields train together, and compute what constants would."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kdjax.methods import dual_head_kd, kd, plackett_luce, supervised
from kdjax.methods.sweep import program_of, sweep
from kdjax.training import prefixed, run, together, traced
from kdjax.training.optimizers import OPTIMIZERS, Training
from kdjax.training.stage import Context
from kdjax.training.state import values_at

SLOW = pytest.mark.slow
CONFIGS = {
    "supervised": (supervised, supervised.Config(label_smoothing=0.3)),
    **{
        loss: (kd, kd.Config.of(loss, temperature=1.7, beta=0.6, gamma=1.3, alpha=0.4))
        for loss in kd.DEFAULTS
    },
    "plackett_luce": (plackett_luce, plackett_luce.Config(temperature=3.0)),
    "dual": (dual_head_kd, dual_head_kd.Config(temperature=3.0, distillation_weight=0.4)),
}


def with_training(task, **changes):
    training = dataclasses.replace(task.training["student"], **changes)
    return dataclasses.replace(task, training={**task.training, "student": training})


def terms(stage, program, values, batch):
    """The terms of a stage's objective under the values of a step."""
    context = Context({}, jax.random.key(0), jnp.int32(3), values)
    if program.prepare is not None:
        batch, _ = program.prepare(stage.variables, batch, context)
    return program.updates[0].objective(stage.variables, batch, context).terms


@pytest.mark.parametrize(
    "name",
    [
        name if name in ("kd", "dkd", "plackett_luce", "dual") else pytest.param(name, marks=SLOW)
        for name in CONFIGS
    ],
)
def test_a_traced_field_computes_what_a_constant_does(task, name, monkeypatch):
    module, config = CONFIGS[name]
    taught = task.with_teacher(task.variables("teacher"))
    stage = module.recipe(taught, config).send(None)
    monkeypatch.setattr(traced, "static", lambda config: config)
    monkeypatch.setattr(traced, "values", lambda *configs: {})
    constant = module.recipe(taught, config).send(None)
    assert stage.program.values
    assert not constant.program.values
    stream = stage.data["train"]
    batch = {"train": stream.assemble(stream.table, next(stream.items()))}
    values = values_at(stage.program.schedules, stage.values, 3, 30)
    jax.eval_shape(lambda v: terms(stage, stage.program, v, batch), values)
    now = values_at(constant.program.schedules, {}, 3, 30)
    np.testing.assert_allclose(now["learning_rate"], values["learning_rate"], rtol=1e-6)
    found = terms(stage, stage.program, values, batch)
    expected = terms(constant, constant.program, now, batch)
    for term in expected:
        np.testing.assert_allclose(found[term], expected[term], rtol=2e-6, err_msg=term)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_traced_weight_decay_and_rate_move_as_constants_do(name):
    training = Training(optimizer=name, learning_rate=0.3, weight_decay=0.2, schedule="cosine")
    fixed, values = traced.static(training), traced.values(training)
    params, grads = {"w": jnp.array([1.0, -2.0])}, {"w": jnp.array([0.5, 0.1])}

    def move(training, values):
        now = values_at(training.schedules, values, 5, 30)
        optimizer = training.transformation(now)
        return optax.apply_updates(
            params, optimizer.update(grads, optimizer.init(params), params)[0]
        )

    np.testing.assert_allclose(move(fixed, values)["w"], move(training, {})["w"], rtol=1e-6)
    halved = move(fixed, {**values, "weight_decay": 0.1})["w"]
    assert np.array_equal(halved, move(fixed, values)["w"]) == (name == "adam")


@pytest.mark.slow
def test_a_sweep_computes_what_its_members_would_alone(task):
    seeds = (0, 1)

    def members(seed):
        own = dataclasses.replace(task, seed=seed).with_teacher(task.variables("teacher"))
        return {
            "cold": (own, kd.Config(temperature=1.0)),
            "slow": (with_training(own, learning_rate=1e-3), kd.Config(temperature=1.0)),
            "hot": (own, kd.Config(temperature=8.0, label_weight=0.3)),
        }

    found = run(together([sweep(kd, members(seed)) for seed in seeds], seeds))
    for seed, results in zip(seeds, found, strict=True):
        for name, member in members(seed).items():
            alone = run(prefixed(kd.recipe(*member), name), seed=seed)
            assert results[name].selected_step == alone.selected_step
            for part in ("last", "selected"):
                jax.tree.map(
                    lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5),
                    getattr(results[name], part),
                    getattr(alone, part),
                )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: (t, kd.Config(loss="dkd")), r"loss \('kd' of 'a', 'dkd' of 'b'\)"),
        (lambda t: (with_training(t, steps=31), kd.Config()), r"training.student.steps \(30 of"),
        (lambda t: (t, plackett_luce.Config()), r"class \(kdjax.methods.kd.Config of 'a'"),
        (lambda t: (dataclasses.replace(t, seed=5), kd.Config()), "seed"),
    ],
)
def test_members_that_differ_in_another_field_are_refused_by_its_name(task, change, message):
    with pytest.raises(ValueError, match=f"may differ in traced fields only.*{message}"):
        next(sweep(kd, {"a": (task, kd.Config()), "b": change(task)}))


def test_a_traced_field_cannot_be_read_where_it_has_no_value():
    config = traced.static(kd.Config())
    with pytest.raises(TypeError, match="unsupported operand"):
        config.temperature * 2.0
    with pytest.raises(TypeError, match="a traced field has no value here"):
        bool(config.temperature)
    with pytest.raises(ValueError, match="'temperature' of Config is traced, but the values are"):
        traced.bind(config, {"label_weight": 1.0})
    with pytest.raises(ValueError, match="two configs of a program have a traced field"):
        traced.values(kd.Config(), plackett_luce.Config())
    with pytest.raises(ValueError, match="must hold at least one task and config"):
        next(sweep(kd, {}))


def test_a_config_is_checked_before_it_is_traced(task):
    with pytest.raises(ValueError, match="temperature must be positive"):
        kd.Config(temperature=-1.0)
    keys = {program_of(kd, (task, kd.Config(temperature=t))) for t in (1.0, 2.0)}
    assert len(keys) == 1
