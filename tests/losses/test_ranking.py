"""Plackett-Luce: rankings, worked numbers, special cases, convexity, padding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from kdjax import losses

S = jnp.array([2.0, 1.0, 0.0])
T = jnp.array([1.0, 3.0, 0.0])


def batch(shape=(6, 5)):
    rng = np.random.default_rng(0)
    student, teacher = (jnp.asarray(rng.normal(0, 2, shape)) for _ in range(2))
    return student, teacher, jnp.asarray(rng.integers(0, shape[-1], shape[:-1]))


@pytest.mark.parametrize(
    ("label", "ranking", "loss", "gradient"),
    [
        (0, [0, 1, 2], 0.310875, [-0.0382, -0.1990, 0.2372]),
        (2, [2, 1, 0], 1.209267, [0.6448, -0.6066, -0.0382]),
    ],
)
def test_worked_numbers(label, ranking, loss, gradient):
    assert losses.teacher_optimal_ranking(T, jnp.array(label)).tolist() == ranking
    value, slope = jax.value_and_grad(lambda s: losses.plackett_luce(s, T, jnp.array(label)))(S)
    np.testing.assert_allclose(value, loss, atol=1e-6)
    np.testing.assert_allclose(slope, gradient, atol=5e-5)


def test_step_costs_are_suffix_log_sum_exps():
    ranking = jnp.array([0, 1, 2])
    costs = [losses.plackett_luce_nll(S, ranking, jnp.eye(3)[k]) for k in range(3)]
    np.testing.assert_allclose(costs, [0.407606, 0.313262, 0], atol=1e-6)


def test_the_label_comes_first_then_the_teachers_order_ties_by_class():
    teacher = jnp.array([[1.0, 3.0, 3.0, 1.0, -jnp.inf, 9.0]] * 2)
    ranking = losses.teacher_optimal_ranking(teacher, jnp.array([3, 4]))
    assert ranking.tolist() == [[3, 5, 1, 2, 0, 4], [4, 5, 1, 2, 0, 3]]
    assert ranking.dtype == jnp.int32


def test_a_label_outside_the_classes_leaves_the_teachers_order():
    assert losses.teacher_optimal_ranking(T, jnp.array(-100)).tolist() == [1, 0, 2]


@settings(deadline=None, database=None, derandomize=True, max_examples=30)
@given(
    # XLA takes subnormal numbers for 0: they tie.
    arrays(np.float32, (3, 5), elements=st.floats(-100, 100, width=32, allow_subnormal=False)),
    st.integers(0, 4),
)
def test_a_ranking_is_a_permutation_in_descending_order(teacher, label):
    ranking = np.asarray(losses.teacher_optimal_ranking(jnp.asarray(teacher), jnp.full(3, label)))
    assert np.all(np.sort(ranking) == np.arange(5))
    assert np.all(ranking[:, 0] == label)
    others = np.take_along_axis(teacher, ranking, -1)[:, 1:]
    assert np.all(np.diff(others) <= 0)


def test_first_step_alone_is_cross_entropy():
    student, teacher, labels = batch()
    ranking = losses.teacher_optimal_ranking(teacher, labels)
    np.testing.assert_allclose(
        losses.plackett_luce_nll(student, ranking, jnp.eye(5)[0]),
        losses.cross_entropy(student, labels),
        rtol=1e-6,
    )


def test_two_classes_give_cross_entropy_weighted_by_the_teachers_confidence():
    student, teacher, labels = batch((6, 2))
    confidence = jax.nn.softmax(teacher / 3)[jnp.arange(6), labels]
    np.testing.assert_allclose(
        losses.plackett_luce(student, teacher, labels, temperature=3.0),
        confidence * losses.cross_entropy(student, labels),
        rtol=1e-5,
    )


def test_a_certain_and_correct_teacher_gives_cross_entropy():
    student, _, labels = batch()
    np.testing.assert_allclose(
        losses.plackett_luce(student, 200 * jax.nn.one_hot(labels, 5), labels),
        losses.cross_entropy(student, labels),
        rtol=1e-6,
    )


def test_one_class_costs_nothing():
    student, teacher, _ = batch((6, 1))
    zero = jnp.zeros(6, int)
    np.testing.assert_array_equal(losses.plackett_luce(student, teacher, zero), 0)


def test_gradient_rows_sum_to_zero_and_an_offset_is_irrelevant():
    student, teacher, labels = batch()

    @jax.jit
    def total(student):
        return losses.plackett_luce(student, teacher, labels).sum()

    value, gradient = jax.value_and_grad(total)(student)
    np.testing.assert_allclose(gradient.sum(-1), 0, atol=1e-6)
    far, far_gradient = jax.value_and_grad(total)(student + 1e4)
    np.testing.assert_allclose(far, value, rtol=1e-3)
    np.testing.assert_allclose(far_gradient, gradient, atol=2e-3)


@settings(deadline=None, database=None, derandomize=True, max_examples=30)
@given(arrays(np.float32, (2, 4, 5), elements=st.floats(-30, 30, width=32)))
def test_convex_in_the_student(logits):
    _, teacher, labels = batch((4, 5))
    first, second = jnp.asarray(logits)
    middle = losses.plackett_luce((first + second) / 2, teacher, labels)
    ends = losses.plackett_luce(first, teacher, labels)
    ends += losses.plackett_luce(second, teacher, labels)
    assert np.all(middle <= ends / 2 + 1e-4)
    assert np.all(ends >= 0)


@pytest.mark.parametrize("num_classes", [1, 2, 5, 1000])
def test_weights_of_the_steps(num_classes):
    uniform = losses.listmle_weights(num_classes)
    falling = losses.p_listmle_weights(num_classes)
    assert uniform.shape == falling.shape == (num_classes,)
    np.testing.assert_allclose(uniform, 1 / num_classes, rtol=1e-6)
    if num_classes > 1:
        np.testing.assert_allclose(falling.sum(), 1, rtol=1e-6)
        assert np.all(np.diff(falling) <= 0)
        assert falling[-1] == 0
    if num_classes == 5:
        np.testing.assert_allclose(falling, np.array([15, 7, 3, 1, 0]) / 26, rtol=1e-6)


def test_a_step_of_weight_zero_adds_nothing_even_at_minus_infinity():
    student = jnp.array([1.0, 0.0, -jnp.inf, -jnp.inf])
    ranking = jnp.arange(4)

    @jax.jit
    def loss(student, weights):
        return losses.plackett_luce_nll(student, ranking, weights)

    short = losses.plackett_luce_nll(student[:2], ranking[:2], jnp.array([0.7, 0.3]))
    weights = jnp.array([0.7, 0.3, 0.0, 0.0])
    value, gradient = jax.value_and_grad(loss)(student, weights)
    np.testing.assert_allclose(value, short, rtol=1e-6)
    assert np.all(np.isfinite(gradient))
    np.testing.assert_array_equal(gradient[2:], 0)
    assert loss(student, jnp.array([0.7, 0.2, 0.1, 0.0])) == jnp.inf


def test_a_class_the_teacher_rules_out_still_competes():
    # The limit of a teacher logit that falls without end.
    student, label = jnp.array([1.0, 0.0, 2.0]), jnp.array(0)
    ruled_out = losses.plackett_luce(student, jnp.array([1.0, 0.0, -jnp.inf]), label)
    limit = losses.plackett_luce(student, jnp.array([1.0, 0.0, -60.0]), label)
    np.testing.assert_allclose(ruled_out, limit, rtol=1e-6)


def test_temperature_softens_the_weights_only():
    student, teacher, labels = batch()
    np.testing.assert_allclose(
        losses.plackett_luce(student, teacher, labels, temperature=4.0),
        losses.plackett_luce(student, teacher / 4, labels),
        rtol=1e-6,
    )
