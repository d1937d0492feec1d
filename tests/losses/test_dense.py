"""Losses on maps: worked numbers, what they do not see, what they equal, reference loops."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdjax.losses import dense, dense_relations, logits

SEEDS = st.integers(0, 2**16)
cheap = settings(deadline=None, database=None, derandomize=True, max_examples=20)

RELATIONS = {
    "skds_pairwise": dense_relations.skds_pairwise,
    "pairwise_similarity_kd": dense_relations.pairwise_similarity_kd,
    "cross_image_relation_kd": dense_relations.cross_image_relation_kd,
    "intra_class_feature_variation": lambda s, t: dense_relations.intra_class_feature_variation(
        s, t, LABELS, num_classes=2
    ),
}
SAME_WIDTH = {
    "pixelwise_kd": dense.pixelwise_kd,
    "channel_wise_distillation": dense.channel_wise_distillation,
    "category_similarity_kd": functools.partial(dense.category_similarity_kd, temperature=0.5),
}
LABELS = np.arange(2 * 4 * 4).reshape(2, 4, 4) % 3


@functools.cache
def compiled(name):
    return jax.jit({**RELATIONS, **SAME_WIDTH}[name])


def maps(seed, *shape):
    return np.random.default_rng(seed).normal(0, 1, shape or (2, 4, 4, 5)).astype(np.float32)


def rotation(seed, size=5):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(size, size)))[0].astype(np.float32)


def test_one_channel_with_two_positions_is_kd_with_two_classes():
    student, teacher = jnp.zeros((1, 1, 2, 1)), jnp.array([4.0, 0.0]).reshape(1, 1, 2, 1)
    loss = dense.channel_wise_distillation(student, teacher, temperature=4.0)
    np.testing.assert_allclose(loss, [[1.775105]], rtol=1e-6)
    by_classes = logits.kd(student.reshape(2), teacher.reshape(2), temperature=4.0)
    np.testing.assert_allclose(loss[0, 0], by_classes, rtol=1e-6)


def test_pixelwise_kd_is_kd_of_each_pixel_and_skds_adds_the_teachers_entropy():
    student, teacher = maps(0), maps(1)
    by_pixel = dense.pixelwise_kd(student, teacher)
    np.testing.assert_allclose(by_pixel, logits.kd(student, teacher, temperature=1.0), rtol=1e-6)
    log_p = jax.nn.log_softmax(teacher)
    entropy = -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)
    np.testing.assert_allclose(
        dense.skds_pixelwise(student, teacher), by_pixel + entropy, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("name", [*RELATIONS, *SAME_WIDTH])
@cheap
@given(SEEDS)
def test_zero_at_equality_and_never_negative(name, seed):
    student = maps(seed)
    assert np.all(compiled(name)(student, maps(seed + 1)) >= 0)
    np.testing.assert_allclose(compiled(name)(student, student), 0, atol=1e-6)


@pytest.mark.parametrize("name", RELATIONS)
@cheap
@given(SEEDS)
def test_relations_do_not_see_a_scale_and_may_differ_in_width(name, seed):
    student, teacher = maps(seed), maps(seed + 1, 2, 4, 4, 7)
    loss = compiled(name)(student, teacher)
    np.testing.assert_allclose(
        compiled(name)(3 * student, 0.5 * teacher), loss, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("name", ["cross_image_relation_kd", "intra_class_feature_variation"])
@cheap
@given(SEEDS)
def test_relations_do_not_see_a_rotation_of_the_channels(name, seed):
    student, teacher = maps(seed), maps(seed + 1)
    loss = compiled(name)(student, teacher)
    turned = compiled(name)(student @ rotation(seed), teacher @ rotation(seed + 1))
    np.testing.assert_allclose(turned, loss, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "kernel",
    [
        lambda s, t: dense_relations.skds_pairwise(s, t, scale=0.34),
        lambda s, t: dense_relations.pairwise_similarity_kd(
            *(x.repeat(2, 1).repeat(2, 2) for x in (s, t))
        ),
    ],
    ids=["skds_pairwise", "pairwise_similarity_kd"],
)
def test_regions_of_constant_value_make_pairs_blind_to_rotation(kernel):
    student, teacher = maps(0, 2, 3, 3, 5), maps(1, 2, 3, 3, 5)
    turned = kernel(student @ rotation(0), teacher @ rotation(1))
    np.testing.assert_allclose(turned, kernel(student, teacher), rtol=1e-4)


@pytest.mark.parametrize("name", ["skds_pairwise", "pairwise_similarity_kd", *SAME_WIDTH])
def test_the_others_do_see_a_rotation_of_the_channels(name):
    student, teacher = maps(0), maps(1)
    turned = compiled(name)(student @ rotation(0), teacher)
    assert np.max(np.abs(turned / compiled(name)(student, teacher) - 1)) > 1e-3


@cheap
@given(SEEDS)
def test_constants_of_channels_and_of_pixels_are_seen_by_one_loss_each(seed):
    student, teacher = maps(seed), maps(seed + 1)
    of_channel, of_pixel = maps(seed + 2, 5), maps(seed + 3, 2, 4, 4, 1)
    for name, unseen, seen in (
        ("channel_wise_distillation", of_channel, of_pixel),
        ("category_similarity_kd", of_channel, of_pixel),
        ("pixelwise_kd", of_pixel, of_channel),
    ):
        loss = compiled(name)(student, teacher)
        same = compiled(name)(student + unseen, teacher)
        np.testing.assert_allclose(same, loss, rtol=1e-4, atol=1e-5)
        assert np.max(np.abs(compiled(name)(student + seen, teacher) / loss - 1)) > 1e-3


def test_pairwise_agrees_with_a_loop_over_cut_off_regions():
    student, teacher = maps(0, 1, 5, 3, 4), maps(1, 1, 5, 3, 2)

    def similarities(features):
        regions = [features[0, i : i + 2, j : j + 2].max((0, 1)) for i in (0, 2, 4) for j in (0, 2)]
        units = np.array([region / np.linalg.norm(region) for region in regions])
        return units @ units.T

    expected = np.mean((similarities(student) - similarities(teacher)) ** 2)
    np.testing.assert_allclose(
        dense_relations.pairwise_similarity_kd(student, teacher), [expected], rtol=1e-5
    )


def test_detaching_the_norm_changes_the_gradient_and_not_the_value():
    student, teacher = maps(0), maps(1)

    def loss(features, detach_norm):
        return dense_relations.skds_pairwise(features, teacher, detach_norm=detach_norm).sum()

    np.testing.assert_allclose(loss(student, True), loss(student, False), rtol=1e-6)
    detached, slope = (jax.grad(loss)(student, flag) for flag in (True, False))
    assert np.max(np.abs(detached - slope)) > 1e-3
    # The loss does not depend on lengths: its slope is at right angles to the features.
    np.testing.assert_allclose(np.vdot(slope, student), 0, atol=1e-5)
    assert abs(np.vdot(detached, student)) > 1e-2


def test_cross_image_agrees_with_a_loop_over_pairs():
    student, teacher = maps(0, 3, 2, 2, 4), maps(1, 3, 2, 2, 6)

    def rows(features, i, j):
        units = features.reshape(3, 4, -1)
        units = units / np.linalg.norm(units, axis=-1, keepdims=True)
        return jax.nn.log_softmax(units[i] @ units[j].T / 0.2)

    expected = np.zeros(3)
    for i in range(3):
        for j in range(3):
            log_p, log_q = rows(teacher, i, j), rows(student, i, j)
            expected[i] += np.sum(np.exp(log_p) * (log_p - log_q)) / 4 / 3
    loss = dense_relations.cross_image_relation_kd(student, teacher, temperature=0.2)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    alone = dense_relations.cross_image_relation_kd(student[:2], teacher[:2], temperature=0.2)
    where = jnp.array([True, True, False])
    masked = dense_relations.cross_image_relation_kd(student, teacher, temperature=0.2, where=where)
    np.testing.assert_allclose(masked, [*alone, 0], rtol=1e-5)


def test_a_pixel_without_a_class_and_one_alone_in_it_vary_from_nothing():
    student, teacher = maps(0, 1, 1, 4, 3), maps(1, 1, 1, 4, 3)
    labels = np.array([[[0, 0, 1, 255]]])
    loss = dense_relations.intra_class_feature_variation(student, teacher, labels, num_classes=2)
    np.testing.assert_allclose(loss[0, 0, 2:], 0, atol=1e-12)
    assert np.all(loss[0, 0, :2] > 1e-6)
    other = teacher.copy()
    other[0, 0, 3] = 100
    np.testing.assert_array_equal(
        dense_relations.intra_class_feature_variation(student, other, labels, num_classes=2), loss
    )


def test_labels_are_resized_to_the_nearest():
    student, teacher = maps(0, 1, 2, 2, 3), maps(1, 1, 2, 2, 3)
    large = np.arange(16).reshape(1, 4, 4) % 5 % 2
    of_large, of_small = (
        dense_relations.intra_class_feature_variation(student, teacher, labels, num_classes=2)
        for labels in (large, large[:, ::2, ::2])
    )
    np.testing.assert_array_equal(of_large, of_small)


def test_masked_positions_leave_the_distribution_of_a_channel():
    student, teacher = maps(0, 1, 1, 4, 2), maps(1, 1, 1, 4, 2)
    where = jnp.array([[[True, True, True, False]]])
    np.testing.assert_allclose(
        dense.channel_wise_distillation(student, teacher, where=where),
        dense.channel_wise_distillation(student[:, :, :3], teacher[:, :, :3]),
        rtol=1e-5,
    )
    nothing = dense.channel_wise_distillation(student, teacher, where=jnp.zeros_like(where))
    np.testing.assert_array_equal(nothing, 0)


@pytest.mark.parametrize("name", [*RELATIONS, *SAME_WIDTH])
def test_maps_of_zeros_have_finite_gradients(name):
    zeros = jnp.zeros((2, 4, 4, 5))
    gradient = jax.grad(lambda x: compiled(name)(x, maps(0)).sum())(zeros)
    assert np.all(np.isfinite(gradient))
    assert np.max(np.abs(gradient)) < 10
