"""Distillation into few steps: targets, limits, gradients, and matching of scores."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdjax.losses import (
    diffusion,
    diffusion_steps,
    noise_schedules,
    score_matching,
    step_distillation,
)

SETTINGS = settings(deadline=None, database=None, derandomize=True, max_examples=20)
SIGMA, NEXT = jnp.array([2.0, 1.0, 0.5]), jnp.array([1.0, 0.4, 0.1])


def draws(seed=0, count=3):
    generator = np.random.default_rng(seed)
    return [jnp.asarray(generator.normal(size=(3, 4)), jnp.float32) for _ in range(count)]


def close(actual, expected, atol=1e-5):
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=atol)


def gaussian(noisy, sigma):
    """The denoiser of data N(0, 1) in exploding noise."""
    return noisy / (1 + sigma**2)[:, None]


def test_regression_weighs_examples_and_means_over_the_rest():
    prediction, target, _ = draws()
    weight = jnp.array([1.0, 2.0, 0.0])
    loss = step_distillation.target_regression(prediction, target, weight=weight)
    close(loss, weight * jnp.mean((prediction - target) ** 2, 1))
    where = jnp.array([[True, False, True, False]] * 3)
    masked = step_distillation.target_regression(prediction, target, where=where)
    close(masked, jnp.mean((prediction - target)[:, ::2] ** 2, 1))
    nothing = step_distillation.target_regression(prediction, target, where=jnp.zeros_like(where))
    np.testing.assert_array_equal(nothing, 0.0)


@pytest.mark.parametrize(
    "schedule", [noise_schedules.cosine_schedule, noise_schedules.exploding_schedule]
)
def test_progressive_target_of_a_constant_prediction_is_that_prediction(schedule):
    noisy, constant, _ = draws()
    times = jnp.array([0.9, 0.5, 0.3])
    target = step_distillation.progressive_target(
        noisy, times, times - 0.1, times - 0.2, teacher=lambda *_: constant, schedule=schedule
    )
    close(target, constant)


@pytest.mark.parametrize(
    "schedule", [noise_schedules.cosine_schedule, noise_schedules.exploding_schedule]
)
def test_one_step_with_the_progressive_target_does_two_of_the_teacher(schedule):
    noisy, _, _ = draws()
    times = jnp.array([0.9, 0.6, 0.4])
    middle, end = times - 0.15, times - 0.3

    def teacher(noisy, times):
        return jnp.tanh(noisy) * times[:, None]

    target = step_distillation.progressive_target(
        noisy, times, middle, end, teacher=teacher, schedule=schedule
    )
    one = diffusion_steps.ddim_step(noisy, target, *schedule(times), *schedule(end))
    two = diffusion_steps.ddim_step(
        noisy, teacher(noisy, times), *schedule(times), *schedule(middle)
    )
    two = diffusion_steps.ddim_step(two, teacher(two, middle), *schedule(middle), *schedule(end))
    close(one, two)


def test_progressive_target_of_the_last_step_is_where_the_teacher_arrives():
    noisy, _, _ = draws()
    times = jnp.full(3, 0.5)

    def teacher(noisy, times):
        return jnp.sin(noisy) + times[:, None]

    target = step_distillation.progressive_target(
        noisy, times, times / 2, times * 0, teacher=teacher
    )
    cosine = noise_schedules.cosine_schedule
    halfway = diffusion_steps.ddim_step(noisy, teacher(noisy, times), *cosine(0.5), *cosine(0.25))
    close(target, teacher(halfway, times / 2))


def test_consistency_loss_of_a_constant_network_is_zero():
    clean, noise, constant = draws()
    networks = dict(student=lambda *_: constant, target=lambda *_: constant)
    distilled = step_distillation.consistency_distillation(
        clean, SIGMA, NEXT, teacher=gaussian, **networks
    )
    trained = step_distillation.consistency_training(clean, noise, SIGMA, NEXT, **networks)
    np.testing.assert_array_equal(distilled, 0.0)
    np.testing.assert_array_equal(trained, 0.0)


def test_the_solution_of_the_teachers_equation_is_consistent_and_nothing_else():
    # Trajectories of N(0, 1) are z ~ sqrt(1 + sigma^2); they end at z / sqrt(1 + sigma^2).
    def solution(noisy, sigma):
        return noisy / jnp.sqrt(1 + sigma**2)[:, None]

    noisy, _, _ = draws()
    near = SIGMA * 0.99

    def loss(network):
        return step_distillation.consistency_distillation(
            noisy, SIGMA, near, student=network, target=network, teacher=gaussian
        )

    assert np.all(loss(solution) < 1e-10)
    assert np.all(loss(gaussian) > 1e-7)


def test_consistency_training_is_distillation_from_the_data_itself():
    clean, noise, _ = draws()
    networks = dict(student=lambda z, s: jnp.tanh(z), target=lambda z, s: jnp.sin(z))
    noisy = diffusion.add_noise(clean, noise, jnp.ones(3), SIGMA)
    distilled = step_distillation.consistency_distillation(
        noisy, SIGMA, NEXT, teacher=lambda *_: clean, **networks
    )
    trained = step_distillation.consistency_training(clean, noise, SIGMA, NEXT, **networks)
    close(trained, distilled)
    assert np.all(trained > 0)


def test_consistency_takes_another_distance_and_a_weight():
    clean, noise, _ = draws()
    networks = dict(student=lambda z, s: jnp.tanh(z), target=lambda z, s: jnp.sin(z))
    absolute = step_distillation.consistency_training(
        clean,
        noise,
        SIGMA,
        NEXT,
        weight=jnp.array([1.0, 0.0, 2.0]),
        distance=lambda x, y: jnp.sum(jnp.abs(x - y), axis=1),
        **networks,
    )
    noisy, moved = (clean + sigma[:, None] * noise for sigma in (SIGMA, NEXT))
    expected = jnp.sum(jnp.abs(jnp.tanh(noisy) - jnp.sin(moved)), axis=1)
    close(absolute, expected * jnp.array([1.0, 0.0, 2.0]))


def test_gradient_reaches_the_student_alone():
    clean, noise, _ = draws()

    def loss(weights):
        student, target, teacher = weights
        return step_distillation.consistency_distillation(
            clean + noise,
            SIGMA,
            NEXT,
            student=lambda z, s: student * z,
            target=lambda z, s: target * z,
            teacher=lambda z, s: teacher * z,
        ).sum()

    gradient = jax.grad(loss)(jnp.array([0.9, 0.8, 0.7]))
    assert gradient[0] != 0
    np.testing.assert_array_equal(gradient[1:], 0.0)


def test_consistency_schedule_rises_to_the_last_number_of_levels():
    schedule = jax.jit(
        lambda k: step_distillation.consistency_schedule(k, total_steps=1000, end_levels=150)
    )
    levels, decays = zip(*(schedule(k) for k in (0, 100, 500, 1000)))
    # s0 = 2: sqrt(4) - 1 = 1 interval; s1 = 150: sqrt(151^2) - 1 = 150 intervals.
    assert [int(n) for n in levels] == [2, 48, 107, 151]
    np.testing.assert_allclose(decays[0], 0.95**2, rtol=1e-5)
    np.testing.assert_allclose(decays[-1], 0.95 ** (2 / 150), rtol=1e-5)


def test_worked_dmd():
    data, critic, teacher = (jnp.array([[x]]) for x in (1.0, 0.5, 0.0))
    close(score_matching.dmd_gradient(data, critic, teacher), [[0.5]])
    value, gradient = jax.value_and_grad(lambda x: score_matching.dmd(x, critic, teacher).sum())(
        data
    )
    assert (float(value), float(gradient[0, 0])) == (0.125, 0.5)


def test_gradient_of_the_surrogate_is_the_given_one_over_the_size():
    data, gradient, _ = draws()
    found = jax.grad(lambda x: score_matching.gradient_surrogate(x, gradient).sum())(data)
    close(found, gradient / 4)
    where = jnp.array([[True, False, True, False]] * 3)
    found = jax.grad(lambda x: score_matching.gradient_surrogate(x, gradient, where=where).sum())(
        data
    )
    close(found, jnp.where(where, gradient / 2, 0.0))


@given(st.integers(0, 100), st.sampled_from([0.25, 4.0]))
@SETTINGS
def test_dmd_does_not_see_a_common_scale_but_that_of_the_difference(seed, scale):
    data, critic, teacher = draws(seed)
    one = score_matching.dmd_gradient(data, critic, teacher)
    close(score_matching.dmd_gradient(scale * data, scale * critic, scale * teacher), one, 1e-4)
    wider = score_matching.dmd_gradient(teacher + scale * (data - teacher), critic, teacher)
    close(wider, one / scale, 1e-4)


def test_nothing_is_taught_where_critic_and_teacher_agree_or_the_data_is_the_teachers():
    data, critic, _ = draws()
    np.testing.assert_array_equal(score_matching.dmd(data, critic, critic), 0.0)
    np.testing.assert_array_equal(score_matching.sid(data, critic, critic), 0.0)
    np.testing.assert_array_equal(score_matching.score_distillation(data, critic, critic), 0.0)
    np.testing.assert_array_equal(score_matching.dmd_gradient(data, critic, data), 0.0)
    gradients = jax.grad(lambda *x: score_matching.sid(*x).sum(), argnums=(0, 1, 2))(
        data, critic, data
    )
    assert all(np.all(np.isfinite(gradient)) for gradient in gradients)


def test_the_normaliser_is_of_each_example():
    data, critic, teacher = draws()
    scales = jnp.array([[1.0], [10.0], [100.0]])
    one = score_matching.dmd_gradient(data, critic, teacher)
    close(score_matching.dmd_gradient(scales * data, scales * critic, scales * teacher), one)


def test_score_distillation_has_the_direction_of_dmd():
    data, noise, _ = draws()
    critic, teacher = draws(1, 2)
    levels = noise_schedules.cosine_schedule(jnp.array([0.3, 0.5, 0.7]))
    noisy = diffusion.add_noise(data, noise, *levels)
    of_noise = [diffusion.noise_from_clean(noisy, x, *levels) for x in (critic, teacher)]

    def direction(loss, *predictions):
        gradient = jax.grad(lambda x: loss(x, *predictions).sum())(data)
        return gradient / jnp.linalg.norm(gradient, axis=1, keepdims=True)

    close(
        direction(score_matching.score_distillation, *of_noise),
        direction(score_matching.dmd, critic, teacher),
    )


def test_sid_is_the_printed_product():
    data, fake, real = draws()
    gap = real - fake
    scale = jnp.mean(jnp.abs(data - real), axis=1)
    for alpha in (0.5, 1.2):
        expected = jnp.mean(gap * (real - data - alpha * gap), axis=1) / scale
        close(score_matching.sid(data, fake, real, alpha=alpha), expected)


def test_adversarial_losses_are_those_of_a_classifier_and_survive_any_logit():
    logits = jnp.array([-1e4, -1.0, 0.0, 2.0, 1e4])
    close(score_matching.adversarial_generator(logits), np.logaddexp(0, -np.asarray(logits)))
    both = score_matching.adversarial_critic(logits, -logits)
    close(both, 2 * np.logaddexp(0, -np.asarray(logits)))
