"""Losses of a whole vocabulary, from hidden states and output heads: never [tokens, vocabulary].

    total, weight = linear_kl(student_hidden, student_head, teacher_hidden, teacher_head)

The divergences of `kdjax.losses.divergences` between p = softmax(t / T) of the teacher and
q = softmax(s / T) of the student, s = student_hidden student_head^T, summed over the tokens. Logits
exist for one chunk of tokens at a time, and the student's gradient (hidden states, head, bias) is
made beside the value, in float32 (float64 for float64), from matrix products with sums in float32.
Forward-mode differentiation is refused by JAX, as for every custom gradient.

A head is an array [vocabulary, width], or a `Head` with a bias and a soft cap. The teacher is one
of

    teacher_hidden, teacher_head        hidden states, whose logits are made chunk by chunk as well
    teacher_logits=                     dense logits [..., vocabulary]
    teacher_ids=, teacher_log_probs=    a sparse teacher [..., k] (`kdjax.losses.sparse_targets`);
                                        the tokens not listed are one bucket on both sides ("tail")

and is stopped. With `labels` the cross-entropy on them comes from the same logits, as a second
pair, which costs one more gradient: `(total, weight), (label_total, label_weight)`. The caller
divides a total by its weight, once, after adding up micro-batches and devices.

Heads may be cut over the vocabulary on devices. Under `jit` nothing is to be done; inside
`jax.shard_map` pass the `axis_name` along which they are cut. Either way what the devices exchange
is of the size of the tokens. Tokens cut over devices under `jit` make the compiler add up the
head's gradient once a chunk: give a large `chunk`, or use `shard_map`, which adds up once.
"""

from typing import Unpack

import jax
from jaxtyping import Array, Bool
from numpy import ndarray

from kdjax.losses import checks
from kdjax.losses import vocabulary_terms as terms
from kdjax.losses.checks import Labels, Scalar
from kdjax.losses.tokens import Total
from kdjax.losses.vocabulary_arguments import (
    Options,
    StudentHead,
    StudentHidden,
    TeacherHead,
    TeacherHidden,
    Totals,
    linear,
)


def linear_cross_entropy(
    student_hidden: StudentHidden,
    student_head: StudentHead,
    labels: Labels,
    *,
    where: Bool[Array | ndarray, "*batch"] | None = None,
    chunk: int | None = None,
    axis_name: str | None = None,
) -> Total:
    """Cross-entropy on labels, from hidden states and the output head.

        total = sum_i w_i ( logsumexp(s_i) - s_i[y_i] ),   s_i = hidden_i head^T

    Args:
      student_hidden: floats [..., width]. Differentiated.
      student_head: floats [vocabulary, width], or a `Head`. Differentiated.
      labels: integers [...]. Outside [0, vocabulary): not counted, gradient 0.
      where: booleans [...]: the tokens that count. What else is there may be NaN or infinite.
      chunk: tokens whose logits exist at a time, as in `Options`.
      axis_name: in `jax.shard_map`: the axis along which the head is cut, as in `Options`.

    Returns:
      (total, weight), scalars: the sum of the tokens' losses and how many they are.

    Raises:
      ValueError: shapes that do not fit, chunk < 1. TypeError: labels that are not integers, a
        mask that is not boolean, other arrays that are not floats.

    Source: Wijmans et al. 2024, arXiv:2411.09009; Hsu et al. 2024 (Liger Kernel), arXiv:2410.10989.

    >>> import jax.numpy as jnp
    >>> hidden, head = jnp.array([[1.0, 0.0], [0.0, 1.0]]), jnp.array([[2.0, 0.0], [0.0, 1.0]])
    >>> total, weight = linear_cross_entropy(hidden, head, jnp.array([0, -100]))
    >>> print(f"{total:.4f} {weight:.0f}")
    0.1269 1
    """
    options = dict(labels=labels, where=where, chunk=chunk, axis_name=axis_name)
    return linear(None, student_hidden, student_head, None, None, **options)


