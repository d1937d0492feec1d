"""Small networks between a student's features and a teacher's, which feature losses need.

They train with the student's optimizer and are dropped afterwards, but for SimKD's, which becomes
part of the student. Maps are channels-last, [batch, height, width, channels]; neither side need be
square. Convolutions, biases and starting values are those of the published code; where two codes
differ it is the benchmark's (Tian et al. 2020, arXiv:1910.10699).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from kdjax.networks.initializers import linear_bias, linear_kernel
from kdjax.networks.resnet import conv1x1


class ConvRegressor(nn.Module):
    """A student's map in the shape of a teacher's: convolution, batch normalisation, ReLU.

    For each side of the map on its own: half as long, a kernel of 3 with stride 2 and padding 1;
    twice as long, a transposed kernel of 4 with stride 2 and padding 1; shorter or equal otherwise,
    a kernel of 1 + (student - teacher) without padding. FitNets' regressor; without the ReLU the
    connector of activation boundaries.

    Attributes:
      size: (height, width) of the teacher's map.
      channels: of the teacher's map.
      relu: False: no ReLU at the end.
      identity: True: nothing at all where the student's map has the shape already, as activation
        boundaries have it.

    Raises:
      ValueError: a side of the student's map that is shorter than the teacher's, but not half.
    """

    size: tuple[int, int]
    channels: int
    relu: bool = True
    identity: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """`[B, H, W, C] -> [B, *size, channels]`."""
        target = (*self.size, self.channels)
        if self.identity and x.shape[1:] == target:
            return x
        sides = []
        for student, teacher in zip(x.shape[1:3], self.size):
            if student == 2 * teacher:
                sides.append((3, 2, (1, 1), 1))
            elif 2 * student == teacher:
                # A transposed convolution is one of a map with zeros between its entries.
                sides.append((4, 1, (2, 2), 2))
            elif student >= teacher:
                sides.append((1 + student - teacher, 1, (0, 0), 1))
            else:
                raise ValueError(
                    f"a regressor cannot bring a student's map of shape {x.shape[1:]} to the "
                    f"teacher's {target}: a side must be at least as long, or half as long"
                )
        kernel, strides, padding, dilation = zip(*sides)
        conv = nn.Conv(
            self.channels,
            kernel,
            strides=strides,
            padding=padding,
            input_dilation=dilation,
            kernel_init=linear_kernel,
            bias_init=linear_bias(math.prod(kernel) * x.shape[-1]),
            name="conv",
        )
        x = _norm(train, "norm")(conv(x))
        return nn.relu(x) if self.relu else x


class VIDHead(nn.Module):
    """VID's Gaussian: three 1x1 convolutions for the mean, one number a channel for the variance.

    Attributes:
      channels: of the teacher's map, and of the layers between.
      initial_variance: at the start, of every channel.
      minimum_variance: what the loss adds to softplus(log_scale).
    """

    channels: int
    initial_variance: float = 5.0
    minimum_variance: float = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """`[B, H, W, C] -> (mean [B, H, W, channels], log_scale [channels])`."""
        for i in (1, 2, 3):
            x = nn.Conv(
                self.channels, (1, 1), use_bias=False, kernel_init=linear_kernel, name=f"conv{i}"
            )(x)
            x = nn.relu(x) if i < 3 else x
        start = math.log(math.expm1(self.initial_variance - self.minimum_variance))
        log_scale = self.param("log_scale", nn.initializers.constant(start), (self.channels,))
        return x, log_scale


class FactorEncoder(nn.Module):
    """Three 3x3 convolutions with LeakyReLU 0.1: `[B, H, W, C] -> [B, H, W, widths[-1]]`.

    Attributes:
      widths: of the three convolutions.
      normalized: with batch normalisation before each LeakyReLU.
    """

    widths: tuple[int, int, int]
    normalized: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        for i, width in enumerate(self.widths, start=1):
            x = nn.Conv(
                width,
                (3, 3),
                padding=1,
                kernel_init=linear_kernel,
                bias_init=linear_bias(9 * x.shape[-1]),
                name=f"conv{i}",
            )(x)
            x = _norm(train, f"norm{i}")(x) if self.normalized else x
            x = nn.leaky_relu(x, 0.1)
        return x


class Paraphraser(nn.Module):
    """Factor transfer's autoencoder of a teacher's map, trained to reconstruct it, then frozen.

    The benchmark's: the decoder's transposed convolutions of stride 1 are convolutions, and the
    last LeakyReLU stays, so that a map after a ReLU can be reconstructed.

    Attributes:
      rate: factors a channel of the teacher's map (the paper's k).
      normalized: with batch normalisation.
    """

    rate: float = 0.5
    normalized: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> tuple[jax.Array, jax.Array]:
        """`[B, H, W, C] -> (factors [B, H, W, rate * C], reconstruction [B, H, W, C])`."""
        channels = x.shape[-1]
        factors = _num_factors(self.rate, channels)
        encode = FactorEncoder((channels, factors, factors), self.normalized, name="encoder")
        decode = FactorEncoder((factors, channels, channels), self.normalized, name="decoder")
        x = encode(x, train)
        return x, decode(x, train)


class Translator(nn.Module):
    """Factor transfer's encoder of a student's map, in as many factors as the paraphraser has.

    Attributes:
      teacher_channels: of the map that the paraphraser reads.
      rate: that of the paraphraser.
      normalized: with batch normalisation.
    """

    teacher_channels: int
    rate: float = 0.5
    normalized: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """`[B, H, W, C] -> [B, H, W, rate * teacher_channels]`."""
        factors = _num_factors(self.rate, self.teacher_channels)
        widths = (x.shape[-1], factors, factors)
        return FactorEncoder(widths, self.normalized, name="encoder")(x, train)


class OFDConnector(nn.Module):
    """OFD's connector: a 1x1 convolution without bias and batch normalisation, no ReLU.

    Attributes:
      channels: of the teacher's map.
    """

    channels: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """`[B, H, W, C] -> [B, H, W, channels]`."""
        return _norm(train, "norm")(conv1x1(self.channels, 1, "conv")(x))


class ABF(nn.Module):
    """ReviewKD's attention-based fusion of a level with what was fused of the deeper ones.

        x = norm1(conv1(x));   x = a1 x + a2 y,   (a1, a2) = sigmoid(attention([x, y]))
        output = norm2(conv2(x)),   residual = x

    with y the residual of the deeper level. Residuals are resized by repeating the nearest entry.

    Attributes:
      width: of the fused maps, the same at every level.
      channels: of the output.
    """

    width: int
    channels: int

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        residual: jax.Array | None = None,
        size: tuple[int, int] | None = None,
        train: bool = False,
    ) -> tuple[jax.Array, jax.Array]:
        """The output and the residual for the next level.

        Args:
          x: the student's map, `[B, H, W, C]`.
          residual: `[B, h, w, width]`; None at the deepest level.
          size: (height, width) of the results; None: that of x.
          train: whether batch statistics are used and updated.

        Returns:
          `([B, *size, channels], [B, *size, width])`.
        """
        start = nn.initializers.variance_scaling(1.0, "fan_in", "uniform")
        x = nn.Conv(self.width, (1, 1), use_bias=False, kernel_init=start, name="conv1")(x)
        x = _norm(train, "norm1")(x)
        if residual is not None:
            residual = _nearest(residual, x.shape[1:3])
            attention = nn.Conv(
                2,
                (1, 1),
                kernel_init=linear_kernel,
                bias_init=linear_bias(2 * self.width),
                name="attention",
            )
            weights = nn.sigmoid(attention(jnp.concatenate([x, residual], axis=-1)))
            x = x * weights[..., :1] + residual * weights[..., 1:]
        x = _nearest(x, x.shape[1:3] if size is None else size)
        conv2 = nn.Conv(
            self.channels, (3, 3), padding=1, use_bias=False, kernel_init=start, name="conv2"
        )
        return _norm(train, "norm2")(conv2(x)), x


class ReviewFusion(nn.Module):
    """ReviewKD's chain of `ABF`, from the deepest level to the shallowest.

    Attributes:
      channels: of the teacher's maps, from shallow to deep.
      sizes: (height, width) of the teacher's maps, from shallow to deep.
      max_width: the fused maps are as wide as the student's deepest, at most this.

    Raises:
      ValueError: numbers of levels that differ.
    """

    channels: tuple[int, ...]
    sizes: tuple[tuple[int, int], ...]
    max_width: int = 512

    @nn.compact
    def __call__(self, features: Sequence[jax.Array], train: bool = False) -> list[jax.Array]:
        """The student's maps, from shallow to deep, in the shapes of the teacher's.

        Args:
          features: a map `[B, H, W, C]` a level; the pooled features are one of size (1, 1).
          train: whether batch statistics are used and updated.

        Returns:
          A map `[B, *sizes[i], channels[i]]` a level.
        """
        if not len(features) == len(self.channels) == len(self.sizes):
            raise ValueError(
                f"features, channels and sizes must tell of the same levels, got {len(features)}, "
                f"{len(self.channels)} and {len(self.sizes)}"
            )
        width = min(self.max_width, features[-1].shape[-1])
        outputs, residual = [], None
        for i in reversed(range(len(features))):
            level = ABF(width, self.channels[i], name=f"level{i}")
            output, residual = level(features[i], residual, self.sizes[i], train)
            outputs.insert(0, output)
        return outputs


class SemCKDAttention(nn.Module):
    """SemCKD's attention of student layers over teacher layers, from their similarities.

        query_i = unit(MLP_i(row of F F^T)),   attention_bij = softmax_j(query_bi . key_bj / T)

    with F the features of layer i, flattened: an example is described by its products with all the
    examples of the batch, so that THE BATCH SIZE IS PART OF THE WEIGHTS: it must not change. No
    gradient reaches the teacher's features.

    Attributes:
      temperature: T.
      reduction: queries and keys are batch // reduction wide.

    Raises:
      ValueError: a batch smaller than `reduction`, batches that differ, no layers.
    """

    temperature: float = 1.0
    reduction: int = 4

    @nn.compact
    def __call__(
        self, student_features: Sequence[jax.Array], teacher_features: Sequence[jax.Array]
    ) -> jax.Array:
        """`S` maps `[B, ...]` and `T` maps `[B, ...] -> [B, S, T]`."""
        sizes = {len(maps) for maps in (*student_features, *teacher_features)}
        if len(sizes) != 1 or not (student_features and teacher_features):
            raise ValueError(f"the attention needs layers of one batch, got batches {sizes}")
        (batch,) = sizes
        if batch < self.reduction:
            raise ValueError(
                f"the attention needs a batch of at least reduction = {self.reduction}, got {batch}"
            )
        queries = [self._embed(x, f"query{i}") for i, x in enumerate(student_features)]
        keys = [
            self._embed(jax.lax.stop_gradient(x), f"key{j}") for j, x in enumerate(teacher_features)
        ]
        products = jnp.einsum(
            "bsd,btd->bst",
            jnp.stack(queries, axis=1),
            jnp.stack(keys, axis=1),
            precision=jax.lax.Precision.HIGHEST,
        )
        return nn.softmax(products / self.temperature, axis=-1)

    def _embed(self, features: jax.Array, name: str) -> jax.Array:
        batch = len(features)
        width = batch // self.reduction
        features = features.reshape(batch, -1)
        x = jnp.matmul(features, features.T, precision=jax.lax.Precision.HIGHEST)
        x = nn.relu(_dense(2 * width, batch, f"{name}_hidden")(x))
        return _unit(_dense(width, 2 * width, name)(x))


class SemCKDProjector(nn.Module):
    """SemCKD's values: 1x1, 3x3 and 1x1 convolutions to a teacher layer's channels.

    Batch normalisation and ReLU follow the first two, which are twice as wide as the last. One a
    pair of layers; the larger of the two maps is pooled to the smaller before.

    Attributes:
      channels: of the teacher's map.
    """

    channels: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """`[B, H, W, C] -> [B, H, W, channels]`."""
        x = nn.relu(_norm(train, "norm1")(_conv(2 * self.channels, 1, "conv1")(x)))
        x = nn.relu(_norm(train, "norm2")(_conv(2 * self.channels, 3, "conv2")(x)))
        return _conv(self.channels, 1, "conv3")(x)


class SimKDProjector(nn.Module):
    """SimKD's projector, after which the teacher's own classifier reads the student's features.

    1x1, 3x3 and 1x1 convolutions without bias, each with batch normalisation and ReLU; kept in the
    student. The larger of the two maps is pooled to the smaller before; the student's logits are
    the teacher's classifier of the output's mean over the positions.

    Attributes:
      channels: of the teacher's map.
      reduction: the first two convolutions are channels // reduction wide.
    """

    channels: int
    reduction: int = 2

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """`[B, H, W, C] -> [B, H, W, channels]`."""
        narrow = self.channels // self.reduction
        for i, (width, kernel) in enumerate(((narrow, 1), (narrow, 3), (self.channels, 1)), 1):
            x = nn.relu(_norm(train, f"norm{i}")(_conv(width, kernel, f"conv{i}")(x)))
        return x


class SRRLProjector(nn.Module):
    """SRRL's connector of pooled features: linear without bias, batch normalisation, ReLU.

    Attributes:
      width: of the teacher's pooled features.
    """

    width: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """`[B, D] -> [B, width]`."""
        if train and x.shape[0] == 1:
            raise ValueError("SRRLProjector normalises over the batch: it cannot train on one of 1")
        x = nn.Dense(self.width, use_bias=False, kernel_init=linear_kernel, name="linear")(x)
        return nn.relu(_norm(train, "norm")(x))


class LinearEmbedding(nn.Module):
    """The embedding of contrastive and correlation losses: linear, of unit length or not.

    Attributes:
      width: of the embedding.
      normalized: to unit length (CRD) or not (correlation congruence).
      use_bias: TRG's projections of tokens have none.
    """

    width: int = 128
    normalized: bool = True
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[B, ...] -> [B, width]`; all axes but the first are flattened."""
        x = x.reshape(len(x), -1)
        x = _dense(self.width, x.shape[-1], "linear", self.use_bias)(x)
        return _unit(x) if self.normalized else x


