"""A memory of embeddings: order, overwriting, sampling; relations to it; a critic's losses."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from kdjax.losses import dense_memory

cheap = settings(deadline=None, database=None, derandomize=True, max_examples=20)
ENQUEUE = jax.jit(dense_memory.enqueue_by_class)


def angles(*degrees):
    """Unit vectors, told apart by their angle."""
    radians = np.deg2rad(degrees)
    return np.stack([np.cos(radians), np.sin(radians)], axis=-1).astype(np.float32)


@cheap
@given(st.lists(st.lists(st.integers(-1, 2), min_size=5, max_size=5), min_size=1, max_size=4))
def test_queues_hold_the_last_of_each_class(batches):
    memory = dense_memory.empty_memory(2, num_slots=3, num_features=2)
    written, count = {0: [], 1: []}, 0
    for labels in batches:
        degrees = np.arange(count, count + 5)
        count += 5
        memory = ENQUEUE(memory, angles(*degrees), jnp.array(labels))
        for degree, label in zip(degrees, labels):
            if label in written:
                written[label].append(degree)
    for label, degrees in written.items():
        assert memory.filled[label] == min(len(degrees), 3)
        assert memory.pointer[label] == len(degrees) % 3
        for place in range(max(len(degrees) - 3, 0), len(degrees)):
            np.testing.assert_allclose(
                memory.buffer[label, place % 3], angles(degrees[place])[0], rtol=1e-6
            )


def test_embeddings_are_stored_with_length_1_and_zeros_and_masked_ones_not_at_all():
    memory = dense_memory.empty_memory(1, num_slots=4, num_features=2)
    embeddings = jnp.array([[3.0, 4.0], [0.0, 0.0], [jnp.nan, 1.0]])
    memory = ENQUEUE(memory, embeddings, jnp.zeros(3, int), where=jnp.array([True, True, False]))
    assert memory.filled.tolist() == [1]
    np.testing.assert_allclose(memory.buffer[0, 0], [0.6, 0.8], rtol=1e-6)
    np.testing.assert_array_equal(memory.buffer[0, 1:], 0)


def test_a_sample_has_no_item_twice_and_none_that_was_not_written():
    memory = dense_memory.empty_memory(2, num_slots=6, num_features=2)
    memory = ENQUEUE(memory, angles(0, 10, 20, 30, 40), jnp.array([1, 1, 1, 1, 0]))
    sample = jax.jit(lambda key: dense_memory.sample_memory(key, memory, slots_per_class=3))
    seen = set()
    for key in jax.random.split(jax.random.key(0), 20):
        embeddings, labels, valid = sample(key)
        assert labels.tolist() == [0, 0, 0, 1, 1, 1]
        assert valid.tolist() == [True, False, False, True, True, True]
        degrees = np.rint(np.rad2deg(np.arctan2(embeddings[:, 1], embeddings[:, 0])))[valid]
        assert degrees[0] == 40
        assert len(set(degrees[1:])) == 3
        seen |= set(degrees[1:])
    assert seen == {0, 10, 20, 30}


def test_regions_are_means_of_classes_and_pixels_are_drawn_from_them():
    features = angles(0, 10, 20, 90).reshape(1, 2, 2, 2) * np.array([1.0, 2.0]).reshape(1, 2, 1, 1)
    labels = np.array([[[0, 0], [255, 2]]])
    regions = dense_memory.region_embeddings(features, labels, num_classes=3)
    assert regions.valid.tolist() == [True, False, True]
    np.testing.assert_allclose(regions.embeddings, [*angles(5), [0, 0], *angles(90)], atol=1e-6)
    pixels = dense_memory.pixel_embeddings(
        jax.random.key(0), features, labels, num_classes=3, pixels_per_class=3
    )
    assert pixels.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert pixels.valid.tolist() == [True, True, False, False, False, False, True, False, False]
    found = pixels.embeddings[np.lexsort((pixels.embeddings[:, 1], ~pixels.valid))][:3]
    np.testing.assert_allclose(found, angles(0, 10, 90), atol=1e-6)


@cheap
@given(st.integers(0, 2**16))
def test_relations_to_memory_agree_with_their_definition_and_see_no_length(seed):
    rng = np.random.default_rng(seed)
    student, teacher, items = rng.normal(size=(3, 5, 4)).astype(np.float32)
    items /= np.linalg.norm(items, axis=1, keepdims=True)
    valid = np.arange(5) != seed % 5
    loss = dense_memory.memory_relation_kd(student, teacher, items, valid, temperature=0.5)

    def log_relations(x):
        units = x / np.linalg.norm(x, axis=1, keepdims=True)
        return jax.nn.log_softmax(units @ items[valid].T / 0.5)

    log_p, log_q = log_relations(teacher), log_relations(student)
    expected = np.sum(np.exp(log_p) * (log_p - log_q), axis=1)
    np.testing.assert_allclose(loss, expected, rtol=1e-4, atol=1e-6)
    assert np.all(loss >= -1e-6)
    longer = dense_memory.memory_relation_kd(
        3 * student, 2 * teacher, items, valid, temperature=0.5
    )
    np.testing.assert_allclose(longer, loss, rtol=1e-4, atol=1e-6)
    same = dense_memory.memory_relation_kd(student, student, items, valid)
    np.testing.assert_allclose(same, 0, atol=1e-6)


def test_an_empty_memory_teaches_nothing():
    memory = dense_memory.empty_memory(2, num_slots=3, num_features=4)
    items = dense_memory.sample_memory(jax.random.key(0), memory, slots_per_class=2)
    value, gradient = jax.value_and_grad(
        lambda x: dense_memory.memory_relation_kd(
            x, jnp.ones((2, 4)), items.embeddings, items.valid
        ).sum()
    )(jnp.arange(8.0).reshape(2, 4))
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)


def test_a_linear_critic_of_slope_1_has_no_penalty_and_a_flat_one_no_gradient():
    direction = jnp.array([0.6, 0.8])
    slopes = jax.vmap(jax.grad(lambda x: x @ direction))(jnp.ones((3, 2)))
    np.testing.assert_allclose(dense_memory.wgan_gradient_penalty(slopes), 0, atol=1e-12)
    value, gradient = jax.value_and_grad(lambda g: dense_memory.wgan_gradient_penalty(g).sum())(
        jnp.zeros((3, 2))
    )
    assert value == 3
    np.testing.assert_array_equal(gradient, 0)


def test_critic_and_generator_pull_the_fake_scores_apart():
    fake, real = jnp.array([1.0, 2.0]), jnp.array([5.0, 3.0])
    of_critic = jax.grad(lambda x: dense_memory.wgan_critic(x, real).mean())(fake)
    of_generator = jax.grad(lambda x: dense_memory.wgan_generator(x).mean())(fake)
    np.testing.assert_array_equal(of_critic, -of_generator)
    np.testing.assert_array_equal(dense_memory.wgan_critic(fake, real), [-4, -1])
