"""CTKD's temperatures of single examples: they start where the global one does, and climb."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from kdjax import losses
from kdjax.networks import InstanceTemperature

STUDENT, TEACHER = (
    np.random.default_rng(seed).normal(size=(6, 5)).astype(np.float32) for seed in (0, 1)
)
HEAD = InstanceTemperature(hidden=8)


def loss(variables, student, scale=-1.0):
    theta = losses.gradient_reversal(HEAD.apply(variables, student, TEACHER), scale=scale)
    temperature = losses.learned_temperature(theta)
    each = jax.vmap(lambda s, t, hot: losses.kd(s, t, temperature=hot))
    return jnp.mean(each(student, TEACHER, temperature))


def test_every_example_starts_with_the_authors_temperature():
    theta = HEAD.apply(HEAD.init(jax.random.key(0), STUDENT, TEACHER), STUDENT, TEACHER)
    np.testing.assert_array_equal(theta, np.ones(6))


def test_it_learns_temperatures_that_make_the_loss_larger_and_that_differ_by_example():
    variables = HEAD.init(jax.random.key(0), STUDENT, TEACHER)
    before = float(loss(variables, STUDENT))
    optimizer = optax.adam(1e-2)
    state = optimizer.init(variables)

    @jax.jit
    def step(variables, state):
        changes, state = optimizer.update(jax.grad(loss)(variables, STUDENT), state)
        return optax.apply_updates(variables, changes), state

    for _ in range(50):
        variables, state = step(variables, state)
    assert float(loss(variables, STUDENT)) > before
    assert np.std(HEAD.apply(variables, STUDENT, TEACHER)) > 0.01


def test_the_students_gradient_is_that_of_the_temperature_as_it_is():
    variables = HEAD.init(jax.random.key(0), STUDENT, TEACHER)
    variables = jax.tree.map(lambda x: x + 0.1, variables)
    temperature = losses.learned_temperature(HEAD.apply(variables, STUDENT, TEACHER))

    def fixed(student):
        each = jax.vmap(lambda s, t, hot: losses.kd(s, t, temperature=hot))
        return jnp.mean(each(student, TEACHER, temperature))

    actual = jax.grad(loss, argnums=1)(variables, STUDENT)
    np.testing.assert_allclose(actual, jax.grad(fixed)(STUDENT), rtol=1e-5, atol=1e-7)
