"""Metrics of one model: hand-computed numbers, scikit-learn as oracle, invariances, refusals."""

import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from kdjax.evaluation import metrics

THREE = np.array([[2.0, 1.0, 0.0], [0.0, 3.0, 1.0], [1.0, 0.0, 2.0], [5.0, 0.0, 1.0]])
LABELS = np.array([0, 2, 2, 1])


def logits_of(*confidences):
    """Two-class logits whose larger probability, that of class 0, is each confidence."""
    p = np.asarray(confidences)
    return np.stack([np.log(p), np.log1p(-p)], -1)


@pytest.fixture
def random_case():
    rng = np.random.default_rng(3)
    return rng.normal(0, 2, (200, 5)), rng.integers(0, 5, 200)


@st.composite
def cases(draw, classes=4):
    n = draw(st.integers(1, 12))
    values = st.floats(-50, 50, width=32)
    logits = draw(hnp.arrays(np.float32, (n, classes), elements=values))
    labels = draw(hnp.arrays(np.int32, n, elements=st.integers(0, classes - 1)))
    return logits, labels, draw(st.permutations(range(n)))


def test_accuracy_counts_the_largest_logit():
    assert metrics.accuracy(THREE, LABELS) == 0.5


def test_accuracy_gives_a_tie_to_the_smaller_class():
    tied = np.array([[1.0, 1.0, 0.0]])
    assert metrics.accuracy(tied, np.array([0])) == 1.0
    assert metrics.accuracy(tied, np.array([1])) == 0.0
    many = np.tile([0.0, 1.0], (3, 50))
    assert metrics.top_k_accuracy(many, np.array([1, 3, 5]), 3) == 1.0


def test_top_k_accuracy_by_hand():
    assert metrics.top_k_accuracy(THREE, LABELS, 2) == 0.75
    assert metrics.top_k_accuracy(THREE, LABELS, 3) == 1.0


def test_nll_brier_and_entropy_by_hand():
    logits, label = np.log([[0.5, 0.25, 0.25]]), np.array([1])
    assert metrics.nll(logits, label) == pytest.approx(np.log(4))
    assert metrics.brier(logits, label) == pytest.approx(0.25 + 0.5625 + 0.0625)
    assert metrics.entropy(logits).tolist() == pytest.approx([1.5 * np.log(2)])


def test_confusion_has_labels_in_rows_and_predictions_in_columns():
    assert metrics.confusion_matrix(THREE, LABELS).tolist() == [[1, 0, 0], [1, 0, 0], [0, 1, 1]]


def test_per_class_accuracy_is_nan_for_a_class_without_examples():
    found = metrics.per_class_accuracy(THREE[:2], LABELS[:2])
    np.testing.assert_array_equal(found, [1.0, np.nan, 0.0])


def test_calibration_error_of_two_bins_is_exact():
    logits = logits_of(0.6, 0.7, 0.9, 0.9)
    labels = np.array([0, 1, 0, 0])
    # Bins of width 1/4 over the top half: (0.5, 0.75] holds 0.6 and 0.7, (0.75, 1] the others.
    expected = 2 / 4 * abs(0.5 - 0.65) + 2 / 4 * abs(1.0 - 0.9)
    got = metrics.expected_calibration_error(logits, labels, num_bins=4)
    assert got == pytest.approx(expected, abs=1e-12)


def test_adaptive_bins_hold_equally_many_examples_and_ties_share_one():
    logits = logits_of(0.55, 0.6, 0.95, 0.96, 0.97, 0.98)
    labels = np.zeros(6, int)
    assert metrics.reliability_bins(logits, labels, num_bins=3, adaptive=True).count.tolist() == [
        2,
        2,
        2,
    ]
    tied = logits_of(0.8, 0.8, 0.8, 0.9)
    bins = metrics.reliability_bins(tied, labels[:4], num_bins=2, adaptive=True)
    assert bins.count.tolist() == [3, 1]


def test_a_confidence_on_an_edge_belongs_to_the_bin_below():
    bins = metrics.reliability_bins(np.zeros((1, 2)), np.array([0]), num_bins=2)
    assert bins.count.tolist() == [1, 0]
    assert np.isnan(bins.accuracy[1])


@pytest.mark.parametrize("adaptive", [False, True])
def test_calibration_error_of_a_calibrated_generator_tends_to_zero(adaptive):
    rng = np.random.default_rng(0)
    errors = []
    for n in (1_000, 100_000):
        logits = rng.normal(0, 1.5, (n, 3))
        labels = (logits + rng.gumbel(size=logits.shape)).argmax(-1)  # a draw from softmax(logits)
        errors.append(metrics.expected_calibration_error(logits, labels, adaptive=adaptive))
    assert errors[1] < 0.01 < errors[0] < 0.08


