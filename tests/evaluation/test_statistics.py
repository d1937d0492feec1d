"""Statistics over seeds, and the tables that print them."""

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from kdjax.evaluation import statistics, tables


def test_summary_by_hand():
    found = statistics.summary([1.0, 2.0, 3.0, 4.0])
    assert (found.mean, found.n) == (2.5, 4)
    assert found.sd == pytest.approx(math.sqrt(5 / 3))
    half = 3.182446 * math.sqrt(5 / 3) / 2  # t of 3 degrees of freedom at 97.5 %
    assert (found.low, found.high) == pytest.approx((2.5 - half, 2.5 + half), rel=1e-6)


def test_one_seed_has_no_spread():
    found = statistics.summary([0.5])
    assert (found.mean, found.n) == (0.5, 1)
    assert all(math.isnan(x) for x in (found.sd, found.low, found.high))


def test_paired_test_is_scipys_paired_t_test():
    values, baseline = [0.91, 0.93, 0.90, 0.95, 0.92], [0.90, 0.90, 0.91, 0.92, 0.90]
    found = statistics.paired_test(values, baseline)
    difference = np.subtract(values, baseline)
    assert found.n == 5
    assert found.difference == pytest.approx(difference.mean())
    assert found.sd == pytest.approx(difference.std(ddof=1))
    assert found.p == pytest.approx(scipy.stats.ttest_1samp(difference, 0).pvalue)
    assert found.reason == ""


def test_the_pairing_matters():
    baseline, shift = np.array([0.7, 0.8, 0.9]), np.array([0.010, 0.011, 0.012])
    paired = statistics.paired_test(baseline + shift, baseline).p
    shuffled = statistics.paired_test((baseline + shift)[[1, 2, 0]], baseline).p
    assert paired < 0.01 < shuffled


def test_one_seed_has_no_p_and_says_so():
    found = statistics.paired_test([0.9], [0.8])
    assert (found.p, found.reason) == (None, "one seed")
    assert found.difference == pytest.approx(0.1)


@pytest.mark.parametrize("shift", [0.0, 0.1, 1e-3])
def test_equal_differences_have_no_p_and_no_warning(shift):
    baseline = np.array([0.7, 0.8, 0.9, 0.95])
    found = statistics.paired_test(baseline + shift, baseline)
    assert (found.p, found.sd) == (None, 0.0)
    assert found.reason == "the difference is the same for every seed"
    assert found.difference == pytest.approx(shift, abs=1e-12)


def test_differences_that_barely_vary_give_no_warning():
    baseline = np.array([0.7, 0.8, 0.9])
    for scale in 10.0 ** -np.arange(1, 17):
        statistics.paired_test(baseline + 0.1 + scale * np.array([0.0, 1.0, 2.0]), baseline)


def test_holm_by_hand():
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert statistics.holm([0.5, 0.9]) == [1.0, 1.0]
    assert statistics.holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_keeps_order_and_never_lowers(p):
    adjusted = statistics.holm(p)
    assert all(a <= b <= 1 for a, b in zip(p, adjusted))
    assert max(adjusted) <= min(1, max(p) * len(p)) + 1e-12
    order = np.argsort(p, kind="stable")
    assert (np.diff(np.asarray(adjusted)[order]) >= 0).all()


def test_bad_input_is_refused_in_words():
    with pytest.raises(ValueError, match="values must be one number a seed, got shape"):
        statistics.summary([])
    with pytest.raises(ValueError, match="baseline must be finite"):
        statistics.paired_test([1.0, 2.0], [1.0, math.nan])
    with pytest.raises(ValueError, match="the same seeds, got 2 and 3"):
        statistics.paired_test([1.0, 2.0], [1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match=r"p_values must lie in \[0, 1\]"):
        statistics.holm([0.1, math.nan])


ARMS = {
    "supervised": {"accuracy": [0.90, 0.91, 0.89], "ece": [0.05, 0.06, 0.07]},
    "kd": {"accuracy": [0.92, 0.92, 0.92], "ece": [0.04, 0.04, 0.05]},
    "new": {"accuracy": [0.93, 0.95, 0.91], "ece": [0.05, 0.06, 0.07]},
}


def test_comparison_table_prints_spread_difference_and_adjusted_p():
    text = tables.comparison_table(ARMS, baseline="supervised", metrics=("accuracy", "ece"))
    lines = [line.strip("| ").split(" | ") for line in text.splitlines()]
    assert lines[0][:4] == ["method", "accuracy (%)", "difference from supervised", "p"]
    assert lines[2] == ["supervised", "90.00 ± 1.00", "–", "–", "6.00 ± 1.00", "–", "–"]
    raw = [
        scipy.stats.ttest_rel(ARMS[x]["accuracy"], ARMS["supervised"]["accuracy"]).pvalue
        for x in ("kd", "new")
    ]
    adjusted = [tables.p_text(p) for p in statistics.holm(raw)]
    assert lines[3][:4] == ["kd", "92.00 ± 0.00", "+2.00 ± 1.00", adjusted[0]]
    assert lines[4][:4] == ["new", "93.00 ± 2.00", "+3.00 ± 1.00", adjusted[1]]
    assert lines[4][4:] == ["6.00 ± 1.00", "+0.00 ± 0.00", "–"]  # no spread: no test
    assert "3 seeds" in text.splitlines()[-1]
    assert "Holm" in text.splitlines()[-1]


def test_comparison_table_of_one_seed_has_no_spread_and_says_so():
    arms = {name: {"accuracy": v["accuracy"][:1]} for name, v in ARMS.items()}
    text = tables.comparison_table(arms, baseline="kd", metrics=("accuracy",))
    assert "| new | 93.00 | +1.00 | – |" in text
    assert text.endswith("One seed: no spread and no test.")


def test_comparison_table_refuses_what_cannot_be_compared():
    with pytest.raises(ValueError, match="baseline 'dkd' is none of the methods"):
        tables.comparison_table(ARMS, baseline="dkd")
    with pytest.raises(ValueError, match="method 'supervised' has no metric 'agreement'"):
        tables.comparison_table(ARMS, baseline="kd")
    short = {**ARMS, "new": {"accuracy": [0.9]}}
    with pytest.raises(ValueError, match="every method must have the same seeds"):
        tables.comparison_table(short, baseline="kd", metrics=("accuracy",))


def test_a_pipe_in_a_cell_does_not_break_a_markdown_table():
    assert r"a\|b" in tables.markdown_table(("method", "n"), [("a|b", "1")])


def test_text_table_aligns_its_columns():
    text = tables.text_table(("model", "x"), [("teacher", "1.0"), ("a", "10.0")])
    assert text.splitlines()[2:] == ["teacher   1.0", "a        10.0"]
