"""Policy gradients of the reverse KL: worked numbers, limits, and what their means estimate."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.losses import divergences, policy, tokens

REWARDS = jnp.array([1.0, 2.0, 3.0])


def pair(seed=0, shape=(3, 5)):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(0, 2, shape)), jnp.asarray(rng.normal(0, 2, shape))


def test_worked_numbers():
    np.testing.assert_allclose(policy.discounted_returns(REWARDS, gamma=1.0), [2, 2.5, 3])
    np.testing.assert_allclose(
        policy.discounted_returns(REWARDS, gamma=0.5), [0.916667, 1.75, 3], atol=1e-6
    )
    old, teacher = jnp.log(jnp.array([0.2])), jnp.log(jnp.array([0.5]))
    weight = policy.teacher_mixed_weights(old, teacher, alpha=0.2)
    np.testing.assert_allclose(weight, 0.769231, atol=1e-6)


def test_returns_are_their_definition():
    rewards, _ = pair()
    where = jnp.asarray(np.random.default_rng(1).random((3, 5)) < 0.7)
    returns = policy.discounted_returns(rewards, gamma=0.9, where=where)
    for row in range(3):
        for t in range(5):
            left = [i for i in range(t, 5) if where[row, i]]
            total = sum(0.9 ** (i - t) * rewards[row, i] for i in left)
            expected = total / len(left) if where[row, t] else 0.0
            np.testing.assert_allclose(returns[row, t], expected, rtol=1e-5)


def test_without_discount_or_future_the_returns_are_sums_and_rewards():
    summed = policy.discounted_returns(REWARDS, gamma=1.0, length_normalized=False)
    np.testing.assert_allclose(summed, [6, 5, 3])
    own = policy.discounted_returns(REWARDS, gamma=0.0, length_normalized=False)
    np.testing.assert_allclose(own, REWARDS)


def test_returns_do_not_see_padding():
    where = jnp.array([True, True, True, False, False])
    padded = policy.discounted_returns(
        jnp.append(REWARDS, jnp.array([7.0, jnp.nan])), gamma=0.8, where=where
    )
    np.testing.assert_allclose(padded[:3], policy.discounted_returns(REWARDS, gamma=0.8), rtol=1e-6)
    np.testing.assert_array_equal(padded[3:], 0)


def test_advantage_without_a_future_is_the_log_ratio_of_the_token():
    old, teacher = pair()
    advantage = policy.reverse_kl_advantage(old, teacher, gamma=0.0)
    np.testing.assert_allclose(advantage, teacher - old)


def test_advantage_is_a_mean_of_the_rewards_to_come():
    old, _ = pair()
    for gamma in (0.0, 0.5, 1.0):
        advantage = policy.reverse_kl_advantage(old, old + 2.0, gamma=gamma)
        np.testing.assert_allclose(advantage, 2.0, rtol=1e-6)
    summed = policy.reverse_kl_advantage(old, old + 2.0, gamma=1.0, length_normalized=False)
    np.testing.assert_allclose(summed, np.tile([10, 8, 6, 4, 2], (3, 1)), rtol=1e-5)


def test_rewards_are_scaled_and_clipped():
    old, teacher = jnp.array([-1.0, -1.0, -9.0]), jnp.array([-2.0, -1.5, -1.0])
    rewards = policy.minillm_rewards(old, teacher, scaling=0.5, clip=1.5)
    np.testing.assert_allclose(rewards, [-1.5, -1.0, 1.5])


def test_whitened_values_have_mean_zero_and_variance_one():
    values, _ = pair()
    where = jnp.asarray(np.random.default_rng(1).random((3, 5)) < 0.7)
    whitened = np.asarray(policy.whiten(values, where=where))
    kept = whitened[np.asarray(where)]
    np.testing.assert_allclose(kept.mean(), 0, atol=1e-6)
    np.testing.assert_allclose(kept.std(ddof=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(whitened[~np.asarray(where)], 0)
    shifted = policy.whiten(3 * values + 7, where=where)
    np.testing.assert_allclose(shifted, whitened, atol=1e-5)


def test_a_single_value_whitens_to_zero():
    where = jnp.array([False, True])
    value, gradient = jax.value_and_grad(lambda v: policy.whiten(v, where=where).sum())(
        jnp.array([1.0, 5.0])
    )
    assert value == 0
    assert np.all(np.isfinite(gradient))


def test_weights_are_one_without_a_share_of_the_teacher_or_where_both_agree():
    old, teacher = -jnp.abs(pair()[0]), -jnp.abs(pair()[1])
    np.testing.assert_allclose(policy.teacher_mixed_weights(old, teacher, alpha=0.0), 1)
    np.testing.assert_allclose(policy.teacher_mixed_weights(old, old, alpha=0.3), 1, rtol=1e-6)
    bound = policy.teacher_mixed_weights(jnp.zeros(1), jnp.full(1, -1e4), alpha=0.2)
    np.testing.assert_allclose(bound, 1 / 0.8, rtol=1e-6)


def test_a_token_impossible_to_both_has_weight_zero():
    nothing = jnp.full(1, -jnp.inf)
    np.testing.assert_array_equal(policy.teacher_mixed_weights(nothing, nothing), 0)


def test_weighted_samples_of_the_mixture_have_the_students_mean():
    student, teacher = (jax.nn.log_softmax(x) for x in pair())
    mixture = 0.7 * jnp.exp(student) + 0.3 * jnp.exp(teacher)
    weights = policy.teacher_mixed_weights(student, teacher, alpha=0.3)
    np.testing.assert_allclose(mixture * weights, jnp.exp(student), rtol=1e-5)


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected", "slope"),
    [(1.5, 1.0, -1.2, 0.0), (1.5, -1.0, 1.5, 1.5), (0.5, 1.0, -0.5, -0.5), (0.5, -1.0, 0.8, 0.0)],
)
def test_the_clip_stops_what_moved_too_far_already(ratio, advantage, expected, slope):
    def loss(log_probs):
        return policy.clipped_policy_gradient(
            log_probs, jnp.zeros(()), jnp.asarray(advantage), clip=0.2
        )

    value, gradient = jax.value_and_grad(loss)(jnp.log(jnp.asarray(ratio)))
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(gradient, slope, atol=1e-6)


def test_first_step_on_fresh_samples_is_the_gradient_of_the_reverse_kl():
    """With the reward of the token itself; the mean over y ~ q is taken exactly."""
    with jax.enable_x64(True):
        student, teacher = (x[0] for x in pair())
        every = jnp.arange(5)

        def loss(logits):
            log_probs, old, wanted = (
                tokens.selective_log_softmax(jnp.tile(x, (5, 1)), every)
                for x in (logits, student, teacher)
            )
            rewards = policy.minillm_rewards(old, wanted, scaling=1.0)
            losses = policy.clipped_policy_gradient(log_probs, old, rewards)
            return jnp.sum(jax.nn.softmax(student) * losses)

        exact = jax.grad(divergences.reverse_kl, argnums=1)(teacher, student)
        np.testing.assert_allclose(jax.grad(loss)(student), exact, rtol=1e-10)


def test_mean_of_the_estimate_is_the_reverse_kl():
    with jax.enable_x64(True):
        student, teacher = (jax.nn.log_softmax(x) for x in pair())
        estimates = policy.reverse_kl_estimate(student, teacher)
        mean = jnp.sum(jnp.exp(student) * estimates, axis=-1)
        np.testing.assert_allclose(mean, divergences.reverse_kl(teacher, student), rtol=1e-10)


def test_the_estimate_is_exact_where_both_almost_agree():
    difference = np.array([1e-6, 1e-4, 9e-3, -9e-3, 1.1e-2])
    estimate = policy.reverse_kl_estimate(jnp.zeros(5), jnp.asarray(difference, jnp.float32))
    np.testing.assert_allclose(estimate, np.expm1(difference) - difference, rtol=2e-3)
    np.testing.assert_allclose(estimate[:4], difference[:4] ** 2 / 2, rtol=4e-3)


def test_step_wise_sums_of_f_distill_are_the_divergences_and_their_halves():
    student, teacher = pair()
    js = divergences.generalized_jsd(teacher, student, beta=0.5)
    halves = divergences.skewed_forward_kl(teacher, student, lam=0.5) / 2
    halves += divergences.skewed_reverse_kl(teacher, student, lam=0.5) / 2
    np.testing.assert_allclose(halves, js, rtol=1e-5)
