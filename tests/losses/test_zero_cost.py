"""Scores of architectures: worked numbers, limits, invariances, degenerate networks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdjax.losses import student_search, zero_cost

few = settings(deadline=None, database=None, derandomize=True, max_examples=20)
seeds = st.integers(0, 10**6)
semantic = jax.jit(student_search.semantic_similarity)
relation = jax.jit(student_search.relation_similarity)
channels = jax.jit(student_search.channel_correlation)
nwot = jax.jit(zero_cost.nwot)
jacov = jax.jit(zero_cost.jacobian_covariance)


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def rotation(seed, width):
    return np.linalg.qr(normal(seed, width, width))[0].astype("f4")


@pytest.mark.parametrize(
    ("student", "expected"),
    [([4.0, 3.0], -0.08), ([4.0, -3.0], -2.0), ([-3.0, -4.0], 0.0), ([3.0, 4.0], 0.0)],
)
def test_worked_semantic_similarities(student, expected):
    score = semantic(np.array([student], "f4"), np.array([[3.0, 4.0]], "f4"))
    np.testing.assert_allclose(score, [expected], atol=1e-6)


@few
@given(seeds, st.integers(0, 3))
def test_closed_form_is_the_matrix_of_channels(seed, zeros):
    student, teacher = normal(seed, 3, 5), normal(seed + 1, 3, 5)
    student[1, :zeros] = 0

    def correlations(gradients):
        gram = gradients[:, :, None] * gradients[:, None, :]
        length = np.linalg.norm(gram, axis=-1, keepdims=True)
        return np.where(length == 0, 0.0, gram / np.where(length == 0, 1.0, length))

    gap = correlations(student) - correlations(teacher)
    expected = -np.sum(gap**2, axis=(1, 2)) / 5
    np.testing.assert_allclose(semantic(student, teacher), expected, rtol=1e-5, atol=1e-6)


def test_a_class_without_gradient_counts_as_zero():
    gradients = normal(0, 2, 4)
    absent = gradients * np.array([[0.0], [1.0]], "f4")
    np.testing.assert_allclose(semantic(absent, gradients), [-1.0, 0.0], atol=1e-6)
    np.testing.assert_allclose(semantic(absent, absent), [0.0, 0.0], atol=1e-6)


@few
@given(seeds)
def test_equal_networks_score_zero_and_others_less(seed):
    maps, others = normal(seed, 4, 2, 2, 3), normal(seed + 1, 4, 2, 2, 3)
    np.testing.assert_allclose(relation(maps, maps), 0.0, atol=1e-10)
    np.testing.assert_allclose(channels(maps, maps), 0.0, atol=1e-10)
    np.testing.assert_allclose(relation(5 * maps, others), relation(maps, others), rtol=1e-3)
    assert np.all(relation(maps, others) < 0)
    assert np.all(channels(maps, others) > 0)


@few
@given(seeds)
def test_channel_correlations_see_channels_and_not_positions(seed):
    maps, others = normal(seed, 2, 2, 3, 4), normal(seed + 1, 2, 2, 3, 4)
    expected = channels(maps, others)
    positions = maps.reshape(2, 6, 4)[:, np.random.default_rng(seed).permutation(6)]
    np.testing.assert_allclose(channels(positions.reshape(maps.shape), others), expected, rtol=1e-4)
    mixed = maps @ rotation(seed, 4)
    assert np.max(np.abs(channels(mixed, others) - expected)) > 1e-4


def test_pools_are_combined_by_rank_unless_asked_otherwise():
    relation_scores, semantic_scores = jnp.array([-0.03, -0.01, -0.02]), jnp.array([-1.0, -3, -1])
    ranks = student_search.diswot(relation_scores, semantic_scores)
    np.testing.assert_allclose(ranks, [1 + 2.5, 3 + 1, 2 + 2.5])
    total = student_search.diswot(relation_scores, semantic_scores, combine="sum")
    np.testing.assert_allclose(total, [-1.03, -3.01, -1.02], rtol=1e-6)
    constant = student_search.diswot(jnp.ones(3), semantic_scores, combine="zscore")
    np.testing.assert_allclose(constant, np.array([1, -2, 1]) / np.sqrt(2), rtol=1e-5)


def test_perfect_and_reversed_predictions():
    true = jnp.arange(8.0)
    assert student_search.precision_at_top_k(true, 3 * true, k=3) == 1
    assert student_search.best_rank_at_k(true, 3 * true, k=3) == 1
    assert student_search.rank_difference(true, 3 * true) == 0
    assert student_search.precision_at_top_k(true, -true, k=3) == 0
    assert student_search.best_rank_at_k(true, -true, k=3) == 6
    assert student_search.rank_difference(true, -true) == 2


def test_worked_patterns_of_active_units():
    codes = np.array([[1.0, 1, -1, -1], [1, -1, 1, -1]], "f4")
    np.testing.assert_allclose(nwot(codes), np.log(12), rtol=1e-6)
    assert nwot(codes[[0, 0]]) == -np.inf
    assert nwot(-codes) == nwot(codes)


@few
@given(seeds)
def test_patterns_are_summed_over_layers_and_do_not_see_scale(seed):
    first, second = normal(seed, 4, 6), normal(seed + 1, 4, 9)
    kernel = np.zeros((4, 4))
    for layer in (first, second):
        codes = (layer > 0).astype(float)
        kernel += codes @ codes.T + (1 - codes) @ (1 - codes).T
    both = np.concatenate([3 * first, second], axis=1)
    sign, expected = np.linalg.slogdet(kernel)
    if sign > 0 and np.linalg.matrix_rank(kernel) == 4:
        np.testing.assert_allclose(nwot(both), expected, rtol=1e-4)
    else:
        assert nwot(both) == -np.inf


def test_synflow_of_linear_layers_is_their_number_times_the_flow():
    weights = [normal(k, 4, 4) for k in range(3)]

    def outputs(weights):
        flow = jnp.ones((1, 4))
        for weight in weights:
            flow = jnp.maximum(flow @ weight, 0)
        return flow

    scores = zero_cost.synflow(outputs, weights)
    flow = np.sum(outputs([np.abs(w) for w in weights]))
    np.testing.assert_allclose(scores, [flow] * 3, rtol=1e-5)


def test_plain_is_at_most_snip_and_norms_scale_with_the_loss():
    parameters = {"a": normal(0, 3, 2), "b": [normal(1, 4)]}
    gradients = {"a": normal(2, 3, 2), "b": [normal(3, 4)]}
    snip = zero_cost.snip(parameters, gradients)
    plain = zero_cost.plain_saliency(parameters, gradients)
    jax.tree.map(lambda a, b: np.testing.assert_array_less(np.abs(b), a), snip, plain)
    alike = jax.tree.map(np.abs, parameters), jax.tree.map(np.abs, gradients)
    jax.tree.map(np.testing.assert_allclose, zero_cost.plain_saliency(*alike), snip)
    twice = zero_cost.grad_norm(jax.tree.map(lambda g: 2 * g, gradients))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, 2 * b), twice, zero_cost.grad_norm(gradients)
    )
    with pytest.raises(ValueError, match="gradients must be a tree"):
        zero_cost.snip(parameters, {"a": gradients["a"]})


def test_grasp_of_a_quadratic_is_the_product_with_the_square_of_its_matrix():
    matrix = normal(0, 3, 3)
    matrix = matrix + matrix.T
    weights = normal(1, 3)
    score = zero_cost.grasp(lambda w: w @ matrix @ w / 2, weights)
    np.testing.assert_allclose(score, -weights @ matrix @ matrix @ weights, rtol=1e-4)


def test_fisher_sums_positions_before_it_squares():
    activations, gradients = jnp.ones((1, 2, 2, 1)), jnp.array([1.0, -1, 1, -1]).reshape(1, 2, 2, 1)
    assert zero_cost.fisher(activations, gradients, weights_per_channel=1) == 0
    assert zero_cost.fisher(activations, jnp.abs(gradients), weights_per_channel=3) == 3 * 16 / 2


@few
@given(seeds, st.floats(0.1, 10.0), st.floats(-2.0, 2.0))
def test_correlations_of_rows_do_not_see_their_scale_and_offset(seed, scale, offset):
    jacobian, labels = normal(seed, 4, 12), np.array([0, 1, 0, 1])
    moved = jacobian * np.float32(scale) + np.float32(offset)
    np.testing.assert_allclose(jacov(moved), jacov(jacobian), rtol=1e-2)
    epe = [zero_cost.epe_nas(x, labels, num_classes=2) for x in (moved, jacobian)]
    np.testing.assert_allclose(*epe, rtol=1e-2)
    assert jacov(jacobian) <= -4
    alike = jacobian.copy()
    alike[1] = alike[0] + 0.1 * alike[1]
    assert jacov(alike) < jacov(jacobian)


def test_a_dead_example_makes_the_score_nan_and_not_good():
    jacobian = normal(0, 4, 12)
    jacobian[2] = 0
    assert np.isnan(jacov(jacobian))
    labels = np.array([0, 1, 0, 1])
    assert np.isnan(zero_cost.epe_nas(jacobian, labels, num_classes=2))
    labels[2] = -100
    assert np.isfinite(zero_cost.epe_nas(jacobian, labels, num_classes=2))


def test_epe_of_more_than_a_hundred_classes_is_a_mean_of_gaps():
    jacobian, labels = normal(0, 5, 8), np.array([3, 3, 110, 110, 110])
    logs = np.log(np.abs(np.corrcoef(jacobian)) + 1e-5)
    sums = logs[:2, :2].sum() / 2, logs[2:, 2:].sum() / 3
    expected = abs(sums[0] - sums[1])
    score = zero_cost.epe_nas(jacobian, labels, num_classes=111)
    np.testing.assert_allclose(score, expected, rtol=1e-3)
    few_classes = zero_cost.epe_nas(jacobian, labels % 7, num_classes=7)
    np.testing.assert_allclose(few_classes, abs(2 * sums[0]) + abs(3 * sums[1]), rtol=1e-3)


def test_zen_undoes_the_scaling_of_normalisations():
    outputs, moved = normal(0, 3, 2, 4), normal(1, 3, 2, 4)
    plain = zero_cost.zen(outputs, moved, [])
    divided = zero_cost.zen(outputs / 4, moved / 4, {"bn": jnp.full(3, 16.0)})
    np.testing.assert_allclose(divided, plain, rtol=1e-5)
    assert zero_cost.zen(outputs, outputs, []) == -np.inf
