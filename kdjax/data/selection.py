"""Which examples to ask for: host mathematics on predictions or features of a pool."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from kdjax.data.source import check_finite

METRICS = ("euclidean", "cosine")


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

    Source: Sener and Savarese 2018 (arXiv:1708.00489), algorithm 1; the points of Kim et al. 2025
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


def _unit(x: np.ndarray) -> np.ndarray:
    norm = np.linalg.norm(x, axis=1, keepdims=True)
    return np.where(norm > 0, x / np.where(norm > 0, norm, 1), 0.0)


def _distance(points: np.ndarray, center: np.ndarray, metric: str) -> np.ndarray:
    if metric == "cosine":
        return 1 - points @ center
    return np.sqrt(((points - center) ** 2).sum(1))
