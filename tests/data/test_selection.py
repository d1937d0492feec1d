"""K-centre selection against brute force."""

import itertools

import numpy as np
import pytest

from kdjax.data.selection import covering_radius, k_center_greedy


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
