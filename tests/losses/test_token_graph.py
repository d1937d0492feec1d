"""Graphs of tokens: worked numbers, what they do not see, limits, ties, gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdjax import losses

few = settings(deadline=None, database=None, derandomize=True, max_examples=20)
seeds = st.integers(0, 10**6)
LINE = jnp.array([[0.0], [1.0], [3.0]])


@jax.jit
def graph(tokens):
    return losses.token_knn_adjacency(tokens, k=3)


@jax.jit
def local(student, teacher):
    return losses.token_local_loss(student, teacher, local_temperature=0.1)


def draw(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def rotation(seed, width):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(width, width)))[0].astype("f4")


def test_column_j_has_the_neighbours_of_j():
    expected = np.array([[0, 0.606531, 0], [0.606531, 0, 0.135335], [0, 0, 0]])
    adjacency = losses.token_knn_adjacency(LINE, k=1, sigma=1.0)
    np.testing.assert_allclose(adjacency, expected, rtol=1e-5)


def test_the_default_sigma_is_the_mean_squared_length_of_the_edges():
    adjacency = losses.token_knn_adjacency(LINE, k=1)  # squared lengths 1, 1, 4
    np.testing.assert_allclose(adjacency, losses.token_knn_adjacency(LINE, k=1, sigma=2.0))
    of_default, of_constant = (
        jax.grad(lambda x, sigma=sigma: losses.token_knn_adjacency(x, k=1, sigma=sigma).sum())(LINE)
        for sigma in (None, 2.0)
    )
    np.testing.assert_allclose(of_default, of_constant, rtol=1e-5)


def test_all_others_as_neighbours_give_the_full_kernel_with_a_zero_diagonal():
    tokens = draw(0, 5, 3)
    square = np.sum((tokens[:, None] - tokens[None]) ** 2, -1)
    expected = np.exp(-square / 3.0) * (1 - np.eye(5))
    adjacency = losses.token_knn_adjacency(tokens, k=4, sigma=1.5)
    np.testing.assert_allclose(adjacency, expected, rtol=1e-5)


def test_a_token_is_its_own_neighbour_only_on_request():
    adjacency = losses.token_knn_adjacency(LINE, k=2, sigma=1.0, self_edges=True)
    np.testing.assert_array_equal(jnp.diagonal(adjacency), jnp.ones(3))
    np.testing.assert_allclose(
        adjacency - jnp.eye(3), losses.token_knn_adjacency(LINE, k=1, sigma=1.0)
    )


def test_the_edges_may_be_those_of_another_graph():
    edges = losses.token_neighbors(draw(1, 6, 4), k=2)
    adjacency = losses.token_knn_adjacency(draw(2, 6, 3), k=2, neighbors=edges)
    for j, row in enumerate(edges.tolist()):
        assert sorted(np.flatnonzero(adjacency[:, j])) == sorted(row)


def test_ties_go_to_the_smaller_index_however_far_from_0():
    tokens = jnp.array([[1e4], [1e4 + 1], [1e4 + 1], [1e4 + 1], [1e4 + 3]])
    neighbors = losses.token_neighbors(tokens, k=2)
    assert neighbors.tolist() == [[1, 2], [2, 3], [1, 3], [1, 2], [1, 2]]


def test_duplicates_are_at_distance_0_without_a_gradient():
    tokens = jnp.array([[1.0, 2.0]] * 4)
    value, gradient = jax.value_and_grad(lambda x: losses.token_knn_adjacency(x, k=2).sum())(tokens)
    assert value == 8
    np.testing.assert_array_equal(gradient, jnp.zeros_like(tokens))


def test_no_gradient_passes_through_tokens_that_are_no_neighbours():
    column = jax.jacobian(lambda x: losses.token_knn_adjacency(x, k=1, sigma=1.0)[:, 0].sum())(LINE)
    assert column[2] == 0  # the nearest of token 0 is token 1
    np.testing.assert_allclose(column[:2, 0], [np.exp(-0.5), -np.exp(-0.5)], rtol=1e-5)


def test_fewer_tokens_than_neighbours_leave_edges_out():
    where = jnp.array([True, True, False, False])
    adjacency = losses.token_knn_adjacency(draw(0, 4, 2), k=3, sigma=1.0, where=where)
    alone = losses.token_knn_adjacency(draw(0, 4, 2)[:2], k=1, sigma=1.0)
    np.testing.assert_allclose(adjacency, jnp.zeros((4, 4)).at[:2, :2].set(alone), rtol=1e-6)
    same = losses.token_knn_adjacency(draw(0, 4, 2), k=3, where=where)
    np.testing.assert_allclose(same[:2, :2], losses.token_knn_adjacency(draw(0, 4, 2)[:2], k=1))


@few
@given(seeds)
def test_motions_and_a_common_factor_do_not_change_a_graph_and_an_order_permutes_it(seed):
    tokens, order = draw(seed, 7, 3), np.random.default_rng(seed).permutation(7)
    adjacency = graph(tokens)
    assert np.all((adjacency >= 0) & (adjacency <= 1))
    np.testing.assert_array_equal(np.sum(adjacency > 0, axis=0), np.full(7, 3))
    moved = 5 * tokens @ rotation(seed, 3) + 2
    np.testing.assert_allclose(graph(moved), adjacency, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(graph(tokens[order]), adjacency[order][:, order], rtol=1e-4)


@few
@given(seeds)
def test_a_local_loss_is_positive_and_0_for_equal_graphs(seed):
    student, teacher = graph(draw(seed, 7, 3)), graph(draw(seed + 1, 7, 3))
    assert np.all(local(student, teacher) >= -1e-6)
    np.testing.assert_allclose(local(student, student), jnp.zeros(7), atol=1e-6)


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_a_token_that_is_nobodys_neighbour_has_the_uniform_distribution(direction):
    zero, one = jnp.zeros((2, 2)), jnp.zeros((2, 2)).at[0].set(jnp.array([1.0, 0.0]))
    p = np.exp([1, 0]) / np.exp([1, 0]).sum()
    kl = np.sum(p * np.log(p / 0.5)), np.sum(0.5 * np.log(0.5 / p))
    loss = losses.token_local_loss(zero, one, direction=direction)
    np.testing.assert_allclose(loss, [kl[direction == "reverse"], 0], rtol=1e-5)


def test_at_temperature_1_the_local_loss_of_many_tokens_is_almost_nothing():
    student, teacher = (
        losses.token_knn_adjacency(draw(seed, 256, 8), k=8, sigma=8.0) for seed in (0, 1)
    )
    plain = losses.token_local_loss(student, teacher).mean()
    sharp = losses.token_local_loss(student, teacher, local_temperature=0.1).mean()
    assert plain < 0.03 < 1 < sharp


def test_the_global_loss_is_info_nce_of_unit_vectors():
    np.testing.assert_allclose(
        losses.info_nce(jnp.eye(2), jnp.eye(2), temperature=1.0), [0.313262] * 2, rtol=1e-5
    )
    distinct = losses.l2_normalize(jnp.asarray(draw(0, 5, 3)))
    assert losses.info_nce(distinct, distinct, temperature=1e-4).sum() < 1e-6
    assert losses.info_nce(distinct[:1], distinct[1:2], temperature=0.1).sum() == 0


@few
@given(seeds)
def test_a_context_sees_no_rotation_of_the_features(seed):
    student, teacher = jnp.asarray(draw(seed, 2, 4, 3)), jnp.asarray(draw(seed + 1, 2, 4, 5))
    loss = losses.inner_context_loss(student, teacher)
    assert np.all((loss >= 0) & (loss <= 0.5))
    turned = losses.inner_context_loss(student @ rotation(seed, 3), teacher @ rotation(seed, 5))
    np.testing.assert_allclose(turned, loss, rtol=1e-3, atol=1e-6)
    np.testing.assert_array_equal(losses.inner_context_loss(teacher, teacher), jnp.zeros(2))


def test_a_context_of_worked_numbers():
    loss = losses.inner_context_loss(jnp.zeros((1, 2, 1)), jnp.array([[[1.0], [0.0]]]))
    np.testing.assert_allclose(loss, [0.026694], rtol=1e-4)


def test_patches_are_in_the_order_of_rows():
    maps = jnp.arange(32.0).reshape(1, 4, 4, 2)
    tokens = losses.tokenize_feature_map(maps, patch=2)
    np.testing.assert_array_equal(tokens[0, 1], maps[0, :2, 2:].ravel())
    np.testing.assert_array_equal(losses.tokenize_feature_map(maps)[0], maps.reshape(16, 2))
