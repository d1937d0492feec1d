"""Rows of an interval: the shares they follow, no repetition before exhaustion, one function."""

import itertools

import numpy as np
import pytest
from scipy import stats

from kdjax import data
from kdjax.data import mixture
from kdjax.data.source import Split

ROWS = {"prose": np.arange(0, 50), "code": np.arange(50, 57), "maths": np.arange(57, 80)}
SHARE = np.array([0.5, 0.2, 0.3])


def drawn(count, share=SHARE, size=20, cursors=(0, 0, 0), first=0, **options):
    found = []
    for interval in range(first, first + count):
        found.append(mixture.draw(ROWS, cursors, share, size, seed=3, interval=interval, **options))
        cursors = found[-1].cursors
    return found


def test_the_domains_are_drawn_by_their_shares():
    (found,) = drawn(1, size=20000)
    assert stats.chisquare(found.cursors, 20000 * SHARE).pvalue > 0.01
    (again,) = drawn(1, size=20000, first=1)
    assert (found.cursors != again.cursors).any()


def test_quotas_are_within_one_row_of_the_shares():
    rng = np.random.default_rng(0)
    for size in (1, 7, 100):
        share = rng.dirichlet(np.ones(5)).astype(np.float32)
        counts = mixture.domain_quota(share, size)
        assert counts.sum() == size
        assert (abs(counts - size * share) < 1).all()
    assert mixture.domain_quota(np.array([0.25, 0.68, 0.07]), 10).tolist() == [2, 7, 1]
    assert mixture.domain_quota(np.full(3, 1 / 3), 10).tolist() == [4, 3, 3]
    assert mixture.domain_quota(np.array([0.0, 1.0]), 5).tolist() == [0, 5]


@pytest.mark.parametrize("by", mixture.DRAWS)
def test_no_row_comes_twice_before_all_of_its_domain_have_come(by):
    found = drawn(12, by=by)
    assert found[-1].cursors.sum() == 12 * 20
    for domain, rows in enumerate(ROWS.values()):
        times = np.zeros(80, int)
        for interval in found:
            np.add.at(times, interval.rows, 1)
            mine = times[rows]
            assert mine.max() - mine.min() <= 1
            assert mine.sum() == interval.cursors[domain]
        assert domain == 0 or mine.min() > 1  # it has begun again, and more than once


def test_a_new_round_has_a_new_order_and_intervals_are_shuffled():
    only = np.array([0.0, 1.0, 0.0])
    rounds = np.concatenate([x.rows for x in drawn(28, share=only, size=1)]).reshape(4, 7)
    assert (np.sort(rounds, axis=1) == ROWS["code"]).all()
    assert len({tuple(x) for x in rounds.tolist()}) == 4
    (found,) = drawn(1, by="quota")
    domains = np.searchsorted([50, 57], found.rows, side="right")
    assert (np.diff(domains) < 0).any()


def test_it_is_a_function_of_seed_interval_share_and_cursors():
    whole, part = drawn(5), drawn(2)
    rest = drawn(3, cursors=part[-1].cursors, first=2)
    for a, b in zip(whole, part + rest, strict=True):
        np.testing.assert_array_equal(a.rows, b.rows)
        np.testing.assert_array_equal(a.cursors, b.cursors)
    other = mixture.draw(ROWS, [0, 0, 0], SHARE, 20, seed=4, interval=0)
    assert (other.rows != whole[0].rows).any()


def test_a_stream_gives_the_rows_of_an_interval_once_whatever_the_processes():
    split = Split.of({"tokens": np.zeros((80, 2), np.int32)}, "toys/train")
    (found,) = drawn(1, size=40)

    def batches(**options):
        stream = data.resident(split, 8, seed=1, indices=found.rows, **options)
        return [item["row"] for item in itertools.islice(stream.items(), 5)]

    whole = batches()
    assert sorted(np.concatenate(whole).tolist()) == sorted(found.rows.tolist())
    halves = [batches(process=k, processes=2) for k in range(2)]
    np.testing.assert_array_equal(np.concatenate(halves, axis=1), whole)


BAD = [
    ({"share": [0.5, 0.5, 0.5]}, "share must be a distribution over domains"),
    ({"share": [1.5, -0.5, 0.0]}, "share must be a distribution over domains"),
    ({"share": [np.nan, 0.5, 0.5]}, "share must be a distribution over domains"),
    ({"share": [0.5, 0.5]}, "share must hold one number for each of the 3 domains"),
    ({"cursors": [0, 0]}, "cursors must hold one number for each of the 3 domains"),
    ({"cursors": [0, -1, 0]}, "cursors must not be negative"),
    ({"size": 0}, "size must be at least 1, got 0"),
    ({"by": "random"}, "by must be one of"),
    ({"rows": {**ROWS, "code": np.array([], int)}}, "the domain 'code' has no rows"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_bad_arguments_are_refused(change, message):
    arguments = {"rows": ROWS, "cursors": [0, 0, 0], "share": SHARE, "size": 20, **change}
    with pytest.raises(ValueError, match=message):
        mixture.draw(**arguments, seed=0, interval=0)
