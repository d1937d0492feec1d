"""RepDistiller's losses (distiller_zoo, crd).

A constructor's arguments are keywords here, or follow those of the call. Maps are PyTorch's,
[batch, channels, height, width]; where two differ in size the larger is pooled to the smaller,
heights and widths each for itself (RepDistiller knows square maps only). Losses of layers are lists
of scalars, which RepDistiller's loop adds up and weighs; the weights in the docstrings are those of
its benchmark, beside a cross-entropy of weight 1.
"""

from collections.abc import Sequence
from itertools import pairwise

import jax.numpy as jnp
from jaxtyping import Array, Float
from numpy import ndarray

from kdjax.losses import checks, features, preactivations, relations
from kdjax.losses.checks import Scalar
from kdjax.losses.compat import layout, mdistiller
from kdjax.losses.compat.crd import crd_loss
from kdjax.losses.pooling import adaptive_average_pool

BatchLogits = Float[Array | ndarray, "batch classes"]
Maps = Float[Array | ndarray, "batch _ _ _"]
Examples = Float[Array | ndarray, "batch ..."]
Vectors = Float[Array | ndarray, "batch _"]
Loss = Float[Array, ""]

__all__ = [
    "ab_loss",
    "attention",
    "correlation",
    "crd_loss",
    "distill_kl",
    "factor_transfer",
    "fsp",
    "hint_loss",
    "nst_loss",
    "pkt",
    "rkd_loss",
    "similarity",
    "vid_loss",
]


def distill_kl(
    student_logits: BatchLogits, teacher_logits: BatchLogits, temperature: Scalar
) -> Loss:
    """RepDistiller's `DistillKL`: the sum of the KL over batch and classes, T^2 / batch.

        L = T^2 / B sum_b KL(p_b || q_b)

    The mean of `kd`, and the same number as `mdistiller.kd_loss`. RepDistiller weighs it with
    alpha against gamma of the cross-entropy (-a and -r on its command line).

    Args:
      student_logits: floats [batch, classes]. Differentiated.
      teacher_logits: floats [batch, classes]. Stopped.
      temperature: scalar > 0, may be traced. 4 there.

    Returns:
      Scalar.

    Raises:
      ValueError: shapes that differ, temperature <= 0. TypeError: arrays that are not floats.

    Source: Tian et al. 2020 (CRD), arXiv:1910.10699.

    >>> import jax.numpy as jnp
    >>> student, teacher = jnp.array([[2.0, 1.0, 0.0]]), jnp.array([[0.0, 1.0, 2.0]])
    >>> print(f"{distill_kl(student, teacher, 4.0):.4f}")
    1.3196
    """
    return mdistiller.kd_loss(student_logits, teacher_logits, temperature)


def hint_loss(student_features: Examples, teacher_features: Examples) -> Loss:
    """RepDistiller's `HintLoss`: the mean of `hint`. Weight 100.

        L = mean (s - t)^2      over all entries

    Args:
      student_features: the regressor's output, floats [batch, ...]. Differentiated.
      teacher_features: floats of the same shape. Stopped.

    Returns:
      Scalar.

    Raises:
      ValueError: shapes that differ. TypeError: arrays that are not floats.

    Source: Romero et al. 2015, arXiv:1412.6550.

    >>> import jax.numpy as jnp
    >>> hint_loss(jnp.array([[1.0, 2.0]]), jnp.array([[1.0, 4.0]])).item()
    2.0
    """
    return jnp.mean(features.hint(student_features, teacher_features))


def attention(student_maps: Sequence[Maps], teacher_maps: Sequence[Maps], p: int = 2) -> list[Loss]:
    """RepDistiller's `Attention`: the mean of `attention_transfer`, layer by layer. Weight 1000.

        L = mean over batch and positions of (Q_s - Q_t)^2,   Q = a / |a|_2,   a = mean_c f^p

    Args:
      student_maps: floats [batch, channels, height, width], a layer each. Differentiated.
      teacher_maps: as many, of any sizes and widths. Stopped.
      p: integer >= 1.

    Returns:
      A scalar a layer.

    Raises:
      ValueError: another rank, batches or numbers of layers that differ, p < 1. TypeError: maps
        that are not floats.

    Source: Zagoruyko and Komodakis 2017, arXiv:1612.03928.

    >>> import jax.numpy as jnp
    >>> teacher = jnp.array([1.0, 0.0, 0.0, 0.0]).reshape(1, 1, 2, 2)
    >>> [loss.item() for loss in attention([jnp.ones((1, 1, 2, 2))], [teacher])]
    [0.25]
    """
    return [
        jnp.mean(features.attention_transfer(*_pair(s, t), power=p))
        for s, t in layout.layers(student_maps, teacher_maps)
    ]


