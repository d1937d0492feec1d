"""Fake quantisation: worked numbers, formats, gradients, invariances."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from kdjax.losses import quantization

SETTINGS = settings(deadline=None, database=None, derandomize=True, max_examples=20)
weights = arrays(np.float32, (3, 4), elements=st.floats(-1e4, 1e4, width=32))
INT3 = jax.jit(lambda w: quantization.quantize_int(w, bits=3))


@pytest.mark.parametrize(
    ("format", "value", "expected"),
    [
        ("e4m3", 447.0, 448.0),
        ("e4m3", 2.0**-10, 0.0),
        ("e4m3", 1.0625, 1.0),
        ("e4m3", 1.1875, 1.25),
        ("e4m3", 1e9, 448.0),
        ("e4m3", -np.inf, -448.0),
        ("e5m2", 1.1875, 1.25),
        ("e5m2", 1e6, 57344.0),
        ("e5m2", 2.0**-17, 0.0),
        ("e5m2", 3 * 2.0**-17, 2.0**-15),
        ("e2m1", 2.5, 2.0),
        ("e2m1", 5.0, 4.0),
        ("e2m1", 3.5, 4.0),
        ("e2m1", 0.25, 0.0),
        ("e2m1", -0.75, -1.0),
    ],
)
def test_worked_roundings(format, value, expected):
    assert quantization.round_to_float(jnp.array(value), format=format) == expected


def test_nan_stays_nan():
    assert np.isnan(quantization.round_to_float(jnp.array(jnp.nan), format="e4m3"))


@pytest.mark.parametrize("format", ["e4m3", "e5m2"])
def test_every_number_of_the_format_stays_and_midpoints_go_to_even(format):
    dtype = {"e4m3": ml_dtypes.float8_e4m3fn, "e5m2": ml_dtypes.float8_e5m2}[format]
    grid = np.arange(128, dtype=np.uint8).view(dtype).astype(np.float32)
    grid = grid[np.isfinite(grid)]
    np.testing.assert_array_equal(quantization.round_to_float(grid, format=format), grid)
    middle = (grid[1:] + grid[:-1]) / 2
    even = np.where(np.arange(len(middle)) % 2, grid[1:], grid[:-1])
    np.testing.assert_array_equal(quantization.round_to_float(middle, format=format), even)


def test_fp4_has_its_fifteen_numbers():
    values = jnp.linspace(-7.0, 7.0, 1000)
    grid = np.unique(quantization.round_to_float(values, format="e2m1") + 0.0)
    positive = [0.5, 1, 1.5, 2, 3, 4, 6]
    np.testing.assert_array_equal(grid, [*(-x for x in reversed(positive)), 0, *positive])


def test_worked_integers():
    np.testing.assert_array_equal(
        quantization.quantize_int(jnp.array([7.0, -3.4, 0.5]), bits=4), [7.0, -3.0, 0.0]
    )


def test_two_bits_are_three_levels():
    values = jnp.asarray(np.random.default_rng(0).normal(size=200), jnp.float32)
    largest = float(jnp.max(jnp.abs(values)))
    levels = np.unique(quantization.quantize_int(values, bits=2) + 0.0)
    np.testing.assert_array_equal(levels, np.float32([-largest, 0, largest]))


@given(weights)
@SETTINGS
def test_integers_are_idempotent_within_half_a_step_and_odd(values):
    quantized = np.asarray(INT3(values))
    step = np.max(np.abs(values)) / 3
    assert np.all(np.abs(quantized - values) <= step * 0.5001)
    np.testing.assert_allclose(INT3(quantized), quantized, rtol=1e-6, atol=1e-30)
    np.testing.assert_array_equal(INT3(-values), -quantized)


@given(weights, st.integers(-3, 3))
@SETTINGS
def test_integers_scale_with_the_values_but_do_not_shift(values, exponent):
    # A power of two, so that no rounding moves a tie.
    scaled = INT3(values * np.float32(2.0**exponent))
    np.testing.assert_allclose(scaled, INT3(values) * 2.0**exponent, rtol=1e-6, atol=1e-30)


def test_a_shift_moves_symmetric_levels_and_not_asymmetric_ones():
    values = jnp.array([0.0, 1.0, 2.4, 3.0])
    asymmetric = quantization.quantize_int_asymmetric(values, bits=2)
    shifted = quantization.quantize_int_asymmetric(values + 4, bits=2)
    np.testing.assert_array_equal(shifted, asymmetric + 4)
    symmetric = quantization.quantize_int(values, bits=2)
    assert np.any(quantization.quantize_int(values + 4, bits=2) != symmetric + 4)


def test_zeros_and_constants_stay():
    for quantize in (quantization.quantize_int, quantization.quantize_int_asymmetric):
        np.testing.assert_array_equal(quantize(jnp.zeros((2, 3)), bits=4), 0.0)
    constant = jnp.full(3, 5.3)
    quantized = quantization.quantize_int_asymmetric(constant, bits=4)
    np.testing.assert_array_equal(quantized, constant)
    zeros = quantization.quantize_float(jnp.zeros((2, 32)), format="e2m1", power_of_two=True)
    np.testing.assert_array_equal(zeros, 0.0)


def test_each_channel_and_each_group_has_its_scale():
    values = jnp.array([[1.0, 0.3, 100.0, 30.0], [0.01, 0.003, 5.0, 2.0]])
    rows = quantization.symmetric_scale(values, maximum=1.0, axis=-1)
    np.testing.assert_array_equal(rows, np.float32([[100.0], [5.0]]))
    groups = quantization.symmetric_scale(values, maximum=1.0, group_size=2)
    expected = np.float32([[1.0, 1.0, 100.0, 100.0], [0.01, 0.01, 5.0, 5.0]])
    np.testing.assert_array_equal(groups, expected)
    by_group = quantization.quantize_int(values, bits=4, group_size=2)
    alone = quantization.quantize_int(values[1, :2], bits=4)
    np.testing.assert_array_equal(by_group[1, :2], alone)


def test_microscaling_blocks_have_power_of_two_scales_and_saturate():
    values = jnp.array([7.9, 1.0, 0.2, 4.1])
    scale = quantization.symmetric_scale(values, maximum=6.0, axis=-1, power_of_two=True)
    assert scale == 1.0
    quantized = quantization.quantize_float(values, format="e2m1", power_of_two=True)
    np.testing.assert_array_equal(quantized, [6.0, 1.0, 0.0, 4.0])
    small = quantization.symmetric_scale(values / 64, maximum=6.0, axis=-1, power_of_two=True)
    assert small == 1 / 64


def test_rounding_passes_gradients_straight_through():
    values = jnp.array([0.4, -1.6, 2.5])
    for total in (
        lambda x: quantization.straight_through_round(x).sum(),
        lambda x: quantization.quantize_int(x, bits=2).sum(),
        lambda x: quantization.quantize_int_asymmetric(x, bits=2).sum(),
        lambda x: quantization.quantize_float(x, format="e4m3").sum(),
    ):
        np.testing.assert_array_equal(jax.grad(total)(values), 1.0)


def test_what_saturates_has_no_gradient():
    values = jnp.array([448.0, 449.0, -1e4, 1.0])
    gradient = jax.grad(lambda x: quantization.round_to_float(x, format="e4m3").sum())(values)
    np.testing.assert_array_equal(gradient, [1.0, 0.0, 0.0, 1.0])


def test_learned_step_has_the_printed_gradients():
    values, step = jnp.array([0.3, -0.8, 9.0, -9.0, 1.5]), jnp.array(0.5)

    def quantized(values, step, gradient_scale=1.0):
        return quantization.learned_step_quantize(
            values, step, bits=3, gradient_scale=gradient_scale
        )

    of_values = jax.grad(lambda v: quantized(v, step).sum())(values)
    np.testing.assert_array_equal(of_values, [1.0, 1.0, 0.0, 0.0, 1.0])
    of_step = jax.jacrev(quantized, argnums=1)(values, step)
    expected = [1 - 0.6, -2 + 1.6, 3.0, -3.0, 0.0]
    np.testing.assert_allclose(of_step, expected, rtol=1e-5, atol=1e-6)
    quarter = jax.jacrev(lambda s: quantized(values, s, 0.25))(step)
    np.testing.assert_allclose(quarter, of_step / 4, rtol=1e-6)
    np.testing.assert_array_equal(quantized(values, step, 0.25), quantized(values, step))


def test_more_bits_and_finer_scales_err_less():
    values = jnp.asarray(np.random.default_rng(1).normal(size=(8, 64)), jnp.float32)
    values = values * jnp.arange(1.0, 9.0)[:, None] ** 2

    def error(**options):
        return float(jnp.mean((quantization.quantize_int(values, **options) - values) ** 2))

    assert error(bits=8) < error(bits=4) < error(bits=3) < error(bits=2)
    assert error(bits=4, group_size=8) < error(bits=4, axis=-1) < error(bits=4)
