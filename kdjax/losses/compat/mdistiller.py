"""mdistiller's losses on logits (mdistiller/distillers/KD.py, DKD.py), and of its fork.

The fork is that of Logit Standardization in Knowledge Distillation, with `logit_stand`.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int
from numpy import ndarray

from kdjax.losses import logits
from kdjax.losses.checks import Scalar

BatchLogits = Float[Array | ndarray, "batch classes"]
BatchLabels = Int[Array | ndarray, " batch"]
Loss = Float[Array, ""]


def kd_loss(
    student_logits: BatchLogits,
    teacher_logits: BatchLogits,
    temperature: Scalar,
    logit_stand: bool = False,
) -> Loss:
    """mdistiller's `kd_loss`, and that of its logit-standardization fork: the mean of `kd`.

        L = T^2 mean_b KL(p_b || q_b)

    mdistiller adds it with 0.9 to 0.1 of the cross-entropy, T = 4.

    Args:
      student_logits: floats [batch, classes]. Differentiated.
      teacher_logits: floats [batch, classes]. Stopped.
      temperature: scalar > 0, may be traced.
      logit_stand: standardise both first (the fork).

    Returns:
      Scalar.

    Raises:
      ValueError: shapes that differ, temperature <= 0. TypeError: arrays that are not floats.

    Source: Hinton et al. 2015, arXiv:1503.02531; Sun et al. 2024, arXiv:2403.01427.

    >>> import jax.numpy as jnp
    >>> student, teacher = jnp.array([[2.0, 1.0, 0.0]]), jnp.array([[0.0, 1.0, 2.0]])
    >>> print(f"{kd_loss(student, teacher, 4.0):.4f}")
    1.3196
    """
    kernel = logits.logit_standardized_kd if logit_stand else logits.kd
    return jnp.mean(kernel(student_logits, teacher_logits, temperature=temperature))


def dkd_loss(
    student_logits: BatchLogits,
    teacher_logits: BatchLogits,
    labels: BatchLabels,
    alpha: Scalar,
    beta: Scalar,
    temperature: Scalar,
    logit_stand: bool = False,
) -> Loss:
    """mdistiller's `dkd_loss`, and that of its logit-standardization fork: the mean of `dkd`.

        L = T^2 mean_b [ alpha KL(b_p || b_q) + beta KL(p^ || q^) ]

    The original takes 1000 from the target's logit, and the logarithm of a softmax: for logits
    thousands of T apart it leaks or is infinite. Elsewhere the two agree. It is multiplied by
    min(epoch / 20, 1).

    Args:
      student_logits: floats [batch, classes]. Differentiated.
      teacher_logits: floats [batch, classes]. Stopped.
      labels: integers [batch]. Outside [0, classes): loss 0, counted in the mean.
      alpha: scalar >= 0, may be traced.
      beta: scalar >= 0, may be traced.
      temperature: scalar > 0, may be traced.
      logit_stand: standardise both first (the fork).

    Returns:
      Scalar.

    Raises:
      ValueError: shapes that differ, temperature <= 0, alpha or beta < 0. TypeError: labels that
        are not integers, logits that are not floats.

    Source: Zhao et al. 2022 (DKD), arXiv:2203.08679; Sun et al. 2024, arXiv:2403.01427.

    >>> import jax.numpy as jnp
    >>> student, teacher = jnp.array([[2.0, 1.0, 0.0]]), jnp.array([[0.0, 1.0, 2.0]])
    >>> print(f"{dkd_loss(student, teacher, jnp.array([0]), 1.0, 0.0, 1.0):.4f}")
    0.7299
    """
    if logit_stand:
        student_logits, teacher_logits = map(
            logits.standardize_logits, (student_logits, teacher_logits)
        )
    return jnp.mean(
        logits.dkd(
            student_logits,
            teacher_logits,
            labels,
            alpha=alpha,
            beta=beta,
            temperature=temperature,
        )
    )