def linear_kl(
    student_hidden: StudentHidden,
    student_head: StudentHead,
    teacher_hidden: TeacherHidden | None = None,
    teacher_head: TeacherHead | None = None,
    **options: Unpack[Options],
) -> Totals:
    """Forward KL of the teacher and the student, from hidden states and output heads.

        total = sum_i w_i KL(p_i || q_i)

    Args:
      student_hidden: floats [..., width]. Differentiated.
      student_head: floats [vocabulary, width], or a `Head`. Differentiated.
      teacher_hidden: floats [..., teacher_width]. Stopped.
      teacher_head: floats [vocabulary, teacher_width], or a `Head`. Stopped.
      **options: `Options`: teacher_logits, teacher_ids and teacher_log_probs (another teacher),
        labels, where, temperature, shared_ids, chunk, axis_name.

    Returns:
      (total, weight), scalars: the sum of the tokens' losses and how many they are; two such pairs
      with `labels`.

    Raises:
      ValueError: no teacher or several, shapes or vocabularies that do not fit, values out of
        range. TypeError: arrays of another kind.

    Source: Hinton et al. 2015, arXiv:1503.02531; the chunks: Hsu et al. 2024, arXiv:2410.10989.

    >>> import jax.numpy as jnp
    >>> hidden, head = jnp.ones((2, 3, 1)), jnp.array([[2.0], [1.0], [0.0]])
    >>> teacher_hidden, teacher_head = jnp.ones((2, 3, 1)), jnp.array([[0.0], [1.0], [2.0]])
    >>> total, weight = linear_kl(hidden, head, teacher_hidden, teacher_head)
    >>> print(f"{total / weight:.4f} {weight:.0f}")
    1.1504 6
    """
    return linear(terms.kl, student_hidden, student_head, teacher_hidden, teacher_head, **options)


def linear_reverse_kl(
    student_hidden: StudentHidden,
    student_head: StudentHead,
    teacher_hidden: TeacherHidden | None = None,
    teacher_head: TeacherHead | None = None,
    **options: Unpack[Options],
) -> Totals:
    """Reverse KL of the student and the teacher, from hidden states and output heads.

        total = sum_i w_i KL(q_i || p_i)

    Args:
      student_hidden: floats [..., width]. Differentiated.
      student_head: floats [vocabulary, width], or a `Head`. Differentiated.
      teacher_hidden: floats [..., teacher_width]. Stopped.
      teacher_head: floats [vocabulary, teacher_width], or a `Head`. Stopped.
      **options: `Options`: teacher_logits, teacher_ids and teacher_log_probs (another teacher),
        labels, where, temperature, shared_ids, chunk, axis_name.

    Returns:
      (total, weight), or two such pairs with `labels`, as `linear_kl`.

    Raises:
      ValueError, TypeError: as `linear_kl`.

    Source: Gu et al. 2023 (MiniLLM), arXiv:2306.08543.

    >>> import jax.numpy as jnp
    >>> hidden, head = jnp.ones((2, 1)), jnp.array([[100.0], [0.0]])
    >>> total, weight = linear_reverse_kl(hidden, head, teacher_logits=jnp.zeros((2, 2)))
    >>> print(f"{total / weight:.4f}")
    0.6931
    """
    return linear(
        terms.reverse_kl, student_hidden, student_head, teacher_hidden, teacher_head, **options
    )


def linear_generalized_jsd(
    student_hidden: StudentHidden,
    student_head: StudentHead,
    teacher_hidden: TeacherHidden | None = None,
    teacher_head: TeacherHead | None = None,
    *,
    beta: Scalar = 0.5,
    **options: Unpack[Options],
) -> Totals:
    """Generalised Jensen-Shannon divergence, from hidden states and output heads.

        total = sum_i w_i JSD_beta(p_i, q_i)        of `generalized_jsd`, with its end points

    Args:
      student_hidden: floats [..., width]. Differentiated.
      student_head: floats [vocabulary, width], or a `Head`. Differentiated.
      teacher_hidden: floats [..., teacher_width]. Stopped.
      teacher_head: floats [vocabulary, teacher_width], or a `Head`. Stopped.
      beta: scalar in [0, 1], may be traced, not differentiated: 0 forward, 1 reverse KL.
      **options: `Options`: teacher_logits, teacher_ids and teacher_log_probs (another teacher),
        labels, where, temperature, shared_ids, chunk, axis_name.

    Returns:
      (total, weight), or two such pairs with `labels`, as `linear_kl`.

    Raises:
      ValueError, TypeError: as `linear_kl`; beta outside [0, 1].

    Source: Agarwal et al. 2023 (GKD), arXiv:2306.13649.

    >>> import jax.numpy as jnp
    >>> hidden, head = jnp.ones((2, 1)), jnp.array([[2.0], [1.0], [0.0]])
    >>> total, weight = linear_generalized_jsd(hidden, head, hidden, head[::-1])
    >>> print(f"{total / weight:.4f}")
    0.2476
    """
    checks.fraction(beta=beta)
    # The end points are computed beside the rest only where beta may turn out to be one.
    inner = not isinstance(beta, jax.core.Tracer) and 0 < float(beta) < 1
    return linear(
        terms.inner_jsd if inner else terms.generalized_jsd,
        student_hidden,
        student_head,
        teacher_hidden,
        teacher_head,
        scalars={"beta": beta},
        **options,
    )


