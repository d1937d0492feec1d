"""torchdistill's losses (torchdistill/losses/mid_level.py).

A constructor's arguments are keywords here, beside those of the call: the arrays that torchdistill
looks up by the paths of modules. Where it adds up weighted pairs of layers, this is one pair. Maps
are PyTorch's, [batch, channels, height, width].
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
from numpy import ndarray

from kdjax.losses import checks, log_space, logits
from kdjax.losses.checks import Scalar
from kdjax.losses.compat.torchdistill_features import (
    at_loss,
    cckd_loss,
    crd_loss,
    fsp_loss,
    ft_loss,
    pkt_loss,
    rkd_loss,
    spkd_loss,
    vid_loss,
)

BatchLogits = Float[Array | ndarray, "batch classes"]
BatchLabels = Int[Array | ndarray, " batch"]
Loss = Float[Array, ""]

__all__ = [
    "at_loss",
    "cckd_loss",
    "crd_loss",
    "dist_loss",
    "fsp_loss",
    "ft_loss",
    "kd_loss",
    "logit_std_kd_loss",
    "pkt_loss",
    "rkd_loss",
    "spkd_loss",
    "srd_loss",
    "vid_loss",
]


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


def srd_loss(
    student_features: Float[Array | ndarray, "*shape"],
    teacher_features: Float[Array | ndarray, "*shape"],
    student_logits: BatchLogits,
    teacher_logits: BatchLogits,
    *,
    exponent: Scalar = 1.0,
    temperature: Scalar = 1.0,
    reduction: str = "batchmean",
) -> Loss:
    """torchdistill's `SRDLoss`: the logarithm of all gaps between features, beside a KL.

        L = 2 log( sum |s - t|^exponent ) + KL(p || q),   the sum over the batch and all entries

    with KL of `kd_loss` without labels: no T^2. The logarithm grows with the number of entries, and
    is -inf (without gradient here) where all features agree. The original works on features that a
    batch normalisation has put in one scale.

    Args:
      student_features: floats of any shape. Differentiated.
      teacher_features: floats of the same shape. Stopped.
      student_logits: floats [batch, classes]. Differentiated.
      teacher_logits: floats [batch, classes]. Stopped.
      exponent: scalar > 0, may be traced.
      temperature: scalar > 0, may be traced.
      reduction: of the KL: "batchmean", "mean" or "sum".

    Returns:
      Scalar, of any sign.

    Raises:
      ValueError: shapes that differ, exponent or temperature <= 0, an unknown reduction. TypeError:
        arrays that are not floats.

    Source: Miles and Mikolajczyk 2024, arXiv:2303.11098; Matsubara 2021, arXiv:2011.12913.

    >>> import jax.numpy as jnp
    >>> zeros = jnp.zeros((1, 2))
    >>> print(f"{srd_loss(jnp.array([[1.0, 2.0]]), zeros, zeros, zeros, exponent=4.0):.4f}")
    5.6664
    """
    student, teacher = checks.shaped(
        {"student_features": "...", "teacher_features": "..."},
        student_features=student_features,
        teacher_features=teacher_features,
    )
    checks.positive(exponent=exponent)
    gap = jnp.abs(student - jax.lax.stop_gradient(teacher)).reshape(-1)
    same = gap == 0
    powers = jnp.where(same, -jnp.inf, exponent * jnp.log(jnp.where(same, 1.0, gap)))
    soft = kd_loss(student_logits, teacher_logits, temperature=temperature, reduction=reduction)
    return 2 * log_space.logsumexp(powers) + soft


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
