"""Segmentation metrics: hand-computed numbers, scikit-learn as oracle, absent classes, refusals."""

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st

from kdjax.evaluation import segmentation

SEEDS = st.integers(0, 2**16)
cheap = settings(deadline=None, database=None, derandomize=True, max_examples=30)


def counts(seed, classes=4):
    rng = np.random.default_rng(seed)
    labels, predictions = rng.integers(0, classes, (2, 3, 5, 5))
    return segmentation.segmentation_confusion(predictions, labels, classes)


def test_worked_numbers():
    confusion = segmentation.segmentation_confusion(
        np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1]), 2
    )
    assert confusion.tolist() == [[1, 0], [1, 2]]
    np.testing.assert_allclose(segmentation.iou(confusion), [1 / 2, 2 / 3])
    assert segmentation.class_mean(segmentation.iou(confusion)) == pytest.approx(0.583333, abs=1e-6)
    np.testing.assert_allclose(segmentation.dice(confusion), [2 / 3, 0.8])


@cheap
@given(SEEDS)
def test_scores_agree_with_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    labels, predictions = np.concatenate(
        [rng.integers(0, 4, (2, 30)), np.arange(4) * [[1], [1]]], 1
    )
    confusion = segmentation.segmentation_confusion(predictions, labels, 4)
    for ours, theirs in (
        (segmentation.iou, sklearn.metrics.jaccard_score),
        (segmentation.dice, sklearn.metrics.f1_score),
        (segmentation.pixel_accuracy, sklearn.metrics.recall_score),
    ):
        np.testing.assert_allclose(ours(confusion), theirs(labels, predictions, average=None))


@cheap
@given(SEEDS)
def test_dice_is_a_function_of_iou_and_a_renaming_of_classes_renames_scores(seed):
    confusion = counts(seed)
    shares = segmentation.iou(confusion)
    np.testing.assert_allclose(segmentation.dice(confusion), 2 * shares / (1 + shares))
    order = np.random.default_rng(seed).permutation(4)
    np.testing.assert_array_equal(segmentation.iou(confusion[np.ix_(order, order)]), shares[order])


def test_a_data_set_is_scored_by_its_sum_not_by_the_mean_of_its_images():
    images = [(np.array([0, 0, 0]), np.array([0, 0, 1])), (np.ones(3, int), np.ones(3, int))]
    first, second = (segmentation.segmentation_confusion(*image, 2) for image in images)
    both = segmentation.segmentation_confusion(*np.concatenate(images, axis=1), 2)
    np.testing.assert_array_equal(first + second, both)
    of_images = np.nanmean([segmentation.iou(first), segmentation.iou(second)], axis=0)
    assert np.any(of_images != segmentation.iou(both))


def test_absent_classes_are_excluded_or_zero():
    confusion = np.array([[3, 1, 0], [0, 0, 0], [0, 0, 0]])
    np.testing.assert_array_equal(segmentation.iou(confusion), [0.75, 0, np.nan])
    np.testing.assert_array_equal(segmentation.iou(confusion, absent="zero"), [0.75, 0, 0])
    np.testing.assert_array_equal(segmentation.pixel_accuracy(confusion), [0.75, np.nan, np.nan])
    assert segmentation.class_mean(segmentation.iou(confusion)) == 0.375
    assert segmentation.class_mean(segmentation.iou(confusion, absent="zero")) == 0.25
    assert np.isnan(segmentation.class_mean(np.array([np.nan])))


def test_ignored_pixels_do_not_count_whatever_was_predicted():
    labels = np.array([[0, 255], [1, 255]])
    confusion = segmentation.segmentation_confusion(np.array([[0, -7], [0, 99]]), labels, 2)
    assert confusion.tolist() == [[1, 0], [1, 0]]
    nothing = segmentation.segmentation_confusion(labels, np.full((2, 2), 255), 2)
    assert nothing.tolist() == [[0, 0], [0, 0]]


def test_binary_scores_are_of_each_image():
    predictions = np.array([[[1, 1], [0, 0]], [[0, 0], [0, 0]]])
    targets = np.array([[[1, 0], [0, 0]], [[0, 0], [0, 0]]])
    np.testing.assert_allclose(segmentation.dice_score(predictions, targets), [3 / 4, 1])
    np.testing.assert_allclose(segmentation.iou_score(predictions, targets), [2 / 3, 1])
    exact = segmentation.iou_score(predictions, targets, smooth=0.0)
    np.testing.assert_array_equal(exact, [0.5, np.nan])
    np.testing.assert_allclose(
        segmentation.dice_score(predictions, targets, smooth=0.0)[0], 2 * 0.5 / 1.5
    )
    of_booleans = segmentation.dice_score(predictions == 1, targets == 1)
    np.testing.assert_array_equal(of_booleans, segmentation.dice_score(predictions, targets))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": np.zeros((2, 3), int)}, "predictions must have shape"),
        ({"labels": np.zeros(4)}, "labels must be integers"),
        ({"labels": np.array([0, 1, 2, 255])}, r"labels must lie in \[0, 2\), got 2"),
        ({"predictions": np.array([0, 1, -1, 0])}, r"predictions must lie in \[0, 2\), got -1"),
        ({"ignore_label": 1}, r"ignore_label must lie outside \[0, 2\), got 1"),
        ({"num_classes": 0}, "num_classes must be at least 1, got 0"),
    ],
)
def test_bad_maps_are_refused(changes, message):
    arguments = {"predictions": np.zeros(4, int), "labels": np.zeros(4, int), "num_classes": 2}
    with pytest.raises(ValueError, match=message):
        segmentation.segmentation_confusion(**{**arguments, **changes})


def test_bad_arguments_of_the_others_are_refused():
    with pytest.raises(ValueError, match=r"confusion must be \[classes, classes\]"):
        segmentation.iou(np.zeros((2, 3), int))
    with pytest.raises(ValueError, match="confusion must hold counts, got -1"):
        segmentation.dice(np.array([[1, -1], [0, 0]]))
    with pytest.raises(ValueError, match="absent must be 'exclude' or 'zero', got 'one'"):
        segmentation.iou(np.eye(2, dtype=int), absent="one")
    with pytest.raises(ValueError, match=r"targets must be \[batch, ...\] of 0 and 1"):
        segmentation.dice_score(np.zeros((1, 2), int), np.full((1, 2), 2))
    with pytest.raises(ValueError, match="predictions must have shape"):
        segmentation.iou_score(np.zeros((1, 2), int), np.zeros((1, 3), int))
    with pytest.raises(ValueError, match="smooth must be at least 0, got -1"):
        segmentation.iou_score(np.zeros((1, 2), int), np.zeros((1, 2), int), smooth=-1.0)
