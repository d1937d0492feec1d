"""Losses between layers of transformers: attention scores, hidden states and their relations.

Which layer of the teacher a layer of the student learns from is a map, a tuple of pairs of
indices; the loss of one pair is a kernel, and the caller sums over the pairs. With `where` what is
False adds nothing, in value and in gradient. No gradient reaches `teacher_*`. Values in float32,
or float64 for float64.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float
from numpy import ndarray

from kdjax.losses import checks, log_space
from kdjax.losses.checks import Losses, Scalar
from kdjax.losses.relation_matrices import unit_vectors

HIGHEST = jax.lax.Precision.HIGHEST

Scores = Float[Array | ndarray, "*batch queries keys"]
States = Float[Array | ndarray, "*batch features"]
Vectors = Float[Array | ndarray, "batch tokens _"]
Pairs = Bool[Array | ndarray, "..."]
Tokens = Bool[Array | ndarray, "*batch"]
LayerMap = tuple[tuple[int, int], ...]


def tinybert_attention_layers(student_layers: int, teacher_layers: int) -> LayerMap:
    """TinyBERT's map of attention layers: the last of every k layers of the teacher.

        m -> k m + k - 1,   k = teacher_layers / student_layers,   m = 0 ... student_layers - 1

    Args:
      student_layers: integer >= 1.
      teacher_layers: integer, a multiple of student_layers.

    Returns:
      Pairs (layer of the student, layer of the teacher), counted from 0.

    Raises:
      ValueError: teacher_layers that is no multiple of student_layers.

    Source: Jiao et al. 2020, arXiv:1909.10351.

    >>> tinybert_attention_layers(2, 6)
    ((0, 2), (1, 5))
    """
    step = _layers_a_step(student_layers, teacher_layers)
    return tuple((layer, step * layer + step - 1) for layer in range(student_layers))


def tinybert_hidden_layers(student_layers: int, teacher_layers: int) -> LayerMap:
    """TinyBERT's map of hidden states: the embeddings, then every k-th layer of the teacher.

        m -> k m,   k = teacher_layers / student_layers,   m = 0 ... student_layers

    Args:
      student_layers: integer >= 1.
      teacher_layers: integer, a multiple of student_layers.

    Returns:
      Pairs of indices of states, where 0 is the embeddings and l the output of the l-th layer.

    Raises:
      ValueError: teacher_layers that is no multiple of student_layers.

    Source: Jiao et al. 2020, arXiv:1909.10351.

    >>> tinybert_hidden_layers(2, 6)
    ((0, 0), (1, 3), (2, 6))
    """
    step = _layers_a_step(student_layers, teacher_layers)
    return tuple((layer, step * layer) for layer in range(student_layers + 1))


def patient_kd_layers(
    student_layers: int, teacher_layers: int, *, strategy: str = "skip"
) -> LayerMap:
    """Patient distillation's maps of hidden states: every k-th layer, or the last ones.

        "skip": m -> k m                "last": m -> teacher_layers - student_layers + m
        k = teacher_layers / student_layers,   m = 1 ... student_layers - 1

    The student's last layer is left to the loss on logits.

    Args:
      student_layers: integer >= 2.
      teacher_layers: integer >= student_layers; a multiple of it for "skip".
      strategy: "skip" or "last".

    Returns:
      Pairs of indices of states, where 0 is the embeddings and l the output of the l-th layer.

    Raises:
      ValueError: too few layers, no multiple, another strategy.

    Source: Sun et al. 2019, arXiv:1908.09355.

    >>> patient_kd_layers(3, 12), patient_kd_layers(3, 12, strategy="last")
    (((1, 4), (2, 8)), ((1, 10), (2, 11)))
    """
    checks.choice("strategy", strategy, ("skip", "last"))
    checks.count(2, student_layers=student_layers)
    checks.count(student_layers, teacher_layers=teacher_layers)
    inner = range(1, student_layers)
    if strategy == "last":
        return tuple((layer, teacher_layers - student_layers + layer) for layer in inner)
    step = _layers_a_step(student_layers, teacher_layers)
    return tuple((layer, step * layer) for layer in inner)


def tinybert_attention(
    student_scores: Scores, teacher_scores: Scores, *, where: Pairs | None = None
) -> Float[Array, "*batch queries"]:
    """TinyBERT's loss on attention: the squared difference of the scores before the softmax.

        L_q = 1/keys sum_k (A^s_qk - A^t_qk)^2

    The caller's mean over queries, heads and batch, summed over the mapped layers, is the published
    loss: it divides by all pairs, masked ones among them (the authors' code sets scores <= -100 to
    0 on both sides). A mean over the pairs that are there is sum(values) keys / sum(where).

    Args:
      student_scores: floats [..., queries, keys], usually [batch, heads, queries, keys], without
        the mask's large negative numbers. Differentiated.
      teacher_scores: floats [..., queries, keys]. Stopped.
      where: booleans that broadcast to [..., queries, keys]; False pairs add nothing.

    Returns:
      [..., queries], >= 0.

    Raises:
      ValueError: shapes that differ, where that does not broadcast. TypeError: arrays that are
        not floats, where that is not boolean.

    Source: Jiao et al. 2020, arXiv:1909.10351, equation 7.

    >>> import jax.numpy as jnp
    >>> tinybert_attention(jnp.array([[1.0, 3.0]]), jnp.array([[0.0, 0.0]])).tolist()
    [5.0]
    """
    student, teacher, _ = _scores(student_scores, teacher_scores, where)
    return jnp.mean((student - teacher) ** 2, axis=-1)


def tinybert_hidden(
    student_states: States, teacher_states: States, *, where: Tokens | None = None
) -> Losses:
    """TinyBERT's loss on hidden states: the mean squared difference of a token's features.

        L = 1/features sum_d (h^s_d - h^t_d)^2

    For the embeddings too. The student's states are first projected to the teacher's width by a
    dense layer that trains with it and is dropped afterwards. The caller's mean over tokens, summed
    over the mapped layers, is the published loss.

    Args:
      student_states: floats [..., features], projected. Differentiated.
      teacher_states: floats [..., features]. Stopped.
      where: booleans [...]; False tokens have loss 0.

    Returns:
      [...], >= 0.

    Raises:
      ValueError: shapes that differ, where of another shape. TypeError: arrays that are not
        floats, where that is not boolean.

    Source: Jiao et al. 2020, arXiv:1909.10351, equations 8 and 9.

    >>> import jax.numpy as jnp
    >>> print(tinybert_hidden(jnp.array([1.0, 3.0]), jnp.array([0.0, 0.0])))
    5.0
    """
    student, teacher = _states(student_states, teacher_states, where)
    return jnp.mean((student - teacher) ** 2, axis=-1)


def minilm_relation(
    student_vectors: Vectors,
    teacher_vectors: Vectors,
    *,
    num_relation_heads: int,
    where: Bool[Array | ndarray, "batch tokens"] | None = None,
) -> Float[Array, "batch"]:
    """MiniLM's self-relations: which tokens are alike, among queries, keys or values.

        L = 1/(A n) sum_{a, i} KL(R^t_ai || R^s_ai),   R_a = softmax(X_a X_a^T / sqrt(d))

    with X cut into A = num_relation_heads slices of d features, over the n tokens that are there.
    MiniLMv2 sums this over queries, keys and values of one layer; MiniLM has it for the values,
    beside `minilm_attention`. The widths may differ. The caller's mean over the batch is the
    published loss; an example without tokens is 0 and should not count.

    Args:
      student_vectors: floats [batch, tokens, width], width a multiple of A. Differentiated.
      teacher_vectors: floats [batch, tokens, width], any multiple of A. Stopped.
      num_relation_heads: integer >= 1; need not be the number of attention heads.
      where: booleans [batch, tokens]; False tokens take no part.

    Returns:
      [batch], >= 0.

    Raises:
      ValueError: batch or tokens that differ, a width that is no multiple of num_relation_heads.
      TypeError: arrays that are not floats, where that is not boolean.

    Source: Wang et al. 2020, arXiv:2002.10957; 2021 (MiniLMv2), arXiv:2012.15828.

    >>> import jax.numpy as jnp
    >>> apart, same = jnp.eye(2)[None], jnp.ones((1, 2, 4))
    >>> print(f"{minilm_relation(apart, same, num_relation_heads=1)[0]:.4f}")
    0.0612
    """
    student, teacher, where = _token_vectors(
        where, student_vectors=student_vectors, teacher_vectors=teacher_vectors
    )
    teacher = jax.lax.stop_gradient(teacher)
    of_student = _log_relations("student_vectors", student, student, num_relation_heads, where)
    of_teacher = _log_relations("teacher_vectors", teacher, teacher, num_relation_heads, where)
    return _mean_over_heads_and_tokens(log_space.kl(of_teacher, of_student), where)


def minilm_attention(
    student_queries: Float[Array | ndarray, "batch tokens student"],
    student_keys: Float[Array | ndarray, "batch tokens student"],
    teacher_queries: Float[Array | ndarray, "batch tokens teacher"],
    teacher_keys: Float[Array | ndarray, "batch tokens teacher"],
    *,
    num_heads: int,
    where: Bool[Array | ndarray, "batch tokens"] | None = None,
) -> Float[Array, "batch"]:
    """MiniLM's attention transfer: KL between attention distributions of the last layers.

        L = 1/(A n) sum_{a, i} KL(A^t_ai || A^s_ai),   A_a = softmax(Q_a K_a^T / sqrt(d))

    over A = num_heads heads of d features and the n tokens that are there. The published loss is
    the caller's mean over the batch, plus that of `minilm_relation` of the values.

    Args:
      student_queries: floats [batch, tokens, width], width a multiple of num_heads. Differentiated.
      student_keys: floats [batch, tokens, width]. Differentiated.
      teacher_queries: floats [batch, tokens, width], of any width. Stopped.
      teacher_keys: floats [batch, tokens, width]. Stopped.
      num_heads: integer >= 1, the same in both.
      where: booleans [batch, tokens]; False tokens take no part.

    Returns:
      [batch], >= 0.

    Raises:
      ValueError: shapes that do not fit, a width that is no multiple of num_heads.
      TypeError: arrays that are not floats, where that is not boolean.

    Source: Wang et al. 2020, arXiv:2002.10957.

    >>> import jax.numpy as jnp
    >>> apart, same = jnp.eye(2)[None], jnp.ones((1, 2, 4))
    >>> print(f"{minilm_attention(apart, apart, same, same, num_heads=1)[0]:.4f}")
    0.0612
    """
    *vectors, where = _token_vectors(
        where,
        student_queries=student_queries,
        student_keys=student_keys,
        teacher_queries=teacher_queries,
        teacher_keys=teacher_keys,
    )
    student, teacher = vectors[:2], jax.lax.stop_gradient(vectors[2:])
    of_student = _log_relations("student_queries", *student, num_heads, where)
    of_teacher = _log_relations("teacher_queries", *teacher, num_heads, where)
    return _mean_over_heads_and_tokens(log_space.kl(of_teacher, of_student), where)


def mobilebert_features(
    student_states: States,
    teacher_states: States,
    *,
    epsilon: Scalar = 1e-6,
    where: Tokens | None = None,
) -> Losses:
    """MobileBERT's feature transfer: squared difference of states in standard form.

        L = 1/features sum_d (n(h^s)_d - n(h^t)_d)^2,   n(h) = (h - mean h) / sqrt(var h + epsilon)

    The layer normalisation without its weights. Layers are transferred one after the other, with
    those below frozen. The caller's mean over tokens is the published loss.

    Args:
      student_states: floats [..., features]. Differentiated.
      teacher_states: floats [..., features]. Stopped.
      epsilon: scalar > 0, may be traced.
      where: booleans [...]; False tokens have loss 0.

    Returns:
      [...], in [0, 4].

    Raises:
      ValueError: shapes that differ, epsilon <= 0. TypeError: arrays that are not floats.

    Source: Sun et al. 2020, arXiv:2004.02984.

    >>> import jax.numpy as jnp
    >>> print(f"{mobilebert_features(jnp.array([1.0, 3.0]), jnp.array([5.0, 0.0])):.4f}")
    4.0000
    """
    student, teacher = _states(student_states, teacher_states, where)
    checks.positive(epsilon=epsilon)

    def standard(states: Array) -> Array:
        centred = states - jnp.mean(states, axis=-1, keepdims=True)
        variance = jnp.mean(centred**2, axis=-1, keepdims=True)
        return centred / jnp.sqrt(variance + epsilon)

    return jnp.mean((standard(student) - standard(teacher)) ** 2, axis=-1)


def mobilebert_attention(
    student_scores: Scores, teacher_scores: Scores, *, where: Pairs | None = None
) -> Float[Array, "*batch queries"]:
    """MobileBERT's attention transfer: KL from the teacher's attention to the student's.

        L_q = KL(softmax(A^t_q) || softmax(A^s_q))

    The caller's mean over queries, heads and batch is the published loss.

    Args:
      student_scores: floats [..., queries, keys], before the softmax. Differentiated.
      teacher_scores: floats [..., queries, keys]. Stopped.
      where: booleans that broadcast to [..., queries, keys]; attention to a False pair is 0.

    Returns:
      [..., queries], >= 0. 0 for a query without keys.

    Raises:
      ValueError: shapes that differ, where that does not broadcast. TypeError: arrays that are
        not floats, where that is not boolean.

    Source: Sun et al. 2020, arXiv:2004.02984.

    >>> import jax.numpy as jnp
    >>> loss = mobilebert_attention(jnp.zeros((1, 2)), jnp.array([[jnp.log(3.0), 0.0]]))
    >>> print(f"{loss[0]:.4f}")
    0.1308
    """
    student, teacher, where = _scores(student_scores, teacher_scores, where)
    if where is not None:
        student, teacher = (jnp.where(where, x, -jnp.inf) for x in (student, teacher))
    return log_space.kl(log_space.safe_log_softmax(teacher), log_space.safe_log_softmax(student))


def patient_kd(
    student_states: States, teacher_states: States, *, where: Tokens | None = None
) -> Losses:
    """Patient distillation: the distance of the directions of two states of the [CLS] token.

        L = || h^s / ||h^s|| - h^t / ||h^t|| ||^2

    The caller's mean over layers (`patient_kd_layers`) and batch is the term PT of the paper's
    (1 - a) CE + a KD + b PT. Code that averages over the features too has it / features.

    Args:
      student_states: floats [..., features]. Differentiated.
      teacher_states: floats [..., features]. Stopped.
      where: booleans [...]; False states have loss 0.

    Returns:
      [...], in [0, 4].

    Raises:
      ValueError: shapes that differ, where of another shape. TypeError: arrays that are not
        floats, where that is not boolean.

    Source: Sun et al. 2019, arXiv:1908.09355, equation 7.

    >>> import jax.numpy as jnp
    >>> print(f"{patient_kd(jnp.array([2.0, 0.0]), jnp.array([0.0, 5.0])):.4f}")
    2.0000
    """
    student, teacher = _states(student_states, teacher_states, where)
    return jnp.sum((unit_vectors(student) - unit_vectors(teacher)) ** 2, axis=-1)


def _layers_a_step(student_layers: int, teacher_layers: int) -> int:
    checks.count(1, student_layers=student_layers, teacher_layers=teacher_layers)
    if teacher_layers % student_layers:
        raise ValueError(
            f"teacher_layers must be a multiple of student_layers = {student_layers}, "
            f"got {teacher_layers}"
        )
    return teacher_layers // student_layers


def _scores(
    student_scores: Array, teacher_scores: Array, where: Array | None
) -> tuple[Array, Array, Array | None]:
    axes = "... queries keys"
    student, teacher = checks.shaped(
        {"student_scores": axes, "teacher_scores": axes},
        student_scores=student_scores,
        teacher_scores=teacher_scores,
    )
    teacher = jax.lax.stop_gradient(teacher)
    if where is None:
        return student, teacher, None
    where = checks.boolean("where", where, jnp.shape(where), "itself")
    try:
        where = jnp.broadcast_to(where, student.shape)
    except ValueError:
        raise ValueError(
            f"where must broadcast to the shape {student.shape} of the scores, got {where.shape}"
        ) from None
    return jnp.where(where, student, 0.0), jnp.where(where, teacher, 0.0), where


def _states(
    student_states: Array, teacher_states: Array, where: Array | None
) -> tuple[Array, Array]:
    axes = "... features"
    student, teacher = checks.shaped(
        {"student_states": axes, "teacher_states": axes},
        student_states=student_states,
        teacher_states=teacher_states,
    )
    teacher = jax.lax.stop_gradient(teacher)
    if where is None:
        return student, teacher
    where = checks.boolean("where", where, student.shape[:-1], "the states without features")
    # Two states of 0 have no distance in any of the losses.
    return jnp.where(where[..., None], student, 0.0), jnp.where(where[..., None], teacher, 0.0)


def _token_vectors(where: Array | None, **named: Array) -> tuple[Array, ...]:
    """Vectors [batch, tokens, width] with those of hidden tokens at 0, and the mask."""
    (first, *_) = named
    axes = {name: f"batch tokens {name.split('_')[0]}_width" for name in named}
    arrays = checks.shaped(axes, **named)
    shape = arrays[0].shape[:2]
    if where is None:
        return *arrays, jnp.ones(shape, bool)
    where = checks.boolean("where", where, shape, f"{first} without its width")
    return *(jnp.where(where[..., None], array, 0.0) for array in arrays), where


def _log_relations(name: str, queries: Array, keys: Array, num_heads: int, where: Array) -> Array:
    """[batch, heads, tokens, tokens] log softmax of the scaled products, over tokens there."""
    checks.count(1, num_heads=num_heads)
    batch, tokens, width = queries.shape
    if width % num_heads:
        raise ValueError(f"the width {width} of {name} must be a multiple of {num_heads} heads")
    heads = (batch, tokens, num_heads, width // num_heads)
    scores = jnp.einsum(
        "biad,bjad->baij", queries.reshape(heads), keys.reshape(heads), precision=HIGHEST
    )
    scores = scores / (width // num_heads) ** 0.5
    return log_space.safe_log_softmax(jnp.where(where[:, None, None, :], scores, -jnp.inf))


def _mean_over_heads_and_tokens(values: Array, where: Array) -> Array:
    """[batch, heads, tokens] -> [batch], over the tokens that are there."""
    total = jnp.sum(jnp.where(where[:, None, :], values, 0.0), axis=(1, 2))
    return total / (values.shape[1] * jnp.maximum(jnp.sum(where, axis=1), 1))
