"""Distillation from several teachers, of which a gate picks some for every example.

Gate probabilities are [..., teachers], one row an example. Logits may have further axes between the
example's and the classes' (the pixels of a dense prediction), which share their example's choice.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
from numpy import ndarray

from kdjax.losses import checks
from kdjax.losses.checks import Scalar
from kdjax.losses.logits import kd

GateProbs = Float[Array | ndarray, "*batch teachers"]


def route_topk(gate_probs: GateProbs, *, num_selected: int = 1) -> Int[Array, "*batch selected"]:
    """Which teachers teach each example: those of the largest gate probabilities.

    Args:
      gate_probs: floats [..., teachers]. Not differentiated. Ties: the lowest index first.
      num_selected: k, from 1 to the number of teachers.

    Returns:
      int32 [..., k], the most probable first.

    Raises:
      ValueError: no teachers, num_selected out of range. TypeError: probabilities that are not
        floats.

    Source: MST-Distill, Li et al. 2025, arXiv:2507.07015.

    >>> import jax.numpy as jnp
    >>> route_topk(jnp.array([[0.1, 0.6, 0.3], [0.4, 0.4, 0.2]]), num_selected=2).tolist()
    [[1, 2], [0, 1]]
    """
    (gate_probs,) = checks.shaped({"gate_probs": "... teachers"}, gate_probs=gate_probs)
    checks.count(1, gate_probs.shape[-1], num_selected=num_selected)
    return jax.lax.top_k(jax.lax.stop_gradient(gate_probs), num_selected)[1]


def routed_topk_distillation(
    student_logits: Float[Array | ndarray, "*positions classes"],
    teacher_logits: Float[Array | ndarray, "*positions teachers classes"],
    gate_probs: GateProbs,
    *,
    num_selected: int = 1,
    temperature: Scalar = 4.0,
    gate_weighted: bool = False,
) -> Float[Array, "*positions"]:
    """MST-Distill's loss: `kd` from the teachers that the gate picks for each example.

        L = 1/k sum_{m in top-k(g)} T^2 KL(p_m || q),   p_m = softmax(t_m / T),  q = softmax(s / T)

    The choice has no gradient and the probabilities weigh nothing, so that the gate learns nothing
    from this. With `gate_weighted` (not in the paper) they do: g_m / sum_{m in top-k} g_m takes the
    place of 1/k; for k = 1 that is 1, and the gate still learns nothing.

    Args:
      student_logits: floats [*batch, *positions, classes]. Differentiated.
      teacher_logits: floats [*batch, *positions, teachers, classes]. Stopped. A value that is not
        finite makes the loss so, where its teacher is picked.
      gate_probs: g, floats [*batch, teachers] >= 0. Differentiated with `gate_weighted` alone.
      num_selected: k, from 1 to the number of teachers.
      temperature: scalar > 0, may be traced.
      gate_weighted: see above.

    Returns:
      [*batch, *positions], >= 0. The mean is the published loss.

    Raises:
      ValueError: shapes that do not fit, num_selected out of range, temperature <= 0.
      TypeError: arrays that are not floats.

    Source: MST-Distill, Li et al. 2025, arXiv:2507.07015.

    >>> import jax.numpy as jnp
    >>> teachers = jnp.array([[[4.0, 0.0], [0.0, 0.0]]])
    >>> for gate in ([0.7, 0.3], [0.3, 0.7]):
    ...     loss = routed_topk_distillation(jnp.zeros((1, 2)), teachers, jnp.array([gate]))
    ...     print(f"{loss[0]:.4f}")
    1.7751
    0.0000
    """
    student, teachers = checks.shaped(
        {"student_logits": "... classes", "teacher_logits": "... teachers classes"},
        student_logits=student_logits,
        teacher_logits=teacher_logits,
    )
    (gate,) = checks.shaped({"gate_probs": "... teachers"}, gate_probs=gate_probs)
    number, batch = teachers.shape[-2], gate.shape[:-1]
    if gate.shape[-1] != number or student.shape[:-1][: len(batch)] != batch:
        raise ValueError(
            f"gate_probs must be shaped [*batch, teachers], the batch that student_logits "
            f"{student.shape} lead with and teachers = {number}, got shape {gate.shape}"
        )
    checks.positive(temperature=temperature)
    chosen = route_topk(gate, num_selected=num_selected)
    weights = jnp.full(chosen.shape, 1 / num_selected, student.dtype)
    if gate_weighted:
        kept = jnp.take_along_axis(gate.astype(student.dtype), chosen, axis=-1)
        weights = kept / jnp.sum(kept, axis=-1, keepdims=True)
    positions = tuple(range(len(batch), student.ndim - 1))
    chosen, weights = (jnp.expand_dims(x, positions) for x in (chosen, weights))
    shape = (*student.shape[:-1], num_selected)
    picked = jnp.take_along_axis(teachers, jnp.broadcast_to(chosen, shape)[..., None], axis=-2)
    loss = kd(
        jnp.broadcast_to(student[..., None, :], picked.shape), picked, temperature=temperature
    )
    return jnp.sum(weights * loss, axis=-1)
