"""The token losses: worked numbers, masks, reductions, and what a sampled token estimates."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from kdjax.losses import divergences, logits, tokens

P, Q = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.9, 0.1]))
PROPERTIES = settings(deadline=None, database=None, derandomize=True, max_examples=20)


def pair(seed=0, shape=(6, 5)):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(0, 2, shape)), jnp.asarray(rng.normal(0, 2, shape))


def test_worked_numbers():
    np.testing.assert_allclose(tokens.soft_cross_entropy(Q, P), 1.203973, atol=1e-6)
    np.testing.assert_allclose(tokens.soft_cross_entropy(P, P), 0.693147, atol=1e-6)
    np.testing.assert_allclose(tokens.engine(Q, P), 0.693147, atol=1e-6)


def test_divergences_of_tokens_have_the_numbers_of_the_literature():
    numbers = {
        divergences.forward_kl: 0.510826,
        divergences.reverse_kl: 0.368064,
        divergences.total_variation: 0.4,
        divergences.skewed_forward_kl: 0.365321,
        divergences.skewed_reverse_kl: 0.307137,
    }
    for divergence, number in numbers.items():
        np.testing.assert_allclose(divergence(P, Q), number, atol=1e-6)
    for beta, number in ((0.1, 0.043074), (0.5, 0.101749), (0.9, 0.033603)):
        value = divergences.generalized_jsd(P, Q, beta=beta)
        np.testing.assert_allclose(value, number, atol=1e-6)


def test_soft_cross_entropy_is_the_forward_kl_and_the_teachers_entropy():
    student, teacher = pair()
    value = tokens.soft_cross_entropy(student, teacher)
    entropy = tokens.soft_cross_entropy(teacher, teacher)
    expected = divergences.forward_kl(teacher, student) + entropy
    np.testing.assert_allclose(value, expected, rtol=1e-5)

    def gradient(loss):
        return jax.grad(lambda s: loss(s).sum())(student)

    of_kl = gradient(lambda s: divergences.forward_kl(teacher / 2, s / 2))
    of_cross_entropy = gradient(lambda s: tokens.soft_cross_entropy(s, teacher, temperature=2.0))
    np.testing.assert_allclose(of_cross_entropy, of_kl, atol=1e-6)
    scaled = gradient(
        lambda s: tokens.soft_cross_entropy(s, teacher, temperature=2.0, scale_by_t2=True)
    )
    np.testing.assert_allclose(scaled, 4 * of_kl, atol=1e-6)


def test_soft_cross_entropy_of_a_certain_teacher_is_the_cross_entropy_of_its_label():
    student, _ = pair()
    labels = jnp.array([0, 1, 2, 3, 4, 0])
    certain = jnp.where(jax.nn.one_hot(labels, 5) > 0, 0.0, -jnp.inf)
    np.testing.assert_allclose(
        tokens.soft_cross_entropy(student, certain),
        logits.cross_entropy(student, labels),
        rtol=1e-6,
    )
    np.testing.assert_allclose(
        -tokens.selective_log_softmax(student, labels),
        logits.cross_entropy(student, labels),
        rtol=1e-6,
    )


def test_engine_is_the_reverse_kl_and_the_students_entropy():
    student, teacher = pair()
    entropy = tokens.soft_cross_entropy(student, student)
    np.testing.assert_allclose(
        tokens.engine(student, teacher),
        divergences.reverse_kl(teacher, student) + entropy,
        rtol=1e-5,
    )


def test_a_token_excluded_on_one_side_costs_infinity_or_nothing_but_never_nan():
    full, half = jnp.array([0.0, 0.0]), jnp.array([0.0, -jnp.inf])
    for loss in (tokens.soft_cross_entropy, tokens.engine):
        assert not np.isnan(loss(half, full))
        assert not np.isnan(loss(full, half))
        assert np.all(np.isfinite(jax.grad(loss)(half, half)))
    assert tokens.soft_cross_entropy(half, full) == np.inf
    assert tokens.soft_cross_entropy(full, half) == np.log(2).astype(np.float32)
    assert tokens.engine(full, half) == np.inf


def test_expected_gradient_of_a_sampled_token_is_that_of_the_reverse_kl():
    with jax.enable_x64(True):
        student, teacher = (x[0] for x in pair())

        def of_token(token):
            return jax.grad(tokens.sampled_token_reverse_kl)(student, teacher, token)

        every = jax.vmap(of_token)(jnp.arange(5))
        expected = jax.nn.softmax(student) @ every
        exact = jax.grad(divergences.reverse_kl, argnums=1)(teacher, student)
        np.testing.assert_allclose(expected, exact, rtol=1e-10)
        np.testing.assert_allclose(exact.sum(), 0, atol=1e-12)


def test_the_end_of_sequence_is_kept_and_all_after_it_dropped():
    ids = jnp.array([[5, 2, 7, 2], [2, 2, 2, 2], [5, 6, 7, 8]])
    mask = tokens.completion_mask(ids, eos_token=2)
    assert mask.tolist() == [
        [True, True, False, False],
        [True, False, False, False],
        [True, True, True, True],
    ]


def test_an_end_in_the_prompt_ends_nothing():
    ids = jnp.array([2, 2, 5, 2, 2])
    completion = jnp.array([False, False, True, True, True])
    mask = tokens.completion_mask(ids, eos_token=2, where=completion)
    assert mask.tolist() == [False, False, True, True, False]


def test_any_of_several_ends_ends_a_sequence():
    assert tokens.completion_mask(jnp.array([5, 3, 2]), eos_token=(2, 3)).tolist() == [
        True,
        True,
        False,
    ]


def test_moved_labels_give_the_losses_of_cut_logits():
    student, _ = pair(shape=(2, 4, 5))
    labels = jnp.array([[-100, 1, 2, 3], [-100, -100, 0, 4]])
    moved = logits.cross_entropy(student, tokens.next_token_labels(labels))
    cut = logits.cross_entropy(student[:, :-1], labels[:, 1:])
    np.testing.assert_array_equal(moved[:, :-1], cut)
    np.testing.assert_array_equal(moved[:, -1], 0)


@PROPERTIES
@given(arrays(np.float32, (3, 4), elements=st.floats(0, 9, width=32)))
def test_reductions_agree_for_sequences_of_one_length(losses):
    where = jnp.array(
        [[True, False, True, False], [False, True, True, False], [True, True, False, False]]
    )
    np.testing.assert_allclose(
        tokens.token_mean(losses, where=where), tokens.sequence_mean(losses, where=where), atol=1e-5
    )


def test_reductions_differ_for_sequences_of_several_lengths():
    losses = jnp.array([[1.0, 1.0], [3.0, 9.0]])
    where = jnp.array([[True, True], [True, False]])
    np.testing.assert_allclose(tokens.token_mean(losses, where=where), 5 / 3, rtol=1e-6)
    np.testing.assert_allclose(tokens.sequence_mean(losses, where=where), 2.0)


def test_totals_of_micro_batches_divided_once_are_the_mean_of_the_batch():
    losses, _ = pair(shape=(4, 6))
    where = jnp.asarray(np.random.default_rng(0).random((4, 6)) < 0.5)
    for total, mean in (
        (tokens.token_total, tokens.token_mean),
        (tokens.sequence_total, tokens.sequence_mean),
    ):
        parts = [total(losses[cut], where=where[cut]) for cut in (slice(0, 1), slice(1, 4))]
        (first, first_weight), (second, second_weight) = parts
        once = (first + second) / (first_weight + second_weight)
        np.testing.assert_allclose(once, mean(losses, where=where), rtol=1e-5)


def test_an_empty_sequence_changes_no_mean():
    losses, where = jnp.array([[1.0, 2.0], [5.0, 5.0]]), jnp.array([[True, True], [False, False]])
    for mean in (tokens.token_mean, tokens.sequence_mean):
        np.testing.assert_array_equal(mean(losses, where=where), mean(losses[:1]))


def test_no_token_at_all_gives_zero_and_a_gradient_of_zero():
    for mean in (tokens.token_mean, tokens.sequence_mean):
        value, gradient = jax.value_and_grad(mean)(jnp.ones((2, 3)), where=jnp.zeros((2, 3), bool))
        assert value == 0
        np.testing.assert_array_equal(gradient, 0)


def test_values_do_not_depend_on_the_order_of_the_vocabulary_or_an_offset():
    student, teacher = pair()
    order = jnp.array([3, 0, 4, 1, 2])
    offset = jnp.arange(6.0)[:, None]
    for loss in (tokens.soft_cross_entropy, tokens.engine):
        value = loss(student, teacher)
        np.testing.assert_allclose(loss(student[:, order], teacher[:, order]), value, rtol=1e-5)
        np.testing.assert_allclose(loss(student + offset, teacher - offset), value, rtol=1e-5)
        assert not np.allclose(loss(student[:, order], teacher), value)


def test_a_label_outside_the_vocabulary_has_log_probability_zero_and_no_gradient():
    student, _ = pair(shape=(2, 5))
    labels = jnp.array([-100, 5])
    total, gradient = jax.value_and_grad(lambda s: tokens.selective_log_softmax(s, labels).sum())(
        student
    )
    assert total == 0
    np.testing.assert_array_equal(gradient, 0)
