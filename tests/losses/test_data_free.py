"""Terms that stand in for data: bounds, limits, invariances."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdjax.losses import data_free, divergences

few = settings(deadline=None, database=None, derandomize=True, max_examples=20)
seeds = st.integers(0, 10**6)
balance = jax.jit(data_free.class_balance)
variation = jax.jit(data_free.image_tv_prior)
jsd = jax.jit(data_free.clamped_jsd)
statistics = jax.jit(data_free.bn_statistics)


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_balance_of_uniform_predictions_is_minus_log_of_the_classes():
    np.testing.assert_allclose(balance(jnp.zeros((3, 5))), -np.log(5), rtol=1e-6)
    each = 1e4 * np.eye(5, dtype=np.float32)
    np.testing.assert_allclose(balance(each), -np.log(5), rtol=1e-6)
    assert balance(each[[0, 0, 0]]) == 0
    assert balance(each, where=np.zeros(5, bool)) == 0


@few
@given(seeds)
def test_balance_is_bounded_and_blind_to_order(seed):
    logits = 3 * normal(seed, 6, 4)
    value = balance(logits)
    assert -np.log(4) - 1e-6 <= value <= 0
    permuted = logits[np.random.default_rng(seed).permutation(6)]
    np.testing.assert_allclose(balance(permuted), value, rtol=1e-5)
    # Not the mean of the examples' own entropies: sure and diverse is best.
    own = np.mean([balance(row[None]) for row in logits])
    assert value < own


def test_one_hot_is_the_cross_entropy_with_the_best_class():
    logits = normal(0, 4, 5)
    log_probs = jax.nn.log_softmax(logits)
    best = logits.argmax(axis=1)
    np.testing.assert_allclose(
        data_free.one_hot_loss(logits), -log_probs[np.arange(4), best], rtol=1e-6
    )
    np.testing.assert_allclose(data_free.one_hot_loss(jnp.zeros(5)), np.log(5), rtol=1e-6)


def test_stored_statistics_are_met_at_a_kink_without_a_gradient():
    inputs = jnp.asarray(normal(0, 8, 3, 3, 4))
    axes = (0, 1, 2)
    own = jnp.mean(inputs, axes), jnp.var(inputs, axes)
    value, gradient = jax.value_and_grad(data_free.bn_statistics)(inputs, *own)
    assert value < 1e-6
    assert np.all(np.isfinite(gradient))


@few
@given(seeds, st.floats(0.5, 4.0))
def test_statistics_scale_with_mean_and_variance_and_not_with_squares(seed, scale):
    inputs = normal(seed, 6, 3)
    zero, tiny = np.zeros(3, "f4"), np.full(3, 1e-12, "f4")
    centred = inputs - inputs.mean(axis=0)
    scaled = statistics(np.float32(scale) * centred, zero, tiny)
    np.testing.assert_allclose(scaled, scale**2 * statistics(centred, zero, tiny), rtol=1e-4)
    shift = np.float32(scale) * np.ones(3, "f4")
    moved = statistics(centred + shift, zero, centred.var(axis=0))
    np.testing.assert_allclose(moved, scale * np.sqrt(3), rtol=1e-3)


@few
@given(seeds, st.floats(-3.0, 3.0))
def test_variation_does_not_see_brightness_and_mirrors_but_contrast(seed, offset):
    images = normal(seed, 2, 4, 5, 3)
    value = variation(images)
    np.testing.assert_allclose(variation(images + np.float32(offset)), value, rtol=1e-4)
    for mirrored in (images[:, ::-1], images[:, :, ::-1]):
        np.testing.assert_allclose(variation(mirrored), value, rtol=1e-5)
    np.testing.assert_allclose(variation(3 * images), 3 * value, rtol=1e-5)
    assert np.all(variation(np.ones_like(images)) == 0)


@few
@given(seeds)
def test_clamped_divergence_is_symmetric_and_zero_at_equality(seed):
    p, q = 0.3 * normal(seed, 4, 5), 0.3 * normal(seed + 1, 4, 5)
    np.testing.assert_allclose(jsd(p, q), jsd(q, p), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(jsd(p, p), 0.0, atol=1e-7)
    assert np.all(jsd(p, q) > 0)


def test_clamped_divergence_is_the_mean_kl_from_the_mixture_where_nothing_is_clipped():
    p, q = 0.3 * normal(0, 4, 5), 0.3 * normal(1, 4, 5)
    log_mean = jnp.log((jax.nn.softmax(p) + jax.nn.softmax(q)) / 2)
    terms = [divergences.kl_divergence(log_mean, z) for z in (p, q)]
    np.testing.assert_allclose(jsd(p, q), sum(terms) / 2, rtol=1e-4)
    assert np.max(np.abs(jsd(p, q) - divergences.generalized_jsd(p, q))) > 1e-5


def test_a_clipped_class_has_no_gradient_of_its_own():
    p, q = jnp.array([9.0, 0.0, -9.0]), jnp.array([9.0, 1.0, -8.0])
    gradient = jax.grad(lambda p: data_free.clamped_jsd(p, q))(p)
    np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("kernel", [data_free.one_hot_loss, data_free.activation_loss])
def test_gradients_reach_the_synthetic_examples(kernel):
    assert np.any(jax.grad(lambda x: kernel(x).mean())(jnp.asarray(normal(0, 3, 4))) != 0)
