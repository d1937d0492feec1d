"""K-centre selection against brute force."""

import itertools
import tracemalloc

import numpy as np
import pytest

from kdjax.data.selection import (
    STRATEGIES,
    badge_embeddings,
    class_balanced_quota,
    covering_radius,
    entropy_scores,
    few_shot,
    k_center_greedy,
    k_means_seeding,
    moved,
    select,
)


def distances(a, b, metric):
    """All of them at once, `[len(a), len(b)]`."""
    if metric == "cosine":
        a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
        return 1 - a @ b.T
    return np.linalg.norm(a[:, None] - b[None], axis=-1)


def brute_force(points, centers, k, metric):
    chosen = []
    for _ in range(k):
        near = distances(points, np.concatenate([centers, points[chosen]]), metric).min(1)
        near[chosen] = -1
        chosen.append(int(near.argmax()))
    return chosen


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("seed", range(5))
def test_each_choice_is_the_farthest_point(metric, seed):
    rng = np.random.default_rng(seed)
    points, centers = rng.standard_normal((40, 3)), rng.standard_normal((4, 3))
    found = k_center_greedy(points, centers, 12, metric=metric)
    assert found.tolist() == brute_force(points, centers, 12, metric)


@pytest.mark.parametrize("seed", range(5))
def test_the_radius_is_at_most_twice_the_best(seed):
    points = np.random.default_rng(seed).standard_normal((8, 2))
    found = covering_radius(points, points[k_center_greedy(points, np.empty((0, 2)), 3)])
    best = min(
        distances(points, points[list(rows)], "euclidean").min(1).max()
        for rows in itertools.combinations(range(8), 3)
    )
    assert best <= found <= 2 * best


def test_the_worked_example_and_its_distances():
    pool = np.array([[0.9, 0.1, 0], [0, 1, 0], [0, 0, 1], [0.5, 0.5, 0]])
    centre = np.array([[1.0, 0, 0]])
    assert k_center_greedy(pool, centre, 3).tolist() == [1, 2, 3]
    assert covering_radius(pool[:1], centre) == pytest.approx(0.141421, abs=1e-6)
    columns = [2, 0, 1]  # the order of the classes does not matter
    assert k_center_greedy(pool[:, columns], centre[:, columns], 3).tolist() == [1, 2, 3]


def test_all_points_are_a_permutation_and_copies_come_last():
    points = np.repeat(np.random.default_rng(0).standard_normal((5, 2)), 3, axis=0)
    found = k_center_greedy(points, np.empty((0, 2)), 15, first=4)
    assert found[0] == 4
    assert sorted(found) == list(range(15))
    assert len({tuple(points[i]) for i in found[:5]}) == 5


def test_a_zero_vector_is_at_distance_one_by_cosine():
    assert covering_radius(np.zeros((1, 2)), np.ones((1, 2)), metric="cosine") == 1.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 0}, r"k must be in \[1, 3\], got 0"),
        ({"k": 4}, r"k must be in \[1, 3\], got 4"),
        ({"first": 3}, r"first must be in \[0, 2\], got 3"),
        ({"metric": "manhattan"}, "metric must be one of"),
        ({"centers": np.ones((2, 3))}, r"centers must be \[centers, 2\]"),
        ({"points": np.ones(3)}, r"points must be \[pool, features\]"),
        ({"points": np.full((3, 2), np.nan)}, "points, example 0: not a finite number"),
    ],
)
def test_bad_input_is_refused(change, message):
    given = {"points": np.eye(3, 2), "centers": np.empty((0, 2)), "k": 1, **change}
    points, centers, k = (given.pop(name) for name in ("points", "centers", "k"))
    with pytest.raises(ValueError, match=message):
        k_center_greedy(points, centers, k, **given)


RNG = np.random.default_rng(7)
PROBS = RNG.dirichlet(np.ones(4), 30)
FEATURES = RNG.standard_normal((30, 5))
LABELED = RNG.dirichlet(np.ones(4), 6)
ANSWERS = {
    "probs": PROBS,
    "features": FEATURES,
    "labeled_probs": LABELED,
    "labeled_features": RNG.standard_normal((6, 5)),
    "labels": np.array([0, 0, 0, 1, 1, 2]),
}


def chosen(strategy, k=5, seed=0, **changes):
    return select(strategy, k, **{**ANSWERS, **changes}, rng=np.random.default_rng(seed))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_chooses_distinct_rows_and_at_last_all(strategy):
    assert len(set(chosen(strategy))) == 5
    assert sorted(chosen(strategy, 30)) == list(range(30))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_where_nothing_is_labelled_every_strategy_still_chooses(strategy):
    nothing = {
        "labeled_probs": np.empty((0, 4)),
        "labeled_features": np.empty((0, 5)),
        "labels": np.empty(0, int),
    }
    rows = chosen(strategy, 7, **nothing)
    assert len(set(rows.tolist())) == 7
    if strategy == "pcoreset":  # k-centres without a first centre
        assert rows.tolist() == k_center_greedy(PROBS, np.empty((0, 4)), 7).tolist()


