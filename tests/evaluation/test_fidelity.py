"""Student against teacher: hand-computed numbers, scipy as oracle, invariances, refusals."""

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from kdjax.evaluation import fidelity

TEACHER = np.array([[3.0, 2.0, 1.0], [0.0, 1.0, 2.0]])
STUDENT = np.array([[3.0, 1.0, 2.0], [2.0, 1.0, 0.0]])


@st.composite
def pairs(draw, classes=4):
    n = draw(st.integers(1, 10))
    # Few distinct values, so that ties are common.
    values = st.one_of(st.sampled_from([0.0, 1.0, 2.0]), st.floats(-30, 30, width=32))
    both = [draw(hnp.arrays(np.float32, (n, classes), elements=values)) for _ in range(2)]
    return (*both, draw(st.permutations(range(n))))


def test_agreement_by_hand():
    assert fidelity.agreement(STUDENT, TEACHER) == 0.5
    # Sets of two: {0, 2} and {0, 1} share one; {0, 1} and {2, 1} share one.
    assert fidelity.agreement(STUDENT, TEACHER, k=2) == 0.5
    assert fidelity.agreement(STUDENT, TEACHER, k=3) == 1.0


def test_kl_goes_from_teacher_to_student():
    teacher, student = np.log([[0.5, 0.5]]), np.log([[0.25, 0.75]])
    expected = 0.5 * np.log(0.5 / 0.25) + 0.5 * np.log(0.5 / 0.75)
    assert fidelity.kl_to_teacher(student, teacher) == pytest.approx(expected)
    assert fidelity.kl_to_teacher(student, teacher) != pytest.approx(
        fidelity.kl_to_teacher(teacher, student)
    )


def test_kl_of_certain_but_different_models_is_large_and_finite():
    teacher, student = np.array([[1e4, 0.0]]), np.array([[0.0, 1e4]])
    assert fidelity.kl_to_teacher(student, teacher) == 1e4


def test_rank_correlation_by_hand():
    found = fidelity.rank_correlation(STUDENT, TEACHER)
    assert found.kendall == pytest.approx((1 / 3 - 1) / 2)
    assert found.spearman == pytest.approx((0.5 - 1) / 2)


def test_an_example_that_ranks_nothing_counts_as_zero():
    student = np.array([[1.0, 2.0, 3.0], [4.0, 4.0, 4.0]])
    assert fidelity.rank_correlation(student, student) == (0.5, 0.5)


def test_scipy_agrees_on_rank_correlations_with_ties(monkeypatch):
    rng = np.random.default_rng(1)
    student, teacher = rng.integers(0, 5, (2, 30, 7)).astype(float)
    kendall = [scipy.stats.kendalltau(a, b).statistic for a, b in zip(student, teacher)]
    spearman = [scipy.stats.spearmanr(a, b).statistic for a, b in zip(student, teacher)]
    monkeypatch.setattr(fidelity, "_PAIRS", 7 * 7 * 4)  # several chunks, the last one smaller
    found = fidelity.rank_correlation(student, teacher)
    assert found.kendall == pytest.approx(np.mean(kendall), abs=1e-12)
    assert found.spearman == pytest.approx(np.mean(spearman), abs=1e-12)


def test_agreement_matrix_has_the_teacher_in_rows():
    assert fidelity.agreement_matrix(STUDENT, TEACHER).tolist() == [[1, 0, 0], [0, 0, 0], [1, 0, 0]]


