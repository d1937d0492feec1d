"""MLKD's correlations: their definitions, what they ignore, and masks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.losses.correlations import batch_correlation, class_correlation, mlkd, mlkd_masks
from kdjax.losses.logits import kd

of_batch, of_classes = jax.jit(batch_correlation), jax.jit(class_correlation)
both = pytest.mark.parametrize("kernel", [of_batch, of_classes], ids=["batch", "class"])


def batch(seed=0, shape=(6, 5)):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.normal(0, 2, shape), jnp.float32) for _ in range(2)]


def test_worked_numbers_of_one_example():
    student, teacher = jnp.array([[2.0, 1.0, 0.0]]), jnp.array([[0.0, 1.0, 2.0]])
    q, p = (np.exp(x) / np.exp(x).sum() for x in (np.asarray(student[0]), np.asarray(teacher[0])))
    np.testing.assert_allclose(of_batch(student, teacher, temperature=1.0), 0, atol=1e-6)
    expected = ((np.outer(p, p) - np.outer(q, q)) ** 2).sum(-1)
    np.testing.assert_allclose(of_classes(student, teacher, temperature=1.0), expected, rtol=1e-5)


@both
def test_zero_with_zero_gradient_at_the_teacher(kernel):
    student, _ = batch()
    value, gradient = jax.value_and_grad(lambda s: kernel(s, student).sum())(student)
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)


@both
def test_unchanged_by_an_offset_of_each_row(kernel):
    student, teacher = batch()
    moved = kernel(student + jnp.arange(6.0)[:, None], teacher)
    np.testing.assert_allclose(moved, kernel(student, teacher), rtol=1e-4, atol=1e-7)


def test_batch_correlation_ignores_the_names_of_the_classes_and_class_correlation_does_not():
    student, teacher = batch()
    order = jnp.array([3, 0, 4, 1, 2])
    np.testing.assert_allclose(
        of_batch(student[:, order], teacher), of_batch(student, teacher), rtol=1e-4
    )
    assert not np.allclose(
        of_classes(student[:, order], teacher).sum(), of_classes(student, teacher).sum(), rtol=1e-2
    )


def test_class_correlation_ignores_the_order_of_the_examples_and_batch_correlation_does_not():
    student, teacher = batch()
    order = jnp.array([3, 0, 4, 1, 2, 5])
    np.testing.assert_allclose(
        of_classes(student[order], teacher), of_classes(student, teacher), rtol=1e-4
    )
    assert not np.allclose(
        of_batch(student[order], teacher).sum(), of_batch(student, teacher).sum(), rtol=1e-2
    )


@both
def test_masked_rows_are_as_if_they_were_not_there(kernel):
    student, teacher = batch()
    keep = np.array([0, 2, 3, 5])
    where = jnp.zeros(6, bool).at[keep].set(True)
    masked = kernel(student, teacher, where=where)
    alone = kernel(student[keep], teacher[keep])
    np.testing.assert_allclose(masked[keep] if kernel is of_batch else masked, alone, rtol=1e-5)
    np.testing.assert_array_equal(kernel(student, teacher, where=jnp.zeros(6, bool)), 0)


def test_masks_hold_the_lower_half():
    teacher = jnp.log(jnp.array([[0.8, 0.2], [0.4, 0.6], [0.3, 0.7], [0.1, 0.9]]))
    examples, classes = mlkd_masks(teacher)
    np.testing.assert_array_equal(examples, [False, True, True, False])
    np.testing.assert_array_equal(classes, [True, False])


def test_mlkd_is_the_masked_sum_over_temperatures():
    student, teacher = batch()
    examples, classes = mlkd_masks(teacher)
    expected = 0.0
    for temperature in (2.0, 4.0):
        instances = kd(student, teacher, temperature=temperature)
        instances += of_batch(student, teacher, temperature=temperature)
        expected += (instances * examples).mean()
        expected += (of_classes(student, teacher, temperature=temperature) * classes).mean()
    total = mlkd(student, teacher, temperatures=(2.0, 4.0), examples=examples, classes=classes)
    np.testing.assert_allclose(total, expected, rtol=1e-6)
    unmasked = mlkd(student, teacher, temperatures=(2.0, 4.0))
    assert unmasked > total


def test_an_example_that_is_not_taught_keeps_its_place_in_the_pairs_of_the_others():
    student, teacher = batch()
    examples = jnp.arange(6) != 2

    def loss(student, temperature):
        return mlkd(student, teacher, temperatures=(temperature,), examples=examples)

    assert np.any(np.asarray(jax.grad(loss)(student, 3.0))[2] != 0)