def _num_factors(rate: float, channels: int) -> int:
    factors = int(rate * channels)
    if factors < 1:
        raise ValueError(f"a rate of {rate} leaves no factor of {channels} channels")
    return factors


def _dense(width: int, fan_in: int, name: str, use_bias: bool = True) -> nn.Dense:
    return nn.Dense(
        width,
        use_bias=use_bias,
        kernel_init=linear_kernel,
        bias_init=linear_bias(fan_in),
        name=name,
    )


def _conv(width: int, kernel: int, name: str) -> nn.Conv:
    return nn.Conv(
        width,
        (kernel, kernel),
        padding=kernel // 2,
        use_bias=False,
        kernel_init=linear_kernel,
        name=name,
    )


def _norm(train: bool, name: str) -> nn.BatchNorm:
    """As in the networks, but with the variance from the centred values: batches are small here."""
    return nn.BatchNorm(
        use_running_average=not train,
        momentum=0.9,
        epsilon=1e-5,
        use_fast_variance=False,
        name=name,
    )


def _nearest(x: jax.Array, size: tuple[int, int]) -> jax.Array:
    """`[B, H, W, C]` in another size: entry i of m is entry floor(i n / m) of n."""
    for axis, length in ((1, size[0]), (2, size[1])):
        if x.shape[axis] != length:
            x = jnp.take(x, jnp.arange(length) * x.shape[axis] // length, axis=axis)
    return x


def _unit(x: jax.Array) -> jax.Array:
    """x / |x|_2 over the last axis; zeros stay zero and have no gradient."""
    square = jnp.sum(x**2, axis=-1, keepdims=True)
    zero = square == 0
    return jnp.where(zero, 0.0, x / jnp.sqrt(jnp.where(zero, 1.0, square)))
