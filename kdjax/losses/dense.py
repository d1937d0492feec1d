"""Losses on maps: class scores or features of every position of an image.

    maps are [batch, height, width, channels]; student and teacher share batch, height and width

One value a position, a channel or an image. Values in float32 (float64 for float64). No gradient
reaches an argument named `teacher_*`. For relations between positions see `dense_relations`.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float
from numpy import ndarray

from kdjax.losses import checks, log_space, logits
from kdjax.losses.checks import Scalar

Maps = Float[Array | ndarray, "batch height width channels"]
Positions = Bool[Array | ndarray, "batch height width"]


def pixelwise_kd(
    student_logits: Maps,
    teacher_logits: Maps,
    *,
    temperature: Scalar = 1.0,
    where: Positions | None = None,
) -> Float[Array, "batch height width"]:
    """Pixel-wise distillation: `kd` of every pixel as an example of its own.

        L = T^2 KL(softmax(t / T) || softmax(s / T))     over the classes of a pixel

    The mean over batch and pixels is the published loss. Others, in terms of it: code with
    PyTorch's "mean" reduction divides by the number of classes too; code that sums and divides by
    height and width alone multiplies by the size of the batch. See `skds_pixelwise`.

    Args:
      student_logits: floats [batch, height, width, classes]. Differentiated.
      teacher_logits: floats [batch, height, width, classes]. Stopped.
      temperature: scalar > 0, may be traced.
      where: booleans [batch, height, width]; False pixels (unlabelled, say) are 0.

    Returns:
      [batch, height, width], >= 0.

    Raises:
      ValueError: shapes that differ, temperature <= 0. TypeError: logits that are not floats,
        where that is not boolean.

    Source: Yang et al. 2022 (CIRKD), arXiv:2204.06986; Hinton et al. 2015, arXiv:1503.02531.

    >>> import jax.numpy as jnp
    >>> student, teacher = jnp.zeros((1, 1, 1, 2)), jnp.array([4.0, 0.0]).reshape(1, 1, 1, 2)
    >>> print(f"{pixelwise_kd(student, teacher, temperature=4.0)[0, 0, 0]:.4f}")
    1.7751
    """
    student, teacher = _logit_maps(student_logits, teacher_logits)
    where, student, teacher = _masked(where, student, teacher)
    return jnp.where(where, logits.kd(student, teacher, temperature=temperature), 0.0)


def skds_pixelwise(
    student_logits: Maps, teacher_logits: Maps, *, where: Positions | None = None
) -> Float[Array, "batch height width"]:
    """The pixel term of structured distillation: soft cross-entropy at temperature 1.

        L = -sum_c softmax(t)_c log softmax(s)_c     over the classes of a pixel

    `pixelwise_kd` plus the entropy of the teacher, a constant: not 0 at s = t. The authors sum over
    the batch and divide by height and width alone: their loss is batch times the mean of this.

    Args:
      student_logits: floats [batch, height, width, classes]. Differentiated.
      teacher_logits: floats [batch, height, width, classes]. Stopped.
      where: booleans [batch, height, width]; False pixels are 0.

    Returns:
      [batch, height, width], >= 0.

    Raises:
      ValueError: shapes that differ. TypeError: logits that are not floats, where that is not
        boolean.

    Source: Liu et al. 2019 (SKDS), arXiv:1903.04197.

    >>> import jax.numpy as jnp
    >>> flat = jnp.zeros((1, 1, 1, 2))
    >>> print(f"{skds_pixelwise(flat, flat)[0, 0, 0]:.6f}")  # log 2
    0.693147
    """
    student, teacher = _logit_maps(student_logits, teacher_logits)
    where, student, teacher = _masked(where, student, teacher)
    log_p, log_q = log_space.safe_log_softmax(teacher), log_space.safe_log_softmax(student)
    return jnp.where(where, log_space.cross_entropy(log_p, log_q), 0.0)


def channel_wise_distillation(
    student_features: Maps,
    teacher_features: Maps,
    *,
    temperature: Scalar = 4.0,
    where: Positions | None = None,
) -> Float[Array, "batch channels"]:
    """Channel-wise distillation (CWD): every channel is a distribution over the positions.

        p_c = softmax(t_c / T),  q_c = softmax(s_c / T)   over the positions of channel c
        L_c = T^2 KL(p_c || q_c)

    Where a channel is high matters, not how high: adding a constant to a channel changes nothing
    (`pixelwise_kd` ignores what is added to all channels of a pixel instead). On class scores or on
    features; for features of another width map the student's by a 1x1 convolution first. The mean
    over batch and channels is the published loss.

    Args:
      student_features: floats [batch, height, width, channels]. Differentiated.
      teacher_features: floats [batch, height, width, channels]. Stopped.
      temperature: scalar > 0, may be traced.
      where: booleans [batch, height, width]; False positions have probability 0 on both sides. An
        image without any other is 0.

    Returns:
      [batch, channels], >= 0.

    Raises:
      ValueError: shapes that differ, temperature <= 0. TypeError: features that are not floats,
        where that is not boolean.

    Source: Shu et al. 2021 (CWD), arXiv:2011.13256.

    >>> import jax.numpy as jnp
    >>> student, teacher = jnp.zeros((1, 1, 2, 1)), jnp.array([4.0, 0.0]).reshape(1, 1, 2, 1)
    >>> print(f"{channel_wise_distillation(student, teacher, temperature=4.0)[0, 0]:.4f}")
    1.7751
    """
    axes = "batch height width channels"
    student, teacher = checks.shaped(
        {"student_features": axes, "teacher_features": axes},
        student_features=student_features,
        teacher_features=teacher_features,
    )
    teacher = jax.lax.stop_gradient(teacher)
    checks.positive(temperature=temperature)
    where, student, teacher = _masked(where, student, teacher)
    student, teacher = (jnp.where(where[..., None], x, -jnp.inf) for x in (student, teacher))
    student, teacher = (jnp.swapaxes(_flat(x), -1, -2) for x in (student, teacher))
    return logits.kd(student, teacher, temperature=temperature)


def category_similarity_kd(
    student_logits: Maps, teacher_logits: Maps, *, temperature: Scalar = 4.0
) -> Float[Array, " batch"]:
    """Category similarity (CSD): which classes are found at the same positions.

        p_c = softmax(z_c / T) over the positions of channel c, after 2 x 2 average pooling
        L = 1/C^2 sum_{cd} ( p_c . p_d (t) - p_c . p_d (s) )^2

    The mean over the batch is the published loss; there is no power of T. An odd last row or column
    is left out of the pooling. Adding a constant to a channel changes nothing.

    Args:
      student_logits: floats [batch, height, width, classes], at least 2 x 2. Differentiated.
      teacher_logits: floats [batch, height, width, classes]. Stopped.
      temperature: scalar > 0, may be traced.

    Returns:
      [batch], in [0, 1].

    Raises:
      ValueError: shapes that differ, height or width < 2, temperature <= 0. TypeError: logits that
        are not floats.

    Source: Feng et al. 2021 (double similarity distillation); Yang et al. 2022, arXiv:2204.06986.

    >>> import jax.numpy as jnp
    >>> student, teacher = jnp.zeros((1, 2, 4, 1)), jnp.zeros((1, 2, 4, 1)).at[:, :, :2].set(1e4)
    >>> print(f"{category_similarity_kd(student, teacher)[0]:.4f}")  # (1 - 1/2)^2
    0.2500
    """
    axes = "batch height>=2 width>=2 classes"
    student, teacher = checks.shaped(
        {"student_logits": axes, "teacher_logits": axes},
        student_logits=student_logits,
        teacher_logits=teacher_logits,
    )
    checks.positive(temperature=temperature)

    def similarity(maps: Array) -> Array:
        height, width = maps.shape[1] // 2 * 2, maps.shape[2] // 2 * 2
        blocks = (maps.shape[0], height // 2, 2, width // 2, 2, maps.shape[3])
        pooled = jnp.mean(maps[:, :height, :width].reshape(blocks), axis=(2, 4))
        shares = jax.nn.softmax(_flat(pooled) / temperature, axis=1)
        return jnp.einsum("bnc,bnd->bcd", shares, shares, precision=jax.lax.Precision.HIGHEST)

    gap = similarity(student) - similarity(jax.lax.stop_gradient(teacher))
    return jnp.mean(gap**2, axis=(1, 2))


def _logit_maps(student_logits: Maps, teacher_logits: Maps) -> tuple[Array, Array]:
    axes = "batch height width classes"
    student, teacher = checks.shaped(
        {"student_logits": axes, "teacher_logits": axes},
        student_logits=student_logits,
        teacher_logits=teacher_logits,
    )
    return student, jax.lax.stop_gradient(teacher)


def _masked(where: Positions | None, *maps: Array) -> tuple[Array, ...]:
    """The mask of the positions, and the maps with the others at 0."""
    shape = maps[0].shape[:-1]
    where = jnp.ones(shape, bool) if where is None else where
    where = checks.boolean("where", where, shape, "the maps without their channels")
    return where, *(jnp.where(where[..., None], x, 0.0) for x in maps)


def _flat(maps: Array) -> Array:
    """[batch, height, width, channels] -> [batch, positions, channels]."""
    return maps.reshape(maps.shape[0], -1, maps.shape[-1])
