"""Activation boundaries and the partial L2 of OFD: what a silent neuron costs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdjax.losses import features, pooling, preactivations

few = settings(deadline=None, database=None, derandomize=True, max_examples=20)
seeds = st.integers(0, 2**32 - 1)

activation_boundary = jax.jit(preactivations.activation_boundary)
ofd_partial_l2 = jax.jit(preactivations.ofd_partial_l2)
ofd_margin = jax.jit(preactivations.ofd_margin)


def pair(seed, shape=(2, 3, 2, 4)):
    generator = np.random.default_rng(seed)
    return tuple(generator.normal(size=shape).astype(np.float32) for _ in "st")


def one(value):
    return jnp.full((1, 1, 1, 1), value)


@pytest.mark.parametrize(
    ("student", "teacher", "expected"),
    [(0.5, -1, 2.25), (0.5, 1, 0.25), (2, 1, 0), (-2, -1, 0), (-1, 0, 0), (0.5, 0, 2.25)],
)
def test_worked_numbers_of_activation_boundaries(student, teacher, expected):
    value = activation_boundary(one(float(student)), one(float(teacher)), margin=1.0)
    np.testing.assert_allclose(value, [expected])


@pytest.mark.parametrize(
    ("student", "teacher", "expected"),
    [(0.5, -1, 1.684504), (-2, -1, 0), (0.5, 2, 2.25), (2.0, 0.5, 2.25), (0, -0.5, 0.25)],
)
def test_worked_numbers_of_the_partial_l2(student, teacher, expected):
    margin = ofd_margin(jnp.ones(1), jnp.zeros(1))
    np.testing.assert_allclose(margin, [-0.797885], rtol=1e-6)
    value = ofd_partial_l2(one(float(student)), one(float(teacher)), margin)
    np.testing.assert_allclose(value, [expected], rtol=1e-6)


@few
@given(seeds, st.floats(1e-3, 1e3))
def test_boundaries_read_the_teachers_signs_alone(seed, scale):
    student, teacher = pair(seed)
    expected = activation_boundary(student, teacher)
    scaled = activation_boundary(student, np.float32(scale) * teacher)
    np.testing.assert_array_equal(scaled, expected)
    assert np.all(activation_boundary(student, -teacher) != expected)
    assert np.all(activation_boundary(2 * student, teacher) != expected)


@few
@given(seeds, st.floats(0, 3))
def test_boundaries_kept_by_the_margin_cost_nothing(seed, margin):
    student, teacher = pair(seed)
    far = np.sign(teacher) * (np.abs(student) + np.float32(1.001 * margin))
    assert np.all(activation_boundary(far, teacher, margin=margin) == 0)
    assert np.all(activation_boundary(-far, teacher, margin=margin) > 0)


@few
@given(seeds)
def test_an_active_teacher_is_met_and_a_silent_one_not_exceeded(seed):
    student, teacher = pair(seed)
    margin = -np.abs(np.random.default_rng(seed).normal(size=4)).astype(np.float32)
    active = np.abs(teacher) + np.float32(0.01)
    entries = teacher[0].size
    np.testing.assert_allclose(
        ofd_partial_l2(student, active, margin), entries * features.hint(student, active), rtol=1e-5
    )
    # Below zero nothing is owed by a student that is lower still.
    silent = -active
    lower = np.minimum(np.maximum(silent, margin), student)
    assert np.all(ofd_partial_l2(lower, silent, margin) == 0)
    gradient = jax.grad(lambda s: ofd_partial_l2(s, silent, margin).sum())(student)
    np.testing.assert_array_equal(gradient > 0, student > np.maximum(silent, margin))
    assert np.all(gradient >= 0)


def test_the_teacher_is_pooled_to_the_students_size_before_its_signs_are_read():
    student, _ = pair(0, (2, 2, 1, 4))
    _, teacher = pair(1, (2, 4, 2, 4))
    margin = -jnp.ones(4)
    pooled = pooling.adaptive_average_pool(teacher, (2, 1))
    np.testing.assert_allclose(
        ofd_partial_l2(student, teacher, margin), ofd_partial_l2(student, pooled, margin)
    )


@pytest.mark.parametrize(("scale", "bias"), [(1.0, 0.0), (0.3, -0.5), (-2.0, 1.0), (0.5, 1.5)])
def test_a_margin_is_the_mean_of_the_negative_part(scale, bias):
    x = np.linspace(bias - 12 * abs(scale), 0, 400_001)
    density = np.exp(-(((x - bias) / scale) ** 2) / 2)
    expected = np.sum(x * density) / np.sum(density)
    margin = ofd_margin(jnp.array([scale]), jnp.array([bias]))
    np.testing.assert_allclose(margin, [expected], rtol=1e-3)


@few
@given(seeds, st.floats(1e-3, 1e3))
def test_margins_scale_with_their_channel_and_are_not_positive(seed, scale):
    generator = np.random.default_rng(seed)
    weight, bias = (generator.normal(size=5).astype(np.float32) for _ in "wb")
    margin, scale = ofd_margin(weight, bias), np.float32(scale)
    np.testing.assert_allclose(ofd_margin(-scale * weight, scale * bias), scale * margin, rtol=1e-3)
    assert np.all(margin <= 0)


def test_margins_of_channels_that_are_almost_always_active_or_constant():
    # 3.09 standard deviations above zero the probability to be silent is 0.001.
    margins = ofd_margin(
        jnp.array([1.0, 2.0, 1.0, 0, 0, 1.0]), jnp.array([3.2, 40, 3.0, 2, -2, -40])
    )
    expected = [-3, -6, 3 - 0.00443185 / 0.00134990, 0, -2, -40]
    np.testing.assert_allclose(margins, expected, rtol=1e-3)


def test_a_nan_is_not_hidden():
    student, teacher = pair(0)
    student[0, 0, 0, 0] = np.nan
    for sign in (1, -1):
        target = sign * np.abs(teacher)
        for value in (
            activation_boundary(student, target),
            ofd_partial_l2(student, target, -jnp.ones(4)),
        ):
            assert np.isnan(value[0])
            assert np.isfinite(value[1])