def similarity(
    student_features: Sequence[Examples], teacher_features: Sequence[Examples]
) -> list[Loss]:
    """RepDistiller's `Similarity`: the mean of `similarity_preserving` of layers. Weight 3000.

        L = 1/B^2 sum_ij (R^s_ij - R^t_ij)^2,   R = row_normalized_gram(features)

    The original has arrays of one element for the scalars here.

    Args:
      student_features: floats [batch, ...], a layer each, batch >= 2. Differentiated.
      teacher_features: as many, of any widths. Stopped.

    Returns:
      A scalar a layer.

    Raises:
      ValueError: batches or numbers of layers that differ, a batch of one. TypeError: features
        that are not floats.

    Source: Tung and Mori 2019, arXiv:1907.09682.

    >>> import jax.numpy as jnp
    >>> losses = similarity([jnp.array([[1.0, 0.0], [1.0, 0.0]])], [jnp.eye(2)])
    >>> [f"{loss:.6f}" for loss in losses]
    ['0.292893']
    """
    return [
        jnp.mean(relations.similarity_preserving(s, t))
        for s, t in layout.layers(student_features, teacher_features)
    ]


def pkt(student_features: Vectors, teacher_features: Vectors) -> Loss:
    """RepDistiller's `PKT`: the mean of `pkt` over anchors, with epsilon 1e-7. Weight 30000.

        L = 1/B^2 sum_ij p_ij log[(p_ij + 1e-7) / (q_ij + 1e-7)]

    Args:
      student_features: floats [batch, features], batch >= 2. Differentiated.
      teacher_features: floats [batch, features], of any width. Stopped.

    Returns:
      Scalar.

    Raises:
      ValueError: batches that differ, a batch of one. TypeError: features that are not floats.

    Source: Passalis and Tefas 2018, arXiv:1803.10837.

    >>> import jax.numpy as jnp
    >>> print(f"{pkt(jnp.eye(2), jnp.array([[1.0, 0.0], [1.0, 0.0]])):.6f}")
    0.029446
    """
    return jnp.mean(relations.pkt(student_features, teacher_features, epsilon=1e-7))


def rkd_loss(
    student_features: Examples,
    teacher_features: Examples,
    w_d: Scalar = 25.0,
    w_a: Scalar = 50.0,
) -> Loss:
    """RepDistiller's `RKDLoss`: the means of `rkd_distance` and `rkd_angle`, weighed. Weight 1.

        L = w_d mean_ij huber(distances) + w_a mean_ijk huber(angles)

    Args:
      student_features: floats [batch, ...], batch >= 2. Differentiated.
      teacher_features: floats [batch, ...], of any width. Stopped.
      w_d: scalar >= 0, may be traced.
      w_a: scalar >= 0, may be traced.

    Returns:
      Scalar.

    Raises:
      ValueError: batches that differ, a batch of one, a weight < 0. TypeError: features that are
        not floats.

    Source: Park et al. 2019, arXiv:1904.05068.

    >>> import jax.numpy as jnp
    >>> student, teacher = jnp.array([[0.0], [1.0], [2.0]]), jnp.array([[0.0], [1.0], [3.0]])
    >>> print(f"{rkd_loss(student, teacher):.4f}")
    0.3472
    """
    checks.not_negative(w_d=w_d, w_a=w_a)
    student, teacher = (jnp.reshape(x, (len(x), -1)) for x in (student_features, teacher_features))
    distance = jnp.mean(relations.rkd_distance(student, teacher))
    return w_d * distance + w_a * jnp.mean(relations.rkd_angle(student, teacher))


