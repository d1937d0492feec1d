"""Distillation of models of image-text pairs: the similarities of CLIP-KD and of TinyCLIP.

Row i of the image features and row i of the text features are a pair. `scale` is the factor of the
cosines, 1 / temperature, already exponentiated where a model learns its logarithm (CLIP starts at
1 / 0.07 and keeps it <= 100). Losses are one value a pair, [batch]; the mean over the batch is the
published loss. CLIP-KD takes the student's features raw, projected to the teacher's width where a
loss compares them with the teacher's, and normalises them itself; everything else is unit-norm
already (`l2_normalize`). With `where`, False pairs are neither queries nor keys, and have loss 0.
For CLIP-KD's losses of features see `clip_features`.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float
from numpy import ndarray

from kdjax.losses import checks, log_space
from kdjax.losses.checks import Scalar
from kdjax.losses.contrastive import inner_products, l2_normalize

Features = Float[Array | ndarray, "batch features"]
StudentFeatures = Float[Array | ndarray, "batch student"]
TeacherFeatures = Float[Array | ndarray, "batch teacher"]
Mask = Bool[Array | ndarray, " batch"]
Losses = Float[Array, " batch"]


def clip_kd_ckd(
    student_image_features: StudentFeatures,
    student_text_features: StudentFeatures,
    teacher_image_features: TeacherFeatures,
    teacher_text_features: TeacherFeatures,
    *,
    student_scale: Scalar,
    teacher_scale: Scalar,
    where: Mask | None = None,
) -> Losses:
    """CLIP-KD's contrastive relational distillation: the teacher's softmax over the batch.

        l_s = student_scale * n(s_image) n(s_text)^T,   l_t = teacher_scale * t_image t_text^T
        L_i = 1/2 ( KL(P(l_t)_i || P(l_s)_i) + KL(P(l_t^T)_i || P(l_s^T)_i) ),   P the row's softmax

    with n of unit norm. The widths of student and teacher may differ. `affinity_mimicking` is this
    plus the teacher's entropy, on unit-norm features.

    Args:
      student_image_features: floats [batch, student], any norm. Differentiated.
      student_text_features: floats [batch, student], any norm. Differentiated.
      teacher_image_features: floats [batch, teacher], unit-norm. Stopped.
      teacher_text_features: floats [batch, teacher], unit-norm. Stopped.
      student_scale: scalar > 0, may be traced (and differentiated).
      teacher_scale: scalar > 0, may be traced.
      where: booleans [batch].

    Returns:
      [batch], >= 0.

    Raises:
      ValueError: shapes that do not fit, a scale <= 0.
      TypeError: features that are not floats, a mask that is not boolean.

    Source: Yang et al. 2024 (CLIP-KD), arXiv:2307.12732.

    >>> import jax.numpy as jnp
    >>> flat = jnp.ones((2, 2))
    >>> loss = clip_kd_ckd(flat, flat, jnp.eye(2), jnp.eye(2), student_scale=1.0, teacher_scale=1.0)
    >>> print(f"{loss[0]:.4f}")
    0.1109
    """
    features, where = pair_features(
        (student_image_features, student_text_features),
        (teacher_image_features, teacher_text_features),
        where,
    )
    checks.positive(student_scale=student_scale, teacher_scale=teacher_scale)
    student_image, student_text, teacher_image, teacher_text = features
    student_logits = student_scale * inner_products(
        l2_normalize(student_image), l2_normalize(student_text)
    )
    teacher_logits = jax.lax.stop_gradient(
        teacher_scale * inner_products(teacher_image, teacher_text)
    )
    return _both_directions(log_space.kl, where, teacher_logits, student_logits)


def clip_kd_icl(
    student_image_features: Features,
    student_text_features: Features,
    teacher_image_features: Features,
    teacher_text_features: Features,
    *,
    scale: Scalar,
    where: Mask | None = None,
) -> Losses:
    """CLIP-KD's interactive contrast: the student's features against the teacher's other modality.

        j = scale * n(s_image) t_text^T,   g = scale * n(s_text) t_image^T
        L_i = -1/2 ( log softmax(j_i)_i + log softmax(g_i)_i )

    The authors train one scalar for this loss and `clip_kd_cross_kd`, which starts at log(1 / 0.07)
    and, unlike the models' own, is not exponentiated: scale = 2.659 at first.

    Args:
      student_image_features: floats [batch, features], any norm: projected. Differentiated.
      student_text_features: floats [batch, features], any norm: projected. Differentiated.
      teacher_image_features: floats [batch, features], unit-norm. Stopped.
      teacher_text_features: floats [batch, features], unit-norm. Stopped.
      scale: scalar > 0, may be traced (and differentiated).
      where: booleans [batch].

    Returns:
      [batch], >= 0.

    Raises:
      ValueError: shapes that do not fit, scale <= 0.
      TypeError: features that are not floats, a mask that is not boolean.

    Source: Yang et al. 2024 (CLIP-KD), arXiv:2307.12732.

    >>> import jax.numpy as jnp
    >>> pairs = jnp.eye(2)
    >>> print(f"{clip_kd_icl(pairs, pairs, pairs, pairs, scale=1.0)[0]:.4f}")
    0.3133
    """
    features, where = pair_features(
        (student_image_features, student_text_features),
        (teacher_image_features, teacher_text_features),
        where,
        one_width=True,
    )
    checks.positive(scale=scale)
    image_logits, text_logits = _cross_logits(features, scale)
    return _mean_of_two(_own_nce, where, (image_logits,), (text_logits,))


def clip_kd_cross_kd(
    student_image_features: Features,
    student_text_features: Features,
    teacher_image_features: Features,
    teacher_text_features: Features,
    *,
    scale: Scalar,
    teacher_scale: Scalar,
    where: Mask | None = None,
) -> Losses:
    """CLIP-KD's interactive relations: the logits of `clip_kd_icl` against the teacher's softmax.

        L_i = 1/2 ( KL(softmax(l_t)_i || softmax(j)_i) + KL(softmax(l_t^T)_i || softmax(g)_i) )

    with l_t = teacher_scale * t_image t_text^T, and j, g of `clip_kd_icl`.

    Args:
      student_image_features: floats [batch, features], any norm: projected. Differentiated.
      student_text_features: floats [batch, features], any norm: projected. Differentiated.
      teacher_image_features: floats [batch, features], unit-norm. Stopped.
      teacher_text_features: floats [batch, features], unit-norm. Stopped.
      scale: scalar > 0, may be traced (and differentiated).
      teacher_scale: scalar > 0, may be traced.
      where: booleans [batch].

    Returns:
      [batch], >= 0.

    Raises:
      ValueError: shapes that do not fit, a scale <= 0.
      TypeError: features that are not floats, a mask that is not boolean.

    Source: Yang et al. 2024 (CLIP-KD), arXiv:2307.12732.

    >>> import jax.numpy as jnp
    >>> flat, pairs = jnp.ones((2, 2)), jnp.eye(2)
    >>> loss = clip_kd_cross_kd(flat, flat, pairs, pairs, scale=1.0, teacher_scale=1.0)
    >>> print(f"{loss[0]:.4f}")
    0.1109
    """
    features, where = pair_features(
        (student_image_features, student_text_features),
        (teacher_image_features, teacher_text_features),
        where,
        one_width=True,
    )
    checks.positive(scale=scale, teacher_scale=teacher_scale)
    image_logits, text_logits = _cross_logits(features, scale)
    *_, teacher_image, teacher_text = features
    teacher_logits = jax.lax.stop_gradient(
        teacher_scale * inner_products(teacher_image, teacher_text)
    )
    return _mean_of_two(
        log_space.kl, where, (teacher_logits, image_logits), (teacher_logits.T, text_logits)
    )


def affinity_mimicking(
    student_image_features: StudentFeatures,
    student_text_features: StudentFeatures,
    teacher_image_features: TeacherFeatures,
    teacher_text_features: TeacherFeatures,
    *,
    student_scale: Scalar,
    teacher_scale: Scalar,
    where: Mask | None = None,
) -> Losses:
    """TinyCLIP's affinity mimicking: cross-entropy with the teacher's softmax over the batch.

        l_s = student_scale * s_image s_text^T,   l_t = teacher_scale * t_image t_text^T
        L_i = -1/2 ( softmax(l_t)_i . log softmax(l_s)_i + softmax(l_t^T)_i . log softmax(l_s^T)_i )

    A cross-entropy: its minimum is the teacher's entropy, not 0; its gradient is that of
    `clip_kd_ckd` on unit-norm features. No squared temperature is applied. The authors hold both
    scales at 50.

    Args:
      student_image_features: floats [batch, student], unit-norm. Differentiated.
      student_text_features: floats [batch, student], unit-norm. Differentiated.
      teacher_image_features: floats [batch, teacher], unit-norm. Stopped.
      teacher_text_features: floats [batch, teacher], unit-norm. Stopped.
      student_scale: scalar > 0, may be traced (and differentiated).
      teacher_scale: scalar > 0, may be traced.
      where: booleans [batch].

    Returns:
      [batch], >= 0.

    Raises:
      ValueError: shapes that do not fit, a scale <= 0.
      TypeError: features that are not floats, a mask that is not boolean.

    Source: Wu et al. 2023 (TinyCLIP), arXiv:2309.12314.

    >>> import jax.numpy as jnp
    >>> pairs = jnp.eye(2)
    >>> loss = affinity_mimicking(
    ...     pairs, pairs, pairs, pairs, student_scale=1.0, teacher_scale=1.0
    ... )
    >>> print(f"{loss[0]:.4f}")
    0.5822
    """
    features, where = pair_features(
        (student_image_features, student_text_features),
        (teacher_image_features, teacher_text_features),
        where,
    )
    checks.positive(student_scale=student_scale, teacher_scale=teacher_scale)
    student_image, student_text, teacher_image, teacher_text = features
    student_logits = student_scale * inner_products(student_image, student_text)
    teacher_logits = jax.lax.stop_gradient(
        teacher_scale * inner_products(teacher_image, teacher_text)
    )
    return _both_directions(log_space.cross_entropy, where, teacher_logits, student_logits)


def pair_features(
    student_features: tuple[Array, Array],
    teacher_features: tuple[Array, Array],
    where: Mask | None,
    *,
    one_width: bool = False,
) -> tuple[tuple[Array, ...], Array]:
    """The four features, 0 in rows that take no part, the teacher's stopped; and the mask."""
    student_axis, teacher_axis = ("features",) * 2 if one_width else ("student", "teacher")
    features = checks.shaped(
        {
            "student_image_features": f"batch {student_axis}",
            "student_text_features": f"batch {student_axis}",
            "teacher_image_features": f"batch {teacher_axis}",
            "teacher_text_features": f"batch {teacher_axis}",
        },
        student_image_features=student_features[0],
        student_text_features=student_features[1],
        teacher_image_features=teacher_features[0],
        teacher_text_features=teacher_features[1],
    )
    size = len(features[0])
    if where is None:
        where = jnp.ones(size, bool)
    where = checks.boolean("where", where, (size,), "the batch")
    student_image, student_text, *teacher = (jnp.where(where[:, None], x, 0.0) for x in features)
    return (student_image, student_text, *jax.lax.stop_gradient(teacher)), where


def _cross_logits(features: tuple[Array, ...], scale: Scalar) -> tuple[Array, Array]:
    """The student's images against the teacher's texts, the student's texts against its images."""
    student_image, student_text, teacher_image, teacher_text = features
    return (
        scale * inner_products(l2_normalize(student_image), teacher_text),
        scale * inner_products(l2_normalize(student_text), teacher_image),
    )


def _both_directions(row_loss, where: Array, *logits: Array) -> Array:
    """Half the sum of a loss of rows on logits [image, text] and on their transposes."""
    return _mean_of_two(row_loss, where, logits, tuple(x.T for x in logits))


def _mean_of_two(row_loss, where: Array, first: tuple, second: tuple) -> Array:
    """Half the sum of a loss of rows on two tuples of logits [batch, batch]."""

    def rows(logits: tuple) -> Array:
        log_probs = (log_space.safe_log_softmax(jnp.where(where, x, -jnp.inf)) for x in logits)
        return row_loss(*log_probs)

    return jnp.where(where, (rows(first) + rows(second)) / 2, 0.0)


def _own_nce(log_probs: Array) -> Array:
    return -jnp.diagonal(log_probs)
