"""Hierarchical context and SemCKD: weights of levels and of pairs of layers."""

import beartype
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import jaxtyped

from kdjax.losses import feature_levels, features, pooling

few = settings(deadline=None, database=None, derandomize=True, max_examples=20)
seeds = st.integers(0, 2**32 - 1)

hcl = jax.jit(feature_levels.hcl)
semckd = jax.jit(feature_levels.semckd)


def pair(seed, shape=(2, 6, 5, 3)):
    generator = np.random.default_rng(seed)
    return tuple(generator.normal(size=shape).astype(np.float32) for _ in "st")


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (3, 1), (4, 4), (5, 2), (8, 8)])
def test_a_constant_offset_costs_its_square_at_any_size(size):
    teacher, _ = pair(0, (2, *size, 3))
    np.testing.assert_allclose(hcl(teacher + np.float32(0.5), teacher), 0.25, rtol=1e-5)
    assert np.all(hcl(teacher, teacher) == 0)


def test_context_weighs_levels_by_halves_in_the_order_of_those_used():
    # Checkers of side 1 vanish under any pooling by 2: only the full map is left.
    rows, columns = np.indices((8, 8))
    for side, weight in ((1, 1), (2, 1 + 1 / 2), (4, 1 + 1 / 2 + 1 / 4)):
        checkers = np.where((rows // side + columns // side) % 2, 1.0, -1.0)
        value = hcl(checkers.reshape(1, 8, 8, 1), jnp.zeros((1, 8, 8, 1)))
        np.testing.assert_allclose(value, weight / (1 + 1 / 2 + 1 / 4 + 1 / 8), rtol=1e-6)
    checkers = np.where((rows + columns) % 2, 1.0, -1.0)[:4, :4].reshape(1, 4, 4, 1)
    np.testing.assert_allclose(hcl(checkers, 0 * checkers), 1 / (1 + 1 / 2 + 1 / 4), rtol=1e-6)


def test_a_side_that_is_short_already_is_not_pooled():
    student, teacher = pair(0, (2, 8, 3, 2))
    sizes, weights = [(8, 3), (4, 3), (2, 2), (1, 1)], [1, 1 / 2, 1 / 4, 1 / 8]
    pooled = [pooling.adaptive_average_pool(student - teacher, size) for size in sizes]
    expected = sum(w * np.mean(x**2, axis=(1, 2, 3)) for w, x in zip(weights, pooled)) / 1.875
    np.testing.assert_allclose(hcl(student, teacher), expected, rtol=1e-5)
    turned = (np.swapaxes(x, 1, 2) for x in (student, teacher))
    np.testing.assert_allclose(hcl(*turned), expected, rtol=1e-5)


@few
@given(seeds)
def test_context_without_pooling_is_the_hint_and_with_it_never_more(seed):
    student, teacher = pair(seed)
    hint = features.hint(student, teacher)
    alone = feature_levels.hcl(student, teacher, pooled_sizes=())
    np.testing.assert_allclose(alone, hint, rtol=1e-5)
    assert np.all(hcl(student, teacher) <= hint * 1.00001)
    assert np.all(hcl(student, teacher) >= 0)


@few
@given(seeds)
def test_context_knows_places_but_not_the_basis_of_channels(seed):
    student, teacher = pair(seed)
    turn = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))[0].astype(np.float32)
    expected = hcl(student, teacher)
    np.testing.assert_allclose(hcl(student @ turn, teacher @ turn), expected, rtol=1e-4)
    order = [0, 5, 2, 3, 4, 1]
    assert np.all(np.abs(hcl(student[:, order], teacher[:, order]) - expected) > 1e-6)


def layers(seed):
    """Values of 2 student layers against 3 teacher layers of their own shapes."""
    shapes = [[(4, 2, 2, 3), (4, 1, 2), (4, 5)], [(4, 1, 1, 3), (4, 1, 2), (4, 6)]]
    drawn = [
        [pair(seed + 7 * i + j, shape) for j, shape in enumerate(row)]
        for i, row in enumerate(shapes)
    ]
    return tuple([[pairs[side] for pairs in row] for row in drawn] for side in (0, 1))


def test_attention_of_one_layer_alone_is_the_hint_of_that_pair():
    values, targets = layers(0)
    for j in range(3):
        attention = np.zeros((4, 2, 3), np.float32)
        attention[:, 0, j] = 1
        expected = features.hint(values[0][j], targets[0][j]) / 2
        np.testing.assert_allclose(semckd(values, targets, attention), expected, rtol=1e-5)


@few
@given(seeds)
def test_semckd_is_linear_in_the_attention_and_zero_for_equal_values(seed):
    values, targets = layers(3)
    generator = np.random.default_rng(seed)
    first, second = (generator.random((4, 2, 3)).astype(np.float32) for _ in range(2))
    np.testing.assert_allclose(
        semckd(values, targets, first + second),
        semckd(values, targets, first) + semckd(values, targets, second),
        rtol=1e-5,
    )
    assert np.all(semckd(targets, targets, first) == 0)


def test_semckd_teaches_values_and_attention_but_no_target():
    values, targets = layers(0)
    attention = np.full((4, 2, 3), 1 / 3, np.float32)
    gradients = jax.grad(lambda *a: semckd(*a).mean(), argnums=(0, 1, 2))(
        values, targets, attention
    )
    of_values, of_targets, of_attention = gradients
    assert all(np.any(leaf != 0) for leaf in jax.tree.leaves(of_values))
    assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(of_targets))
    distances = [[features.hint(v, t) for v, t in zip(*rows)] for rows in zip(values, targets)]
    expected = np.moveaxis(np.array(distances), -1, 0) / 8
    np.testing.assert_allclose(of_attention, expected, rtol=1e-5)


def test_semckd_takes_lists_as_annotated_and_in_half_precision():
    values, targets = layers(0)
    checked = jaxtyped(typechecker=beartype.beartype)(feature_levels.semckd)
    half = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), (values, targets))
    loss = checked(*half, jnp.ones((4, 2, 3), jnp.bfloat16))
    assert loss.dtype == jnp.float32
    assert loss.shape == (4,)
