"""Networks that learn together: limits, who teaches whom, KDCL's teachers."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdjax.losses import logits, mutual

few = settings(deadline=None, database=None, derandomize=True, max_examples=20)
seeds = st.integers(0, 10**6)
linear = jax.jit(mutual.kdcl_linear)


def peers(seed=0, number=3, scale=2.0):
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 5, 6)
    return generator.normal(0, scale, (6, number, 5)).astype(np.float32), labels


def hard(teacher, labels):
    return np.asarray(logits.cross_entropy(jnp.asarray(teacher), labels))


def test_mutual_learning_of_equal_peers_is_cross_entropy():
    alike, labels = peers(number=1)
    loss = mutual.dml(np.repeat(alike, 3, axis=1), labels)
    expected = np.repeat(hard(alike[:, 0], labels)[:, None], 3, axis=1)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)


def test_mutual_learning_is_the_definition_with_the_others_fixed():
    together, labels = peers()

    def alone(own, k):
        others = [logits.kd(own, together[:, l], temperature=2.0) for l in range(3) if l != k]
        return logits.cross_entropy(own, labels) + sum(others) / 2

    def of_sum(together):
        return mutual.dml(together, labels, temperature=2.0).sum()

    gradient = jax.jit(jax.grad(of_sum))(together)
    values = mutual.dml(together, labels, temperature=2.0)
    for k in range(3):
        np.testing.assert_allclose(values[:, k], alone(together[:, k], k), rtol=1e-5)
        own = jax.grad(lambda z, k=k: alone(z, k).sum())(together[:, k])
        np.testing.assert_allclose(gradient[:, k], own, rtol=1e-4, atol=1e-6)


def test_only_the_ensemble_s_own_cross_entropy_trains_the_gate():
    branches, labels = peers()
    gates = np.random.default_rng(1).normal(size=(6, 3)).astype(np.float32)

    def ensemble(gates):
        mixed = jnp.einsum("bkc,bk->bc", branches, jax.nn.softmax(gates))
        return logits.cross_entropy(mixed, labels).sum()

    gradient = jax.grad(lambda g: mutual.one_loss(branches, g, labels).sum())(gates)
    np.testing.assert_allclose(gradient, jax.grad(ensemble)(gates), rtol=1e-4, atol=1e-6)


def test_a_gate_that_picks_one_branch_distils_from_it():
    branches, labels = peers()
    gates = np.tile(np.array([100.0, 0.0, 0.0], "f4"), (6, 1))
    soft = [logits.kd(branches[:, k], branches[:, 0], temperature=3.0) for k in range(3)]
    cross_entropies = [hard(branches[:, k], labels) for k in (0, 0, 1, 2)]
    np.testing.assert_allclose(
        mutual.one_loss(branches, gates, labels), sum(soft) + sum(cross_entropies), rtol=1e-5
    )


def test_rows_without_a_label_are_nothing():
    together, labels = peers()
    labels[2] = -100
    spoilt = together.copy()
    spoilt[2] = np.nan
    for kernel in (mutual.dml, lambda z, y: mutual.one_loss(z, z[..., 0], y)):
        gradient = jax.grad(lambda z, kernel=kernel: kernel(z, labels).sum())
        assert np.all(kernel(spoilt, labels)[2] == 0)
        np.testing.assert_array_equal(gradient(spoilt), gradient(together))


@few
@given(seeds)
def test_linear_teacher_is_at_least_as_good_as_any_other_mixture(seed):
    together, labels = peers(seed)
    least = hard(linear(together, labels), labels)
    grid = [w for w in itertools.product(range(9), repeat=3) if sum(w) == 8]
    mixtures = [hard(np.einsum("bkc,k->bc", together, np.array(w) / 8), labels) for w in grid]
    assert np.all(least <= np.min(mixtures, axis=0) + 1e-5)
    assert np.all(least <= hard(mutual.kdcl_naive(together, labels), labels) + 1e-5)


@few
@given(seeds)
def test_linear_teacher_satisfies_the_optimality_conditions(seed):
    together, labels = peers(seed, number=4)
    teacher = linear(together, labels)
    margins = together - np.take_along_axis(together, labels[:, None, None], axis=-1)
    slopes = np.einsum("bkc,bc->bk", margins, jax.nn.softmax(teacher))
    target = np.take_along_axis(np.asarray(teacher), labels[:, None], axis=-1)
    value = np.einsum("bc,bc->b", jax.nn.softmax(teacher), teacher - target)
    # No peer has a smaller slope than the mixture itself.
    assert np.all(value - slopes.min(axis=1) < 1e-3)


def test_two_steps_need_no_more_for_two_peers():
    together, labels = peers(number=2)
    one = mutual.kdcl_linear(together, labels, steps=1)
    np.testing.assert_allclose(one, linear(together, labels), rtol=1e-4, atol=1e-5)


@few
@given(seeds)
def test_min_logit_is_surer_of_the_target_than_any_peer(seed):
    together, labels = peers(seed)
    teacher = mutual.kdcl_min_logit(together, labels)
    of_peers = np.stack([hard(together[:, k], labels) for k in range(3)])
    assert np.all(hard(teacher, labels) <= of_peers.min(axis=0) + 1e-6)
    np.testing.assert_array_equal(np.take_along_axis(np.asarray(teacher), labels[:, None], 1), 0)


def test_general_weights_are_the_least_error_of_any_with_sum_one():
    together, labels = peers()
    weights = np.asarray(mutual.kdcl_general_weights(together, labels))
    errors = np.asarray(jax.nn.softmax(together)) - np.eye(5)[labels][:, None]

    def error(w):
        return np.sum(np.einsum("bkc,k->bc", errors, w) ** 2)

    np.testing.assert_allclose(weights.sum(), 1.0, rtol=1e-5)
    for seed in range(20):
        step = np.random.default_rng(seed).normal(0, 0.1, 3)
        assert error(weights) <= error(weights + step - step.mean()) + 1e-6


@pytest.mark.parametrize("kernel", [mutual.kdcl_linear, mutual.kdcl_min_logit, mutual.kdcl_naive])
def test_padding_of_the_vocabulary_stays_impossible(kernel):
    together, labels = peers()
    labels = np.minimum(labels, 3)
    padded = together.copy()
    padded[..., 4] = -np.inf
    teacher = kernel(padded, labels)
    assert np.all(teacher[:, 4] == -np.inf)
    np.testing.assert_allclose(teacher[:, :4], kernel(together[..., :4], labels), rtol=1e-4)
