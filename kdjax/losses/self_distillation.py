"""On-policy self-distillation: one model in two contexts, compared on the tokens that it sampled.

The student's logits are those of the model that reads the problem, the teacher's those of the model
that reads the solution too. Both are logits of the same tokens; what is compared is told here, how
it is reduced tell `token_total` and `sequence_total` of `kdjax.losses.tokens`. The estimate from
the sampled token alone is `sampled_token_reverse_kl` there.
"""

import jax
from jaxtyping import Array, Float

from kdjax.losses import checks, log_space
from kdjax.losses.checks import Logits, Losses, Scalar
from kdjax.losses.divergences import generalized_jsd
from kdjax.losses.sparse_targets import gather


def topk_teacher_support(
    student_logits: Logits, teacher_logits: Logits, *, k: int, temperature: Scalar = 1.0
) -> tuple[Float[Array, "*batch k"], Float[Array, "*batch k"]]:
    """Both sides' log-probabilities on the teacher's top k tokens, renormalised over them.

        log p_i = t_i / T - logsumexp_j (t_j / T),  log q_i alike,  i, j in the top k of t

    For any divergence on logits. What the student has outside of them is not seen; with k = 1
    nothing is. `sparse_buckets` keeps what is outside as a bucket.

    Args:
      student_logits: floats [..., vocabulary]. Differentiated.
      teacher_logits: floats [..., vocabulary]. Stopped.
      k: 1 <= k <= vocabulary.
      temperature: scalar > 0, may be traced.

    Returns:
      (student's, teacher's), each [..., k], the teacher's likeliest token first.

    Raises:
      ValueError: shapes that differ, k out of range, temperature <= 0. TypeError: arrays that are
        not floats.

    Source: Zhao et al. 2026 (OPSD), arXiv:2601.18734, the authors' code.

    >>> import jax.numpy as jnp
    >>> student, teacher = jnp.log(jnp.array([[0.1, 0.6, 0.3], [0.5, 0.2, 0.3]]))
    >>> log_q, log_p = topk_teacher_support(student, teacher, k=2)
    >>> print(" ".join(f"{x:.3f}" for x in jnp.exp(jnp.append(log_q, log_p))))
    0.250 0.750 0.625 0.375
    """
    student, teacher = checks.logits(student_logits=student_logits, teacher_logits=teacher_logits)
    checks.count(1, student.shape[-1], k=k)
    checks.positive(temperature=temperature)
    teacher, ids = jax.lax.top_k(jax.lax.stop_gradient(teacher), k)
    return tuple(
        log_space.safe_log_softmax(logits / temperature)
        for logits in (gather(student, ids), teacher)
    )


def opsd(
    student_logits: Logits,
    teacher_logits: Logits,
    *,
    beta: Scalar = 0.5,
    temperature: Scalar = 1.0,
    top_k: int | None = None,
) -> Losses:
    """Generalised JSD of a token between the model with the solution and the model without it.

        L = JSD_beta(p, q),   p = softmax(t / T),  q = softmax(s / T)

    with m = beta p + (1 - beta) q and the end points of `generalized_jsd`: KL(p || q) at beta = 0,
    KL(q || p) at 1. No squared temperature is applied. With `top_k` both sides are those of
    `topk_teacher_support`.

    Args:
      student_logits: floats [..., vocabulary]. Differentiated.
      teacher_logits: floats [..., vocabulary]. Stopped.
      beta: scalar in [0, 1], may be traced.
      temperature: scalar > 0, may be traced.
      top_k: 2 <= top_k <= vocabulary: a single token would teach nothing. None: all.

    Returns:
      [...], >= 0.

    Raises:
      ValueError: shapes that differ, beta outside [0, 1], top_k out of range, temperature <= 0.
      TypeError: arrays that are not floats.

    Source: Zhao et al. 2026 (OPSD), arXiv:2601.18734.

    >>> import jax.numpy as jnp
    >>> student, teacher = jnp.log(jnp.array([0.9, 0.1])), jnp.log(jnp.array([0.5, 0.5]))
    >>> print(" ".join(f"{opsd(student, teacher, beta=beta):.6f}" for beta in (0.5, 0.0, 1.0)))
    0.101749 0.510826 0.368064
    """
    student, teacher = checks.logits(student_logits=student_logits, teacher_logits=teacher_logits)
    checks.positive(temperature=temperature)
    checks.fraction(beta=beta)
    if top_k is not None:
        checks.count(2, student.shape[-1], top_k=top_k)
        log_q, log_p = topk_teacher_support(student, teacher, k=top_k, temperature=temperature)
        return generalized_jsd(log_p, log_q, beta=beta)
    teacher = jax.lax.stop_gradient(teacher)
    return generalized_jsd(teacher / temperature, student / temperature, beta=beta)
