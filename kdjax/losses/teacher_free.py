"""Distillation without a larger teacher: from a hand-made one, from oneself, or from one's twin.

Tf-KD's virtual teacher and USKD make their targets from the labels and from the student; the two
controls of born-again networks take apart what a teacher of the student's size teaches. Unreduced:
[..., classes] -> [...], in float32 (float64 for float64). A row whose label is outside
[0, classes) has loss 0 and gradient 0; see `valid_labels` for its weight.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key, UInt32
from numpy import ndarray

from kdjax.losses import checks, log_space
from kdjax.losses.checks import Labels, Logits, Losses, Scalar, valid_labels
from kdjax.losses.logits import cross_entropy


def virtual_teacher(
    labels: Labels, num_classes: int, *, correct: Scalar = 0.99
) -> Float[Array, "*batch classes"]:
    """The hand-made teacher of Tf-KD: sure of the label, indifferent between the others.

        u_y = correct,   u_c = (1 - correct) / (C - 1)   elsewhere

    Probabilities, not logits. With correct = 1 / C it is the uniform teacher, distillation from
    which is label smoothing.

    Args:
      labels: integers [...]. Outside [0, num_classes): the row is uniform.
      num_classes: the number of classes C, at least 2.
      correct: scalar in [0, 1], may be traced; the probability of the label.

    Returns:
      Floats [..., num_classes], a distribution in every row.

    Raises:
      ValueError: fewer than two classes, correct outside [0, 1]. TypeError: labels that are not
        integers.

    Source: Yuan et al. 2020 (Tf-KD), arXiv:1909.11723.

    >>> import jax.numpy as jnp
    >>> print(virtual_teacher(jnp.array([1]), 3, correct=0.9).round(2))
    [[0.05 0.9  0.05]]
    """
    checks.count(2, num_classes=num_classes)
    checks.fraction(correct=correct)
    labels = checks.integers("labels", labels, None, "the batch")
    return jnp.exp(_log_virtual_teacher(labels, num_classes, correct, jnp.result_type(float)))


def virtual_teacher_kd(
    student_logits: Logits,
    labels: Labels,
    *,
    temperature: Scalar = 20.0,
    correct: Scalar = 0.99,
    official: bool = False,
) -> Losses:
    """Tf-KD's regularisation: distillation from the virtual teacher of `virtual_teacher`.

        L = KL(u_T || softmax(s / T)),   u_T = softmax(log u / T)

    No T^2. The paper's objective is (1 - alpha) cross_entropy + alpha L.

    `official` is what the authors' code computes: KL(softmax(u / T) || softmax(s)), which softens
    the teacher's probabilities as if they were logits (for T = 20 it is all but uniform), and does
    not soften the student. The code also averages over the classes, and mends that with a
    multiplier of 1 to 100: its term is alpha * multiplier / C times the mean of this.

    The other form of Tf-KD, from a pre-trained twin, is `kd`, in the code divided by C.

    Args:
      student_logits: floats [..., classes]. Differentiated.
      labels: integers [...]. Outside [0, classes): loss 0, gradient 0.
      temperature: scalar > 0, may be traced. 20 or 40 in the code.
      correct: scalar in [0, 1], may be traced; the virtual teacher's probability of the label.
      official: the form of the authors' code.

    Returns:
      [...], >= 0.

    Raises:
      ValueError: labels of another shape, fewer than two classes, temperature <= 0, correct
        outside [0, 1]. TypeError: labels that are not integers, logits that are not floats.

    Source: Yuan et al. 2020 (Tf-KD), arXiv:1909.11723.

    >>> import jax.numpy as jnp
    >>> loss = virtual_teacher_kd(jnp.zeros(3), jnp.array(0), temperature=1.0, correct=0.9)
    >>> print(f"{loss:.4f}")  # log 3 minus the entropy of (0.9, 0.05, 0.05)
    0.7042
    """
    (student,) = checks.logits(student_logits=student_logits)
    labels = checks.labels(labels, student.shape[:-1])
    checks.positive(temperature=temperature)
    checks.fraction(correct=correct)
    num_classes = student.shape[-1]
    checks.count(2, **{"the number of classes": num_classes})
    valid = valid_labels(labels, num_classes)
    student = jnp.where(valid[..., None], student, 0.0)
    log_teacher = _log_virtual_teacher(labels, num_classes, correct, student.dtype)
    if official:
        log_p = jax.nn.log_softmax(jnp.exp(log_teacher) / temperature, axis=-1)
        log_q = log_space.safe_log_softmax(student)
    else:
        log_p = log_space.safe_log_softmax(log_teacher / temperature)
        log_q = log_space.safe_log_softmax(student / temperature)
    return jnp.where(valid, log_space.kl(log_p, log_q), 0.0)


def uskd(
    student_logits: Float[Array | ndarray, "batch classes"],
    weak_logits: Float[Array | ndarray, "batch classes"],
    labels: Labels,
    *,
    alpha: Scalar = 1.0,
    beta: Scalar = 0.1,
    mu: Scalar = 0.005,
    rank_with: str = "probabilities",
) -> Float[Array, " batch"]:
    """Universal self-distillation: soft labels from the student's own two heads.

        L = -alpha P_y log q_y - beta sum_{c != y} z_c log q^_c + mu CE_0.1(weak)
        P_y = q_y^2 + 1 - mean_batch q_y^2          (stopped)
        z_c ~ 1 / rank_c,   ranked by  w_c / (1 - w_y) + q_c / (1 - q_y)   (stopped)

    with q = softmax(student), w = softmax(weak), q^ the softmax over the classes but y, z summing
    to 1 there, ranks 1, 2, ... over all classes, y included, and CE_0.1 the cross-entropy with
    label smoothing 0.1. The weak head is a linear layer on pooled features of a middle stage; it
    learns by the last term alone. Classes at -inf (padding) have z_c = 0. The authors add plain
    `cross_entropy`.

    Each row's loss reads the others through the mean of q_y^2, over the rows with a valid label.
    `rank_with="official"` ranks by w_c / (1 - w_y) + log q_c / (1 - log q_y), as the authors'
    code does, where a variable was overwritten by its logarithm.

    Args:
      student_logits: floats [batch, classes]. Differentiated.
      weak_logits: floats [batch, classes], of the weak head. Differentiated.
      labels: integers [batch]. Outside [0, classes): loss 0, gradient 0.
      alpha: scalar >= 0, may be traced; weight of the target class.
      beta: scalar >= 0, may be traced; weight of the other classes.
      mu: scalar >= 0, may be traced; weight of the weak head's own learning.
      rank_with: "probabilities" or "official".

    Returns:
      [batch]. The mean over the rows with a valid label is the published loss.

    Raises:
      ValueError: shapes that differ, fewer than two classes, alpha, beta or mu < 0, unknown
        rank_with. TypeError: labels that are not integers, logits that are not floats.

    Source: Yang et al. 2023 (NKD and USKD), arXiv:2303.13005.

    >>> import jax.numpy as jnp
    >>> logits = jnp.log(jnp.array([[0.5, 0.3, 0.2]]))
    >>> loss = uskd(logits, logits, jnp.array([0]), beta=0.0, mu=0.0)
    >>> print(f"{loss[0]:.4f}")  # P_y = 1: the cross-entropy
    0.6931
    """
    axes = "batch classes>=2"
    student, weak = checks.shaped(
        {"student_logits": axes, "weak_logits": axes},
        student_logits=student_logits,
        weak_logits=weak_logits,
    )
    labels = checks.labels(labels, student.shape[:-1])
    checks.not_negative(alpha=alpha, beta=beta, mu=mu)
    checks.choice("rank_with", rank_with, ("probabilities", "official"))
    num_classes = student.shape[-1]
    valid = valid_labels(labels, num_classes)
    is_target = jnp.arange(num_classes) == jnp.where(valid, labels, 0)[:, None]
    student, weak = (jnp.where(valid[:, None], x, 0.0) for x in (student, weak))

    log_q = log_space.safe_log_softmax(student)
    log_target = jnp.sum(jnp.where(is_target, log_q, 0.0), axis=-1)
    square = jnp.where(valid, jnp.exp(2 * log_target), 0.0)
    mean_square = jnp.sum(square) / jnp.maximum(jnp.sum(valid), 1)
    weight = jax.lax.stop_gradient(square + 1 - mean_square)

    score = jax.lax.stop_gradient(_relative_to_others(weak, is_target))
    if rank_with == "official":
        score += jax.lax.stop_gradient(log_q / (1 - log_target[:, None] + 1e-6))
    else:
        score += jax.lax.stop_gradient(_relative_to_others(student, is_target))
    rank = jnp.argsort(jnp.argsort(score, axis=-1, descending=True), axis=-1) + 1
    excluded = is_target | (student == -jnp.inf)
    zipf = jnp.where(excluded, 0.0, 1.0 / rank.astype(student.dtype))
    total = jnp.sum(zipf, axis=-1, keepdims=True)
    zipf /= jnp.where(total == 0, 1.0, total)
    log_others = log_space.safe_log_softmax(jnp.where(is_target, -jnp.inf, student))
    others = -jnp.sum(zipf * jnp.where(excluded, 0.0, log_others), axis=-1)

    loss = -alpha * weight * log_target + beta * others
    loss += mu * cross_entropy(weak, labels, label_smoothing=0.1)
    return jnp.where(valid, loss, 0.0)


def cwtm_weights(
    teacher_logits: Float[Array | ndarray, "batch classes"],
    *,
    where: Bool[Array | ndarray, " batch"] | None = None,
) -> Float[Array, " batch"]:
    """Weights by the teacher's confidence (CWTM): what remains of a teacher without dark knowledge.

        w_b = B max_c p_bc / sum_b' max_c p_b'c,   p = softmax(teacher)

    The control of born-again networks in which the teacher only says how much an example counts:
    the loss is w_b times the `cross_entropy` of the label. The paper's weights sum to 1 and its
    loss is the sum; these have mean 1, so that the loss is the mean.

    Args:
      teacher_logits: floats [batch, classes]. Stopped.
      where: booleans [batch]; False rows have weight 0 and are not counted.

    Returns:
      [batch], >= 0, with mean 1 over the rows that count.

    Raises:
      ValueError: not two axes, where of another shape. TypeError: logits that are not floats,
        where that is not boolean.

    Source: Furlanello et al. 2018 (born-again networks), arXiv:1805.04770.

    >>> import jax.numpy as jnp
    >>> first, second = cwtm_weights(jnp.log(jnp.array([[0.9, 0.1], [0.4, 0.6]])))
    >>> print(f"{first:.2f} {second:.2f}")
    1.20 0.80
    """
    (teacher,) = checks.shaped({"teacher_logits": "batch classes"}, teacher_logits=teacher_logits)
    if where is None:
        where = jnp.ones(teacher.shape[:1], bool)
    where = checks.mask(where, teacher.shape[:1])
    teacher = jax.lax.stop_gradient(jnp.where(where[:, None], teacher, 0.0))
    confidence = jnp.where(where, jnp.max(jax.nn.softmax(teacher, axis=-1), axis=-1), 0.0)
    total = jnp.sum(confidence)
    return confidence * jnp.sum(where) / jnp.where(total == 0, 1.0, total)


def permute_dark_knowledge(
    key: Key[Array, ""] | UInt32[Array | ndarray, "2"], teacher_logits: Logits
) -> Float[Array, "*batch classes"]:
    """Teacher logits with all but the largest permuted at random (DKPP).

        t'_argmax = t_argmax,   (t'_c)_{c != argmax} a permutation of (t_c)_{c != argmax}

    The control of born-again networks that keeps the teacher's confidence, and the shape of its
    doubt, but not which classes it takes for similar. Each row has a permutation of its own; a tie
    for the largest goes to the first class. Probabilities at any temperature are permuted alike.

    Args:
      key: a key of `jax.random`, typed or raw.
      teacher_logits: floats [..., classes]. Stopped.

    Returns:
      Floats [..., classes]: in each row the same values.

    Raises:
      ValueError: logits without an axis of classes. TypeError: logits that are not floats.

    Source: Furlanello et al. 2018 (born-again networks), arXiv:1805.04770.

    >>> import jax, jax.numpy as jnp
    >>> permuted = permute_dark_knowledge(jax.random.key(0), jnp.array([1.0, 9.0, 2.0, 3.0]))
    >>> permuted[1].item(), sorted(permuted.tolist())
    (9.0, [1.0, 2.0, 3.0, 9.0])
    """
    (teacher,) = checks.logits(teacher_logits=teacher_logits)
    teacher = jax.lax.stop_gradient(teacher)
    classes = jnp.arange(teacher.shape[-1])
    is_largest = classes == jnp.argmax(teacher, axis=-1, keepdims=True)
    # The largest sorts first on both sides: position i of one order goes to position i of the
    # other, and all the others are in random order on one side.
    chance = jnp.where(is_largest, -1.0, jax.random.uniform(key, teacher.shape))
    source = jnp.argsort(chance, axis=-1)
    target = jnp.argsort(jnp.where(is_largest, -1, classes), axis=-1)
    values = jnp.take_along_axis(teacher, source, axis=-1)
    return jnp.take_along_axis(values, jnp.argsort(target, axis=-1), axis=-1)


def _log_virtual_teacher(
    labels: Array, num_classes: int, correct: Scalar, dtype: jnp.dtype
) -> Array:
    correct = jnp.asarray(correct, dtype)
    is_target = jnp.arange(num_classes) == labels[..., None]
    elsewhere = jnp.log1p(-correct) - jnp.log(jnp.asarray(num_classes - 1, dtype))
    log_teacher = jnp.where(is_target, jnp.log(correct), elsewhere)
    valid = valid_labels(labels, num_classes)[..., None]
    return jnp.where(valid, log_teacher, -jnp.log(jnp.asarray(num_classes, dtype)))


def _relative_to_others(logits: Array, is_target: Array) -> Array:
    """softmax_c / (1 - softmax_y), exact for any confidence; inf at y where it overflows."""
    others = log_space.logsumexp(jnp.where(is_target, -jnp.inf, logits))
    return jnp.exp(logits - others[..., None])
