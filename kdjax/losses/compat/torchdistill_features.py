"""torchdistill's losses on features (torchdistill/losses/mid_level.py); see `torchdistill`."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
from numpy import ndarray

from kdjax.losses import checks, features, relation_matrices, relations
from kdjax.losses.checks import Scalar
from kdjax.losses.compat import crd, layout

Examples = Float[Array | ndarray, "batch ..."]
Vectors = Float[Array | ndarray, "batch _"]
Loss = Float[Array, ""]


def at_loss(
    student_feature_map: Float[Array | ndarray, "batch _ height width"],
    teacher_feature_map: Float[Array | ndarray, "batch _ height width"],
    *,
    mode: str = "code",
) -> Loss:
    """torchdistill's `ATLoss` of one pair of layers, as the authors' code or paper has it.

        L = mean over batch and positions of (Q_s - Q_t)^2      "code"
        L = 1/B sum_b |Q_s - Q_t|_2                             "paper"

    with Q the attention maps of unit length of `attention_transfer`, whose mean the first is. The
    paper's sum over channels in place of their mean is the same Q.

    Args:
      student_feature_map: floats [batch, channels, height, width]. Differentiated.
      teacher_feature_map: floats of the same size, of any width. Stopped.
      mode: "code" or "paper".

    Returns:
      Scalar, >= 0.

    Raises:
      ValueError: another rank, sizes that differ, an unknown mode. TypeError: maps that are not
        floats.

    Source: Zagoruyko and Komodakis 2017, arXiv:1612.03928; Matsubara 2021, arXiv:2011.12913.

    >>> import jax.numpy as jnp
    >>> student = jnp.ones((1, 1, 2, 2))
    >>> teacher = jnp.array([1.0, 0.0, 0.0, 0.0]).reshape(1, 1, 2, 2)
    >>> at_loss(student, teacher).item(), at_loss(student, teacher, mode="paper").item()
    (0.25, 1.0)
    """
    checks.choice("mode", mode, ("code", "paper"))
    student, teacher = layout.channels_last(
        student_feature_map=student_feature_map, teacher_feature_map=teacher_feature_map
    )
    if student.shape[1:3] != teacher.shape[1:3]:
        raise ValueError(
            f"student_feature_map and teacher_feature_map must have one height and width, "
            f"got {student.shape[1:3]} and {teacher.shape[1:3]}"
        )
    values = features.attention_transfer(student, teacher)
    if mode == "paper":
        values = _root(values * student.shape[1] * student.shape[2])
    return jnp.mean(values)


def pkt_loss(student_outputs: Vectors, teacher_outputs: Vectors, *, eps: Scalar = 1e-7) -> Loss:
    """torchdistill's `PKTLoss`: the mean of `pkt` over anchors.

        L = 1/B^2 sum_ij p_ij log[(p_ij + eps) / (q_ij + eps)]

    Args:
      student_outputs: floats [batch, features], batch >= 2. Differentiated.
      teacher_outputs: floats [batch, features], of any width. Stopped.
      eps: scalar > 0, may be traced.

    Returns:
      Scalar.

    Raises:
      ValueError: batches that differ, a batch of one, eps <= 0. TypeError: arrays not of floats.

    Source: Passalis and Tefas 2018, arXiv:1803.10837; Matsubara 2021, arXiv:2011.12913.

    >>> import jax.numpy as jnp
    >>> print(f"{pkt_loss(jnp.eye(2), jnp.array([[1.0, 0.0], [1.0, 0.0]])):.6f}")
    0.029446
    """
    return jnp.mean(relations.pkt(student_outputs, teacher_outputs, epsilon=eps))


def rkd_loss(
    student_outputs: Examples,
    teacher_outputs: Examples,
    *,
    dist_factor: Scalar,
    angle_factor: Scalar,
    reduction: str,
) -> Loss:
    """torchdistill's `RKDLoss`: `rkd_distance` and `rkd_angle`, weighed.

        L = dist_factor R_ij huber(distances) + angle_factor R_ijk huber(angles)

    R is the mean or the sum over B^2 pairs and B^3 angles.

    Args:
      student_outputs: floats [batch, ...], batch >= 2. Differentiated.
      teacher_outputs: floats [batch, ...], of any width. Stopped.
      dist_factor: scalar >= 0, may be traced; 1 in its example.
      angle_factor: scalar >= 0, may be traced; 2 in its example.
      reduction: "mean" or "sum".

    Returns:
      Scalar, >= 0.

    Raises:
      ValueError: batches that differ, a batch of one, a factor < 0, an unknown reduction.
        TypeError: arrays that are not floats.

    Source: Park et al. 2019, arXiv:1904.05068; Matsubara 2021, arXiv:2011.12913.

    >>> import jax.numpy as jnp
    >>> student, teacher = jnp.array([[0.0], [1.0], [2.0]]), jnp.array([[0.0], [1.0], [3.0]])
    >>> for reduction in ("mean", "sum"):
    ...     options = dict(dist_factor=1.0, angle_factor=0.0, reduction=reduction)
    ...     print(f"{rkd_loss(student, teacher, **options):.6f}")
    0.013889
    0.125000
    """
    checks.not_negative(dist_factor=dist_factor, angle_factor=angle_factor)
    checks.choice("reduction", reduction, ("mean", "sum"))
    student, teacher = (jnp.reshape(x, (len(x), -1)) for x in (student_outputs, teacher_outputs))
    distance = jnp.mean(relations.rkd_distance(student, teacher))
    angle = jnp.mean(relations.rkd_angle(student, teacher))
    if reduction == "sum":
        distance, angle = distance * len(student) ** 2, angle * len(student) ** 3
    return dist_factor * distance + angle_factor * angle


def fsp_loss(
    student_first: Float[Array | ndarray, "batch first_channels h1 w1"],
    student_second: Float[Array | ndarray, "batch second_channels h2 w2"],
    teacher_first: Float[Array | ndarray, "batch first_channels h3 w3"],
    teacher_second: Float[Array | ndarray, "batch second_channels h4 w4"],
) -> Loss:
    """torchdistill's `FSPLoss` of one pair of layers: lengths of columns in place of squares.

        L = 1/B sum_bj |(G_s - G_t)_b.j|_2,   G_ij = mean over positions of first_i second_j

    with G that of `fsp_matrix`, transposed, but for the larger map, which is max-pooled to the
    smaller.

    Args:
      student_first: the layer nearer the input, floats [batch, channels, height, width].
        Differentiated.
      student_second: a later layer, floats [batch, channels, height, width]. Differentiated.
      teacher_first: floats [batch, channels of student_first, height, width]. Stopped.
      teacher_second: floats [batch, channels of student_second, height, width]. Stopped.

    Returns:
      Scalar, >= 0.

    Raises:
      ValueError: another rank, batches or channels that differ. TypeError: maps that are not
        floats.

    Source: Yim et al. 2017 (CVPR, a gift from knowledge distillation); Matsubara 2021,
    arXiv:2011.12913.

    >>> import jax.numpy as jnp
    >>> ones = jnp.ones((1, 1, 2, 2))
    >>> fsp_loss(ones, 3 * ones, ones, ones).item()
    2.0
    """
    maps = dict(
        student_first=student_first,
        student_second=student_second,
        teacher_first=teacher_first,
        teacher_second=teacher_second,
    )
    checks.shaped(
        {
            "student_first": "batch first_channels h1 w1",
            "student_second": "batch second_channels h2 w2",
            "teacher_first": "batch first_channels h3 w3",
            "teacher_second": "batch second_channels h4 w4",
        },
        **maps,
    )
    first, second, teacher_first, teacher_second = layout.channels_last(**maps)
    target = jax.lax.stop_gradient(
        features.fsp_matrix(*_max_matched(teacher_first, teacher_second))
    )
    gap = features.fsp_matrix(*_max_matched(first, second)) - target
    return jnp.sum(_root(jnp.sum(gap**2, axis=2))) / len(first)


def _max_matched(first: Array, second: Array) -> tuple[Array, Array]:
    """Two maps [batch, height, width, channels] in one size, as PyTorch's adaptive max-pooling."""
    for axis in (1, 2):
        size = min(first.shape[axis], second.shape[axis])

        def pool(x: Array, axis: int = axis, size: int = size) -> Array:
            length = x.shape[axis]
            if length == size:
                return x
            edges = [(i * length // size, -(-(i + 1) * length // size)) for i in range(size)]
            parts = [jax.lax.slice_in_dim(x, *edge, axis=axis).max(axis) for edge in edges]
            return jnp.stack(parts, axis)

        first, second = pool(first), pool(second)
    return first, second


def ft_loss(
    translator_outputs: Examples,
    teacher_paraphraser_outputs: Examples,
    *,
    p: float | int = 1,
    reduction: str = "mean",
) -> Loss:
    """torchdistill's `FTLoss`: factors of unit length, as in the paper.

        L = mean over all entries of |u_s - u_t|                p = 1
        L = mean over the batch of |u_s - u_t|_p                p > 1

    with u = f / |f|_2 of all that an example has. Not `factor_transfer`, which compares attention
    maps, as the benchmarks do. "sum" is the sum of what "mean" averages.

    Args:
      translator_outputs: the student's factors, floats [batch, ...]. Differentiated.
      teacher_paraphraser_outputs: floats [batch, ...], of as many entries. Stopped.
      p: number >= 1, not traced: it decides the form.
      reduction: "mean" or "sum".

    Returns:
      Scalar, >= 0. A factor of zeros stays zero, where the original has NaN.

    Raises:
      ValueError: shapes that do not match, p < 1, an unknown reduction. TypeError: arrays that are
        not floats.

    Source: Kim et al. 2018, arXiv:1802.04977; Matsubara 2021, arXiv:2011.12913.

    >>> import jax.numpy as jnp
    >>> student, teacher = jnp.array([[0.0, 2.0]]), jnp.array([[3.0, 0.0]])
    >>> for p in (1, 2):
    ...     print(f"{ft_loss(student, teacher, p=p):.4f}")
    1.0000
    1.4142
    """
    checks.choice("reduction", reduction, ("mean", "sum"))
    if p < 1:
        raise ValueError(f"p must be >= 1, got {p}")
    student, teacher = checks.shaped(
        {
            "translator_outputs": "batch features",
            "teacher_paraphraser_outputs": "batch features",
        },
        translator_outputs=jnp.reshape(translator_outputs, (len(translator_outputs), -1)),
        teacher_paraphraser_outputs=jnp.reshape(
            teacher_paraphraser_outputs, (len(teacher_paraphraser_outputs), -1)
        ),
    )
    teacher = jax.lax.stop_gradient(teacher)
    gap = jnp.abs(relation_matrices.unit_vectors(student) - relation_matrices.unit_vectors(teacher))
    if p > 1:
        gap = _root(jnp.sum(gap**p, axis=-1), p)
    return jnp.mean(gap) if reduction == "mean" else jnp.sum(gap)


def vid_loss(
    pred_mean: Float[Array | ndarray, "batch *positions"],
    pred_var: Float[Array | ndarray, "..."],
    teacher_feature_map: Float[Array | ndarray, "batch *positions"],
) -> Loss:
    """torchdistill's `VIDLoss` of one pair of layers: `vid` with the variance itself.

        L = mean 1/2 ( (mu - t)^2 / v + log v )      over all entries

    Args:
      pred_mean: mu, floats [batch, ...]. Differentiated.
      pred_var: v > 0, floats that broadcast to the shape of mu, as [1, channels, 1, 1].
        Differentiated.
      teacher_feature_map: t, floats of the shape of mu. Stopped.

    Returns:
      Scalar, of any sign.

    Raises:
      ValueError: shapes that do not match. TypeError: arrays that are not floats.

    Source: Ahn et al. 2019, arXiv:1904.05835; Matsubara 2021, arXiv:2011.12913.

    >>> import jax.numpy as jnp
    >>> maps = jnp.ones((1, 3, 2, 2))
    >>> print(f"{vid_loss(maps, jnp.full((1, 3, 1, 1), 5.0), maps):.4f}")
    0.8047
    """
    mean, teacher = checks.shaped(
        {"pred_mean": "...", "teacher_feature_map": "..."},
        pred_mean=pred_mean,
        teacher_feature_map=teacher_feature_map,
    )
    (variance,) = checks.shaped({"pred_var": "..."}, pred_var=pred_var)
    try:
        fits = jnp.broadcast_shapes(variance.shape, mean.shape) == mean.shape
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(
            f"pred_var must broadcast to the shape {mean.shape} of pred_mean, got {variance.shape}"
        )
    gap = mean - jax.lax.stop_gradient(teacher)
    return jnp.mean(0.5 * (gap**2 / variance + jnp.log(variance)))


def cckd_loss(
    student_linear_outputs: Vectors,
    teacher_linear_outputs: Vectors,
    *,
    kernel_type: str,
    gamma: Scalar = 0.4,
    max_p: int = 2,
    reduction: str,
) -> Loss:
    """torchdistill's `CCKDLoss`: the distance of two kernel matrices, not squared.

        L = |C_s - C_t|_F / B^2     "batchmean";  without / B^2  "sum"
        C_ij = f_i . f_j                                                    "bilinear"
        C_ij = exp(-2 gamma) sum_{p <= max_p} (2 gamma)^p / p! (f_i . f_j)^p    "gaussian"

    Not `cc_taylor`, which squares the gaps; and f is taken as it is, where `taylor_correlation` has
    unit vectors. Without them the second is no Gaussian kernel. The original knows "batchmean", and
    takes any other word for "sum".

    Args:
      student_linear_outputs: floats [batch, features]. Differentiated.
      teacher_linear_outputs: floats [batch, features], of any width. Stopped.
      kernel_type: "gaussian" or "bilinear".
      gamma: scalar > 0, may be traced. The original has no default; this is its example's.
      max_p: integer >= 1; likewise.
      reduction: "batchmean" or "sum".

    Returns:
      Scalar, >= 0.

    Raises:
      ValueError: batches that differ, another kernel or reduction, gamma <= 0, max_p < 1.
        TypeError: arrays that are not floats.

    Source: Peng et al. 2019, arXiv:1904.01802; Matsubara 2021, arXiv:2011.12913.

    >>> import jax.numpy as jnp
    >>> student, teacher = jnp.eye(2), jnp.array([[1.0, 0.0], [1.0, 0.0]])
    >>> options = dict(kernel_type="bilinear", reduction="sum")
    >>> print(f"{cckd_loss(student, teacher, **options):.4f}")
    1.4142
    """
    checks.choice("kernel_type", kernel_type, ("gaussian", "bilinear"))
    checks.choice("reduction", reduction, ("batchmean", "sum"))
    checks.positive(gamma=gamma)
    checks.count(1, max_p=max_p)
    student, teacher = checks.shaped(
        {
            "student_linear_outputs": "batch student_features",
            "teacher_linear_outputs": "batch teacher_features",
        },
        student_linear_outputs=student_linear_outputs,
        teacher_linear_outputs=teacher_linear_outputs,
    )

    def kernel(outputs: Array) -> Array:
        products = relation_matrices.gram(outputs)
        if kernel_type == "bilinear":
            return products
        series = jnp.ones_like(products)
        for power in range(max_p, 0, -1):
            series = 1 + series * (2 * gamma / power) * products
        return jnp.exp(-2 * jnp.asarray(gamma, products.dtype)) * series

    gap = kernel(student) - kernel(jax.lax.stop_gradient(teacher))
    # The largest element is divided out: no square overflows.
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(gap)))
    largest = jnp.where(largest == 0, 1.0, largest)
    loss = largest * _root(jnp.sum((gap / largest) ** 2))
    return loss / len(student) ** 2 if reduction == "batchmean" else loss


