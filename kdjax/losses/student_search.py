"""Which student suits a teacher, without training: scores, and how rankings agree.

DisWOT compares a candidate with the teacher at initialisation, on one batch. A score is 0 for
equal networks and negative otherwise: larger is better. No gradient reaches `teacher_*`. Values in
float32, or float64 for float64. Rank correlations are SciPy's (`kendalltau`, `spearmanr`,
`pearsonr`).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
from numpy import ndarray

from kdjax.losses import checks
from kdjax.losses.relation_matrices import unit_vectors
from kdjax.losses.relations import similarity_preserving

HIGHEST = jax.lax.Precision.HIGHEST

CandidateScores = Float[Array | ndarray, "candidates"]


def relation_similarity(
    student_features: Float[Array | ndarray, "batch ..."],
    teacher_features: Float[Array | ndarray, "batch ..."],
) -> Float[Array, "batch"]:
    """DisWOT's relation similarity: minus the similarity-preserving loss.

        S_i = -1/B sum_j (R^s_ij - R^t_ij)^2,   R = row_normalized_gram(features)

    of the last maps before pooling. The caller's mean over the batch is the published score.

    Args:
      student_features: floats [batch, ...], batch >= 2. Differentiated.
      teacher_features: floats [batch, ...], of any width. Stopped.

    Returns:
      [batch], <= 0.

    Raises:
      ValueError: batches that differ, a batch of one. TypeError: features that are not floats.

    Source: Dong et al. 2023, arXiv:2303.15678.

    >>> import jax.numpy as jnp
    >>> score = relation_similarity(jnp.array([[1.0, 0.0], [1.0, 0.0]]), jnp.eye(2))
    >>> print(f"{score.mean():.6f}")
    -0.292893
    """
    return -similarity_preserving(student_features, teacher_features)


def semantic_similarity(
    student_gradients: Float[Array | ndarray, "classes features"],
    teacher_gradients: Float[Array | ndarray, "classes features"],
) -> Float[Array, "classes"]:
    """DisWOT's semantic similarity: channel correlations of the classifiers' gradients.

        S_k = -1/D sum_ij (E^s_kij - E^t_kij)^2,   E_ki = g_ki g_k / ||g_ki g_k||
            = 2 a_k cos(g^s_k, g^t_k) - 2,   a_k = mean_i sign(g^s_ki) sign(g^t_ki)

    The rows of the matrix g g^T of one class are copies of g or -g, hence the second line, which
    is computed: classes x D operations for classes x D^2 (an element that is exactly 0 has a row of
    0, and is counted so). Both networks must have classifiers of one width. The caller's mean over
    classes is the published score.

    Args:
      student_gradients: floats [classes, features], of the mean cross-entropy of the batch in
        the weights of the classifier. Differentiated, but for the signs.
      teacher_gradients: floats [classes, features]. Stopped.

    Returns:
      [classes], in [-4, 0].

    Raises:
      ValueError: shapes that differ. TypeError: arrays that are not floats.

    Source: Dong et al. 2023, arXiv:2303.15678.

    >>> import jax.numpy as jnp
    >>> score = semantic_similarity(jnp.array([[4.0, 3.0]]), jnp.array([[3.0, 4.0]]))
    >>> print(f"{score.mean():.4f}")
    -0.0800
    """
    axes = "classes features"
    student, teacher = checks.shaped(
        {"student_gradients": axes, "teacher_gradients": axes},
        student_gradients=student_gradients,
        teacher_gradients=teacher_gradients,
    )
    teacher = jax.lax.stop_gradient(teacher)
    cosines = jnp.sum(unit_vectors(student) * unit_vectors(teacher), axis=-1)
    signs = jnp.sign(student), jnp.sign(teacher)
    agreement = jnp.mean(signs[0] * signs[1], axis=-1)
    lengths = jnp.mean(signs[0] ** 2 + signs[1] ** 2, axis=-1)
    return 2 * agreement * cosines - lengths


def channel_correlation(
    student_features: Float[Array | ndarray, "batch height width channels"],
    teacher_features: Float[Array | ndarray, "batch other_height other_width channels"],
) -> Float[Array, "batch"]:
    """Inter-channel correlation (ICKD): the channels of a map shall be alike in the same way.

        L_b = 1/C sum_cd (E^s_bcd - E^t_bcd)^2,   E = F^T F with rows of length 1

    with F the map as [positions, channels]. DisWOT's semantic distiller. The caller's mean over the
    batch is the published loss. Sizes of the maps may differ; the channels may not (ICKD embeds the
    student's by a 1x1 convolution).

    Args:
      student_features: floats [batch, height, width, channels]. Differentiated.
      teacher_features: floats [batch, height, width, channels]. Stopped.

    Returns:
      [batch], in [0, 4].

    Raises:
      ValueError: batches or channels that differ. TypeError: features that are not floats.

    Source: Liu et al. 2021 (ICKD), "Exploring Inter-Channel Correlation for Diversity-Preserved
      Knowledge Distillation", ICCV; Dong et al. 2023, arXiv:2303.15678.

    >>> import jax.numpy as jnp
    >>> student, teacher = jnp.ones((1, 1, 2, 2)), jnp.eye(2).reshape(1, 1, 2, 2)
    >>> print(f"{channel_correlation(student, teacher)[0]:.6f}")
    0.585786
    """
    student, teacher = checks.shaped(
        {
            "student_features": "batch student_height student_width channels",
            "teacher_features": "batch teacher_height teacher_width channels",
        },
        student_features=student_features,
        teacher_features=teacher_features,
    )
    gap = _channel_correlations(student) - _channel_correlations(jax.lax.stop_gradient(teacher))
    return jnp.mean(jnp.sum(gap**2, axis=-1), axis=-1)


def diswot(
    relation_scores: CandidateScores,
    semantic_scores: CandidateScores,
    *,
    combine: str = "rank_sum",
) -> Float[Array, "candidates"]:
    """DisWOT's score of a pool of candidates, from their two similarities.

        "sum":      S_n = r_n + s_n                   (published)
        "rank_sum": S_n = rank(r)_n + rank(s)_n       (1 for the worst, ties share their mean)
        "zscore":   S_n = z(r)_n + z(s)_n,  z(x) = (x - mean x) / std x

    The published sum is decided by the semantic term, whose range [-4, 0] is far wider than that of
    the other: the default weighs both alike, and depends on the pool.

    Args:
      relation_scores: floats [candidates]. Differentiated, but for "rank_sum".
      semantic_scores: floats [candidates]. Differentiated, but for "rank_sum".
      combine: "sum", "rank_sum" or "zscore".

    Returns:
      [candidates], larger is better.

    Raises:
      ValueError: shapes that differ, another combine. TypeError: arrays that are not floats.

    Source: Dong et al. 2023, arXiv:2303.15678 ("sum").

    >>> import jax.numpy as jnp
    >>> relation, semantic = jnp.array([-0.01, -0.05, -0.02]), jnp.array([-3.0, -1.0, -2.0])
    >>> diswot(relation, semantic).tolist()
    [4.0, 4.0, 4.0]
    """
    checks.choice("combine", combine, ("sum", "rank_sum", "zscore"))
    relation, semantic = checks.shaped(
        {"relation_scores": "candidates", "semantic_scores": "candidates"},
        relation_scores=relation_scores,
        semantic_scores=semantic_scores,
    )
    if combine == "sum":
        return relation + semantic
    if combine == "rank_sum":
        return _ranks_from_best(-relation) + _ranks_from_best(-semantic)
    return _standard(relation) + _standard(semantic)


def precision_at_top_k(
    true_scores: CandidateScores, predicted_scores: CandidateScores, *, k: int
) -> Float[Array, ""]:
    """The share of the predicted best k that are among the true best k.

        P = |top_k(predicted) & top_k(true)| / k

    Of equal scores the first come first: constant predictions are not worth 0. That of the worst
    k is this of both scores negated.

    Args:
      true_scores: floats [candidates], larger is better.
      predicted_scores: floats [candidates], larger is better.
      k: integer in [1, candidates].

    Returns:
      Scalar in [0, 1].

    Raises:
      ValueError: shapes that differ, k out of range. TypeError: arrays that are not floats.

    Source: Dong et al. 2023, arXiv:2303.15678 (code).

    >>> import jax.numpy as jnp
    >>> true, predicted = jnp.array([3.0, 2.0, 1.0, 0.0]), jnp.array([5.0, 1.0, 4.0, 0.0])
    >>> print(precision_at_top_k(true, predicted, k=2))
    0.5
    """
    true, predicted = _ranked(true_scores, predicted_scores)
    checks.count(1, len(true), k=k)
    both = _is_among_best(true, k) & _is_among_best(predicted, k)
    return jnp.sum(both).astype(true.dtype) / k


def best_rank_at_k(
    true_scores: CandidateScores, predicted_scores: CandidateScores, *, k: int
) -> Int[Array, ""]:
    """The true rank of the best candidate among the predicted best k: what a search would find.

        R = min over top_k(predicted) of rank(true)_n,   rank 1 for the best

    Args:
      true_scores: floats [candidates], larger is better.
      predicted_scores: floats [candidates], larger is better.
      k: integer in [1, candidates].

    Returns:
      Scalar integer in [1, candidates - k + 1]; of equal true scores all have the best rank.

    Raises:
      ValueError: shapes that differ, k out of range. TypeError: arrays that are not floats.

    Source: Dong et al. 2023, arXiv:2303.15678 (code).

    >>> import jax.numpy as jnp
    >>> true, predicted = jnp.array([3.0, 2.0, 1.0, 0.0]), jnp.array([0.0, 1.0, 4.0, 5.0])
    >>> print(best_rank_at_k(true, predicted, k=2))
    3
    """
    true, predicted = _ranked(true_scores, predicted_scores)
    checks.count(1, len(true), k=k)
    found = jnp.max(jnp.where(_is_among_best(predicted, k), true, -jnp.inf))
    return jnp.sum(true > found) + 1


def rank_difference(
    true_scores: CandidateScores, predicted_scores: CandidateScores
) -> Float[Array, ""]:
    """How many ranks candidates are placed too high, on average.

        D = mean_n max(0, rank(true)_n - rank(predicted)_n)

    Ranks sum to the same, so that this is half the mean absolute difference of ranks, and counts
    places too low alike.

    Args:
      true_scores: floats [candidates].
      predicted_scores: floats [candidates].

    Returns:
      Scalar, in [0, candidates / 4].

    Raises:
      ValueError: shapes that differ. TypeError: arrays that are not floats.

    Source: Dong et al. 2023, arXiv:2303.15678 (code).

    >>> import jax.numpy as jnp
    >>> print(rank_difference(jnp.array([3.0, 2.0, 1.0, 0.0]), jnp.array([2.0, 3.0, 1.0, 0.0])))
    0.25
    """
    true, predicted = _ranked(true_scores, predicted_scores)
    gap = _ranks_from_best(true) - _ranks_from_best(predicted)
    return jnp.mean(jnp.maximum(gap, 0.0))


def _channel_correlations(maps: Array) -> Array:
    """[batch, channels, channels], rows of length 1."""
    batch, _, _, channels = maps.shape
    # A common factor of a map changes nothing, and squares of squares would overflow.
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(maps), axis=(1, 2, 3), keepdims=True))
    maps = maps / jnp.where(largest < jnp.finfo(maps.dtype).tiny, 1.0, largest)
    maps = maps.reshape(batch, -1, channels)
    return unit_vectors(jnp.einsum("bpc,bpd->bcd", maps, maps, precision=HIGHEST))


def _ranked(true_scores: Array, predicted_scores: Array) -> tuple[Array, Array]:
    return checks.shaped(
        {"true_scores": "candidates", "predicted_scores": "candidates"},
        true_scores=true_scores,
        predicted_scores=predicted_scores,
    )


def _ranks_from_best(scores: Array) -> Array:
    """1 for the largest; equal scores share the mean of their ranks."""
    above = jnp.sum(scores[None, :] > scores[:, None], axis=1)
    equal = jnp.sum(scores[None, :] == scores[:, None], axis=1)
    return (above + (equal + 1) / 2).astype(scores.dtype)


def _is_among_best(scores: Array, k: int) -> Array:
    _, best = jax.lax.top_k(scores, k)
    return jnp.zeros(scores.shape, bool).at[best].set(True)


def _standard(scores: Array) -> Array:
    centred = scores - jnp.mean(scores)
    variance = jnp.mean(centred**2)
    constant = variance == 0
    return jnp.where(constant, 0.0, centred / jnp.sqrt(jnp.where(constant, 1.0, variance)))
