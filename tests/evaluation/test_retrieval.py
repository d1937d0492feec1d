"""Retrieval: hand-computed ranks, ties, loops, folds, reranking, refusals."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdjax.evaluation import retrieval

SEEDS = st.integers(0, 2**16)
cheap = settings(deadline=None, database=None, derandomize=True, max_examples=30)


def case(seed, images=6, texts=3):
    """Scores, and the image of each text in no order."""
    rng = np.random.default_rng(seed)
    ids = rng.permutation(np.repeat(np.arange(images), texts))
    return rng.normal(size=(images, len(ids))), ids


def test_ranks_by_hand():
    scores = np.array([[0.9, 0.1, 0.5, 0.4], [0.8, 0.2, 0.2, 0.6]])
    ranks = retrieval.retrieval_ranks(scores, np.array([0, 1, 1, 0]))
    assert ranks.text.tolist() == [1, 3]
    assert ranks.image.tolist() == [1, 1, 2, 2]


@cheap
@given(SEEDS)
def test_recall_agrees_with_sorting(seed):
    scores, ids = case(seed)
    recalls = retrieval.recall_at_k(scores, ids, ks=(1, 2, 5, 18))
    for k in (1, 2, 5, 18):
        first = np.argsort(-scores, axis=1)[:, :k]
        hit = [np.any(ids[first[i]] == i) for i in range(6)]
        assert recalls.text[k] == pytest.approx(np.mean(hit))
        first = np.argsort(-scores, axis=0)[:k]
        assert recalls.image[k] == pytest.approx(np.mean(np.any(first == ids, axis=0)))


@cheap
@given(SEEDS)
def test_recall_does_not_fall_with_k_and_ends_at_one(seed):
    scores, ids = case(seed)
    recalls = retrieval.recall_at_k(scores, ids, ks=range(1, 19))
    for shares in recalls:
        assert np.all(np.diff(list(shares.values())) >= 0)
        assert shares[18] == 1


def test_constant_scores_find_nothing_whatever_the_order():
    ids = np.repeat(np.arange(6), 3)
    for ties, text, image in (("mean", 8.5, 3.5), ("pessimistic", 16, 6)):
        ranks = retrieval.retrieval_ranks(np.zeros((6, 18)), ids, ties=ties)
        assert np.all(ranks.text == text)
        assert np.all(ranks.image == image)
    recalls = retrieval.recall_at_k(np.zeros((6, 18)), ids, ks=(1,))
    assert recalls == retrieval.Recalls({1: 0.0}, {1: 0.0})


def test_own_texts_do_not_stand_in_each_others_way():
    scores = np.array([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    ranks = retrieval.retrieval_ranks(scores, np.array([0, 0, 1]), ties="pessimistic")
    assert ranks.text.tolist() == [1, 1]


@cheap
@given(SEEDS)
def test_ranks_follow_permutations_and_see_only_order(seed):
    scores, ids = case(seed)
    ranks = retrieval.retrieval_ranks(scores, ids)
    order = np.random.default_rng(seed).permutation(18)
    permuted = retrieval.retrieval_ranks(scores[:, order], ids[order])
    np.testing.assert_array_equal(permuted.text, ranks.text)
    np.testing.assert_array_equal(permuted.image, ranks.image[order])
    grown = retrieval.retrieval_ranks(np.exp(scores), ids)
    np.testing.assert_array_equal(grown.image, ranks.image)


def test_folds_are_averaged_and_keep_their_texts():
    scores, ids = case(0)
    folded = retrieval.recall_at_k(scores, ids, ks=(1, 2), num_folds=2)
    parts = [
        retrieval.recall_at_k(
            scores[a : a + 3, (ids // 3) * 3 == a], ids[(ids // 3) * 3 == a] - a, (1, 2)
        )
        for a in (0, 3)
    ]
    for direction in ("text", "image"):
        for k in (1, 2):
            mean = np.mean([getattr(part, direction)[k] for part in parts])
            assert getattr(folded, direction)[k] == pytest.approx(mean)


def test_rsum_and_rank_summaries():
    scores, ids = case(1)
    recalls = retrieval.recall_at_k(scores, ids)
    six = [shares[k] for shares in recalls for k in (1, 5, 10)]
    assert retrieval.rsum(recalls) == pytest.approx(100 * sum(six))
    ranks = retrieval.retrieval_ranks(scores, ids)
    assert retrieval.mean_rank(ranks.image) == ranks.image.mean()
    assert retrieval.median_rank(ranks.image) == np.median(ranks.image)


def test_map_at_r_by_hand_and_with_ties():
    relevant = np.array([[True, False, True, False, False], [False, True, False, False, False]])
    scores = np.array([[5.0, 4.0, 3.0, 2.0, 1.0], [5.0, 4.0, 3.0, 2.0, 1.0]])
    assert retrieval.map_at_r(scores, relevant) == pytest.approx(((1 + 0) / 2 + 0) / 2)
    assert retrieval.map_at_r(relevant * 1.0, relevant) == 1
    assert retrieval.map_at_r(np.zeros((2, 5)), relevant) == 0


@cheap
@given(SEEDS)
def test_reranking_reorders_the_first_k_and_leaves_the_rest(seed):
    rng = np.random.default_rng(seed)
    dual, cross = rng.normal(size=(2, 4, 7))
    order = np.argsort(-retrieval.rerank(dual, cross, 3), axis=1)
    before = np.argsort(-dual, axis=1)
    np.testing.assert_array_equal(order[:, 3:], before[:, 3:])
    np.testing.assert_array_equal(np.sort(order[:, :3]), np.sort(before[:, :3]))
    assert np.all(np.diff(np.take_along_axis(cross, order[:, :3], 1)) < 0)
    everything = retrieval.rerank(dual, cross, 7)
    np.testing.assert_array_equal(np.argsort(everything), np.argsort(cross))
    np.testing.assert_array_equal(np.argsort(-retrieval.rerank(dual, cross, 1)), before)


def test_reranking_keeps_ties_and_reads_the_second_scores_of_the_first_k_only():
    dual = np.array([[3.0, 2.0, 1.0, 1.0]])
    scores = retrieval.rerank(dual, np.array([[0.5, 0.5, np.nan, np.nan]]), 2)[0]
    assert scores[0] == scores[1] > scores[2] == scores[3]
    with pytest.raises(ValueError, match="cross_scores is not finite in row 0"):
        retrieval.rerank(dual, np.full((1, 4), np.nan), 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scores": np.zeros(3)}, r"scores must be \[queries, items\]"),
        ({"scores": np.full((2, 3), np.nan)}, "scores is not finite in row 0"),
        ({"text_image_ids": np.array([0, 1])}, "text_image_ids must have shape"),
        ({"text_image_ids": np.array([0.0, 1, 1])}, "text_image_ids must be integers"),
        ({"text_image_ids": np.array([0, 1, 2])}, r"text_image_ids must lie in \[0, 2\), got 2"),
        ({"text_image_ids": np.array([0, 0, 0])}, "image 1 has no text"),
        ({"ties": "lucky"}, "ties must be 'mean' or 'pessimistic', got 'lucky'"),
        ({"ks": (0, 1)}, "ks must be at least 1, got 0"),
        ({"num_folds": 3}, "num_folds must divide 2"),
    ],
)
def test_bad_arguments_are_refused(changes, message):
    arguments = {"scores": np.zeros((2, 3)), "text_image_ids": np.array([0, 1, 1]), **changes}
    with pytest.raises(ValueError, match=message):
        retrieval.recall_at_k(**arguments)


def test_bad_arguments_of_the_others_are_refused():
    scores = np.zeros((2, 3))
    with pytest.raises(ValueError, match="relevant must be bool"):
        retrieval.map_at_r(scores, np.zeros((2, 3)))
    with pytest.raises(ValueError, match="relevant has no item for query 1"):
        retrieval.map_at_r(scores, np.array([[True] * 3, [False] * 3]))
    with pytest.raises(ValueError, match=r"k must lie in \[1, 3\].*got 4"):
        retrieval.rerank(scores, scores, 4)
    with pytest.raises(ValueError, match="cross_scores must be"):
        retrieval.rerank(scores, scores[:, :2], 2)
    with pytest.raises(ValueError, match="ranks must be"):
        retrieval.mean_rank(np.array([0.0]))
