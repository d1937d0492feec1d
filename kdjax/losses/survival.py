"""Survival analysis: Cox's partial likelihood, hazards in discrete time, and their distillation.

An example is (time, event): the time of its event, or, censored (event False), the last time it was
known to be without. Continuous time has one log-hazard an example (Cox), discrete time one hazard
logit a bin: hazard h_k = sigmoid(z_k) of the event in bin k given none before. Values in float32
(float64 for float64). No gradient reaches an argument named `teacher_*`.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from numpy import ndarray

from kdjax.losses import checks, log_space
from kdjax.losses.checks import Labels, Logits, Losses, Scalar

Cohort = Float[Array | ndarray, " batch"]
Flags = Bool[Array | ndarray, " batch"]
CohortLosses = Float[Array, " batch"]


def cox_partial_likelihood(
    log_hazard: Cohort,
    time: Cohort,
    event: Flags,
    *,
    ties: str = "efron",
    where: Flags | None = None,
) -> CohortLosses:
    """Cox's negative log partial likelihood: who has the event, of all who still could.

        L_i = logsumexp_{j: time_j >= time_i} eta_j - eta_i            for an event, 0 if censored
        "efron": the first term is  1/m sum_{r < m} log( sum_R e^eta - r/m sum_H e^eta )

    with R those at risk, H the m events of that time. Both agree where no two events tie; "breslow"
    counts tied events as if each still ran the risk of the others. Unchanged by adding a constant
    to all log-hazards.

    The batch is the cohort (micro-batches are another loss). Its sum is the negative log partial
    likelihood. Means divide by the number of events, `sum(event)`, or, as torchsurv does, by that
    of distinct event times, `num_event_times`; the mean over the batch depends on the censoring.
    A batch without an event is 0: so is its gradient.

    Args:
      log_hazard: floats [batch], eta. Differentiated.
      time: floats [batch], finite; equal times tie. Stopped.
      event: booleans [batch]; False: censored at that time.
      ties: "efron" or "breslow".
      where: booleans [batch]; False examples take no part.

    Returns:
      [batch].

    Raises:
      ValueError: shapes that differ, a batch of one, unknown ties. TypeError: log_hazard or time
        that are not floats, event or where that are not boolean.

    Source: Cox 1972; Breslow 1974; Efron 1977.

    >>> import jax.numpy as jnp
    >>> log_hazard, time = jnp.log(jnp.array([1.0, 2.0, 1.0])), jnp.array([1.0, 2.0, 3.0])
    >>> event = jnp.array([True, True, False])
    >>> print(f"{cox_partial_likelihood(log_hazard, time, event).sum():.4f}")  # log 4 + log 3/2
    1.7918
    """
    checks.choice("ties", ties, ("efron", "breslow"))
    log_hazard, time = checks.shaped(
        {"log_hazard": "batch>=2", "time": "batch>=2"}, log_hazard=log_hazard, time=time
    )
    time, event, where = _events(time, event, where)
    log_hazard = jnp.where(where, log_hazard, 0.0)
    # In the order of time, with those that take no part before everyone: in nobody's risk set.
    order = jnp.lexsort((time, where))
    eta, time, event, where = (x[order] for x in (log_hazard, time, event, where))
    size = eta.shape[0]
    index = jnp.arange(size)
    starts = (time != jnp.roll(time, 1)) | (where != jnp.roll(where, 1)) | (index == 0)
    group = jnp.cumsum(starts) - 1
    first = jax.lax.cummax(jnp.where(starts, index, 0))
    at_risk = jax.lax.cumlogsumexp(eta, reverse=True)[first]

    def sum_of_group(values: Array) -> Array:
        return jax.ops.segment_sum(values, group, size, indices_are_sorted=True)[group]

    if ties == "efron":
        num_tied = jnp.maximum(sum_of_group(event.astype(eta.dtype)), 1)
        # Relative to those at risk, the tied events' hazards are at most 1: nothing overflows.
        share = jnp.exp(jnp.where(event, eta - at_risk, -jnp.inf))
        before = jnp.cumsum(event) - event
        place = (before - before[first]) / num_tied
        without = jnp.log1p(-jnp.where(event, place * sum_of_group(share), 0.0))
        at_risk = at_risk + sum_of_group(without) / num_tied
    losses = jnp.where(event, at_risk - eta, 0.0)
    return jnp.zeros_like(losses).at[order].set(losses)


def num_event_times(time: Cohort, event: Flags, *, where: Flags | None = None) -> Float[Array, ""]:
    """The number of distinct times at which an event happens.

    Args:
      time: floats [batch]. Not differentiable.
      event: booleans [batch]; False: censored.
      where: booleans [batch]; False examples take no part.

    Returns:
      Scalar, a whole number; 0 without an event.

    Raises:
      ValueError: shapes that differ, a batch of one. TypeError: time that is not of floats, event
        or where that are not boolean.

    Source: Breslow 1974.

    >>> import jax.numpy as jnp
    >>> time, event = jnp.array([1.0, 1.0, 2.0, 3.0]), jnp.array([True, True, True, False])
    >>> print(num_event_times(time, event))
    2.0
    """
    time, event, _ = _events(*checks.shaped({"time": "batch>=2"}, time=time), event, where)
    order = jnp.lexsort((time, event))
    time, event = time[order], event[order]
    again = (time == jnp.roll(time, 1)) & jnp.roll(event, 1) & (jnp.arange(time.size) > 0)
    return jnp.sum((event & ~again).astype(time.dtype))


def log_hazard_mse(
    student_log_hazard: Cohort, teacher_log_hazard: Cohort, *, where: Flags | None = None
) -> CohortLosses:
    """Distillation between Cox models: squared difference of the centred log-hazards.

        L_i = ( (s_i - mean s) - (t_i - mean t) )^2

    Cox's likelihood does not see a constant added to all log-hazards, nor does this. The means are
    those of the batch.

    Args:
      student_log_hazard: floats [batch]. Differentiated, through the mean too.
      teacher_log_hazard: floats [batch]. Stopped.
      where: booleans [batch]; False examples take no part.

    Returns:
      [batch], >= 0.

    Raises:
      ValueError: shapes that differ, a batch of one. TypeError: log-hazards that are not floats,
        where that is not boolean.

    Source: regression of logits, Ba and Caruana 2014, arXiv:1312.6184, for Cox 1972.

    >>> import jax.numpy as jnp
    >>> log_hazard_mse(jnp.array([0.0, 2.0]), jnp.array([5.0, 5.0])).tolist()
    [1.0, 1.0]
    """
    student, teacher = checks.shaped(
        {"student_log_hazard": "batch>=2", "teacher_log_hazard": "batch>=2"},
        student_log_hazard=student_log_hazard,
        teacher_log_hazard=teacher_log_hazard,
    )
    where = jnp.ones(student.shape, bool) if where is None else where
    where = checks.boolean("where", where, student.shape, "the log-hazards")
    gap = jnp.where(where, student, 0.0) - jax.lax.stop_gradient(jnp.where(where, teacher, 0.0))
    mean = jnp.sum(gap) / jnp.maximum(jnp.sum(where), 1)
    return jnp.where(where, (gap - mean) ** 2, 0.0)


def hazards_to_survival(logits: Logits) -> Float[Array, "*batch classes"]:
    """The probability of no event up to and including each bin.

        S_k = prod_{j <= k} (1 - sigmoid(z_j))

    The hazards themselves are sigmoid(z).

    Args:
      logits: floats [..., bins], of the hazards. Differentiated.

    Returns:
      Floats [..., bins] in [0, 1], not increasing.

    Raises:
      ValueError: no axis of bins. TypeError: logits that are not floats.

    Source: Zadeh and Schmid 2020; Xu et al. 2025 (DisPro), arXiv:2503.01653.

    >>> import jax.numpy as jnp
    >>> hazards_to_survival(jnp.zeros(4)).tolist()
    [0.5, 0.25, 0.125, 0.0625]
    """
    (logits,) = checks.logits(logits=logits)
    return jnp.exp(_log_survival(logits))


def survival_risk(logits: Logits) -> Losses:
    """One number an example that orders them by risk: minus the expected number of survived bins.

        risk = -sum_k S_k,   S = hazards_to_survival(logits)

    Rises with every logit.

    Args:
      logits: floats [..., bins], of the hazards. Differentiated.

    Returns:
      [...], in [-bins, 0].

    Raises:
      ValueError: no axis of bins. TypeError: logits that are not floats.

    Source: Zadeh and Schmid 2020; Xu et al. 2025 (DisPro), arXiv:2503.01653.

    >>> import jax.numpy as jnp
    >>> print(survival_risk(jnp.zeros(4)))
    -0.9375
    """
    return -jnp.sum(hazards_to_survival(logits), axis=-1)


def discrete_survival_nll(
    logits: Logits,
    labels: Labels,
    censored: Bool[Array | ndarray, "*batch"],
    *,
    alpha: Scalar = 0.0,
) -> Losses:
    """Negative log-likelihood in discrete time.

        event in bin y:       L = -log S_{y-1} - log h_y
        censored in bin y:    L = -(1 - alpha) log S_y

    with S_{-1} = 1. Logits after bin y have no gradient. alpha makes less of the censored examples.
    Finite for logits of any size, where code that clamps probabilities at 1e-7 loses the gradient.

    Args:
      logits: floats [..., bins], of the hazards. Differentiated.
      labels: integers [...], the bin. Outside [0, bins): loss 0, gradient 0.
      censored: booleans [...]; False: the event happened in the bin.
      alpha: scalar in [0, 1], may be traced.

    Returns:
      [...], >= 0.

    Raises:
      ValueError: shapes that do not fit, alpha outside [0, 1]. TypeError: logits that are not
        floats, labels that are not integers, censored that is not boolean.

    Source: Zadeh and Schmid 2020; Xu et al. 2025 (DisPro), arXiv:2503.01653.

    >>> import jax.numpy as jnp
    >>> loss = discrete_survival_nll(jnp.zeros((2, 4)), jnp.array([1, 3]), jnp.array([False, True]))
    >>> print(jnp.round(loss / jnp.log(2.0), 4).tolist())
    [2.0, 4.0]
    """
    valid, is_bin, logits, censored = _labelled(logits, labels, censored, alpha)
    uncensored = -_at(jax.nn.log_sigmoid(logits) + _log_survival_before(logits), is_bin)
    survived = -_at(_log_survival(logits), is_bin)
    return jnp.where(valid, jnp.where(censored, (1 - alpha) * survived, uncensored), 0.0)


def discrete_survival_ce(
    logits: Logits,
    labels: Labels,
    censored: Bool[Array | ndarray, "*batch"],
    *,
    alpha: Scalar = 0.0,
) -> Losses:
    """Cross-entropy in discrete time: was there an event up to the bin or not?

        event in bin y:       L = -(1 - alpha) log(1 - S_y) + alpha u,   u = -log S_{y-1} - log h_y
        censored in bin y:    L = -(1 - alpha) log S_y

    alpha = 1 leaves the likelihood of the events alone, see `discrete_survival_nll`. Finite for
    logits of any size: 1 - S_y is summed from the probabilities S_{k-1} h_k of the bins.

    Args:
      logits: floats [..., bins], of the hazards. Differentiated.
      labels: integers [...], the bin. Outside [0, bins): loss 0, gradient 0.
      censored: booleans [...]; False: the event happened in the bin.
      alpha: scalar in [0, 1], may be traced.

    Returns:
      [...], >= 0.

    Raises:
      ValueError: shapes that do not fit, alpha outside [0, 1]. TypeError: logits that are not
        floats, labels that are not integers, censored that is not boolean.

    Source: Chen et al. 2021 (MCAT); Xu et al. 2025 (DisPro), arXiv:2503.01653.

    >>> import jax.numpy as jnp
    >>> bins, censored = jnp.array([1, 1]), jnp.array([False, True])
    >>> loss = discrete_survival_ce(jnp.zeros((2, 4)), bins, censored)  # log 4/3, log 4
    >>> print(" ".join(f"{x:.4f}" for x in loss))
    0.2877 1.3863
    """
    valid, is_bin, logits, censored = _labelled(logits, labels, censored, alpha)
    log_event = jax.nn.log_sigmoid(logits) + _log_survival_before(logits)
    failed = -_at(jax.lax.cumlogsumexp(log_event, axis=log_event.ndim - 1), is_bin)
    survived = -_at(_log_survival(logits), is_bin)
    uncensored = (1 - alpha) * failed - alpha * _at(log_event, is_bin)
    return jnp.where(valid, jnp.where(censored, (1 - alpha) * survived, uncensored), 0.0)


def hazard_kd(
    student_logits: Logits,
    teacher_logits: Logits,
    *,
    where: Bool[Array | ndarray, "*batch classes"] | None = None,
) -> Losses:
    """Distillation in discrete time: KL between the hazards of every bin, summed.

        L = sum_k [ h_t log(h_t / h_s) + (1 - h_t) log((1 - h_t) / (1 - h_s)) ],   h = sigmoid(z_k)

    `binary_kl` at temperature 1, with a mask for the bins (those after a censoring, say).

    Args:
      student_logits: floats [..., bins], of the hazards. Differentiated.
      teacher_logits: floats [..., bins]. Stopped.
      where: booleans [..., bins]; False bins take no part.

    Returns:
      [...], >= 0.

    Raises:
      ValueError: shapes that differ. TypeError: logits that are not floats, where that is not
        boolean.

    Source: Hinton et al. 2015, arXiv:1503.02531, for hazards.

    >>> import jax.numpy as jnp
    >>> print(f"{hazard_kd(jnp.zeros(2), jnp.array([1e4, 0.0])):.4f}")  # log 2
    0.6931
    """
    student, teacher = checks.logits(student_logits=student_logits, teacher_logits=teacher_logits)
    where = jnp.ones(student.shape, bool) if where is None else where
    where = checks.boolean("where", where, student.shape, "the logits")
    student, teacher = (jnp.where(where, x, 0.0) for x in (student, teacher))
    divergences = log_space.bernoulli_kl(jax.lax.stop_gradient(teacher), student)
    return jnp.sum(jnp.where(where, divergences, 0.0), axis=-1)


def discretise_survival(
    time: Float[Array | ndarray, " examples"],
    event: Bool[Array | ndarray, " examples"],
    *,
    num_bins: int = 4,
) -> tuple[Int[ndarray, " examples"], Float[ndarray, " edges"]]:
    """Bins of time with equally many events, and the bin of every example, on the host.

        edges = min time - 1e-6, the quantiles k / num_bins of the event times, max time + 1e-6

    Bin k is [edges_k, edges_{k+1}). Take the edges from the training split and bin the others with
    `numpy.searchsorted(edges[1:-1], time, side="right")`.

    Args:
      time: floats [examples], finite.
      event: booleans [examples]; False: censored.
      num_bins: integer >= 1.

    Returns:
      The bins, int32 [examples] in [0, num_bins), and the edges, float64 [num_bins + 1].

    Raises:
      ValueError: shapes that differ, times that are not finite, no event, quantiles that coincide
        (fewer bins are needed), num_bins < 1. TypeError: time that is not of floats, event that is
        not boolean.

    Source: Zadeh and Schmid 2020; Xu et al. 2025 (DisPro), arXiv:2503.01653.

    >>> import numpy as np
    >>> time, event = np.array([1.0, 2.0, 3.0, 4.0, 9.0]), np.array([True, True, True, True, False])
    >>> bins, edges = discretise_survival(time, event, num_bins=2)
    >>> bins.tolist(), edges.round(2).tolist()
    ([0, 0, 1, 1, 1], [1.0, 2.5, 9.0])
    """
    checks.count(1, num_bins=num_bins)
    time, event = np.asarray(time), np.asarray(event)
    if not np.issubdtype(time.dtype, np.floating):
        raise TypeError(f"time must be a floating-point array, got dtype {time.dtype}")
    if event.dtype != bool:
        raise TypeError(f"event must be boolean, got dtype {event.dtype}")
    if time.ndim != 1 or event.shape != time.shape:
        raise ValueError(
            f"time and event must have one shape [examples], got {time.shape} and {event.shape}"
        )
    if not np.isfinite(time).all():
        raise ValueError("time must be finite")
    if not event.any():
        raise ValueError("event must be True somewhere: the bins are quantiles of event times")
    time = time.astype(np.float64)
    edges = np.quantile(time[event], np.linspace(0, 1, num_bins + 1))
    edges[0], edges[-1] = time.min() - 1e-6, time.max() + 1e-6
    if (np.diff(edges) <= 0).any():
        raise ValueError(
            f"num_bins must be smaller: the edges {edges.tolist()} of {num_bins} bins coincide"
        )
    return np.searchsorted(edges[1:-1], time, side="right").astype(np.int32), edges


def _events(time: Array, event: Flags, where: Flags | None) -> tuple[Array, Array, Array]:
    """Times, events and mask, with time 0 and no event where the mask is False."""
    where = jnp.ones(time.shape, bool) if where is None else where
    where = checks.boolean("where", where, time.shape, "the batch")
    event = checks.boolean("event", event, time.shape, "the batch") & where
    return jnp.where(where, jax.lax.stop_gradient(time), 0.0), event, where


def _labelled(
    logits: Logits, labels: Labels, censored: Array, alpha: Scalar
) -> tuple[Array, Array, Array, Array]:
    """Valid rows, the bin as one-hot booleans, logits with invalid rows at 0, and the flags."""
    (logits,) = checks.logits(logits=logits)
    labels = checks.labels(labels, logits.shape[:-1])
    censored = checks.boolean("censored", censored, labels.shape, "the labels")
    checks.fraction(alpha=alpha)
    valid = checks.valid_labels(labels, logits.shape[-1])
    is_bin = jnp.arange(logits.shape[-1]) == jnp.where(valid, labels, 0)[..., None]
    return valid, is_bin, jnp.where(valid[..., None], logits, 0.0), censored


def _log_survival(logits: Array) -> Array:
    return jnp.cumsum(jax.nn.log_sigmoid(-logits), axis=-1)


def _log_survival_before(logits: Array) -> Array:
    """log S of the bin before; 0 in the first."""
    start = jnp.zeros((*logits.shape[:-1], 1), logits.dtype)
    return jnp.concatenate([start, _log_survival(logits)[..., :-1]], axis=-1)


def _at(values: Array, is_bin: Array) -> Array:
    return jnp.sum(jnp.where(is_bin, values, 0.0), axis=-1)
