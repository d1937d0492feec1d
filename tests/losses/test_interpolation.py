"""TAID: the target, its loss, and the controller that moves it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdjax import losses

SETTINGS = settings(deadline=None, database=None, derandomize=True, max_examples=20)


@jax.jit
def value_and_gradient(student, teacher, t):
    def total(student):
        return losses.taid(student, teacher, t=t).sum()

    return jax.value_and_grad(total)(student)


def logits(seed, shape=(3, 5)):
    rng = np.random.default_rng(seed)
    return tuple(jnp.asarray(rng.normal(0, 2, shape), jnp.float32) for _ in range(2))


def test_worked_numbers():
    student, teacher = jnp.zeros(2), jnp.log(jnp.array([3.0, 1.0]))
    value, gradient = value_and_gradient(student, teacher, 0.5)
    np.testing.assert_allclose(value, 0.693147, atol=1e-6)
    np.testing.assert_allclose(gradient, [-0.133975, 0.133975], atol=1e-6)
    state = losses.TaidState(jnp.float32(0.4), jnp.float32(2), jnp.float32(0))
    same = losses.taid_update(state, 2.0, step=0, num_steps=10, t_start=0.0)
    np.testing.assert_allclose(same.t, 0.40015, rtol=1e-6)


def test_at_the_student_the_gradient_is_zero_and_the_loss_its_entropy():
    student, teacher = logits(0)
    value, gradient = value_and_gradient(student, teacher, 0.0)
    log_q = jax.nn.log_softmax(student)
    np.testing.assert_allclose(value, -jnp.sum(jnp.exp(log_q) * log_q), rtol=1e-6)
    np.testing.assert_allclose(gradient, 0, atol=1e-7)


def test_at_the_teacher_it_is_the_forward_kl():
    student, teacher = logits(1)
    _, gradient = value_and_gradient(student, teacher, 1.0)
    expected = jax.grad(lambda s: losses.kl_divergence(teacher, s).sum())(student)
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(
        losses.taid(student, teacher, t=1.0, form="kl"),
        losses.kl_divergence(teacher, student),
        rtol=1e-5,
    )


@SETTINGS
@given(st.integers(0, 1000), st.floats(0, 1), st.floats(-50, 50))
def test_constants_added_to_the_logits_are_irrelevant(seed, t, constant):
    student, teacher = logits(seed)
    value, gradient = value_and_gradient(student, teacher, t)
    moved, moved_gradient = value_and_gradient(student + constant, teacher - constant, t)
    np.testing.assert_allclose(moved, value, rtol=1e-4)
    np.testing.assert_allclose(moved_gradient, gradient, atol=2e-5)


def test_a_class_missing_on_either_side_is_missing_from_the_target():
    student, teacher = logits(2)
    teacher = teacher.at[:, 0].set(-jnp.inf)
    target = losses.interpolated_teacher_logits(student, teacher, t=0.5)
    assert np.all(jax.nn.softmax(target)[:, 0] == 0)
    value, gradient = value_and_gradient(student, teacher, 0.0)
    assert np.isfinite(value)
    assert np.all(np.isfinite(gradient))


@pytest.mark.parametrize("adaptive", [True, False])
@SETTINGS
@given(values=st.lists(st.floats(0, 1e6, width=32), min_size=12, max_size=12))
def test_t_never_falls_keeps_above_its_line_and_ends(adaptive, values):
    state, ts = losses.TaidState.start(0.2), []
    for step, value in enumerate(values):
        state = update(state, value, step, adaptive)
        ts.append(float(state.t))
    line = 0.2 + 0.7 * np.arange(12) / 12
    assert np.all(np.diff(ts) >= 0)
    assert np.all(ts >= line - 1e-6)
    assert max(ts) <= 0.9 + 1e-6
    if not adaptive:
        np.testing.assert_allclose(ts, line, rtol=1e-6)


def update(state, value, step, adaptive=True):
    return compiled_update(adaptive)(state, value, step)


@functools.cache
def compiled_update(adaptive):
    def run(state, value, step):
        options = dict(num_steps=12, t_start=0.2, t_end=0.9, alpha=0.5, beta=0.9)
        return losses.taid_update(state, value, step=step, adaptive=adaptive, **options)

    return jax.jit(run)


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_a_loss_that_is_no_number_is_not_remembered(bad):
    state = update(losses.TaidState.start(0.2), 3.0, 0)
    state = update(state, 2.0, 1)
    after = update(state, bad, 6)
    assert after.previous_loss == state.previous_loss
    assert after.momentum == state.momentum
    np.testing.assert_allclose(after.t, max(float(state.t), 0.2 + 0.7 * 6 / 12), rtol=1e-6)


def test_t_rises_faster_while_the_loss_falls():
    start = losses.TaidState(jnp.float32(0.5), jnp.float32(2), jnp.float32(0))
    falling, rising = (update(start, value, 0).t for value in (1.0, 4.0))
    assert falling > rising > 0.5
