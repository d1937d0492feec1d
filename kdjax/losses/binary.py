"""Losses that read every class as a yes-or-no question of its own (sigmoids, not a softmax).

Unlike the losses on softmax they see the offset all logits share. Sums over the classes:
[..., classes] -> [...]. No gradient reaches `teacher_logits`.
"""

import jax
import jax.numpy as jnp

from kdjax.losses import checks, log_space
from kdjax.losses.checks import Logits, Losses, Scalar


def binary_kl(
    student_logits: Logits, teacher_logits: Logits, *, temperature: Scalar = 2.0
) -> Losses:
    """BinaryKL: the sum over classes of the KL between sigmoids.

        L = T^2 sum_c [ b log(b / a) + (1 - b) log((1 - b) / (1 - a)) ]
        a = sigmoid(s / T),  b = sigmoid(t / T),   dL/ds = T (a - b)

    Finite for logits of any size, where the authors' code, which clamps probabilities at
    1 - 1e-8 (in float32 that is 1), returns inf.

    Args:
      student_logits: floats [..., classes]. Differentiated.
      teacher_logits: floats [..., classes]. Stopped.
      temperature: scalar > 0, may be traced.

    Returns:
      [...], >= 0.

    Raises:
      ValueError: shapes that differ, temperature <= 0. TypeError: arrays that are not floats.

    Source: Yang et al. 2024 (DHKD), arXiv:2411.08937.

    >>> import jax.numpy as jnp
    >>> print(f"{binary_kl(jnp.array([2.0, -1.0]), jnp.array([1.0, 3.0]), temperature=2.0):.4f}")
    1.7431
    """
    student, teacher = checks.logits(student_logits=student_logits, teacher_logits=teacher_logits)
    checks.positive(temperature=temperature)
    teacher = jax.lax.stop_gradient(teacher)
    terms = log_space.bernoulli_kl(teacher / temperature, student / temperature)
    return temperature**2 * jnp.sum(terms, axis=-1)


def binary_kl_norm(
    student_logits: Logits, teacher_logits: Logits, *, temperature: Scalar = 2.0
) -> Losses:
    """BinaryKL-Norm: the KL from a fair coin to sigmoid of the difference of the logits.

        L = T^2 sum_c log cosh((s_c - t_c) / (2 T)),   dL/ds = T/2 tanh((s - t) / (2 T))

    A robust regression of the logits: (s - t)^2 / 8 near 0, T/2 |s - t| far away. Its curvature at
    the optimum is 1/4 for every class, where that of `binary_kl` is b (1 - b), almost nothing
    for a confident teacher.

    Args:
      student_logits: floats [..., classes]. Differentiated.
      teacher_logits: floats [..., classes]. Stopped.
      temperature: scalar > 0, may be traced.

    Returns:
      [...], >= 0.

    Raises:
      ValueError: shapes that differ, temperature <= 0. TypeError: arrays that are not floats.

    Source: Yang et al. 2024 (DHKD), arXiv:2411.08937.

    >>> import jax.numpy as jnp
    >>> print(f"{binary_kl_norm(jnp.array([2.0, -1.0]), jnp.array([1.0, 3.0])):.4f}")
    1.8588
    """
    student, teacher = checks.logits(student_logits=student_logits, teacher_logits=teacher_logits)
    checks.positive(temperature=temperature)
    teacher = jax.lax.stop_gradient(teacher)
    absent = (student == -jnp.inf) & (teacher == -jnp.inf)
    student, teacher = (jnp.where(absent, 0.0, x) for x in (student, teacher))
    half = (student - teacher) / temperature / 2
    # log cosh by two formulas, each exact where the other cancels or overflows.
    near = jnp.abs(half) < 1
    log_cosh = jnp.where(
        near,
        0.5 * jnp.log1p(jnp.sinh(jnp.where(near, half, 0.0)) ** 2),
        jnp.abs(half) + jnp.log1p(jnp.exp(-2 * jnp.abs(half))) - jnp.log(2.0),
    )
    return temperature**2 * jnp.sum(log_cosh, axis=-1)
