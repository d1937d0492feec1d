"""Graphs of tokens: the patches of all images of a batch, linked to their nearest neighbours.

A node is a token, not an image: parts of images of different classes may be neighbours, and a rare
class has as many tokens an image as a common one. Each network has a graph of its own, so widths
may differ. The third loss of Zhang et al. (their global one) is `info_nce` of unit vectors, and has
no kernel here. Tokens that `where` hides are nobody's neighbours and have loss 0. Values in
float32, or float64 for float64. No gradient reaches `teacher_*`.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
from numpy import ndarray

from kdjax.losses import checks, log_space
from kdjax.losses.checks import Scalar

Tokens = Float[Array | ndarray, "tokens width"]
Mask = Bool[Array | ndarray, " tokens"]


def tokenize_feature_map(
    features: Float[Array | ndarray, "batch height width channels"], *, patch: int = 1
) -> Float[Array, "batch tokens patch_channels"]:
    """A feature map cut into square patches, each flattened to a token.

        N = (H / p) (W / p) tokens of p p C numbers, in the order of rows

    Args:
      features: floats [batch, height, width, channels]. Differentiated.
      patch: p, integer >= 1 that divides height and width.

    Returns:
      [batch, tokens, p * p * channels].

    Raises:
      ValueError: another rank, patch < 1, or one that does not divide the map.
      TypeError: features that are not floats.

    Source: Zhang et al. 2023 (TRG), arXiv:2306.12442.

    >>> import jax.numpy as jnp
    >>> tokenize_feature_map(jnp.arange(8.0).reshape(1, 2, 4, 1), patch=2).tolist()
    [[[0.0, 1.0, 4.0, 5.0], [2.0, 3.0, 6.0, 7.0]]]
    """
    (features,) = checks.shaped({"features": "batch height width channels"}, features=features)
    checks.count(1, patch=patch)
    batch, height, width, channels = features.shape
    if height % patch or width % patch:
        raise ValueError(f"patch={patch} must divide the feature map, {height} x {width}")
    cut = features.reshape(batch, height // patch, patch, width // patch, patch, channels)
    return cut.swapaxes(2, 3).reshape(batch, -1, patch * patch * channels)


def token_neighbors(
    tokens: Tokens,
    *,
    k: int,
    self_edges: bool = False,
    where: Mask | None = None,
    max_tokens: int = 1024,
) -> Int[Array, "tokens {k}"]:
    """The k nearest neighbours of each token, by Euclidean distance, nearest first.

    Equal distances, such as those of duplicates, are ordered by index. Where fewer than k others
    are there, the row ends with indices that `token_knn_adjacency` gives no edge.

    Args:
      tokens: floats [tokens, width], tokens >= 2. Stopped: neighbours are integers.
      k: integer, 1 <= k < tokens.
      self_edges: a token is its own (first) neighbour.
      where: booleans [tokens]; False tokens are nobody's neighbours.
      max_tokens: the most that are accepted: a graph takes memory for tokens^2 floats.

    Returns:
      Indices [tokens, k].

    Raises:
      ValueError: fewer than 2 tokens, more than max_tokens, k out of range, where of another shape.
      TypeError: tokens that are not floats, where that is not boolean, k that is no integer.

    Source: Zhang et al. 2023 (TRG), arXiv:2306.12442.

    >>> import jax.numpy as jnp
    >>> token_neighbors(jnp.array([[0.0], [1.0], [3.0]]), k=1).ravel().tolist()
    [1, 0, 1]
    """
    tokens, where = _tokens(tokens, where, k, max_tokens)
    tokens = jax.lax.stop_gradient(tokens)
    # Differences, not products: those of duplicates are exactly 0, whatever their distance to 0.
    square = jnp.sum((tokens[:, None] - tokens[None]) ** 2, axis=-1)
    same = jnp.eye(len(tokens), dtype=bool)
    square = jnp.where(same, -1.0 if self_edges else jnp.inf, square)
    return jax.lax.top_k(-jnp.where(where[None, :], square, jnp.inf), k)[1]


def token_knn_adjacency(
    tokens: Tokens,
    *,
    k: int,
    sigma: Scalar | None = None,
    self_edges: bool = False,
    neighbors: Int[Array | ndarray, "tokens {k}"] | None = None,
    where: Mask | None = None,
    max_tokens: int = 1024,
) -> Float[Array, "tokens tokens"]:
    """The weighted graph of tokens: a Gaussian of the distance from a token to its neighbours.

        A_ij = exp(-||x_i - x_j||^2 / (2 sigma)) if i is one of the k nearest of j, else 0

    Column j has the neighbours of j, so A is not symmetric. Sigma is a squared length, as
    published. Which tokens are neighbours has no gradient; distances have one, of 0 between
    duplicates. Unchanged by a translation and a rotation of the tokens.

    Args:
      tokens: floats [tokens, width], tokens >= 2. Differentiated.
      k: integer, 1 <= k < tokens.
      sigma: scalar > 0, may be traced. None: the mean of the squared lengths of the edges,
        stopped, so that a common factor of the tokens changes nothing.
      self_edges: a token is its own neighbour, with A_jj = 1.
      neighbors: integers [tokens, k], distinct in a row: edges of another graph (the teacher's)
        instead of `token_neighbors` of these tokens.
      where: booleans [tokens]; the rows and columns of False are 0.
      max_tokens: the most that are accepted: a graph takes memory for tokens^2 floats.

    Returns:
      [tokens, tokens], in [0, 1].

    Raises:
      ValueError: fewer than 2 tokens, more than max_tokens, k out of range, sigma <= 0, neighbors
        or where of another shape.
      TypeError: tokens that are not floats, neighbors that are not integers, where not boolean.

    Source: Zhang et al. 2023 (TRG), arXiv:2306.12442. Self-edges, the default sigma and whose
      neighbours are ours: the paper does not say.

    >>> import jax.numpy as jnp
    >>> adjacency = token_knn_adjacency(jnp.array([[0.0], [1.0], [3.0]]), k=1, sigma=1.0)
    >>> for row in adjacency.tolist():
    ...     print(*(f"{weight:.4f}" for weight in row))
    0.0000 0.6065 0.0000
    0.6065 0.0000 0.1353
    0.0000 0.0000 0.0000
    """
    if sigma is not None:
        checks.positive(sigma=sigma)
    options = dict(k=k, self_edges=self_edges, where=where, max_tokens=max_tokens)
    if neighbors is None:
        neighbors = token_neighbors(tokens, **options)
    tokens, where = _tokens(tokens, where, k, max_tokens)
    size = len(tokens)
    neighbors = checks.integers("neighbors", neighbors, (size, k), "tokens by k")
    own = jnp.arange(size)[:, None]
    edge = where[:, None] & where[neighbors]
    if not self_edges:
        edge &= neighbors != own
    square = jnp.sum((tokens[neighbors] - tokens[:, None]) ** 2, axis=-1)
    if sigma is None:
        edges = jnp.maximum(jnp.sum(edge), 1)
        sigma = jax.lax.stop_gradient(jnp.sum(jnp.where(edge, square, 0.0)) / edges)
        sigma = jnp.where(sigma < jnp.finfo(tokens.dtype).tiny, 1.0, sigma)
    weights = jnp.where(edge, jnp.exp(-square / (2 * jnp.asarray(sigma, tokens.dtype))), 0.0)
    return jnp.zeros((size, size), tokens.dtype).at[neighbors, own].add(weights)


def token_local_loss(
    student_adjacency: Float[Array | ndarray, "tokens tokens"],
    teacher_adjacency: Float[Array | ndarray, "tokens tokens"],
    *,
    local_temperature: Scalar = 1.0,
    direction: str = "forward",
    where: Mask | None = None,
) -> Float[Array, " tokens"]:
    """TRG's local loss: each token's neighbourhood as a distribution over all tokens.

        L_i = KL(softmax_j(A^t_ij / lt) || softmax_j(A^s_ij / lt))

    Entries of 0 take part. The published loss is the sum over the tokens at lt = 1; the mean does
    not depend on their number. At lt = 1 the softmax over hundreds of columns in [0, 1] is nearly
    uniform and the loss nearly 0, whatever the graphs are; 0.1 is a temperature that tells.

    Args:
      student_adjacency: floats [tokens, tokens], see `token_knn_adjacency`. Differentiated.
      teacher_adjacency: floats [tokens, tokens]. Stopped.
      local_temperature: lt, scalar > 0, may be traced.
      direction: "forward": KL(teacher || student); "reverse": KL(student || teacher).
      where: booleans [tokens]; False tokens are in no distribution and have loss 0.

    Returns:
      [tokens], >= 0. A token that is nobody's neighbour has the uniform distribution.

    Raises:
      ValueError: shapes that differ, local_temperature <= 0, an unknown direction.
      TypeError: arrays that are not floats, where that is not boolean.

    Source: Zhang et al. 2023 (TRG), arXiv:2306.12442. The temperature is ours.

    >>> import jax.numpy as jnp
    >>> print(f"{token_local_loss(jnp.zeros((2, 2)), jnp.eye(2))[0]:.4f}")
    0.1109
    """
    student, teacher = checks.shaped(
        {"student_adjacency": "tokens tokens", "teacher_adjacency": "tokens tokens"},
        student_adjacency=student_adjacency,
        teacher_adjacency=teacher_adjacency,
    )
    checks.positive(local_temperature=local_temperature)
    checks.choice("direction", direction, ("forward", "reverse"))
    student, teacher = (x / local_temperature for x in (student, jax.lax.stop_gradient(teacher)))
    if where is not None:
        where = checks.boolean("where", where, (len(student),), "the tokens")
        student, teacher = (jnp.where(where[None, :], x, -jnp.inf) for x in (student, teacher))
        student, teacher = (jnp.where(where[:, None], x, 0.0) for x in (student, teacher))
    pair = (teacher, student) if direction == "forward" else (student, teacher)
    loss = log_space.softmax_kl(*pair)
    return loss if where is None else jnp.where(where, loss, 0.0)


def inner_context_loss(
    student_tokens: Float[Array | ndarray, "batch tokens student_width"],
    teacher_tokens: Float[Array | ndarray, "batch tokens teacher_width"],
) -> Float[Array, " batch"]:
    """TRG's contextual loss: how alike the tokens of one image are.

        L = 1/N^2 sum_ij (C^s_ij - C^t_ij)^2,   C = softmax_rows(F F^T / sqrt(D))

    with each network's own width D. The mean over the batch is the published loss. Unchanged by a
    rotation of the features of either side.

    Args:
      student_tokens: floats [batch, tokens, width]. Differentiated.
      teacher_tokens: floats [batch, tokens, width], of any width. Stopped.

    Returns:
      [batch], in [0, 2 / N].

    Raises:
      ValueError: another rank, batches or numbers of tokens that differ.
      TypeError: arrays that are not floats.

    Source: Zhang et al. 2023 (TRG), arXiv:2306.12442.

    >>> import jax.numpy as jnp
    >>> print(f"{inner_context_loss(jnp.zeros((1, 2, 1)), jnp.array([[[1.0], [0.0]]]))[0]:.6f}")
    0.026694
    """
    student, teacher = checks.shaped(
        {
            "student_tokens": "batch tokens student_width",
            "teacher_tokens": "batch tokens teacher_width",
        },
        student_tokens=student_tokens,
        teacher_tokens=teacher_tokens,
    )
    gap = _context(student) - _context(jax.lax.stop_gradient(teacher))
    return jnp.mean(gap**2, axis=(-2, -1))


def _tokens(tokens: Array, where: Mask | None, k: int, max_tokens: int) -> tuple[Array, Array]:
    """The tokens, hidden ones at 0, and the mask, after all checks of a graph."""
    (tokens,) = checks.shaped({"tokens": "tokens>=2 width"}, tokens=tokens)
    size = len(tokens)
    if size > max_tokens:
        raise ValueError(
            f"tokens must be at most max_tokens={max_tokens}, got {size}: a graph takes memory for "
            "tokens^2 floats; sample fewer tokens an image, or raise max_tokens"
        )
    checks.count(1, size - 1, k=k)
    if where is None:
        return tokens, jnp.ones(size, bool)
    where = checks.boolean("where", where, (size,), "the tokens")
    return jnp.where(where[:, None], tokens, 0.0), where


def _context(tokens: Array) -> Array:
    products = jnp.einsum("bnd,bmd->bnm", tokens, tokens, precision=jax.lax.Precision.HIGHEST)
    return log_space.softmax(products / tokens.shape[-1] ** 0.5)
