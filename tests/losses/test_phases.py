"""The controllers of two phases: when they switch, and when they do not."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdjax import losses
from kdjax.losses import PhaseState

STUDENT, AUGMENTOR = 0, 1
INFINITE = float("inf")


@functools.cache
def compiled(decay):
    return jax.jit(functools.partial(losses.phase_controller, decay=decay, max_phase_steps=60))


def step(state, metric, decay=0.0):
    return compiled(decay)(state, jnp.float32(metric))


def in_phase(phase, steps=0, average=INFINITE):
    return PhaseState(jnp.int32(phase), jnp.float32(average), jnp.int32(steps), jnp.int32(0))


@pytest.mark.parametrize(
    ("phase", "metric", "steps", "after"),
    [
        (STUDENT, 0.5, 0, STUDENT),
        (STUDENT, 0.2, 0, AUGMENTOR),
        (STUDENT, 0.5, 10**6, STUDENT),  # the student's phase has no limit
        (AUGMENTOR, 0.6, 0, AUGMENTOR),
        (AUGMENTOR, 1.2, 0, STUDENT),
        (AUGMENTOR, 0.1, 0, AUGMENTOR),
        (AUGMENTOR, 0.6, 58, AUGMENTOR),
        (AUGMENTOR, 0.6, 59, STUDENT),
        (STUDENT, INFINITE, 0, STUDENT),
        (AUGMENTOR, INFINITE, 0, AUGMENTOR),
        (STUDENT, float("nan"), 0, STUDENT),
        (AUGMENTOR, float("nan"), 59, STUDENT),
    ],
)
def test_it_switches_at_its_thresholds_and_at_the_limit_of_a_phase(phase, metric, steps, after):
    found = step(in_phase(phase, steps), metric)
    assert int(found.phase) == after
    assert int(found.n_switches) == (phase != after)
    assert int(found.steps_in_phase) == (0 if phase != after else steps + 1)


def test_the_average_starts_anew_with_each_phase():
    state = step(in_phase(STUDENT), 1.0, decay=0.8)
    state = step(state, 0.0, decay=0.8)
    np.testing.assert_allclose(state.average, 0.8, rtol=1e-6)
    for _ in range(4):  # 0.8^5 is still above 0.3
        state = step(state, 0.0, decay=0.8)
    assert int(state.phase) == STUDENT
    state = step(state, 0.0, decay=0.8)
    assert (int(state.phase), float(state.average)) == (AUGMENTOR, INFINITE)
    np.testing.assert_allclose(step(state, 0.4, decay=0.8).average, 0.4)


def test_a_metric_that_is_no_number_is_not_remembered():
    state = step(in_phase(STUDENT, 2, 0.9), INFINITE, decay=0.8)
    np.testing.assert_allclose(state.average, 0.9)
    assert int(state.steps_in_phase) == 3


@settings(deadline=None, database=None, derandomize=True, max_examples=30)
@given(st.lists(st.floats(0, 5, width=32), min_size=1, max_size=40))
def test_between_the_thresholds_nothing_happens(metrics):
    state, phases = in_phase(STUDENT), [STUDENT]
    for metric in metrics:
        state = step(state, metric)
        phases.append(int(state.phase))
        if 0.3 <= metric <= 1.0:
            assert phases[-1] == phases[-2]
    assert int(state.n_switches) == int(np.abs(np.diff(phases)).sum())


def test_a_fixed_rhythm_does_not_look_at_the_metric():
    state, acted = PhaseState.start(), []
    for metric in (9.0, 0.0, 9.0, 0.0, 9.0, 0.0, 9.0):
        acted.append(int(state.phase))
        state = losses.alternating_phases(state, metric, student_steps=2, augmentor_steps=3)
    assert acted == [0, 0, 1, 1, 1, 0, 0]
