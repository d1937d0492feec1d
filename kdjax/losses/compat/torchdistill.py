"""torchdistill's losses on logits (torchdistill/losses/mid_level.py).

A constructor's arguments are keywords here, beside those of the call.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int
from numpy import ndarray

from kdjax.losses import checks, logits
from kdjax.losses.checks import Scalar

BatchLogits = Float[Array | ndarray, "batch classes"]
BatchLabels = Int[Array | ndarray, " batch"]
Loss = Float[Array, ""]


def kd_loss(
    student_logits: BatchLogits,
    teacher_logits: BatchLogits,
    labels: BatchLabels | None = None,
    *,
    temperature: Scalar,
    alpha: float | None = None,
    beta: Scalar | None = None,
    reduction: str = "batchmean",
) -> Loss:
    """torchdistill's `KDLoss`.

        L = alpha CE(s, y) + beta T^2 KL(p || q),   beta = 1 - alpha by default
        L = KL(p || q)                              if alpha is None or 0, or without labels

    The second line has neither beta nor T^2: a weight of 0 on the labels changes the size of the
    rest. "batchmean" is the mean of `kd` over the batch; "mean" divides the KL by the classes too.

    Args:
      student_logits: floats [batch, classes]. Differentiated.
      teacher_logits: floats [batch, classes]. Stopped.
      labels: integers [batch]; None: no cross-entropy. Outside [0, classes): not counted.
      temperature: scalar > 0, may be traced.
      alpha: number >= 0 or None, weight of the labels; not traced, it decides the form.
      beta: scalar >= 0, may be traced; weight of the teacher; None: 1 - alpha.
      reduction: "batchmean", "mean" or "sum".

    Returns:
      Scalar.

    Raises:
      ValueError: shapes that differ, temperature <= 0, an unknown reduction. TypeError: labels
        that are not integers, logits that are not floats.

    Source: Matsubara 2021 (torchdistill), arXiv:2011.12913.

    >>> import jax.numpy as jnp
    >>> student, teacher = jnp.array([[2.0, 1.0, 0.0]]), jnp.array([[0.0, 1.0, 2.0]])
    >>> for alpha in (1e-9, 0.0):  # the jump by T^2
    ...     loss = kd_loss(student, teacher, jnp.array([0]), temperature=4.0, alpha=alpha)
    ...     print(f"{loss:.4f}")
    1.3196
    0.0825
    """
    soft = logits.kd(student_logits, teacher_logits, temperature=temperature) / temperature**2
    return _combined(soft, student_logits, labels, temperature, alpha, beta, reduction)


def logit_std_kd_loss(
    student_logits: BatchLogits,
    teacher_logits: BatchLogits,
    labels: BatchLabels | None = None,
    *,
    temperature: Scalar,
    eps: float = 1e-7,
    alpha: float | None = None,
    beta: Scalar | None = None,
    reduction: str = "batchmean",
) -> Loss:
    """torchdistill's `LogitStdKDLoss`: `kd_loss` of standardised logits.

        L = alpha CE(s, y) + beta T^2 KL(softmax(z(t) / T) || softmax(z(s) / T))

    with z of `standardize_logits` and the quirk of `kd_loss`: the bare KL, without
    T^2, if alpha is None or 0. The cross-entropy reads the student's logits as they are.

    Args:
      student_logits: floats [batch, classes]. Differentiated.
      teacher_logits: floats [batch, classes]. Stopped.
      labels: integers [batch]; None: no cross-entropy. Outside [0, classes): not counted.
      temperature: scalar > 0, may be traced.
      eps: number > 0, added to the standard deviation.
      alpha: number >= 0 or None, weight of the labels; not traced, it decides the form.
      beta: scalar >= 0, may be traced; weight of the teacher; None: 1 - alpha.
      reduction: "batchmean", "mean" or "sum".

    Returns:
      Scalar.

    Raises:
      ValueError: shapes that differ, temperature or eps <= 0, an unknown reduction. TypeError:
        labels that are not integers, logits that are not floats.

    Source: Sun et al. 2024, arXiv:2403.01427; Matsubara 2021 (torchdistill), arXiv:2011.12913.

    >>> import jax.numpy as jnp
    >>> student, teacher = jnp.array([[2.0, 1.0, 0.0]]), jnp.array([[0.0, 10.0, 20.0]])
    >>> print(f"{logit_std_kd_loss(student, teacher, temperature=1.0):.4f}")
    1.1504
    """
    student, teacher = (
        logits.standardize_logits(x, epsilon=eps) for x in (student_logits, teacher_logits)
    )
    soft = logits.kd(student, teacher, temperature=temperature) / temperature**2
    return _combined(soft, student_logits, labels, temperature, alpha, beta, reduction)


def dist_loss(
    student_logits: BatchLogits,
    teacher_logits: BatchLogits,
    *,
    beta: Scalar = 1.0,
    gamma: Scalar = 1.0,
    tau: Scalar = 1.0,
) -> Loss:
    """torchdistill's `DISTLoss`: `dist` with clamped norms.

        L = tau^2 ( beta (1 - mean_b r(q_b, p_b)) + gamma (1 - mean_c r(q_:c, p_:c)) )

    Its correlation divides by the product of the norms, each at least 1e-8, where the authors' code
    adds 1e-8 to that product; the two differ for a nearly constant row or column only, which here
    has correlation 0.

    Args:
      student_logits: floats [batch, classes]. Differentiated.
      teacher_logits: floats [batch, classes]. Stopped.
      beta: scalar >= 0, may be traced.
      gamma: scalar >= 0, may be traced.
      tau: scalar > 0, may be traced; the temperature.

    Returns:
      Scalar.

    Raises:
      ValueError: shapes that differ, tau <= 0, beta or gamma < 0. TypeError: arrays not of floats.

    Source: Huang et al. 2022 (DIST), arXiv:2205.10536; Matsubara 2021, arXiv:2011.12913.

    >>> import jax.numpy as jnp
    >>> student = jnp.array([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    >>> teacher = jnp.array([[0.0, 2.0, 0.0], [0.0, 0.0, 2.0]])
    >>> print(f"{dist_loss(student, teacher, gamma=0.0):.4f}")
    1.5000
    """
    checks.positive(tau=tau)
    return logits.dist(
        student_logits, teacher_logits, beta=beta, gamma=gamma, temperature=tau, epsilon=0.0
    )


def _combined(
    soft: Array,
    student_logits: BatchLogits,
    labels: BatchLabels | None,
    temperature: Scalar,
    alpha: float | None,
    beta: Scalar | None,
    reduction: str,
) -> Array:
    """The sum of both parts, of the KL of every example."""
    checks.choice("reduction", reduction, ("batchmean", "mean", "sum"))
    batch, num_classes = student_logits.shape
    divisor = {"batchmean": batch, "mean": batch * num_classes, "sum": 1}[reduction]
    soft = jnp.sum(soft) / divisor
    if alpha is None or alpha == 0 or labels is None:
        return soft
    hard = jnp.sum(logits.cross_entropy(student_logits, labels))
    if reduction != "sum":
        hard /= jnp.maximum(jnp.sum(checks.valid_labels(labels, num_classes)), 1)
    beta = 1 - alpha if beta is None else beta
    return alpha * hard + beta * temperature**2 * soft