def spkd_loss(student_outputs: Examples, teacher_outputs: Examples, *, reduction: str) -> Loss:
    """torchdistill's `SPKDLoss`: similarity-preserving, with rows whose absolute values sum to 1.

        L = |R_s - R_t|_F^2 / B^2     "batchmean";  without / B^2  "sum"
        R_ij = G_ij / sum_k |G_ik|,   G = F F^T

    The paper, RepDistiller and `similarity_preserving` give the rows the length 1 instead: its call
    of PyTorch's `normalize` has the axis in the place of the norm's order. The original takes any
    word but "batchmean" for "sum".

    Args:
      student_outputs: floats [batch, ...], batch >= 2. Differentiated.
      teacher_outputs: floats [batch, ...], of any width. Stopped.
      reduction: "batchmean" or "sum".

    Returns:
      Scalar, >= 0.

    Raises:
      ValueError: batches that differ, a batch of one, an unknown reduction. TypeError: arrays that
        are not floats.

    Source: Tung and Mori 2019, arXiv:1907.09682; Matsubara 2021, arXiv:2011.12913.

    >>> import jax.numpy as jnp
    >>> student, teacher = jnp.array([[1.0, 0.0], [1.0, 0.0]]), jnp.eye(2)
    >>> for reduction in ("batchmean", "sum"):
    ...     print(f"{spkd_loss(student, teacher, reduction=reduction):.4f}")
    0.2500
    1.0000
    """
    checks.choice("reduction", reduction, ("batchmean", "sum"))
    (student, teacher), _ = relation_matrices.batch_of_examples(
        {"student_outputs": student_outputs, "teacher_outputs": teacher_outputs}, None
    )
    gap = _relative_rows(student) - _relative_rows(jax.lax.stop_gradient(teacher))
    return jnp.sum(gap**2) / (len(student) ** 2 if reduction == "batchmean" else 1)


