"""Concordance: extremes, a loop over pairs, ties, invariances, refusals."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdjax.evaluation import concordance

SEEDS = st.integers(0, 2**16)
cheap = settings(deadline=None, database=None, derandomize=True, max_examples=30)


def cohort(seed, size=9):
    rng = np.random.default_rng(seed)
    time, risk = rng.integers(0, 5, size).astype(float), rng.integers(0, 4, size).astype(float)
    event = rng.random(size) < 0.6
    time[0], event[0], time[1] = 0, True, 4
    return time, event, risk


def test_the_right_order_is_1_the_reverse_0_and_constant_risk_a_half():
    time, event = np.array([1.0, 2.0, 3.0, 4.0]), np.array([True, True, False, True])
    index = lambda risk: concordance.concordance_index(time, event, risk).index  # noqa: E731
    assert index(-time) == 1
    assert index(time) == 0
    assert index(np.zeros(4)) == 0.5


@cheap
@given(SEEDS)
def test_counts_agree_with_a_loop_over_pairs(seed):
    time, event, risk = cohort(seed)
    counts = {"concordant": 0, "discordant": 0, "tied_risk": 0, "tied_time": 0}
    for i in range(9):
        for j in range(9):
            tied = time[i] == time[j] and not event[j]
            if event[i] and (time[i] < time[j] or tied):
                sign = np.sign(risk[i] - risk[j])
                counts[{1: "concordant", -1: "discordant", 0: "tied_risk"}[int(sign)]] += 1
                counts["tied_time"] += tied
    result = concordance.concordance_index(time, event, risk)._asdict()
    index = result.pop("index")
    assert result == counts
    comparable = counts["concordant"] + counts["discordant"] + counts["tied_risk"]
    assert index == pytest.approx((counts["concordant"] + counts["tied_risk"] / 2) / comparable)


@cheap
@given(SEEDS)
def test_only_the_orders_of_risk_and_time_matter(seed):
    time, event, risk = cohort(seed)
    result = concordance.concordance_index(time, event, risk)
    assert concordance.concordance_index(np.exp(time), event, np.exp(risk)) == result
    order = np.random.default_rng(seed).permutation(9)
    assert concordance.concordance_index(time[order], event[order], risk[order]) == result
    reverse = concordance.concordance_index(time, event, -risk)
    assert reverse.index == pytest.approx(1 - result.index)


def test_risks_closer_than_the_tolerance_tie():
    time, event, risk = np.array([1.0, 2.0]), np.array([True, True]), np.array([0.0, 1e-9])
    assert concordance.concordance_index(time, event, risk).tied_risk == 1
    assert concordance.concordance_index(time, event, risk, tied_tolerance=0.0).discordant == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"event": np.zeros(2, bool)}, "no comparable pair: event is never True before"),
        ({"event": np.ones(2)}, r"event must be bool \[examples\]"),
        ({"time": np.ones(3)}, "time must have shape"),
        ({"risk": np.array([0.0, np.nan])}, "risk is not finite in example 1"),
        ({"tied_tolerance": -1.0}, "tied_tolerance must be at least 0, got -1"),
    ],
)
def test_bad_arguments_are_refused(changes, message):
    arguments = {"time": np.arange(2.0), "event": np.ones(2, bool), "risk": np.zeros(2), **changes}
    with pytest.raises(ValueError, match=message):
        concordance.concordance_index(**arguments)
