"""Vector and residual quantisation: worked numbers, gradients, balance, moving means."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from kdjax.losses import residual_quantization as rq

SETTINGS = settings(deadline=None, database=None, derandomize=True, max_examples=20)


def draws(seed, *shapes):
    generator = np.random.default_rng(seed)
    return [jnp.asarray(generator.normal(size=shape), jnp.float32) for shape in shapes]


def test_worked_two_levels():
    codebooks = [jnp.array([[0.0], [2.0]]), jnp.array([[0.0], [1.0]])]
    quantized = rq.residual_quantize(jnp.array([[3.0]]), codebooks)
    np.testing.assert_array_equal(quantized.codes, [[1, 1]])
    np.testing.assert_array_equal(quantized.vectors, [[3.0]])
    np.testing.assert_array_equal(quantized.losses, [[1.25, 0.0]])
    assert quantized.losses.mean() == 0.625


def test_codes_themselves_cost_nothing():
    (codebook,) = draws(0, (5, 3))
    quantized = rq.vector_quantize(codebook, codebook)
    np.testing.assert_array_equal(quantized.codes, np.arange(5))
    np.testing.assert_array_equal(quantized.losses, 0.0)


@given(st.integers(0, 100))
@SETTINGS
def test_the_nearest_code_is_chosen_and_distances_are_squares(seed):
    vectors, codebook = draws(seed, (6, 3), (5, 3))
    direct = np.sum((np.asarray(vectors)[:, None] - np.asarray(codebook)) ** 2, -1)
    np.testing.assert_allclose(rq.codebook_distances(vectors, codebook), direct, atol=1e-5)
    codes = rq.vector_quantize(vectors, codebook).codes
    np.testing.assert_array_equal(codes, direct.argmin(-1))


@given(st.integers(0, 100))
@SETTINGS
def test_permuting_codes_permutes_names_only(seed):
    vectors, codebook = draws(seed, (6, 3), (5, 3))
    order = np.random.default_rng(seed).permutation(5)
    one, other = (rq.vector_quantize(vectors, c) for c in (codebook, codebook[order]))
    np.testing.assert_array_equal(order[other.codes], one.codes)
    np.testing.assert_array_equal(other.losses, one.losses)


def test_the_order_of_levels_matters():
    vectors, *codebooks = draws(3, (6, 3), (5, 3), (5, 3))
    forward = rq.residual_quantize(vectors, codebooks).vectors
    backward = rq.residual_quantize(vectors, codebooks[::-1]).vectors
    assert np.any(np.abs(forward - backward) > 0.1)


def test_gradients_are_the_printed_ones():
    vectors, codebook = draws(1, (4, 3), (5, 3))
    quantized = rq.vector_quantize(vectors, codebook)
    chosen = codebook[quantized.codes]

    def loss(vectors, codebook):
        return rq.vector_quantize(vectors, codebook, commitment=0.5).losses.sum()

    of_vectors, of_codebook = jax.grad(loss, argnums=(0, 1))(vectors, codebook)
    np.testing.assert_allclose(of_vectors, 0.5 * 2 * (vectors - chosen) / 3, rtol=1e-5, atol=1e-7)
    expected = jnp.zeros_like(codebook).at[quantized.codes].add(2 * (chosen - vectors) / 3)
    np.testing.assert_allclose(of_codebook, expected, rtol=1e-5, atol=1e-7)
    straight = jax.grad(lambda x: (rq.vector_quantize(x, codebook).vectors * vectors).sum())
    np.testing.assert_array_equal(straight(vectors), vectors)


def test_deeper_commitments_do_not_reach_the_vectors_but_their_codebooks_learn():
    vectors, *codebooks = draws(2, (4, 3), (5, 3), (5, 3))

    def deep(vectors, codebooks):
        return rq.residual_quantize(vectors, codebooks).losses[:, 1].sum()

    of_vectors, (first, second) = jax.grad(deep, argnums=(0, 1))(vectors, codebooks)
    np.testing.assert_array_equal(of_vectors, 0.0)
    np.testing.assert_array_equal(first, 0.0)
    assert np.any(second != 0)
    total = jax.grad(lambda x: rq.residual_quantize(x, codebooks).vectors.sum())(vectors)
    np.testing.assert_array_equal(total, 1.0)


def test_sinkhorn_uses_every_code_alike():
    distances = jnp.abs(draws(4, (12, 4))[0]) + jnp.array([0.0, 1.0, 2.0, 3.0])
    assert np.bincount(np.argmin(distances, 1), minlength=4)[3] == 0
    balanced = rq.sinkhorn_assignment(distances, epsilon=0.2, iterations=200)
    np.testing.assert_allclose(balanced.sum(0), 3.0, rtol=1e-5)
    np.testing.assert_allclose(balanced.sum(1), 1.0, rtol=1e-3)
    assert np.all(np.bincount(np.argmax(balanced, 1), minlength=4) > 0)
    alone = rq.sinkhorn_assignment(distances, epsilon=0.2, iterations=0)
    assert np.any(np.abs(alone.sum(0) - 3.0) > 0.5)


def test_sinkhorn_survives_an_epsilon_at_which_exp_underflows():
    distances = jnp.abs(draws(5, (8, 4))[0])
    balanced = rq.sinkhorn_assignment(distances, epsilon=1e-4)
    assert np.all(np.isfinite(balanced))
    np.testing.assert_allclose(balanced.sum(0), 2.0, rtol=1e-4)
    equal = rq.sinkhorn_assignment(jnp.ones((4, 2)))
    np.testing.assert_allclose(equal, 0.5, rtol=1e-5)


def test_sinkhorn_does_not_see_an_offset_or_a_scale():
    distances = jnp.abs(draws(6, (8, 4))[0])
    one = rq.sinkhorn_assignment(distances)
    np.testing.assert_allclose(rq.sinkhorn_assignment(7 * distances + 2), one, atol=2e-3)
    assert np.any(np.abs(rq.sinkhorn_assignment(distances**2) - one) > 0.01)


def test_a_balanced_level_spreads_codes_over_all_axes_of_the_batch():
    vectors = jnp.concatenate([jnp.zeros((7, 1)), jnp.ones((1, 1))]).reshape(2, 4, 1)
    codebooks = [jnp.array([[0.0], [5.0]])]
    near = rq.residual_quantize(vectors, codebooks)
    assert np.all(near.codes == 0)
    balanced = rq.residual_quantize(vectors, codebooks, sinkhorn_epsilons=[0.05])
    assert balanced.codes.shape == (2, 4, 1)
    assert balanced.codes[1, 3, 0] == 1


def test_error_falls_with_the_levels():
    (vectors,) = draws(7, (64, 4))
    codebooks = [0.7**level * vectors[8 * level : 8 * level + 8] for level in range(4)]
    # A code at 0 lets a level pass.
    codebooks = [c.at[0].set(0.0) for c in codebooks]
    errors = [
        float(((rq.residual_quantize(vectors, codebooks[:n]).vectors - vectors) ** 2).mean())
        for n in (1, 2, 4)
    ]
    assert errors[0] > errors[1] > errors[2]


def test_moving_means_are_the_means_of_clusters_at_decay_0():
    vectors, codebook = draws(8, (9, 2), (3, 2))
    codes = jnp.asarray([0, 0, 0, 1, 1, 1, 2, 2, 2])
    ones = jnp.ones(3)
    means, counts, sums = rq.update_codebook(ones, codebook, vectors, codes, decay=0.0, epsilon=0.0)
    np.testing.assert_allclose(means, vectors.reshape(3, 3, 2).mean(1), rtol=1e-5)
    np.testing.assert_array_equal(counts, 3.0)
    np.testing.assert_allclose(sums, vectors.reshape(3, 3, 2).sum(1), rtol=1e-5)


def test_an_unused_code_stays_put():
    vectors, codebook = draws(9, (4, 2), (3, 2))
    codes = jnp.array([0, 0, 1, 1])
    counts, sums = jnp.ones(3), codebook
    for _ in range(5):
        moved, counts, sums = rq.update_codebook(
            counts, sums, vectors, codes, decay=0.5, epsilon=0.0
        )
    np.testing.assert_allclose(moved[2], codebook[2], rtol=1e-5)
    assert np.any(np.abs(moved[0] - codebook[0]) > 1e-3)
