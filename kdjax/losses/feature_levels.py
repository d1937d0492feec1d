"""Losses that teach features of several levels at once.

Maps are channels-last, [batch, height, width, channels]. Unreduced: one value an example, [batch],
whose mean over the batch is the published loss. Values in float32, or float64 for float64. No
gradient reaches an argument named `teacher_*`. The networks they come with are in
`kdjax.networks.projectors`.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from kdjax.losses import checks
from kdjax.losses.pooling import adaptive_average_pool

Maps = Float[Array | np.ndarray, "batch height width channels"]
Values = Sequence[Sequence[Float[Array | np.ndarray, "batch ..."]]]
Losses = Float[Array, " batch"]

MAPS = "batch height width channels"


def hcl(
    student_features: Maps,
    teacher_features: Maps,
    *,
    pooled_sizes: Sequence[int] = (4, 2, 1),
) -> Losses:
    """ReviewKD's hierarchical context loss (HCL): one map compared at several resolutions.

        L = ( mse(s, t) + sum_k 2^-k mse(pool_k s, pool_k t) ) / (1 + sum_k 2^-k)

    with pool_k, k = 1, 2, ..., the average pooling to those of `pooled_sizes` that are smaller than
    the map; mse is the mean over the positions and channels. A side of a map that is not square
    is pooled if it is longer than the size. The student's map is the output of the fusion
    (`ABF`), the teacher's one before its ReLU.

    The caller's mean over the batch is ReviewKD's loss of a level; the published loss is the sum
    over the levels, warmed up linearly over the first 20 epochs.

    Args:
      student_features: floats [batch, height, width, channels]. Differentiated.
      teacher_features: floats [batch, height, width, channels], of the same shape. Stopped.
      pooled_sizes: integers >= 1, from fine to coarse.

    Returns:
      [batch], >= 0; d^2 where the maps differ by d everywhere.

    Raises:
      ValueError: shapes that differ, a size < 1. TypeError: arrays that are not floats, a size that
        is no integer.

    Source: Chen et al. 2021 (ReviewKD), arXiv:2104.09044.

    >>> import jax.numpy as jnp
    >>> student = jnp.array([2.0, 0.0, 0.0, 0.0]).reshape(1, 2, 2, 1)
    >>> print(f"{hcl(student, jnp.zeros((1, 2, 2, 1)))[0]:.4f}")
    0.7500
    """
    student, teacher = checks.shaped(
        {"student_features": MAPS, "teacher_features": MAPS},
        student_features=student_features,
        teacher_features=teacher_features,
    )
    for size in pooled_sizes:
        checks.count(1, pooled_sizes=size)
    # Pooling is linear: pool the difference once instead of both maps.
    difference = student - jax.lax.stop_gradient(teacher)
    height, width = difference.shape[1:3]
    total, weight, weights = jnp.mean(difference**2, axis=(1, 2, 3)), 1.0, 1.0
    for size in pooled_sizes:
        if size < max(height, width):
            weight /= 2
            weights += weight
            pooled = adaptive_average_pool(difference, (min(size, height), min(size, width)))
            total += weight * jnp.mean(pooled**2, axis=(1, 2, 3))
    return total / weights


def semckd(
    student_values: Values,
    teacher_values: Values,
    attention: Float[Array | np.ndarray, "batch student_layers teacher_layers"],
) -> Losses:
    """SemCKD: every student layer learns from the teacher layers it resembles.

        L = 1/S sum_ij a_ij mean (v_ij - t_ij)^2

    with v_ij the features of student layer i brought to the shape of teacher layer j
    (`SemCKDProjector`), t_ij those of teacher layer j, pooled to the same size where they are
    larger, and a_i the attention of student layer i over the teacher layers (`SemCKDAttention`:
    rows sum to 1). The caller's mean over the batch is the published loss, weighed with 400.

    Args:
      student_values: S lists of T arrays v_ij, floats [batch, ...]. Differentiated.
      teacher_values: S lists of T arrays t_ij, each of the shape of its v_ij. Stopped.
      attention: a, floats [batch, S, T]. Differentiated.

    Returns:
      [batch], >= 0.

    Raises:
      ValueError: numbers of layers or shapes that differ. TypeError: arrays that are not floats.

    Source: Chen et al. 2021 (cross-layer distillation with semantic calibration),
      arXiv:2012.03236.

    >>> import jax.numpy as jnp
    >>> student = [[jnp.ones((1, 2)), jnp.ones((1, 3))]]
    >>> teacher = [[jnp.zeros((1, 2)), jnp.full((1, 3), 3.0)]]
    >>> semckd(student, teacher, jnp.array([[[0.75, 0.25]]])).tolist()
    [1.75]
    """
    (attention,) = checks.shaped(
        {"attention": "batch student_layers teacher_layers"}, attention=attention
    )
    batch, students, teachers = attention.shape
    for name, values in (("student_values", student_values), ("teacher_values", teacher_values)):
        lengths = [len(row) for row in values]
        if lengths != [teachers] * students:
            raise ValueError(
                f"{name} must hold {students} lists of {teachers} arrays, as the shape "
                f"{attention.shape} of attention says, got lists of {lengths}"
            )
    losses = jnp.zeros(batch, attention.dtype)
    for i in range(students):
        for j in range(teachers):
            names = f"student_values[{i}][{j}]", f"teacher_values[{i}][{j}]"
            student, teacher = checks.shaped(
                dict.fromkeys(names, "..."),
                **dict(zip(names, (student_values[i][j], teacher_values[i][j]))),
            )
            if student.shape[:1] != (batch,):
                raise ValueError(
                    f"{names[0]} must be shaped [batch, ...] with batch = {batch} as in "
                    f"attention, got shape {student.shape}"
                )
            square = (student - jax.lax.stop_gradient(teacher)) ** 2
            distance = jnp.mean(square.reshape(batch, -1), axis=-1)
            losses += attention[:, i, j] * distance
    return losses / students
