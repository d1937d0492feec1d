"""Numbers over seeds: mean and spread, a paired test against a baseline, and its correction."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

Values = Sequence[float] | np.ndarray  # one number a seed

_ROUNDING = 1e-12  # differences that vary by less than this share of the values are equal


class Summary(NamedTuple):
    """One number over seeds.

    Attributes:
      mean: over the seeds.
      sd: the sample standard deviation, with n - 1; NaN for one seed.
      n: the number of seeds.
      low, high: the 95 % confidence interval of the mean, by Student's t; NaN for one seed.
    """

    mean: float
    sd: float
    n: int
    low: float
    high: float


class PairedTest(NamedTuple):
    """A method against a baseline, seed by seed.

    Attributes:
      n: the number of seeds.
      difference: mean of value - baseline.
      sd: the sample standard deviation of the differences; NaN for one seed.
      p: two-sided; None where there is no test.
      reason: why there is no test; empty where there is one.
    """

    n: int
    difference: float
    sd: float
    p: float | None
    reason: str = ""


def _values(name: str, values: Values) -> np.ndarray:
    array = np.asarray(values, np.float64)
    if array.ndim != 1 or not array.size:
        raise ValueError(f"{name} must be one number a seed, got shape {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite, got {array.tolist()}")
    return array


def summary(values: Values) -> Summary:
    """Mean, standard deviation and 95 % interval of one number a seed: m ± t_{n-1} sd / sqrt(n).

    Args:
      values: `[n]`, finite, n >= 1.

    Raises:
      ValueError: no value, or one that is not finite.

    >>> summary([1.0, 2.0, 3.0])[:3]
    (2.0, 1.0, 3)
    """
    array = _values("values", values)
    n, mean = len(array), float(array.mean())
    if n < 2:
        return Summary(mean, math.nan, n, math.nan, math.nan)
    sd = float(array.std(ddof=1))
    half = float(stats.t.ppf(0.975, n - 1)) * sd / math.sqrt(n)
    return Summary(mean, sd, n, mean - half, mean + half)


def paired_test(values: Values, baseline: Values) -> PairedTest:
    """The paired t-test of a method against a baseline: t = mean(d) / (sd(d) / sqrt(n)).

    Entry i of both belongs to the same seed, that is, to the same initial student and the same
    order of the data. The t-test is chosen because a signed-rank or sign-flip test of five seeds
    cannot give a p below 0.06, whatever the differences.

    Args:
      values, baseline: `[n]`, finite, n >= 1.

    Returns:
      The test. One seed, and differences that are all equal, have no spread to test against:
      then p is None and `reason` says why.

    Raises:
      ValueError: different numbers of seeds, no value, or one that is not finite.

    >>> paired_test([3.0, 5.0, 7.0], [2.0, 3.0, 4.0])[:3]
    (3, 2.0, 1.0)
    >>> paired_test([0.9], [0.8]).reason
    'one seed'
    """
    first, second = _values("values", values), _values("baseline", baseline)
    if len(first) != len(second):
        raise ValueError(
            f"values and baseline must have the same seeds, got {len(first)} and {len(second)}"
        )
    difference = first - second
    n, mean = len(difference), float(difference.mean())
    if n < 2:
        return PairedTest(n, mean, math.nan, None, "one seed")
    if np.ptp(difference) <= _ROUNDING * np.abs([first, second]).max():
        return PairedTest(n, mean, 0.0, None, "the difference is the same for every seed")
    p = float(stats.ttest_rel(first, second).pvalue)
    return PairedTest(n, mean, float(difference.std(ddof=1)), p)


def holm(p_values: Values) -> list[float]:
    """Adjusts the p-values of several tests, so that one false alarm in all of them is rare.

    The i-th smallest of m becomes max over j <= i of min(1, (m - j + 1) p_j).

    Args:
      p_values: `[m]`, each in [0, 1].

    Returns:
      The adjusted values, in the order given.

    Raises:
      ValueError: a value outside [0, 1], or not a number.

    Source: Holm 1979, A simple sequentially rejective multiple test procedure.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    p = np.asarray(p_values, np.float64)
    if p.ndim != 1 or not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"p_values must lie in [0, 1], got {p.tolist()}")
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted.tolist()
