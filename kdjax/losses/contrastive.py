"""Contrast: tell the key that belongs to a query from keys that do not.

Features are rows [batch, features] of unit norm (`l2_normalize`), unless a docstring says more. A
table of scores is [batch, candidates] with the positive in column 0; its negatives come from the
batch (`in_batch_scores`), a queue (`queue_scores`) or a memory bank (`crd_scores`), and -inf marks
a candidate that takes no part. Losses are one value a query: [batch].
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float
from numpy import ndarray

from kdjax.losses import checks, log_space
from kdjax.losses.checks import Scalar


def l2_normalize(
    features: Float[Array | ndarray, "*batch features"],
) -> Float[Array, "*batch features"]:
    """Vectors of unit norm along the last axis.

        x -> x / ||x||

    A zero vector stays 0 and has no gradient, where codes that divide by max(||x||, 1e-12) give it
    one of 1e12.

    Args:
      features: floats [..., features]. Differentiated.

    Returns:
      Floats [..., features].

    Raises:
      TypeError: features that are not floats.

    Source: Wu et al. 2018, arXiv:1805.01978.

    >>> import jax.numpy as jnp
    >>> print(jnp.round(l2_normalize(jnp.array([3.0, 4.0])), 3))
    [0.6 0.8]
    """
    (features,) = checks.shaped({"features": "... features"}, features=features)
    square = jnp.sum(features**2, axis=-1, keepdims=True)
    zero = square == 0
    return jnp.where(zero, 0.0, features) / jnp.sqrt(jnp.where(zero, 1.0, square))


def info_nce(
    query_features: Float[Array | ndarray, "batch features"],
    key_features: Float[Array | ndarray, "keys features"],
    *,
    temperature: Scalar = 0.07,
    positives: Bool[Array | ndarray, "batch keys"] | None = None,
    where: Bool[Array | ndarray, "batch keys"] | None = None,
) -> Float[Array, " batch"]:
    """InfoNCE with any number of keys and of positives a query; NT-Xent and SupCon are cases.

        L_i = -1/|P_i| sum_{p in P_i} log softmax_j(q_i . k_j / T)_p,   j over where_i

    By default key i is the positive of query i and the other keys are its negatives. The mean over
    the queries is the published loss: CPC and MoCo with one positive, SupCon (its L_out) with
    several and where = "not the query itself". SupCon's code multiplies by T / 0.07. TRG's global
    loss (token_global_loss) is the sum for unit vectors of tokens. Both directions of a batch of
    pairs are `clip_info_nce`.

    Args:
      query_features: floats [batch, features], unit-norm. Differentiated.
      key_features: floats [keys, features], unit-norm; without `positives` at least batch of them.
        Differentiated: pass stop_gradient(keys) for keys of a momentum encoder.
      temperature: scalar > 0, may be traced (and differentiated).
      positives: booleans [batch, keys]. A query without any has loss 0.
      where: booleans [batch, keys]; False pairs take no part. An example that is padding is False
        in its row and in its column.

    Returns:
      [batch], >= 0.

    Raises:
      ValueError: shapes that do not fit, temperature <= 0.
      TypeError: features that are not floats, masks that are not boolean.

    Source: van den Oord et al. 2018, arXiv:1807.03748; Khosla et al. 2020 (SupCon),
      arXiv:2004.11362.

    >>> import jax.numpy as jnp
    >>> print(f"{info_nce(jnp.eye(2), jnp.eye(2), temperature=1.0)[0]:.4f}")
    0.3133
    """
    query, key = checks.shaped(
        {"query_features": "batch features", "key_features": "keys features"},
        query_features=query_features,
        key_features=key_features,
    )
    checks.positive(temperature=temperature)
    shape = (len(query), len(key))
    if positives is None:
        if len(key) < len(query):
            raise ValueError(
                f"key_features must hold a key for each of the {len(query)} queries unless "
                f"positives says which are whose, got {len(key)} keys"
            )
        positives = jnp.eye(*shape, dtype=bool)
    positives = checks.boolean("positives", positives, shape, "queries by keys")
    if where is not None:
        where = checks.boolean("where", where, shape, "queries by keys")
        positives &= where
        query = jnp.where(jnp.any(where, axis=1)[:, None], query, 0.0)
        key = jnp.where(jnp.any(where, axis=0)[:, None], key, 0.0)
    logits = inner_products(query, key) / temperature
    if where is not None:
        logits = jnp.where(where, logits, -jnp.inf)
    log_probs = jnp.where(positives, log_space.safe_log_softmax(logits), 0.0)
    return -jnp.sum(log_probs, axis=1) / jnp.maximum(jnp.sum(positives, axis=1), 1)


def clip_info_nce(
    image_features: Float[Array | ndarray, "batch features"],
    text_features: Float[Array | ndarray, "batch features"],
    *,
    scale: Scalar = 1 / 0.07,
    where: Bool[Array | ndarray, " batch"] | None = None,
) -> Float[Array, " batch"]:
    """CLIP's loss: InfoNCE of a batch of pairs in both directions.

        l = scale * image text^T
        L_i = -1/2 ( log softmax_j(l_ij)_i + log softmax_j(l_ji)_i )

    The mean over the batch is the published loss.

    Args:
      image_features: floats [batch, features], unit-norm. Differentiated.
      text_features: floats [batch, features], unit-norm. Differentiated.
      scale: 1 / temperature, scalar > 0, may be traced (and differentiated). CLIP learns its
        logarithm, starts at 1 / 0.07 and keeps it <= 100.
      where: booleans [batch]; False pairs are neither queries nor keys, and have loss 0.

    Returns:
      [batch], >= 0; 0 in a batch of one.

    Raises:
      ValueError: shapes that do not fit, scale <= 0.
      TypeError: features that are not floats, a mask that is not boolean.

    Source: Radford et al. 2021 (CLIP), arXiv:2103.00020.

    >>> import jax.numpy as jnp
    >>> print(f"{clip_info_nce(jnp.eye(2), jnp.eye(2), scale=1.0)[0]:.4f}")
    0.3133
    """
    image, text = checks.shaped(
        {"image_features": "batch features", "text_features": "batch features"},
        image_features=image_features,
        text_features=text_features,
    )
    checks.positive(scale=scale)
    if where is None:
        where = jnp.ones(len(image), bool)
    where = checks.boolean("where", where, (len(image),), "the batch")
    image, text = (jnp.where(where[:, None], x, 0.0) for x in (image, text))
    logits = scale * inner_products(image, text)
    # Both directions read one matrix as it lies in memory: rows of its transpose are far apart.
    of_image = log_space.logsumexp(jnp.where(where[None, :], logits, -jnp.inf), axis=1)
    of_text = log_space.logsumexp(jnp.where(where[:, None], logits, -jnp.inf), axis=0)
    own = jnp.sum(jnp.where(jnp.eye(len(image), dtype=bool), logits, 0.0), axis=1)
    return jnp.where(where, ((of_image - own) + (of_text - own)) / 2, 0.0)


def in_batch_scores(
    query_features: Float[Array | ndarray, "batch features"],
    key_features: Float[Array | ndarray, "batch features"],
    *,
    temperature: Scalar = 0.07,
    where: Bool[Array | ndarray, "batch batch"] | None = None,
) -> Float[Array, "batch batch"]:
    """Scores of each query against the keys of its batch, its own key first.

        s[b, j] = q_b . k_{(b + j) mod B} / T

    For `crd_nce` without a memory bank. `info_nce` needs no such table.

    Args:
      query_features: floats [batch, features], unit-norm. Differentiated.
      key_features: floats [batch, features], unit-norm. Differentiated.
      temperature: scalar > 0, may be traced.
      where: booleans [query, key], in the order of the batch; a False pair has score -inf. Such as
        labels[:, None] != labels[None] | eye: negatives of other classes only.

    Returns:
      [batch, batch], positives in column 0.

    Raises:
      ValueError: shapes that differ, temperature <= 0.
      TypeError: features that are not floats, a mask that is not boolean.

    Source: Tian et al. 2020 (CRD), arXiv:1910.10699.

    >>> import jax.numpy as jnp
    >>> queries, keys = jnp.array([[1.0, 0.0], [0.0, 1.0]]), jnp.array([[0.0, 1.0], [1.0, 0.0]])
    >>> in_batch_scores(queries, keys, temperature=0.5).tolist()
    [[0.0, 2.0], [0.0, 2.0]]
    """
    query, key = checks.shaped(
        {"query_features": "batch features", "key_features": "batch features"},
        query_features=query_features,
        key_features=key_features,
    )
    checks.positive(temperature=temperature)
    size = len(query)
    if where is None:
        scores = inner_products(query, key) / temperature
    else:
        where = checks.boolean("where", where, (size, size), "queries by keys")
        query = jnp.where(jnp.any(where, axis=1)[:, None], query, 0.0)
        key = jnp.where(jnp.any(where, axis=0)[:, None], key, 0.0)
        scores = jnp.where(where, inner_products(query, key) / temperature, -jnp.inf)
    first, offset = jnp.arange(size)[:, None], jnp.arange(size)[None]
    return jnp.take_along_axis(scores, (first + offset) % size, axis=1)


def queue_scores(
    query_features: Float[Array | ndarray, "batch features"],
    key_features: Float[Array | ndarray, "batch features"],
    queue: Float[Array | ndarray, "queue features"],
    *,
    temperature: Scalar = 0.07,
    where: Bool[Array | ndarray, " queue"] | None = None,
) -> Float[Array, "batch candidates"]:
    """Scores of each query against its own key, then against a queue of older keys.

        s_b = [q_b . k_b,  q_b . queue_1, ..., q_b . queue_Q] / T

    Args:
      query_features: floats [batch, features], unit-norm. Differentiated.
      key_features: floats [batch, features], unit-norm. Differentiated.
      queue: floats [queue, features], unit-norm, one key a row (MoCo's code has one a column).
        Stopped.
      temperature: scalar > 0, may be traced.
      where: booleans [queue]; False entries, such as those not filled yet, have score -inf.

    Returns:
      [batch, 1 + queue], positives in column 0.

    Raises:
      ValueError: shapes that do not fit, temperature <= 0.
      TypeError: features that are not floats, a mask that is not boolean.

    Source: He et al. 2020 (MoCo), arXiv:1911.05722.

    >>> import jax.numpy as jnp
    >>> query, queue = jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 1.0], [-1.0, 0.0]])
    >>> queue_scores(query, query, queue, temperature=0.5).tolist()
    [[2.0, 0.0, -2.0]]
    """
    query, key, queue = checks.shaped(
        {
            "query_features": "batch features",
            "key_features": "batch features",
            "queue": "queue features",
        },
        query_features=query_features,
        key_features=key_features,
        queue=queue,
    )
    checks.positive(temperature=temperature)
    queue = jax.lax.stop_gradient(queue)
    if where is not None:
        where = checks.boolean("where", where, (len(queue),), "the queue")
        queue = jnp.where(where[:, None], queue, 0.0)
    own = jnp.sum(query * key, axis=1, keepdims=True) / temperature
    others = inner_products(query, queue) / temperature
    if where is not None:
        others = jnp.where(where, others, -jnp.inf)
    return jnp.concatenate([own, others], axis=1)


def moco_info_nce(
    student_features: Float[Array | ndarray, "batch features"],
    teacher_features: Float[Array | ndarray, "batch features"],
    queue: Float[Array | ndarray, "queue features"],
    *,
    temperature: Scalar = 0.07,
    where: Bool[Array | ndarray, " queue"] | None = None,
) -> Float[Array, " batch"]:
    """MoCo: InfoNCE whose positives come from a teacher, whose negatives from a queue.

        L_b = -log softmax([s_b . t_b,  s_b . queue] / T)_0

    The teacher is the momentum encoder (an exponential moving average of the student), or any
    other. Its features enter the queue after the loss (`enqueue`). The mean over the batch is the
    published loss.

    Args:
      student_features: queries, floats [batch, features], unit-norm. Differentiated.
      teacher_features: keys, floats [batch, features], unit-norm. Stopped.
      queue: floats [queue, features], unit-norm. Stopped.
      temperature: scalar > 0, may be traced.
      where: booleans [queue]; False entries take no part.

    Returns:
      [batch], >= 0.

    Raises:
      ValueError: shapes that do not fit, temperature <= 0.
      TypeError: features that are not floats, a mask that is not boolean.

    Source: He et al. 2020 (MoCo), arXiv:1911.05722.

    >>> import jax.numpy as jnp
    >>> query, queue = jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 1.0]])
    >>> print(f"{moco_info_nce(query, query, queue, temperature=1.0)[0]:.4f}")
    0.3133
    """
    student, teacher, queue = checks.shaped(
        {
            "student_features": "batch features",
            "teacher_features": "batch features",
            "queue": "queue features",
        },
        student_features=student_features,
        teacher_features=teacher_features,
        queue=queue,
    )
    teacher = jax.lax.stop_gradient(teacher)
    scores = queue_scores(student, teacher, queue, temperature=temperature, where=where)
    return -log_space.safe_log_softmax(scores)[:, 0]


def momentum_soft_targets(
    teacher_similarities: Float[Array | ndarray, "batch keys"],
    hard_targets: Float[Array | ndarray, "batch keys"],
    *,
    alpha: Scalar = 0.4,
) -> Float[Array, "batch keys"]:
    """ALBEF's targets: the teacher's belief about the pairs, blended with the given pairs.

        alpha softmax(teacher_similarities) + (1 - alpha) hard_targets

    The loss of scores s against them is -sum_j target_j log softmax(s)_j. ALBEF blends masked
    language modelling in the same way, there as a sum of two cross-entropies.

    Args:
      teacher_similarities: floats [batch, keys], divided by the temperature. Stopped.
      hard_targets: floats [batch, keys], rows that sum to 1. Stopped.
      alpha: scalar in [0, 1], may be traced. The authors raise it from 0 to 0.4 in the first epoch.

    Returns:
      [batch, keys], rows that sum to 1; no gradient.

    Raises:
      ValueError: shapes that differ, alpha outside [0, 1]. TypeError: arrays that are not floats.

    Source: Li et al. 2021 (ALBEF), arXiv:2107.07651, section 3.3.

    >>> import jax.numpy as jnp
    >>> targets = momentum_soft_targets(jnp.array([[1.0, 0.0]]), jnp.array([[1.0, 0.0]]))
    >>> print(f"{targets[0, 0]:.4f} {targets[0, 1]:.4f}")
    0.8924 0.1076
    """
    similarities, hard = checks.shaped(
        {"teacher_similarities": "batch keys", "hard_targets": "batch keys"},
        teacher_similarities=teacher_similarities,
        hard_targets=hard_targets,
    )
    checks.fraction(alpha=alpha)
    soft = jnp.exp(log_space.safe_log_softmax(similarities))
    return jax.lax.stop_gradient(alpha * soft + (1 - alpha) * hard)


def albef_ita(
    student_image_features: Float[Array | ndarray, "batch features"],
    student_text_features: Float[Array | ndarray, "batch features"],
    teacher_image_features: Float[Array | ndarray, "batch features"],
    teacher_text_features: Float[Array | ndarray, "batch features"],
    image_queue: Float[Array | ndarray, "queue features"],
    text_queue: Float[Array | ndarray, "queue features"],
    *,
    temperature: Scalar = 0.07,
    alpha: Scalar = 0.4,
    where: Bool[Array | ndarray, " batch"] | None = None,
) -> Float[Array, " batch"]:
    """ALBEF's image-text alignment: contrast with a queue, against a momentum teacher's belief.

        keys = [teacher features of the batch; queue] of the other modality
        L_b = -1/2 sum over both directions of y_b . log softmax(student_b . keys / T)
        y_b = `momentum_soft_targets` of teacher_b . keys / T and the pair b

    alpha = 0 is `moco_info_nce` in both directions, whose negatives are the teacher's features of
    the batch besides the queue. The mean over the batch is the published loss. The teacher (a
    moving average of the student, updated before) enters the queues after it (`enqueue`).

    Args:
      student_image_features: floats [batch, features], unit-norm. Differentiated.
      student_text_features: floats [batch, features], unit-norm. Differentiated.
      teacher_image_features: floats [batch, features], unit-norm. Stopped.
      teacher_text_features: floats [batch, features], unit-norm. Stopped.
      image_queue: floats [queue, features], unit-norm. Stopped.
      text_queue: floats [queue, features], unit-norm. Stopped.
      temperature: scalar > 0, may be traced. Learned by the authors (through the student's scores
        alone) and kept in [0.001, 0.5], which is left to the caller.
      alpha: scalar in [0, 1], may be traced; weight of the teacher's belief.
      where: booleans [batch]; False pairs are neither queries nor keys, and have loss 0.

    Returns:
      [batch], >= 0.

    Raises:
      ValueError: shapes that do not fit, temperature <= 0, alpha outside [0, 1].
      TypeError: features that are not floats, a mask that is not boolean.

    Source: Li et al. 2021 (ALBEF), arXiv:2107.07651, sections 3.2 and 3.3.

    >>> import jax.numpy as jnp
    >>> own, other = jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 1.0]])
    >>> loss = albef_ita(own, own, own, own, other, other, temperature=1.0, alpha=0.4)
    >>> print(f"{loss[0]:.4f}")
    0.4208
    """
    features = checks.shaped(
        {
            "student_image_features": "batch features",
            "student_text_features": "batch features",
            "teacher_image_features": "batch features",
            "teacher_text_features": "batch features",
            "image_queue": "queue features",
            "text_queue": "queue features",
        },
        student_image_features=student_image_features,
        student_text_features=student_text_features,
        teacher_image_features=teacher_image_features,
        teacher_text_features=teacher_text_features,
        image_queue=image_queue,
        text_queue=text_queue,
    )
    checks.positive(temperature=temperature)
    checks.fraction(alpha=alpha)
    size, queue_size = len(features[0]), len(features[-1])
    if where is None:
        where = jnp.ones(size, bool)
    where = checks.boolean("where", where, (size,), "the batch")
    *pairs, image_queue, text_queue = features
    student_image, student_text, teacher_image, teacher_text = (
        jnp.where(where[:, None], x, 0.0) for x in pairs
    )
    present = jnp.concatenate([where, jnp.ones(queue_size, bool)])
    hard = jnp.eye(size, size + queue_size, dtype=student_image.dtype)

    def direction(student: Array, teacher: Array, keys: Array) -> Array:
        keys = jax.lax.stop_gradient(keys)

        def scores(queries: Array) -> Array:
            return jnp.where(present, inner_products(queries, keys) / temperature, -jnp.inf)

        targets = momentum_soft_targets(scores(teacher), hard, alpha=alpha)
        log_probs = log_space.safe_log_softmax(scores(student))
        return -jnp.sum(targets * jnp.where(targets == 0, 0.0, log_probs), axis=1)

    image_keys = jnp.concatenate([teacher_image, image_queue])
    text_keys = jnp.concatenate([teacher_text, text_queue])
    image_to_text = direction(student_image, teacher_image, text_keys)
    text_to_image = direction(student_text, teacher_text, image_keys)
    return jnp.where(where, (image_to_text + text_to_image) / 2, 0.0)


def inner_products(queries: Array, keys: Array) -> Array:
    """Inner products of every query with every key: [queries, keys]."""
    return jnp.matmul(queries, keys.T, precision=jax.lax.Precision.HIGHEST)
