"""Losses on feature maps before their ReLU: which neurons are active counts, not by how much.

Maps are channels-last, [batch, height, width, channels]. Unreduced: a sum over the positions and
channels of each example, [batch]. Values in float32, or float64 for float64. No gradient reaches
an argument named `teacher_*`.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from kdjax.losses import checks
from kdjax.losses.checks import Scalar
from kdjax.losses.pooling import adaptive_average_pool

Maps = Float[Array | np.ndarray, "batch height width channels"]
TeacherMaps = Float[Array | np.ndarray, "batch teacher_height teacher_width channels"]
Channels = Float[Array | np.ndarray, " channels"]
Losses = Float[Array, " batch"]

MAPS = "batch height width channels"


def activation_boundary(
    student_preactivations: Maps, teacher_preactivations: Maps, *, margin: Scalar = 1.0
) -> Losses:
    """Activation boundaries (AB): be active where the teacher is, by a margin.

        L = sum (s + m)^2 [s > -m and t <= 0] + (s - m)^2 [s <= m and t > 0]

    over the positions and channels: a hinge, squared. Both are values before the ReLU; the
    student's come through a connector without one (`ConvRegressor(..., relu=False)`).

    The caller's mean over the batch, times 2^(i - n + 1) for layer i = 0 .. n - 1 and times 3/1000,
    is the benchmark's loss, trained alone in a stage of its own; the mean over the batch times its
    size is the sum that RepDistiller computes first.

    Args:
      student_preactivations: s, floats [batch, height, width, channels]. Differentiated.
      teacher_preactivations: t, floats [batch, height, width, channels], of the same shape.
        Stopped: only signs are read.
      margin: m, scalar >= 0, may be traced.

    Returns:
      [batch], >= 0.

    Raises:
      ValueError: shapes that differ, margin < 0. TypeError: arrays that are not floats.

    Source: Heo et al. 2019, arXiv:1811.03233.

    >>> import jax.numpy as jnp
    >>> student = jnp.array([0.5, 0.5, 2.0, -2.0]).reshape(4, 1, 1, 1)
    >>> teacher = jnp.array([-1.0, 1.0, 1.0, -1.0]).reshape(4, 1, 1, 1)
    >>> activation_boundary(student, teacher).tolist()
    [2.25, 0.25, 0.0, 0.0]
    """
    student, teacher = checks.shaped(
        {"student_preactivations": MAPS, "teacher_preactivations": MAPS},
        student_preactivations=student_preactivations,
        teacher_preactivations=teacher_preactivations,
    )
    checks.not_negative(margin=margin)
    active = jax.lax.stop_gradient(teacher) > 0
    missing = jnp.maximum(jnp.where(active, margin - student, margin + student), 0.0)
    return jnp.sum(missing**2, axis=(1, 2, 3))


def ofd_margin(teacher_scale: Channels, teacher_bias: Channels) -> Float[Array, " channels"]:
    """The margins of OFD: what a teacher's channel is on average where it is not active.

        m = E[x | x < 0] = b - s phi(b / s) / Phi(-b / s),   x ~ N(b, s^2),   s = |w|
        m = -3 s   where Phi(-b / s) <= 0.001

    with w and b the scale and bias of the batch normalisation before the ReLU, phi and Phi the
    density and the distribution function of the standard normal. The second line is the authors',
    for channels that are active almost always; the value jumps there (from -0.28 s). A channel
    with w = 0 is constantly b: its margin is min(b, 0).

    Args:
      teacher_scale: w, floats [channels]. Stopped.
      teacher_bias: b, floats [channels]. Stopped.

    Returns:
      [channels], <= 0.

    Raises:
      ValueError: shapes that differ. TypeError: arrays that are not floats.

    Source: Heo et al. 2019 (a comprehensive overhaul of feature distillation), arXiv:1904.01866.

    >>> import jax.numpy as jnp
    >>> print(f"{ofd_margin(jnp.ones(1), jnp.zeros(1))[0]:.4f}")
    -0.7979
    """
    scale, bias = checks.shaped(
        {"teacher_scale": "channels", "teacher_bias": "channels"},
        teacher_scale=teacher_scale,
        teacher_bias=teacher_bias,
    )
    scale, bias = jax.lax.stop_gradient((jnp.abs(scale), bias))
    constant = scale == 0
    ratio = bias / jnp.where(constant, 1.0, scale)
    inactive = jax.scipy.stats.norm.cdf(-ratio)
    rare = inactive <= 0.001
    hazard = jax.scipy.stats.norm.pdf(ratio) / jnp.where(rare, 1.0, inactive)
    margin = jnp.where(rare, -3 * scale, bias - scale * hazard)
    return jnp.where(constant, jnp.minimum(bias, 0.0), margin)


def ofd_partial_l2(
    student_preactivations: Maps, teacher_preactivations: TeacherMaps, teacher_margin: Channels
) -> Losses:
    """OFD's partial L2: match what the teacher lets through, and stay below what it does not.

        L = sum (s - m)^2 [s > m and t <= m]
              + (s - t)^2 [s > t and m < t <= 0]
              + (s - t)^2 [t > 0]

    over the positions and channels. Both are values before the ReLU; the student's come through a
    1x1 convolution and batch normalisation (`OFDConnector`), the teacher's are pooled to its size
    (`adaptive_average_pool`). m is `ofd_margin` of the teacher's last batch normalisation.

    The caller's mean over the batch, times 1 / 2^(n - 1 - i) for layer i = 0 .. n - 1 and times
    1/1000, is the published loss.

    Args:
      student_preactivations: s, floats [batch, height, width, channels]. Differentiated.
      teacher_preactivations: t, floats [batch, height, width, channels], of any size. Stopped.
      teacher_margin: m, floats [channels], <= 0. Stopped.

    Returns:
      [batch], >= 0.

    Raises:
      ValueError: batches or channels that differ. TypeError: arrays that are not floats.

    Source: Heo et al. 2019 (a comprehensive overhaul of feature distillation), arXiv:1904.01866.

    >>> import jax.numpy as jnp
    >>> student = jnp.array([0.5, -2.0]).reshape(2, 1, 1, 1)
    >>> margin = ofd_margin(jnp.ones(1), jnp.zeros(1))
    >>> loss = ofd_partial_l2(student, jnp.full((2, 1, 1, 1), -1.0), margin)
    >>> [f"{value:.4f}" for value in loss]
    ['1.6845', '0.0000']
    """
    student, teacher, margin = checks.shaped(
        {
            "student_preactivations": MAPS,
            "teacher_preactivations": "batch teacher_height teacher_width channels",
            "teacher_margin": "channels",
        },
        student_preactivations=student_preactivations,
        teacher_preactivations=teacher_preactivations,
        teacher_margin=teacher_margin,
    )
    teacher, margin = jax.lax.stop_gradient((teacher, margin))
    teacher = adaptive_average_pool(teacher, student.shape[1:3])
    target = jnp.maximum(teacher, margin)
    # Not `student > target`: a NaN must not look like a neuron that is rightly silent.
    counted = (teacher > 0) | ~(student <= target)
    return jnp.sum(jnp.where(counted, student - target, 0.0) ** 2, axis=(1, 2, 3))
