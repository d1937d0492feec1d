"""Matrices of relations between the examples of a batch, their gap, and weights of examples.

The published relation losses are in `relations`; these are the pieces of others: a matrix of the
student's, one of the teacher's, `relation_gap` between them. With `where` an example that is False
is in no pair. Values in float32, or float64 for float64.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float
from numpy import ndarray

from kdjax.losses import checks, log_space
from kdjax.losses.checks import Scalar

HIGHEST = jax.lax.Precision.HIGHEST

Features = Float[Array | ndarray, "batch _"]
Examples = Float[Array | ndarray, "batch ..."]
Mask = Bool[Array | ndarray, "batch"]
Anchors = Float[Array, "batch"]
Relations = Float[Array, "batch batch"]


@jax.custom_jvp
def unit_vectors(vectors: Array) -> Array:
    """Vectors of the last axis divided by their length; a zero vector stays 0, without gradient.

        u = x / |x|,   du = (dx - u (u . dx)) / |x|

    Exact at any scale: the largest element is divided out before squaring. The derivative reads
    the result, where an automatic one reads every step on the way to it.
    """
    scaled, _, length = _lengths(vectors)
    return scaled / length


@unit_vectors.defjvp
def _unit_vectors_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    unit, (tangent,) = unit_vectors(*primals), tangents
    _, largest, length = _lengths(*primals)
    across = tangent - unit * jnp.sum(unit * tangent, axis=-1, keepdims=True)
    return unit, across / length / largest


def _lengths(vectors: Array) -> tuple[Array, Array, Array]:
    """Vectors over their largest element, that element (inf of a zero vector), and their length."""
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(vectors), axis=-1, keepdims=True))
    zero = largest < jnp.finfo(vectors.dtype).tiny
    largest = jnp.where(zero, jnp.inf, largest)
    scaled = vectors / largest
    square = jnp.sum(scaled**2, axis=-1, keepdims=True)
    return scaled, largest, jnp.sqrt(jnp.where(zero, 1.0, square))


def row_normalized_gram(features: Examples, *, where: Mask | None = None) -> Relations:
    """The inner products of examples, each row of length 1: the relations of SP and MMANet.

        G = F F^T,   R_i = G_i / ||G_i||_2

    The division is by rows, so R is not symmetric: not the cosines of `cosine_gram`. Unchanged by
    F -> c F and by a rotation of the features. Stops nothing.

    Args:
      features: floats [batch, ...], flattened to [batch, features]. Differentiated.
      where: booleans [batch]; the rows and columns of False are 0.

    Returns:
      [batch, batch], in [-1, 1]. The row of a zero vector is 0.

    Raises:
      ValueError: one axis only, where of another shape. TypeError: features that are not floats.

    Source: Tung and Mori 2019, arXiv:1907.09682.

    >>> import jax.numpy as jnp
    >>> print(jnp.round(row_normalized_gram(jnp.array([[1.0, 0.0], [2.0, 0.0]])), 4))
    [[0.4472 0.8944]
     [0.4472 0.8944]]
    """
    (features,), _ = batch_of_examples({"features": features}, where)
    # A common factor changes nothing, and products of products would overflow or vanish.
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(features)))
    features = features / jnp.where(largest < jnp.finfo(features.dtype).tiny, 1.0, largest)
    return unit_vectors(gram(features))


def cosine_gram(features: Examples, *, where: Mask | None = None) -> Relations:
    """The cosines between examples: the relations of UniDistill, Any2Seg and structural KD.

        R_ij = f_i . f_j / (||f_i|| ||f_j||)

    Stops nothing. `relation_gap` compares two of them.

    Args:
      features: floats [batch, ...], flattened to [batch, features]. Differentiated.
      where: booleans [batch]; the rows and columns of False are 0.

    Returns:
      [batch, batch], in [-1, 1]. The row and column of a zero vector are 0.

    Raises:
      ValueError: one axis only, where of another shape. TypeError: features that are not floats.

    Source: Liu et al. 2019 (structured knowledge distillation), arXiv:1903.04197.

    >>> import jax.numpy as jnp
    >>> print(jnp.round(cosine_gram(jnp.array([[1.0, 0.0], [2.0, 2.0]])), 4))
    [[1.     0.7071]
     [0.7071 1.    ]]
    """
    (features,), _ = batch_of_examples({"features": features}, where)
    return gram(unit_vectors(features))


def taylor_correlation(
    features: Features, *, gamma: Scalar = 0.4, order: int = 2, where: Mask | None = None
) -> Relations:
    """The Gaussian kernel of unit vectors, by its Taylor series: the relations of CC.

        C_ij = exp(-2 gamma) sum_{p <= order} (2 gamma)^p / p! (u_i . u_j)^p,   u = f / ||f||

    For order -> inf this is exp(-gamma ||u_i - u_j||^2). Stops nothing.

    Args:
      features: floats [batch, features]. Differentiated.
      gamma: scalar > 0, may be traced.
      order: integer >= 1.
      where: booleans [batch]; the rows and columns of False are those of a zero vector.

    Returns:
      [batch, batch], in [-1, 1].

    Raises:
      ValueError: a shape that is not [batch, features], gamma <= 0, order < 1.
      TypeError: features that are not floats.

    Source: Peng et al. 2019, arXiv:1904.01802.

    >>> import jax.numpy as jnp
    >>> correlation = taylor_correlation(jnp.eye(2), gamma=0.5, order=1)
    >>> print(f"{correlation[0, 0]:.4f} {correlation[0, 1]:.4f}")
    0.7358 0.3679
    """
    checks.shaped({"features": "batch features"}, features=features)
    checks.positive(gamma=gamma)
    checks.count(1, order=order)
    cosines = cosine_gram(features, where=where)
    series = jnp.ones_like(cosines)
    for power in range(order, 0, -1):
        series = 1 + series * (2 * gamma / power) * cosines
    return (jnp.exp(-2 * jnp.asarray(gamma, cosines.dtype)) * series).astype(cosines.dtype)


def relation_gap(
    student_relations: Float[Array | ndarray, "*batch rows columns"],
    teacher_relations: Float[Array | ndarray, "*batch rows columns"],
    *,
    power: int = 2,
    weights: Float[Array | ndarray, "..."] | None = None,
    where: Bool[Array | ndarray, "*batch rows columns"] | None = None,
) -> Float[Array, "*batch rows"]:
    """The gap between two relation matrices, row by row.

        L_i = sum_j w_ij |R^s_ij - R^t_ij|^power,   w_ij = 1 / columns by default

    Most relation losses are this with another R: `similarity_preserving` is power 2 of
    `row_normalized_gram`, UniDistill's is power 1 of `cosine_gram`, SKDS's power 2 of it.
    MMANet's margin-aware distillation takes `entropy_share` of the teacher's logits as the weights
    [columns] (its classification code, then the sum of the rows) or as the weights [rows, 1] (its
    segmentation code).

    Args:
      student_relations: floats [..., rows, columns]. Differentiated.
      teacher_relations: floats [..., rows, columns]. Stopped.
      power: 1 or 2.
      weights: floats that broadcast to [..., rows, columns]. Taken as they are: nothing divides
        by their sum. Differentiated.
      where: booleans [..., rows, columns]; a pair that is False adds nothing. The default weight
        is then 1 over the number of pairs of the row that are True.

    Returns:
      [..., rows], >= 0 for weights >= 0. 0 for a row without pairs.

    Raises:
      ValueError: shapes that differ, a power other than 1 and 2, weights that do not broadcast.
      TypeError: arrays that are not floats, where that is not boolean.

    Source: Park et al. 2019, arXiv:1904.05068; Wei et al. 2023 (MMANet), arXiv:2304.08028.

    >>> import jax.numpy as jnp
    >>> gap = relation_gap(jnp.array([[1.0, 0.5], [0.5, 1.0]]), jnp.eye(2), power=1)
    >>> gap.tolist()
    [0.25, 0.25]
    """
    axes = "... rows columns"
    student, teacher = checks.shaped(
        {"student_relations": axes, "teacher_relations": axes},
        student_relations=student_relations,
        teacher_relations=teacher_relations,
    )
    if power not in (1, 2):
        raise ValueError(f"power must be 1 or 2, got {power!r}")
    teacher = jax.lax.stop_gradient(teacher)
    if where is not None:
        where = checks.boolean("where", where, student.shape, "the relations")
        student, teacher = (jnp.where(where, x, 0.0) for x in (student, teacher))
    gap = student - teacher
    gap = jnp.abs(gap) if power == 1 else gap**2
    if weights is None:
        if where is None:
            return jnp.mean(gap, axis=-1)
        return jnp.sum(gap, axis=-1) / jnp.maximum(jnp.sum(where, axis=-1), 1)
    (weights,) = checks.shaped({"weights": "..."}, weights=weights)
    try:
        weights = jnp.broadcast_to(weights, gap.shape).astype(gap.dtype)
    except ValueError:
        raise ValueError(
            f"weights must broadcast to the shape {gap.shape} of the relations, got {weights.shape}"
        ) from None
    if where is not None:
        weights = jnp.where(where, weights, 0.0)
    return jnp.sum(weights * gap, axis=-1)


def entropy_share(
    logits: Float[Array | ndarray, "batch classes"], *, where: Mask | None = None
) -> Anchors:
    """Weights of examples by how undecided a network is: its share of the batch's entropy.

        h_i = H_i / sum_j H_j,   H_i = -sum_c p_ic log p_ic,   p = softmax(logits)

    Large near the decision boundary. The weights of MMANet's margin-aware distillation (examples)
    and of DCD (tasks). Stops nothing: pass `jax.lax.stop_gradient(logits)` of a teacher.

    Args:
      logits: floats [batch, classes]. Differentiated.
      where: booleans [batch]; False examples have weight 0.

    Returns:
      [batch], >= 0, of sum 1. Equal weights where the sum of the entropies is at most 1e-12.

    Raises:
      ValueError: another shape, where of another shape. TypeError: logits that are not floats.

    Source: Wei et al. 2023 (MMANet), arXiv:2304.08028.

    >>> import jax.numpy as jnp
    >>> print(jnp.round(entropy_share(jnp.array([[0.0, 0.0], [jnp.log(9.0), 0.0]])), 4))
    [0.6807 0.3193]
    """
    (logits,) = checks.shaped({"logits": "batch classes"}, logits=logits)
    (logits,), where = batch_of_examples({"logits": logits}, where)
    log_probs = log_space.safe_log_softmax(logits)
    entropy = jnp.where(where, log_space.cross_entropy(log_probs, log_probs), 0.0)
    total = jnp.sum(entropy)
    certain = total <= 1e-12
    equal = where / jnp.maximum(jnp.sum(where), 1)
    return jnp.where(certain, equal, entropy / jnp.where(certain, 1.0, total))


def batch_of_examples(
    named: dict[str, Array], where: Mask | None
) -> tuple[tuple[Array, ...], Array]:
    """Arrays as [batch, features], with the examples that `where` hides at 0, and the mask."""
    for name, array in named.items():
        if jnp.ndim(array) < 2:
            raise ValueError(
                f"{name} must be shaped [batch, ...features], got shape {jnp.shape(array)}"
            )
    flat = {name: jnp.reshape(array, (jnp.shape(array)[0], -1)) for name, array in named.items()}
    least = ">=2" if len(named) > 1 else ""
    arrays = checks.shaped({name: f"batch{least} {name}" for name in named}, **flat)
    size = arrays[0].shape[0]
    if where is None:
        return arrays, jnp.ones(size, bool)
    where = checks.boolean("where", where, (size,), "the batch")
    return tuple(jnp.where(where[:, None], array, 0.0) for array in arrays), where


@jax.custom_jvp
def gram(features: Array) -> Array:
    """Inner products of all rows: [batch, features] -> [batch, batch]."""
    return jnp.matmul(features, features.T, precision=HIGHEST)


@gram.defjvp
def _gram_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    # The product rule's two terms are each other's transpose: one product serves both, and the
    # gradient is one product too, with g + g^T.
    (features,), (tangent,) = primals, tangents
    half = jnp.matmul(tangent, features.T, precision=HIGHEST)
    return gram(features), half + half.T