def test_distances_to_the_nearest_centre_are_kept_and_those_to_all_are_not():
    points, centers = (np.random.default_rng(n).normal(size=(n, 2)) for n in (4_000, 500))
    tracemalloc.start()
    k_center_greedy(points, centers, 3)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < len(points) * len(centers) * 8 / 10


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_what_draws_depends_on_its_generator_and_the_rest_does_not(strategy):
    same = chosen(strategy, seed=0).tolist() == chosen(strategy, seed=1).tolist()
    assert same is (strategy in ("pcoreset", "coreset", "entropy", "badge"))
    assert chosen(strategy).tolist() == chosen(strategy).tolist()


def test_pcoreset_does_not_see_the_order_of_the_classes_nor_the_features():
    order = [2, 0, 3, 1]
    permuted = chosen("pcoreset", probs=PROBS[:, order], labeled_probs=LABELED[:, order])
    assert permuted.tolist() == chosen("pcoreset").tolist()
    assert chosen("pcoreset", features=-FEATURES).tolist() == chosen("pcoreset").tolist()
    assert chosen("coreset", probs=PROBS[::-1]).tolist() == chosen("coreset").tolist()


def test_pcoreset_covers_better_than_chance():
    def radius(rows):
        return covering_radius(PROBS, np.concatenate([LABELED, PROBS[rows]]))

    by_chance = [radius(chosen("random", seed=seed)) for seed in range(10)]
    assert radius(chosen("pcoreset")) < min(by_chance)


def test_the_least_sure_come_first():
    scores = entropy_scores(PROBS)[chosen("entropy")]
    assert scores.tolist() == sorted(entropy_scores(PROBS), reverse=True)[:5]
    assert entropy_scores(np.full((1, 4), 0.25))[0] == pytest.approx(np.log(4))


def test_gradient_embeddings_are_as_long_as_the_gradient():
    found = badge_embeddings(PROBS, FEATURES)
    gap = np.eye(4)[PROBS.argmax(1)] - PROBS
    expected = np.linalg.norm(gap, axis=1) * np.linalg.norm(FEATURES, axis=1)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), expected)
    sure = badge_embeddings(np.array([[1 - 1e-9, 1e-9]]), np.ones((1, 2)))
    assert np.linalg.norm(sure) < 1e-8


def test_seeding_draws_by_squared_distance():
    points = np.array([[4.0, 0], [4, 1], [4, 3]])  # the longest first, then 9 to 4
    drawn = [k_means_seeding(points, 2, np.random.default_rng(s)) for s in range(2000)]
    assert {int(rows[0]) for rows in drawn} == {2}
    share = np.mean([rows[1] == 0 for rows in drawn])
    assert share == pytest.approx(9 / 13, abs=0.03)
    copies = np.ones((4, 2))
    assert sorted(k_means_seeding(copies, 4, np.random.default_rng(0))) == [0, 1, 2, 3]


def test_quotas_favour_classes_with_few_labels():
    predicted = np.repeat([0, 1, 2], 10)
    # weights 8/4 : 8/1 : 8/6 of 4 classes, one of which nothing is predicted to be
    found = class_balanced_quota(predicted, np.array([3, 0, 5, 0]), 6)
    assert found.tolist() == [1, 5, 0, 0]
    assert class_balanced_quota(predicted, np.zeros(4, int), 6).tolist() == [2, 2, 2, 0]
    rows = chosen("class_balanced", 8)
    counts = np.bincount(PROBS[rows].argmax(1), minlength=4)
    assert counts[3] >= counts[0]  # no label against three


def test_few_shots_are_as_many_of_each_class():
    labels = np.array([0, 2, 2, 0, 0, 2])
    rows = few_shot(labels, 2, np.random.default_rng(0))
    assert np.bincount(labels[rows]).tolist() == [2, 0, 2]
    drawn = {tuple(few_shot(labels, 2, np.random.default_rng(s))) for s in range(20)}
    assert len(drawn) > 3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: few_shot(np.array([0, 0, 1]), 2, RNG), "class 1 has 1 examples, shots=2"),
        (lambda: few_shot(np.array([0]), 0, RNG), "shots must be at least 1"),
        (lambda: chosen("margin"), "strategy must be one of .*, got 'margin'"),
        (lambda: chosen("random", 31), r"k must be in \[1, 30\], got 31"),
        (lambda: chosen("entropy", probs=2 * PROBS), "probs, example 0: probabilities must be"),
        (lambda: chosen("pcoreset", labeled_probs=-LABELED), "labeled_probs, example 0"),
        (lambda: chosen("random", probs=PROBS * np.nan), "probs, example 0: not a finite number"),
        (lambda: badge_embeddings(PROBS, FEATURES[:3]), r"features must be \[30, features\]"),
        (lambda: k_means_seeding(FEATURES, 0, RNG), r"k must be in \[1, 30\], got 0"),
        (lambda: class_balanced_quota(np.array([4]), np.ones(4), 1), r"predicted must lie in \[0"),
        (lambda: moved(np.array([1]), np.array([1]), 3), "row 1 was chosen, but is labelled alr"),
        (lambda: moved(np.array([1]), np.array([2, 2]), 3), "row 2 was chosen, but is chosen tw"),
        (lambda: moved(np.array([1]), np.array([3]), 3), "row 3 was chosen, but the data set has"),
    ],
)
def test_bad_questions_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
