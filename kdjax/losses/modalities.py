"""Missing modalities: which subsets there are, how one is drawn, and what a missing one becomes.

A mask is boolean, [batch, modalities] or [modalities]: True where the modality is present. The
three samplers draw differently: with M = 3 all modalities are present with probability 1/7
(`sample_subset_mask`), 1/3 (`sample_subset_by_size`) or (1 - p)^3 (`bernoulli_mask`).
"""

import itertools
from collections.abc import Mapping
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, UInt32
from numpy import ndarray

from kdjax.losses import checks
from kdjax.losses.checks import Scalar

RandomKey = Key[Array, ""] | UInt32[Array | ndarray, " words"]
Mask = Bool[Array, "batch modalities"]
Features = Float[Array | ndarray, "batch modalities *features"]
Present = Bool[Array | ndarray, "batch modalities"]


def all_modality_subsets(num_modalities: int) -> Bool[Array, "subsets modalities"]:
    """Every non-empty subset, smaller ones first, those of a size in lexicographic order.

    The rows of the table that an incomplete-modality method reports. Rank them, and choose a
    threshold or an epoch by them, on a validation split.

    Args:
      num_modalities: integer from 1 to 16.

    Returns:
      Booleans [2^modalities - 1, modalities].

    Raises:
      ValueError: num_modalities out of range.

    Source: Wei et al. 2023 (MMANet), arXiv:2304.08028.

    >>> all_modality_subsets(2).astype(int).tolist()
    [[1, 0], [0, 1], [1, 1]]
    """
    checks.count(1, 16, num_modalities=num_modalities)
    modalities = range(num_modalities)
    subsets = [
        np.isin(modalities, subset)
        for size in range(1, num_modalities + 1)
        for subset in itertools.combinations(modalities, size)
    ]
    return jnp.asarray(np.stack(subsets))


def sample_subset_mask(
    key: RandomKey,
    num_modalities: int,
    *,
    batch_size: int,
    probs: Float[Array | ndarray, " subsets"] | None = None,
) -> Mask:
    """A subset an example, each with the same probability.

    Args:
      key: a PRNG key.
      num_modalities: integer from 1 to 16.
      batch_size: integer >= 1.
      probs: floats [2^modalities - 1], >= 0, of the rows of `all_modality_subsets`; they need not
        sum to 1. None: all the same.

    Returns:
      Booleans [batch_size, modalities], a True in every row.

    Raises:
      ValueError: sizes out of range, probs of another shape. TypeError: probs that are not floats.

    Source: Wei et al. 2023 (MMANet), arXiv:2304.08028.

    >>> import jax
    >>> sample_subset_mask(jax.random.key(0), 1, batch_size=2).tolist()
    [[True], [True]]
    """
    checks.count(1, batch_size=batch_size)
    subsets = all_modality_subsets(num_modalities)
    if probs is None:
        rows = jax.random.randint(key, (batch_size,), 0, len(subsets))
    else:
        (probs,) = checks.shaped({"probs": "subsets"}, probs=probs)
        if len(probs) != len(subsets):
            raise ValueError(
                f"probs must be shaped [{len(subsets)}], one a subset of {num_modalities} "
                f"modalities, got shape {probs.shape}"
            )
        rows = jax.random.categorical(key, jnp.log(probs), shape=(batch_size,))
    return subsets[rows]


def sample_subset_by_size(key: RandomKey, num_modalities: int) -> Bool[Array, " modalities"]:
    """One subset for the whole batch: its size is uniform, then the subset of that size.

    Args:
      key: a PRNG key.
      num_modalities: integer from 1 to 16.

    Returns:
      Booleans [modalities], at least one of them True.

    Raises:
      ValueError: num_modalities out of range.

    Source: Zheng et al. 2024 (AnySeg), arXiv:2411.17141.

    >>> import jax
    >>> sample_subset_by_size(jax.random.key(0), 1).tolist()
    [True]
    """
    checks.count(1, 16, num_modalities=num_modalities)
    of_size, of_subset = jax.random.split(key)
    size = jax.random.randint(of_size, (), 1, num_modalities + 1)
    return jax.random.permutation(of_subset, num_modalities) < size


def bernoulli_mask(
    key: RandomKey,
    num_modalities: int,
    *,
    batch_size: int,
    drop_rate: Scalar,
    keep_at_least_one: bool = True,
) -> Mask:
    """Every modality of every example is dropped on its own.

    Args:
      key: a PRNG key.
      num_modalities: integer from 1 to 16.
      batch_size: integer >= 1.
      drop_rate: scalar in [0, 1], may be traced.
      keep_at_least_one: whether an example that lost all gets one back, each with the same
        probability (which makes the rate of drops smaller than drop_rate).

    Returns:
      Booleans [batch_size, modalities].

    Raises:
      ValueError: sizes out of range, drop_rate outside [0, 1].

    Source: Neverova et al. 2016 (ModDrop), arXiv:1501.00102.

    >>> import jax
    >>> mask = bernoulli_mask(jax.random.key(0), 3, batch_size=4, drop_rate=1.0)
    >>> mask.sum(axis=1).tolist()
    [1, 1, 1, 1]
    """
    checks.count(1, 16, num_modalities=num_modalities)
    checks.count(1, batch_size=batch_size)
    checks.fraction(drop_rate=drop_rate)
    of_drops, of_rescue = jax.random.split(key)
    shape = (batch_size, num_modalities)
    mask = jax.random.uniform(of_drops, shape) >= drop_rate
    if not keep_at_least_one:
        return mask
    rescued = jax.random.randint(of_rescue, (batch_size, 1), 0, num_modalities)
    lost_all = ~jnp.any(mask, axis=1, keepdims=True)
    return mask | (lost_all & (jnp.arange(num_modalities) == rescued))


