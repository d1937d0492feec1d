"""The loss of contrastive representation distillation, as RepDistiller and torchdistill have it."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int
from numpy import ndarray

from kdjax.losses import checks, memory_bank
from kdjax.losses.checks import Scalar

Loss = Float[Array, ""]


def crd_loss(
    v1: Float[Array | ndarray, "batch features"],
    v2: Float[Array | ndarray, "batch features"],
    contrast_idx: Int[Array | ndarray, "batch candidates"],
    memory_v1: Float[Array | ndarray, "examples features"],
    memory_v2: Float[Array | ndarray, "examples features"],
    z_v1: Scalar | None = None,
    z_v2: Scalar | None = None,
    *,
    n_data: Scalar | int | None = None,
    nce_t: Scalar = 0.07,
    eps: float = 1e-7,
) -> Loss:
    """RepDistiller's `CRDLoss` of embeddings: `crd_nce` of both sides, with 1e-7. Weight 0.8.

        L = -1/B sum over both sides and b of  log [P_b0 / (P_b0 + K/N + e)]
                                               + sum_{j=1..K} log [K/N / (P_bj + K/N + e)]
        P_bj = exp(v_b . memory_j / T) / Z

    the student's v1 with the teacher's memory_v2, and the other way round. What the original keeps
    between calls is the caller's here: Z, of the first batch (`exp` of `crd_initial_log_z` of
    `crd_scores`), and the memories, updated after the loss with momentum 0.5 (`crd_update_bank`).
    It returns an array of one element, and is infinite where exp(v . memory / T) overflows.

    Args:
      v1: the student's embeddings, of unit length, floats [batch, features]. Differentiated.
      v2: the teacher's, whose linear head is trained too. Differentiated.
      contrast_idx: integers [batch, 1 + K], the example itself in column 0.
      memory_v1: the student's, floats [examples, features]. Stopped.
      memory_v2: the teacher's. Stopped.
      z_v1: Z of the student's side, scalar > 0, may be traced; None: from this batch.
      z_v2: Z of the teacher's side.
      n_data: N, scalar > 0, may be traced; None: the rows of the memory.
      nce_t: T, scalar > 0, may be traced.
      eps: e, number >= 0.

    Returns:
      Scalar.

    Raises:
      ValueError: shapes that do not fit, no negatives, an index out of range, nce_t or n_data <= 0.
        TypeError: arrays that are not floats, indices that are not integers.

    Source: Tian et al. 2020, arXiv:1910.10699.

    >>> import jax.numpy as jnp
    >>> right, memory = jnp.array([[1.0, 0.0]]), jnp.eye(2)
    >>> print(f"{crd_loss(right, right, jnp.array([[0, 1]]), memory, memory, nce_t=1.0):.4f}")
    1.9031
    """
    contrast_idx = checks.integers("contrast_idx", contrast_idx, None, "")
    checks.axis_shapes("contrast_idx", contrast_idx, "batch candidates>=2", {})
    checks.not_negative(eps=eps)
    size = len(memory_v1) if n_data is None else n_data
    checks.positive(n_data=size)
    negatives = contrast_idx.shape[1] - 1
    noise = negatives / size
    total = 2 * negatives * jnp.log1p(eps / noise)
    for embeddings, memory, z in ((v1, memory_v2, z_v1), (v2, memory_v1, z_v2)):
        scores = memory_bank.crd_scores(embeddings, memory, contrast_idx, temperature=nce_t)
        if z is None:
            log_z = memory_bank.crd_initial_log_z(scores, num_examples=len(memory))
        else:
            checks.positive(z=z)
            log_z = jnp.log(jnp.asarray(z, scores.dtype))
        # The kernel's noise is negatives / num_examples: here noise + eps.
        values = memory_bank.crd_nce(scores, log_z, num_examples=negatives / (noise + eps))
        total += jnp.mean(values)
    return total
