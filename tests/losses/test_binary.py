"""Binary losses: worked numbers, gradients, limits, saturation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import losses

KERNELS = [losses.binary_kl, losses.binary_kl_norm]


@pytest.mark.parametrize(
    ("kernel", "student", "teacher", "temperature", "expected"),
    [
        (losses.binary_kl, [2.0, 0.0], [0.0, 0.0], 1.0, 0.433781),
        (losses.binary_kl_norm, [2.0, 0.0], [0.0, 0.0], 1.0, 0.433781),
        (losses.binary_kl, [2.0, -1.0], [1.0, 3.0], 2.0, 1.743071),
        (losses.binary_kl_norm, [2.0, -1.0], [1.0, 3.0], 2.0, 1.858843),
        (losses.binary_kl_norm, [40.0], [0.0], 1.0, 19.306853),
        (losses.binary_kl, [20.0], [-20.0], 1.0, 20.0),
        (losses.binary_kl, [-1e4], [1e4], 1.0, 1e4),
        (losses.binary_kl_norm, [-1e4], [1e4], 1.0, 1e4 - np.log(2)),
    ],
)
def test_worked_numbers(kernel, student, teacher, temperature, expected):
    value = kernel(jnp.array(student), jnp.array(teacher), temperature=temperature)
    np.testing.assert_allclose(value, expected, rtol=1e-6, atol=1e-6)


def batch():
    rng = np.random.default_rng(0)
    return tuple(jnp.asarray(rng.normal(0, 3, (6, 5))) for _ in range(2))


def gradient(kernel, student, teacher, temperature):
    return jax.grad(lambda s: kernel(s, teacher, temperature=temperature).sum())(student)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_gradients_are_the_printed_ones(temperature):
    student, teacher = batch()
    gap = jax.nn.sigmoid(student / temperature) - jax.nn.sigmoid(teacher / temperature)
    of_kl = gradient(losses.binary_kl, student, teacher, temperature)
    np.testing.assert_allclose(of_kl, temperature * gap, rtol=1e-5, atol=1e-6)
    bounded = temperature / 2 * jnp.tanh((student - teacher) / (2 * temperature))
    of_norm = gradient(losses.binary_kl_norm, student, teacher, temperature)
    np.testing.assert_allclose(of_norm, bounded, rtol=1e-5, atol=1e-6)
    assert np.all(np.abs(of_norm) <= temperature / 2)


@pytest.mark.parametrize("kernel", KERNELS)
def test_infinite_temperature_is_an_eighth_of_the_squared_gap(kernel):
    with jax.enable_x64(True):
        student, teacher = batch()
        limit = jnp.sum((student - teacher) ** 2, -1) / 8
        np.testing.assert_allclose(kernel(student, teacher, temperature=1e4), limit, rtol=1e-3)


def test_norm_is_exact_for_small_gaps_in_float32():
    gap = jnp.array([1e-4])
    value = losses.binary_kl_norm(gap, jnp.zeros(1), temperature=1.0)
    np.testing.assert_allclose(value, 1e-8 / 8, rtol=1e-5)


def test_norm_knows_only_the_gap_and_kl_the_offset_too():
    student, teacher = batch()
    offset = jnp.arange(5.0)
    np.testing.assert_allclose(
        losses.binary_kl_norm(student + offset, teacher + offset),
        losses.binary_kl_norm(student, teacher),
        rtol=1e-4,
    )
    moved = losses.binary_kl(student + 1.0, teacher)
    assert np.all(np.abs(moved - losses.binary_kl(student, teacher)) > 1e-3)


@pytest.mark.parametrize("kernel", KERNELS)
def test_one_sided_infinity_is_infinite(kernel):
    assert kernel(jnp.array([-jnp.inf]), jnp.zeros(1)) == jnp.inf