def fixed_missing_lists(
    seed: int, num_examples: int, rates: Mapping[str, float]
) -> dict[str, Int[ndarray, " missing"]]:
    """Which examples of a split lack which modality, once and for all, on the host.

    Exact counts, round(rate num_examples), half to even; the lists are disjoint, so no example
    lacks two. Keep them with the split; hide at test what the protocol says.

    Args:
      seed: integer.
      num_examples: integer >= 1.
      rates: {modality: share of examples that lack it}, each in [0, 1], together at most 1.

    Returns:
      {modality: int64 [missing], ascending}.

    Raises:
      ValueError: num_examples < 1, a rate outside [0, 1], more missing than examples.

    Source: Xu et al. 2025 (DisPro), arXiv:2503.01653.

    >>> lists = fixed_missing_lists(0, 10, {"slide": 0.3, "genes": 0.3})
    >>> {name: len(missing) for name, missing in lists.items()}
    {'slide': 3, 'genes': 3}
    """
    checks.count(1, num_examples=num_examples)
    for name, rate in rates.items():
        checks.fraction(**{f"rates[{name!r}]": rate})
    # 0.1 of 25 is 2.5, which the nearest binary fraction is not.
    counts = [round(Fraction(str(rate)) * num_examples) for rate in rates.values()]
    if sum(counts) > num_examples:
        raise ValueError(
            f"rates must sum to at most 1, got {dict(rates)}: {sum(counts)} of {num_examples}"
        )
    order = np.random.default_rng(seed).permutation(num_examples)
    ends = np.cumsum([0, *counts])
    return {name: np.sort(order[start:end]) for name, start, end in zip(rates, ends[:-1], ends[1:])}


def apply_modality_mask(
    features: Features,
    placeholders: Float[Array | ndarray, "modalities *features"] | None = None,
    *,
    where: Present,
) -> Float[Array, "batch modalities *features"]:
    """The features of the modalities that are present, and what stands for the others.

        without placeholders:  f  if present, else 0
        with placeholders:     (f + placeholder) / 2  if present, else placeholder

    What is present is not scaled up by the number of the missing, as dropout would. A missing
    modality has no influence: its features may be NaN.

    Args:
      features: floats [batch, modalities, ...]. Differentiated where present.
      placeholders: floats [modalities, ...], learnable. Differentiated.
      where: booleans [batch, modalities]; True: present.

    Returns:
      Floats [batch, modalities, ...].

    Raises:
      ValueError: shapes that do not fit. TypeError: features or placeholders that are not floats,
        where that is not boolean.

    Source: Wei et al. 2023 (MMANet), arXiv:2304.08028; Xu et al. 2025 (DisPro), arXiv:2503.01653.

    >>> import jax.numpy as jnp
    >>> features, where = jnp.array([[[2.0], [4.0]]]), jnp.array([[True, False]])
    >>> apply_modality_mask(features, where=where).tolist()
    [[[2.0], [0.0]]]
    >>> apply_modality_mask(features, jnp.array([[6.0], [8.0]]), where=where).tolist()
    [[[4.0], [8.0]]]
    """
    where, features = _present(where, features)
    if placeholders is None:
        return features
    features, placeholders = checks.shaped(
        {"features": "...", "placeholders": "..."},
        features=features,
        placeholders=_like_an_example(placeholders, features),
    )
    return jnp.where(where, (features + placeholders) / 2, placeholders)


def masked_mean_fusion(features: Features, *, where: Present) -> Float[Array, "batch *features"]:
    """The mean over the modalities that are present; 0 where none is.

        f = sum_m where_m f_m / sum_m where_m

    Args:
      features: floats [batch, modalities, ...]. Differentiated where present.
      where: booleans [batch, modalities]; True: present.

    Returns:
      Floats [batch, ...].

    Raises:
      ValueError: shapes that do not fit. TypeError: features that are not floats, where that is not
        boolean.

    Source: Zheng et al. 2024 (AnySeg), arXiv:2411.17141.

    >>> import jax.numpy as jnp
    >>> features, where = jnp.array([[2.0, 4.0, jnp.nan]]), jnp.array([[True, True, False]])
    >>> masked_mean_fusion(features, where=where).tolist()
    [3.0]
    """
    where, features = _present(where, features)
    return jnp.sum(features, axis=1) / jnp.maximum(jnp.sum(where, axis=1), 1)


def _present(where: Present, features: Features) -> tuple[Array, Array]:
    """The mask with the axes of the features, and the features with 0 where it is False."""
    features = jnp.asarray(features)
    if features.ndim < 2:
        raise ValueError(
            f"features must be shaped [batch, modalities, ...], got shape {features.shape}"
        )
    (features,) = checks.shaped({"features": "..."}, features=features)
    where = checks.boolean("where", where, features.shape[:2], "the features' batch and modalities")
    where = where.reshape(*where.shape, *(1,) * (features.ndim - 2))
    return where, jnp.where(where, features, 0.0)


def _like_an_example(placeholders: Array, features: Array) -> Array:
    placeholders = jnp.asarray(placeholders)
    if placeholders.shape != features.shape[1:]:
        raise ValueError(
            f"placeholders must have the shape {features.shape[1:]} of an example's features, "
            f"got {placeholders.shape}"
        )
    return jnp.broadcast_to(placeholders, features.shape)
