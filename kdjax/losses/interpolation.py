"""Targets between the student and its teacher, and the controller that moves them.

    p_t = softmax((1 - t) stop(s) + t z),    s, z: logits of the student and the teacher

is the normalised geometric mean of the two distributions. It starts near the student and ends at
the teacher; how fast is decided by how well the student follows.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kdjax.losses import checks, log_space
from kdjax.losses.checks import Logits, Losses, Scalar


def interpolated_teacher_logits(
    student_logits: Logits, teacher_logits: Logits, *, t: Scalar
) -> Float[Array, "*batch classes"]:
    """The logits of TAID's intermediate teacher.

        z_t = (1 - t) s + t z

    Args:
      student_logits: floats [..., classes]. Stopped.
      teacher_logits: floats [..., classes]. Stopped.
      t: scalar in [0, 1], may be traced. Not differentiated.

    Returns:
      [..., classes]; -inf where either side is -inf.

    Raises:
      ValueError: shapes that differ, t outside [0, 1]. TypeError: arrays that are not floats.

    Source: Shing et al. 2025 (TAID), arXiv:2501.16937, eq. 2.

    >>> import jax.numpy as jnp
    >>> target = interpolated_teacher_logits(jnp.zeros(2), jnp.log(jnp.array([3.0, 1.0])), t=0.5)
    >>> print(f"{jax.nn.softmax(target)[0]:.6f}")
    0.633975
    """
    student, teacher = checks.logits(student_logits=student_logits, teacher_logits=teacher_logits)
    checks.fraction(t=t)
    student, teacher, t = jax.lax.stop_gradient((student, teacher, jnp.asarray(t, student.dtype)))
    absent = (student == -jnp.inf) | (teacher == -jnp.inf)
    between = (1 - t) * jnp.where(absent, 0, student) + t * jnp.where(absent, 0, teacher)
    return jnp.where(absent, -jnp.inf, between)


def taid(
    student_logits: Logits, teacher_logits: Logits, *, t: Scalar, form: str = "cross_entropy"
) -> Losses:
    """Temporally adaptive interpolated distillation: the student against the teacher of time t.

        "cross_entropy":  - sum_c p_t(c) log q(c)
        "kl":             KL(p_t || q) = that - the entropy of p_t

    with q = softmax(s); both have the gradient q - p_t in s, which is 0 at t = 0 and that of the
    forward KL at t = 1. The authors' code takes the cross-entropy, and its value drives the
    schedule; the paper's formula is the KL. The published loss is the mean over the tokens that
    count. From hidden states and heads: `linear_taid`.

    Args:
      student_logits: floats [..., classes]. Differentiated, but not through p_t.
      teacher_logits: floats [..., classes]. Stopped.
      t: scalar in [0, 1], may be traced. Not differentiated.
      form: "cross_entropy" or "kl".

    Returns:
      [...], >= 0.

    Raises:
      ValueError: shapes that differ, t outside [0, 1], an unknown form. TypeError: arrays that are
        not floats.

    Source: Shing et al. 2025 (TAID), arXiv:2501.16937, eq. 3.

    >>> import jax.numpy as jnp
    >>> print(f"{taid(jnp.zeros(2), jnp.log(jnp.array([3.0, 1.0])), t=0.5):.6f}")
    0.693147
    """
    checks.choice("form", form, ("cross_entropy", "kl"))
    (student,) = checks.logits(student_logits=student_logits)
    target = interpolated_teacher_logits(student_logits, teacher_logits, t=t)
    log_p, log_q = log_space.safe_log_softmax(target), log_space.safe_log_softmax(student)
    if form == "kl":
        return log_space.kl(log_p, log_q)
    p = jnp.exp(log_p)
    return -jnp.sum(p * jnp.where(p > 0, log_q, 0), -1)


class TaidState(NamedTuple):
    """What TAID's controller remembers; float32 scalars.

    t: how far the target is from the student to the teacher.
    previous_loss: infinite until the first loss has come.
    momentum: of the relative decrease of the loss.
    """

    t: Float[Array, ""]
    previous_loss: Float[Array, ""]
    momentum: Float[Array, ""]

    @staticmethod
    def start(t_start: Scalar = 0.4) -> "TaidState":
        """The state before the first step."""
        checks.fraction(t_start=t_start)
        return TaidState(jnp.float32(t_start), jnp.float32(jnp.inf), jnp.float32(0))


def taid_update(
    state: TaidState,
    loss: Scalar,
    *,
    step: Scalar,
    num_steps: Scalar,
    t_start: Scalar = 0.4,
    t_end: Scalar = 1.0,
    alpha: Scalar = 5e-4,
    beta: Scalar = 0.99,
    adaptive: bool = True,
) -> TaidState:
    """TAID's controller: t never falls, and rises faster while the loss does.

        d = (previous - loss) / (previous + 1e-15)          relative decrease, in [-1, 1]
        m = beta m + (1 - beta) d
        floor = t_start + (t_end - t_start) step / num_steps
        t = min(t_end, max(floor, t + alpha sigmoid(m) (1 - t)))

    The first loss is only remembered. With the default alpha the adaptive part outruns the linear
    floor only in runs of more than some 4,000 steps. A loss that is not finite is not remembered:
    t then follows the floor. d is clipped to [-1, 1], which matters only where the previous loss
    is not above 0 or the loss has more than doubled.

    Args:
      state: of the last step: t, previous_loss, momentum.
      loss: the mean loss of this step, the same on all devices. Stopped.
      step: of this loss, from 0; may be traced.
      num_steps: of the run, at least 1; may be traced.
      t_start: in [0, 1), where the floor begins.
      t_end: in (0, 1], at least t_start, where it ends.
      alpha: in [0, 1], the largest adaptive step.
      beta: in [0, 1), of the momentum.
      adaptive: False: t is the floor.

    Returns:
      The state for the next step.

    Raises:
      ValueError: a number out of its range.

    Source: Shing et al. 2025 (TAID), arXiv:2501.16937, section 4.3, algorithm 1.

    >>> state = TaidState(jnp.float32(0.5), jnp.float32(2), jnp.float32(0))
    >>> after = taid_update(state, 1.0, step=0, num_steps=1, alpha=1.0, beta=0.0)
    >>> print(f"{after.t:.6f} {after.momentum:.1f}")
    0.811230 0.5
    """
    checks.fraction(t_start=t_start, t_end=t_end, alpha=alpha, beta=beta)
    checks.positive(t_end=t_end, num_steps=num_steps)
    for name, value in (("t_start", t_start), ("beta", beta)):
        if checks.number(name, value) == 1:
            raise ValueError(f"{name} must be below 1, got {value}")
    bounds = checks.number("t_start", t_start), checks.number("t_end", t_end)
    if None not in bounds and bounds[0] > bounds[1]:
        raise ValueError(f"t_start={t_start} must not be above t_end={t_end}")
    t, previous, momentum = (jnp.asarray(x, jnp.float32) for x in state)
    loss = jax.lax.stop_gradient(jnp.asarray(loss, jnp.float32))
    floor = t_start + (t_end - t_start) * jnp.asarray(step, jnp.float32) / num_steps
    if not adaptive:
        return TaidState(jnp.minimum(floor, t_end), loss, momentum)
    finite = jnp.isfinite(loss)
    known = finite & jnp.isfinite(previous)
    safe = jnp.where(known, previous, 1.0)
    decrease = jnp.where(known, (safe - loss) / (jnp.maximum(safe, 0) + 1e-15), 0)
    moved = beta * momentum + (1 - beta) * jnp.clip(decrease, -1, 1)
    momentum = jnp.where(known, moved, momentum)
    raised = jnp.where(known, t + alpha * jax.nn.sigmoid(momentum) * (1 - t), t)
    # The first loss moves nothing, not even along the floor.
    first = finite & ~jnp.isfinite(previous)
    new = jnp.where(first, t, jnp.minimum(t_end, jnp.maximum(floor, raised)))
    return TaidState(new, jnp.where(finite, loss, previous), momentum)