def correlation(
    student_embeddings: Float[Array | ndarray, "batch features"],
    teacher_embeddings: Float[Array | ndarray, "batch features"],
) -> Loss:
    """RepDistiller's `Correlation` (CC): the mean of `cc_adjacent`. Weight 0.02.

        L = 1/(B - 1) sum_{i < B - 1} sum_k d_ik d_{i+1,k},   d = |s - t|

    Not the paper's loss, which is `cc_taylor`. The original trains a linear embedding of the
    teacher's features too, through this loss; here no gradient reaches it.

    Args:
      student_embeddings: floats [batch, features], batch >= 2. Differentiated.
      teacher_embeddings: floats [batch, features]. Stopped.

    Returns:
      Scalar.

    Raises:
      ValueError: shapes that differ, a batch of one. TypeError: arrays that are not floats.

    Source: Peng et al. 2019, arXiv:1904.01802; the code of Tian et al. 2020, arXiv:1910.10699.

    >>> import jax.numpy as jnp
    >>> correlation(jnp.array([[1.0, 2.0], [3.0, 4.0]]), jnp.zeros((2, 2))).item()
    11.0
    """
    return jnp.mean(relations.cc_adjacent(student_embeddings, teacher_embeddings))


def nst_loss(student_maps: Sequence[Maps], teacher_maps: Sequence[Maps]) -> list[Loss]:
    """RepDistiller's `NSTLoss`: the mean of `nst`, layer by layer. Weight 50.

        L = k(t, t) + k(s, s) - 2 k(s, t),   k(a, b) = mean over batch, i, j of (a_i . b_j)^2

    Args:
      student_maps: floats [batch, channels, height, width], a layer each. Differentiated.
      teacher_maps: as many, of any sizes and widths. Stopped.

    Returns:
      A scalar a layer.

    Raises:
      ValueError: another rank, batches or numbers of layers that differ. TypeError: maps that are
        not floats.

    Source: Huang and Wang 2017, arXiv:1707.01219.

    >>> import jax.numpy as jnp
    >>> student, teacher = (jnp.array(x).reshape(1, 1, 1, 2) for x in ([1.0, 0.0], [0.0, 1.0]))
    >>> [loss.item() for loss in nst_loss([student], [teacher])]
    [2.0]
    """
    return [
        jnp.mean(features.nst(*_pair(s, t))) for s, t in layout.layers(student_maps, teacher_maps)
    ]


def vid_loss(
    student_mean: Float[Array | ndarray, "batch channels height width"],
    teacher_maps: Float[Array | ndarray, "batch channels _ _"],
    log_scale: Float[Array | ndarray, " channels"],
    eps: Scalar = 1e-5,
) -> Loss:
    """RepDistiller's `VIDLoss` after its regressor: the mean of `vid`. Weight 1.

        L = mean 1/2 ( (mu - t)^2 / v_c + log v_c ),   v_c = log(1 + exp(a_c)) + eps

    The original pools first: the teacher's map, if that is larger, as here; the student's before
    the regressor, which is the caller's part.

    Args:
      student_mean: mu, floats [batch, channels, height, width]. Differentiated.
      teacher_maps: t, floats [batch, channels, height, width], pooled to mu's size. Stopped.
      log_scale: a, floats [channels]. Differentiated.
      eps: scalar > 0, may be traced.

    Returns:
      Scalar.

    Raises:
      ValueError: shapes that do not match, a teacher's map smaller than mu, eps <= 0. TypeError:
        arrays that are not floats.

    Source: Ahn et al. 2019, arXiv:1904.05835.

    >>> import jax.numpy as jnp
    >>> maps, log_scale = jnp.ones((1, 3, 2, 2)), jnp.log(jnp.expm1(jnp.full(3, 5.0 - 1e-5)))
    >>> print(f"{vid_loss(maps, maps, log_scale):.4f}")
    0.8047
    """
    mean, teacher = _pair(student_mean, teacher_maps)
    size = tuple(min(a, b) for a, b in zip(mean.shape[1:3], teacher.shape[1:3]))
    teacher = adaptive_average_pool(teacher, size)
    return jnp.mean(features.vid(mean, teacher, log_scale, minimum_variance=eps))


