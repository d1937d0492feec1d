"""Losses that compare a student's feature maps with a teacher's.

Maps are channels-last, [batch, height, width, channels]. Unreduced: one value an example, [batch],
whose mean over the batch is the published loss. Values in float32, or float64 for float64. No
gradient reaches an argument named `teacher_*`. Where two maps may differ in size, the larger is
pooled to the smaller (`match_spatial`); the networks that make widths agree are in
`kdjax.networks.projectors`.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from kdjax.losses import checks
from kdjax.losses.checks import Scalar
from kdjax.losses.pooling import match_spatial

Features = Float[Array | np.ndarray, "batch *positions channels"]
StudentMaps = Float[Array | np.ndarray, "batch student_height student_width student_channels"]
TeacherMaps = Float[Array | np.ndarray, "batch teacher_height teacher_width teacher_channels"]
BottomMaps = Float[Array | np.ndarray, "batch bottom_height bottom_width bottom_channels"]
TopMaps = Float[Array | np.ndarray, "batch top_height top_width top_channels"]
Losses = Float[Array, " batch"]

STUDENT_MAPS = "batch student_height student_width student_channels"
TEACHER_MAPS = "batch teacher_height teacher_width teacher_channels"


def hint(student_features: Features, teacher_features: Features) -> Losses:
    """FitNets' hint: the mean square difference of features.

        L = mean (s - t)^2      over all positions and channels of an example

    The student's features come through a regressor that gives them the teacher's shape (kept out
    of here: `ConvRegressor`). The caller's mean over the batch is the loss that the benchmarks
    weigh with 100. The paper has half the sum: multiply by the number of entries / 2.

    With the output of a SimKD projector for the student, this is SimKD's loss (`simkd`), which is
    all that SimKD trains on.

    Args:
      student_features: floats [batch, ..., channels]. Differentiated.
      teacher_features: floats [batch, ..., channels], of the same shape. Stopped.

    Returns:
      [batch], >= 0.

    Raises:
      ValueError: shapes that differ, less than two axes. TypeError: arrays that are not floats.

    Source: Romero et al. 2015, arXiv:1412.6550; Chen et al. 2022 (SimKD), arXiv:2203.14001.

    >>> import jax.numpy as jnp
    >>> hint(jnp.array([[1.0, 2.0]]), jnp.array([[1.0, 4.0]])).tolist()
    [2.0]
    """
    student, teacher = _same_shape(student_features, teacher_features)
    return jnp.mean((student - teacher) ** 2, axis=tuple(range(1, student.ndim)))


simkd = hint


def srrl(
    student_features: Float[Array | np.ndarray, "batch features"],
    teacher_features: Float[Array | np.ndarray, "batch features"],
    student_logits: Float[Array | np.ndarray, "batch classes"],
    teacher_logits: Float[Array | np.ndarray, "batch classes"],
) -> Losses:
    """SRRL: the student's features must do well in the teacher's own classifier.

        L = mean_d (h_d - t_d)^2 + mean_c ((W h + b)_c - z_c)^2

    with h the student's pooled features, brought to the teacher's width by a small network
    (`SRRLProjector`), t and z the teacher's features and logits, and W, b the teacher's classifier,
    frozen: the gradient passes through it to h. The caller's mean over the batch is the published
    loss, weighed with 1 beside the cross-entropy.

    Args:
      student_features: h, floats [batch, features]. Differentiated.
      teacher_features: t, floats [batch, features]. Stopped.
      student_logits: the teacher's classifier applied to h, floats [batch, classes].
        Differentiated.
      teacher_logits: z, floats [batch, classes]. Stopped.

    Returns:
      [batch], >= 0.

    Raises:
      ValueError: shapes that do not match. TypeError: arrays that are not floats.

    Source: Yang et al. 2021 (ICLR, softmax regression representation learning).

    >>> import jax.numpy as jnp
    >>> features, logits = jnp.array([[1.0, 3.0]]), jnp.array([[2.0, 0.0, 0.0]])
    >>> loss = srrl(features, jnp.ones((1, 2)), logits, jnp.zeros((1, 3)))
    >>> print(f"{loss[0]:.4f}")
    3.3333
    """
    features, logits = "batch features", "batch classes"
    student, teacher, prediction, target = checks.shaped(
        {
            "student_features": features,
            "teacher_features": features,
            "student_logits": logits,
            "teacher_logits": logits,
        },
        student_features=student_features,
        teacher_features=teacher_features,
        student_logits=student_logits,
        teacher_logits=teacher_logits,
    )
    teacher, target = jax.lax.stop_gradient((teacher, target))
    of_features = jnp.mean((student - teacher) ** 2, axis=-1)
    return of_features + jnp.mean((prediction - target) ** 2, axis=-1)


def attention_transfer(
    student_features: StudentMaps, teacher_features: TeacherMaps, *, power: int = 2
) -> Losses:
    """Attention transfer (AT): where both networks look.

        Q = a / |a|_2,   a = mean_c f^p  (a vector over the positions)
        L = mean over the positions of (Q_s - Q_t)^2

    Of any two widths; the larger map is pooled first. Unchanged by f -> c f, c > 0. A map of zeros
    has Q = 0 and no gradient.

    The caller's mean over the batch is the loss of RepDistiller and mdistiller, which weigh it with
    1000. The paper's |Q_s - Q_t|_2 is the root of this times the number of positions. For odd p
    the benchmarks' codes keep the sign of f, where the paper takes |f|^p; so does this. It is the
    spatial attention transfer of codes for dense prediction, too.

    Args:
      student_features: floats [batch, height, width, channels]. Differentiated.
      teacher_features: floats [batch, height, width, channels], of any size and width. Stopped.
      power: p, integer >= 1.

    Returns:
      [batch], in [0, 4 / positions].

    Raises:
      ValueError: another rank, batches that differ, power < 1. TypeError: arrays that are not
        floats, a power that is no integer.

    Source: Zagoruyko and Komodakis 2017, arXiv:1612.03928.

    >>> import jax.numpy as jnp
    >>> student = jnp.ones((1, 2, 2, 1))
    >>> teacher = jnp.array([1.0, 0.0, 0.0, 0.0]).reshape(1, 2, 2, 1)
    >>> attention_transfer(student, teacher).tolist()
    [0.25]
    """
    student, teacher = _pair(student_features, teacher_features)
    student, teacher = match_spatial(student, teacher)
    difference = _attention(student, power) - _attention(teacher, power)
    return jnp.mean(difference**2, axis=-1)


def factor_transfer(
    student_factors: StudentMaps,
    teacher_factors: TeacherMaps,
    *,
    power: int = 2,
    order: int = 1,
) -> Losses:
    """Factor transfer (FT): the attention maps of translated and paraphrased features.

        L = mean over the positions of |Q_s - Q_t|^order,   Q as in `attention_transfer`

    of the translator's output for the student and the paraphraser's for the teacher (`Translator`,
    `Paraphraser`). Order 2 is `attention_transfer`. This is the benchmark's form, whose weight is
    200; the paper normalises the factors themselves, without the mean over the channels.

    Args:
      student_factors: floats [batch, height, width, channels]. Differentiated.
      teacher_factors: floats [batch, height, width, channels], of any size and width. Stopped.
      power: p of Q, integer >= 1.
      order: 1 or 2.

    Returns:
      [batch], >= 0.

    Raises:
      ValueError: another rank, batches that differ, power < 1, another order. TypeError: arrays
        that are not floats, a power or order that is no integer.

    Source: Kim et al. 2018, arXiv:1802.04977.

    >>> import jax.numpy as jnp
    >>> student = jnp.ones((1, 2, 2, 1))
    >>> teacher = jnp.array([1.0, 0.0, 0.0, 0.0]).reshape(1, 2, 2, 1)
    >>> factor_transfer(student, teacher).tolist()
    [0.5]
    """
    student, teacher = checks.shaped(
        {"student_factors": STUDENT_MAPS, "teacher_factors": TEACHER_MAPS},
        student_factors=student_factors,
        teacher_factors=teacher_factors,
    )
    checks.count(1, 2, order=order)
    student, teacher = match_spatial(student, jax.lax.stop_gradient(teacher))
    difference = _attention(student, power) - _attention(teacher, power)
    return jnp.mean(jnp.abs(difference) if order == 1 else difference**2, axis=-1)


def fsp_matrix(
    bottom: BottomMaps, top: TopMaps
) -> Float[Array, "batch top_channels bottom_channels"]:
    """The flow of solution procedure between two layers: products of channels, averaged.

        G_ji = mean over the positions of top_j bottom_i

    Stops nothing; the larger map is pooled first. The paper's matrix is the transpose.

    Args:
      bottom: the layer nearer the input, floats [batch, height, width, channels]. Differentiated.
      top: a later layer, floats [batch, height, width, channels], of any size. Differentiated.

    Returns:
      [batch, channels of top, channels of bottom].

    Raises:
      ValueError: another rank, batches that differ. TypeError: arrays that are not floats.

    Source: Yim et al. 2017 (CVPR, a gift from knowledge distillation).

    >>> import jax.numpy as jnp
    >>> bottom = jnp.array([[1.0, 0.0], [2.0, 0.0]]).reshape(1, 1, 2, 2)
    >>> top = jnp.array([3.0, 4.0]).reshape(1, 1, 2, 1)
    >>> fsp_matrix(bottom, top).tolist()
    [[[5.5, 0.0]]]
    """
    bottom, top = checks.shaped(
        {
            "bottom": "batch bottom_height bottom_width bottom_channels",
            "top": "batch top_height top_width top_channels",
        },
        bottom=bottom,
        top=top,
    )
    bottom, top = map(_flat, match_spatial(bottom, top))
    products = jnp.einsum("bpj,bpi->bji", top, bottom, precision=jax.lax.Precision.HIGHEST)
    return products / bottom.shape[1]


def fsp(
    student_bottom: Float[Array | np.ndarray, "batch h1 w1 bottom_channels"],
    student_top: Float[Array | np.ndarray, "batch h2 w2 top_channels"],
    teacher_bottom: Float[Array | np.ndarray, "batch h3 w3 bottom_channels"],
    teacher_top: Float[Array | np.ndarray, "batch h4 w4 top_channels"],
) -> Losses:
    """FSP: the student's flow between two layers is that of the teacher.

        L = mean_ji (G_s - G_t)_ji^2,   G as in `fsp_matrix`

    Both networks must have the same widths at both layers; sizes are free. The caller's mean over
    the batch is the benchmark's loss of a pair of layers, weighed with 50 in a stage of its own.

    Args:
      student_bottom: floats [batch, height, width, bottom channels]. Differentiated.
      student_top: floats [batch, height, width, top channels]. Differentiated.
      teacher_bottom: floats [batch, height, width, bottom channels]. Stopped.
      teacher_top: floats [batch, height, width, top channels]. Stopped.

    Returns:
      [batch], >= 0.

    Raises:
      ValueError: another rank, batches or channels that differ. TypeError: arrays that are not
        floats.

    Source: Yim et al. 2017 (CVPR, a gift from knowledge distillation).

    >>> import jax.numpy as jnp
    >>> ones = jnp.ones((1, 2, 2, 1))
    >>> fsp(ones, 3 * ones, ones, ones).tolist()
    [4.0]
    """
    student_bottom, student_top, teacher_bottom, teacher_top = checks.shaped(
        {
            "student_bottom": "batch h1 w1 bottom_channels",
            "student_top": "batch h2 w2 top_channels",
            "teacher_bottom": "batch h3 w3 bottom_channels",
            "teacher_top": "batch h4 w4 top_channels",
        },
        student_bottom=student_bottom,
        student_top=student_top,
        teacher_bottom=teacher_bottom,
        teacher_top=teacher_top,
    )
    target = jax.lax.stop_gradient(fsp_matrix(teacher_bottom, teacher_top))
    return jnp.mean((fsp_matrix(student_bottom, student_top) - target) ** 2, axis=(1, 2))


def nst(student_features: StudentMaps, teacher_features: TeacherMaps) -> Losses:
    """Neuron selectivity transfer (NST): the channels of both have one distribution.

        L = k(t, t) + k(s, s) - 2 k(s, t),   k(a, b) = mean_ij (a_i . b_j)^2

    with a_i the map of channel i as a vector of unit length over the positions: the squared
    maximum mean discrepancy of the two sets of channels under the polynomial kernel of degree 2.
    Of any two widths; the larger map is pooled first. Unchanged by rescaling, by the order and by
    the sign of channels. A channel of zeros stays zero and has no gradient.

    The caller's mean over the batch is the loss of RepDistiller and mdistiller, weighed with 50.
    Codes that leave out k(t, t), a constant, have the same gradient.

    Args:
      student_features: floats [batch, height, width, channels]. Differentiated.
      teacher_features: floats [batch, height, width, channels], of any size and width. Stopped.

    Returns:
      [batch], >= 0 up to rounding.

    Raises:
      ValueError: another rank, batches that differ. TypeError: arrays that are not floats.

    Source: Huang and Wang 2017, arXiv:1707.01219.

    >>> import jax.numpy as jnp
    >>> student = jnp.array([1.0, 0.0]).reshape(1, 1, 2, 1)
    >>> teacher = jnp.array([0.0, 1.0]).reshape(1, 1, 2, 1)
    >>> nst(student, teacher).tolist()
    [2.0]
    """
    student, teacher = _pair(student_features, teacher_features)
    student, teacher = match_spatial(student, teacher)
    student, teacher = (_unit(_flat(x), axis=1) for x in (student, teacher))

    def kernel(a: Array, b: Array) -> Array:
        products = jnp.einsum("bpi,bpj->bij", a, b, precision=jax.lax.Precision.HIGHEST)
        if a is b:
            # A channel with itself is 1 whatever it holds: a gradient would be rounding alone.
            itself = jnp.eye(products.shape[-1], dtype=bool)
            products = jnp.where(itself, jax.lax.stop_gradient(products), products)
        return jnp.mean(products**2, axis=(1, 2))

    return kernel(teacher, teacher) + kernel(student, student) - 2 * kernel(student, teacher)


def vid(
    student_mean: Features,
    teacher_features: Features,
    log_scale: Float[Array | np.ndarray, " channels"],
    *,
    minimum_variance: Scalar = 1e-5,
) -> Losses:
    """Variational information distillation (VID): a Gaussian that predicts the teacher.

        L = mean 1/2 ( (mu - t)^2 / v_c + log v_c ),   v_c = log(1 + exp(a_c)) + minimum_variance

    over all positions and channels: up to a constant a lower bound of the mutual information, with
    mu the prediction from the student's features and a_c one trained number a channel (`VIDHead`
    has both; a starts where v = 5). The caller's mean over the batch is the published loss.

    Args:
      student_mean: mu, floats [batch, ..., channels]. Differentiated.
      teacher_features: t, floats [batch, ..., channels], of the same shape. Stopped.
      log_scale: a, floats [channels] (the benchmark's name: it is no logarithm). Differentiated.
      minimum_variance: scalar > 0, may be traced.

    Returns:
      [batch], >= log(minimum_variance) / 2, so that it may be negative.

    Raises:
      ValueError: shapes that do not match, minimum_variance <= 0. TypeError: arrays that are not
        floats.

    Source: Ahn et al. 2019, arXiv:1904.05835.

    >>> import jax.numpy as jnp
    >>> features = jnp.ones((1, 2, 2, 3))
    >>> log_scale = jnp.log(jnp.expm1(jnp.full(3, 5.0 - 1e-5)))
    >>> print(f"{vid(features, features, log_scale)[0]:.4f}")
    0.8047
    """
    mean, teacher, log_scale = checks.shaped(
        {
            "student_mean": "... channels",
            "teacher_features": "... channels",
            "log_scale": "channels",
        },
        student_mean=student_mean,
        teacher_features=teacher_features,
        log_scale=log_scale,
    )
    _has_batch(student_mean=mean)
    checks.positive(minimum_variance=minimum_variance)
    variance = jax.nn.softplus(log_scale) + minimum_variance
    square = (mean - jax.lax.stop_gradient(teacher)) ** 2
    return jnp.mean(0.5 * (square / variance + jnp.log(variance)), axis=tuple(range(1, mean.ndim)))


def _pair(student_features: Array, teacher_features: Array) -> tuple[Array, Array]:
    student, teacher = checks.shaped(
        {"student_features": STUDENT_MAPS, "teacher_features": TEACHER_MAPS},
        student_features=student_features,
        teacher_features=teacher_features,
    )
    return student, jax.lax.stop_gradient(teacher)


def _same_shape(student_features: Array, teacher_features: Array) -> tuple[Array, Array]:
    student, teacher = checks.shaped(
        {"student_features": "...", "teacher_features": "..."},
        student_features=student_features,
        teacher_features=teacher_features,
    )
    _has_batch(student_features=student)
    return student, jax.lax.stop_gradient(teacher)


def _has_batch(**named: Array) -> None:
    for name, array in named.items():
        if array.ndim < 2:
            raise ValueError(f"{name} must be shaped [batch, ..., channels], got {array.shape}")


def _flat(features: Array) -> Array:
    """[batch, positions, channels]."""
    return features.reshape(features.shape[0], -1, features.shape[-1])


def _attention(features: Array, power: int) -> Array:
    """The attention map Q of unit length, [batch, positions]."""
    checks.count(1, power=power)
    return _unit(jnp.mean(_scaled(_flat(features), axis=(1, 2)) ** power, axis=-1), axis=1)


def _scaled(values: Array, axis: int | tuple[int, ...]) -> Array:
    """values / their largest size, for what does not change with it: no power overflows.

    The size has no gradient: that of what does not change with it is 0.
    """
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(values), axis=axis, keepdims=True))
    return values / jnp.where(largest == 0, 1.0, largest)


def _unit(values: Array, axis: int) -> Array:
    """values / |values|_2; zeros stay zero and have no gradient."""
    square = jnp.sum(values**2, axis=axis, keepdims=True)
    zero = square == 0
    return jnp.where(zero, 0.0, values / jnp.sqrt(jnp.where(zero, 1.0, square)))
