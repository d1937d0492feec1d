"""Losses on maps with more state than a batch: relations to a memory, and a critic of whole maps.

A memory is an explicit pytree that is replaced, never changed: `enqueue_by_class` returns another.
It takes no gradient. What was not yet written takes no part anywhere. Values in float32 (float64
for float64).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, UInt32
from numpy import ndarray

from kdjax.losses import checks, log_space
from kdjax.losses.checks import Losses, Scalar
from kdjax.losses.contrastive import l2_normalize

RandomKey = Key[Array, ""] | UInt32[Array | ndarray, " words"]


class ClassMemory(NamedTuple):
    """First-in first-out queues of embeddings, one a class.

    Attributes:
      buffer: float32 [classes, slots, features]; rows of length 1 once written.
      pointer: int32 [classes], the slot that is written next.
      filled: int32 [classes], how many slots were ever written.
    """

    buffer: Float[Array, "classes slots features"]
    pointer: Int[Array, " classes"]
    filled: Int[Array, " classes"]


class ClassEmbeddings(NamedTuple):
    """Embeddings with the class of each.

    Attributes:
      embeddings: floats [items, features], of length 1, or 0 where not valid.
      labels: integers [items].
      valid: booleans [items].
    """

    embeddings: Float[Array, "items features"]
    labels: Int[Array, " items"]
    valid: Bool[Array, " items"]


def empty_memory(num_classes: int, *, num_slots: int, num_features: int) -> ClassMemory:
    """Queues in which nothing has been written.

    Args:
      num_classes: integer >= 1.
      num_slots: integer >= 1, of each class. CIRKD: 20000 for pixels, 2000 for regions.
      num_features: integer >= 1.

    Returns:
      A `ClassMemory`.

    Raises:
      ValueError: a number < 1. TypeError: one that is not an integer.

    Source: Yang et al. 2022 (CIRKD), arXiv:2204.06986.

    >>> empty_memory(2, num_slots=3, num_features=4).filled.tolist()
    [0, 0]
    """
    checks.count(1, num_classes=num_classes, num_slots=num_slots, num_features=num_features)
    counter = jnp.zeros(num_classes, jnp.int32)
    return ClassMemory(jnp.zeros((num_classes, num_slots, num_features)), counter, counter)


def enqueue_by_class(
    memory: ClassMemory,
    embeddings: Float[Array | ndarray, "items features"],
    labels: Int[Array | ndarray, " items"],
    *,
    where: Bool[Array | ndarray, " items"] | None = None,
) -> ClassMemory:
    """The memory with embeddings appended to the queues of their classes, the oldest overwritten.

    They are appended in their order, scaled to length 1, without gradient. Of more than fit into a
    queue the last remain.

    Args:
      memory: a `ClassMemory`. Stopped.
      embeddings: floats [items, features]. Stopped.
      labels: integers [items]. Outside [0, classes): not written.
      where: booleans [items]; False items are not written, nor is an embedding of zeros.

    Returns:
      The new `ClassMemory`.

    Raises:
      ValueError: shapes that do not fit. TypeError: embeddings that are not floats, labels that are
        not integers, where that is not boolean.

    Source: Yang et al. 2022 (CIRKD), arXiv:2204.06986.

    >>> import jax.numpy as jnp
    >>> memory = empty_memory(1, num_slots=2, num_features=1)
    >>> memory = enqueue_by_class(memory, jnp.array([[3.0], [-1.0], [2.0]]), jnp.array([0, 0, 0]))
    >>> memory.buffer.tolist(), memory.pointer.tolist(), memory.filled.tolist()
    ([[[1.0], [-1.0]]], [1], [2])
    """
    buffer, embeddings = checks.shaped(
        {"memory.buffer": "classes slots features", "embeddings": "items features"},
        **{"memory.buffer": memory.buffer, "embeddings": embeddings},
    )
    num_classes, num_slots, _ = buffer.shape
    labels = checks.integers("labels", labels, embeddings.shape[:1], "the items")
    where = jnp.ones(labels.shape, bool) if where is None else where
    where = checks.boolean("where", where, labels.shape, "the items")
    where &= checks.valid_labels(labels, num_classes)
    units = l2_normalize(jnp.where(where[:, None], jax.lax.stop_gradient(embeddings), 0.0))
    where &= jnp.any(units != 0, axis=-1)
    members = where[:, None] & (labels[:, None] == jnp.arange(num_classes))
    count = jnp.sum(members, axis=0)
    own = jnp.where(where, labels, 0)
    place = jnp.take_along_axis(jnp.cumsum(members, axis=0) - 1, own[:, None], axis=1)[:, 0]
    last = place >= count[own] - num_slots
    # An index past the end is dropped; the others are distinct.
    slot = jnp.where(where & last, (memory.pointer[own] + place) % num_slots, num_slots)
    written = jax.lax.stop_gradient(buffer).at[own, slot].set(units, mode="drop")
    return ClassMemory(
        written,
        ((memory.pointer + count) % num_slots).astype(jnp.int32),
        jnp.minimum(memory.filled + count, num_slots).astype(jnp.int32),
    )


def sample_memory(key: RandomKey, memory: ClassMemory, *, slots_per_class: int) -> ClassEmbeddings:
    """A random subset of what each class has in memory, without replacement.

    Args:
      key: a PRNG key.
      memory: a `ClassMemory`. Stopped.
      slots_per_class: integer from 1 to the number of slots. CIRKD: 4096 pixels, 1024 regions.

    Returns:
      `ClassEmbeddings` of classes * slots_per_class items; where a class has fewer, not valid.

    Raises:
      ValueError: slots_per_class out of range.

    Source: Yang et al. 2022 (CIRKD), arXiv:2204.06986.

    >>> import jax
    >>> import jax.numpy as jnp
    >>> memory = empty_memory(2, num_slots=3, num_features=1)
    >>> memory = enqueue_by_class(memory, jnp.ones((1, 1)), jnp.array([1]))
    >>> sample_memory(jax.random.key(0), memory, slots_per_class=2).valid.tolist()
    [False, False, True, False]
    """
    (buffer,) = checks.shaped(
        {"memory.buffer": "classes slots features"}, **{"memory.buffer": memory.buffer}
    )
    num_classes, num_slots, num_features = buffer.shape
    checks.count(1, num_slots, slots_per_class=slots_per_class)
    written = jnp.arange(num_slots) < memory.filled[:, None]
    draw = jnp.where(written, jax.random.uniform(key, written.shape), -1.0)
    draw, slots = jax.lax.top_k(draw, slots_per_class)
    valid = (draw >= 0).reshape(-1)
    embeddings = jnp.take_along_axis(buffer, slots[..., None], axis=1).reshape(-1, num_features)
    embeddings = jnp.where(valid[:, None], jax.lax.stop_gradient(embeddings), 0.0)
    return ClassEmbeddings(embeddings, jnp.repeat(jnp.arange(num_classes), slots_per_class), valid)


def region_embeddings(
    teacher_features: Float[Array | ndarray, "batch height width features"],
    labels: Int[Array | ndarray, "batch height width"],
    *,
    num_classes: int,
) -> ClassEmbeddings:
    """The mean of the pixels of each class in each image, scaled to length 1.

    Args:
      teacher_features: floats [batch, height, width, features]. Stopped.
      labels: integers [batch, height, width], of the size of the maps. Outside [0, num_classes):
        in no region.
      num_classes: integer >= 1.

    Returns:
      `ClassEmbeddings` of batch * num_classes items; not valid where an image lacks the class.

    Raises:
      ValueError: shapes that differ, num_classes < 1. TypeError: features that are not floats,
        labels that are not integers.

    Source: Yang et al. 2022 (CIRKD), arXiv:2204.06986.

    >>> import jax.numpy as jnp
    >>> features = jnp.array([[[[3.0, 0.0], [0.0, 3.0], [0.0, 9.0]]]])
    >>> regions = region_embeddings(features, jnp.array([[[0, 1, 1]]]), num_classes=3)
    >>> regions.embeddings.tolist(), regions.valid.tolist()
    ([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]], [True, True, False])
    """
    features, members = _members(teacher_features, labels, num_classes)
    share = members / jnp.maximum(jnp.sum(members, axis=1, keepdims=True), 1)
    means = jnp.einsum("bnk,bnc->bkc", share, features, precision=jax.lax.Precision.HIGHEST)
    valid = jnp.any(members, axis=1).reshape(-1)
    means = l2_normalize(means.reshape(-1, means.shape[-1]))
    return ClassEmbeddings(means, jnp.tile(jnp.arange(num_classes), features.shape[0]), valid)


def pixel_embeddings(
    key: RandomKey,
    teacher_features: Float[Array | ndarray, "batch height width features"],
    labels: Int[Array | ndarray, "batch height width"],
    *,
    num_classes: int,
    pixels_per_class: int = 16,
) -> ClassEmbeddings:
    """A few random pixels of each class of each image, scaled to length 1.

    Args:
      key: a PRNG key.
      teacher_features: floats [batch, height, width, features]. Stopped.
      labels: integers [batch, height, width], of the size of the maps. Outside [0, num_classes):
        never drawn.
      num_classes: integer >= 1.
      pixels_per_class: integer from 1 to height * width.

    Returns:
      `ClassEmbeddings` of batch * num_classes * pixels_per_class items, each pixel once; where an
      image has fewer pixels of a class, not valid.

    Raises:
      ValueError: shapes that differ, num_classes < 1, pixels_per_class out of range. TypeError:
        features that are not floats, labels that are not integers.

    Source: Yang et al. 2022 (CIRKD), arXiv:2204.06986.

    >>> import jax
    >>> import jax.numpy as jnp
    >>> features, labels = jnp.array([[[[3.0], [-3.0]]]]), jnp.array([[[0, 1]]])
    >>> pixels = pixel_embeddings(
    ...     jax.random.key(0), features, labels, num_classes=2, pixels_per_class=2
    ... )
    >>> pixels.embeddings[:, 0].tolist(), pixels.valid.tolist()
    ([1.0, 0.0, -1.0, 0.0], [True, False, True, False])
    """
    features, members = _members(teacher_features, labels, num_classes)
    batch, num_pixels, num_features = features.shape
    checks.count(1, num_pixels, pixels_per_class=pixels_per_class)
    members = jnp.swapaxes(members, 1, 2)
    draw = jnp.where(members, jax.random.uniform(key, members.shape), -1.0)
    draw, pixels = jax.lax.top_k(draw, pixels_per_class)
    valid = (draw >= 0).reshape(-1)
    chosen = jnp.take_along_axis(features, pixels.reshape(batch, -1, 1), axis=1)
    chosen = l2_normalize(jnp.where(valid[:, None], chosen.reshape(-1, num_features), 0.0))
    classes = jnp.tile(jnp.repeat(jnp.arange(num_classes), pixels_per_class), batch)
    return ClassEmbeddings(chosen, classes, valid)


def memory_relation_kd(
    student_embeddings: Float[Array | ndarray, "*anchors features"],
    teacher_embeddings: Float[Array | ndarray, "*anchors features"],
    memory_embeddings: Float[Array | ndarray, "items features"],
    memory_valid: Bool[Array | ndarray, " items"],
    *,
    temperature: Scalar = 0.1,
    where: Bool[Array | ndarray, "*anchors"] | None = None,
) -> Losses:
    """CIRKD to a memory: how a pixel resembles what the teacher saw in other images.

        p = softmax(t^ m / T),  q = softmax(s^ m / T),  x^ = x / |x|     over the items m in memory
        L = KL(p || q)

    No T^2. Student and teacher compare themselves with the same items, so the student's embeddings
    must have the teacher's width (the authors project them by two 1x1 convolutions). Anchors
    are the labelled pixels; their mean is the published loss.

    Args:
      student_embeddings: floats [..., features]. Differentiated.
      teacher_embeddings: floats [..., features]. Stopped.
      memory_embeddings: floats [items, features], of length 1; see `sample_memory`. Stopped.
      memory_valid: booleans [items]; False items take no part. All False: 0.
      temperature: scalar > 0, may be traced.
      where: booleans [...]; False anchors are 0.

    Returns:
      [...], >= 0.

    Raises:
      ValueError: shapes that do not fit, temperature <= 0. TypeError: embeddings that are not
        floats, masks that are not boolean.

    Source: Yang et al. 2022 (CIRKD), arXiv:2204.06986.

    >>> import jax.numpy as jnp
    >>> student, teacher = jnp.array([0.0, 2.0]), jnp.array([3.0, 0.0])
    >>> loss = memory_relation_kd(student, teacher, jnp.eye(2), jnp.array([True, True]))
    >>> print(f"{loss:.4f}")
    9.9991
    """
    student, teacher, items = checks.shaped(
        {
            "student_embeddings": "... features",
            "teacher_embeddings": "... features",
            "memory_embeddings": "items features",
        },
        student_embeddings=student_embeddings,
        teacher_embeddings=teacher_embeddings,
        memory_embeddings=memory_embeddings,
    )
    checks.positive(temperature=temperature)
    valid = checks.boolean("memory_valid", memory_valid, items.shape[:1], "the items in memory")
    where = jnp.ones(student.shape[:-1], bool) if where is None else where
    where = checks.boolean("where", where, student.shape[:-1], "the anchors")
    items = jax.lax.stop_gradient(jnp.where(valid[:, None], items, 0.0))

    def log_relations(embeddings: Array) -> Array:
        units = l2_normalize(jnp.where(where[..., None], embeddings, 0.0))
        cosines = jnp.matmul(units, items.T, precision=jax.lax.Precision.HIGHEST)
        return log_space.safe_log_softmax(jnp.where(valid, cosines / temperature, -jnp.inf))

    log_p = log_relations(jax.lax.stop_gradient(teacher))
    return jnp.where(where, log_space.kl(log_p, log_relations(student)), 0.0)


def wgan_critic(
    fake_scores: Float[Array | ndarray, "..."], real_scores: Float[Array | ndarray, "..."]
) -> Float[Array, "..."]:
    """What a Wasserstein critic minimises: score the real ones higher than the fake ones.

        L = D(fake) - D(real)

    In holistic distillation (SKDS) the fake ones are the student's maps of class scores, the real
    ones the teacher's, each joined with the image; D is to be Lipschitz, see
    `wgan_gradient_penalty`. Both scores are differentiated: they depend on the critic.

    Args:
      fake_scores: floats [...], the critic's, of the student's maps. Differentiated.
      real_scores: floats [...], of the teacher's maps. Differentiated.

    Returns:
      [...].

    Raises:
      ValueError: shapes that differ. TypeError: scores that are not floats.

    Source: Arjovsky et al. 2017, arXiv:1701.07875; Liu et al. 2019 (SKDS), arXiv:1903.04197.

    >>> import jax.numpy as jnp
    >>> print(wgan_critic(jnp.array(1.0), jnp.array(3.0)))
    -2.0
    """
    fake, real = checks.shaped(
        {"fake_scores": "...", "real_scores": "..."},
        fake_scores=fake_scores,
        real_scores=real_scores,
    )
    return fake - real


def wgan_generator(fake_scores: Float[Array | ndarray, "..."]) -> Float[Array, "..."]:
    """What a Wasserstein generator, here the student, minimises: L = -D(fake).

    Args:
      fake_scores: floats [...], the critic's, of the student's maps. Differentiated.

    Returns:
      [...].

    Raises:
      TypeError: scores that are not floats.

    Source: Arjovsky et al. 2017, arXiv:1701.07875; Liu et al. 2019 (SKDS), arXiv:1903.04197.

    >>> import jax.numpy as jnp
    >>> print(wgan_generator(jnp.array(1.0)))
    -1.0
    """
    (fake,) = checks.shaped({"fake_scores": "..."}, fake_scores=fake_scores)
    return -fake


def wgan_gradient_penalty(
    gradients: Float[Array | ndarray, "batch *features"],
) -> Float[Array, " batch"]:
    """How far the slope of a critic is from 1, where it is evaluated between real and fake.

        L = ( |grad_x D(x)| - 1 )^2,   x = u real + (1 - u) fake,   u uniform, one an example

    The norm is over all axes of an example; at 0 its gradient is 0. The authors weigh it with 10.

    Args:
      gradients: floats [batch, ...], of each example's score in its input. Differentiated.

    Returns:
      [batch], >= 0.

    Raises:
      ValueError: no axis but the batch. TypeError: gradients that are not floats.

    Source: Gulrajani et al. 2017, arXiv:1704.00028; Liu et al. 2019 (SKDS), arXiv:1903.04197.

    >>> import jax.numpy as jnp
    >>> wgan_gradient_penalty(jnp.array([[3.0, 4.0], [0.6, 0.8]])).tolist()
    [16.0, 0.0]
    """
    (gradients,) = checks.shaped({"gradients": "..."}, gradients=gradients)
    if gradients.ndim < 2:
        raise ValueError(f"gradients must be shaped [batch, ...], got shape {gradients.shape}")
    squared = jnp.sum(gradients**2, axis=tuple(range(1, gradients.ndim)))
    flat = squared == 0
    norm = jnp.where(flat, 0.0, jnp.sqrt(jnp.where(flat, 1.0, squared)))
    return (norm - 1) ** 2


def _members(teacher_features: Array, labels: Array, num_classes: int) -> tuple[Array, Array]:
    """Features [batch, pixels, features] and booleans [batch, pixels, classes]."""
    (features,) = checks.shaped(
        {"teacher_features": "batch height width features"}, teacher_features=teacher_features
    )
    checks.count(1, num_classes=num_classes)
    labels = checks.integers(
        "labels", labels, features.shape[:3], "the maps without their features"
    )
    features = jax.lax.stop_gradient(features).reshape(features.shape[0], -1, features.shape[-1])
    labels = labels.reshape(features.shape[:2])
    valid = checks.valid_labels(labels, num_classes)
    members = valid[..., None] & (labels[..., None] == jnp.arange(num_classes))
    return jnp.where(valid[..., None], features, 0.0), members
