"""Teachers that a gate picks: worked numbers, limits, and where the gradient goes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.losses import logits, mutual, teacher_routing

RNG = np.random.default_rng(0)
STUDENT = np.float32(RNG.normal(0, 2, (6, 5)))
TEACHERS = np.float32(RNG.normal(0, 2, (6, 4, 5)))
GATE = np.asarray(jax.nn.softmax(RNG.normal(size=(6, 4)).astype(np.float32)))
routed = teacher_routing.routed_topk_distillation


def test_all_teachers_are_their_mean_whatever_the_gate_says():
    each = [logits.kd(STUDENT, TEACHERS[:, m]) for m in range(4)]
    for gate in (GATE, GATE[::-1]):
        found = routed(STUDENT, TEACHERS, gate, num_selected=4)
        np.testing.assert_allclose(found, np.mean(each, 0), rtol=1e-5)


def test_one_teacher_is_kd():
    found = routed(STUDENT, TEACHERS[:, :1], np.ones((6, 1), np.float32))
    np.testing.assert_allclose(found, logits.kd(STUDENT, TEACHERS[:, 0]), rtol=1e-6)


def test_each_example_learns_from_its_own_teacher():
    chosen = np.argmax(GATE, 1)
    assert len(set(chosen)) > 1
    own = logits.kd(STUDENT, TEACHERS[np.arange(6), chosen])
    np.testing.assert_allclose(routed(STUDENT, TEACHERS, GATE), own, rtol=1e-6)


def test_equal_probabilities_pick_the_lowest_index():
    assert teacher_routing.route_topk(jnp.full((1, 4), 0.25), num_selected=2).tolist() == [[0, 1]]


@pytest.mark.slow
def test_the_gate_learns_only_where_it_weighs():
    def slope(weighted, k):
        def loss(gate):
            return routed(STUDENT, TEACHERS, gate, num_selected=k, gate_weighted=weighted).sum()

        return np.abs(jax.grad(loss)(GATE)).sum()

    assert slope(False, 2) == 0
    assert slope(True, 2) > 0.1
    assert slope(True, 1) < 1e-5


def test_a_teacher_that_is_not_picked_may_be_broken_and_one_that_is_shows():
    broken, chosen = TEACHERS.copy(), np.argmax(GATE[0])
    broken[0, (chosen + 1) % 4] = np.nan
    gradient = jax.grad(lambda s, t: routed(s, t, GATE).sum())
    np.testing.assert_array_equal(gradient(STUDENT, broken), gradient(STUDENT, TEACHERS))
    broken[0, chosen] = np.nan
    assert np.isnan(routed(STUDENT, broken, GATE)[0])


def test_pixels_share_the_choice_of_their_example():
    student, teachers = STUDENT.reshape(2, 3, 5), TEACHERS.reshape(2, 3, 4, 5)
    found = routed(student, teachers, GATE[:2])
    rows = routed(STUDENT, TEACHERS, np.repeat(GATE[:2], 3, 0))
    np.testing.assert_allclose(found, rows.reshape(2, 3), rtol=1e-6)


@pytest.mark.slow
def test_cotraining_without_gradients_of_targets_is_mutual_learning():
    together, labels = TEACHERS, np.array([0, 1, 2, 3, 4, -100])

    def total(kernel, **options):
        return jax.grad(lambda z: kernel(z, labels, temperature=2.0, **options).sum())(together)

    def scaled(z, labels, temperature):  # DML divides by the number of other peers
        alone = mutual.mutual_cotraining_loss(z, labels, weight=0.0)
        return 3 * mutual.dml(z, labels, temperature=temperature) - 2 * alone

    stopped = total(mutual.mutual_cotraining_loss, stop_target_gradient=True)
    np.testing.assert_allclose(stopped, total(scaled), rtol=1e-4, atol=1e-5)
    assert np.abs(stopped - total(mutual.mutual_cotraining_loss)).max() > 0.1
