"""Evolutionary searches: who becomes a parent, who dies, what is measured, budgets."""

import itertools

import numpy as np
import pytest

from kdjax.methods.architecture_search import (
    History,
    Space,
    exhaustive,
    regularized_evolution,
    steady_state_evolution,
)

SPACE = Space.of({f"option{i}": tuple(range(8)) for i in range(4)})
OPTIONS = dict(population=12, evaluations=150, max_tries=100)


def total(pool):
    """A score with one optimum: the largest genome."""
    return pool.sum(axis=1)


def history(allowed=lambda genome: True, space=SPACE):
    return History(space, np.array, allowed)


def evolve(which, seed, found, **changes):
    options = {**OPTIONS, **changes}
    rng = np.random.default_rng(seed)
    if which == "regularized":
        regularized_evolution(rng, found, total, tournament=4, **options)
    else:
        steady_state_evolution(rng, found, total, **options)
    return found


@pytest.mark.parametrize("which", ["regularized", "steady_state"])
def test_evolution_finds_better_candidates_than_chance(which):
    best = [max(map(sum, evolve(which, seed, history()).genomes)) for seed in range(5)]
    # The best of 150 random genomes of the same space, the mean over many draws.
    chance = np.random.default_rng(0).integers(8, size=(200, 150, 4)).sum(-1).max(1).mean()
    assert np.mean(best) > chance + 0.5


def test_the_parent_of_a_tournament_is_its_best_member():
    found = history()
    evolve("regularized", 0, found, population=4, evaluations=5)
    parent = max(found.genomes[:4], key=sum)  # the sample is the whole population
    assert sum(a != b for a, b in zip(parent, found.genomes[4])) == 1


def test_the_oldest_dies_under_regularised_evolution():
    best_first, pools = iter([(7, 7, 7, 7), (0, 0, 0, 0), (1, 0, 0, 0)]), []

    def first(rng):
        return next(best_first)

    space = type("Fixed", (Space,), {"random": lambda self, rng: first(rng)})(SPACE.choices)

    def scores(pool):
        pools.append({tuple(row.astype(int)) for row in pool})
        return total(pool)

    options = dict(population=3, tournament=3, evaluations=6, max_tries=10)
    regularized_evolution(np.random.default_rng(0), history(space=space), scores, **options)
    assert (7, 7, 7, 7) in pools[0]
    assert (7, 7, 7, 7) not in pools[1]


def test_the_worst_dies_in_the_steady_state():
    pools = []

    def scores(pool):
        pools.append([tuple(row.astype(int)) for row in pool])
        return total(pool)

    found = history()
    steady_state_evolution(
        np.random.default_rng(0), found, scores, population=5, evaluations=30, max_tries=10
    )
    for before, after in itertools.pairwise(pools):
        worst = min(before, key=sum)
        assert after[:-1] == [x for x in before if x is not worst]


@pytest.mark.parametrize("count", [1, 2])
def test_a_mutation_changes_that_many_choices(count):
    rng = np.random.default_rng(0)
    for _ in range(50):
        parent = SPACE.random(rng)
        child = SPACE.mutate(rng, parent, count)
        assert sum(a != b for a, b in zip(parent, child)) == count
    fixed = Space.of({"a": (1,), "b": (1, 2)})
    assert fixed.mutate(rng, (0, 0), 2) == (0, 1)
    assert Space.of({"a": (1,)}).mutate(rng, (0,), 1) == (0,)


def test_a_candidate_is_measured_once_and_evaluations_are_spent_on_new_ones():
    measured = []

    def measure(genome):
        measured.append(genome)
        return np.array(genome)

    small = Space.of({"a": (1, 2, 3), "b": (1, 2)})
    found = History(small, measure, lambda genome: True)
    rng = np.random.default_rng(0)
    options = dict(population=3, tournament=2, evaluations=50, max_tries=40)
    regularized_evolution(rng, found, total, **options)  # more evaluations than candidates
    assert len(measured) == len(set(measured)) == len(found.genomes) <= small.size
    again = history()
    evolve("regularized", 0, again)
    assert len(again.genomes) == OPTIONS["evaluations"]


@pytest.mark.parametrize("which", ["regularized", "steady_state"])
def test_the_budget_is_kept_and_one_that_none_meets_is_refused(which):
    found = evolve(which, 0, history(lambda genome: sum(genome) <= 14))
    assert max(map(sum, found.genomes)) <= 14
    with pytest.raises(ValueError, match=r"none of max_tries=100 .* budget"):
        evolve(which, 0, history(lambda genome: False))


def test_an_exhaustive_search_measures_all_that_is_allowed():
    small = Space.of({"a": (1, 2, 3), "b": (1, 2)})
    found = history(lambda genome: genome[1] == 0, small)
    exhaustive(found)
    assert found.genomes == [(0, 0), (1, 0), (2, 0)]
    with pytest.raises(ValueError, match="no candidate"):
        exhaustive(history(lambda genome: False, small))


def test_a_measure_that_is_not_a_number_is_not_swallowed():
    found = History(SPACE, lambda genome: np.array([np.nan]), lambda genome: True)
    with pytest.raises(ValueError, match=r"'option0': 1.* cannot be scored.*nan"):
        found.add((1, 0, 0, 0))


@pytest.mark.parametrize(
    ("choices", "message"),
    [({}, "at least one option"), ({"a": ()}, r"\['a'\]"), ({"a": (1, 1)}, "distinct")],
)
def test_spaces_without_a_choice_are_refused(choices, message):
    with pytest.raises(ValueError, match=message):
        Space.of(choices)
