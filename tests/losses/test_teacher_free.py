"""Teacher-free losses: worked numbers, what the targets are made of, and what trains what."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.losses import logits
from kdjax.losses.teacher_free import (
    cwtm_weights,
    permute_dark_knowledge,
    uskd,
    virtual_teacher,
    virtual_teacher_kd,
)

virtual_kd = jax.jit(virtual_teacher_kd, static_argnames="official")
own = jax.jit(uskd, static_argnames="rank_with")


def batch(seed=0, shape=(6, 5)):
    rng = np.random.default_rng(seed)
    first, second = (jnp.asarray(rng.normal(0, 2, shape), jnp.float32) for _ in range(2))
    return first, second, jnp.asarray(rng.integers(0, shape[-1], shape[:-1]))


def test_the_virtual_teacher_is_a_distribution_that_names_the_label():
    teacher = virtual_teacher(jnp.array([2, 0, -100]), 4, correct=0.97)
    np.testing.assert_allclose(teacher.sum(-1), 1, rtol=1e-6)
    np.testing.assert_allclose(teacher[0], [0.01, 0.01, 0.97, 0.01], rtol=1e-5)
    np.testing.assert_allclose(teacher[2], 0.25, rtol=1e-6)


def test_an_indifferent_virtual_teacher_is_label_smoothing():
    student, _, labels = batch()
    smoothed = logits.cross_entropy(student, labels, label_smoothing=0.1)
    plain = logits.cross_entropy(student, labels)
    uniform = virtual_kd(student, labels, temperature=1.0, correct=0.2)
    np.testing.assert_allclose(smoothed, 0.9 * plain + 0.1 * (uniform + np.log(5)), rtol=1e-5)


def test_the_paper_and_the_code_of_tfkd_agree_only_where_the_teacher_is_indifferent():
    student, _, labels = batch()
    apart = virtual_kd(student, labels, temperature=1.0)
    assert np.all(np.abs(apart - virtual_kd(student, labels, temperature=1.0, official=True)) > 0.1)
    same = virtual_kd(student, labels, temperature=1.0, correct=0.2)
    official = virtual_kd(student, labels, temperature=1.0, correct=0.2, official=True)
    np.testing.assert_allclose(same, official, rtol=1e-5)


def test_the_code_of_tfkd_softens_probabilities_until_they_are_all_but_uniform():
    labels, num_classes = jnp.zeros(1, int), 100
    student = virtual_teacher(labels, num_classes) / 20.0
    loss = virtual_kd(student, labels, temperature=20.0, official=True)
    np.testing.assert_allclose(loss, 0, atol=1e-6)
    np.testing.assert_allclose(jax.nn.softmax(student)[0, :2], [0.0105, 0.0100], atol=5e-5)


def test_the_paper_form_is_zero_for_a_student_that_is_the_virtual_teacher():
    labels = jnp.array([0, 3])
    student = jnp.log(virtual_teacher(labels, 5))
    loss = virtual_kd(student, labels, temperature=7.0)
    np.testing.assert_allclose(loss, 0, atol=1e-6)


def test_uskd_worked_numbers():
    student = jnp.log(jnp.array([[0.5, 0.3, 0.2], [0.1, 0.7, 0.2]]))
    weak = jnp.log(jnp.array([[0.2, 0.2, 0.6], [0.2, 0.5, 0.3]]))
    labels = jnp.array([0, 1])
    weights = np.array([0.25, 0.49]) + 1 - 0.37
    target = own(student, weak, labels, beta=0.0, mu=0.0)
    np.testing.assert_allclose(target, -weights * np.log([0.5, 0.7]), rtol=1e-5)
    # Ranked by w_c / (1 - w_y) + q_c / (1 - q_y). Row 0: 0.25 + 1 = 1.25, 0.25 + 0.6 = 0.85,
    # 0.75 + 0.4 = 1.15, so ranks 1, 3, 2; row 1: 0.4 + 1/3, 1 + 7/3, 0.6 + 2/3, so 3, 1, 2.
    others = own(student, weak, labels, alpha=0.0, beta=1.0, mu=0.0)
    first = -(2 / 5 * np.log(0.3 / 0.5) + 3 / 5 * np.log(0.2 / 0.5))
    second = -(2 / 5 * np.log(0.1 / 0.3) + 3 / 5 * np.log(0.2 / 0.3))
    np.testing.assert_allclose(others, [first, second], rtol=1e-5)


def test_the_official_ranking_differs_where_logarithms_outweigh_the_weak_head():
    student = jnp.log(jnp.array([[0.9, 0.09, 0.01]]))
    weak = jnp.log(jnp.array([[0.2, 0.04, 0.76]]))
    options = dict(alpha=0.0, beta=1.0, mu=0.0)
    # The others by probability: 0.05 + 0.9 below 0.95 + 0.1, so ranks 3, 2.
    by_probability = own(student, weak, jnp.array([0]), **options)
    np.testing.assert_allclose(by_probability, -0.4 * np.log(0.9) - 0.6 * np.log(0.1), rtol=1e-5)
    # By the code: 0.05 + log 0.09 / 1.105 above 0.95 + log 0.01 / 1.105, so ranks 2, 3.
    official = own(student, weak, jnp.array([0]), rank_with="official", **options)
    np.testing.assert_allclose(official, -0.6 * np.log(0.9) - 0.4 * np.log(0.1), rtol=1e-5)


def test_the_weak_head_learns_only_by_its_own_term():
    student, weak, labels = batch()
    without = jax.grad(lambda w: own(student, w, labels, mu=0.0).sum())(weak)
    np.testing.assert_array_equal(without, 0)
    gradient = jax.grad(lambda w: own(student, w, labels, mu=0.3).sum())(weak)

    def smoothed(w):
        return 0.3 * logits.cross_entropy(w, labels, label_smoothing=0.1).sum()

    np.testing.assert_allclose(gradient, jax.grad(smoothed)(weak), rtol=1e-5)


def test_uskd_soft_targets_have_no_gradient():
    student, weak, labels = batch()
    gradient = jax.grad(lambda s: own(s, weak, labels, beta=0.0, mu=0.0).sum())(student)
    q = jax.nn.softmax(student)
    onehot = jax.nn.one_hot(labels, 5)
    square = jnp.sum(q * onehot, -1) ** 2
    weight = square + 1 - square.mean()
    np.testing.assert_allclose(gradient, weight[:, None] * (q - onehot), rtol=1e-4, atol=1e-6)


def test_a_row_without_a_label_takes_no_part_in_the_mean_of_the_batch():
    student, weak, labels = batch()
    all_rows = own(student, weak, labels.at[2].set(-100))
    keep = np.array([0, 1, 3, 4, 5])
    np.testing.assert_allclose(all_rows[keep], own(student[keep], weak[keep], labels[keep]))
    assert all_rows[2] == 0


def test_padding_classes_are_taught_nothing():
    student, weak, labels = batch()
    pad = jnp.full((6, 2), -jnp.inf)
    padded = own(
        jnp.concatenate([student, pad], 1), jnp.concatenate([weak, pad], 1), labels, mu=0.0
    )
    np.testing.assert_allclose(padded, own(student, weak, labels, mu=0.0), rtol=1e-5)


def test_confidence_weights_have_mean_one_over_the_rows_that_count():
    _, teacher, _ = batch()
    where = jnp.array([True, True, False, True, True, False])
    weights = cwtm_weights(teacher, where=where)
    np.testing.assert_allclose(weights.sum() / where.sum(), 1, rtol=1e-6)
    confidence = jax.nn.softmax(teacher).max(-1)
    np.testing.assert_allclose(weights[0] / weights[1], confidence[0] / confidence[1], rtol=1e-5)
    np.testing.assert_array_equal(cwtm_weights(teacher, where=jnp.zeros(6, bool)), 0)


def test_dark_knowledge_is_permuted_around_a_fixed_largest():
    _, teacher, _ = batch(shape=(200, 5))
    permuted = permute_dark_knowledge(jax.random.key(1), teacher)
    np.testing.assert_array_equal(jnp.sort(permuted), jnp.sort(teacher))
    largest = teacher.argmax(-1)
    np.testing.assert_array_equal(permuted.argmax(-1), largest)
    rows = jnp.arange(200)
    np.testing.assert_array_equal(permuted[rows, largest], teacher[rows, largest])
    moved = np.mean(np.asarray(permuted != teacher))
    assert 0.5 < moved < 0.7  # a class of four others stays with probability 1/4: 0.8 * 3/4


def test_every_permutation_of_the_others_is_as_likely():
    teacher = jnp.broadcast_to(jnp.array([3.0, 9.0, 2.0, 1.0]), (6000, 4))
    permuted = np.asarray(permute_dark_knowledge(jax.random.key(2), teacher))
    _, counts = np.unique(permuted, axis=0, return_counts=True)
    assert len(counts) == 6
    np.testing.assert_allclose(counts, 1000, atol=150)


def test_two_classes_have_no_virtual_doubt_to_share():
    with pytest.raises(ValueError, match="num_classes must be >= 2"):
        virtual_teacher(jnp.array([0]), 1)
