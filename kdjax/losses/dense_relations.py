"""Relations between the positions of maps: cosines of their features with one another.

    maps are [batch, height, width, channels]; student and teacher share batch, height and width

Never is a channel of the student compared with one of the teacher: the widths may differ, and a
scale of the features changes nothing, nor does a rotation of the channels (but where a maximum is
taken over a region of each channel first). Values in float32 (float64 for float64). No gradient
reaches an argument named `teacher_*`.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
from numpy import ndarray

from kdjax.losses import checks, log_space
from kdjax.losses.checks import Scalar

Maps = Float[Array | ndarray, "batch height width channels"]
TeacherMaps = Float[Array | ndarray, "batch height width teacher_channels"]


def skds_pairwise(
    student_features: Maps,
    teacher_features: TeacherMaps,
    *,
    scale: float = 0.5,
    detach_norm: bool = True,
    epsilon: float = 1e-8,
) -> Float[Array, " batch"]:
    """The pair term of structured distillation: cosines between the regions of an image.

        x^_i = x_i / (|x_i| + epsilon),   x = maximum over each region
        L = 1/n^2 sum_{ij} ( t^_i . t^_j - s^_i . s^_j )^2

    A region is int(height scale) by int(width scale) positions (the last ones may be cut off), so
    that scale 0.5 gives 2 x 2 regions. The mean over the batch is the published loss. As in the
    authors' code the norm is a constant in the gradient: the gradient then is not the slope, and
    pulls the lengths of the features too. `detach_norm=False` gives the slope. A region of zeros
    has cosine 0 and no gradient.

    Args:
      student_features: floats [batch, height, width, channels]. Differentiated.
      teacher_features: floats [batch, height, width, teacher_channels]. Stopped.
      scale: number in (0, 1], such that a region is at least one position.
      detach_norm: whether the student's norm is a constant in the gradient.
      epsilon: number >= 0.

    Returns:
      [batch], in [0, 4].

    Raises:
      ValueError: batch, height or width that differ, scale out of range, epsilon < 0.
      TypeError: features that are not floats.

    Source: Liu et al. 2019 (SKDS), arXiv:1903.04197.

    >>> import jax.numpy as jnp
    >>> student = jnp.array([[[[1.0, 0.0], [1.0, 0.0]]]])
    >>> teacher = jnp.array([[[[1.0, 0.0], [0.0, 1.0]]]])
    >>> print(f"{skds_pairwise(student, teacher, scale=1.0)[0]:.4f}")  # one region
    0.0000
    >>> student, teacher = (jnp.repeat(x, 2, axis=1) for x in (student, teacher))
    >>> print(f"{skds_pairwise(student, teacher)[0]:.4f}")
    0.5000
    """
    student, teacher = _feature_maps(student_features, teacher_features)
    checks.not_negative(epsilon=epsilon)
    height, width = student.shape[1:3]
    region = int(height * scale), int(width * scale)
    if not 0 < scale <= 1 or min(region) < 1:
        raise ValueError(
            f"scale must lie in (0, 1] with regions of at least one position, "
            f"got {scale} for maps of {height} x {width}"
        )
    student, teacher = (_max_pool(x, *region) for x in (student, teacher))
    student = _unit(student, epsilon=epsilon, detach_norm=detach_norm)
    return _gram_gap(student, _unit(teacher, epsilon=epsilon))


def pairwise_similarity_kd(
    student_features: Maps, teacher_features: TeacherMaps
) -> Float[Array, " batch"]:
    """Cosines between the positions of an image, after 2 x 2 max pooling.

        L = 1/n^2 sum_{ij} ( cos(t_i, t_j) - cos(s_i, s_j) )^2

    `skds_pairwise` as CIRKD compares it: regions of 2 x 2 (cut off at the edge), no epsilon, and
    the gradient passes through the norm. The mean over the batch is the published loss. A vector of
    zeros has cosine 0 and no gradient.

    Args:
      student_features: floats [batch, height, width, channels]. Differentiated.
      teacher_features: floats [batch, height, width, teacher_channels]. Stopped.

    Returns:
      [batch], in [0, 4].

    Raises:
      ValueError: batch, height or width that differ. TypeError: features that are not floats.

    Source: Yang et al. 2022 (CIRKD), arXiv:2204.06986; Liu et al. 2019, arXiv:1903.04197.

    >>> import jax.numpy as jnp
    >>> student, teacher = jnp.zeros((1, 2, 4, 2)), jnp.zeros((1, 2, 4, 2))
    >>> student = student.at[..., 0].set(1.0)
    >>> teacher = teacher.at[:, :, :2, 0].set(1.0).at[:, :, 2:, 1].set(1.0)
    >>> print(f"{pairwise_similarity_kd(student, teacher)[0]:.4f}")
    0.5000
    """
    student, teacher = _feature_maps(student_features, teacher_features)
    return _gram_gap(*(_unit(_max_pool(x, 2, 2)) for x in (student, teacher)))


def cross_image_relation_kd(
    student_features: Maps,
    teacher_features: TeacherMaps,
    *,
    temperature: Scalar = 0.1,
    where: Bool[Array | ndarray, " batch"] | None = None,
    max_positions: int = 4096,
) -> Float[Array, " batch"]:
    """CIRKD in a batch: how the pixels of one image resemble those of every other.

        S_ij = s^_i s^_j^T,   x^ = x / |x|         cosines of all pixels of image i with those of j
        L_i = mean_j mean_rows KL( softmax(T_ij / T) || softmax(S_ij / T) )

    with i = j among the pairs and no T^2. The mean over the batch is the published loss; an image
    depends on the others (micro-batches are another loss). The relations are (batch height
    width)^2 numbers: pool the maps first (the authors average over 4 x 4 from size 256 on).

    Args:
      student_features: floats [batch, height, width, channels]. Differentiated.
      teacher_features: floats [batch, height, width, teacher_channels]. Stopped.
      temperature: scalar > 0, may be traced.
      where: booleans [batch]; False images take no part.
      max_positions: the largest height times width that is accepted.

    Returns:
      [batch], >= 0.

    Raises:
      ValueError: batch, height or width that differ, temperature <= 0, too many positions.
      TypeError: features that are not floats, where that is not boolean.

    Source: Yang et al. 2022 (CIRKD), arXiv:2204.06986.

    >>> import jax.numpy as jnp
    >>> student = jnp.array([[[[1.0, 0.0], [1.0, 0.0]]]])
    >>> teacher = jnp.array([[[[1.0, 0.0], [0.0, 1.0]]]])
    >>> print(f"{cross_image_relation_kd(student, teacher, temperature=1.0)[0]:.4f}")
    0.1109
    """
    student, teacher = _feature_maps(student_features, teacher_features)
    checks.positive(temperature=temperature)
    batch, height, width = student.shape[:3]
    if height * width > max_positions:
        raise ValueError(
            f"student_features must have at most max_positions = {max_positions} positions (the "
            f"relations are their square: pool the maps first), got {height} x {width}"
        )
    if where is None:
        where = jnp.ones(batch, bool)
    where = checks.boolean("where", where, (batch,), "the batch")
    kept = where[:, None, None, None]
    student, teacher = (_unit(_flat(jnp.where(kept, x, 0.0))) for x in (student, teacher))

    def log_relations(units: Array) -> Array:
        cosines = jnp.einsum("inc,jmc->ijnm", units, units, precision=jax.lax.Precision.HIGHEST)
        return jax.nn.log_softmax(cosines / temperature, axis=-1)

    of_pairs = jnp.mean(log_space.kl(log_relations(teacher), log_relations(student)), axis=-1)
    of_pairs = jnp.where(where[:, None] & where, of_pairs, 0.0)
    return jnp.sum(of_pairs, axis=1) / jnp.maximum(jnp.sum(where), 1)


def intra_class_feature_variation(
    student_features: Maps,
    teacher_features: TeacherMaps,
    labels: Int[Array | ndarray, "batch label_height label_width"],
    *,
    num_classes: int,
) -> Float[Array, "batch height width"]:
    """Intra-class feature variation (IFVD): how far each pixel is from the centre of its class.

        v_i = cos(f_i, mean of f over the pixels of i's class in the image)
        L_i = ( v_i(s) - v_i(t) )^2

    The labels are resized to the maps by nearest neighbour, index floor(i size / size of the map).
    A pixel whose label is no class is 0. The mean over all pixels, those among them, is the
    published loss.

    Args:
      student_features: floats [batch, height, width, channels]. Differentiated, through the centres
        too.
      teacher_features: floats [batch, height, width, teacher_channels]. Stopped.
      labels: integers [batch, label_height, label_width]. Outside [0, num_classes): loss 0,
        gradient 0.
      num_classes: integer >= 1.

    Returns:
      [batch, height, width], in [0, 4].

    Raises:
      ValueError: batch, height or width that differ, labels that are not [batch, height, width],
        num_classes < 1. TypeError: features that are not floats, labels that are not integers.

    Source: Wang et al. 2020 (IFVD).

    >>> import jax.numpy as jnp
    >>> student = jnp.array([[[[1.0, 0.0], [1.0, 0.0]]]])
    >>> teacher = jnp.array([[[[1.0, 0.0], [0.0, 1.0]]]])  # each at 45 degrees from the centre
    >>> labels = jnp.array([[[0, 0]]])
    >>> loss = intra_class_feature_variation(student, teacher, labels, num_classes=2)
    >>> print(f"{loss[0, 0, 0]:.6f}")  # (1 - 0.707107)^2
    0.085786
    """
    student, teacher = _feature_maps(student_features, teacher_features)
    checks.count(1, num_classes=num_classes)
    labels = checks.integers("labels", labels, None, "")
    batch, height, width = student.shape[:3]
    sizes = {"batch": (batch, "student_features")}
    checks.axis_shapes("labels", labels, "batch label_height label_width", sizes)
    rows = jnp.arange(height) * labels.shape[1] // height
    columns = jnp.arange(width) * labels.shape[2] // width
    labels = labels[:, rows[:, None], columns].reshape(batch, -1)
    valid = checks.valid_labels(labels, num_classes)[..., None]
    members = valid & (labels[..., None] == jnp.arange(num_classes))

    def variation(maps: Array) -> Array:
        features = jnp.where(valid, _flat(maps), 0.0)
        is_member = members.astype(features.dtype)
        # A cosine does not see that a sum is not divided by the number of its terms; divided, it
        # cannot overflow.
        share = is_member / jnp.maximum(jnp.sum(is_member, axis=1, keepdims=True), 1)
        centres = jnp.einsum("bnk,bnc->bkc", share, features, precision=jax.lax.Precision.HIGHEST)
        own = jnp.einsum("bnk,bkc->bnc", is_member, centres, precision=jax.lax.Precision.HIGHEST)
        return jnp.sum(_unit(features) * _unit(own), axis=-1)

    squared = (variation(student) - variation(teacher)) ** 2
    return squared.reshape(batch, height, width)


def _feature_maps(student_features: Maps, teacher_features: TeacherMaps) -> tuple[Array, Array]:
    student, teacher = checks.shaped(
        {
            "student_features": "batch height width channels",
            "teacher_features": "batch height width teacher_channels",
        },
        student_features=student_features,
        teacher_features=teacher_features,
    )
    return student, jax.lax.stop_gradient(teacher)


def _flat(maps: Array) -> Array:
    """[batch, height, width, channels] -> [batch, positions, channels]."""
    return maps.reshape(maps.shape[0], -1, maps.shape[-1])


def _max_pool(maps: Array, rows: int, columns: int) -> Array:
    """Maxima over regions that do not overlap; the last ones may be cut off by the edge."""
    missing = -maps.shape[1] % rows, -maps.shape[2] % columns
    padding = [(0, 0), (0, missing[0]), (0, missing[1]), (0, 0)]
    padded = jnp.pad(maps, padding, constant_values=-jnp.inf)
    batch, height, width, channels = padded.shape
    blocks = (batch, height // rows, rows, width // columns, columns, channels)
    return jnp.max(padded.reshape(blocks), axis=(2, 4))


def _unit(features: Array, *, epsilon: float = 0.0, detach_norm: bool = False) -> Array:
    """Rows of length 1; a row of zeros stays one, and has no gradient."""
    squared = jnp.sum(features**2, axis=-1, keepdims=True)
    empty = squared == 0
    norm = jnp.sqrt(jnp.where(empty, 1.0, squared)) + epsilon
    if detach_norm:
        norm = jax.lax.stop_gradient(norm)
    return jnp.where(empty, 0.0, features / norm)


def _gram_gap(student: Array, teacher: Array) -> Array:
    """The mean squared difference of the Gram matrices of the positions: one an image."""

    def gram(units: Array) -> Array:
        flat = _flat(units)
        return jnp.einsum("bnc,bmc->bnm", flat, flat, precision=jax.lax.Precision.HIGHEST)

    return jnp.mean((gram(teacher) - gram(student)) ** 2, axis=(1, 2))