def linear_skewed_kl(
    student_hidden: StudentHidden,
    student_head: StudentHead,
    teacher_hidden: TeacherHidden | None = None,
    teacher_head: TeacherHead | None = None,
    *,
    lam: Scalar = 0.1,
    direction: str = "forward",
    **options: Unpack[Options],
) -> Totals:
    """Skewed KL, against a mixture of both sides, from hidden states and output heads.

        "forward": total = sum_i w_i KL( p_i || lam p_i + (1 - lam) q_i )
        "reverse": total = sum_i w_i KL( q_i || (1 - lam) p_i + lam q_i )

    Args:
      student_hidden: floats [..., width]. Differentiated.
      student_head: floats [vocabulary, width], or a `Head`. Differentiated.
      teacher_hidden: floats [..., teacher_width]. Stopped.
      teacher_head: floats [vocabulary, teacher_width], or a `Head`. Stopped.
      lam: scalar in [0, 1], may be traced, not differentiated.
      direction: "forward" (`skewed_forward_kl`) or "reverse" (`skewed_reverse_kl`).
      **options: `Options`: teacher_logits, teacher_ids and teacher_log_probs (another teacher),
        labels, where, temperature, shared_ids, chunk, axis_name.

    Returns:
      (total, weight), or two such pairs with `labels`, as `linear_kl`.

    Raises:
      ValueError, TypeError: as `linear_kl`; lam outside [0, 1], an unknown direction.

    Source: Ko et al. 2024 (DistiLLM), arXiv:2402.03898.

    >>> import jax.numpy as jnp
    >>> hidden, head = jnp.ones((2, 1)), jnp.array([[2.0], [1.0], [0.0]])
    >>> total, weight = linear_skewed_kl(hidden, head, hidden, head[::-1], lam=0.1)
    >>> print(f"{total / weight:.4f}")
    0.8299
    """
    checks.fraction(lam=lam)
    checks.choice("direction", direction, tuple(terms.SKEWED))
    return linear(
        terms.SKEWED[direction],
        student_hidden,
        student_head,
        teacher_hidden,
        teacher_head,
        scalars={"lam": lam},
        **options,
    )


def linear_total_variation(
    student_hidden: StudentHidden,
    student_head: StudentHead,
    teacher_hidden: TeacherHidden | None = None,
    teacher_head: TeacherHead | None = None,
    **options: Unpack[Options],
) -> Totals:
    """Total variation distance, from hidden states and output heads.

        total = sum_i w_i 1/2 sum_v |p_iv - q_iv|

    Args:
      student_hidden: floats [..., width]. Differentiated (0 where p = q).
      student_head: floats [vocabulary, width], or a `Head`. Differentiated.
      teacher_hidden: floats [..., teacher_width]. Stopped.
      teacher_head: floats [vocabulary, teacher_width], or a `Head`. Stopped.
      **options: `Options`: teacher_logits, teacher_ids and teacher_log_probs (another teacher),
        labels, where, temperature, shared_ids, chunk, axis_name.

    Returns:
      (total, weight), or two such pairs with `labels`, as `linear_kl`.

    Raises:
      ValueError, TypeError: as `linear_kl`.

    Source: Wen et al. 2023 (f-distill), arXiv:2307.15190.

    >>> import jax.numpy as jnp
    >>> hidden, head = jnp.ones((2, 1)), jnp.array([[2.0], [1.0], [0.0]])
    >>> total, weight = linear_total_variation(hidden, head, hidden, head[::-1])
    >>> print(f"{total / weight:.4f}")
    0.5752
    """
    return linear(
        terms.total_variation, student_hidden, student_head, teacher_hidden, teacher_head, **options
    )


