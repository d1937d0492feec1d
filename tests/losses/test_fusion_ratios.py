"""The mixed loss, the features of four points on the simplex, and the rules that give a ratio."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from kdjax import losses
from kdjax.losses.fusion_ratios import TRILATERAL_MODES

B, C = 4, 5
SETTINGS = settings(deadline=None, database=None, derandomize=True, max_examples=15)


def logits(seed=0, shape=(B, C)):
    return jnp.asarray(np.random.default_rng(seed).normal(0, 2, shape), jnp.float32)


STUDENT, TEACHER, LABELS = logits(0), logits(1), jnp.array([0, 3, 1, 4])
MEANS = jax.nn.softmax(logits(2, (C, C)))


def features(student, teacher, labels, means, mode):
    return losses.trilateral_features(student, teacher, labels, means, mode=mode)


def test_a_ratio_of_0_is_cross_entropy_and_of_1_is_kd_in_value_and_gradient():
    plain = {
        0.0: lambda s: losses.cross_entropy(s, LABELS),
        1.0: lambda s: losses.kd(s, TEACHER, temperature=1.5),
    }
    for ratio, loss in plain.items():

        def mixed(s, ratio=ratio):
            return losses.fused_kd(s, TEACHER, LABELS, jnp.full(B, ratio), temperature=1.5)

        for f, g in ((mixed, loss), (jax.jacrev(mixed), jax.jacrev(loss))):
            np.testing.assert_allclose(f(STUDENT), g(STUDENT), rtol=1e-6, atol=1e-7)


@SETTINGS
@given(arrays(np.float32, B, elements=st.floats(0, 1, width=32)), st.floats(0, 1, width=32))
def test_the_loss_is_affine_in_each_ratio(ratios, share):
    other = jnp.linspace(0, 1, B)

    def loss(ratios):
        return losses.fused_kd(STUDENT, TEACHER, LABELS, jnp.asarray(ratios, jnp.float32))

    between = loss(share * ratios + (1 - share) * other)
    expected = share * loss(ratios) + (1 - share) * loss(other)
    np.testing.assert_allclose(between, expected, rtol=1e-4, atol=1e-5)


def test_a_label_that_names_no_class_has_neither_loss_nor_ratio_nor_features():
    labels = jnp.array([0, -100, 1, C])
    nan = jnp.where(losses.valid_labels(labels, C)[:, None], STUDENT, jnp.nan)

    def total(s):
        return jnp.sum(losses.fused_kd(s, TEACHER, labels, jnp.full(B, 0.5)))

    value, gradient = jax.value_and_grad(total)(nan)
    assert np.isfinite(value)
    assert np.all(np.isfinite(gradient))
    assert not np.any(gradient[np.array([1, 3])])
    probs = jax.nn.softmax(TEACHER)
    for found in (
        losses.wls_ratio(nan, TEACHER, labels),
        losses.ada_ratio(probs, labels),
        features(probs, probs, labels, MEANS, "vertices+edges"),
    ):
        assert not np.any(found[np.array([1, 3])])


WIDTHS = {
    "vertices": 4 * C,
    "student_edges": 3 * C,
    "vertices+edges": 9 * C,
    "vertices+angles": 6 * C,
    "student_edges+angles": 5 * C,
    "vertices+student_edges+angles": 9 * C,
    "angles": 2 * C,
    "norms": 8,
}


@pytest.mark.parametrize("mode", TRILATERAL_MODES)
def test_features_have_their_width_and_no_gradient(mode):
    student, teacher = jax.nn.softmax(STUDENT), jax.nn.softmax(TEACHER)
    shape = jax.eval_shape(lambda s: features(s, teacher, LABELS, MEANS, mode), student).shape
    assert shape == (B, WIDTHS[mode])
    slope = jax.grad(
        lambda s, t, m: jnp.sum(features(s, t, LABELS, m, mode) ** 2), argnums=(0, 1, 2)
    )(student, teacher, MEANS)
    assert not any(np.any(x) for x in slope)


def test_edges_angles_and_norms_of_one_point_are_0():
    truth = jax.nn.one_hot(LABELS, C)
    found = features(truth, truth, LABELS, jnp.eye(C), "vertices+edges")
    np.testing.assert_array_equal(found[:, : 4 * C], jnp.tile(truth, 4))
    assert not np.any(found[:, 4 * C :])
    assert not np.any(features(truth, truth, LABELS, jnp.eye(C), "angles"))
    norms = features(truth, truth, LABELS, jnp.eye(C), "norms")
    np.testing.assert_array_equal(norms, np.tile([0.0] * 5 + [1.0] * 3, (B, 1)))


def test_edges_are_those_of_the_points_that_they_name():
    """By hand: S = (0.5, 0.5), T = (0.75, 0.25), G = (0, 1), M = (0.25, 0.75)."""
    s, t = jnp.array([0.5, 0.5]), jnp.array([0.75, 0.25])
    means = jnp.array([[0.9, 0.1], [0.25, 0.75]])
    found = features(s, t, jnp.array(1), means, "vertices+edges")
    edges = [0.0625, 0.0625, 0.25, 0.25, 0.0625, 0.0625, 0.5625, 0.5625, 0.0625, 0.0625]
    np.testing.assert_allclose(found[8:], edges)
    angles = features(s, t, jnp.array(1), means, "angles")
    np.testing.assert_allclose(angles, [0.125, 0.125, -0.125, -0.125])
    norms = features(s, t, jnp.array(1), means, "norms")
    root = np.sqrt(2)
    expected = [0.25 * root, 0.5 * root, 0.25 * root, 0.75 * root, 0.25 * root, 0.5, 0.25, 0.75]
    np.testing.assert_allclose(norms, expected, rtol=1e-6)


@pytest.mark.parametrize("mode", ["vertices+edges", "angles", "norms"])
def test_classes_in_another_order_give_every_block_in_that_order(mode):
    order = np.random.default_rng(0).permutation(C)
    student, teacher = jax.nn.softmax(STUDENT), jax.nn.softmax(TEACHER)
    there = jnp.argsort(order)  # old class -> new class
    moved = features(
        student[:, order], teacher[:, order], there[LABELS], MEANS[order][:, order], mode
    )
    plain = features(student, teacher, LABELS, MEANS, mode)
    if mode != "norms":
        plain = plain.reshape(B, -1, C)[..., order].reshape(B, -1)
    np.testing.assert_allclose(moved, plain, rtol=1e-5, atol=1e-7)


def test_class_means_are_means_and_uniform_for_a_class_that_is_missing():
    probs, labels = jax.nn.softmax(logits(0, (6, C))), jnp.array([0, 0, 3, 3, 3, -1])
    found = losses.class_mean_predictions(probs, labels)
    np.testing.assert_allclose(found[0], probs[:2].mean(0), rtol=1e-6)
    np.testing.assert_allclose(found[3], probs[2:5].mean(0), rtol=1e-6)
    np.testing.assert_allclose(found[np.array([1, 2, 4])], np.full((3, C), 1 / C))
    np.testing.assert_allclose(found.sum(-1), np.ones(C), rtol=1e-6)
    spoilt = losses.class_mean_predictions(
        probs.at[2].set(jnp.nan), labels, where=jnp.arange(6) != 2
    )
    np.testing.assert_allclose(spoilt[3], probs[3:5].mean(0), rtol=1e-6)


def test_rules_of_the_ratio_by_hand():
    """A teacher as good as the student: 1 - 1/e; a sure one: 1; a wrong one has no margin."""
    np.testing.assert_allclose(losses.wls_ratio(STUDENT, STUDENT, LABELS), 1 - np.exp(-1), 1e-5)
    sure = 30 * jax.nn.one_hot(LABELS, C)
    np.testing.assert_allclose(losses.wls_ratio(STUDENT, sure, LABELS), 1)
    np.testing.assert_allclose(losses.wls_ratio(sure, STUDENT, LABELS), 0, atol=1e-6)
    np.testing.assert_allclose(losses.ada_ratio(jax.nn.one_hot(LABELS, C), LABELS), 1)
    np.testing.assert_allclose(losses.ada_ratio(jax.nn.one_hot(LABELS, C), LABELS[::-1]), 0)
    np.testing.assert_allclose(losses.ada_ratio(jnp.array([0.2, 0.7, 0.1]), jnp.array(1)), 0.55)


def test_the_annealed_ratio_falls_in_equal_steps_from_1_to_0():
    found = [float(losses.annealed_ratio(step / 100, levels=5)) for step in range(101)]
    assert (found[0], found[-1]) == (1.0, 0.0)
    assert sorted(set(found), reverse=True) == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert [found[:100].count(level) for level in sorted(set(found))] == [20] * 5
    assert found == sorted(found, reverse=True)
