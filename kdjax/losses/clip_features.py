"""Distillation of models of image-text pairs: CLIP-KD's losses of features and their gradients.

The conventions are those of `clip_distillation`: row i of images and row i of texts are a pair,
one value a pair, the student's features raw and the teacher's of unit norm.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from numpy import ndarray

from kdjax.losses import checks, log_space
from kdjax.losses.checks import Scalar
from kdjax.losses.clip_distillation import (
    Features,
    Losses,
    Mask,
    StudentFeatures,
    TeacherFeatures,
    pair_features,
)
from kdjax.losses.contrastive import clip_info_nce, inner_products, l2_normalize


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
    features, where = pair_features(
        (student_image_features, student_text_features),
        (teacher_image_features, teacher_text_features),
        where,
        one_width=True,
    )
    student_image, student_text, teacher_image, teacher_text = features
    image = jnp.mean((l2_normalize(student_image) - teacher_image) ** 2, axis=1)
    text = jnp.mean((l2_normalize(student_text) - teacher_text) ** 2, axis=1)
    return jnp.where(where, image + text, 0.0)


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
    features, where = pair_features(
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
    features, where = pair_features(
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