def factor_transfer(student_factors: Maps, teacher_factors: Maps, p1: int = 2, p2: int = 1) -> Loss:
    """RepDistiller's `FactorTransfer`: the mean of `factor_transfer`. Weight 200.

        L = mean over batch and positions of |Q_s - Q_t|^p2,   Q as in `attention`, with p1 for p

    Args:
      student_factors: the translator's output, floats [batch, channels, height, width].
        Differentiated.
      teacher_factors: the paraphraser's, floats [batch, channels, height, width]. Stopped.
      p1: integer >= 1.
      p2: 1 or 2.

    Returns:
      Scalar.

    Raises:
      ValueError: another rank, batches that differ, p1 < 1, another p2. TypeError: arrays that
        are not floats.

    Source: Kim et al. 2018, arXiv:1802.04977.

    >>> import jax.numpy as jnp
    >>> teacher = jnp.array([1.0, 0.0, 0.0, 0.0]).reshape(1, 1, 2, 2)
    >>> factor_transfer(jnp.ones((1, 1, 2, 2)), teacher).item()
    0.5
    """
    student, teacher = _pair(student_factors, teacher_factors)
    return jnp.mean(features.factor_transfer(student, teacher, power=p1, order=p2))


def fsp(student_maps: Sequence[Maps], teacher_maps: Sequence[Maps]) -> list[Loss]:
    """RepDistiller's `FSP`: the mean of `fsp` of every two layers that follow one another.

        L = mean over batch, j, i of (G^s_ji - G^t_ji)^2
        G_ji = mean over the positions of top_j bottom_i

    Weight 50, in a stage of its own.

    Args:
      student_maps: floats [batch, channels, height, width], a layer each. Differentiated.
      teacher_maps: as many, of the same widths. Stopped.

    Returns:
      A scalar a pair of layers: one less than there are layers.

    Raises:
      ValueError: another rank, batches, widths or numbers of layers that differ. TypeError: maps
        that are not floats.

    Source: Yim et al. 2017 (CVPR, a gift from knowledge distillation).

    >>> import jax.numpy as jnp
    >>> ones = jnp.ones((1, 1, 2, 2))
    >>> [loss.item() for loss in fsp([ones, 3 * ones], [ones, ones])]
    [4.0]
    """
    pairs = [_pair(s, t) for s, t in layout.layers(student_maps, teacher_maps)]
    return [
        jnp.mean(features.fsp(student_bottom, student_top, teacher_bottom, teacher_top))
        for (student_bottom, teacher_bottom), (student_top, teacher_top) in pairwise(pairs)
    ]


def ab_loss(
    student_maps: Sequence[Maps], teacher_maps: Sequence[Maps], margin: Scalar = 1.0
) -> list[Loss]:
    """RepDistiller's `ABLoss`: the mean of `activation_boundary` of layers, weighed.

        L_i = 3/1000 2^(i - n + 1) / B  sum  (s + m)^2 [s > -m and t <= 0]
                                             + (s - m)^2 [s <= m and t > 0]

    for layer i = 0 .. n - 1, the sum over the batch and all entries. Trained alone, in a stage of
    its own.

    Args:
      student_maps: before the ReLU, floats [batch, channels, height, width], a layer each.
        Differentiated.
      teacher_maps: as many, of the same shapes. Stopped.
      margin: m, scalar >= 0, may be traced.

    Returns:
      A scalar a layer.

    Raises:
      ValueError: shapes or numbers of layers that differ, margin < 0. TypeError: maps that are not
        floats.

    Source: Heo et al. 2019, arXiv:1811.03233.

    >>> import jax.numpy as jnp
    >>> student, teacher = jnp.full((1, 1, 1, 1), 0.5), -jnp.ones((1, 1, 1, 1))
    >>> [f"{loss:.6f}" for loss in ab_loss([student] * 2, [teacher] * 2)]
    ['0.003375', '0.006750']
    """
    pairs = layout.layers(student_maps, teacher_maps)
    return [
        3
        / 1000
        * 2.0 ** (layer - len(pairs) + 1)
        * jnp.mean(preactivations.activation_boundary(*_pair(s, t), margin=margin))
        for layer, (s, t) in enumerate(pairs)
    ]


def _pair(student_maps: Maps, teacher_maps: Maps) -> tuple[Array, Array]:
    return layout.channels_last(student_maps=student_maps, teacher_maps=teacher_maps)
