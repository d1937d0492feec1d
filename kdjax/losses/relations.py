"""Losses that compare examples with each other: what is taught is the geometry of a batch.

Student and teacher may have any widths. A loss has one value an anchor, [batch], whose mean over
the batch is the published loss. It depends on which examples form the batch: accumulation over
micro-batches is another loss. With `where` an example that is False is in no pair and its value is
0: the published loss of the others is then the sum of the values divided by their number. No
gradient reaches `teacher_*`. Values in float32, or float64 for float64.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from numpy import ndarray

from kdjax.losses import checks
from kdjax.losses.checks import Scalar
from kdjax.losses.relation_matrices import (
    Anchors,
    Examples,
    Features,
    Mask,
    batch_of_examples,
    gram,
    row_normalized_gram,
    taylor_correlation,
    unit_vectors,
)


def similarity_preserving(
    student_features: Examples, teacher_features: Examples, *, where: Mask | None = None
) -> Anchors:
    """Similarity-preserving distillation (SP): the same examples shall look alike.

        L_i = 1/B sum_j (R^s_ij - R^t_ij)^2,   R = row_normalized_gram(features)

    The caller's mean over anchors is the published sum over pairs / B^2 (RepDistiller, with weight
    3000; mdistiller). MMANet's name for it is the mean over all pairs: the same.

    Args:
      student_features: floats [batch, ...], batch >= 2. Differentiated.
      teacher_features: floats [batch, ...], of any width. Stopped.
      where: booleans [batch]; False examples take no part.

    Returns:
      [batch], in [0, 4 / B].

    Raises:
      ValueError: batches that differ, a batch of one, where of another shape.
      TypeError: features that are not floats, where that is not boolean.

    Source: Tung and Mori 2019, arXiv:1907.09682.

    >>> import jax.numpy as jnp
    >>> loss = similarity_preserving(jnp.array([[1.0, 0.0], [1.0, 0.0]]), jnp.eye(2))
    >>> print(f"{loss.mean():.6f}")
    0.292893
    """
    (student, teacher), where = _student_and_teacher(student_features, teacher_features, where)
    gap = (row_normalized_gram(student) - row_normalized_gram(teacher)) ** 2
    return _mean_over_pairs(gap, where)


def pkt(
    student_features: Features,
    teacher_features: Features,
    *,
    epsilon: Scalar = 1e-7,
    where: Mask | None = None,
) -> Anchors:
    """Probabilistic knowledge transfer: the same neighbours with the same probabilities.

        L_i = 1/B sum_j p_ij log[(p_ij + e) / (q_ij + e)],   e = epsilon
        p_ij = k_ij / sum_l k_il,   k_ij = (1 + cos(f_i, f_j)) / 2   of the teacher, q the student

    with cosines of f / (||f|| + e). The caller's mean over anchors is the mean over B^2 pairs of
    RepDistiller and mdistiller (hence its weight of 30000): the KL of a row is B times its value.

    Args:
      student_features: floats [batch, features], batch >= 2. Differentiated.
      teacher_features: floats [batch, features], of any width. Stopped.
      epsilon: scalar > 0, may be traced.
      where: booleans [batch]; False examples take no part.

    Returns:
      [batch], >= 0 up to epsilon.

    Raises:
      ValueError: batches that differ, a batch of one, epsilon <= 0, where of another shape.
      TypeError: features that are not floats, where that is not boolean.

    Source: Passalis and Tefas 2018, arXiv:1803.10837.

    >>> import jax.numpy as jnp
    >>> print(f"{pkt(jnp.eye(2), jnp.array([[1.0, 0.0], [1.0, 0.0]])).mean():.6f}")
    0.029446
    """
    (student, teacher), where = _student_and_teacher(student_features, teacher_features, where)
    checks.positive(epsilon=epsilon)
    p = _neighbour_probabilities(teacher, where, epsilon)
    q = _neighbour_probabilities(student, where, epsilon)
    return _mean_over_pairs(p * (jnp.log(p + epsilon) - jnp.log(q + epsilon)), where)


def rkd_distance(
    student_features: Features, teacher_features: Features, *, where: Mask | None = None
) -> Anchors:
    """Relational distillation of distances: the same distances, in units of their mean.

        L_i = 1/B sum_j huber(d^s_ij / mean d^s - d^t_ij / mean d^t)
        d_ij = ||f_i - f_j||,   huber(x) = x^2 / 2 for |x| < 1, |x| - 1/2 beyond

    The mean is over the pairs of two examples (what the "mean over entries > 0" of the authors,
    RepDistiller and mdistiller comes to, who clamp distances at 1e-6) and the gradient flows
    through it. The caller's mean over anchors is the published mean over B^2 pairs. Weight 25.

    Distances come from one matrix product of the centred features. A pair nearer than the square
    root of the float's epsilon, in units of its distance from the centre, counts as coincident.

    Args:
      student_features: floats [batch, features], batch >= 2. Differentiated.
      teacher_features: floats [batch, features], of any width. Stopped.
      where: booleans [batch]; False examples take no part.

    Returns:
      [batch], >= 0. Coincident examples are at distance 0, without gradient.

    Raises:
      ValueError: batches that differ, a batch of one, where of another shape.
      TypeError: features that are not floats, where that is not boolean.

    Source: Park et al. 2019, arXiv:1904.05068.

    >>> import jax.numpy as jnp
    >>> loss = rkd_distance(jnp.array([[0.0], [1.0], [2.0]]), jnp.array([[0.0], [1.0], [3.0]]))
    >>> print(f"{loss.mean():.6f}")
    0.013889
    """
    (student, teacher), where = _student_and_teacher(student_features, teacher_features, where)
    gap = _relative_distances(student, where) - _relative_distances(teacher, where)
    return _mean_over_pairs(_huber(gap), where)


def rkd_angle(
    student_features: Features,
    teacher_features: Features,
    *,
    anchors_at_once: int | None = None,
    where: Mask | None = None,
) -> Anchors:
    """Relational distillation of angles: the same angles between any three examples.

        L_i = 1/B^2 sum_jk huber(e^s_ij . e^s_ik - e^t_ij . e^t_ik),   e_ij = (f_j - f_i) / ||.||

    Every example is a vertex: B^3 angles. The caller's mean over anchors is the mean over all of
    them, as in RepDistiller and mdistiller, with those that are 0 because two examples are one.
    Weight 50.

    All at once takes memory for B^2 (B + features) floats a side. `anchors_at_once=n` takes
    n B (B + features): the same value, n vertices after the other, computed again in the gradient.
    (The identity (f_j - f_i)(f_k - f_i) = G_jk - G_ij - G_ik + G_ii would spare the features, but
    it cancels: in float32 it has nothing right for near examples.)

    Args:
      student_features: floats [batch, features], batch >= 2. Differentiated.
      teacher_features: floats [batch, features], of any width. Stopped.
      anchors_at_once: integer >= 1; None for all.
      where: booleans [batch]; False examples take no part.

    Returns:
      [batch], in [0, 3/2]. Coincident examples have angle 0 and no gradient.

    Raises:
      ValueError: batches that differ, a batch of one, anchors_at_once < 1, where of another shape.
      TypeError: features that are not floats, where that is not boolean.

    Source: Park et al. 2019, arXiv:1904.05068.

    >>> import jax.numpy as jnp
    >>> right = jnp.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    >>> line = jnp.array([[0.0], [1.0], [2.0]])
    >>> print(" ".join(f"{value:.4f}" for value in rkd_angle(right, line)))
    0.1111 0.2682 0.0095
    """
    (student, teacher), where = _student_and_teacher(student_features, teacher_features, where)
    if anchors_at_once is not None:
        checks.count(1, anchors_at_once=anchors_at_once)
    pairs = where[:, None] & where[None, :]
    count = jnp.maximum(jnp.sum(pairs), 1)

    def at_vertex(points: tuple[Array, Array]) -> Array:
        of_student, of_teacher = points
        gap = _cosines_at(of_student, student) - _cosines_at(of_teacher, teacher)
        return jnp.sum(jnp.where(pairs, _huber(gap), 0.0)) / count

    if anchors_at_once is None:
        values = jax.vmap(at_vertex)((student, teacher))
    else:
        at_vertex = jax.checkpoint(at_vertex)
        values = jax.lax.map(at_vertex, (student, teacher), batch_size=anchors_at_once)
    return jnp.where(where, values, 0.0)


def cc_adjacent(
    student_features: Float[Array | ndarray, "batch features"],
    teacher_features: Float[Array | ndarray, "batch features"],
    *,
    where: Mask | None = None,
) -> Float[Array, "batch-1"]:
    """Correlation congruence as benchmarks run it: products of adjacent examples' gaps.

        L_i = sum_k |s_i - t_i|_k |s_{i+1} - t_{i+1}|_k,   i < B - 1

    What RepDistiller calls CC (weight 0.02), on linear embeddings of both: it depends on the order
    of the batch and compares examples only with their neighbours. `cc_taylor` is the paper's loss.
    The caller's mean over the B - 1 pairs is the published loss.

    Args:
      student_features: floats [batch, features], batch >= 2. Differentiated.
      teacher_features: floats [batch, features]. Stopped.
      where: booleans [batch]; a pair with a False example is 0 (`where[:-1] & where[1:]` is the
        weight of the pairs).

    Returns:
      [batch - 1], >= 0.

    Raises:
      ValueError: shapes that differ, a batch of one, where of another shape.
      TypeError: features that are not floats, where that is not boolean.

    Source: Peng et al. 2019, arXiv:1904.01802; the code of Tian et al. 2020, arXiv:1910.10699.

    >>> import jax.numpy as jnp
    >>> cc_adjacent(jnp.array([[1.0, 2.0], [3.0, 4.0]]), jnp.zeros((2, 2))).tolist()
    [11.0]
    """
    axes = "batch>=2 features"
    student, teacher = checks.shaped(
        {"student_features": axes, "teacher_features": axes},
        student_features=student_features,
        teacher_features=teacher_features,
    )
    (student, teacher), _ = _student_and_teacher(student, teacher, where)
    gap = jnp.abs(student - teacher)
    return jnp.sum(gap[:-1] * gap[1:], axis=-1)


def cc_taylor(
    student_features: Features,
    teacher_features: Features,
    *,
    gamma: Scalar = 0.4,
    order: int = 2,
    where: Mask | None = None,
) -> Anchors:
    """Correlation congruence as the paper has it: equal Gaussian kernels between examples.

        L_i = 1/B sum_j (C^s_ij - C^t_ij)^2,   C = taylor_correlation(features)

    The caller's mean over anchors is the published mean over B^2 pairs. RepDistiller's CC is
    another loss, `cc_adjacent`.

    Args:
      student_features: floats [batch, features], batch >= 2. Differentiated.
      teacher_features: floats [batch, features], of any width. Stopped.
      gamma: scalar > 0, may be traced.
      order: integer >= 1.
      where: booleans [batch]; False examples take no part.

    Returns:
      [batch], >= 0.

    Raises:
      ValueError: batches that differ, a batch of one, gamma <= 0, order < 1.
      TypeError: features that are not floats, where that is not boolean.

    Source: Peng et al. 2019, arXiv:1904.01802.

    >>> import jax.numpy as jnp
    >>> loss = cc_taylor(jnp.array([[1.0, 0.0], [1.0, 0.0]]), jnp.eye(2), gamma=0.5, order=1)
    >>> print(f"{loss.mean():.6f}")
    0.067668
    """
    (student, teacher), where = _student_and_teacher(student_features, teacher_features, where)
    of_student = taylor_correlation(student, gamma=gamma, order=order)
    of_teacher = taylor_correlation(teacher, gamma=gamma, order=order)
    return _mean_over_pairs((of_student - of_teacher) ** 2, where)


def _student_and_teacher(
    student_features: Array, teacher_features: Array, where: Mask | None
) -> tuple[tuple[Array, Array], Array]:
    named = {"student_features": student_features, "teacher_features": teacher_features}
    (student, teacher), where = batch_of_examples(named, where)
    return (student, jax.lax.stop_gradient(teacher)), where


def _mean_over_pairs(values: Array, where: Array) -> Array:
    """[batch, batch] -> [batch]: the mean over the examples that are there; 0 for those not."""
    pairs = where[:, None] & where[None, :]
    return jnp.sum(jnp.where(pairs, values, 0.0), axis=-1) / jnp.maximum(jnp.sum(where), 1)


def _huber(gap: Array) -> Array:
    size = jnp.abs(gap)
    near = jnp.minimum(size, 1.0)
    return 0.5 * near**2 + (size - near)


def _neighbour_probabilities(features: Array, where: Array, epsilon: Scalar) -> Array:
    square = jnp.sum(features**2, axis=-1, keepdims=True)
    zero = square == 0
    length = jnp.sqrt(jnp.where(zero, 1.0, square))
    directions = jnp.where(zero, 0.0, features / (length + epsilon))
    kernel = jnp.where(where[None, :], (gram(directions) + 1) / 2, 0.0)
    total = jnp.sum(kernel, axis=-1, keepdims=True)
    return kernel / jnp.where(total == 0, 1.0, total)


def _relative_distances(features: Array, where: Array) -> Array:
    """[batch, batch] distances over their mean; pairs of one example, or of hidden ones, at 0."""
    number = jnp.maximum(jnp.sum(where), 1)
    # Distances do not see the mean, but the rounding of the products does.
    centre = jnp.sum(features, axis=0) / number
    centred = jnp.where(where[:, None], features - centre, 0.0)
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(centred)))
    products = gram(centred / jnp.where(largest < jnp.finfo(centred.dtype).tiny, 1.0, largest))
    square = jnp.diagonal(products)
    pair = square[:, None] + square[None, :]
    square = pair - 2 * products
    two = where[:, None] & where[None, :] & ~jnp.eye(len(features), dtype=bool)
    apart = two & (square > jnp.finfo(products.dtype).eps * pair)
    distances = jnp.where(apart, jnp.sqrt(jnp.where(apart, square, 1.0)), 0.0)
    mean = jnp.sum(distances) / jnp.maximum(jnp.sum(two), 1)
    return distances / jnp.where(mean == 0, 1.0, mean)


def _cosines_at(vertex: Array, features: Array) -> Array:
    """[batch, batch] cosines of the angles at the vertex."""
    return gram(unit_vectors(features - vertex))