def linear_alpha_beta(
    student_hidden: StudentHidden,
    student_head: StudentHead,
    teacher_hidden: TeacherHidden | None = None,
    teacher_head: TeacherHead | None = None,
    *,
    alpha: Scalar = 0.2,
    beta: Scalar = 0.7,
    **options: Unpack[Options],
) -> Totals:
    """Alpha-beta divergence, from hidden states and output heads.

        total = sum_i w_i D_(alpha, beta)(p_i, q_i)        of `alpha_beta_divergence`

    Args:
      student_hidden: floats [..., width]. Differentiated.
      student_head: floats [vocabulary, width], or a `Head`. Differentiated.
      teacher_hidden: floats [..., teacher_width]. Stopped.
      teacher_head: floats [vocabulary, teacher_width], or a `Head`. Stopped.
      alpha: finite scalar, may be traced, not differentiated.
      beta: finite scalar, may be traced, not differentiated.
      **options: `Options`: teacher_logits, teacher_ids and teacher_log_probs (another teacher),
        labels, where, temperature, shared_ids, chunk, axis_name.

    Returns:
      (total, weight), or two such pairs with `labels`, as `linear_kl`.

    Raises:
      ValueError, TypeError: as `linear_kl`; alpha or beta not finite.

    Source: Wang et al. 2025 (ABKD), arXiv:2505.04560.

    >>> import jax.numpy as jnp
    >>> hidden, head = jnp.ones((2, 1)), jnp.array([[2.0], [1.0], [0.0]])
    >>> total, weight = linear_alpha_beta(hidden, head, hidden, head[::-1], alpha=0.2, beta=0.7)
    >>> print(f"{total / weight:.4f}")
    1.2293
    """
    checks.finite(alpha=alpha, beta=beta)
    return linear(
        terms.alpha_beta,
        student_hidden,
        student_head,
        teacher_hidden,
        teacher_head,
        scalars={"alpha": alpha, "beta": beta},
        **options,
    )


def linear_taid(
    student_hidden: StudentHidden,
    student_head: StudentHead,
    teacher_hidden: TeacherHidden | None = None,
    teacher_head: TeacherHead | None = None,
    *,
    t: Scalar,
    form: str = "cross_entropy",
    **options: Unpack[Options],
) -> Totals:
    """TAID: a target between the student and the teacher, from hidden states and output heads.

        p_t = softmax( ( (1 - t) stop(s) + t z ) / T ),   s, z: logits of student and teacher
        "cross_entropy": total = sum_i w_i ( -sum_v p_t log q )
        "kl":            total = sum_i w_i KL(p_t || q)

    Both have the gradient (q - p_t) / T. The authors' code trains, and steers t, by the value of
    the cross-entropy; the paper's formula is the KL. At t = 0 the gradient is 0, at t = 1 it is
    that of `linear_kl`. A token at -inf on either side is absent from p_t.

    Args:
      student_hidden: floats [..., width]. Differentiated.
      student_head: floats [vocabulary, width], or a `Head`. Differentiated.
      teacher_hidden: floats [..., teacher_width]. Stopped.
      teacher_head: floats [vocabulary, teacher_width], or a `Head`. Stopped.
      t: scalar in [0, 1], may be traced, not differentiated.
      form: "cross_entropy" or "kl".
      **options: `Options`: teacher_logits (another teacher, not a sparse one), labels, where,
        temperature, shared_ids, chunk, axis_name.

    Returns:
      (total, weight), or two such pairs with `labels`, as `linear_kl`.

    Raises:
      ValueError, TypeError: as `linear_kl`; t outside [0, 1], an unknown form, a sparse teacher.

    Source: Shing et al. 2025 (TAID), arXiv:2501.16937.

    >>> import jax.numpy as jnp
    >>> hidden, head = jnp.ones((1, 1)), jnp.zeros((2, 1))
    >>> teacher_logits = jnp.log(jnp.array([[3.0, 1.0]]))
    >>> total, weight = linear_taid(hidden, head, teacher_logits=teacher_logits, t=0.5)
    >>> print(f"{total / weight:.6f}")
    0.693147
    """
    checks.fraction(t=t)
    checks.choice("form", form, tuple(terms.TAID))
    if options.get("teacher_ids") is not None:
        raise ValueError("linear_taid interpolates logits: teacher_ids must not be given")
    return linear(
        terms.TAID[form],
        student_hidden,
        student_head,
        teacher_hidden,
        teacher_head,
        scalars={"t": t},
        interpolates=True,
        **options,
    )