def crd_loss(
    v1: Float[Array | ndarray, "batch features"],
    v2: Float[Array | ndarray, "batch features"],
    contrast_idx: Int[Array | ndarray, "batch candidates"],
    memory_v1: Float[Array | ndarray, "examples features"],
    memory_v2: Float[Array | ndarray, "examples features"],
    z_v1: Scalar | None = None,
    z_v2: Scalar | None = None,
    *,
    num_samples: Scalar | int,
    temperature: Scalar = 0.07,
    eps: float = 1e-7,
) -> Loss:
    """torchdistill's `CRDLoss`: `repdistiller.crd_loss` under other names.

    torchdistill 1.1.5 runs it only with the candidates given: its own draw reads an attribute that
    it never sets. Its `momentum` is that of `crd_update_bank`, which is the caller's.

    Args:
      v1: the student's embeddings, of unit length, floats [batch, features]. Differentiated.
      v2: the teacher's. Differentiated: its linear head is trained too.
      contrast_idx: integers [batch, 1 + K], the example itself in column 0.
      memory_v1: the student's, floats [examples, features]. Stopped.
      memory_v2: the teacher's. Stopped.
      z_v1: Z of the student's side, scalar > 0, may be traced; None: from this batch.
      z_v2: Z of the teacher's side.
      num_samples: N, scalar > 0, may be traced.
      temperature: scalar > 0, may be traced.
      eps: number >= 0, in the denominators.

    Returns:
      Scalar.

    Raises:
      ValueError: shapes that do not fit, no negatives, an index out of range, temperature or
        num_samples <= 0. TypeError: arrays that are not floats, indices that are not integers.

    Source: Tian et al. 2020, arXiv:1910.10699; Matsubara 2021, arXiv:2011.12913.

    >>> import jax.numpy as jnp
    >>> right, memory, pairs = jnp.array([[1.0, 0.0]]), jnp.eye(2), jnp.array([[0, 1]])
    >>> loss = crd_loss(right, right, pairs, memory, memory, num_samples=2, temperature=1.0)
    >>> print(f"{loss:.4f}")
    1.9031
    """
    return crd.crd_loss(
        v1,
        v2,
        contrast_idx,
        memory_v1,
        memory_v2,
        z_v1,
        z_v2,
        n_data=num_samples,
        nce_t=temperature,
        eps=eps,
    )


def _root(values: Array, order: float | int = 2) -> Array:
    """values ** (1 / order), without gradient at 0."""
    zero = values == 0
    safe = jnp.where(zero, 1.0, values)
    return jnp.where(zero, 0.0, jnp.sqrt(safe) if order == 2 else safe ** (1 / order))


def _relative_rows(outputs: Array) -> Array:
    """Inner products over the sum of their row's absolute values; a row of zeros stays zero."""
    # A common factor changes nothing, and products would overflow or vanish.
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(outputs)))
    tiny = jnp.finfo(outputs.dtype).tiny
    products = relation_matrices.gram(outputs / jnp.where(largest < tiny, 1.0, largest))
    total = jnp.sum(jnp.abs(products), axis=-1, keepdims=True)
    return products / jnp.where(total < tiny, 1.0, total)
