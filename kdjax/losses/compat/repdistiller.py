"""RepDistiller's loss on logits (distiller_zoo/KD.py)."""

from jaxtyping import Array, Float
from numpy import ndarray

from kdjax.losses.checks import Scalar
from kdjax.losses.compat import mdistiller

BatchLogits = Float[Array | ndarray, "batch classes"]
Loss = Float[Array, ""]


def distill_kl(
    student_logits: BatchLogits, teacher_logits: BatchLogits, temperature: Scalar
) -> Loss:
    """RepDistiller's `DistillKL`: the sum of the KL over batch and classes, T^2 / batch.

        L = T^2 / B sum_b KL(p_b || q_b)

    The mean of `kd`, and the same number as `mdistiller.kd_loss`. RepDistiller weighs it with
    alpha against gamma of the cross-entropy (-a and -r on its command line).

    Args:
      student_logits: floats [batch, classes]. Differentiated.
      teacher_logits: floats [batch, classes]. Stopped.
      temperature: scalar > 0, may be traced. 4 there.

    Returns:
      Scalar.

    Raises:
      ValueError: shapes that differ, temperature <= 0. TypeError: arrays that are not floats.

    Source: Tian et al. 2020 (CRD), arXiv:1910.10699.

    >>> import jax.numpy as jnp
    >>> student, teacher = jnp.array([[2.0, 1.0, 0.0]]), jnp.array([[0.0, 1.0, 2.0]])
    >>> print(f"{distill_kl(student, teacher, 4.0):.4f}")
    1.3196
    """
    return mdistiller.kd_loss(student_logits, teacher_logits, temperature)
