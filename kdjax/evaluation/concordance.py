"""How well a risk orders examples by the time of their event."""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float

Array = jax.Array | np.ndarray


class Concordance(NamedTuple):
    """Counts of pairs of examples, and the index that they give.

    Attributes:
      index: (concordant + tied_risk / 2) / (concordant + discordant + tied_risk).
      concordant: comparable pairs of which the earlier event has the larger risk.
      discordant: those of which it has the smaller one.
      tied_risk: those of which the risks agree up to the tolerance.
      tied_time: comparable pairs at one time, of an event and a censored example.
    """

    index: float
    concordant: int
    discordant: int
    tied_risk: int
    tied_time: int


def concordance_index(
    time: Float[Array, " examples"],
    event: Bool[Array, " examples"],
    risk: Float[Array, " examples"],
    *,
    tied_tolerance: float = 1e-8,
) -> Concordance:
    """Harrell's concordance index: how often the earlier event has the larger risk.

    A pair (i, j) is comparable where i has its event before the time of j, or at the same time at
    which j is censored; two events at the same time are not. Risks that differ by at most the
    tolerance count half. The counts are those of scikit-survival.

    Args:
      time: `[N]`, finite.
      event: `[N]`, bool; False: censored at that time.
      risk: `[N]`, finite; larger means earlier. Only its order matters.
      tied_tolerance: at least 0.

    Returns:
      A `Concordance`; its index is 1 for the right order, 0 for the reverse, 0.5 for constant risk.

    Raises:
      ValueError: shapes that differ, an event that is not boolean, values that are not finite, a
        tolerance below 0, no comparable pair.

    Source: Harrell et al. 1982.

    >>> time, event = np.array([1.0, 2.0, 3.0]), np.array([True, True, False])
    >>> concordance_index(time, event, np.array([0.9, 0.1, 0.5]))
    Concordance(index=0.6666666666666666, concordant=2, discordant=1, tied_risk=0, tied_time=0)
    """
    event = np.asarray(event)
    if event.dtype != bool or event.ndim != 1:
        raise ValueError(f"event must be bool [examples], got {event.dtype} {event.shape}")
    columns = []
    for name, values in (("time", time), ("risk", risk)):
        values = np.asarray(values, np.float64)
        if values.shape != event.shape:
            raise ValueError(f"{name} must have shape {event.shape} like event, got {values.shape}")
        if not np.isfinite(values).all():
            raise ValueError(f"{name} is not finite in example {np.argmin(np.isfinite(values))}")
        columns.append(values)
    time, risk = columns
    if not tied_tolerance >= 0:
        raise ValueError(f"tied_tolerance must be at least 0, got {tied_tolerance}")
    concordant = comparable = tied_risk = tied_time = 0
    # A row a time: cohorts of ten thousands fit.
    for i in np.flatnonzero(event):
        same = time == time[i]
        pairs = (time > time[i]) | (same & ~event)
        gap = risk[i] - risk[pairs]
        tied = np.abs(gap) <= tied_tolerance
        comparable += gap.size
        tied_risk += int(tied.sum())
        concordant += int((gap > 0)[~tied].sum())
        tied_time += int((same & ~event).sum())
    if not comparable:
        raise ValueError("no comparable pair: event is never True before the time of another")
    index = (concordant + 0.5 * tied_risk) / comparable
    discordant = comparable - concordant - tied_risk
    return Concordance(index, concordant, discordant, tied_risk, tied_time)
