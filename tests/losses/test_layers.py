"""Losses between layers of transformers: worked numbers, maps, masks, limits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdjax.losses import layers

few = settings(deadline=None, database=None, derandomize=True, max_examples=20)
seeds = st.integers(0, 10**6)
relation = jax.jit(layers.minilm_relation, static_argnames="num_relation_heads")
mobilebert = jax.jit(layers.mobilebert_features)


def vectors(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_layer_maps_are_the_published_ones():
    assert layers.tinybert_attention_layers(4, 12) == ((0, 2), (1, 5), (2, 8), (3, 11))
    assert layers.tinybert_hidden_layers(4, 12) == ((0, 0), (1, 3), (2, 6), (3, 9), (4, 12))
    assert layers.patient_kd_layers(6, 12) == ((1, 2), (2, 4), (3, 6), (4, 8), (5, 10))
    last = layers.patient_kd_layers(6, 12, strategy="last")
    assert last == ((1, 7), (2, 8), (3, 9), (4, 10), (5, 11))


def test_a_masked_pair_has_no_gradient_and_divides_nonetheless():
    student, teacher = vectors(0, 2, 2, 3, 4), vectors(1, 2, 2, 3, 4)
    where = np.array([True, True, True, False])

    def loss(student, where):
        return layers.tinybert_attention(student, teacher, where=where).mean()

    value, gradient = jax.jit(jax.value_and_grad(loss))(student, where)
    assert np.all(gradient[..., 3] == 0)
    assert np.all(gradient[..., :3] != 0)
    np.testing.assert_allclose(value, 0.75 * np.mean((student - teacher)[..., :3] ** 2), rtol=1e-6)


def test_one_token_alone_has_no_relation():
    student, teacher = vectors(0, 2, 1, 4), vectors(1, 2, 1, 4)
    np.testing.assert_array_equal(relation(student, teacher, num_relation_heads=2), [0.0, 0.0])


@few
@given(seeds)
def test_relations_are_blind_to_a_rotation_within_heads_and_to_nothing_larger(seed):
    student, teacher = vectors(seed, 1, 3, 4), vectors(seed + 1, 1, 3, 6)
    turn = np.linalg.qr(vectors(seed + 2, 2, 2))[0].astype("f4")
    within = (student.reshape(1, 3, 2, 2) @ turn).reshape(1, 3, 4)
    across = student @ np.linalg.qr(vectors(seed + 2, 4, 4))[0].astype("f4")
    expected = relation(student, teacher, num_relation_heads=2)
    np.testing.assert_allclose(
        relation(within, teacher, num_relation_heads=2), expected, rtol=1e-3, atol=1e-6
    )
    assert abs(relation(across, teacher, num_relation_heads=2) - expected)[0] > 1e-6
    assert abs(relation(2 * student, teacher, num_relation_heads=2) - expected)[0] > 1e-6
    assert expected[0] > 0
    assert relation(student, student, num_relation_heads=2)[0] < 1e-7


def test_masked_tokens_are_as_if_cut_off():
    student, teacher = vectors(0, 2, 5, 4), vectors(1, 2, 5, 4)
    where = np.arange(5) < np.array([[3], [3]])
    masked = relation(student, teacher, num_relation_heads=2, where=where)
    cut = relation(student[:, :3], teacher[:, :3], num_relation_heads=2)
    np.testing.assert_allclose(masked, cut, rtol=1e-5)
    none = relation(student, teacher, num_relation_heads=2, where=np.zeros((2, 5), bool))
    np.testing.assert_array_equal(none, [0.0, 0.0])


def test_relations_of_a_vector_with_itself_are_its_attention():
    student, teacher = vectors(0, 2, 4, 4), vectors(1, 2, 4, 6)
    attention = layers.minilm_attention(student, student, teacher, teacher, num_heads=2)
    np.testing.assert_allclose(
        attention, relation(student, teacher, num_relation_heads=2), rtol=1e-6
    )


def test_mobilebert_attention_is_attention_transfer_of_one_head():
    queries, keys, others = vectors(0, 1, 3, 4), vectors(1, 1, 3, 4), vectors(2, 1, 3, 4)
    transfer = layers.minilm_attention(queries, keys, queries, others, num_heads=1)
    scores = [queries[0] @ x[0].T / 2 for x in (keys, others)]
    loss = layers.mobilebert_attention(*scores).mean()
    np.testing.assert_allclose(loss, transfer[0], rtol=1e-4)


@few
@given(seeds, st.floats(0.1, 10.0), st.floats(-5.0, 5.0))
def test_mobilebert_does_not_see_scale_and_offset_and_tinybert_does(seed, scale, offset):
    student, teacher = vectors(seed, 3, 8), vectors(seed + 1, 3, 8)
    moved = np.float32(scale) * student + np.float32(offset)
    np.testing.assert_allclose(
        mobilebert(moved, teacher), mobilebert(student, teacher), rtol=1e-2, atol=1e-3
    )
    if abs(scale - 1) + abs(offset) > 0.1:
        plain, of_moved = (layers.tinybert_hidden(x, teacher) for x in (student, moved))
        assert np.max(np.abs(of_moved - plain)) > 1e-3


def test_patient_distance_is_that_of_cosines():
    student, teacher = vectors(0, 3, 8), vectors(1, 3, 8)
    lengths = np.linalg.norm(student, axis=1) * np.linalg.norm(teacher, axis=1)
    cosines = np.sum(student * teacher, axis=1) / lengths
    loss = layers.patient_kd(student, teacher)
    np.testing.assert_allclose(loss, 2 - 2 * cosines, rtol=1e-5)
    np.testing.assert_allclose(layers.patient_kd(7 * student, 0.1 * teacher), loss, rtol=1e-5)


@pytest.mark.parametrize(
    "kernel", [layers.tinybert_hidden, layers.mobilebert_features, layers.patient_kd]
)
def test_equal_states_have_no_loss_nor_gradient(kernel):
    states = jnp.asarray(vectors(0, 3, 4)).at[0].set(0.0)
    value, gradient = jax.value_and_grad(lambda s: kernel(s, states).sum())(states)
    assert value == 0
    assert np.all(np.abs(gradient) < 1e-6)
