"""DistiLLM's losses (distillm/losses.py), on which abkd and others build.

Means over the tokens whose label is not -100, the labels being shifted already. A class that is
infinite on either side (vocabulary padding) is left out of the sums.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
from numpy import ndarray

from kdjax.losses import checks, log_space
from kdjax.losses.checks import Scalar

TokenLogits = Float[Array | ndarray, "*batch vocabulary"]
TokenLabels = Int[Array | ndarray, "*batch"]
Loss = Float[Array, ""]


def forward_kl(
    student_logits: TokenLogits, teacher_logits: TokenLogits, labels: TokenLabels
) -> Loss:
    """DistiLLM's `forward_kl`: a cross-entropy.

        L = mean over tokens of -sum_v p_v log q_v

    The mean of `losses.forward_kl` plus that of the teacher's entropy, which no gradient sees.

    Args:
      student_logits: floats [..., vocabulary]. Differentiated.
      teacher_logits: floats [..., vocabulary]. Stopped.
      labels: integers [...], already shifted; -100 where a token does not count.

    Returns:
      Scalar.

    Raises:
      ValueError: shapes that differ. TypeError: labels that are not integers, logits that are not
        floats.

    Source: Ko et al. 2024 (DistiLLM), arXiv:2402.03898.

    >>> import jax.numpy as jnp
    >>> student, teacher = jnp.array([[2.0, 1.0, 0.0]]), jnp.array([[0.0, 1.0, 2.0]])
    >>> print(f"{forward_kl(student, teacher, jnp.array([5])):.4f}")
    1.9828
    """
    return _token_mean(
        student_logits, teacher_logits, labels, lambda log_p, log_q: -jnp.exp(log_p) * log_q
    )


def reverse_kl(
    student_logits: TokenLogits, teacher_logits: TokenLogits, labels: TokenLabels
) -> Loss:
    """DistiLLM's `reverse_kl`: the mean of `losses.reverse_kl` over tokens.

        L = mean over tokens of sum_v q_v (log q_v - log p_v)

    Args:
      student_logits: floats [..., vocabulary]. Differentiated.
      teacher_logits: floats [..., vocabulary]. Stopped.
      labels: integers [...], already shifted; -100 where a token does not count.

    Returns:
      Scalar.

    Raises:
      ValueError: shapes that differ. TypeError: labels that are not integers, logits that are not
        floats.

    Source: Ko et al. 2024 (DistiLLM), arXiv:2402.03898.

    >>> import jax.numpy as jnp
    >>> student, teacher = jnp.array([[2.0, 1.0, 0.0]]), jnp.array([[0.0, 1.0, 2.0]])
    >>> print(f"{reverse_kl(student, teacher, jnp.array([5])):.4f}")
    1.1504
    """
    return _token_mean(
        student_logits,
        teacher_logits,
        labels,
        lambda log_p, log_q: jnp.exp(log_q) * (log_q - log_p),
    )


def symmetric_kl(
    student_logits: TokenLogits,
    teacher_logits: TokenLogits,
    labels: TokenLabels,
    lam: Scalar = 0.9,
) -> Loss:
    """DistiLLM's `symmetric_kl`: a weighted sum of its two KL, mostly the reverse.

        L = (1 - lam) forward_kl + lam reverse_kl

    Args:
      student_logits: floats [..., vocabulary]. Differentiated.
      teacher_logits: floats [..., vocabulary]. Stopped.
      labels: integers [...], already shifted; -100 where a token does not count.
      lam: scalar in [0, 1], may be traced.

    Returns:
      Scalar.

    Raises:
      ValueError: shapes that differ, lam outside [0, 1]. TypeError: labels that are not integers,
        logits that are not floats.

    Source: Ko et al. 2024 (DistiLLM), arXiv:2402.03898.

    >>> import jax.numpy as jnp
    >>> student, teacher = jnp.array([[2.0, 1.0, 0.0]]), jnp.array([[0.0, 1.0, 2.0]])
    >>> print(f"{symmetric_kl(student, teacher, jnp.array([5])):.4f}")
    1.2337
    """
    checks.fraction(lam=lam)
    forward = forward_kl(student_logits, teacher_logits, labels)
    return (1 - lam) * forward + lam * reverse_kl(student_logits, teacher_logits, labels)


def js_distance(
    student_logits: TokenLogits,
    teacher_logits: TokenLogits,
    labels: TokenLabels,
    lam: Scalar = 0.9,
) -> Loss:
    """DistiLLM's `js_distance`: that is `losses.generalized_jsd` with beta = 1 - lam, averaged.

        L = mean over tokens of lam KL(q || m) + (1 - lam) KL(p || m),   m = (1 - lam) p + lam q

    At lam = 0 and 1 it is 0, where `generalized_jsd` jumps. abkd's copy has lam = 0.1.

    Args:
      student_logits: floats [..., vocabulary]. Differentiated.
      teacher_logits: floats [..., vocabulary]. Stopped.
      labels: integers [...], already shifted; -100 where a token does not count.
      lam: scalar in [0, 1], may be traced.

    Returns:
      Scalar.

    Raises:
      ValueError: shapes that differ, lam outside [0, 1]. TypeError: labels that are not integers,
        logits that are not floats.

    Source: Ko et al. 2024 (DistiLLM), arXiv:2402.03898.

    >>> import jax.numpy as jnp
    >>> student, teacher = jnp.array([[2.0, 1.0, 0.0]]), jnp.array([[0.0, 1.0, 2.0]])
    >>> print(f"{js_distance(student, teacher, jnp.array([5]), lam=0.5):.4f}")
    0.2476
    """
    checks.fraction(lam=lam)

    def terms(log_p: Array, log_q: Array) -> Array:
        log_mean = log_space.log_mixture(log_p, log_q, 1 - lam)
        of_student = lam * jnp.exp(log_q) * (log_q - log_mean)
        return of_student + (1 - lam) * jnp.exp(log_p) * (log_p - log_mean)

    return _token_mean(student_logits, teacher_logits, labels, terms)


def tv_distance(
    student_logits: TokenLogits, teacher_logits: TokenLogits, labels: TokenLabels
) -> Loss:
    """DistiLLM's `tv_distance`: the mean of `losses.total_variation` over tokens.

        L = mean over tokens of 1/2 sum_v |p_v - q_v|

    Args:
      student_logits: floats [..., vocabulary]. Differentiated.
      teacher_logits: floats [..., vocabulary]. Stopped.
      labels: integers [...], already shifted; -100 where a token does not count.

    Returns:
      Scalar, in [0, 1].

    Raises:
      ValueError: shapes that differ. TypeError: labels that are not integers, logits that are not
        floats.

    Source: Ko et al. 2024 (DistiLLM), arXiv:2402.03898.

    >>> import jax.numpy as jnp
    >>> student, teacher = jnp.array([[2.0, 1.0, 0.0]]), jnp.array([[0.0, 1.0, 2.0]])
    >>> print(f"{tv_distance(student, teacher, jnp.array([5])):.4f}")
    0.5752
    """
    return _token_mean(
        student_logits,
        teacher_logits,
        labels,
        lambda log_p, log_q: 0.5 * jnp.abs(jnp.exp(log_p) - jnp.exp(log_q)),
    )


def skewed_forward_kl(
    student_logits: TokenLogits,
    teacher_logits: TokenLogits,
    labels: TokenLabels,
    lam: Scalar = 0.1,
) -> Loss:
    """DistiLLM's `skewed_forward_kl`: a cross-entropy with a mixture.

        L = mean over tokens of -sum_v p_v log(lam p_v + (1 - lam) q_v)

    The mean of `losses.skewed_forward_kl` plus that of the teacher's entropy, which no gradient
    sees.

    Args:
      student_logits: floats [..., vocabulary]. Differentiated.
      teacher_logits: floats [..., vocabulary]. Stopped.
      labels: integers [...], already shifted; -100 where a token does not count.
      lam: scalar in [0, 1], may be traced.

    Returns:
      Scalar.

    Raises:
      ValueError: shapes that differ, lam outside [0, 1]. TypeError: labels that are not integers,
        logits that are not floats.

    Source: Ko et al. 2024 (DistiLLM), arXiv:2402.03898.

    >>> import jax.numpy as jnp
    >>> student, teacher = jnp.array([[2.0, 1.0, 0.0]]), jnp.array([[0.0, 1.0, 2.0]])
    >>> print(f"{skewed_forward_kl(student, teacher, jnp.array([5])):.4f}")
    1.6623
    """
    checks.fraction(lam=lam)
    return _token_mean(
        student_logits,
        teacher_logits,
        labels,
        lambda log_p, log_q: -jnp.exp(log_p) * log_space.log_mixture(log_p, log_q, lam),
    )


def skewed_reverse_kl(
    student_logits: TokenLogits,
    teacher_logits: TokenLogits,
    labels: TokenLabels,
    lam: Scalar = 0.1,
) -> Loss:
    """DistiLLM's `skewed_reverse_kl`: the mean of `losses.skewed_reverse_kl` over tokens.

        L = mean over tokens of KL(q || (1 - lam) p + lam q)

    Args:
      student_logits: floats [..., vocabulary]. Differentiated.
      teacher_logits: floats [..., vocabulary]. Stopped.
      labels: integers [...], already shifted; -100 where a token does not count.
      lam: scalar in [0, 1], may be traced.

    Returns:
      Scalar.

    Raises:
      ValueError: shapes that differ, lam outside [0, 1]. TypeError: labels that are not integers,
        logits that are not floats.

    Source: Ko et al. 2024 (DistiLLM), arXiv:2402.03898.

    >>> import jax.numpy as jnp
    >>> student, teacher = jnp.array([[2.0, 1.0, 0.0]]), jnp.array([[0.0, 1.0, 2.0]])
    >>> print(f"{skewed_reverse_kl(student, teacher, jnp.array([5])):.4f}")
    0.8299
    """
    checks.fraction(lam=lam)

    def terms(log_p: Array, log_q: Array) -> Array:
        return jnp.exp(log_q) * (log_q - log_space.log_mixture(log_q, log_p, lam))

    return _token_mean(student_logits, teacher_logits, labels, terms)


def _token_mean(
    student_logits: TokenLogits,
    teacher_logits: TokenLogits,
    labels: TokenLabels,
    terms: Callable[[Array, Array], Array],
) -> Array:
    """Mean over the tokens that count of the sum over classes of terms(log p, log q)."""
    student, teacher = checks.logits(student_logits=student_logits, teacher_logits=teacher_logits)
    counts = checks.labels(labels, student.shape[:-1]) != -100
    student, teacher = (jnp.where(counts[..., None], x, 0.0) for x in (student, teacher))
    log_p = log_space.safe_log_softmax(jax.lax.stop_gradient(teacher))
    log_q = log_space.safe_log_softmax(student)
    infinite = jnp.isinf(student) | jnp.isinf(teacher)
    log_p, log_q = (jnp.where(infinite, 0.0, x) for x in (log_p, log_q))
    values = jnp.sum(jnp.where(infinite, 0.0, terms(log_p, log_q)), axis=-1)
    return jnp.sum(jnp.where(counts, values, 0.0)) / jnp.maximum(jnp.sum(counts), 1)
