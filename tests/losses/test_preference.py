"""Preference losses: worked numbers, limits, and what they do not depend on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.losses import preference

ZERO = jnp.zeros(1)
CHOSEN, REJECTED = jnp.array([2.0]), jnp.array([-1.0])
PAIRS = (preference.dpo, preference.dpo_hinge, preference.ipo)


def log_probs(seed=0, size=4):
    return [jnp.asarray(x) for x in np.random.default_rng(seed).normal(0, 3, (4, size))]


@pytest.mark.parametrize(
    ("kernel", "expected"),
    [(preference.dpo, 0.554355), (preference.dpo_hinge, 0.7), (preference.ipo, 4.0)],
)
def test_worked_numbers_of_pairs(kernel, expected):
    value = kernel(CHOSEN, REJECTED, ZERO, ZERO, beta=0.1)
    np.testing.assert_allclose(value, expected, atol=1e-6)


def test_worked_numbers_of_kto():
    pair = preference.kto_pair(CHOSEN, REJECTED, ZERO, ZERO, beta=0.1)
    np.testing.assert_allclose(pair.ravel(), [0.450166, 0.425557], atol=1e-6)
    np.testing.assert_allclose(pair.mean(), 0.437862, atol=1e-6)
    ratios, desirable = jnp.array([2.0, -1.0]), jnp.array([True, False])
    value = preference.kto(ratios, jnp.zeros(2), desirable, jnp.array(0.0), beta=0.1)
    np.testing.assert_allclose(value, [0.450166, 0.475021], atol=1e-6)


def test_log_probability_of_a_response_is_the_sum_of_those_of_its_labels():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 5)))
    labels = jnp.array([[-100, -100, 3, 1], [2, 0, 4, -100]])
    value = preference.sequence_logprob(logits, labels)
    expected = jax.nn.log_softmax(logits)
    np.testing.assert_allclose(value[0], expected[0, 1, 3] + expected[0, 2, 1], rtol=1e-6)
    np.testing.assert_allclose(value[1], expected[1, 0, 0] + expected[1, 1, 4], rtol=1e-6)


def test_a_response_without_labels_has_log_probability_zero_and_no_gradient():
    logits, labels = jnp.ones((1, 3, 4)), jnp.full((1, 3), -100)
    value, gradient = jax.value_and_grad(lambda z: preference.sequence_logprob(z, labels).sum())(
        logits
    )
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("kernel", PAIRS)
def test_losses_of_pairs_depend_on_the_margin_alone(kernel):
    arrays = log_probs()
    value = kernel(*arrays)
    np.testing.assert_allclose(kernel(*(x + 5.0 for x in arrays)), value, rtol=1e-4)
    chosen, rejected, *reference = arrays
    np.testing.assert_allclose(kernel(chosen + 1, rejected + 1, *reference), value, rtol=1e-4)
    assert not np.allclose(kernel(rejected, chosen, *reference), value)


@pytest.mark.parametrize("kernel", PAIRS)
def test_the_gradient_prefers_the_chosen_response(kernel):
    gradients = jax.grad(lambda *x: kernel(*x).sum(), argnums=(0, 1))(ZERO, ZERO, ZERO, ZERO)
    assert gradients[0] < 0 < gradients[1]


def test_dpo_without_a_difference_to_the_reference_is_log_two():
    arrays = log_probs()
    value = preference.dpo(*arrays[:2], *arrays[:2], label_smoothing=0.3)
    np.testing.assert_allclose(value, np.log(2), rtol=1e-6)


def test_label_smoothing_mixes_in_the_swapped_preference():
    chosen, rejected, *reference = log_probs()
    smoothed = preference.dpo(chosen, rejected, *reference, beta=0.5, label_smoothing=0.2)
    right = preference.dpo(chosen, rejected, *reference, beta=0.5)
    swapped = preference.dpo(rejected, chosen, *reversed(reference), beta=0.5)
    np.testing.assert_allclose(smoothed, 0.8 * right + 0.2 * swapped, rtol=1e-5)


def test_ipo_vanishes_at_its_target_margin():
    value = preference.ipo(jnp.array([2.0]), jnp.array([-3.0]), ZERO, ZERO, beta=0.1)
    np.testing.assert_allclose(value, 0, atol=1e-9)


def test_the_reference_point_of_kto_is_never_negative():
    ratios = jnp.array([-3.0, 1.0])
    assert preference.kto_reference_point(ratios, jnp.zeros(2)) == 0
    where = jnp.array([False, True])
    assert preference.kto_reference_point(ratios, jnp.zeros(2), where=where) == 1
    nobody = jnp.zeros(2, bool)
    assert preference.kto_reference_point(ratios, jnp.zeros(2), where=nobody) == 0


def test_kto_of_pairs_is_kto_with_the_other_sides_mean():
    chosen, rejected, *reference = log_probs()
    value = preference.kto_pair(chosen, rejected, *reference, beta=0.3)
    for row, (own, own_reference, other, other_reference) in enumerate(
        (
            (chosen, reference[0], rejected, reference[1]),
            (rejected, reference[1], chosen, reference[0]),
        )
    ):
        point = preference.kto_reference_point(other, other_reference)
        expected = preference.kto(own, own_reference, jnp.full(4, row == 0), point, beta=0.3)
        np.testing.assert_allclose(value[row], expected, rtol=1e-5)


def test_reference_points_of_pairs_pull_only_where_they_may():
    arrays = [jnp.array([2.0, 3.0]), jnp.array([1.0, 2.0]), jnp.zeros(2), jnp.zeros(2)]

    def gradient(stop):
        return jax.grad(
            lambda chosen: preference.kto_pair(chosen, *arrays[1:], stop_reference_point=stop)[
                1
            ].sum()
        )(arrays[0])

    np.testing.assert_array_equal(gradient(True), 0)
    assert np.all(gradient(False) != 0)


def test_pairs_that_do_not_count_leave_no_trace():
    arrays = log_probs()
    where = jnp.array([True, True, False, True])
    value = preference.kto_pair(*arrays, where=where)
    kept = preference.kto_pair(*(x[where] for x in arrays))
    np.testing.assert_allclose(value[:, where], kept, rtol=1e-6)
    np.testing.assert_array_equal(value[:, 2], 0)
