"""Whether two networks represent examples alike, and whether two losses pull the same way.

Representations are `[N, ...]`, one row an example; what follows the first axis is flattened, so
the two need not have the same number of features. As elsewhere here: float64 on the host, `where`
keeps examples, one number comes back.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float

Array = jax.Array | np.ndarray
Representation = Float[Array, "examples *features"]
Mask = Bool[Array, " examples"]
PyTree = Any


def linear_cka(
    x: Representation, y: Representation, *, unbiased: bool = False, where: Mask | None = None
) -> float:
    """Centred kernel alignment with a linear kernel: how alike two networks see the examples.

        CKA = HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)),   K = X X^T,  L = Y Y^T

    Unchanged by a rotation, a common scale or an offset of either side; not by a general linear
    map. Without `unbiased` it is ||Y^T X||^2 / (||X^T X|| ||Y^T Y||) of centred features, which
    tends to 1 for more features than examples, whatever they are; use many examples or `unbiased`.

    Args:
      x: `[N, ...]`, finite.
      y: `[N, ...]`, finite, of the same examples.
      unbiased: take HSIC_1, which is about 0 for unrelated features; N >= 4.
      where: `[N]`, bool; the examples that count. None: all.

    Returns:
      A number in [0, 1]; unbiased in about [-1, 1]. 0 where one side is the same for all.

    Raises:
      ValueError: different examples, too few of them, or values that are not finite.

    Source: Kornblith et al. 2019, arXiv:1905.00414; HSIC_1: Song et al. 2012, JMLR 13.

    >>> x = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]])
    >>> round(linear_cka(x, 3 * x[:, ::-1] + 7), 6)
    1.0
    """
    x, y = _rows(x, y, 4 if unbiased else 2, where)
    x, y = x - x.mean(0), y - y.mean(0)
    if unbiased:
        return _alignment(*_hsic_terms(x @ x.T, y @ y.T))
    if max(x.shape[1], y.shape[1]) > len(x):
        return _alignment(*_centred_terms(x @ x.T, y @ y.T))
    return _alignment(*(np.square(a.T @ b).sum() for a, b in ((x, y), (x, x), (y, y))))


def rbf_cka(
    x: Representation,
    y: Representation,
    *,
    bandwidth: float = 1.0,
    unbiased: bool = False,
    where: Mask | None = None,
) -> float:
    """Centred kernel alignment with a Gaussian kernel: similar in who is near whom.

        CKA as in `linear_cka`,   K_ij = exp(-|x_i - x_j|^2 / (2 (bandwidth m)^2))

    with m the median distance between two different examples, so that scales do not count. Wide
    kernels are like the linear one, narrow ones see neighbours only.

    Args:
      x: `[N, ...]`, finite.
      y: `[N, ...]`, finite, of the same examples.
      bandwidth: > 0, in units of the median distance.
      unbiased: take HSIC_1; N >= 4.
      where: `[N]`, bool; the examples that count. None: all.

    Returns:
      A number in [0, 1]; unbiased in about [-1, 1]. 0 where one side is the same for all.

    Raises:
      ValueError: different examples, too few of them, values that are not finite, bandwidth <= 0.

    Source: Kornblith et al. 2019, arXiv:1905.00414.

    >>> x = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]])
    >>> round(rbf_cka(x, 3 * x[:, ::-1] + 7), 6)
    1.0
    """
    if not bandwidth > 0:
        raise ValueError(f"bandwidth must be > 0, got {bandwidth}")
    kernels = (_gaussian(z, bandwidth) for z in _rows(x, y, 4 if unbiased else 2, where))
    return _alignment(*(_hsic_terms if unbiased else _centred_terms)(*kernels))


def minibatch_cka(batches: Iterable[tuple[Representation, Representation]]) -> float:
    """Linear CKA of a data set, from batches that fit into memory.

        CKA = sum_b HSIC_1(K_b, L_b) / sqrt( sum_b HSIC_1(K_b, K_b)  sum_b HSIC_1(L_b, L_b) )

    The estimate does not depend on the size of the batches, as a mean of biased ones would; it
    only gets noisier. Shuffle: a batch must be a sample of the data.

    Args:
      batches: pairs (x, y) as in `linear_cka`, each of N >= 4 examples; batches weigh the same.

    Returns:
      A number in about [-1, 1].

    Raises:
      ValueError: no batch, or one that `linear_cka` would refuse.

    Source: Nguyen et al. 2021, arXiv:2010.15327, section 3.

    >>> x = np.random.default_rng(0).normal(size=(40, 3))
    >>> round(minibatch_cka((x[i : i + 8], 2 * x[i : i + 8]) for i in range(0, 40, 8)), 6)
    1.0
    """
    terms = []
    for x, y in batches:
        x, y = _rows(x, y, 4, None)
        terms.append(_hsic_terms(x @ x.T, y @ y.T))
    if not terms:
        raise ValueError("batches holds no batch")
    return _alignment(*np.sum(terms, axis=0))


def gradient_cosine(first: PyTree, second: PyTree) -> float:
    """The cosine between two gradients: below 0 the two losses pull against each other.

        cos = <g, h> / (|g| |h|),   over all leaves together

    For instance of the cross-entropy and of the distillation loss in a student's parameters. A
    subtree (one layer) may be given to see where the conflict lies.

    Args:
      first: a pytree of arrays, finite.
      second: a pytree of the same structure and shapes.

    Returns:
      A number in [-1, 1]; 0 where a gradient is zero.

    Raises:
      ValueError: trees that differ in structure or shape, or values that are not finite.

    Source: Yu et al. 2020 (gradient surgery), arXiv:2001.06782, definition 1.

    >>> round(gradient_cosine({"w": np.array([1.0, 0.0])}, {"w": np.array([-1.0, 1.0])}), 4)
    -0.7071
    """
    structures = [jax.tree.structure(tree) for tree in (first, second)]
    if structures[0] != structures[1]:
        raise ValueError(f"first and second must have one structure, got {structures}")
    products = np.zeros(3)
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second)):
        if np.shape(a) != np.shape(b):
            raise ValueError(
                f"first and second must have one shape, got {np.shape(a)}, {np.shape(b)}"
            )
        a, b = (np.asarray(z, np.float64).reshape(-1) for z in (a, b))
        products += np.array([a @ b, a @ a, b @ b])
    if not np.isfinite(products).all():
        raise ValueError("first and second must be finite")
    return _alignment(*products)


def _rows(
    x: Representation, y: Representation, minimum: int, where: Mask | None
) -> tuple[np.ndarray, np.ndarray]:
    arrays = []
    for name, z in (("x", x), ("y", y)):
        z = np.asarray(z)
        if z.ndim < 2:
            raise ValueError(f"{name} must be [examples, ...features], got shape {z.shape}")
        arrays.append(z.reshape(len(z), -1))
    if len(arrays[0]) != len(arrays[1]):
        raise ValueError(
            f"x and y must hold the same examples, got {len(arrays[0])} and {len(arrays[1])}"
        )
    if where is not None:
        mask = np.asarray(where)
        if mask.dtype != bool or mask.shape != (len(arrays[0]),):
            raise ValueError(
                f"where must be bool ({len(arrays[0])},) like x without its features, "
                f"got {mask.dtype} {mask.shape}"
            )
        arrays = [z[mask] for z in arrays]
    if len(arrays[0]) < minimum:
        raise ValueError(f"x and y must hold at least {minimum} examples, got {len(arrays[0])}")
    for name, z in zip("xy", arrays):
        if not np.isfinite(z.astype(np.float64)).all():
            raise ValueError(f"{name} is not finite")
    return tuple(z.astype(np.float64) for z in arrays)


def _alignment(between: float, of_first: float, of_second: float) -> float:
    # An unbiased HSIC of one side with itself may come out negative where it is about 0.
    scale = np.sqrt(max(of_first, 0.0)) * np.sqrt(max(of_second, 0.0))
    return float(between / scale) if scale > 0 else 0.0


def _centred_terms(first: np.ndarray, second: np.ndarray) -> tuple[float, float, float]:
    """HSIC of (K, L), (K, K) and (L, L), up to a factor."""

    def centred(kernel: np.ndarray) -> np.ndarray:
        kernel = kernel - kernel.mean(0)
        return kernel - kernel.mean(1, keepdims=True)

    k, l = centred(first), centred(second)
    return (k * l).sum(), np.square(k).sum(), np.square(l).sum()


def _hsic_terms(first: np.ndarray, second: np.ndarray) -> tuple[float, float, float]:
    """HSIC_1 of (K, L), (K, K) and (L, L)."""
    n = len(first)

    def hsic(k: np.ndarray, l: np.ndarray) -> float:
        total = (k * l).sum() + k.sum() * l.sum() / ((n - 1) * (n - 2))
        return (total - 2 * k.sum(0) @ l.sum(0) / (n - 2)) / (n * (n - 3))

    k, l = (kernel - np.diag(np.diag(kernel)) for kernel in (first, second))
    return hsic(k, l), hsic(k, k), hsic(l, l)


def _gaussian(z: np.ndarray, bandwidth: float) -> np.ndarray:
    z = z - z.mean(0)
    square = np.square(z).sum(1)
    distance = np.maximum(square[:, None] + square - 2 * z @ z.T, 0.0)
    np.fill_diagonal(distance, 0.0)
    median = np.median(distance[~np.eye(len(z), dtype=bool)])
    if median == 0:
        median = distance.max()
    return np.exp(-distance / (2 * bandwidth**2 * median)) if median > 0 else np.ones_like(distance)
