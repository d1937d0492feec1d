"""Average precision of centres: by hand, greedy matching, recall, refusals."""

import numpy as np
import pytest

from kdjax.evaluation import detection


def objects(*rows):
    """Objects from (image, class, x, y)."""
    table = np.array(rows, float).reshape(-1, 4)
    return detection.Objects(table[:, 0].astype(int), table[:, 1].astype(int), table[:, 2:])


TRUE = objects((0, 0, 0, 0), (0, 0, 10, 0), (1, 0, 0, 0), (1, 3, 5, 5))


def test_perfect_detections_have_precision_1():
    result = detection.center_ap(TRUE, np.arange(4.0), TRUE)
    assert result.mean == 1
    assert result.classes.tolist() == [0, 3]
    np.testing.assert_array_equal(result.precision, 1)


def test_a_class_image_or_distance_that_is_wrong_is_no_match():
    only = objects((0, 0, 0, 0))
    for wrong in ((1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 4, 0), (0, 0, 0, -5)):
        assert detection.center_ap(objects(wrong), np.ones(1), only).mean == 0
    near = detection.center_ap(objects((0, 0, 0, 0.75)), np.ones(1), only)
    assert near.precision.tolist() == [[0, 1, 1, 1]]


def test_a_target_is_matched_once_by_the_best_score():
    only, twice = objects((0, 0, 0, 0)), objects((0, 0, 0.4, 0), (0, 0, 0.1, 0))
    best_first = detection.center_ap(twice, np.array([0.9, 0.5]), only, thresholds=(1.0,))
    assert best_first.mean == 1
    worse = detection.center_ap(
        objects((0, 0, 9, 0), (0, 0, 0.1, 0)), np.array([0.9, 0.5]), only, thresholds=(1.0,)
    )
    assert worse.mean == 0.5
    # Nor does a second one near the first target stand for the other target.
    two = objects((0, 0, 0, 0), (0, 0, 10, 0))
    half = detection.center_ap(twice, np.array([0.9, 0.5]), two, thresholds=(1.0,))
    assert half.mean == pytest.approx(41 / 91)


def test_recalls_that_are_not_reached_count_as_0_and_small_ones_not_at_all():
    two = objects((0, 0, 0, 0), (0, 0, 10, 0))
    half = detection.center_ap(objects((0, 0, 0, 0)), np.ones(1), two, thresholds=(1.0,))
    assert half.mean == pytest.approx(41 / 91)
    from_zero = detection.center_ap(
        objects((0, 0, 0, 0)), np.ones(1), two, thresholds=(1.0,), min_recall=0.0
    )
    assert from_zero.mean == pytest.approx(51 / 101)


def test_precision_at_a_recall_is_the_best_beyond_it():
    two = objects((0, 0, 0, 0), (0, 0, 10, 0))
    found = objects((0, 0, 50, 0), (0, 0, 0, 0), (0, 0, 10, 0))
    result = detection.center_ap(found, np.array([3.0, 2.0, 1.0]), two, thresholds=(1.0,))
    assert result.mean == pytest.approx(2 / 3)


def test_only_the_order_of_scores_matters_and_false_ones_at_the_end_do_no_harm():
    rng = np.random.default_rng(0)
    found = detection.Objects(
        np.zeros(12, int), np.zeros(12, int), rng.uniform(0, 10, size=(12, 2))
    )
    true = detection.Objects(np.zeros(6, int), np.zeros(6, int), rng.uniform(0, 10, size=(6, 2)))
    scores = rng.normal(size=12)
    result = detection.center_ap(found, scores, true)
    assert 0 < result.mean < 1
    assert detection.center_ap(found, np.exp(scores), true).mean == result.mean
    order = rng.permutation(12)
    shuffled = detection.Objects(*(column[order] for column in found))
    assert detection.center_ap(shuffled, scores[order], true).mean == result.mean
    more = detection.Objects(
        np.zeros(13, int), np.zeros(13, int), np.concatenate([found.positions, [[99, 99]]])
    )
    last = np.append(scores, scores.min() - 1)
    assert detection.center_ap(more, last, true).mean == result.mean
    first = np.append(scores, scores.max() + 1)
    assert detection.center_ap(more, first, true).mean < result.mean


def test_nothing_detected_is_0():
    assert detection.center_ap(objects(), np.zeros(0), TRUE).mean == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scores": np.ones(3)}, "scores must have shape"),
        ({"scores": np.full(4, np.nan)}, "scores is not finite in detection 0"),
        ({"targets": objects()}, "targets holds no object"),
        ({"targets": TRUE._replace(images=np.zeros(2, int))}, "targets must hold images"),
        ({"targets": TRUE._replace(classes=np.zeros(4))}, "classes of targets must be integers"),
        ({"detections": TRUE._replace(positions=np.zeros((4, 3)))}, "detections must have 2 axes"),
        ({"detections": TRUE._replace(positions=np.full((4, 2), np.inf))}, "are not finite"),
        ({"thresholds": (1.0, 0.0)}, "thresholds must be > 0"),
        ({"min_recall": 1.5}, r"min_recall must lie in \[0, 1\], got 1.5"),
    ],
)
def test_bad_arguments_are_refused(changes, message):
    arguments = {"detections": TRUE, "scores": np.ones(4), "targets": TRUE, **changes}
    with pytest.raises(ValueError, match=message):
        detection.center_ap(**arguments)
