"""Which examples to ask for: host mathematics on predictions or features of a pool."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from kdjax.data.source import check_finite

METRICS = ("euclidean", "cosine")
STRATEGIES = (
    "pcoreset",
    "coreset",
    "entropy",
    "badge",
    "badge_sampled",
    "class_balanced",
    "random",
)


def k_center_greedy(
    points: Float[np.ndarray, "pool features"],
    centers: Float[np.ndarray, "centers features"],
    k: int,
    *,
    metric: str = "euclidean",
    first: int = 0,
) -> Int[np.ndarray, " k"]:
    """The points that lie farthest from everything chosen so far, one after the other.

        j_t = argmax_j min( min_c d(x_j, c), min_{s < t} d(x_j, x_{j_s}) )

    The largest distance to a centre is at most twice that of the best k points (Gonzalez 1985).
    Ties go to the smaller index. Only the distance to the nearest centre is kept, so memory is
    linear in the pool.

    Args:
      points: `[N, D]`, finite: the pool. Probabilities (PCoreSet), features (core sets), gradient
        embeddings (a deterministic BADGE).
      centers: `[L, D]`, finite: what is labelled already; L may be 0.
      k: how many, in [1, N].
      metric: "euclidean", or "cosine": 1 - cos(x, y), 1 where a vector is zero.
      first: the first point where there are no centres.

    Returns:
      Int64 `[k]`, distinct rows of `points`, in the order they were chosen.

    Raises:
      ValueError: shapes that do not match, numbers that are not finite, k or `first` out of range,
        an unknown metric.

    Source: Sener and Savarese 2018 (arXiv:1708.00489), algorithm 1; the points of Kang et al. 2025
      (PCoreSet, arXiv:2506.00910) are predicted probabilities.

    >>> pool = np.array([[0.9, 0.1, 0.0], [0, 1, 0], [0, 0, 1], [0.5, 0.5, 0]])
    >>> k_center_greedy(pool, np.array([[1.0, 0.0, 0.0]]), 3).tolist()
    [1, 2, 3]
    """
    points, centers = np.asarray(points, np.float64), np.asarray(centers, np.float64)
    if points.ndim != 2 or not points.size:
        raise ValueError(f"points must be [pool, features], got shape {points.shape}")
    if centers.size == 0:
        centers = np.empty((0, points.shape[1]))
    if centers.ndim != 2 or centers.shape[1] != points.shape[1]:
        raise ValueError(
            f"centers must be [centers, {points.shape[1]}] as points are, got {centers.shape}"
        )
    for name, x in (("points", points), ("centers", centers)):
        if x.size:
            check_finite(x, name)
    if metric not in METRICS:
        raise ValueError(f"metric must be one of {METRICS}, got {metric!r}")
    for name, value, low, high in (("k", k, 1, len(points)), ("first", first, 0, len(points) - 1)):
        if not low <= value <= high:
            raise ValueError(f"{name} must be in [{low}, {high}], got {value}")
    if metric == "cosine":
        points, centers = _unit(points), _unit(centers)
    nearest = np.full(len(points), np.inf)
    for center in centers:
        nearest = np.minimum(nearest, _distance(points, center, metric))
    chosen = np.empty(k, np.int64)
    for t in range(k):
        j = first if t == 0 and not len(centers) else int(np.argmax(nearest))
        chosen[t] = j
        nearest = np.minimum(nearest, _distance(points, points[j], metric))
        nearest[j] = -np.inf  # a point is chosen once, even where all others are as near
    return chosen


def covering_radius(
    points: Float[np.ndarray, "pool features"],
    centers: Float[np.ndarray, "centers features"],
    *,
    metric: str = "euclidean",
) -> float:
    """The largest distance of a point to its nearest centre: what `k_center_greedy` keeps small.

    Args:
      points: `[N, D]`.
      centers: `[L, D]`, at least one.
      metric: as for `k_center_greedy`.

    >>> covering_radius(np.array([[0.0], [3.0]]), np.array([[1.0]]))
    2.0
    """
    points, centers = np.asarray(points, np.float64), np.asarray(centers, np.float64)
    if metric not in METRICS:
        raise ValueError(f"metric must be one of {METRICS}, got {metric!r}")
    if not len(centers):
        raise ValueError("centers must hold at least one point")
    if metric == "cosine":
        points, centers = _unit(points), _unit(centers)
    nearest = np.full(len(points), np.inf)
    for center in centers:
        nearest = np.minimum(nearest, _distance(points, center, metric))
    return float(nearest.max())


def few_shot(
    labels: Int[np.ndarray, " examples"], shots: int, rng: np.random.Generator
) -> Int[np.ndarray, " chosen"]:
    """As many examples of every class, drawn without replacement.

    Args:
      labels: `[N]`.
      shots: of each class that occurs, at least 1.
      rng: of the draw.

    Returns:
      Int64 `[shots * classes]`, rows in ascending order.

    Raises:
      ValueError: shots below 1, or more than a class has examples.

    >>> rows = few_shot(np.array([0, 1, 0, 1, 1]), 2, np.random.default_rng(0))
    >>> len(rows), [row for row in (0, 2) if row in rows]
    (4, [0, 2])
    """
    labels = np.asarray(labels)
    if shots < 1:
        raise ValueError(f"shots must be at least 1, got {shots}")
    chosen = []
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        if len(rows) < shots:
            raise ValueError(f"class {label} has {len(rows)} examples, shots={shots} are wanted")
        chosen.append(rng.choice(rows, shots, replace=False))
    return np.sort(np.concatenate(chosen))


def entropy_scores(probs: Float[np.ndarray, "pool classes"]) -> Float[np.ndarray, " pool"]:
    """How unsure a model is of each example: the entropy of its prediction, in nats.

        H_i = - sum_c p_ic log(p_ic + 1e-10)

    Args:
      probs: `[N, C]`, rows that sum to 1.

    Returns:
      Float64 `[N]`.

    Raises:
      ValueError: rows that are no distributions.

    >>> entropy_scores(np.array([[0.5, 0.5], [1.0, 0.0]])).round(4).tolist()
    [0.6931, -0.0]
    """
    probs = _distributions(probs, "probs")
    return -(probs * np.log(probs + 1e-10)).sum(1)


def badge_embeddings(
    probs: Float[np.ndarray, "pool classes"], features: Float[np.ndarray, "pool features"]
) -> Float[np.ndarray, "pool embedding"]:
    """The gradient in the last layer that each example would give, were its prediction its label.

        g_i = (onehot(argmax p_i) - p_i) (x) f_i,    |g_i| = |onehot - p_i| |f_i|

    Short where the model is sure, so that distances between them weigh uncertainty and diversity.

    Args:
      probs: `[N, C]`, rows that sum to 1.
      features: `[N, D]`, what the last layer reads.

    Returns:
      Float64 `[N, C * D]`.

    Raises:
      ValueError: rows that are no distributions, features of other rows.

    Source: Ash et al. 2020 (BADGE), arXiv:1906.03671.

    >>> badge_embeddings(np.array([[0.75, 0.25]]), np.array([[1.0, 2.0]])).tolist()
    [[0.25, 0.5, -0.25, -0.5]]
    """
    probs = _distributions(probs, "probs")
    features = np.asarray(features, np.float64)
    if features.ndim != 2 or len(features) != len(probs):
        raise ValueError(
            f"features must be [{len(probs)}, features] as probs are, got shape {features.shape}"
        )
    check_finite(features, "features")
    gap = np.eye(probs.shape[1])[probs.argmax(1)] - probs
    return (gap[:, :, None] * features[:, None]).reshape(len(probs), -1)


def k_means_seeding(
    points: Float[np.ndarray, "pool features"], k: int, rng: np.random.Generator
) -> Int[np.ndarray, " k"]:
    """Points drawn by their squared distance to what was drawn before: k-means++.

        P(j_t = i) = D_i^2 / sum D^2,    D_i = min_{s < t} |x_i - x_{j_s}|

    The first is the longest vector, as in BADGE's code; where all distances are 0 the others are
    drawn evenly.

    Args:
      points: `[N, D]`, finite.
      k: how many, in [1, N].
      rng: of the draws.

    Returns:
      Int64 `[k]`, distinct rows in the order they were drawn.

    Raises:
      ValueError: points of another rank or not finite, k out of range.

    Source: Arthur and Vassilvitskii 2007; Ash et al. 2020 (BADGE), arXiv:1906.03671.

    >>> points = np.array([[0.0], [3.0], [3.0]])
    >>> k_means_seeding(points, 2, np.random.default_rng(0)).tolist()
    [1, 0]
    """
    points = np.asarray(points, np.float64)
    if points.ndim != 2 or not points.size:
        raise ValueError(f"points must be [pool, features], got shape {points.shape}")
    check_finite(points, "points")
    if not 1 <= k <= len(points):
        raise ValueError(f"k must be in [1, {len(points)}], got {k}")
    chosen = [int(np.argmax((points**2).sum(1)))]
    nearest = ((points - points[chosen[0]]) ** 2).sum(1)
    while len(chosen) < k:
        left = np.setdiff1d(np.arange(len(points)), chosen)
        chance = nearest[left]
        chance = chance / chance.sum() if chance.sum() > 0 else None
        chosen.append(int(rng.choice(left, p=chance)))
        nearest = np.minimum(nearest, ((points - points[chosen[-1]]) ** 2).sum(1))
    return np.array(chosen)


def class_balanced_quota(
    predicted: Int[np.ndarray, " pool"], labeled_counts: Int[np.ndarray, " classes"], k: int
) -> Int[np.ndarray, " classes"]:
    """How many examples to ask for of each predicted class: more where fewer are labelled.

        w_c ~ total / (count_c + 1) over the classes that are predicted,  sum w = 1
        quota_c = floor(k w_c), and one more for the largest w until there are k

    A class has no larger quota than it has predictions; what is cut off is not given to others.

    Args:
      predicted: `[N]`, the predicted class of each example of the pool.
      labeled_counts: `[C]`, how many labels each class has.
      k: how many in all, in [1, N].

    Returns:
      Int64 `[C]`, its sum at most k.

    Raises:
      ValueError: k out of range, a prediction outside the classes.

    Source: the code of Kang et al. 2025 (PCoreSet), arXiv:2506.00910.

    >>> class_balanced_quota(np.array([0, 0, 1, 1, 1]), np.array([3, 0, 5]), 3).tolist()
    [0, 3, 0]
    """
    predicted, counts = np.asarray(predicted), np.asarray(labeled_counts)
    if not 1 <= k <= len(predicted):
        raise ValueError(f"k must be in [1, {len(predicted)}], got {k}")
    if predicted.min() < 0 or predicted.max() >= len(counts):
        raise ValueError(f"predicted must lie in [0, {len(counts)}), got {np.unique(predicted)}")
    there = np.bincount(predicted, minlength=len(counts))
    weight = np.where(there > 0, counts.sum() / (counts + 1.0), 0.0)
    if not weight.any():  # nothing is labelled yet
        weight = (there > 0).astype(float)
    weight = weight / weight.sum()
    quota = np.floor(k * weight + 1e-9).astype(np.int64)
    order = np.argsort(-weight, kind="stable")[: np.count_nonzero(there)]
    quota[order[: k - quota.sum()]] += 1
    return np.minimum(quota, there)


def select(
    strategy: str,
    k: int,
    *,
    probs: Float[np.ndarray, "pool classes"],
    features: Float[np.ndarray, "pool features"],
    labeled_probs: Float[np.ndarray, "labeled classes"],
    labeled_features: Float[np.ndarray, "labeled features"],
    labels: Int[np.ndarray, " labeled"],
    rng: np.random.Generator,
) -> Int[np.ndarray, " k"]:
    """The examples of a pool whose labels to ask for next.

        pcoreset        farthest predictions from those of labelled examples, in probability space
        coreset         farthest features, by cosine
        entropy         the least sure
        badge           farthest gradient embeddings, by cosine: ActiveKD's code, draws nothing
        badge_sampled   gradient embeddings drawn by k-means++: BADGE as published
        class_balanced  by predicted class, more of those with few labels; random within a class
        random

    Args:
      strategy: one of `STRATEGIES`.
      k: how many, in [1, N].
      probs, features: `[N, C]` and `[N, D]`, the model's answers on the pool.
      labeled_probs, labeled_features: `[L, C]` and `[L, D]`, those on what is labelled, L >= 0.
      labels: `[L]`.
      rng: for those that draw.

    Returns:
      Int64 `[k]`, distinct rows of the pool.

    Raises:
      ValueError: an unknown strategy, k out of range, rows that are no distributions, numbers that
        are not finite.

    Source: Kang et al. 2025 (PCoreSet), arXiv:2506.00910, and its code.

    >>> probs, one = np.array([[0.9, 0.1], [0.1, 0.9]]), np.array([[1.0, 0.0]])
    >>> answers = dict(probs=probs, features=probs, labeled_probs=one, labeled_features=one)
    >>> rng = np.random.default_rng(0)
    >>> select("pcoreset", 1, **answers, labels=np.array([0]), rng=rng).tolist()
    [1]
    """
    if strategy not in STRATEGIES:
        raise ValueError(f"strategy must be one of {STRATEGIES}, got {strategy!r}")
    probs = _distributions(probs, "probs")
    if not 1 <= k <= len(probs):
        raise ValueError(f"k must be in [1, {len(probs)}], got {k}")
    if strategy == "random":
        return rng.choice(len(probs), k, replace=False)
    if strategy == "pcoreset":
        return k_center_greedy(probs, _distributions(labeled_probs, "labeled_probs", least=0), k)
    if strategy == "coreset":
        return k_center_greedy(features, labeled_features, k, metric="cosine")
    if strategy == "entropy":
        return np.argsort(-entropy_scores(probs), kind="stable")[:k]
    if strategy == "badge":
        # Unit vectors have no longest one: the first is row 0, as there.
        return k_center_greedy(badge_embeddings(probs, features), np.empty(0), k, metric="cosine")
    if strategy == "badge_sampled":
        return k_means_seeding(badge_embeddings(probs, features), k, rng)
    predicted = probs.argmax(1)
    quota = class_balanced_quota(predicted, np.bincount(labels, minlength=probs.shape[1]), k)
    chosen = [
        rng.choice(np.flatnonzero(predicted == label), count, replace=False)
        for label, count in enumerate(quota)
    ]
    chosen = np.concatenate(chosen).astype(np.int64)
    left = np.setdiff1d(np.arange(len(probs)), chosen)
    return np.concatenate([chosen, rng.choice(left, k - len(chosen), replace=False)])


def moved(
    labeled: Int[np.ndarray, " labeled"], chosen: Int[np.ndarray, " chosen"], size: int
) -> Int[np.ndarray, " more"]:
    """The labelled rows of a data set after the chosen ones have got their labels.

    Args:
      labeled: `[L]`, rows that were labelled before.
      chosen: `[k]`, rows to add.
      size: of the data set.

    Raises:
      ValueError: a chosen row that is labelled already, chosen twice, or not in the data set.

    >>> moved(np.array([4]), np.array([0, 2]), 5).tolist()
    [4, 0, 2]
    """
    chosen = np.asarray(chosen)
    for row in chosen:
        if not 0 <= row < size:
            raise ValueError(f"row {row} was chosen, but the data set has {size}")
    for what, twice in (("labelled already", np.isin(chosen, labeled)), ("chosen twice", None)):
        rows = chosen[twice] if twice is not None else _repeated(chosen)
        if len(rows):
            raise ValueError(f"row {rows[0]} was chosen, but is {what}")
    return np.concatenate([labeled, chosen])


def _repeated(rows: np.ndarray) -> np.ndarray:
    found, counts = np.unique(rows, return_counts=True)
    return found[counts > 1]


def _distributions(probs: np.ndarray, name: str, least: int = 1) -> np.ndarray:
    """At least so many rows as float64, refused where they are no distributions."""
    probs = np.asarray(probs, np.float64)
    if probs.ndim != 2 or len(probs) < least or not probs.shape[1]:
        raise ValueError(f"{name} must be [examples, classes], got shape {probs.shape}")
    check_finite(probs, name)
    wrong = np.flatnonzero((probs < 0).any(1) | (abs(probs.sum(1) - 1) > 1e-4))
    if len(wrong):
        raise ValueError(
            f"{name}, example {wrong[0]}: probabilities must be >= 0 and sum to 1, got "
            f"{probs[wrong[0]]}"
        )
    return probs


def _unit(x: np.ndarray) -> np.ndarray:
    norm = np.linalg.norm(x, axis=1, keepdims=True)
    return np.where(norm > 0, x / np.where(norm > 0, norm, 1), 0.0)


def _distance(points: np.ndarray, center: np.ndarray, metric: str) -> np.ndarray:
    if metric == "cosine":
        return 1 - points @ center
    return np.sqrt(((points - center) ** 2).sum(1))
