"""Schedules at steps worked out by hand, and what each field of a `Training` does to a step."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.training.optimizers import Training

PARAMS = {"w": jnp.array([1.0, -2.0]), "b": jnp.array([0.5])}
GRADS = {"w": jnp.array([3.0, 0.0]), "b": jnp.array([4.0])}  # of norm 5


def rates(training, steps, total):
    rate = jax.jit(training.rate)
    return [float(rate(jnp.int32(step), jnp.int32(total))) for step in steps]


def updates(training, count=1, rate=None):
    """The updates of `count` steps with the same gradient, from the same parameters."""
    rate = training.learning_rate if rate is None else rate
    optimizer = training.transformation({"learning_rate": jnp.float32(rate)})
    state, out = optimizer.init(PARAMS), []
    for _ in range(count):
        change, state = optimizer.update(GRADS, state, PARAMS)
        out.append(change)
    return out


def close(found, wanted):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, wanted)


@pytest.mark.parametrize(
    ("options", "at", "expected"),
    [
        ({}, [0, 50, 99], [1.0, 1.0, 1.0]),
        ({"schedule": "cosine"}, [0, 25, 50, 100], [1.0, 0.5 + 0.5**1.5, 0.5, 0.0]),
        # 10 steps of warm-up, the first of them already above zero; then 90 of the cosine.
        (
            {"schedule": "cosine", "warmup": 0.1},
            [0, 4, 10, 55, 100],
            [0.1, 0.5, 1.0, 0.5, 0.0],
        ),
        ({"warmup": 0.1}, [0, 1, 9, 10, 50], [0.1, 0.2, 1.0, 1.0, 1.0]),
        (
            {"schedule": "steps", "boundaries": (0.5, 0.75), "decay": 0.2},
            [0, 49, 50, 74, 75, 99],
            [1.0, 1.0, 0.2, 0.2, 0.04, 0.04],
        ),
    ],
)
def test_the_rate_at_steps_worked_out_by_hand(options, at, expected):
    np.testing.assert_allclose(
        rates(Training(learning_rate=1.0, **options), at, 100), expected, rtol=1e-5, atol=1e-6
    )


def test_the_rate_scales_with_the_peak():
    one = rates(Training(learning_rate=1.0, schedule="cosine"), [0, 30], 100)
    small = rates(Training(learning_rate=1e-2, schedule="cosine"), [0, 30], 100)
    np.testing.assert_allclose(small, [x * 1e-2 for x in one], rtol=1e-5)


def test_sgd_adds_momentum_and_weight_decay_to_the_gradient():
    training = Training(optimizer="sgd", learning_rate=0.1, momentum=0.9, weight_decay=0.01)
    first, second = updates(training, 2)
    decayed = jax.tree.map(lambda g, p: g + 0.01 * p, GRADS, PARAMS)
    close(first, jax.tree.map(lambda g: -0.1 * g, decayed))
    close(second, jax.tree.map(lambda g: -0.1 * (g + 0.9 * g), decayed))


def test_sgd_without_momentum_is_the_gradient():
    training = Training(optimizer="sgd", learning_rate=0.1, momentum=0.0, weight_decay=0.0)
    for change in updates(training, 2):
        close(change, jax.tree.map(lambda g: -0.1 * g, GRADS))


def test_adamw_decays_weights_apart_from_the_gradient():
    training = Training(optimizer="adamw", learning_rate=0.1, weight_decay=0.5)
    (found,) = updates(training)
    # The first step of Adam is the sign of the gradient.
    close(found, jax.tree.map(lambda g, p: -0.1 * (jnp.sign(g) + 0.5 * p), GRADS, PARAMS))


def test_adam_decays_nothing():
    (found,) = updates(Training(optimizer="adam", learning_rate=0.1, weight_decay=0.5))
    close(found, jax.tree.map(lambda g: -0.1 * jnp.sign(g), GRADS))


def test_clip_shortens_a_gradient_that_is_longer():
    training = Training(optimizer="sgd", learning_rate=1.0, momentum=0.0, weight_decay=0.0)
    (clipped,) = updates(dataclasses.replace(training, clip=1.0))
    close(clipped, jax.tree.map(lambda g: -g / 5, GRADS))
    (left,) = updates(dataclasses.replace(training, clip=6.0))
    close(left, jax.tree.map(lambda g: -g, GRADS))


def test_the_rate_is_the_one_of_the_step():
    training = Training(optimizer="sgd", learning_rate=1.0, momentum=0.0, weight_decay=0.0)
    (found,) = updates(training, rate=0.25)
    close(found, jax.tree.map(lambda g: -0.25 * g, GRADS))


BAD = {
    "steps": (dict(steps=0), "steps must be at least 1, got 0"),
    "batch_size": (dict(batch_size=0), "batch_size must be at least 1, got 0"),
    "microbatches": (dict(microbatches=0), "microbatches must be at least 1"),
    "parts": (dict(microbatches=3), "microbatches=3 does not divide batch_size=64"),
    "optimizer": (dict(optimizer="lamb"), r"optimizer must be one of \(.*\), got 'lamb'"),
    "schedule": (
        dict(schedule="exponential"),
        r"schedule must be one of \(.*\), got 'exponential'",
    ),
    "learning_rate": (dict(learning_rate=0.0), "learning_rate must be positive, got 0.0"),
    "not a number": (dict(learning_rate=float("nan")), "learning_rate must be positive, got nan"),
    "weight_decay": (dict(weight_decay=-1.0), "weight_decay must not be negative, got -1.0"),
    "momentum": (dict(momentum=-0.1), "momentum must not be negative"),
    "clip": (dict(clip=-1.0), "clip must not be negative"),
    "not a clip": (dict(clip=float("nan")), "clip must not be negative"),
    "warmup": (dict(warmup=1.0), r"warmup is a fraction in \[0, 1\), got 1.0"),
    "boundaries": (dict(boundaries=(0.5, 1.5)), r"boundaries are fractions in \(0, 1\)"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_training_is_refused(case):
    fields, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        Training(**fields)
