"""Between vocabularies: spans, merged probabilities, sorted distances and matches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdjax.losses import cross_tokenizer, divergences

ENDS = st.lists(st.integers(1, 12), min_size=1, max_size=8, unique=True).map(sorted)


def probabilities(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).dirichlet(np.ones(shape[-1]), shape[:-1]))


def walked(student, teacher):
    """The published algorithm: whoever ends earlier goes on; equal ends close a group."""
    groups, i, j, start = [], 0, 0, (0, 0)
    while i < len(student) and j < len(teacher):
        if student[i] == teacher[j]:
            i, j = i + 1, j + 1
            groups.append((range(start[0], i), range(start[1], j)))
            start = (i, j)
        elif student[i] < teacher[j]:
            i += 1
        else:
            j += 1
    groups.append((range(start[0], len(student)), range(start[1], len(teacher))))
    return [group for group in groups if all(group)]


@settings(deadline=None, database=None, derandomize=True, max_examples=100)
@given(ENDS, ENDS)
def test_spans_are_those_of_walking_both_lists(student, teacher):
    spans = cross_tokenizer.align_spans(student, teacher)
    groups = walked(student, teacher)
    assert spans[2] == len(groups)
    for side in (0, 1):
        expected = np.full(len((student, teacher)[side]), -1)
        for number, group in enumerate(groups):
            expected[list(group[side])] = number
        assert spans[side].tolist() == expected.tolist()


def test_equal_tokenisations_align_token_by_token():
    student, teacher, number = cross_tokenizer.align_spans([1, 4, 6], [1, 4, 6])
    assert student.tolist() == teacher.tolist() == [0, 1, 2]
    assert number == 3


def test_a_token_of_no_length_shifts_nothing():
    student, teacher, _ = cross_tokenizer.align_spans([2, 2, 5, 7], [2, 5, 7])
    assert student.tolist() == [0, 0, 1, 2]
    assert teacher.tolist() == [0, 1, 2]


def test_tokens_on_one_side_only_belong_to_no_span():
    student, teacher, number = cross_tokenizer.align_spans([2, 5], [2])
    assert (student.tolist(), teacher.tolist(), number) == ([0, -1], [0], 1)
    student, teacher, number = cross_tokenizer.align_spans([], [2])
    assert (student.tolist(), teacher.tolist(), number) == ([], [-1], 0)


def test_vocabularies_without_a_common_token_have_no_match():
    for ids in cross_tokenizer.matched_tokens(["a"], ["b", "c"]):
        assert ids.shape == (0,)


@pytest.mark.parametrize("rule", ["bayesian", "observed"])
def test_a_span_of_one_token_keeps_its_probabilities(rule):
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(3, 5)))
    merged = cross_tokenizer.merge_spans(
        logits, jnp.array([0, 1, 2]), jnp.array([0, 1, 2]), num_spans=3, rule=rule
    )
    np.testing.assert_allclose(merged, jax.nn.softmax(logits), rtol=1e-5)


def test_spans_multiply_the_other_tokens_of_the_span():
    probs = probabilities(0, 3, 4)
    ids, spans = jnp.array([3, 1, 2]), jnp.array([1, 1, 1])
    merge = cross_tokenizer.merge_spans
    bayesian = merge(jnp.log(probs), ids, spans, num_spans=2)
    np.testing.assert_allclose(bayesian[1], probs[2] * probs[0, 3] * probs[1, 1], rtol=1e-5)
    observed = merge(jnp.log(probs), ids, spans, num_spans=2, rule="observed")
    np.testing.assert_allclose(observed[1], probs[0] * probs[1, 1] * probs[2, 2], rtol=1e-5)
    np.testing.assert_array_equal(bayesian[0], 0)


def test_a_token_of_no_span_has_no_gradient():
    logits = jnp.zeros((3, 4))
    ids, spans = jnp.array([0, 1, 2]), jnp.array([0, 0, -1])

    def total(logits):
        return jnp.sum(jnp.arange(4) * cross_tokenizer.merge_spans(logits, ids, spans, num_spans=1))

    gradient = jax.grad(total)(logits)
    np.testing.assert_array_equal(gradient[2], 0)
    assert np.all(np.any(gradient[:2] != 0, axis=-1))


def test_a_factor_is_at_least_its_clamp():
    logits = jnp.array([[0.0, -1e4], [0.0, 0.0]])
    merged = cross_tokenizer.merge_spans(logits, jnp.array([1, 0]), jnp.array([0, 0]), num_spans=1)
    np.testing.assert_allclose(merged, [[0.5e-8, 0.5e-8]], rtol=1e-4)


def test_worked_number():
    value = cross_tokenizer.uld(jnp.array([0.7, 0.2, 0.1]), jnp.array([0.1, 0.6, 0.2, 0.1]))
    np.testing.assert_allclose(value, 0.2, atol=1e-6)


def test_uld_does_not_see_the_order_of_a_vocabulary():
    student, teacher = probabilities(0, 3, 5), probabilities(1, 3, 7)
    value = cross_tokenizer.uld(student, teacher)
    np.testing.assert_array_equal(cross_tokenizer.uld(student[:, ::-1], teacher), value)
    np.testing.assert_array_equal(cross_tokenizer.uld(student, teacher[:, ::-1]), value)
    np.testing.assert_allclose(cross_tokenizer.uld(teacher[:, ::-1], teacher), 0, atol=1e-6)


def test_uld_is_symmetric_and_at_most_the_l1_distance():
    one, other = probabilities(0, 3, 5), probabilities(1, 3, 5)
    value = cross_tokenizer.uld(one, other)
    np.testing.assert_allclose(cross_tokenizer.uld(other, one), value)
    assert np.all(value <= jnp.abs(one - other).sum(-1) + 1e-6)


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_hybrid_of_one_vocabulary_is_the_divergence(beta):
    student, teacher = probabilities(0, 3, 5), probabilities(1, 3, 5)
    ids = jnp.arange(5)
    expected = divergences.generalized_jsd(jnp.log(teacher), jnp.log(student), beta=beta)
    value = cross_tokenizer.hybrid_uld(student, teacher, ids, ids, beta=beta)
    np.testing.assert_allclose(value, expected, rtol=1e-5)


def test_hybrid_without_a_match_is_uld():
    student, teacher = probabilities(0, 3, 5), probabilities(1, 3, 7)
    none = jnp.zeros(0, int)
    value = cross_tokenizer.hybrid_uld(student, teacher, none, none)
    np.testing.assert_allclose(value, cross_tokenizer.uld(student, teacher), rtol=1e-6)


def test_hybrid_sees_which_of_the_matched_tokens_is_probable():
    student, teacher = probabilities(0, 3, 5), probabilities(1, 3, 7)
    ids, others = jnp.array([0, 1]), jnp.array([1, 0])
    value = cross_tokenizer.hybrid_uld(student, teacher, ids, ids)
    assert not np.allclose(cross_tokenizer.hybrid_uld(student, teacher, ids, others), value)
    order = jnp.array([0, 1, 4, 2, 3])
    turned = cross_tokenizer.hybrid_uld(student[:, order], teacher, ids, ids)
    np.testing.assert_allclose(turned, value, rtol=1e-5)


def test_matched_tokens_take_no_part_in_the_sorted_distance():
    student, teacher = probabilities(0, 3, 5), probabilities(1, 3, 8)
    _, unmatched = cross_tokenizer.hybrid_uld_terms(
        student, teacher, jnp.array([0, 3]), jnp.array([1, 2])
    )
    rest = student[:, np.array([1, 2, 4])], teacher[:, np.array([0, 3, 4, 5, 6, 7])]
    np.testing.assert_allclose(unmatched, cross_tokenizer.uld(*rest), rtol=1e-5)


def test_weight_of_the_matches_is_their_share_of_the_teachers_vocabulary():
    student, teacher = probabilities(0, 3, 5), probabilities(1, 3, 8)
    ids = jnp.array([0, 3]), jnp.array([1, 2])
    matched, unmatched = cross_tokenizer.hybrid_uld_terms(student, teacher, *ids)
    value = cross_tokenizer.hybrid_uld(student, teacher, *ids)
    np.testing.assert_allclose(value, 0.25 * matched + 0.75 * unmatched, rtol=1e-6)