def test_scikit_learn_agrees(random_case):
    logits, labels = random_case
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    predicted = logits.argmax(-1)
    assert metrics.accuracy(logits, labels) == sklearn.metrics.accuracy_score(labels, predicted)
    assert metrics.top_k_accuracy(logits, labels, 3) == sklearn.metrics.top_k_accuracy_score(
        labels, logits, k=3
    )
    assert metrics.nll(logits, labels) == pytest.approx(
        sklearn.metrics.log_loss(labels, probabilities)
    )
    binary = logits[:, :2]
    assert metrics.brier(binary, labels % 2) == pytest.approx(
        2 * sklearn.metrics.brier_score_loss(labels % 2, 1 / (1 + np.exp(-np.diff(binary)[:, 0])))
    )
    np.testing.assert_array_equal(
        metrics.confusion_matrix(logits, labels),
        sklearn.metrics.confusion_matrix(labels, predicted),
    )
    np.testing.assert_allclose(
        metrics.per_class_accuracy(logits, labels),
        sklearn.metrics.recall_score(labels, predicted, average=None),
    )


@settings(max_examples=60, deadline=None)
@given(cases())
def test_the_order_of_the_examples_does_not_matter(case):
    logits, labels, order = case
    for name in ("accuracy", "nll", "brier", "confusion_matrix", "per_class_accuracy"):
        function = getattr(metrics, name)
        np.testing.assert_allclose(
            function(logits, labels),
            function(logits[order], labels[order]),
            rtol=1e-9,
            err_msg=name,
        )
    for adaptive in (False, True):
        first, second = (
            metrics.expected_calibration_error(x, y, adaptive=adaptive)
            for x, y in ((logits, labels), (logits[order], labels[order]))
        )
        assert first == pytest.approx(second, abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(cases(), st.integers(1, 20), st.booleans())
def test_every_metric_stays_in_its_range(case, num_bins, adaptive):
    logits, labels, _ = case
    error = metrics.expected_calibration_error(logits, labels, num_bins=num_bins, adaptive=adaptive)
    assert 0 <= error <= 1
    bins = metrics.reliability_bins(logits, labels, num_bins=num_bins, adaptive=adaptive)
    assert bins.count.sum() == len(labels)
    assert 0 <= metrics.brier(logits, labels) <= 2 + 1e-12
    assert metrics.nll(logits, labels) >= 0
    assert (metrics.entropy(logits) <= np.log(4) + 1e-12).all()
    assert metrics.top_k_accuracy(logits, labels, 4) == 1


@pytest.mark.parametrize(
    "name",
    [
        "accuracy",
        "nll",
        "brier",
        "expected_calibration_error",
        "confusion_matrix",
        "per_class_accuracy",
    ],
)
def test_padding_is_never_looked_at(name, random_case):
    function = getattr(metrics, name)
    logits, labels = (x[:6] for x in random_case)
    padded = np.concatenate([logits, np.full((2, 5), np.nan)])
    where = np.arange(8) < 6
    np.testing.assert_array_equal(
        function(padded, np.append(labels, [-1, 99]), where=where), function(logits, labels)
    )


def test_sequences_count_token_by_token(random_case):
    logits, labels = random_case
    assert metrics.accuracy(logits.reshape(20, 10, 5), labels.reshape(20, 10)) == metrics.accuracy(
        logits, labels
    )


def test_jax_arrays_in_half_precision_are_computed_in_float64(random_case):
    logits, labels = random_case
    half = jnp.asarray(logits, jnp.bfloat16)
    expected = metrics.nll(np.asarray(half).astype(np.float64), labels)
    assert metrics.nll(half, jnp.asarray(labels)) == expected


def test_huge_logits_stay_finite():
    logits = np.array([[1e4, -1e4, 0.0]])
    assert metrics.nll(logits, np.array([1])) == 2e4
    assert metrics.entropy(logits).tolist() == [0.0]
    assert metrics.expected_calibration_error(logits, np.array([0])) == 0.0


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (np.zeros((0, 3)), np.zeros(0, int), "logits holds no example"),
        (np.zeros((2, 3)), np.array([0, 3]), r"labels must lie in \[0, 3\), got 3"),
        (np.zeros((2, 3)), np.array([-1, 0]), r"labels must lie in \[0, 3\), got -1"),
        (np.zeros((2, 3)), np.array([0.0, 1.0]), "labels must be integers, got float64"),
        (np.zeros((2, 3)), np.array([0]), r"labels must have shape \(2,\)"),
        (np.zeros(3), np.array(0), r"logits must be \[..., classes\], got shape \(3,\)"),
        (np.array([[0.0, 1.0], [np.nan, 1.0]]), np.array([0, 0]), "not finite in example 1"),
    ],
)
def test_bad_input_is_refused_in_words(logits, labels, message):
    with pytest.raises(ValueError, match=message):
        metrics.accuracy(logits, labels)


def test_bad_options_are_refused_in_words():
    with pytest.raises(ValueError, match=r"k must lie in \[1, 3\], the number of classes, got 4"):
        metrics.top_k_accuracy(THREE, LABELS, 4)
    with pytest.raises(ValueError, match="num_bins must be at least 1, got 0"):
        metrics.reliability_bins(THREE, LABELS, num_bins=0)
    with pytest.raises(ValueError, match=r"where must be bool \(4,\)"):
        metrics.accuracy(THREE, LABELS, where=np.ones(4))
    with pytest.raises(ValueError, match="no example"):
        metrics.accuracy(THREE, LABELS, where=np.zeros(4, bool))
