"""Hard negatives and the ranking of them: CPRD's worked numbers, and what it must not see."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.losses import (
    listmle,
    mine_hard_negatives,
    partial_ranking_contrastive_loss,
    valid_negatives,
)

TEACHER = jnp.array([0.9, 0.8, 0.2, 0.1])


def loss(student, valid, temperature=1.0, teacher=TEACHER, **options):
    valid = jnp.array([i < valid for i in range(4)]) if isinstance(valid, int) else valid
    return partial_ranking_contrastive_loss(
        jnp.asarray(student, jnp.float32), teacher, valid, temperature=temperature, **options
    )


@pytest.mark.parametrize(
    ("student", "valid", "temperature", "expected"),
    [
        ([2, 1, 0, -1], 1, 1.0, 0.440190),
        ([2, 1, 0, -1], 2, 1.0, 0.847796),
        ([2, 1, 0, -1], 3, 1.0, 1.161057),
        ([1, 2, 0, -1], 2, 1.0, 1.610036),
        ([2, 1, 0, -1], 1, 0.5, 0.145078),
        ([2, 1, 0, -1], 0, 1.0, 0.0),
    ],
)
def test_worked_numbers(student, valid, temperature, expected):
    np.testing.assert_allclose(loss(student, valid, temperature), expected, atol=2e-6)


def test_all_valid_is_listmle_and_one_valid_is_info_nce():
    student = jnp.array([0.3, -0.2, 0.9, 0.1])
    np.testing.assert_allclose(loss(student, 4, 0.5), listmle(student / 0.5, TEACHER), rtol=1e-6)
    first = -jax.nn.log_softmax(student / 0.5)[0]
    np.testing.assert_allclose(loss(student, 1, 0.5), first, rtol=1e-6)


def test_only_the_order_of_the_teacher_counts():
    student = jnp.array([0.3, -0.2, 0.9, 0.1])

    def graded(s, teacher):
        return loss(s, valid_negatives(teacher), teacher=teacher)

    for other in (jnp.exp(20 * TEACHER), TEACHER**3 - 5):
        a, b = (jax.value_and_grad(graded)(student, t) for t in (TEACHER, other))
        jax.tree.map(np.testing.assert_array_equal, a, b)
    assert graded(student, -TEACHER) != graded(student, TEACHER)


def test_an_item_without_a_teacher_score_is_last_and_not_valid():
    student, all_valid = jnp.array([0.3, -0.2, 0.9, 0.1]), jnp.ones(4, bool)
    lost = loss(student, all_valid, teacher=TEACHER.at[0].set(jnp.nan))
    moved = loss(student, jnp.array([False, True, True, True]), teacher=TEACHER.at[0].set(0.0))
    np.testing.assert_allclose(lost, moved, rtol=1e-6)
    unknown = TEACHER.at[:2].set(jnp.nan)  # neither of the two teaches
    known = jnp.array([False, False, True, True])
    np.testing.assert_allclose(
        loss(student, all_valid, teacher=unknown), loss(student, known, teacher=unknown), rtol=1e-6
    )
    hidden = loss(student, known, teacher=TEACHER.at[:2].set(-1.0))
    np.testing.assert_allclose(loss(student, known, teacher=unknown), hidden, rtol=1e-6)
    assert float(loss(student, jnp.array([True, True, False, False]), teacher=unknown)) == 0.0
    assert valid_negatives(TEACHER.at[0].set(jnp.nan)).tolist() == [False, True, True, False]


def test_a_near_tie_is_no_order():
    near = jnp.array([0.9, 0.899, 0.2, 0.1])
    student = jnp.array([0.3, -0.2, 0.9, 0.1])
    skipped = loss(student, jnp.array([False, True, False, False]), teacher=near)
    np.testing.assert_allclose(loss(student, 2, teacher=near, tie_tolerance=0.01), skipped)


def test_growing_margins_in_the_right_order_drive_the_loss_to_zero():
    values = [float(loss(m * jnp.array([3.0, 2.0, 1.0, 0.0]), 4)) for m in (1, 4, 16)]
    assert values == sorted(values, reverse=True)
    assert values[-1] < 1e-5


def test_own_items_and_padding_are_never_mined():
    scores = jnp.array([[0.9, 0.8, 0.7, 0.6, 0.5]])
    own = jnp.array([[True, True, False, False, False]])  # two captions of one image
    where = jnp.array([[True, True, True, False, True]])
    mined = mine_hard_negatives(scores, own, negatives=3, where=where)
    assert mined.indices[0, :2].tolist() == [2, 4]
    assert mined.found.tolist() == [[True, True, False]]
