"""How well scores between images and texts find the pairs: recall, ranks, average precision.

Every function computes in float64 on the host. Scores are `[I, T]`, an image a row, and text t
belongs to image `text_image_ids[t]`; an image may have several texts. The rank of an item is
1 + how many score more + how many others score the same / 2 (or all of these, where ties are
"pessimistic"): constant scores find nothing, whatever the order of the items.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

Array = jax.Array | np.ndarray
Scores = Float[Array, "images texts"]
Ids = Int[Array, " texts"]


class Ranks(NamedTuple):
    """Where the right items are found, from 1.

    Attributes:
      text: `[I]`, of the best placed own text of each image, among the texts of other images.
      image: `[T]`, of the own image of each text, among the images.
    """

    text: np.ndarray
    image: np.ndarray


class Recalls(NamedTuple):
    """The share of queries with a right item among the first k, by k.

    Attributes:
      text: image to text, any own text counts.
      image: text to image.
    """

    text: dict[int, float]
    image: dict[int, float]


def retrieval_ranks(scores: Scores, text_image_ids: Ids, *, ties: str = "mean") -> Ranks:
    """The rank of the right item of every query, in both directions.

        rank = 1 + #{score > own} + #{score = own, not own} / 2

    Own texts of an image do not stand in each other's way.

    Args:
      scores: `[I, T]`, finite; larger is a better match.
      text_image_ids: `[T]`, integers in [0, I); every image has a text.
      ties: "mean", or "pessimistic": the items of the same score come first.

    Returns:
      `Ranks`; halves occur where ties are "mean".

    Raises:
      ValueError: shapes that do not match, scores that are not finite, an image that does not
        exist or has no text, unknown ties.

    >>> retrieval_ranks(np.array([[0.9, 0.1, 0.5], [0.8, 0.2, 0.2]]), np.array([0, 1, 1]))
    Ranks(text=array([1., 2.]), image=array([1., 1., 2.]))
    """
    values, ids = _checked(scores, text_image_ids)
    if ties not in ("mean", "pessimistic"):
        raise ValueError(f"ties must be 'mean' or 'pessimistic', got {ties!r}")
    tied = 0.5 if ties == "mean" else 1.0
    own = ids == np.arange(len(values))[:, None]
    best = np.where(own, values, -np.inf).max(1, keepdims=True)
    text = 1 + ((values > best) + tied * (values == best) * ~own).sum(1)
    right = values[ids, np.arange(len(ids))]
    image = 1 + ((values > right) + tied * (values == right) * ~own).sum(0)
    return Ranks(text, image)


def recall_at_k(
    scores: Scores,
    text_image_ids: Ids,
    ks: Sequence[int] = (1, 5, 10),
    *,
    ties: str = "mean",
    num_folds: int = 1,
) -> Recalls:
    """The share of queries that find a right item among the first k, in both directions.

    Flickr30K: 1000 images with 5 texts each. COCO: all 5000 images ("5K"), or the mean over
    5 folds of 1000 ("1K"), each with its own texts.

    Args:
      scores: `[I, T]`, finite; larger is a better match.
      text_image_ids: `[T]`, integers in [0, I); every image has a text.
      ks: each at least 1.
      ties: "mean" or "pessimistic"; see `retrieval_ranks`.
      num_folds: consecutive equal parts of the images, over which the recalls are averaged.

    Returns:
      `Recalls`, numbers in [0, 1] that do not fall with k.

    Raises:
      ValueError: as `retrieval_ranks`; a k below 1, folds that are not equal parts.

    Source: Karpathy and Fei-Fei 2015 (arXiv:1412.2306).

    >>> recalls = recall_at_k(np.array([[0.9, 0.1], [0.8, 0.2]]), np.array([0, 1]), ks=(1, 2))
    >>> recalls.text, recalls.image
    ({1: 0.5, 2: 1.0}, {1: 1.0, 2: 1.0})
    """
    values, ids = _checked(scores, text_image_ids)
    if min(ks) < 1:
        raise ValueError(f"ks must be at least 1, got {min(ks)}")
    if num_folds < 1 or len(values) % num_folds:
        raise ValueError(f"num_folds must divide {len(values)}, the images, got {num_folds}")
    size = len(values) // num_folds
    folds = []
    for start in range(0, len(values), size):
        texts = (ids >= start) & (ids < start + size)
        part = values[start : start + size, texts]
        folds.append(retrieval_ranks(part, ids[texts] - start, ties=ties))

    def recall(direction: str, k: int) -> float:
        return float(np.mean([(getattr(fold, direction) <= k).mean() for fold in folds]))

    return Recalls({k: recall("text", k) for k in ks}, {k: recall("image", k) for k in ks})


def rsum(recalls: Recalls) -> float:
    """The sum of all recalls in per cent: of six, for k = 1, 5, 10 in both directions.

    Args:
      recalls: what `recall_at_k` returns.

    Returns:
      A number in [0, 600] for three k.

    >>> rsum(Recalls({1: 0.5, 5: 1.0, 10: 1.0}, {1: 0.25, 5: 0.5, 10: 1.0}))
    425.0
    """
    return 100 * sum([*recalls.text.values(), *recalls.image.values()])


def mean_rank(ranks: Float[Array, " queries"]) -> float:
    """The mean rank of the right item: `ranks` of one direction.

    >>> mean_rank(np.array([1.0, 2.0, 6.0]))
    3.0
    """
    return float(np.mean(_ranks(ranks)))


def median_rank(ranks: Float[Array, " queries"]) -> float:
    """The median rank of the right item: `ranks` of one direction.

    >>> median_rank(np.array([1.0, 2.0, 6.0]))
    2.0
    """
    return float(np.median(_ranks(ranks)))


def map_at_r(
    scores: Float[Array, "queries items"], relevant: Bool[Array, "queries items"]
) -> float:
    """Mean average precision over the first R results, R the number of relevant items.

        AP = 1/R sum_{i <= R} [item at i is relevant] (relevant items among the first i) / i

    Of items with the same score those that are not relevant come first.

    Args:
      scores: `[Q, N]`, finite. Leave out the query itself where it is among the items.
      relevant: `[Q, N]`, bool, at least one a query.

    Returns:
      The mean over the queries, in [0, 1]; 1 where all R relevant items come first.

    Raises:
      ValueError: shapes that do not match, scores that are not finite, a query without a relevant
        item.

    Source: Musgrave et al. 2020 (arXiv:2003.08505), section 4.

    >>> map_at_r(np.array([[3.0, 2.0, 1.0]]), np.array([[True, False, True]]))
    0.5
    """
    values, relevant = _finite("scores", scores), np.asarray(relevant)
    if relevant.dtype != bool or relevant.shape != values.shape:
        raise ValueError(
            f"relevant must be bool {values.shape} like scores, "
            f"got {relevant.dtype} {relevant.shape}"
        )
    count = relevant.sum(1, keepdims=True)
    if not count.all():
        raise ValueError(f"relevant has no item for query {int(np.argmin(count))}")
    hits = np.take_along_axis(relevant, np.lexsort((relevant, -values)), 1)
    places = np.arange(1, values.shape[1] + 1)
    precision = hits.cumsum(1) / places * (hits & (places <= count))
    return float((precision.sum(1) / count[:, 0]).mean())


def rerank(
    dual_scores: Float[Array, "queries items"],
    cross_scores: Float[Array, "queries items"],
    k: int,
) -> Float[np.ndarray, "queries items"]:
    """Two stages: the k best items of the first scores, in the order of the second ones.

    Args:
      dual_scores: `[Q, N]`, finite; of the cheap model. A tie for place k goes to the smaller item.
      cross_scores: `[Q, N]`; of the expensive one. Only those of the k items are looked at.
      k: in [1, N].

    Returns:
      Scores `[Q, N]` that order each row so: the k items above the others, among themselves as
      `cross_scores` and the others as `dual_scores` have it, ties included. For text to image
      reranking pass transposed scores.

    Raises:
      ValueError: shapes that do not match, scores looked at that are not finite, k out of range.

    >>> rerank(np.array([[3.0, 2.0, 1.0]]), np.array([[0.0, 5.0, 9.0]]), k=2).tolist()
    [[1.0, 2.0, -3.0]]
    """
    dual, cross = _finite("dual_scores", dual_scores), np.asarray(cross_scores, np.float64)
    if cross.shape != dual.shape:
        raise ValueError(f"cross_scores must be {dual.shape} like dual_scores, got {cross.shape}")
    if not 1 <= k <= dual.shape[1]:
        raise ValueError(f"k must lie in [1, {dual.shape[1]}], the number of items, got {k}")
    chosen = np.argsort(-dual, axis=1, kind="stable")[:, :k]
    best = _finite("cross_scores", np.take_along_axis(cross, chosen, 1))
    # Places among the values instead of the values: of any size, they do not meet.
    reranked = np.stack([np.unique(-row, return_inverse=True)[1] for row in dual]) * -1.0 - 1
    places = [np.unique(row, return_inverse=True)[1] for row in best]
    np.put_along_axis(reranked, chosen, np.stack(places) + 1.0, 1)
    return reranked


def _finite(name: str, scores: Array) -> np.ndarray:
    values = np.asarray(scores)
    if values.ndim != 2 or not values.size:
        raise ValueError(f"{name} must be [queries, items], got shape {values.shape}")
    values = values.astype(np.float64)
    if not np.isfinite(values).all():
        bad = int(np.argmin(np.isfinite(values).all(-1)))
        raise ValueError(f"{name} is not finite in row {bad}")
    return values


def _checked(scores: Scores, text_image_ids: Ids) -> tuple[np.ndarray, np.ndarray]:
    values, ids = _finite("scores", scores), np.asarray(text_image_ids)
    if ids.shape != values.shape[1:]:
        raise ValueError(
            f"text_image_ids must have shape {values.shape[1:]}, one a text, got {ids.shape}"
        )
    if not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(f"text_image_ids must be integers, got {ids.dtype}")
    outside = (ids < 0) | (ids >= len(values))
    if outside.any():
        raise ValueError(
            f"text_image_ids must lie in [0, {len(values)}), got {int(ids[outside][0])}"
        )
    missing = np.bincount(ids, minlength=len(values)) == 0
    if missing.any():
        raise ValueError(f"image {int(np.argmax(missing))} has no text in text_image_ids")
    return values, ids


def _ranks(ranks: Array) -> np.ndarray:
    values = np.asarray(ranks, np.float64)
    if values.ndim != 1 or not values.size or not (values >= 1).all():
        raise ValueError(f"ranks must be [queries] and at least 1, got shape {values.shape}")
    return values
