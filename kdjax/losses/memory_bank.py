"""Contrast with a memory: CRD with a bank of one feature an example, and MoCo's queue.

A step of contrastive representation distillation (CRD): draw the candidates
(`crd_sample_indices`), score each side's features against the other side's bank (`crd_scores`), on
the first batch fix the normaliser of each side (`crd_initial_log_z`), add the losses of both sides
(`crd_nce`), update both banks (`crd_update_bank`). Scores may also come from the batch or from a
queue (`in_batch_scores`, `queue_scores`).

Tables are [batch, candidates], the positive in column 0; -inf is a candidate that takes no part.
Both sides end in a trained linear head and `l2_normalize`, the teacher's too: no argument here is
named after the teacher, and gradients reach both heads.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, UInt32
from numpy import ndarray

from kdjax.losses import checks, log_space
from kdjax.losses.checks import Scalar
from kdjax.losses.contrastive import l2_normalize


def crd_scores(
    features: Float[Array | ndarray, "batch features"],
    bank: Float[Array | ndarray, "examples features"],
    indices: Int[Array | ndarray, "batch candidates"],
    *,
    temperature: Scalar = 0.07,
) -> Float[Array, "batch candidates"]:
    """Scores of one side's features against rows of the other side's bank.

        s[b, j] = features_b . bank[indices[b, j]] / T

    Once with the student's features and the teacher's bank, once the other way round.

    Args:
      features: floats [batch, features], unit-norm. Differentiated.
      bank: floats [examples, features]. Stopped.
      indices: integers [batch, candidates] in [0, examples), the positive in column 0.
      temperature: scalar > 0, may be traced.

    Returns:
      [batch, candidates].

    Raises:
      ValueError: shapes that do not fit, temperature <= 0, an index out of range (in a compiled
        function its score is NaN). TypeError: features not floats, indices not integers.

    Source: Tian et al. 2020, arXiv:1910.10699.

    >>> import jax.numpy as jnp
    >>> bank = jnp.array([[0.0, 1.0], [1.0, 0.0]])
    >>> crd_scores(jnp.array([[1.0, 0.0]]), bank, jnp.array([[1, 0]]), temperature=0.5).tolist()
    [[2.0, 0.0]]
    """
    features, bank = checks.shaped(
        {"features": "batch features", "bank": "examples features"}, features=features, bank=bank
    )
    checks.positive(temperature=temperature)
    indices = checks.integers("indices", indices, None, "")
    checks.axis_shapes(
        "indices", indices, "batch candidates", {"batch": (len(features), "features")}
    )
    _within("indices", indices, len(bank))
    # A negative index would count from the end.
    indices = jnp.where(indices < 0, len(bank), indices)
    rows = jax.lax.stop_gradient(bank).at[indices].get(mode="fill", fill_value=jnp.nan)
    products = jnp.einsum("bf,bcf->bc", features, rows, precision=jax.lax.Precision.HIGHEST)
    return products / temperature


def crd_initial_log_z(
    scores: Float[Array | ndarray, "batch candidates"],
    *,
    num_examples: Scalar | int,
    where: Bool[Array | ndarray, "batch candidates"] | None = None,
) -> Float[Array, ""]:
    """The logarithm of CRD's normaliser, estimated once for each side and then kept.

        log Z = log( N mean(exp(scores)) )

    Args:
      scores: of the first batch, floats [batch, candidates]; -inf takes no part. Stopped.
      num_examples: N, scalar > 0, may be traced.
      where: booleans [batch, candidates]; False candidates take no part.

    Returns:
      Scalar; no gradient.

    Raises:
      ValueError: shapes that do not fit, num_examples <= 0.
      TypeError: scores that are not floats, a mask that is not boolean.

    Source: Tian et al. 2020, arXiv:1910.10699; Wu et al. 2018, arXiv:1805.01978.

    >>> import jax.numpy as jnp
    >>> print(f"{jnp.exp(crd_initial_log_z(jnp.array([[1.0, 0.0]]), num_examples=2)):.4f}")
    3.7183
    """
    scores, where = _candidates(scores, where)
    checks.positive(num_examples=num_examples)
    total = log_space.logsumexp(jnp.where(where, scores, -jnp.inf).reshape(-1))
    count = jnp.maximum(jnp.sum(where), 1).astype(scores.dtype)
    log_z = total - jnp.log(count) + jnp.log(jnp.asarray(num_examples, scores.dtype))
    return jax.lax.stop_gradient(log_z)


def crd_nce(
    scores: Float[Array | ndarray, "batch candidates"],
    log_z: Float[Array | ndarray, ""],
    *,
    num_examples: Scalar | int,
    where: Bool[Array | ndarray, "batch candidates"] | None = None,
) -> Float[Array, " batch"]:
    """CRD's noise-contrastive loss of one side: is the candidate the partner, or noise?

        a_j = s_j - log Z - log(K / N)
        L_b = -log sigmoid(a_0) - sum_{j >= 1} log sigmoid(-a_j),   K negatives in the row

    The published loss is the mean over the batch, student's side plus teacher's side. The authors'
    code adds 1e-7 to the denominators P + K/N: that is this loss at K/N + 1e-7 in place of K/N,
    plus the constant K log(1 + 1e-7 N/K); and it overflows where exp(s_j) does.

    Args:
      scores: floats [batch, candidates], the positive in column 0; -inf takes no part.
        Differentiated.
      log_z: scalar, of `crd_initial_log_z`. Stopped.
      num_examples: N, scalar > 0, may be traced: the noise is uniform over so many.
      where: booleans [batch, candidates]; with False candidates the loss is that of the others. A
        row without its positive has loss 0.

    Returns:
      [batch], >= 0; 0 in a row without negatives.

    Raises:
      ValueError: shapes that do not fit, num_examples <= 0.
      TypeError: scores that are not floats, a mask that is not boolean.

    Source: Tian et al. 2020, arXiv:1910.10699; Gutmann and Hyvarinen 2010.

    >>> import jax.numpy as jnp
    >>> scores = jnp.array([[1.0, 0.0]])
    >>> log_z = crd_initial_log_z(scores, num_examples=2)
    >>> print(f"{crd_nce(scores, log_z, num_examples=2)[0]:.4f}")
    0.9515
    """
    (log_z,) = checks.shaped({"log_z": ""}, log_z=log_z)
    scores, where = _candidates(scores, where)
    checks.positive(num_examples=num_examples)
    counted = where & where[:, :1]
    negatives = jnp.sum(counted[:, 1:], axis=1, keepdims=True)
    counted &= negatives > 0
    noise = jnp.maximum(negatives, 1).astype(scores.dtype) / num_examples
    log_odds = scores - jax.lax.stop_gradient(log_z) - jnp.log(noise)
    is_positive = jnp.arange(scores.shape[1]) == 0
    terms = -jax.nn.log_sigmoid(jnp.where(is_positive, log_odds, -log_odds))
    return jnp.sum(jnp.where(counted, terms, 0.0), axis=1)


def crd_update_bank(
    bank: Float[Array | ndarray, "examples features"],
    indices: Int[Array | ndarray, " batch"],
    features: Float[Array | ndarray, "batch features"],
    *,
    momentum: Scalar = 0.5,
    where: Bool[Array | ndarray, " batch"] | None = None,
) -> Float[Array, "examples features"]:
    """The bank with the rows of a batch moved towards its features, after it was scored.

        bank[i_b] <- normalize( m bank[i_b] + (1 - m) features_b )

    An example that occurs twice in the batch keeps its last row's update, on any device.

    Args:
      bank: floats [examples, features]. Stopped.
      indices: integers [batch] in [0, examples): which example a row is.
      features: floats [batch, features], unit-norm. Stopped.
      momentum: m, scalar in [0, 1], may be traced.
      where: booleans [batch]; False rows change nothing.

    Returns:
      Floats [examples, features]; no gradient.

    Raises:
      ValueError: shapes that do not fit, momentum outside [0, 1], an index out of range (in a
        compiled function its row is passed over). TypeError: features not floats, indices not
        integers, a mask that is not boolean.

    Source: Tian et al. 2020, arXiv:1910.10699; Wu et al. 2018, arXiv:1805.01978.

    >>> import jax.numpy as jnp
    >>> bank = crd_update_bank(jnp.eye(2), jnp.array([0]), jnp.array([[0.0, 1.0]]), momentum=0.5)
    >>> print(jnp.round(bank[0], 4))
    [0.7071 0.7071]
    """
    bank, features = checks.shaped(
        {"bank": "examples features", "features": "batch features"}, bank=bank, features=features
    )
    checks.fraction(momentum=momentum)
    size = len(bank)
    indices = checks.integers("indices", indices, (len(features),), "the batch")
    if where is None:
        where = jnp.ones(indices.shape, bool)
    where = checks.boolean("where", where, indices.shape, "the batch")
    _within("indices", indices, size)
    bank, features = jax.lax.stop_gradient((bank, features))
    # A scatter of two updates to one row has no order: only the last of them is written.
    same = (indices[:, None] == indices[None]) & where[None]
    last = ~jnp.any(jnp.triu(same, k=1), axis=1)
    inside = (indices >= 0) & (indices < size)
    safe = jnp.where(inside, indices, 0)
    updated = l2_normalize(momentum * bank[safe] + (1 - momentum) * features)
    rows = jnp.where(where & last & inside, indices, size)
    return bank.at[rows].set(updated, mode="drop")


def crd_sample_indices(
    key: Key[Array, ""] | UInt32[Array | ndarray, "2"],
    indices: Int[Array | ndarray, " batch"],
    labels: Int[Array | ndarray, " examples"],
    *,
    num_negatives: int,
    positive: str = "exact",
    negatives: str = "other_classes",
    replace: bool = True,
) -> Int[Array, "batch candidates"]:
    """Which rows of the bank each example of a batch is compared with.

        column 0: the positive;  columns 1 to K: negatives, uniform and independent between rows

    Args:
      key: a JAX random key.
      indices: integers [batch] in [0, examples): which examples these are.
      labels: integers [examples]: the class of every example of the data set.
      num_negatives: K >= 0.
      positive: "exact", the example itself; "relax", any of its class, itself included.
      negatives: "other_classes", or "all": uniform over the data set, itself included, as in the
        authors' code without a sampler.
      replace: draw negatives with replacement, at a cost of batch * K; without, at a cost of
        batch * examples. The authors draw without where the other classes have K examples.

    Returns:
      Integers [batch, 1 + K].

    Raises:
      ValueError: shapes that do not fit, an index out of range, fewer examples to draw from than
        needed (both unknown in a compiled function), an unknown mode.
      TypeError: indices or labels that are not integers.

    Source: Tian et al. 2020, arXiv:1910.10699.

    >>> import jax, jax.numpy as jnp
    >>> labels = jnp.array([0, 1, 1, 0])
    >>> drawn = crd_sample_indices(jax.random.key(0), jnp.array([1]), labels, num_negatives=5)
    >>> drawn.shape, int(drawn[0, 0]), set(drawn[0, 1:].tolist()) <= {0, 3}
    ((1, 6), 1, True)
    """
    indices = checks.integers("indices", indices, None, "")
    labels = checks.integers("labels", labels, None, "")
    checks.axis_shapes("indices", indices, "batch", {})
    checks.axis_shapes("labels", labels, "examples", {})
    checks.count(0, num_negatives=num_negatives)
    checks.choice("positive", positive, ("exact", "relax"))
    checks.choice("negatives", negatives, ("other_classes", "all"))
    size = len(labels)
    _within("indices", indices, size)
    positive_key, negative_key = jax.random.split(key)

    # In the order of the labels a class is one stretch, [start, stop).
    order = jnp.argsort(labels)
    own = labels[indices]
    start = jnp.searchsorted(labels[order], own, side="left")
    stop = jnp.searchsorted(labels[order], own, side="right")
    chosen = indices
    if positive == "relax":
        chosen = order[jax.random.randint(positive_key, own.shape, start, stop)]

    # Negatives are places in that order, outside the stretch.
    skipped = stop - start if negatives == "other_classes" else jnp.zeros_like(start)
    available = (size - skipped)[:, None]
    needed = num_negatives if not replace else min(num_negatives, 1)
    if not isinstance(available, jax.core.Tracer) and int(jnp.min(available)) < needed:
        raise ValueError(
            f"num_negatives must be <= the number of examples to draw from "
            f"({int(jnp.min(available))} for one of the rows), got {num_negatives}"
        )
    shape = (len(indices), num_negatives)
    if replace:
        places = jax.random.randint(negative_key, shape, 0, jnp.maximum(available, 1))
    else:
        checks.count(0, size, num_negatives=num_negatives)
        noise = jax.random.uniform(negative_key, (len(indices), size))
        noise = jnp.where(jnp.arange(size) < available, noise, -1.0)
        places = jax.lax.top_k(noise, num_negatives)[1]
    places = jnp.where(places >= start[:, None], places + skipped[:, None], places)
    drawn = order[places].astype(indices.dtype)
    return jnp.concatenate([chosen[:, None].astype(indices.dtype), drawn], axis=1)


def enqueue(
    queue: Float[Array | ndarray, "queue features"],
    pointer: Int[Array | ndarray, ""],
    features: Float[Array | ndarray, "batch features"],
    *,
    where: Bool[Array | ndarray, " batch"] | None = None,
) -> tuple[Float[Array, "queue features"], Int[Array, ""]]:
    """The queue with the oldest rows replaced by these, and where the next ones go.

        queue[(pointer + i) mod Q] <- features_i,   pointer <- (pointer + B) mod Q

    The authors' codes want Q to be a multiple of B; here a batch may wrap around the end.

    Args:
      queue: floats [queue, features]. Stopped.
      pointer: integer scalar in [0, queue): the oldest row.
      features: floats [batch, features], batch <= queue. Stopped.
      where: booleans [batch]; False rows do not enter, and take no room.

    Returns:
      The queue and the pointer; no gradient.

    Raises:
      ValueError: shapes that do not fit, more rows than the queue holds.
      TypeError: features that are not floats, a pointer that is no integer, a mask not of booleans.

    Source: He et al. 2020 (MoCo), arXiv:1911.05722, algorithm 1.

    >>> import jax.numpy as jnp
    >>> queue, pointer = enqueue(jnp.zeros((3, 1)), jnp.array(2), jnp.array([[1.0], [2.0]]))
    >>> queue[:, 0].tolist(), int(pointer)
    ([2.0, 0.0, 1.0], 1)
    """
    queue, features = checks.shaped(
        {"queue": "queue features", "features": "batch features"}, queue=queue, features=features
    )
    pointer = checks.integers("pointer", pointer, (), "a scalar")
    size, batch = len(queue), len(features)
    if batch > size:
        raise ValueError(f"queue must hold a batch of {batch} rows, got {size} rows")
    if where is None:
        where = jnp.ones(batch, bool)
    where = checks.boolean("where", where, (batch,), "the batch")
    count = jnp.cumsum(where, dtype=pointer.dtype)
    # Out of range, so that the scatter drops it.
    rows = jnp.where(where, (pointer + count - 1) % size, size)
    queue, features = jax.lax.stop_gradient((queue, features))
    return queue.at[rows].set(features, mode="drop"), (pointer + count[-1]) % size


def _candidates(scores: Array, where: Array | None) -> tuple[Array, Array]:
    """Scores, 0 where they take no part, and where they take part."""
    (scores,) = checks.shaped({"scores": "batch candidates"}, scores=scores)
    present = scores != -jnp.inf
    if where is not None:
        present &= checks.boolean("where", where, scores.shape, "scores")
    return jnp.where(present, scores, 0.0), present


def _within(name: str, indices: Array, size: int) -> None:
    """Refuses indices outside [0, size), where their values are known."""
    if isinstance(indices, jax.core.Tracer) or not indices.size:
        return
    known = np.asarray(indices)
    least, most = int(known.min()), int(known.max())
    if least < 0 or most >= size:
        raise ValueError(f"{name} must lie in [0, {size}), got {least if least < 0 else most}")