def test_per_class_transfer_by_hand():
    labels = np.array([0, 0, 0, 0, 1, 1])
    right, wrong = np.eye(3)[labels], np.eye(3)[(labels + 1) % 3]

    def model(*correct):
        return np.where(np.array(correct, bool)[:, None], right, wrong)

    found = fidelity.per_class_transfer(
        labels,
        teacher=model(1, 1, 1, 1, 1, 0),
        alone=model(1, 1, 0, 0, 1, 0),
        distilled=model(1, 1, 1, 0, 1, 1),
    )
    np.testing.assert_array_equal(found.count, [4, 2, 0])
    np.testing.assert_array_equal(found.teacher, [1.0, 0.5, np.nan])
    np.testing.assert_array_equal(found.alone, [0.5, 0.5, np.nan])
    np.testing.assert_array_equal(found.distilled, [0.75, 1.0, np.nan])
    np.testing.assert_array_equal(found.gain, [0.25, 0.5, np.nan])
    np.testing.assert_array_equal(found.closed, [0.5, np.nan, np.nan])  # no gap in class 1


@settings(max_examples=60, deadline=None)
@given(pairs(), st.integers(1, 4))
def test_agreement_and_rank_correlation_are_symmetric(case, k):
    student, teacher, _ = case
    assert fidelity.agreement(student, teacher, k) == fidelity.agreement(teacher, student, k)
    assert fidelity.rank_correlation(student, teacher) == pytest.approx(
        fidelity.rank_correlation(teacher, student), abs=1e-12
    )
    np.testing.assert_array_equal(
        fidelity.agreement_matrix(student, teacher), fidelity.agreement_matrix(teacher, student).T
    )


@settings(max_examples=60, deadline=None)
@given(pairs())
def test_ranges_self_agreement_and_the_order_of_examples(case):
    student, teacher, order = case
    assert 0 <= fidelity.agreement(student, teacher) <= 1
    assert fidelity.agreement(student, student, 2) == 1
    assert fidelity.kl_to_teacher(student, teacher) >= 0
    assert fidelity.kl_to_teacher(student, student) == 0
    assert all(abs(x) <= 1 + 1e-12 for x in fidelity.rank_correlation(student, teacher))
    assert fidelity.agreement_matrix(student, teacher).sum() == len(student)
    for function in (fidelity.agreement, fidelity.kl_to_teacher, fidelity.rank_correlation):
        np.testing.assert_allclose(
            function(student, teacher), function(student[order], teacher[order]), atol=1e-9
        )


def test_agreement_is_the_trace_of_its_matrix():
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(size=(2, 50, 4))
    counts = fidelity.agreement_matrix(student, teacher)
    assert np.trace(counts) / 50 == fidelity.agreement(student, teacher)


def test_padding_is_never_looked_at():
    where = np.array([True, True, False])
    student, teacher = (np.concatenate([x, np.full((1, 3), np.inf)]) for x in (STUDENT, TEACHER))
    assert fidelity.agreement(student, teacher, where=where) == 0.5
    assert fidelity.kl_to_teacher(student, teacher, where) == fidelity.kl_to_teacher(
        STUDENT, TEACHER
    )


def test_scores_compare_with_the_teacher_only_where_there_is_one():
    labels = np.array([0, 0])
    with_teacher = fidelity.scores(STUDENT, labels, TEACHER)
    assert with_teacher["accuracy"] == 1.0
    assert with_teacher["agreement"] == 0.5
    assert set(with_teacher) - set(fidelity.scores(STUDENT, labels)) == {
        "agreement",
        "kl_to_teacher",
        "kendall",
        "spearman",
    }


def test_bad_input_is_refused_in_words():
    with pytest.raises(ValueError, match=r"student_logits \(2, 3\) and teacher_logits \(1, 3\)"):
        fidelity.agreement(STUDENT, TEACHER[:1])
    with pytest.raises(ValueError, match="teacher_logits is not finite in example 0"):
        fidelity.kl_to_teacher(STUDENT, TEACHER * np.nan)
    with pytest.raises(ValueError, match="at least 2 classes to rank, got 1"):
        fidelity.rank_correlation(STUDENT[:, :1], TEACHER[:, :1])
    with pytest.raises(ValueError, match="must have the same shape"):
        fidelity.per_class_transfer(np.array([0, 0]), TEACHER, STUDENT, STUDENT[:, :2])
