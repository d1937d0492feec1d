"""Diffusion: schedules, conversions that invert each other, and solver steps on known flows."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdjax.losses import diffusion, diffusion_steps, noise_schedules

SETTINGS = settings(deadline=None, database=None, derandomize=True, max_examples=20)
SCHEDULES = [
    noise_schedules.cosine_schedule,
    noise_schedules.linear_schedule,
    noise_schedules.flow_schedule,
    noise_schedules.exploding_schedule,
]
schedules = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: s.__name__)
TIMES = np.float32([0.9, 0.5, 0.2])


def draws(seed=0, count=2):
    generator = np.random.default_rng(seed)
    return [jnp.asarray(generator.normal(size=(3, 4)), jnp.float32) for _ in range(count)]


def close(actual, expected, atol=1e-5):
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=atol)


@pytest.mark.parametrize("schedule", SCHEDULES[:2], ids=lambda s: s.__name__)
@given(st.floats(0, 1, width=32))
@SETTINGS
def test_variance_preserving_schedules_preserve_variance(schedule, time):
    alpha, sigma = schedule(time)
    close(alpha**2 + sigma**2, 1.0)


def test_schedules_run_from_data_to_noise_exactly():
    for schedule in SCHEDULES[:3]:
        alpha, sigma = schedule(jnp.array([0.0, 1.0]))
        assert alpha[0] == 1
        assert sigma[0] == 0
        assert alpha[1] < 0.01
        assert sigma[1] > 0.99
    assert noise_schedules.cosine_schedule(1.0)[0] == 0


def test_linear_schedule_is_the_limit_of_ddpm():
    betas = np.linspace(1e-4, 0.02, 1000)
    alpha = np.sqrt(np.cumprod(1 - betas))
    ours, _ = noise_schedules.linear_schedule(jnp.arange(1, 1001) / 1000)
    # 1 - beta < exp(-beta): the discrete product is smaller, by about sum beta^2 / 4 = 0.03.
    np.testing.assert_allclose(ours, alpha, rtol=0.04)


def test_cosine_schedule_has_the_printed_log_snr():
    levels = noise_schedules.cosine_schedule(TIMES)
    close(noise_schedules.log_snr(*levels), -2 * np.log(np.tan(math.pi / 2 * TIMES)))
    close(
        jnp.exp(noise_schedules.log_snr(*levels)),
        noise_schedules.loss_weight(*levels, weighting="snr"),
    )


def test_karras_levels_are_even_in_their_root():
    sigmas = noise_schedules.karras_sigmas(jnp.linspace(0.0, 1.0, 5))
    close(sigmas[jnp.array([0, -1])], [80.0, 0.002], atol=1e-7)
    gaps = np.diff(np.asarray(sigmas, np.float64) ** (1 / 7))
    np.testing.assert_allclose(gaps, gaps[0], rtol=1e-4)


def test_shift():
    grid = jnp.linspace(0.0, 1.0, 5)
    close(noise_schedules.shift_sigmas(grid, shift=1.0), grid)
    assert noise_schedules.shift_sigmas(0.75, shift=5.0) == 0.9375
    twice = noise_schedules.shift_sigmas(noise_schedules.shift_sigmas(grid, shift=2.0), shift=3.0)
    close(noise_schedules.shift_sigmas(grid, shift=6.0), twice)


def test_consistency_scalings_fix_the_boundary_and_no_other_level():
    skip, out, _ = noise_schedules.karras_scalings(0.002, sigma_min=0.002)
    assert (float(skip), float(out)) == (1.0, 0.0)
    skip, out, inner = noise_schedules.karras_scalings(jnp.array([0.5, 80.0]))
    # EDM: the network's input and target have variance 1 for data of deviation 0.5.
    sigma = jnp.array([0.5, 80.0])
    close(inner**2 * (sigma**2 + 0.25), 1.0)
    close(((1 - skip) ** 2 * 0.25 + skip**2 * sigma**2) / out**2, 1.0)


@schedules
@given(st.integers(0, 100))
@SETTINGS
def test_conversions_invert_each_other(schedule, seed):
    levels = schedule(TIMES)
    clean, noise = draws(seed)
    noisy = diffusion.add_noise(clean, noise, *levels)
    close(diffusion.clean_from_noise(noisy, noise, *levels), clean, 1e-4)
    close(diffusion.noise_from_clean(noisy, clean, *levels), noise, 1e-4)
    velocity = diffusion.velocity(clean, noise, *levels)
    close(diffusion.clean_from_velocity(noisy, velocity, *levels), clean)
    close(diffusion.noise_from_velocity(noisy, velocity, *levels), noise)
    flow = diffusion.flow_velocity(clean, noise)
    close(diffusion.clean_from_flow(noisy, flow, *levels), clean)


def test_the_velocities_are_slopes_of_their_schedules():
    clean, noise = (x[0] for x in draws())

    def state(schedule):
        return lambda time: diffusion.add_noise(clean, noise, *schedule(time))

    time = jnp.array(0.3)
    _, slope = jax.jvp(state(noise_schedules.flow_schedule), (time,), (jnp.array(1.0),))
    close(slope, diffusion.flow_velocity(clean, noise))
    _, slope = jax.jvp(state(noise_schedules.cosine_schedule), (time,), (jnp.array(1.0),))
    levels = noise_schedules.cosine_schedule(time)
    close(slope, math.pi / 2 * diffusion.velocity(clean, noise, *levels))


def test_weights_make_the_error_of_the_data_that_of_noise_or_velocity():
    clean, noise, error = draws(count=3)
    levels = noise_schedules.cosine_schedule(TIMES)
    noisy = diffusion.add_noise(clean, noise, *levels)
    guess = clean + error
    implied = diffusion.noise_from_clean(noisy, guess, *levels)
    of_noise = jnp.mean((implied - noise) ** 2, axis=1)
    of_velocity = jnp.mean(
        (diffusion.velocity(guess, implied, *levels) - diffusion.velocity(clean, noise, *levels))
        ** 2,
        axis=1,
    )
    of_data = jnp.mean(error**2, axis=1)
    snr, plus_one, truncated = (
        noise_schedules.loss_weight(*levels, weighting=weighting)
        for weighting in ("snr", "snr_plus_one", "truncated_snr")
    )
    close(snr * of_data, of_noise, 1e-4)
    close(plus_one * of_data, of_velocity, 1e-4)
    close(truncated, np.maximum(snr, 1))
    levels = noise_schedules.exploding_schedule(TIMES)
    karras = noise_schedules.loss_weight(*levels, weighting="karras", sigma_data=0.5)
    close(karras, TIMES**-2.0 + 4)


@schedules
def test_ddim_stays_where_it_is_and_its_inverse_undoes_it(schedule):
    noisy, clean = draws()
    levels, following = schedule(TIMES), schedule(TIMES / 2)
    close(diffusion_steps.ddim_step(noisy, clean, *levels, *levels), noisy)
    moved = diffusion_steps.ddim_step(noisy, clean, *levels, *following)
    close(diffusion_steps.ddim_inverse(noisy, moved, *levels, *following), clean, 1e-4)


@schedules
def test_ddim_of_the_true_data_is_exact_in_any_number_of_steps(schedule):
    clean, noise = draws()
    start, middle, end = (schedule(TIMES * scale) for scale in (1.0, 0.7, 0.1))
    noisy = diffusion.add_noise(clean, noise, *start)
    halfway = diffusion_steps.ddim_step(noisy, clean, *start, *middle)
    expected = diffusion.add_noise(clean, noise, *end)
    close(diffusion_steps.ddim_step(halfway, clean, *middle, *end), expected)
    close(diffusion_steps.ddim_step(noisy, clean, *start, *end), expected)


def test_ddim_is_eulers_step_where_the_path_is_straight_and_only_there():
    noisy, clean = draws()
    times, following = TIMES, TIMES / 2
    for schedule, slope in (
        (noise_schedules.exploding_schedule, (noisy - clean) / TIMES[:, None]),
        (noise_schedules.flow_schedule, (noisy - clean) / TIMES[:, None]),
    ):
        ddim = diffusion_steps.ddim_step(noisy, clean, *schedule(times), *schedule(following))
        close(diffusion_steps.euler_step(noisy, slope, times, following), ddim)
    cosine = noise_schedules.cosine_schedule
    levels = cosine(times)
    implied = diffusion.noise_from_clean(noisy, clean, *levels)
    slope = math.pi / 2 * diffusion.velocity(clean, implied, *levels)
    euler = diffusion_steps.euler_step(noisy, slope, times, following)
    ddim = diffusion_steps.ddim_step(noisy, clean, *levels, *cosine(following))
    assert np.any(np.abs(euler - ddim) > 0.05)


def test_heun_is_of_second_order_and_eulers_at_the_last_level():
    # Data N(0, 1): x = z / (1 + sigma^2), whose trajectories are z ~ sqrt(1 + sigma^2).
    def denoiser(noisy, sigma):
        return noisy / (1 + sigma**2)[..., None]

    def error(step, count):
        sigmas = jnp.linspace(2.0, 0.5, count + 1)
        noisy = jnp.ones((1, 1))
        for sigma, following in itertools.pairwise(sigmas):
            noisy = step(noisy, sigma[None], following[None])
        return abs(float(noisy[0, 0]) - math.sqrt(1.25 / 5))

    @jax.jit
    def heun(noisy, sigma, following):
        return diffusion_steps.heun_step(noisy, sigma, following, denoiser=denoiser)

    @jax.jit
    def euler(noisy, sigma, following):
        slope = (noisy - denoiser(noisy, sigma)) / sigma
        return diffusion_steps.euler_step(noisy, slope, sigma, following)

    assert 3 < error(heun, 4) / error(heun, 8) < 6
    assert 1.5 < error(euler, 4) / error(euler, 8) < 3
    last = heun(jnp.ones((1, 1)), jnp.array([1.0]), jnp.array([0.0]))
    close(last, denoiser(jnp.ones((1, 1)), jnp.array([1.0])))
    gradient = jax.grad(lambda z: heun(z, jnp.array([1.0]), jnp.array([0.0])).sum())
    assert np.all(np.isfinite(gradient(jnp.ones((1, 1)))))


def test_guidance():
    unconditional, first, both = draws(count=3)
    np.testing.assert_array_equal(
        diffusion_steps.guided(unconditional, both, scale=0.0), unconditional
    )
    close(diffusion_steps.guided(unconditional, both, scale=1.0), both)
    close(
        diffusion_steps.guided(unconditional, both, scale=6.0),
        both + 5 * (both - unconditional),
    )
    two = diffusion_steps.guided_by_two
    close(two(unconditional, first, both, first_scale=1.0, second_scale=1.0), both)
    close(
        two(unconditional, first, both, first_scale=4.0, second_scale=4.0),
        diffusion_steps.guided(unconditional, both, scale=4.0),
    )


def test_levels_may_have_any_leading_axes():
    clean, noise = (x.reshape(3, 2, 2) for x in draws())
    frames = jnp.broadcast_to(jnp.array([0.25, 0.75]), (3, 2))
    mixed = diffusion.add_noise(clean, noise, 1 - frames, frames)
    close(mixed[:, 1], diffusion.add_noise(clean[:, 1], noise[:, 1], 0.25, 0.75))


def test_python_levels_keep_float32():
    with jax.enable_x64(True):
        clean, noise = draws()
        assert diffusion.add_noise(clean, noise, 0.6, 0.8).dtype == jnp.float32


def test_known_levels_are_checked_inside_a_compiled_function_too():
    times = jnp.array([0.5, 1.5])
    with pytest.raises(ValueError, match="times must lie in"):
        jax.jit(lambda: noise_schedules.cosine_schedule(times))()
