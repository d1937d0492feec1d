"""Distillation of models of image-text pairs: the losses of CLIP-KD and of TinyCLIP.

Row i of the image features and row i of the text features are a pair. `scale` is the factor of the
cosines, 1 / temperature, already exponentiated where a model learns its logarithm (CLIP starts at
1 / 0.07 and keeps it <= 100). Losses are one value a pair, [batch]; the mean over the batch is the
published loss. CLIP-KD takes the student's features raw, projected to the teacher's width where a
loss compares them with the teacher's, and normalises them itself; everything else is unit-norm
already (`l2_normalize`). With `where`, False pairs are neither queries nor keys, and have loss 0.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float
from numpy import ndarray

from kdjax.losses import checks, log_space
from kdjax.losses.checks import Scalar
from kdjax.losses.contrastive import clip_info_nce, inner_products, l2_normalize

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
    features, where = _four(
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


def clip_kd_fd(
    student_image_features: Features,
    student_text_features: Features,
    teacher_image_features: Features,
    teacher_text_features: Features,
    *,
    where: Mask | None = None,
) -> Losses:
    """CLIP-KD's feature distillation, and its masked feature distillation.

        L_i = mean_d (n(s_image) - t_image)^2 + mean_d (n(s_text) - t_text)^2

    MFD is this loss with the student's features of images whose patches are masked at random
    (3 in 4), the teacher's of the whole images. The authors weigh it with 2000.

    Args:
      student_image_features: floats [batch, features], any norm: projected. Differentiated.
      student_text_features: floats [batch, features], any norm: projected. Differentiated.
      teacher_image_features: floats [batch, features], unit-norm. Stopped.
      teacher_text_features: floats [batch, features], unit-norm. Stopped.
      where: booleans [batch].

    Returns:
      [batch], in [0, 8 / features].

    Raises:
      ValueError: shapes that do not fit.
      TypeError: features that are not floats, a mask that is not boolean.

    Source: Yang et al. 2024 (CLIP-KD), arXiv:2307.12732.

    >>> import jax.numpy as jnp
    >>> student, teacher = jnp.array([[2.0, 0.0]]), jnp.array([[0.0, 1.0]])
    >>> clip_kd_fd(student, student, teacher, teacher).tolist()
    [2.0]
    """
    features, where = _four(
        (student_image_features, student_text_features),
        (teacher_image_features, teacher_text_features),
        where,
        one_width=True,
    )
    student_image, student_text, teacher_image, teacher_text = features
    image = jnp.mean((l2_normalize(student_image) - teacher_image) ** 2, axis=1)
    text = jnp.mean((l2_normalize(student_text) - teacher_text) ** 2, axis=1)
    return jnp.where(where, image + text, 0.0)


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
    features, where = _four(
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
    features, where = _four(
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


def clip_kd_gd(
    student_image_features: Features,
    student_text_features: Features,
    teacher_image_features: Features,
    teacher_text_features: Features,
    *,
    student_temperature: Scalar,
    teacher_temperature: Scalar,
    where: Mask | None = None,
) -> Losses:
    """CLIP-KD's gradient distillation: the gradients of InfoNCE in the features, compared.

        P = softmax(q k^T / T) by rows,   (q, k) = (image, text) and (text, image)
        d_query = (P - I) k / (T B),   d_key = (P - I)^T q / (T B)
        L_i = sum over the four of mean_d (d_student - d_teacher)_id^2

    B counts the pairs that take part. The gradients are those in features of unit norm. The
    authors' code passes the logit scales where temperatures belong (and so divides by them): give
    it scales to get its value. They weigh it with 1e8.

    Args:
      student_image_features: floats [batch, features], any norm: projected. Differentiated.
      student_text_features: floats [batch, features], any norm: projected. Differentiated.
      teacher_image_features: floats [batch, features], unit-norm. Stopped.
      teacher_text_features: floats [batch, features], unit-norm. Stopped.
      student_temperature: scalar > 0, may be traced (and differentiated).
      teacher_temperature: scalar > 0, may be traced.
      where: booleans [batch].

    Returns:
      [batch], >= 0.

    Raises:
      ValueError: shapes that do not fit, a temperature <= 0.
      TypeError: features that are not floats, a mask that is not boolean.

    Source: Yang et al. 2024 (CLIP-KD), arXiv:2307.12732.

    >>> import jax.numpy as jnp
    >>> flat, pairs = jnp.ones((2, 2)), jnp.eye(2)
    >>> loss = clip_kd_gd(
    ...     flat, flat, pairs, pairs, student_temperature=1.0, teacher_temperature=1.0
    ... )
    >>> print(f"{loss[0]:.4f}")
    0.0723
    """
    features, where = _four(
        (student_image_features, student_text_features),
        (teacher_image_features, teacher_text_features),
        where,
        one_width=True,
    )
    checks.positive(
        student_temperature=student_temperature, teacher_temperature=teacher_temperature
    )
    student_image, student_text, teacher_image, teacher_text = features
    student = _nce_gradients(
        l2_normalize(student_image), l2_normalize(student_text), student_temperature, where
    )
    teacher = _nce_gradients(teacher_image, teacher_text, teacher_temperature, where)
    squares = (student - jax.lax.stop_gradient(teacher)) ** 2
    return jnp.where(where, jnp.sum(jnp.mean(squares, axis=-1), axis=0), 0.0)


def clip_kd_afd(
    student_image_features: StudentFeatures,
    student_text_features: StudentFeatures,
    teacher_image_features: TeacherFeatures,
    teacher_text_features: TeacherFeatures,
    image_kernel: Float[Array | ndarray, "both fused"],
    text_kernel: Float[Array | ndarray, "both fused"],
    image_bias: Float[Array | ndarray, " fused"],
    text_bias: Float[Array | ndarray, " fused"],
    *,
    scale: Scalar,
    where: Mask | None = None,
) -> Losses:
    """CLIP-KD's augmented features: CLIP's loss on features fused with the teacher's.

        u_m = n( [n(s_m); t_m] kernel_m + bias_m ),   m = image, text
        L = `clip_info_nce`(u_image, u_text, scale)

    Args:
      student_image_features: floats [batch, student], any norm. Differentiated.
      student_text_features: floats [batch, student], any norm. Differentiated.
      teacher_image_features: floats [batch, teacher], unit-norm. Stopped.
      teacher_text_features: floats [batch, teacher], unit-norm. Stopped.
      image_kernel: floats [student + teacher, fused]. Differentiated: trained with the student.
      text_kernel: floats [student + teacher, fused]. Differentiated.
      image_bias: floats [fused]. Differentiated.
      text_bias: floats [fused]. Differentiated.
      scale: scalar > 0, may be traced (and differentiated); a trained scalar of its own.
      where: booleans [batch].

    Returns:
      [batch], >= 0.

    Raises:
      ValueError: shapes that do not fit, scale <= 0.
      TypeError: arrays that are not floats, a mask that is not boolean.

    Source: Yang et al. 2024 (CLIP-KD), arXiv:2307.12732.

    >>> import jax.numpy as jnp
    >>> pairs, kernel, bias = jnp.eye(2), jnp.tile(jnp.eye(2), (2, 1)), jnp.zeros(2)
    >>> loss = clip_kd_afd(pairs, pairs, pairs, pairs, kernel, kernel, bias, bias, scale=1.0)
    >>> print(f"{loss[0]:.4f}")
    0.3133
    """
    features, where = _four(
        (student_image_features, student_text_features),
        (teacher_image_features, teacher_text_features),
        where,
    )
    image_kernel, text_kernel, image_bias, text_bias = checks.shaped(
        {
            "image_kernel": "student+teacher fused",
            "text_kernel": "student+teacher fused",
            "image_bias": "fused",
            "text_bias": "fused",
        },
        image_kernel=image_kernel,
        text_kernel=text_kernel,
        image_bias=image_bias,
        text_bias=text_bias,
    )
    student_image, student_text, teacher_image, teacher_text = features
    width = student_image.shape[1] + teacher_image.shape[1]
    if len(image_kernel) != width:
        raise ValueError(
            f"image_kernel must be shaped [student + teacher, fused] with student + teacher = "
            f"{width}, got shape {image_kernel.shape}"
        )

    def fused(student: Array, teacher: Array, kernel: Array, bias: Array) -> Array:
        both = jnp.concatenate([l2_normalize(student), teacher], axis=1)
        return l2_normalize(jnp.matmul(both, kernel, precision=jax.lax.Precision.HIGHEST) + bias)

    image = fused(student_image, teacher_image, image_kernel, image_bias)
    text = fused(student_text, teacher_text, text_kernel, text_bias)
    return clip_info_nce(image, text, scale=scale, where=where)


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
    features, where = _four(
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


def _four(
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


def _nce_gradients(image: Array, text: Array, temperature: Scalar, where: Array) -> Array:
    """Of InfoNCE (mean over the batch), both directions, query and key: [4, batch, features]."""
    count = jnp.maximum(jnp.sum(where), 1).astype(image.dtype)
    own = jnp.diag(where.astype(image.dtype))
    logits = inner_products(image, text) / temperature

    def direction(query: Array, key: Array, logits: Array) -> list[Array]:
        log_probs = log_space.safe_log_softmax(jnp.where(where, logits, -jnp.inf))
        residual = jnp.where(where[:, None], jnp.exp(log_probs), 0.0) - own
        scaled = residual / (temperature * count)
        return [inner_products(scaled, key.T), inner_products(scaled.T, query.T)]

    return jnp.stack([*direction(image, text, logits), *direction(text, image, logits.T)])
