"""Vector quantisation by a codebook, and by several that each quantise what the last one left.

Vectors are [..., features], a codebook is [codes, features]. Distances between a vector and a code
are squared Euclidean ones, taken in one matrix product.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from kdjax.losses import checks
from kdjax.losses.checks import Scalar

Vectors = Float[Array | np.ndarray, "*batch features"]
Codebook = Float[Array | np.ndarray, "codes features"]
Codebooks = (
    Sequence[Float[Array | np.ndarray, "_ features"]]
    | Float[Array | np.ndarray, "levels codes features"]
)
HIGHEST = jax.lax.Precision.HIGHEST


class Quantized(NamedTuple):
    """Quantised vectors [..., features], losses [...] and codes [...]; losses and codes of residual
    quantisation have a last axis of levels."""

    vectors: Array
    losses: Array
    codes: Array


def codebook_distances(vectors: Vectors, codebook: Codebook) -> Float[Array, "*batch codes"]:
    """The squared distance of each vector to each code.

        d = |x|^2 - 2 <x, c> + |c|^2, at least 0

    Args:
      vectors: floats [..., features]. Differentiated.
      codebook: floats [codes, features]. Differentiated.

    Returns:
      [..., codes], >= 0.

    Raises:
      ValueError: shapes that do not fit. TypeError: arrays that are not floats.

    Source: van den Oord et al. 2017 (VQ-VAE), arXiv:1711.00937.

    >>> import jax.numpy as jnp
    >>> print(codebook_distances(jnp.array([[3.0]]), jnp.array([[0.0], [2.0]])))
    [[9. 1.]]
    """
    vectors, codebook = _pair(vectors, codebook)
    products = jnp.matmul(vectors, codebook.T, precision=HIGHEST)
    squares = jnp.sum(vectors**2, axis=-1, keepdims=True) + jnp.sum(codebook**2, axis=-1)
    return jnp.maximum(squares - 2 * products, 0.0)


def sinkhorn_assignment(
    distances: Float[Array | np.ndarray, "batch codes"],
    *,
    epsilon: Scalar = 0.05,
    iterations: int = 50,
) -> Float[Array, "batch codes"]:
    """A soft assignment of vectors to codes that uses every code alike.

        Q = exp(-d' / epsilon), with d' = (d - middle) / (half range + 1e-5) in [-1, 1];
        then in turn: rows to sum 1 / batch, columns to sum 1 / codes;  times batch

    The vector takes the code of the largest entry of its row. In log-space, so that no epsilon
    underflows.

    The batch is one problem: on several devices all of it, not each part, is balanced.

    Args:
      distances: floats [batch, codes], see `codebook_distances`. Differentiated.
      epsilon: scalar > 0, may be traced; the smaller, the harder.
      iterations: integer >= 0.

    Returns:
      [batch, codes], >= 0. Columns sum to batch / codes; rows to 1 in the limit.

    Raises:
      ValueError: another rank, epsilon <= 0, iterations < 0. TypeError: distances that are not
      floats, iterations that is no integer.

    Source: Asano et al. 2019, arXiv:1911.05371; Wang et al. 2024 (LETTER), arXiv:2405.07314.

    >>> import jax.numpy as jnp
    >>> print(jnp.argmax(sinkhorn_assignment(jnp.array([[0.0, 1.0], [0.0, 3.0]])), axis=1))
    [1 0]
    """
    (distances,) = checks.shaped({"distances": "batch codes"}, distances=distances)
    checks.positive(epsilon=epsilon)
    checks.count(0, iterations=iterations)
    low, high = jnp.min(distances), jnp.max(distances)
    centred = (distances - (high + low) / 2) / ((high - low) / 2 + 1e-5)
    log_q = -centred / epsilon
    log_q -= jax.nn.logsumexp(log_q)
    size, codes = distances.shape

    def balance(_, log_q):
        log_q -= jax.nn.logsumexp(log_q, axis=1, keepdims=True) + jnp.log(size)
        return log_q - jax.nn.logsumexp(log_q, axis=0, keepdims=True) - jnp.log(codes)

    return size * jnp.exp(jax.lax.fori_loop(0, iterations, balance, log_q))


def vector_quantize(
    vectors: Vectors,
    codebook: Codebook,
    *,
    codes: Int[Array | np.ndarray, "*batch"] | None = None,
    commitment: Scalar = 0.25,
) -> Quantized:
    """The nearest code of each vector, its gradient passed straight through, and its two losses.

        q = C[argmin_k |x - C_k|^2],   y = x + stop(q - x)
        L = mean_d (q - stop x)^2 + commitment mean_d (x - stop q)^2

    The first term moves the codebook, the second the vectors. Code that has its weight at the first
    term (the "legacy" one of taming-transformers) is 1 / weight times this with 1 / weight.

    Args:
      vectors: floats [..., features]. Differentiated: by y with slope 1, by the second term.
      codebook: floats [codes, features]. Differentiated by the first term only.
      codes: integers [...] to take in place of the nearest, as those of `sinkhorn_assignment`.
      commitment: scalar >= 0, may be traced.

    Returns:
      Quantized(vectors y [..., features]; losses [...], whose mean over the batch is the published
      loss; codes [...]).

    Raises:
      ValueError: shapes that do not fit, commitment < 0. TypeError: arrays that are not floats,
      codes that are not integers.

    Source: van den Oord et al. 2017 (VQ-VAE), arXiv:1711.00937, equation 3.

    >>> import jax.numpy as jnp
    >>> quantized = vector_quantize(jnp.array([[3.0]]), jnp.array([[0.0], [2.0]]))
    >>> print(*quantized)
    [[2.]] [1.25] [1]
    """
    vectors, codebook = _pair(vectors, codebook)
    checks.not_negative(commitment=commitment)
    if codes is None:
        fixed = jax.lax.stop_gradient((vectors, codebook))
        codes = jnp.argmin(codebook_distances(*fixed), axis=-1)
    else:
        codes = checks.integers("codes", codes, vectors.shape[:-1], "vectors without features")
    chosen = codebook[codes]
    to_codebook = jnp.mean((chosen - jax.lax.stop_gradient(vectors)) ** 2, axis=-1)
    to_vectors = jnp.mean((vectors - jax.lax.stop_gradient(chosen)) ** 2, axis=-1)
    straight = vectors + jax.lax.stop_gradient(chosen - vectors)
    return Quantized(straight, to_codebook + commitment * to_vectors, codes)


def residual_quantize(
    vectors: Vectors,
    codebooks: Codebooks,
    *,
    commitment: Scalar = 0.25,
    sinkhorn_epsilons: Sequence[float] | None = None,
    sinkhorn_iterations: int = 50,
) -> Quantized:
    """Residual quantisation: each level quantises what the levels before it left.

        r_0 = x;   y_l, L_l = vector_quantize(r_l, C_l);   r_{l+1} = r_l - y_l;   y = sum_l y_l

    Since y_l passes its gradient straight through, r_{l+1} has none: the commitment of deeper
    levels does not reach x, and y has the gradient of x once. The published RQ-VAE adds a
    reconstruction error of what is decoded from y.

    Args:
      vectors: floats [..., features]. Differentiated.
      codebooks: one [codes, features] a level, of any number of codes each, or floats
        [levels, codes, features]. Differentiated.
      commitment: scalar >= 0, may be traced; of the vectors to their codes.
      sinkhorn_epsilons: a number >= 0 for each level; a level with one > 0 takes its codes from
        `sinkhorn_assignment` of all vectors, balanced. None: the nearest codes.
      sinkhorn_iterations: integer >= 0.

    Returns:
      Quantized(vectors y [..., features]; losses [..., levels], whose mean over levels and batch
      is the published loss; codes [..., levels]).

    Raises:
      ValueError: shapes that do not fit, no codebook, epsilons for another number of levels.
      TypeError: arrays that are not floats.

    Source: Lee et al. 2022 (RQ-VAE), arXiv:2203.01941; Wang et al. 2024 (LETTER),
      arXiv:2405.07314.

    >>> import jax.numpy as jnp
    >>> codebooks = [jnp.array([[0.0], [2.0]]), jnp.array([[0.0], [1.0]])]
    >>> print(*residual_quantize(jnp.array([[3.0]]), codebooks))
    [[3.]] [[1.25 0.  ]] [[1 1]]
    """
    if len(codebooks) == 0:
        raise ValueError("codebooks must hold one a level, got none")
    if sinkhorn_epsilons is None:
        sinkhorn_epsilons = [0.0] * len(codebooks)
    if len(sinkhorn_epsilons) != len(codebooks):
        raise ValueError(
            f"sinkhorn_epsilons must have one for each of {len(codebooks)} codebooks, "
            f"got {len(sinkhorn_epsilons)}"
        )
    levels, total, residual = [], None, vectors
    for codebook, epsilon in zip(codebooks, sinkhorn_epsilons, strict=True):
        residual, codebook = _pair(residual, codebook)
        checks.not_negative(sinkhorn_epsilons=epsilon)
        codes = None
        if epsilon > 0:
            distances = codebook_distances(*jax.lax.stop_gradient((residual, codebook)))
            balanced = sinkhorn_assignment(
                distances.reshape(-1, distances.shape[-1]),
                epsilon=epsilon,
                iterations=sinkhorn_iterations,
            )
            codes = jnp.argmax(balanced, axis=-1).reshape(distances.shape[:-1])
        level = vector_quantize(residual, codebook, codes=codes, commitment=commitment)
        total = level.vectors if total is None else total + level.vectors
        residual = residual - level.vectors
        levels.append(level)
    losses, codes = (
        jnp.stack([getattr(level, name) for level in levels], axis=-1)
        for name in ("losses", "codes")
    )
    return Quantized(total, losses, codes)


def update_codebook(
    counts: Float[Array | np.ndarray, " codes"],
    sums: Float[Array | np.ndarray, "codes features"],
    vectors: Vectors,
    codes: Int[Array | np.ndarray, "*batch"],
    *,
    decay: Scalar = 0.99,
    epsilon: Scalar = 1e-5,
) -> tuple[Array, Array, Array]:
    """A codebook as moving means of the vectors that chose each code, in place of its gradient.

        N <- decay N + (1 - decay) n,   m <- decay m + (1 - decay) sum x,   C = m / N

    with N smoothed to (N + epsilon) / (sum N + K epsilon) sum N, so that an unused code stays
    finite. Train the vectors with the commitment term only.

    Args:
      counts: floats [codes], N. Stopped.
      sums: floats [codes, features], m. Stopped.
      vectors: floats [..., features]. Stopped.
      codes: integers [...] in [0, codes).
      decay: scalar in [0, 1], may be traced.
      epsilon: scalar >= 0, may be traced.

    Returns:
      (codebook [codes, features], counts, sums), with no gradient.

    Raises:
      ValueError: shapes that do not fit, decay outside [0, 1], epsilon < 0. TypeError: arrays that
      are not floats, codes that are not integers.

    Source: van den Oord et al. 2017 (VQ-VAE), arXiv:1711.00937, appendix A.1; Razavi et al. 2019,
      arXiv:1906.00446.

    >>> import jax.numpy as jnp
    >>> counts, sums = jnp.array([1.0, 1.0]), jnp.array([[0.0], [2.0]])
    >>> vectors, codes = jnp.array([[4.0]]), jnp.array([1])
    >>> codebook, *_ = update_codebook(counts, sums, vectors, codes, decay=0.5, epsilon=0.0)
    >>> print(codebook)
    [[0.]
     [3.]]
    """
    counts, sums, vectors = checks.shaped(
        {"counts": "codes", "sums": "codes features", "vectors": "... features"},
        counts=counts,
        sums=sums,
        vectors=vectors,
    )
    codes = checks.integers("codes", codes, vectors.shape[:-1], "vectors without features")
    checks.fraction(decay=decay)
    checks.not_negative(epsilon=epsilon)
    counts, sums, vectors = jax.lax.stop_gradient((counts, sums, vectors))
    chosen = jax.nn.one_hot(codes.ravel(), counts.shape[0], dtype=vectors.dtype)
    flat = vectors.reshape(-1, vectors.shape[-1])
    counts = decay * counts + (1 - decay) * jnp.sum(chosen, axis=0)
    sums = decay * sums + (1 - decay) * jnp.matmul(chosen.T, flat, precision=HIGHEST)
    total = jnp.sum(counts)
    smoothed = (counts + epsilon) / (total + counts.shape[0] * epsilon) * total
    return sums / smoothed[:, None], counts, sums


def _pair(vectors: Vectors, codebook: Codebook) -> tuple[Array, Array]:
    return checks.shaped(
        {"vectors": "... features", "codebook": "codes features"},
        vectors=vectors,
        codebook=codebook,
    )
