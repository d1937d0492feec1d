"""Which of two opponents learns: controllers of an alternation.

An augmentor looks for inputs on which student and teacher differ; the student learns to agree
there. Who is to act is decided by how far the two are apart, or by a fixed rhythm.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from kdjax.losses import checks
from kdjax.losses.checks import Scalar

STUDENT, AUGMENTOR = 0, 1


class PhaseState(NamedTuple):
    """What a controller of two phases remembers; scalars.

    phase: int32, 0 while the student learns, 1 while the augmentor does.
    average: float32, moving average of the metric in this phase; infinite before its first value.
    steps_in_phase: int32, the steps of this phase.
    n_switches: int32, how often the phase has changed.
    """

    phase: Int[Array, ""]
    average: Float[Array, ""]
    steps_in_phase: Int[Array, ""]
    n_switches: Int[Array, ""]

    @staticmethod
    def start() -> "PhaseState":
        """The state before the first step: the student's phase."""
        zero = jnp.int32(0)
        return PhaseState(zero, jnp.float32(jnp.inf), zero, zero)


def phase_controller(
    state: PhaseState,
    metric: Scalar,
    *,
    l_min: Scalar = 0.3,
    l_max: Scalar = 1.0,
    decay: Scalar = 0.8,
    max_phase_steps: Scalar = 60,
) -> PhaseState:
    """HARD's controller: a switch with hysteresis between the student and the augmentor.

        average = metric in the first step of a phase, then decay average + (1 - decay) metric
        student's phase   -> augmentor's   where average < l_min
        augmentor's phase -> student's     where average > l_max, or after max_phase_steps

    The average starts anew with each phase. A metric that is not finite leaves it as it is, and
    counts as a step.

    Args:
      state: of the last step.
      metric: how far student and teacher are apart on this step's views, in nats; the same on all
        devices. Stopped.
      l_min: where the student has caught up; may be traced.
      l_max: where the augmentor has done enough, above l_min; may be traced.
      decay: in [0, 1), of the average.
      max_phase_steps: > 0, of the augmentor; may be traced.

    Returns:
      The state for the next step.

    Raises:
      ValueError: a number out of its range, l_min >= l_max.

    Source: after HARD, arXiv:2305.14890 (2023), whose abstract says that the augmentor is optimised
      anew as the student catches up; thresholds and average are ours.

    >>> state = phase_controller(PhaseState.start(), 0.2)
    >>> int(state.phase), int(state.n_switches), int(state.steps_in_phase)
    (1, 1, 0)
    """
    checks.fraction(decay=decay)
    checks.positive(max_phase_steps=max_phase_steps)
    checks.finite(l_min=l_min, l_max=l_max)
    if checks.number("decay", decay) == 1:
        raise ValueError(f"decay must be below 1, got {decay}")
    bounds = checks.number("l_min", l_min), checks.number("l_max", l_max)
    if None not in bounds and bounds[0] >= bounds[1]:
        raise ValueError(f"l_min={l_min} must be below l_max={l_max}")
    metric = jax.lax.stop_gradient(jnp.asarray(metric, jnp.float32))
    known = jnp.isfinite(metric)
    average = jnp.asarray(state.average, jnp.float32)
    fresh = ~jnp.isfinite(average)
    moved = decay * jnp.where(fresh, 0, average) + (1 - decay) * jnp.where(known, metric, 0)
    average = jnp.where(known, jnp.where(fresh, metric, moved), average)
    steps = state.steps_in_phase + 1
    learning = state.phase == STUDENT
    enough = ((average > l_max) & jnp.isfinite(average)) | (steps >= max_phase_steps)
    return _next(state, jnp.where(learning, average < l_min, enough), average, steps)


def alternating_phases(
    state: PhaseState, metric: Scalar, *, student_steps: int, augmentor_steps: int
) -> PhaseState:
    """A fixed rhythm: so many steps of the student, so many of the augmentor, and again.

    Args:
      state: of the last step: `steps_in_phase` of `phase`, `n_switches` before it; `average` is the
        last metric.
      metric: kept to be looked at, it decides nothing. Stopped.
      student_steps, augmentor_steps: integers >= 1.

    Returns:
      The state for the next step.

    Raises:
      ValueError: no steps. TypeError: steps that are no integers.

    Source: the alternative to `phase_controller`, as in adversarial training.

    >>> state = alternating_phases(PhaseState.start(), 0.9, student_steps=1, augmentor_steps=2)
    >>> int(state.phase)
    1
    """
    checks.count(1, student_steps=student_steps, augmentor_steps=augmentor_steps)
    metric = jax.lax.stop_gradient(jnp.asarray(metric, jnp.float32))
    steps = state.steps_in_phase + 1
    wanted = jnp.where(state.phase == STUDENT, student_steps, augmentor_steps)
    return _next(state, steps >= wanted, metric, steps)


def _next(state: PhaseState, switch: Array, average: Array, steps: Array) -> PhaseState:
    phase = jnp.where(switch, 1 - state.phase, state.phase)
    return PhaseState(
        jnp.asarray(phase, jnp.int32),
        jnp.where(switch, jnp.inf, average),
        jnp.asarray(jnp.where(switch, 0, steps), jnp.int32),
        jnp.asarray(state.n_switches + switch, jnp.int32),
    )
