"""Missing modalities: frequencies of the samplers, exact lists, what a missing modality is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.losses import modalities

DRAWS = 7000


def within_three_deviations(frequency, probability):
    deviation = np.sqrt(probability * (1 - probability) / DRAWS)
    return np.all(np.abs(frequency - probability) <= 3 * deviation)


def frequencies(masks):
    """The share of each subset, by the rows of `all_modality_subsets(3)`."""
    subsets = modalities.all_modality_subsets(3)
    return np.mean(np.all(masks[:, None] == subsets, axis=-1), axis=0)


def test_subsets_come_by_size_and_then_in_lexicographic_order():
    rows = [
        "".join("abc"[i] for i in np.flatnonzero(row)) for row in modalities.all_modality_subsets(3)
    ]
    assert rows == ["a", "b", "c", "ab", "ac", "bc", "abc"]


def test_a_subset_an_example_is_uniform():
    masks = modalities.sample_subset_mask(jax.random.key(0), 3, batch_size=DRAWS)
    assert within_three_deviations(frequencies(masks), 1 / 7)


def test_a_subset_an_example_follows_given_probabilities():
    probs = jnp.array([0.0, 2.0, 0.0, 1.0, 0.0, 0.0, 1.0])
    masks = modalities.sample_subset_mask(jax.random.key(1), 3, batch_size=DRAWS, probs=probs)
    assert within_three_deviations(frequencies(masks), np.asarray(probs) / 4)


def test_by_size_draws_the_size_first():
    keys = jax.random.split(jax.random.key(2), DRAWS)
    masks = jax.jit(jax.vmap(lambda key: modalities.sample_subset_by_size(key, 3)))(keys)
    assert within_three_deviations(frequencies(masks), np.array([1 / 9] * 6 + [1 / 3]))


@pytest.mark.parametrize("drop_rate", [0.0, 0.3, 1.0])
def test_independent_drops_keep_one(drop_rate):
    masks = modalities.bernoulli_mask(jax.random.key(3), 3, batch_size=DRAWS, drop_rate=drop_rate)
    kept = 1 - drop_rate
    single = kept * drop_rate**2 + drop_rate**3 / 3
    expected = np.array([single] * 3 + [kept**2 * drop_rate] * 3 + [kept**3])
    assert within_three_deviations(frequencies(masks), expected)


def test_independent_drops_may_lose_everything_if_asked():
    masks = modalities.bernoulli_mask(
        jax.random.key(4), 3, batch_size=DRAWS, drop_rate=0.5, keep_at_least_one=False
    )
    assert within_three_deviations(np.mean(~masks.any(axis=1)), 1 / 8)


def test_missing_lists_are_exact_disjoint_and_fixed():
    rates = {"slide": 0.3, "genes": 0.1, "text": 0.0}
    lists = modalities.fixed_missing_lists(5, 25, rates)
    assert [len(lists[name]) for name in rates] == [8, 2, 0]
    together = np.concatenate(list(lists.values()))
    assert len(np.unique(together)) == len(together)
    assert np.all((together >= 0) & (together < 25))
    again = modalities.fixed_missing_lists(5, 25, rates)
    other = modalities.fixed_missing_lists(6, 25, rates)
    np.testing.assert_array_equal(again["slide"], lists["slide"])
    assert other["slide"].tolist() != lists["slide"].tolist()


def test_every_example_may_be_incomplete():
    lists = modalities.fixed_missing_lists(0, 10, {"a": 0.7, "b": 0.3})
    assert sorted(np.concatenate([lists["a"], lists["b"]])) == list(range(10))


def test_a_missing_modality_is_0_or_its_placeholder_and_the_rest_is_not_rescaled():
    features = jnp.arange(12.0).reshape(2, 3, 2)
    where = jnp.array([[True, False, True], [False, True, False]])
    zeroed = modalities.apply_modality_mask(features, where=where)
    np.testing.assert_array_equal(zeroed, jnp.where(where[..., None], features, 0))
    placeholders = -jnp.arange(6.0).reshape(3, 2)
    filled = modalities.apply_modality_mask(features, placeholders, where=where)
    np.testing.assert_array_equal(filled[0, 1], placeholders[1])
    np.testing.assert_array_equal(filled[0, 0], (features[0, 0] + placeholders[0]) / 2)


def test_a_placeholder_learns_twice_as_fast_where_its_modality_is_missing():
    where = jnp.array([[True], [False]])
    gradient = jax.grad(
        lambda p: jnp.vdot(
            jnp.array([1.0, 10.0]),
            modalities.apply_modality_mask(jnp.zeros((2, 1)), p, where=where)[:, 0],
        )
    )(jnp.zeros(1))
    np.testing.assert_allclose(gradient, [0.5 + 10])


def test_fusion_is_the_mean_of_what_is_present():
    features = jnp.arange(6.0).reshape(2, 3)
    where = jnp.array([[True, False, True], [False, False, False]])
    np.testing.assert_array_equal(modalities.masked_mean_fusion(features, where=where), [1, 0])
    everything = modalities.masked_mean_fusion(features, where=jnp.ones((2, 3), bool))
    np.testing.assert_array_equal(everything, [1, 4])
