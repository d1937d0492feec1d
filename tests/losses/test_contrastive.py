"""Contrast in a batch, with a queue, and with CRD's memory bank."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdjax.losses import memory_bank
from kdjax.losses.contrastive import (
    albef_ita,
    clip_info_nce,
    in_batch_scores,
    info_nce,
    l2_normalize,
    moco_info_nce,
    momentum_soft_targets,
    queue_scores,
)
from kdjax.losses.memory_bank import (
    crd_initial_log_z,
    crd_nce,
    crd_sample_indices,
    crd_scores,
    crd_update_bank,
    enqueue,
)

quick = settings(deadline=None, database=None, derandomize=True, max_examples=15)
seeds = given(seed=st.integers(0, 2**31 - 1))
BATCH, FEATURES, QUEUE = 5, 4, 6


def unit(seed, *shapes):
    """Rows of unit norm, of each shape."""
    generator = np.random.default_rng(seed)
    drawn = [generator.normal(size=shape) for shape in shapes]
    return [jnp.float32(x / np.linalg.norm(x, axis=-1, keepdims=True)) for x in drawn]


def close(actual, expected, rtol=2e-5, atol=1e-6):
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=atol)


# What the papers' definitions give by hand.


def test_crd_hand_case():
    bank = jnp.eye(2)
    scores = crd_scores(jnp.array([[1.0, 0.0]]), bank, jnp.array([[0, 1]]), temperature=1.0)
    log_z = crd_initial_log_z(scores, num_examples=2)
    close(jnp.exp(log_z), 3.71828)
    close(jnp.exp(scores - log_z), [[0.731059, 0.268941]])
    close(crd_nce(scores, log_z, num_examples=2), [0.951543])
    close(0.521136 + 0.430407, 0.951543)
    updated = crd_update_bank(bank, jnp.array([0]), jnp.array([[0.0, 1.0]]), momentum=0.5)
    close(updated, [[0.707107, 0.707107], [0.0, 1.0]])


def test_albef_hand_case():
    targets = momentum_soft_targets(jnp.array([[1.0, 0.0]]), jnp.array([[1.0, 0.0]]), alpha=0.4)
    close(targets, [[0.892423, 0.107577]])
    own, other = jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 1.0]])
    close(albef_ita(own, own, own, own, other, other, temperature=1.0, alpha=0.4), [0.420838])


def test_info_nce_of_two_orthogonal_pairs():
    close(clip_info_nce(jnp.eye(2), jnp.eye(2), scale=1.0), [0.313262] * 2)
    close(info_nce(jnp.eye(2), jnp.eye(2), temperature=1.0), [0.313262] * 2)


def test_a_batch_of_one_has_nothing_to_contrast():
    (feature,) = unit(0, (1, 3))
    for loss in (clip_info_nce, info_nce):
        value, gradient = jax.value_and_grad(lambda x, f=loss: f(x, feature).sum())(feature)
        assert value == 0
        assert np.all(gradient == 0)


def test_without_negatives_crd_is_zero():
    scores = jnp.array([[1.0], [-1.0]])
    value, gradient = jax.value_and_grad(
        lambda x: crd_nce(x, jnp.array(0.0), num_examples=4).sum()
    )(scores)
    assert value == 0
    assert np.all(gradient == 0)


# Normalisation.


def test_a_zero_vector_stays_zero_without_a_gradient():
    gradient = jax.grad(lambda x: l2_normalize(x).sum())(jnp.zeros((2, 3)))
    assert np.all(l2_normalize(jnp.zeros((2, 3))) == 0)
    assert np.all(gradient == 0)


@quick
@given(seed=st.integers(0, 1000), factor=st.floats(1e-3, 1e3))
def test_normalising_forgets_the_length(seed, factor):
    x = np.float32(np.random.default_rng(seed).normal(size=(3, 4)))
    close(l2_normalize(x * np.float32(factor)), l2_normalize(x))


# Invariances.


@functools.cache
def compiled(name):
    return jax.jit(
        {
            "clip": lambda a, b, queue, where: clip_info_nce(a, b, scale=3.0, where=where),
            "moco": lambda a, b, queue, where: moco_info_nce(a, b, queue, temperature=0.4),
            "albef": lambda a, b, queue, where: albef_ita(
                a, b, b, a, queue, queue[::-1], temperature=0.4, where=where
            ),
            "info": lambda a, b, queue, where: info_nce(
                a, b, temperature=0.4, where=where[:, None] & where
            ),
        }[name]
    )


every = pytest.mark.parametrize("name", ["clip", "moco", "albef", "info"])
EVERYONE = np.ones(BATCH, bool)


@every
@quick
@seeds
def test_a_permutation_of_the_batch_permutes_the_losses(name, seed):
    a, b, queue = unit(seed, (BATCH, FEATURES), (BATCH, FEATURES), (QUEUE, FEATURES))
    order = np.random.default_rng(seed).permutation(BATCH)
    loss = compiled(name)(a, b, queue, EVERYONE)
    assert np.all(loss >= 0)
    close(compiled(name)(a[order], b[order], queue, EVERYONE), loss[order])


@every
@quick
@seeds
def test_a_rotation_of_everything_changes_nothing_but_of_one_side_does(name, seed):
    a, b, queue = unit(seed, (BATCH, FEATURES), (BATCH, FEATURES), (QUEUE, FEATURES))
    rotation, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(FEATURES, FEATURES)))
    rotation = np.float32(rotation)
    loss = compiled(name)(a, b, queue, EVERYONE)
    close(compiled(name)(a @ rotation, b @ rotation, queue @ rotation, EVERYONE), loss, 1e-4, 1e-5)
    other = compiled(name)(-a, b, queue, EVERYONE)
    assert np.max(np.abs(other - loss)) > 1e-2


def test_the_order_of_the_queue_does_not_matter():
    a, b, queue = unit(0, (BATCH, FEATURES), (BATCH, FEATURES), (QUEUE, FEATURES))
    loss = compiled("moco")(a, b, queue, EVERYONE)
    close(compiled("moco")(a, b, queue[::-1], EVERYONE), loss)


def test_clip_is_symmetric_and_one_direction_is_not():
    a, b, queue = unit(0, (BATCH, FEATURES), (BATCH, FEATURES), (QUEUE, FEATURES))
    close(compiled("clip")(a, b, queue, EVERYONE), compiled("clip")(b, a, queue, EVERYONE))
    forward, backward = (compiled("info")(*x, queue, EVERYONE) for x in ((a, b), (b, a)))
    assert np.max(np.abs(forward - backward)) > 1e-2
    close(clip_info_nce(a, b, scale=2.5), (forward + backward) / 2)


@pytest.mark.parametrize("name", ["clip", "albef", "info"])
@pytest.mark.parametrize("hidden", [(0,), (1, 2, 4)])
def test_padding_is_the_same_as_a_smaller_batch(name, hidden):
    a, b, queue = unit(0, (BATCH, FEATURES), (BATCH, FEATURES), (QUEUE, FEATURES))
    where = ~np.isin(np.arange(BATCH), hidden)
    padded = [jnp.where(where[:, None], x, jnp.nan) for x in (a, b)]
    loss = compiled(name)(*padded, queue, where)
    assert np.all(loss[~where] == 0)
    everyone = np.ones(where.sum(), bool)
    close(loss[where], compiled(name)(a[where], b[where], queue, everyone))


# Limits that turn one loss into another.


@quick
@seeds
def test_albef_without_belief_is_moco_against_batch_and_queue(seed):
    a, b, queue = unit(seed, (1, FEATURES), (1, FEATURES), (QUEUE, FEATURES))
    loss = albef_ita(a, b, a, b, queue, queue, temperature=0.4, alpha=0.0)
    moco = [
        moco_info_nce(*x, queue, temperature=0.4)
        for x in ((a, jnp.asarray(b)), (b, jnp.asarray(a)))
    ]
    close(loss, sum(moco) / 2)


def test_albef_at_full_belief_is_least_at_the_teachers_entropy():
    a, b, queue = unit(0, (BATCH, FEATURES), (BATCH, FEATURES), (QUEUE, FEATURES))
    loss = albef_ita(a, b, a, b, queue, queue, temperature=0.4, alpha=1.0)

    def entropy(queries, keys):
        log_probs = jax.nn.log_softmax(queries @ jnp.concatenate([keys, queue]).T / 0.4)
        return -jnp.sum(jnp.exp(log_probs) * log_probs, axis=1)

    close(loss, (entropy(a, b) + entropy(b, a)) / 2)


def test_several_positives_average_their_log_probabilities():
    a, b = unit(0, (BATCH, FEATURES), (BATCH, FEATURES))
    positives = np.eye(BATCH, dtype=bool)
    positives[0, 3] = True
    positives[1] = False
    log_probs = jax.nn.log_softmax(a @ b.T / 0.4)
    loss = info_nce(a, b, temperature=0.4, positives=positives)
    close(loss[0], -(log_probs[0, 0] + log_probs[0, 3]) / 2)
    assert loss[1] == 0
    close(loss[2:], info_nce(a, b, temperature=0.4)[2:])


def test_nt_xent_is_info_nce_of_the_views_without_the_query_itself():
    (views,) = unit(0, (6, FEATURES))
    partner = np.roll(np.eye(6, dtype=bool), 3, axis=1)
    loss = info_nce(views, views, temperature=0.5, positives=partner, where=~np.eye(6, dtype=bool))
    logits = np.array(views @ views.T / 0.5)
    np.fill_diagonal(logits, -np.inf)
    expected = -jax.nn.log_softmax(jnp.asarray(logits))[np.arange(6), (np.arange(6) + 3) % 6]
    close(loss, expected)


def test_the_tables_of_scores_begin_with_the_positive():
    a, b, queue = unit(0, (BATCH, FEATURES), (BATCH, FEATURES), (QUEUE, FEATURES))
    own = jnp.sum(a * b, axis=1) / 0.4
    close(in_batch_scores(a, b, temperature=0.4)[:, 0], own)
    close(queue_scores(a, b, queue, temperature=0.4)[:, 0], own)
    indices = (jnp.arange(BATCH)[:, None] + jnp.arange(BATCH)) % BATCH
    close(crd_scores(a, b, indices, temperature=0.4), in_batch_scores(a, b, temperature=0.4))
    close(crd_scores(a, queue, jnp.tile(jnp.arange(QUEUE), (BATCH, 1))) * 0.07, a @ queue.T)


def test_a_pair_left_out_of_the_batch_is_left_out_of_its_table():
    a, b = unit(0, (3, FEATURES), (3, FEATURES))
    where = np.ones((3, 3), bool)
    where[1, 0] = False
    scores = in_batch_scores(a, b, where=where)
    assert np.argwhere(np.isneginf(scores)).tolist() == [[1, 2]]


# CRD.


@pytest.mark.parametrize("hidden", [(3,), (1, 2, 6)])
def test_masked_candidates_are_as_if_they_had_not_been_drawn(hidden):
    scores = np.float32(np.random.default_rng(0).normal(size=(3, 7)))
    where = ~np.isin(np.arange(7), hidden)
    log_z = crd_initial_log_z(scores[:, where], num_examples=30)
    close(crd_initial_log_z(scores, num_examples=30, where=np.tile(where, (3, 1))), log_z)
    expected = crd_nce(scores[:, where], log_z, num_examples=30)
    close(crd_nce(scores, log_z, num_examples=30, where=np.tile(where, (3, 1))), expected)
    close(crd_nce(np.where(where, scores, -np.inf), log_z, num_examples=30), expected)


def test_a_row_without_its_positive_has_no_loss():
    scores = jnp.array([[-jnp.inf, 1.0], [0.5, 1.0]])
    value, gradient = jax.value_and_grad(
        lambda x: crd_nce(x, jnp.array(1.0), num_examples=9).sum()
    )(scores)
    assert np.all(gradient[0] == 0)
    close(value, crd_nce(scores[1:], jnp.array(1.0), num_examples=9)[0])


def test_crd_stays_finite_where_the_exponential_overflows():
    scores = jnp.array([[2e3, -2e3], [-2e3, 2e3]])
    log_z = crd_initial_log_z(scores, num_examples=10)
    loss = crd_nce(scores, log_z, num_examples=10)
    assert np.all(np.isfinite(loss))
    assert loss[1] > 3e3


def test_crd_is_least_for_a_likely_positive_and_unlikely_negatives():
    gradient = jax.grad(lambda x: crd_nce(x, jnp.array(2.0), num_examples=9).sum())(
        jnp.array([[0.3, -0.2, 0.5]])
    )
    assert gradient[0, 0] < 0
    assert np.all(gradient[0, 1:] > 0)


def test_the_first_normaliser_makes_the_mean_probability_one_over_n():
    scores = np.float32(np.random.default_rng(0).normal(size=(4, 6)))
    log_z = crd_initial_log_z(scores, num_examples=50)
    close(jnp.mean(jnp.exp(scores - log_z)), 1 / 50)


def test_the_last_row_of_an_example_updates_the_bank():
    bank, features = unit(0, (4, 2), (3, 2))
    indices = jnp.array([2, 0, 2])
    updated = crd_update_bank(bank, indices, features, momentum=0.5)
    once = crd_update_bank(bank, indices[1:], features[1:], momentum=0.5)
    np.testing.assert_array_equal(updated, once)
    np.testing.assert_array_equal(updated[1], bank[1])
    hidden = crd_update_bank(bank, indices, features, where=np.array([True, True, False]))
    np.testing.assert_array_equal(hidden, crd_update_bank(bank, indices[:2], features[:2]))


def test_indices_out_of_range_are_loud_when_compiled():
    bank, features = unit(0, (4, 2), (2, 2))
    for bad in (-1, 4):
        indices = jnp.array([[0, bad], [1, 2]])
        scores = jax.jit(crd_scores)(features, bank, indices)
        assert np.isnan(scores).tolist() == [[False, True], [False, False]]
        updated = jax.jit(crd_update_bank)(bank, indices[0], features)
        np.testing.assert_array_equal(updated[1:], bank[1:])
    with pytest.raises(ValueError, match="indices must lie"):
        memory_bank.crd_scores(features, bank, jnp.array([[0, 4], [1, 2]]))


LABELS = jnp.array([2, 0, 1, 0, 2, 2, 1, 0, 0, 2])


@pytest.mark.parametrize("replace", [True, False])
@quick
@seeds
def test_negatives_are_of_other_classes_and_the_positive_of_its_own(replace, seed):
    indices = jnp.array([3, 0, 2])
    for positive in ("exact", "relax"):
        drawn = crd_sample_indices(
            jax.random.key(seed),
            indices,
            LABELS,
            num_negatives=5,
            positive=positive,
            replace=replace,
        )
        classes = LABELS[drawn]
        assert np.all(classes[:, 0] == LABELS[indices])
        assert np.all(classes[:, 1:] != LABELS[indices][:, None])
        if positive == "exact":
            assert np.all(drawn[:, 0] == indices)
        if not replace:
            assert all(len(set(row.tolist())) == 5 for row in drawn[:, 1:])


@pytest.mark.parametrize("replace", [True, False])
def test_every_candidate_is_as_likely_as_every_other(replace):
    sample = functools.partial(crd_sample_indices, num_negatives=2, replace=replace)
    keys = jax.random.split(jax.random.key(0), 2000)

    def counts(**options):
        draw = jax.jit(jax.vmap(lambda key: sample(key, jnp.array([3]), LABELS, **options)))
        drawn = draw(keys)[:, 0]
        return np.bincount(drawn[:, 0], minlength=10), np.bincount(
            drawn[:, 1:].ravel(), minlength=10
        )

    positives, negatives = counts(positive="relax")
    others = np.asarray(LABELS != 0)
    assert np.all(negatives[~others] == 0)
    assert np.all(np.abs(negatives[others] / 4000 - 1 / 6) < 0.03)
    assert np.all(np.abs(positives[~others] / 2000 - 1 / 4) < 0.05)
    if not replace:
        return
    _, negatives = counts(negatives="all")
    assert np.all(np.abs(negatives / 4000 - 1 / 10) < 0.03)


# The queue.


@quick
@given(pointer=st.integers(0, QUEUE - 1), seed=st.integers(0, 1000))
def test_the_queue_wraps_around_and_forgets_the_oldest(pointer, seed):
    queue, first, second = unit(seed, (QUEUE, 2), (4, 2), (4, 2))
    after, middle = enqueue(queue, jnp.array(pointer), first)
    after, end = enqueue(after, middle, second)
    assert int(middle) == (pointer + 4) % QUEUE
    assert int(end) == (pointer + 8) % QUEUE
    oldest_first = np.roll(after, -int(end), axis=0)
    np.testing.assert_array_equal(oldest_first, np.concatenate([first, second])[-QUEUE:])


def test_hidden_rows_do_not_enter_the_queue():
    queue, features = unit(0, (QUEUE, 2), (3, 2))
    where = np.array([True, False, True])
    expected = enqueue(queue, jnp.array(5), features[where])
    jax.tree.map(
        np.testing.assert_array_equal, enqueue(queue, jnp.array(5), features, where=where), expected
    )
