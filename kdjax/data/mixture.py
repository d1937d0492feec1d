"""Which rows are read next where domains are mixed by weights that change while training.

Training is cut into intervals of a fixed number of rows. How many of them are of which domain
follows the weights; within a domain rows are read one after the other in a random order, and
when all were read, in a new one. All is a function of the seed, the interval, the weights and how
far each domain has been read, so that every process, and a run that is started again, draws alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

DRAWS = ("categorical", "quota")


class Interval(NamedTuple):
    """The rows of an interval.

    Attributes:
      rows: `[size]`, rows of the split, shuffled: the `indices` of a stream.
      cursors: `[domains]`, rows of each domain that have been read after the interval, repeated
        ones counted again.
    """

    rows: np.ndarray
    cursors: np.ndarray


def domain_quota(
    share: np.ndarray, size: int, rng: np.random.Generator | None = None
) -> np.ndarray:
    """How many of `size` rows are of each domain.

    Args:
      share: `[domains]`, not negative, sum 1.
      size: rows in all.
      rng: the numbers are those of independent draws from `share`. None: the quotas by largest
        remainder, which differ from `size * share` by less than 1; of equal remainders the first
        domains get more.

    Returns:
      `[domains]` integers, sum `size`.

    Raises:
      ValueError: shares that are no distribution, size < 1.

    >>> domain_quota(np.array([0.45, 0.35, 0.2]), 10).tolist()
    [5, 3, 2]
    """
    share = np.asarray(share, np.float64)
    if share.ndim != 1 or not (share >= 0).all() or not abs(share.sum() - 1) < 1e-5:
        raise ValueError(f"share must be a distribution over domains, got {share.tolist()}")
    if size < 1:
        raise ValueError(f"size must be at least 1, got {size}")
    share = share / share.sum()  # what float32 has rounded
    if rng is not None:
        return rng.multinomial(size, share)
    counts = np.floor(size * share).astype(np.int64)
    # Rounded, so that remainders that differ by an error of the product count as equal.
    remainders = np.round(size * share - counts, 9)
    first = np.argsort(-remainders, kind="stable")[: size - counts.sum()]
    counts[first] += 1
    return counts


def draw(
    rows: Mapping[str, np.ndarray],
    cursors: np.ndarray,
    share: np.ndarray,
    size: int,
    *,
    seed: int,
    interval: int,
    by: str = "categorical",
) -> Interval:
    """The rows of an interval.

    Args:
      rows: domain -> its rows of a split, as `TextDataset.domain_rows` gives them.
      cursors: `[domains]` integers, how many rows of each domain were read before.
      share: `[domains]`, the weights of the domains, sum 1.
      size: rows of the interval.
      seed: of the orders and draws.
      interval: its number, from 0.
      by: "categorical", independent draws of the domains, or "quota", see `domain_quota`.

    Raises:
      ValueError: a domain without rows, arrays of other lengths, shares that are no distribution.

    >>> rows = {"prose": np.array([0, 1, 2]), "code": np.array([3, 4])}
    >>> found = draw(rows, [0, 0], [0.5, 0.5], 4, seed=0, interval=0, by="quota")
    >>> sorted(found.rows.tolist())[2:], found.cursors.tolist()
    ([3, 4], [2, 2])
    """
    for name, found in rows.items():
        if not len(found):
            raise ValueError(f"the domain {name!r} has no rows")
    cursors = np.asarray(cursors, np.int64)
    for what, x in (("cursors", cursors), ("share", np.asarray(share))):
        if x.shape != (len(rows),):
            raise ValueError(
                f"{what} must hold one number for each of the {len(rows)} domains, got shape "
                f"{x.shape}"
            )
    if (cursors < 0).any():
        raise ValueError(f"cursors must not be negative, got {cursors.tolist()}")
    if by not in DRAWS:
        raise ValueError(f"by must be one of {DRAWS}, got {by!r}")
    # 0 for the interval, 1, 2, ... for the domains: no two random sequences are the same.
    rng = np.random.default_rng([seed, 0, interval])
    counts = domain_quota(share, size, rng if by == "categorical" else None)
    parts = []
    for domain, found in enumerate(rows.values()):
        places = np.arange(cursors[domain], cursors[domain] + counts[domain])
        epochs, places = np.divmod(places, len(found))
        for epoch in np.unique(epochs):
            order = np.random.default_rng([seed, 1 + domain, epoch]).permutation(found)
            parts.append(order[places[epochs == epoch]])
    return Interval(rng.permutation(np.concatenate(parts)).astype(np.int32), cursors + counts)
