"""How far a language model lags behind its teacher in each domain, as a distribution to sample by.

Arrays are [..., domains]. The ratio of perplexities is unbounded, and its exponential enters: all
is computed in log space, so that a huge ratio gives all weight to its domain, and never overflows.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from numpy import ndarray

from kdjax.losses import checks
from kdjax.losses.checks import Scalar

Domains = Float[Array | ndarray, "*batch domains"]
Factors = Float[Array, "*batch domains"]


def domain_perplexity(nll_sum: Domains, token_count: Domains) -> Factors:
    """The perplexity of every domain, from sums over all of its tokens.

        l_i = exp( nll_sum_i / token_count_i )

    Sums over batches, devices and hosts come before the exponential: means of perplexities are not
    perplexities.

    Args:
      nll_sum: floats [..., domains], negative log-likelihoods in nats. Differentiated.
      token_count: floats [..., domains] > 0, how many tokens they are of. Stopped.

    Returns:
      [..., domains], >= 1; NaN for a domain without tokens.

    Raises:
      ValueError: shapes that differ. TypeError: arrays that are not floats.

    Source: Liu et al. 2024, arXiv:2407.16154, section 3.2.

    >>> import jax.numpy as jnp
    >>> print(domain_perplexity(jnp.log(jnp.array([8.0, 9.0])), jnp.array([3.0, 2.0])))
    [2. 3.]
    """
    nll_sum, token_count = checks.shaped(
        {"nll_sum": "... domains", "token_count": "... domains"},
        nll_sum=nll_sum,
        token_count=token_count,
    )
    return jnp.exp(nll_sum / jax.lax.stop_gradient(token_count))


def domain_discrepancy_init(
    student_perplexity: Domains, teacher_perplexity: Domains, *, max_ratio: Scalar | None = None
) -> Factors:
    """DDK's domain discrepancy factor from one measurement: more where the student lags more.

        r_i = exp(l^S_i / l^T_i) / sum_j exp(l^S_j / l^T_j)

    Args:
      student_perplexity: l^S, floats [..., domains]. Differentiated.
      teacher_perplexity: l^T, floats [..., domains] > 0, of the same tokens. Stopped.
      max_ratio: ratios above it count as it. None: an undertrained student, with a ratio some ten
        above the others, has practically all weight on one domain.

    Returns:
      [..., domains], positive, sum 1.

    Raises:
      ValueError: shapes that differ, max_ratio <= 0. TypeError: arrays that are not floats.

    Source: Liu et al. 2024, arXiv:2407.16154, equation 1.

    >>> import jax.numpy as jnp
    >>> print(domain_discrepancy_init(jnp.array([2.4, 4.5]), jnp.array([2.0, 3.0])))
    [0.4255575 0.5744425]
    """
    return jax.nn.softmax(_ratios(student_perplexity, teacher_perplexity, max_ratio), axis=-1)


def domain_discrepancy_update(
    factor: Domains,
    student_perplexity: Domains,
    teacher_perplexity: Domains,
    *,
    alpha: Scalar = 0.5,
    max_ratio: Scalar | None = None,
) -> Factors:
    """DDK's smooth update of the domain discrepancy factor, at the beginning of an interval.

        psi_i = r_i exp(l^S_i / l^T_i),   r'_i = alpha psi_i / sum_j psi_j + (1 - alpha) / domains

    At alpha 1 equal ratios leave r as it is; at 0 the result is uniform.

    Args:
      factor: r, floats [..., domains] >= 0, of the interval before. Differentiated.
      student_perplexity: l^S, floats [..., domains]. Differentiated.
      teacher_perplexity: l^T, floats [..., domains] > 0, of the same tokens. Stopped.
      alpha: in [0, 1], scalar, may be traced.
      max_ratio: as in `domain_discrepancy_init`.

    Returns:
      [..., domains], at least (1 - alpha) / domains, sum 1.

    Raises:
      ValueError: shapes that differ, alpha outside [0, 1], max_ratio <= 0.
      TypeError: arrays that are not floats.

    Source: Liu et al. 2024, arXiv:2407.16154, equation 2.

    >>> import jax.numpy as jnp
    >>> student, teacher = jnp.array([2.4, 4.5]), jnp.array([2.0, 3.0])
    >>> print(domain_discrepancy_update(jnp.array([0.5, 0.5]), student, teacher))
    [0.46277875 0.53722125]
    """
    checks.fraction(alpha=alpha)
    ratios = _ratios(student_perplexity, teacher_perplexity, max_ratio)
    factor, ratios = checks.shaped(
        {"factor": "... domains", "student_perplexity": "... domains"},
        factor=factor,
        student_perplexity=ratios,
    )
    moved = jax.nn.softmax(jnp.log(factor) + ratios, axis=-1)
    return alpha * moved + (1 - alpha) / factor.shape[-1]


def _ratios(student: Domains, teacher: Domains, max_ratio: Scalar | None) -> Array:
    student, teacher = checks.shaped(
        {"student_perplexity": "... domains", "teacher_perplexity": "... domains"},
        student_perplexity=student,
        teacher_perplexity=teacher,
    )
    ratios = student / jax.lax.stop_gradient(teacher)
    if max_ratio is None:
        return ratios
    checks.positive(max_ratio=max_ratio)
    return jnp.minimum(ratios, max_ratio)
