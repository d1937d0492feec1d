"""Variations on matching a teacher's logits: raw, transformed, and weighted by trust.

Unreduced: [..., classes] -> [...], one loss a row, in float32 (float64 for float64). No gradient
reaches `teacher_logits`. A row whose label is outside [0, classes) has loss 0 and gradient 0; see
`valid_labels` for its weight.
"""

import jax
import jax.numpy as jnp

from kdjax.losses import checks, log_space
from kdjax.losses.checks import Labels, Logits, Losses, Scalar, valid_labels
from kdjax.losses.fusion_ratios import wls_ratio


def mse_logits(student_logits: Logits, teacher_logits: Logits) -> Losses:
    """Regression of the teacher's logits: their mean squared difference.

        L = 1/C sum_c (s_c - t_c)^2

    Unlike a divergence it sees the offset that all logits share. `kd` goes, for T -> inf, to half
    of this for centred logits. Classes at -inf on both sides (padding) take no part; C counts the
    others.

    Args:
      student_logits: floats [..., classes]. Differentiated.
      teacher_logits: floats [..., classes]. Stopped.

    Returns:
      [...], >= 0.

    Raises:
      ValueError: shapes that differ. TypeError: arrays that are not floats.

    Source: Ba and Caruana 2014, arXiv:1312.6184; Kim et al. 2021, arXiv:2105.08919.

    >>> import jax.numpy as jnp
    >>> print(mse_logits(jnp.array([2.0, 1.0]), jnp.array([0.0, 0.0])))
    2.5
    """
    student, teacher = checks.logits(student_logits=student_logits, teacher_logits=teacher_logits)
    absent = (student == -jnp.inf) & (teacher == -jnp.inf)
    student, teacher = (jnp.where(absent, 0.0, x) for x in (student, teacher))
    square = (student - jax.lax.stop_gradient(teacher)) ** 2
    return jnp.sum(square, axis=-1) / jnp.maximum(jnp.sum(~absent, axis=-1), 1)


def transformed_teacher_matching(
    student_logits: Logits, teacher_logits: Logits, *, exponent: Scalar = 0.25
) -> Losses:
    """TTM: only the teacher is softened, by a power of its probabilities.

        L = KL(p^a / sum_c p_c^a || softmax(s)),   p = softmax(t),  a = exponent

    The power is a temperature of 1 / a on the teacher's logits; without one on the student's the
    gradient also holds a Renyi entropy that regularises. No T^2.

    Args:
      student_logits: floats [..., classes]. Differentiated.
      teacher_logits: floats [..., classes]. Stopped.
      exponent: scalar > 0, may be traced; 1 / T. In the paper from 0.1 to 0.8.

    Returns:
      [...], >= 0.

    Raises:
      ValueError: shapes that differ, exponent <= 0. TypeError: arrays that are not floats.

    Source: Zheng and Yang 2024 (TTM), arXiv:2402.11148.

    >>> import jax.numpy as jnp
    >>> student, teacher = jnp.array([2.0, 1.0, 0.0]), jnp.array([4.0, 2.0, 0.0])
    >>> print(transformed_teacher_matching(student, teacher, exponent=0.5))
    0.0
    """
    student, teacher = checks.logits(student_logits=student_logits, teacher_logits=teacher_logits)
    checks.positive(exponent=exponent)
    log_p = log_space.safe_log_softmax(jax.lax.stop_gradient(teacher) * exponent)
    return log_space.kl(log_p, log_space.safe_log_softmax(student))


def wsld(
    student_logits: Logits,
    teacher_logits: Logits,
    labels: Labels,
    *,
    temperature: Scalar = 2.0,
    epsilon: float = 1e-7,
) -> Losses:
    """Weighted soft labels: distil less where the student already does better than its teacher.

        L = w T^2 ( -sum_c p_c log q_c ),   w = 1 - exp(-CE(s, y) / (CE(t, y) + epsilon))

    with p, q at T, the cross-entropies of the label at temperature 1, and w stopped. A
    cross-entropy: `kd` plus the teacher's entropy, times w; the gradient is that of w * kd.
    The authors weigh it with 2.25 to 2.5 against 1 of `cross_entropy`.

    Args:
      student_logits: floats [..., classes]. Differentiated.
      teacher_logits: floats [..., classes]. Stopped.
      labels: integers [...]. Outside [0, classes): loss 0, gradient 0.
      temperature: scalar > 0, may be traced.
      epsilon: number > 0.

    Returns:
      [...], >= 0.

    Raises:
      ValueError: shapes that differ, temperature or epsilon <= 0. TypeError: labels that are not
        integers, logits that are not floats.

    Source: Zhou et al. 2021 (WSLD), arXiv:2102.00650.

    >>> import jax.numpy as jnp
    >>> student, teacher = jnp.array([2.0, 1.0, 0.0]), jnp.array([0.0, 1.0, 2.0])
    >>> print(f"{wsld(student, teacher, jnp.array(0), temperature=1.0):.4f}")
    0.3088
    """
    student, teacher = checks.logits(student_logits=student_logits, teacher_logits=teacher_logits)
    labels = checks.labels(labels, student.shape[:-1])
    checks.positive(temperature=temperature, epsilon=epsilon)
    weight = wls_ratio(student, teacher, labels, epsilon=epsilon)
    valid = valid_labels(labels, student.shape[-1])
    student, teacher = (jnp.where(valid[..., None], x, 0.0) for x in (student, teacher))
    teacher = jax.lax.stop_gradient(teacher)
    soft = log_space.cross_entropy(
        log_space.safe_log_softmax(teacher / temperature),
        log_space.safe_log_softmax(student / temperature),
    )
    return jnp.where(valid, weight * temperature**2 * soft, 0.0)
