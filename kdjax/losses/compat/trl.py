"""TRL's loss of generalised knowledge distillation (GKDTrainer)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
from numpy import ndarray

from kdjax.losses import checks, divergences
from kdjax.losses.checks import Scalar

TokenLogits = Float[Array | ndarray, "*batch vocabulary"]
TokenLabels = Int[Array | ndarray, "*batch"]
Loss = Float[Array, ""]


def generalized_jsd_loss(
    student_logits: TokenLogits,
    teacher_logits: TokenLogits,
    labels: TokenLabels | None = None,
    *,
    beta: Scalar = 0.5,
    temperature: Scalar = 1.0,
    reduction: str = "batchmean",
    num_items_in_batch: Scalar | int | None = None,
) -> Loss:
    """TRL's `generalized_jsd_loss` (GKD): the mean of `generalized_jsd` over tokens that count.

        L = sum over tokens with label != -100 of JSD_beta(softmax(t / T), softmax(s / T)) / N

    N of "batchmean" is the number of those tokens; without labels it is the size of the first
    axis alone, so the loss grows with the length. "mean" divides by tokens times vocabulary. No
    T^2. `num_items_in_batch`, where given, is N: the tokens of all accumulated micro-batches.

    At beta = 0 and 1 it jumps to KL(t || s) and KL(s || t). TRL up to 0.11 mixed log-probabilities
    (a geometric mean, not a distribution) with the weights the other way round: another loss.

    Args:
      student_logits: floats [..., vocabulary], at least two axes. Differentiated.
      teacher_logits: floats [..., vocabulary]. Stopped.
      labels: integers [...], -100 where a token does not count; None: all count.
      beta: scalar in [0, 1], may be traced.
      temperature: scalar > 0, may be traced.
      reduction: "batchmean", "mean" or "sum"; ignored where num_items_in_batch is given.
      num_items_in_batch: scalar > 0, may be traced.

    Returns:
      Scalar, >= 0.

    Raises:
      ValueError: shapes that differ, beta outside [0, 1], temperature <= 0, an unknown reduction.
        TypeError: labels that are not integers, logits that are not floats.

    Source: Agarwal et al. 2023 (GKD), arXiv:2306.13649.

    >>> import jax.numpy as jnp
    >>> student, teacher = jnp.array([[[2.0, 1.0, 0.0]] * 2]), jnp.array([[[0.0, 1.0, 2.0]] * 2])
    >>> labels = jnp.array([[7, -100]])
    >>> loss = generalized_jsd_loss(student, teacher, labels)
    >>> print(f"{loss:.4f} {generalized_jsd_loss(student, teacher):.4f}")
    0.2476 0.4952
    """
    student, teacher = checks.logits(student_logits=student_logits, teacher_logits=teacher_logits)
    if student.ndim < 2:
        raise ValueError(
            f"student_logits must be shaped [..., vocabulary], two axes or more, "
            f"got shape {student.shape}"
        )
    checks.positive(temperature=temperature)
    checks.choice("reduction", reduction, ("batchmean", "mean", "sum"))
    counts = jnp.ones(student.shape[:-1], bool)
    if labels is not None:
        counts = checks.labels(labels, student.shape[:-1]) != -100
    student, teacher = (jnp.where(counts[..., None], x, 0.0) for x in (student, teacher))
    values = divergences.generalized_jsd(
        jax.lax.stop_gradient(teacher) / temperature, student / temperature, beta=beta
    )
    total = jnp.sum(jnp.where(counts, values, 0.0))
    if num_items_in_batch is not None:
        checks.positive(num_items_in_batch=num_items_in_batch)
        return total / num_items_in_batch
    if reduction == "sum":
        return total
    if reduction == "mean":
        return total / (jnp.maximum(jnp.sum(counts), 1) * student.shape[-1])
    return total / (student.shape[0] if labels is None else jnp.maximum(jnp.sum(counts), 1))
