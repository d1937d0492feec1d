"""Losses between the singular vectors of feature maps.

The derivative of a singular vector divides by the differences of the squared singular values: where
two of them are equal, to rounding, the vectors are any of their plane and that part is left out.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from kdjax.losses import checks

Losses = Float[Array, " batch"]

_WIDTH = 8.0  # of the radial basis function, as published


def kdsvd(
    student_bottom: Float[Array | np.ndarray, "batch h1 w1 bottom_channels"],
    student_top: Float[Array | np.ndarray, "batch h2 w2 top_channels"],
    teacher_bottom: Float[Array | np.ndarray, "batch h3 w3 bottom_channels"],
    teacher_top: Float[Array | np.ndarray, "batch h4 w4 top_channels"],
    *,
    num_vectors: int = 1,
) -> Losses:
    """KD-SVD: what two layers share, told by the singular vectors of their maps.

        L = sum_ijn (R_s - R_t)_ijn^2,   R_ijn = exp(-(a_in - b_jn)^2 / 8)

    with a_n and b_n the first right singular vectors of the top and of the bottom map as matrices
    [positions, channels], of unit length and weighed with the teacher's singular values (whose own
    length over the n is 1). Each of the teacher's vectors is matched with that of the student's
    first num_vectors + 3 whose cosine is largest in magnitude, sign and all. The sign of a
    teacher's vector, which no decomposition knows, is such that its largest entry is positive.

    Both networks must have the same widths at both layers; sizes are free. The caller's mean over
    the batch, summed over neighbouring layers, is the published loss. Its gradient is fragile:
    singular values that nearly meet make it large.

    Args:
      student_bottom: floats [batch, height, width, bottom channels]. Differentiated.
      student_top: floats [batch, height, width, top channels]. Differentiated.
      teacher_bottom: floats [batch, height, width, bottom channels]. Stopped.
      teacher_top: floats [batch, height, width, top channels]. Stopped.
      num_vectors: n, an integer >= 1, at most the positions and channels of every map.

    Returns:
      [batch], >= 0.

    Raises:
      ValueError: another rank, batches or channels that differ, num_vectors < 1 or larger than a
        map has. TypeError: arrays that are not floats.

    Source: Lee et al. 2018 (ECCV, self-supervised knowledge distillation using singular value
    decomposition).

    >>> import jax.numpy as jnp
    >>> student, teacher = jnp.ones((1, 1, 1, 2)), jnp.array([1.0, 0.0]).reshape(1, 1, 1, 2)
    >>> print(f"{kdsvd(student, student, teacher, teacher)[0]:.4f}")  # 2 (1 - exp(-1 / 8))^2
    0.0276
    """
    names = {
        "student_bottom": "batch h1 w1 bottom_channels",
        "student_top": "batch h2 w2 top_channels",
        "teacher_bottom": "batch h3 w3 bottom_channels",
        "teacher_top": "batch h4 w4 top_channels",
    }
    maps = checks.shaped(
        names,
        student_bottom=student_bottom,
        student_top=student_top,
        teacher_bottom=teacher_bottom,
        teacher_top=teacher_top,
    )
    checks.count(1, num_vectors=num_vectors)
    for name, x in zip(names, maps):
        least = min(x.shape[1] * x.shape[2], x.shape[3])
        if num_vectors > least:
            raise ValueError(
                f"num_vectors must be at most the {least} singular vectors of {name} of shape "
                f"{x.shape}, got {num_vectors}"
            )

    def basis(bottom: Array, top: Array) -> Array:
        gaps = top[:, :, None] - bottom[:, None]
        return jnp.exp(-(gaps**2) / _WIDTH)

    matrices = [x.reshape(x.shape[0], -1, x.shape[-1]) for x in maps]
    layers = [_aligned(s, t, num_vectors) for s, t in zip(matrices[:2], matrices[2:])]
    (student_low, teacher_low), (student_high, teacher_high) = layers
    gap = basis(student_low, student_high) - basis(teacher_low, teacher_high)
    return jnp.sum(gap**2, axis=(1, 2, 3))


def _aligned(student: Array, teacher: Array, number: int) -> tuple[Array, Array]:
    """First right singular vectors of both, [batch, channels, number], the student's matched."""
    # Only the teacher's values are used: the student's vectors alone are differentiated.
    teacher = jax.lax.stop_gradient(teacher)
    values = jnp.linalg.svd(teacher, compute_uv=False)[:, None, :number]
    length = jnp.sqrt(jnp.sum(values**2, axis=-1, keepdims=True))
    values = values / jnp.where(length > 0, length, 1)
    targets = jax.vmap(_right_singular_vectors)(teacher)[..., :number]
    largest = jnp.argmax(jnp.abs(targets), axis=1, keepdims=True)
    sign = jnp.sign(jnp.take_along_axis(targets, largest, axis=1))
    targets = targets * jnp.where(sign == 0, 1, sign)
    vectors = jax.vmap(_right_singular_vectors)(student)[..., : number + 3]
    cosines = jax.lax.stop_gradient(jnp.einsum("bci,bcn->bin", vectors, targets))
    best = jnp.argmax(jnp.abs(cosines), axis=1, keepdims=True)
    chosen = jnp.arange(cosines.shape[1])[:, None] == best
    return jnp.einsum(
        "bci,bin->bcn", vectors, chosen * jnp.sign(cosines)
    ) * values, targets * values


@jax.custom_jvp
def _right_singular_vectors(matrix: Array) -> Array:
    """Right singular vectors of [m, c] as the columns of [c, min(m, c)], the largest first."""
    return jnp.linalg.svd(matrix, full_matrices=False)[2].T


@_right_singular_vectors.defjvp
def _right_singular_vectors_jvp(primals: tuple[Array], tangents: tuple[Array]):
    """dv_i = sum_j v_j (v_j . dG v_i) / (l_i - l_j), with G = X^T X and eigenvalues l = s^2.

    The vectors outside the columns, of eigenvalue 0, come in as what is left of dG v_i.
    """
    (matrix,), (tangent,) = primals, tangents
    vectors = _right_singular_vectors(matrix)
    projected = matrix @ vectors
    eigenvalues = jnp.sum(projected**2, axis=0)
    moved = tangent.T @ projected + matrix.T @ (tangent @ vectors)  # dG v_i, a column each
    inside = vectors.T @ moved

    def inverse(gaps: Array) -> Array:
        smallest = 10 * jnp.finfo(gaps.dtype).eps * jnp.max(eigenvalues, initial=0.0)
        apart = jnp.abs(gaps) > smallest
        return jnp.where(apart, 1 / jnp.where(apart, gaps, 1), 0)

    change = vectors @ (inside * inverse(eigenvalues[None] - eigenvalues[:, None]))
    return vectors, change + (moved - vectors @ inside) * inverse(eigenvalues)
