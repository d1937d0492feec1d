"""List-wise losses: the student's likelihood of the teacher's ranking of the classes.

Logits are read as Plackett-Luce worths: a ranking is drawn by choosing one class after another,
each time by the softmax over those that are left.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from numpy import ndarray

from kdjax.losses import checks
from kdjax.losses.checks import Labels, Logits, Losses, Scalar, valid_labels


def teacher_optimal_ranking(teacher_logits: Logits, labels: Labels) -> Int[Array, "*batch classes"]:
    """The target ranking: the true class first, then the others by descending teacher logit.

    Ties are in ascending order of the class. (The code printed in the paper puts tied classes in
    descending order.) A label outside [0, classes) leaves the teacher's own ranking.

    Args:
      teacher_logits: floats [..., classes]. Not differentiable.
      labels: integers [...].

    Returns:
      int32 [..., classes]: the classes, best first.

    Raises:
      ValueError: labels of another shape. TypeError: labels that are not integers, logits that
        are not floats.

    Source: Bassam et al. 2025 (PLD), arXiv:2506.12542.

    >>> import jax.numpy as jnp
    >>> teacher_optimal_ranking(jnp.array([1.0, 3.0, 0.0, 3.0]), jnp.array(2)).tolist()
    [2, 1, 3, 0]
    """
    (teacher_logits,) = checks.logits(teacher_logits=teacher_logits)
    labels = checks.labels(labels, teacher_logits.shape[:-1])
    is_target = jnp.arange(teacher_logits.shape[-1]) == labels[..., None]
    scores = jnp.where(is_target, jnp.inf, jax.lax.stop_gradient(teacher_logits))
    return jnp.argsort(scores, axis=-1, stable=True, descending=True).astype(jnp.int32)


def plackett_luce_nll(
    student_logits: Logits,
    ranking: Int[Array | ndarray, "*batch classes"],
    weights: Float[Array | ndarray, "..."],
) -> Losses:
    """Weighted negative log-likelihood of a ranking under the Plackett-Luce model.

        L = sum_k w_k ( logsumexp_{l >= k} s_{r_l} - s_{r_k} )

    Convex in the student's logits and unchanged by adding a constant to them. Weights (1, 0, ...)
    give `cross_entropy` of the first class, `listmle_weights` ListMLE, `p_listmle_weights`
    p-ListMLE, the teacher's probabilities `plackett_luce`. A step of weight 0 adds nothing, even
    where its class is at -inf.

    Args:
      student_logits: floats [..., classes]. Differentiated.
      ranking: integers [..., classes], a permutation of the classes in each row, best first.
      weights: floats [..., classes] or [classes], >= 0, of the steps (not the classes).
        Differentiated.

    Returns:
      [...], >= 0.

    Raises:
      ValueError: shapes that differ. TypeError: a ranking that is not of integers, logits or
        weights that are not floats.

    Source: Plackett 1975; Xia et al. 2008 (ListMLE); Lan et al. 2014 (p-ListMLE).

    >>> import jax.numpy as jnp
    >>> ranking, weights = jnp.array([0, 1, 2]), jnp.array([1.0, 1.0, 1.0])
    >>> print(f"{plackett_luce_nll(jnp.array([2.0, 1.0, 0.0]), ranking, weights):.4f}")
    0.7209
    """
    (student_logits,) = checks.logits(student_logits=student_logits)
    (weights,) = checks.logits(weights=weights)
    ranking = jnp.asarray(ranking)
    if not jnp.issubdtype(ranking.dtype, jnp.integer):
        raise TypeError(f"ranking must be of integers, got dtype {ranking.dtype}")
    if ranking.shape != student_logits.shape:
        raise ValueError(
            f"student_logits and ranking must have one shape [..., classes], "
            f"got {student_logits.shape} and {ranking.shape}"
        )
    if weights.shape not in (ranking.shape, ranking.shape[-1:]):
        raise ValueError(
            f"weights must be shaped {ranking.shape} as the ranking or {ranking.shape[-1:]}, "
            f"got {weights.shape}"
        )
    ordered = jnp.take_along_axis(student_logits, ranking, axis=-1)
    # logsumexp of nothing but -inf has a NaN gradient; so far below any logit, -inf and this
    # number are the same.
    absent = ordered == -jnp.inf
    ordered = jnp.where(absent, 0.25 * jnp.finfo(ordered.dtype).min, ordered)
    remaining = jax.lax.cumlogsumexp(ordered, axis=ordered.ndim - 1, reverse=True)
    costs = jnp.where(absent, jnp.inf, remaining - ordered)
    return jnp.sum(weights * jnp.where(weights == 0, 0.0, costs), axis=-1)


def plackett_luce(
    student_logits: Logits,
    teacher_logits: Logits,
    labels: Labels,
    *,
    temperature: Scalar = 1.0,
) -> Losses:
    """Plackett-Luce distillation: the likelihood of the teacher's ranking, label first.

        L = sum_k w_k ( logsumexp_{l >= k} s_{r_l} - s_{r_k} ),   w_k = softmax(t / T)_{r_k}

    with r the `teacher_optimal_ranking`. The first step is cross-entropy, weighted by the
    teacher's confidence in the label: the loss replaces "cross-entropy + lambda KD". Only the
    weights are softened: no student temperature, no T^2. A class at -inf in the teacher ends
    last, with weight 0: it still counts among the alternatives of the other steps.

    Args:
      student_logits: floats [..., classes]. Differentiated.
      teacher_logits: floats [..., classes]. Stopped: ranking and weights are constants.
      labels: integers [...]. Outside [0, classes): loss 0, gradient 0.
      temperature: scalar > 0, may be traced; of the teacher's weights. The paper: 1 (ImageNet),
        4 (CIFAR).

    Returns:
      [...], >= 0.

    Raises:
      ValueError: shapes that differ, temperature <= 0. TypeError: labels that are not integers,
        logits that are not floats.

    Source: Bassam et al. 2025 (PLD), arXiv:2506.12542.

    >>> import jax.numpy as jnp
    >>> student, teacher = jnp.array([[2.0, 1.0, 0.0]]), jnp.array([[1.0, 3.0, 0.0]])
    >>> print(f"{plackett_luce(student, teacher, jnp.array([0]))[0]:.4f}")
    0.3109
    """
    student, teacher = checks.logits(student_logits=student_logits, teacher_logits=teacher_logits)
    labels = checks.labels(labels, student.shape[:-1])
    checks.positive(temperature=temperature)
    valid = valid_labels(labels, student.shape[-1])
    student, teacher = (jnp.where(valid[..., None], x, 0.0) for x in (student, teacher))
    ranking = teacher_optimal_ranking(teacher, labels)
    teacher_probs = jax.nn.softmax(jax.lax.stop_gradient(teacher) / temperature, axis=-1)
    weights = jnp.take_along_axis(teacher_probs, ranking, axis=-1)
    return jnp.where(valid, plackett_luce_nll(student, ranking, weights), 0.0)


def listmle_weights(num_classes: int) -> Float[Array, " classes"]:
    """Equal weights 1 / C of the steps: `plackett_luce_nll` is then ListMLE, averaged.

    Args:
      num_classes: C >= 1.

    Returns:
      Floats [C] that sum to 1.

    Raises:
      ValueError: num_classes < 1.

    Source: Xia et al. 2008.

    >>> listmle_weights(4).tolist()
    [0.25, 0.25, 0.25, 0.25]
    """
    _check_num_classes(num_classes)
    return jnp.full(num_classes, 1 / num_classes)


def p_listmle_weights(num_classes: int) -> Float[Array, " classes"]:
    """Position-aware weights of the steps, falling by half: p-ListMLE.

        w_k = (2^(C - k) - 1) / sum_j (2^(C - j) - 1),   k = 1 .. C

    Args:
      num_classes: C >= 1.

    Returns:
      Floats [C] that sum to 1; for C = 1 the single step costs nothing and its weight is 0.

    Raises:
      ValueError: num_classes < 1.

    Source: Lan et al. 2014.

    >>> import jax.numpy as jnp
    >>> print(jnp.round(p_listmle_weights(3) * 4).tolist())
    [3.0, 1.0, 0.0]
    """
    _check_num_classes(num_classes)
    if num_classes == 1:
        return jnp.zeros(1)
    # Both sides divided by 2^C, which overflows from C = 128 on.
    weights = np.exp2(-np.arange(1.0, num_classes + 1)) - np.exp2(-float(num_classes))
    return jnp.asarray(weights / weights.sum())


def _check_num_classes(num_classes: int) -> None:
    if not isinstance(num_classes, int) or isinstance(num_classes, bool):
        raise TypeError(f"num_classes must be an integer, got {num_classes!r}")
    if num_classes < 1:
        raise ValueError(f"num_classes must be >= 1, got {num_classes}")
