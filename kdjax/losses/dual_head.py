"""Two heads on one feature: labels teach the first, a teacher's logits the second.

At inference the heads' probabilities are mixed, with a weight and a temperature that are chosen on
validation data; nothing is trained for that. Values in float32 (float64 for float64).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from kdjax.losses import checks, log_space
from kdjax.losses.checks import Labels, Logits, Losses, Scalar
from kdjax.losses.logits import cross_entropy, kd

ALPHAS = tuple(np.arange(0, 1.05, 0.05).clip(0, 1).tolist())
BETAS = (0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 4.0)


Labeled = Float[Array | np.ndarray, "*labeled classes"]
Unlabeled = Float[Array | np.ndarray, "*unlabeled classes"]


class DualHeadLosses(NamedTuple):
    """One loss a row: cross-entropy and distillation of labelled rows, distillation of others."""

    cross_entropy: Float[Array, "*labeled"]
    kd_labeled: Float[Array, "*labeled"]
    kd_unlabeled: Float[Array, "*unlabeled"]


class Interpolation(NamedTuple):
    """How two heads are mixed, and the accuracy of the mixture, in [0, 1]."""

    alpha: Float[Array, ""]
    beta: Float[Array, ""]
    accuracy: Float[Array, ""]


def dho(
    ce_logits_labeled: Labeled,
    kd_logits_labeled: Labeled,
    kd_logits_unlabeled: Unlabeled,
    teacher_logits_labeled: Labeled,
    teacher_logits_unlabeled: Unlabeled,
    labels: Int[Array | np.ndarray, "*labeled"],
    *,
    temperature: Scalar = 2.0,
) -> DualHeadLosses:
    """The three losses of dual-head optimization, each over its own batch.

        L = lam mean CE(ce, label) + (1 - lam) [ mean KD(kd_l, t_l) + mean KD(kd_u, t_u) ]
        KD(s, t) = T^2 KL( softmax(t / T) || softmax(s / T) )

    The published loss, with lam = 1/2: labelled and unlabelled rows weigh the same whatever their
    numbers. An empty batch has no rows, and no mean: its term is 0 (`training.mean`). The paper's
    algorithm 1 has no T^2 and the arguments of the KL exchanged; its equation 6 and the code are
    as here. The code for ImageNet with few labels adds the terms without weights: twice this.

    Args:
      ce_logits_labeled: floats [labeled, classes], of the head that learns labels. Differentiated.
      kd_logits_labeled: floats [labeled, classes], of the other head. Differentiated.
      kd_logits_unlabeled: floats [unlabeled, classes]. Differentiated.
      teacher_logits_labeled: floats [labeled, classes]. Stopped.
      teacher_logits_unlabeled: floats [unlabeled, classes]. Stopped.
      labels: integers [labeled]. Outside [0, classes): loss 0, gradient 0.
      temperature: scalar > 0, may be traced.

    Returns:
      `DualHeadLosses`: [labeled], [labeled], [unlabeled], >= 0.

    Raises:
      ValueError: shapes that differ, temperature <= 0. TypeError: logits that are not floats,
        labels that are not integers.

    Source: Kang et al. 2025 (DHO), arXiv:2505.07675, equation 6.

    >>> import jax.numpy as jnp
    >>> zeros, teacher = jnp.zeros((1, 2)), jnp.array([[2.0, 0.0]])
    >>> parts = dho(zeros, zeros, zeros, teacher, teacher, jnp.array([0]))
    >>> print(" ".join(f"{x[0]:.5f}" for x in parts))
    0.69315 0.44378 0.44378
    """
    labeled = checks.logits(
        ce_logits_labeled=ce_logits_labeled,
        kd_logits_labeled=kd_logits_labeled,
        teacher_logits_labeled=teacher_logits_labeled,
    )
    unlabeled = checks.logits(
        kd_logits_unlabeled=kd_logits_unlabeled,
        teacher_logits_unlabeled=teacher_logits_unlabeled,
    )
    if labeled[0].shape[-1] != unlabeled[0].shape[-1]:
        raise ValueError(
            "ce_logits_labeled and kd_logits_unlabeled must have the same classes, got shapes "
            f"{labeled[0].shape} and {unlabeled[0].shape}"
        )
    ce, kd_labeled, teacher_labeled = labeled
    return DualHeadLosses(
        cross_entropy(ce, labels),
        kd(kd_labeled, teacher_labeled, temperature=temperature),
        kd(*unlabeled, temperature=temperature),
    )


def dual_head_log_probs(
    ce_logits: Logits, kd_logits: Logits, *, alpha: Scalar | Losses = 0.5, beta: Scalar = 1.0
) -> Float[Array, "*batch classes"]:
    """log of `dual_head_probs`, without its underflow: logits that any metric reads.

    Args:
      ce_logits: floats [..., classes], of the head that learnt labels. Differentiated.
      kd_logits: floats [..., classes], of the head that learnt the teacher. Differentiated.
      alpha: as for `dual_head_probs`.
      beta: scalar > 0, may be traced.

    Returns:
      [..., classes]; -inf where both heads have -inf.

    Raises:
      ValueError: shapes that differ, alpha outside [0, 1], beta <= 0. TypeError: logits that are
        not floats.

    Source: Kang et al. 2025 (DHO), arXiv:2505.07675.

    >>> import jax.numpy as jnp
    >>> log_probs = dual_head_log_probs(jnp.array([-1e4, 0.0]), jnp.array([-2e4, 0.0]))
    >>> print(f"{log_probs[0]:.2f}")  # 10,000 + log 2
    -10000.69
    """
    ce, kd_logits = checks.logits(ce_logits=ce_logits, kd_logits=kd_logits)
    if jnp.ndim(alpha) == 0:
        checks.fraction(alpha=alpha)
    elif jnp.shape(alpha) != ce.shape[:-1]:
        raise ValueError(
            f"alpha must be a scalar, or shaped {ce.shape[:-1]} as the rows of the logits, got "
            f"shape {jnp.shape(alpha)}"
        )
    checks.positive(beta=beta)
    weight = jnp.asarray(alpha, ce.dtype)
    return log_space.log_mixture(
        log_space.safe_log_softmax(ce),
        log_space.safe_log_softmax(kd_logits / beta),
        jnp.broadcast_to(weight[..., None], ce.shape),
    )


def dual_head_probs(
    ce_logits: Logits, kd_logits: Logits, *, alpha: Scalar | Losses = 0.5, beta: Scalar = 1.0
) -> Float[Array, "*batch classes"]:
    """The mixture of two heads at inference, of their probabilities.

        p = alpha softmax(ce) + (1 - alpha) softmax(kd / beta)

    With alpha = lam it behaves as one head trained with that lam would (theorem 1 of the source).
    ActiveKD's code calls the other head's weight alpha, 1/2 by default.

    Args:
      ce_logits: floats [..., classes], of the head that learnt labels. Differentiated.
      kd_logits: floats [..., classes], of the head that learnt the teacher. Differentiated.
      alpha: in [0, 1], a scalar that may be traced, or floats [...] (`entropy_adaptive_alpha`),
        whose range is not checked.
      beta: scalar > 0, may be traced; towards 0 the second head gives its largest class alone.

    Returns:
      [..., classes], rows that sum to 1.

    Raises:
      ValueError: shapes that differ, alpha outside [0, 1], beta <= 0. TypeError: logits that are
        not floats.

    Source: Kang et al. 2025 (DHO), arXiv:2505.07675.

    >>> import jax.numpy as jnp
    >>> ce, kd = jnp.array([2.0, 0.0, 0.0]), jnp.array([0.0, 1.0, 0.0])
    >>> print(dual_head_probs(ce, kd, alpha=0.4, beta=0.5).round(4))
    [0.3787 0.5148 0.1065]
    """
    return jnp.exp(dual_head_log_probs(ce_logits, kd_logits, alpha=alpha, beta=beta))


def entropy_adaptive_alpha(ce_logits: Logits, kd_logits: Logits) -> Losses:
    """A weight of the first head for each row: the head that is surer counts more.

        alpha = exp(-H(p_ce)) / ( exp(-H(p_ce)) + exp(-H(p_kd)) ) = sigmoid( H(p_kd) - H(p_ce) )

    Args:
      ce_logits: floats [..., classes]. Differentiated.
      kd_logits: floats [..., classes]. Differentiated.

    Returns:
      [...], in (0, 1).

    Raises:
      ValueError: shapes that differ. TypeError: logits that are not floats.

    Source: Kang et al. 2025 (DHO), arXiv:2505.07675, appendix E.4.

    >>> import jax.numpy as jnp
    >>> sure, unsure = jnp.array([50.0, 0.0]), jnp.zeros(2)
    >>> print(f"{entropy_adaptive_alpha(sure, unsure):.4f}")  # 1 / (1 + 1/2)
    0.6667
    """
    ce, kd_logits = checks.logits(ce_logits=ce_logits, kd_logits=kd_logits)
    log_probs = (log_space.safe_log_softmax(x) for x in (ce, kd_logits))
    ce_entropy, kd_entropy = (log_space.cross_entropy(x, x) for x in log_probs)
    return jax.nn.sigmoid(kd_entropy - ce_entropy)


def dual_head_correct(
    ce_logits: Logits,
    kd_logits: Logits,
    labels: Labels,
    *,
    alphas: tuple[float, ...] = ALPHAS,
    betas: tuple[float, ...] = BETAS,
) -> Float[Array, "betas alphas *batch"]:
    """Which rows a mixture of the heads gets right, for every weight and temperature of a grid.

    What `search_alpha_beta` takes the mean of, for validation sets that come in batches.

    Args:
      ce_logits, kd_logits: floats [..., classes]. Not differentiable.
      labels: integers [...].
      alphas: weights of the first head, in [0, 1].
      betas: temperatures of the second head, > 0.

    Returns:
      [betas, alphas, ...], 1 or 0; of equal classes the first counts as the answer.

    Raises:
      ValueError: shapes that differ, an empty grid, a number out of range. TypeError: logits that
        are not floats, labels that are not integers.

    Source: Kang et al. 2025 (DHO), arXiv:2505.07675.

    >>> import jax.numpy as jnp
    >>> ce, kd = jnp.array([[2.0, 0.0]]), jnp.array([[0.0, 2.0]])
    >>> dual_head_correct(ce, kd, jnp.array([1]), alphas=(0.0, 1.0), betas=(1.0,)).tolist()
    [[[1.0], [0.0]]]
    """
    ce, kd_logits = checks.logits(ce_logits=ce_logits, kd_logits=kd_logits)
    labels = checks.labels(labels, ce.shape[:-1])
    for name, grid in (("alphas", alphas), ("betas", betas)):
        if not len(grid):
            raise ValueError(f"{name} must hold at least one number, got none")
        for value in grid:
            checks.fraction(**{name: value}) if name == "alphas" else checks.positive(betas=value)

    def correct(alpha: Array, beta: Array) -> Array:
        log_probs = dual_head_log_probs(ce, kd_logits, alpha=alpha, beta=beta)
        return (jnp.argmax(log_probs, -1) == labels).astype(ce.dtype)

    along = jax.vmap(jax.vmap(correct, (0, None)), (None, 0))
    return along(jnp.asarray(alphas, ce.dtype), jnp.asarray(betas, ce.dtype))


def best_interpolation(
    accuracy: Float[Array | np.ndarray, "betas alphas"],
    *,
    alphas: tuple[float, ...] = ALPHAS,
    betas: tuple[float, ...] = BETAS,
) -> Interpolation:
    """The first largest accuracy of a grid, betas before alphas.

    Args:
      accuracy: floats [betas, alphas], as the mean of `dual_head_correct`. Not differentiable.
      alphas, betas: of the grid.

    Returns:
      `Interpolation`.

    Raises:
      ValueError: a grid of another shape. TypeError: an accuracy that is no float.

    Source: the code of Kang et al. 2025 (DHO), arXiv:2505.07675.

    >>> import jax.numpy as jnp
    >>> accuracy = jnp.array([[0.5, 0.9], [0.9, 0.1]])
    >>> best = best_interpolation(accuracy, alphas=(0.0, 1.0), betas=(1.0, 2.0))
    >>> float(best.alpha), float(best.beta)
    (1.0, 1.0)
    """
    (accuracy,) = checks.shaped({"accuracy": "betas alphas"}, accuracy=accuracy)
    accuracy = jax.lax.stop_gradient(accuracy)
    if accuracy.shape != (len(betas), len(alphas)):
        raise ValueError(
            f"accuracy must be shaped [betas, alphas] = ({len(betas)}, {len(alphas)}), got "
            f"{accuracy.shape}"
        )
    first = jnp.argmax(accuracy)  # the first of equals, in row-major order
    return Interpolation(
        jnp.asarray(alphas, accuracy.dtype)[first % len(alphas)],
        jnp.asarray(betas, accuracy.dtype)[first // len(alphas)],
        jnp.max(accuracy),
    )


def search_alpha_beta(
    ce_logits: Logits,
    kd_logits: Logits,
    labels: Labels,
    *,
    alphas: tuple[float, ...] = ALPHAS,
    betas: tuple[float, ...] = BETAS,
) -> Interpolation:
    """The weight and the temperature with which two heads are most accurate.

        argmax_{beta, alpha} mean [ argmax_c p_c = label ],   p of `dual_head_probs`

    The first of equals, betas in the outer and alphas in the inner loop. With 0 and 1 among the
    alphas and 1 among the betas the mixture is no worse here than either head.

    Args:
      ce_logits, kd_logits: floats [examples, classes], of a validation set. Not differentiable.
      labels: integers [examples].
      alphas: weights of the first head, in [0, 1]; default 0, 0.05, ..., 1.
      betas: temperatures of the second head, > 0.

    Returns:
      `Interpolation`.

    Raises:
      ValueError: no examples (give alpha and beta by hand), shapes that differ, an empty grid, a
        number out of range. TypeError: logits that are not floats, labels that are not integers.

    Source: Kang et al. 2025 (DHO), arXiv:2505.07675.

    >>> import jax.numpy as jnp
    >>> ce, kd = jnp.array([[3.0, 0.0], [1.0, 0.0]]), jnp.array([[0.0, 0.1], [0.0, 5.0]])
    >>> best = search_alpha_beta(ce, kd, jnp.array([0, 1]))
    >>> print(f"{best.alpha:.2f} {best.beta:.2f} {best.accuracy:.2f}")
    0.10 0.50 1.00
    """
    if jnp.ndim(ce_logits) != 2 or not len(ce_logits):
        raise ValueError(
            "ce_logits must be shaped [examples, classes] with at least one example, else alpha "
            f"and beta must be given; got shape {jnp.shape(ce_logits)}"
        )
    grid = {"alphas": alphas, "betas": betas}
    correct = dual_head_correct(ce_logits, kd_logits, labels, **grid)
    return best_interpolation(correct.mean(-1), **grid)
