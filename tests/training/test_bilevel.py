"""A virtual step, and the gradient through it: against finite differences, and in its limits."""

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from kdjax.training.bilevel import virtual_step

X = np.random.default_rng(0).normal(size=(6, 2))
HELD_OUT = np.random.default_rng(1).normal(size=(4, 2))
SOFT, HARD = np.random.default_rng(2).normal(size=(2, 6))
TARGET = np.random.default_rng(3).normal(size=4)


def toy(soft=SOFT, hard=HARD, rate=0.3, **options):
    """`(w [6], theta [2]) -> outer loss`: two losses an example, mixed by sigmoid(w)."""

    def inner(theta, w):
        alpha, answer = jax.nn.sigmoid(w), jnp.tanh(X @ theta)
        return jnp.mean(alpha * (answer - soft) ** 2 + (1 - alpha) * (answer - hard) ** 2)

    def outer(w, theta):
        step = virtual_step(lambda p: inner(p, w), theta, rate, **options)
        return jnp.mean((jnp.tanh(HELD_OUT @ step.parameters) - TARGET) ** 2)

    return outer


START = np.array([0.3, -0.4])
WEIGHTS = np.linspace(-1, 1, 6)


@pytest.mark.parametrize("options", [{}, {"max_norm": 0.05}, {"max_norm": 100.0}])
def test_the_gradient_through_the_step_is_that_of_finite_differences(options):
    with jax.enable_x64(True):
        outer = jax.jit(toy(**options))
        found = jax.grad(outer)(WEIGHTS, START)
        sides = [[outer(WEIGHTS + h * e, START) for h in (1e-5, -1e-5)] for e in np.eye(6)]
        measured = np.array([(a - b) / 2e-5 for a, b in sides])
    assert np.abs(measured).min() > 1e-6
    np.testing.assert_allclose(found, measured, rtol=1e-5)


def test_it_is_the_mixed_second_derivative():
    """-lr d/dw < dL/dtheta', dinner/dtheta >, the first factor held fixed."""
    soft, hard = jnp.asarray(SOFT), jnp.asarray(HARD)

    def inner(theta, w):
        alpha, answer = jax.nn.sigmoid(w), jnp.tanh(X @ theta)
        return jnp.mean(alpha * (answer - soft) ** 2 + (1 - alpha) * (answer - hard) ** 2)

    step = virtual_step(lambda p: inner(p, WEIGHTS), jnp.asarray(START), 0.3).parameters
    of_outer = jax.grad(lambda p: jnp.mean((jnp.tanh(HELD_OUT @ p) - TARGET) ** 2))(step)
    mixed = jax.grad(lambda w: -0.3 * of_outer @ jax.grad(inner)(jnp.asarray(START), w))(WEIGHTS)
    np.testing.assert_allclose(jax.grad(toy())(WEIGHTS, jnp.asarray(START)), mixed, rtol=1e-4)


def test_a_rate_of_0_or_two_losses_of_one_gradient_teach_nothing():
    assert np.any(jax.grad(toy())(WEIGHTS, START))
    assert not np.any(jax.grad(toy(rate=0.0))(WEIGHTS, START))
    np.testing.assert_allclose(jax.grad(toy(hard=SOFT))(WEIGHTS, START), 0, atol=1e-9)


def test_a_long_gradient_is_shortened_and_its_length_reported():
    theta = {"a": jnp.array([3.0, 0.0]), "b": jnp.array(4.0)}

    def loss(p):
        return (jnp.vdot(p["a"], p["a"]) + p["b"] ** 2) / 2

    free = virtual_step(loss, theta, 0.5)
    clipped = virtual_step(loss, theta, 0.5, max_norm=1.0)
    assert float(free.gradient_norm) == float(clipped.gradient_norm) == 5.0
    np.testing.assert_allclose(free.parameters["a"], [1.5, 0.0])
    np.testing.assert_allclose(clipped.parameters["a"], [2.7, 0.0], rtol=1e-6)
    np.testing.assert_allclose(clipped.parameters["b"], 3.6, rtol=1e-6)


def test_a_gradient_of_0_has_a_finite_derivative():
    def outer(w):
        step = virtual_step(lambda p: w * jnp.sum(p**2), jnp.zeros(2), 0.5, max_norm=1.0)
        return jnp.sum((step.parameters - 1) ** 2)

    assert float(jax.grad(outer)(1.0)) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(learning_rate=-0.1), "learning_rate must be finite and >= 0, got -0.1"),
        (dict(learning_rate=float("nan")), "learning_rate must be finite"),
        (dict(learning_rate=0.1, max_norm=0.0), "max_norm must be positive, got 0.0"),
    ],
)
def test_a_bad_step_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        virtual_step(jnp.sum, jnp.ones(2), **arguments)
