"""BOOT: its targets against each other, DDIM, closed forms and limits."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdjax.losses import bootstrapping, diffusion, diffusion_steps, noise_schedules

SETTINGS = settings(deadline=None, database=None, derandomize=True, max_examples=20)
TARGETS = ("exact", "euler", "heun")
SCHEDULES = (
    noise_schedules.cosine_schedule,
    noise_schedules.linear_schedule,
    noise_schedules.flow_schedule,
)
UNIT = st.floats(0.02, 0.98)


def close(actual, expected, atol=1e-5):
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=atol)


def draws(seed=0, count=3):
    generator = np.random.default_rng(seed)
    return [jnp.asarray(generator.normal(size=(3, 4)), jnp.float32) for _ in range(count)]


def target(kind, signal, clean, noise, times, next_times, **options):
    if kind == "heun":
        return bootstrapping.boot_target_heun(
            signal, noise, times, next_times, teacher=lambda *_: clean, **options
        )
    kernel = getattr(bootstrapping, f"boot_target_{kind}")
    return kernel(signal, clean, times, next_times, **options)


def test_worked_numbers():
    none, one = jnp.zeros((1, 1)), jnp.ones((1, 1))
    ratio = bootstrapping.boot_target_exact(one, none, 1 / 2, 1 / 3)
    close(ratio, 0.57735)
    close(bootstrapping.boot_target_exact(none, one, 1 / 2, 1 / 3), 0.42265)
    close(bootstrapping.boot_target_euler(none, one, 1 / 2, 1 / 3), 0.523599)
    weight = bootstrapping.boot_weight(1 / 2, 1 / 3, weighting="inverse_squared_time")
    close(weight, 36.0, atol=1e-3)


@pytest.mark.parametrize("schedule", SCHEDULES)
@SETTINGS
@given(a=UNIT, b=UNIT, seed=st.integers(0, 99))
def test_the_exact_target_is_the_signal_of_a_ddim_step_whatever_the_noise(schedule, a, b, seed):
    signal, clean, noise = draws(seed)
    times, next_times = jnp.full(3, max(a, b)), jnp.full(3, min(a, b))
    start, end = schedule(times), schedule(next_times)
    noisy = diffusion.add_noise(signal, noise, *start)
    moved = diffusion_steps.ddim_step(noisy, clean, *start, *end)
    found = bootstrapping.boot_target_exact(signal, clean, times, next_times, schedule=schedule)
    expected = diffusion.clean_from_noise(moved, noise, *end)
    # The state holds little of the signal where alpha is small: its rounding is magnified.
    close(found, expected, atol=1e-5 + 1e-6 / float(end[0][0]))


@SETTINGS
@given(times=st.lists(UNIT, min_size=3, max_size=3), seed=st.integers(0, 99))
def test_exact_steps_with_one_prediction_add_up(times, seed):
    signal, clean, _ = draws(seed)
    last, middle, first = (jnp.full(3, t) for t in sorted(times))
    halfway = bootstrapping.boot_target_exact(signal, clean, first, middle)
    two = bootstrapping.boot_target_exact(halfway, clean, middle, last)
    close(two, bootstrapping.boot_target_exact(signal, clean, first, last))


@pytest.mark.parametrize("kind", TARGETS)
def test_a_step_of_no_length_and_a_prediction_equal_to_the_signal_change_nothing(kind):
    signal, clean, noise = draws()
    times = jnp.array([0.9, 0.5, 0.1])
    np.testing.assert_array_equal(target(kind, signal, clean, noise, times, times), signal)
    close(target(kind, signal, signal, noise, times, times / 2), signal)


def test_without_noise_at_the_end_the_target_is_the_prediction():
    signal, clean, _ = draws()
    times = jnp.array([0.9, 0.5, 0.1])
    found = bootstrapping.boot_target_exact(signal, clean, times, jnp.zeros(3))
    close(found, clean)


def test_the_ratio_lies_in_0_and_1_and_falls_with_the_length_of_the_step():
    none, one = jnp.zeros((50, 1)), jnp.ones((50, 1))
    times, next_times = jnp.full(50, 0.98), jnp.linspace(0.02, 0.97, 50)
    ratio = bootstrapping.boot_target_exact(one, none, times, next_times)[:, 0]
    assert 0 < ratio.min() <= ratio.max() < 1
    assert (jnp.diff(ratio) > 0).all()
    inverse = bootstrapping.boot_weight(times, next_times, weighting="inverse_step")
    close(1 - 1 / inverse, ratio)
    close(
        bootstrapping.boot_weight(times, next_times, weighting="inverse_squared_step"), inverse**2
    )


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("kind", "order"), [("euler", 2), ("heun", 3)])
def test_the_error_of_a_step_falls_with_the_order_of_its_solver(kind, order, schedule):
    """With a constant prediction, on which the exact target is exact."""
    with jax.enable_x64(True):
        signal, clean, noise = (x.astype(jnp.float64) for x in draws())
        errors = []
        for length in (0.04, 0.02):
            arguments = signal, clean, noise, jnp.full(3, 0.6), jnp.full(3, 0.6 - length)
            found, exact = (target(k, *arguments, schedule=schedule) for k in (kind, "exact"))
            errors.append(float(jnp.abs(found - exact).max()))
    np.testing.assert_allclose(np.log2(errors[0] / errors[1]), order, atol=0.2)


def test_the_slope_of_the_cosine_is_the_closed_form():
    none, one = jnp.zeros((3, 1)), jnp.ones((3, 1))
    times = jnp.array([0.9, 0.5, 0.1])
    step = bootstrapping.boot_target_euler(none, one, times, times - 0.05)[:, 0]
    close(step, 0.05 * np.pi / np.sin(np.pi * times), atol=1e-6)


def test_heun_asks_the_teacher_at_both_ends_of_the_step():
    signal, _, noise = draws()
    times, next_times, asked = jnp.array([0.9, 0.6, 0.4]), jnp.array([0.7, 0.5, 0.1]), []

    def teacher(noisy, times):
        asked.append((noisy, times))
        return jnp.zeros_like(noisy)

    bootstrapping.boot_target_heun(signal, noise, times, next_times, teacher=teacher)
    (first, at), (second, then) = asked
    np.testing.assert_array_equal(at, times)
    np.testing.assert_array_equal(then, next_times)
    start, end = (noise_schedules.cosine_schedule(t) for t in (times, next_times))
    close(first, diffusion.add_noise(signal, noise, *start))
    half = [noise_schedules.log_snr(*levels) / 2 for levels in (start, end)]
    euler = signal * (1 - (half[1] - half[0]))[:, None]
    close(second, diffusion.add_noise(euler, noise, *end))


def test_targets_of_half_precision_are_computed_in_float32():
    signal, clean, noise = draws()
    half = [x.astype(jnp.bfloat16) for x in (signal, clean, noise)]
    times, next_times = jnp.array([0.98, 0.5, 0.06]), jnp.array([0.94, 0.46, 0.02])
    for kind in TARGETS:
        found = target(kind, *half, times, next_times)
        assert found.dtype == jnp.float32
        whole = target(kind, *(x.astype(jnp.float32) for x in half), times, next_times)
        np.testing.assert_array_equal(found, whole)


def test_ddim_sampling_is_its_steps():
    noise, _, _ = draws()
    times = jnp.array([0.9, 0.6, 0.2, 0.0])

    def denoiser(noisy, times):
        return jnp.tanh(noisy) * times[:, None]

    noisy = noise
    for now, following in itertools.pairwise(times):
        start, end = (noise_schedules.cosine_schedule(t) for t in (now, following))
        noisy = diffusion_steps.ddim_step(noisy, denoiser(noisy, jnp.full(3, now)), *start, *end)
    close(diffusion_steps.ddim_sample(noise, times, denoiser=denoiser), noisy)
