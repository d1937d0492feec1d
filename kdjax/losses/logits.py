"""Losses on a student's class logits, against labels and a teacher's logits.

Unreduced: [..., classes] -> [...], one loss a row (DIST, which compares rows, is a scalar). Values
in float32, or float64 for float64. No gradient reaches an argument named `teacher_*`. A row whose
label is outside [0, classes) has loss 0 and gradient 0; see `valid_labels` for its weight.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float
from numpy import ndarray

from kdjax.losses import checks, log_space
from kdjax.losses.checks import Labels, Logits, Losses, Scalar, valid_labels


def cross_entropy(
    logits: Logits,
    labels: Labels,
    *,
    label_smoothing: Scalar = 0.0,
    smoothed_classes: str = "all",
) -> Losses:
    """Cross-entropy of labels, optionally smoothed.

        L = -sum_c u_c log softmax(logits)_c
        "all":    u = (1 - e) onehot + e / C            e = label_smoothing
        "others": u_y = 1 - e,  u_c = e / (C - 1) elsewhere

    "all" is the convention of PyTorch and optax, "others" that of Tf-KD; "others" with e is "all"
    with e C / (C - 1). Classes at -inf (vocabulary padding) take no part in the smoothing.

    Args:
      logits: floats [..., classes]. Differentiated.
      labels: integers [...]. Outside [0, classes): loss 0, gradient 0.
      label_smoothing: scalar in [0, 1], may be traced.
      smoothed_classes: "all" or "others".

    Returns:
      [...], >= 0.

    Raises:
      ValueError: labels of another shape, label_smoothing outside [0, 1], unknown
        smoothed_classes. TypeError: labels that are not integers, logits that are not floats.

    Source: Szegedy et al. 2016, arXiv:1512.00567; Yuan et al. 2020 (Tf-KD), arXiv:1909.11723.

    >>> import jax.numpy as jnp
    >>> print(f"{cross_entropy(jnp.array([2.0, 1.0, 0.0]), jnp.array(0)):.4f}")
    0.4076
    """
    (logits,) = checks.logits(logits=logits)
    labels = checks.labels(labels, logits.shape[:-1])
    checks.fraction(label_smoothing=label_smoothing)
    checks.choice("smoothed_classes", smoothed_classes, ("all", "others"))
    valid, is_target, logits = _labelled(labels, logits)
    log_probs = log_space.safe_log_softmax(logits)
    loss = -_at_target(log_probs, is_target)
    if not (isinstance(label_smoothing, int | float) and label_smoothing == 0):
        smoothed = logits != -jnp.inf
        if smoothed_classes == "others":
            smoothed &= ~is_target
        count = jnp.maximum(jnp.sum(smoothed, axis=-1), 1)
        elsewhere = -jnp.sum(jnp.where(smoothed, log_probs, 0.0), axis=-1) / count
        loss = (1 - label_smoothing) * loss + label_smoothing * elsewhere
    return jnp.where(valid, loss, 0.0)


def kd(student_logits: Logits, teacher_logits: Logits, *, temperature: Scalar = 4.0) -> Losses:
    """Knowledge distillation: KL from the softened teacher to the softened student.

        L = T^2 KL(softmax(t / T) || softmax(s / T)),   dL/ds = T (q - p)

    T^2 keeps the size of the gradient independent of the temperature. For T -> inf, L goes to
    sum_c ((s_c - mean s) - (t_c - mean t))^2 / (2 C).

    This is the form of mdistiller, RepDistiller, DIST ("batchmean" after the caller's mean),
    big_vision, Tunix and MaxText. Others, in terms of it: TRL, Liger, KDFlow and torchdistill
    without a label weight apply no T^2 (divide by T^2, or `forward_kl` of logits / T); Tf-KD, and
    ModelOpt's default, average over the classes too (divide by C); cls_KD and torchtune drop the
    teacher's entropy (add it: no gradient changes).

    Args:
      student_logits: floats [..., classes]. Differentiated.
      teacher_logits: floats [..., classes]. Stopped.
      temperature: scalar > 0, may be traced (and differentiated).

    Returns:
      [...], >= 0.

    Raises:
      ValueError: shapes that differ, temperature <= 0. TypeError: arrays that are not floats.

    Source: Hinton et al. 2015, arXiv:1503.02531.

    >>> import jax.numpy as jnp
    >>> loss = kd(jnp.array([[2.0, 1.0, 0.0]]), jnp.array([[0.0, 1.0, 2.0]]), temperature=4.0)
    >>> print(f"{loss[0]:.4f}")
    1.3196
    """
    student, teacher = _pair(student_logits, teacher_logits)
    checks.positive(temperature=temperature)
    return temperature**2 * log_space.softmax_kl(teacher / temperature, student / temperature)


def dkd(
    student_logits: Logits,
    teacher_logits: Logits,
    labels: Labels,
    *,
    alpha: Scalar = 1.0,
    beta: Scalar = 8.0,
    temperature: Scalar = 4.0,
) -> Losses:
    """Decoupled distillation: the target class against the rest, and the rest among themselves.

        L = T^2 ( alpha KL(b_p || b_q) + beta KL(p^ || q^) ),   b = (p_y, 1 - p_y)

    with p^, q^ the softmax over the other classes. With beta = 1 - p_y this is `kd`. The authors
    multiply L by min(epoch / 20, 1) (CIFAR): a schedule, left to the caller.

    Args:
      student_logits: floats [..., classes]. Differentiated.
      teacher_logits: floats [..., classes]. Stopped.
      labels: integers [...]. Outside [0, classes): loss 0, gradient 0.
      alpha: scalar >= 0, may be traced; weight of the target term.
      beta: scalar >= 0, may be traced; weight of the other classes. Between 0.5 and 8 in the paper.
      temperature: scalar > 0, may be traced.

    Returns:
      [...], >= 0.

    Raises:
      ValueError: shapes that differ, temperature <= 0, alpha or beta < 0.
      TypeError: labels that are not integers, logits that are not floats.

    Source: Zhao et al. 2022, arXiv:2203.08679.

    >>> import jax.numpy as jnp
    >>> student, teacher = jnp.array([2.0, 1.0, 0.0]), jnp.array([0.0, 1.0, 2.0])
    >>> print(f"{dkd(student, teacher, jnp.array(0), beta=0.0, temperature=1.0):.4f}")
    0.7299
    """
    student, teacher = _pair(student_logits, teacher_logits)
    labels = checks.labels(labels, student.shape[:-1])
    checks.positive(temperature=temperature)
    checks.not_negative(alpha=alpha, beta=beta)
    valid, is_target, student, teacher = _labelled(labels, student, teacher)
    student, teacher = student / temperature, teacher / temperature
    target = log_space.bernoulli_kl(
        _target_log_odds(teacher, is_target), _target_log_odds(student, is_target)
    )
    others = log_space.kl(
        _log_probs_of_others(teacher, is_target), _log_probs_of_others(student, is_target)
    )
    return jnp.where(valid, temperature**2 * (alpha * target + beta * others), 0.0)


def nkd(
    student_logits: Logits,
    teacher_logits: Logits,
    labels: Labels,
    *,
    gamma: Scalar = 1.5,
    temperature: Scalar = 1.0,
) -> Losses:
    """Normalised distillation: soft cross-entropy on the target, and on the rest renormalised.

        L = -p_y log q_y - gamma T^2 sum_{c != y} p^_c log q^_c

    with p_y, q_y at temperature 1 and p^, q^ the softmax over the other classes at T. A
    cross-entropy, not a divergence: it is not 0 at s = t. The paper adds plain `cross_entropy`.

    Args:
      student_logits: floats [..., classes]. Differentiated.
      teacher_logits: floats [..., classes]. Stopped.
      labels: integers [...]. Outside [0, classes): loss 0, gradient 0.
      gamma: scalar >= 0, may be traced; weight of the other classes.
      temperature: scalar > 0, may be traced; of the other classes only.

    Returns:
      [...], >= 0.

    Raises:
      ValueError: shapes that differ, temperature <= 0, gamma < 0.
      TypeError: labels that are not integers, logits that are not floats.

    Source: Yang et al. 2023, arXiv:2303.13005.

    >>> import jax.numpy as jnp
    >>> student, teacher = jnp.array([2.0, 1.0, 0.0]), jnp.array([0.0, 1.0, 2.0])
    >>> print(f"{nkd(student, teacher, jnp.array(0)):.4f}")
    1.6032
    """
    student, teacher = _pair(student_logits, teacher_logits)
    labels = checks.labels(labels, student.shape[:-1])
    checks.positive(temperature=temperature)
    checks.not_negative(gamma=gamma)
    valid, is_target, student, teacher = _labelled(labels, student, teacher)
    target_weight = jnp.exp(_at_target(log_space.safe_log_softmax(teacher), is_target))
    log_target = _at_target(log_space.safe_log_softmax(student), is_target)
    target = -target_weight * jnp.where(target_weight == 0, 0.0, log_target)
    others = log_space.cross_entropy(
        _log_probs_of_others(teacher / temperature, is_target),
        _log_probs_of_others(student / temperature, is_target),
    )
    return jnp.where(valid, target + gamma * temperature**2 * others, 0.0)


def dist(
    student_logits: Logits,
    teacher_logits: Logits,
    *,
    beta: Scalar = 1.0,
    gamma: Scalar = 1.0,
    temperature: Scalar = 1.0,
    epsilon: float = 1e-8,
    where: Bool[Array | ndarray, "*batch"] | None = None,
) -> Float[Array, ""]:
    """DIST: match the teacher's correlations between classes and between examples.

        L = T^2 ( beta (1 - mean_b r(q_b, p_b)) + gamma (1 - mean_c r(q_{:c}, p_{:c})) )

    with q, p the probabilities at T and r Pearson's correlation: over the classes of a row, and
    over the rows for a class. The second has no example it belongs to, so the loss is a scalar,
    already averaged, and depends on which rows form the batch (accumulation over micro-batches
    is another loss). All leading axes are rows: put the classes of dense logits last.

    r divides by |x||y| + epsilon; `epsilon=0` is torchdistill's form, which clamps norms instead.
    A row or column that is constant up to rounding (as in a batch of one) has correlation 0 and
    no gradient. Classes at -inf on
    both sides take no part. The authors weigh the whole with 2.

    Args:
      student_logits: floats [..., classes], at least two axes. Differentiated.
      teacher_logits: floats [..., classes]. Stopped.
      beta: scalar >= 0, may be traced; weight between classes.
      gamma: scalar >= 0, may be traced; weight between examples.
      temperature: scalar > 0, may be traced.
      epsilon: number >= 0.
      where: booleans [...]; False rows take no part. 0 if all are.

    Returns:
      Scalar, in [0, 2 T^2 (beta + gamma)].

    Raises:
      ValueError: shapes that differ, one axis only, temperature <= 0, beta, gamma or epsilon < 0.
      TypeError: arrays that are not floats, where that is not boolean.

    Source: Huang et al. 2022, arXiv:2205.10536.

    >>> import jax.numpy as jnp
    >>> student = jnp.array([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    >>> teacher = jnp.array([[0.0, 2.0, 0.0], [0.0, 0.0, 2.0]])
    >>> print(f"{dist(student, teacher, gamma=0.0):.4f} {dist(student, teacher, beta=0.0):.4f}")
    1.5000 1.0000
    """
    student, teacher = _pair(student_logits, teacher_logits)
    checks.positive(temperature=temperature)
    checks.not_negative(beta=beta, gamma=gamma, epsilon=epsilon)
    if student.ndim < 2:
        raise ValueError(
            f"student_logits must be shaped [batch, ..., classes], got shape {student.shape}"
        )
    if where is None:
        where = jnp.ones(student.shape[:-1], bool)
    where = checks.mask(where, student.shape[:-1])
    student, teacher = (jnp.where(where[..., None], x, 0.0) for x in (student, teacher))

    entries = where[..., None] & ~((student == -jnp.inf) & (teacher == -jnp.inf))
    num_classes = student.shape[-1]
    entries = entries.reshape(-1, num_classes)
    q = jax.nn.softmax(student / temperature, axis=-1).reshape(-1, num_classes)
    p = jax.nn.softmax(teacher / temperature, axis=-1).reshape(-1, num_classes)

    def mean_distance(axis: int) -> Array:
        distances = 1 - _pearson(q, p, entries, axis, epsilon)
        counted = jnp.any(entries, axis=axis)
        total = jnp.sum(jnp.where(counted, distances, 0.0))
        return total / jnp.maximum(jnp.sum(counted), 1)

    return temperature**2 * (beta * mean_distance(1) + gamma * mean_distance(0))


def standardize_logits(logits: Logits, *, epsilon: float = 1e-7) -> Float[Array, "*batch classes"]:
    """Logits of a row with mean 0 and standard deviation 1.

        z -> (z - mean z) / (std z + epsilon),   std with C - 1 in the denominator

    Stops nothing. A constant row becomes 0 and has no gradient (dividing by epsilon alone would
    give one of 1e7). Classes at -inf stay there and take no part.

    Args:
      logits: floats [..., classes]. Differentiated, through mean and std too.
      epsilon: number > 0.

    Returns:
      Floats [..., classes].

    Raises:
      ValueError: epsilon <= 0. TypeError: logits that are not floats.

    Source: Sun et al. 2024, arXiv:2403.01427.

    >>> import jax.numpy as jnp
    >>> print(jnp.round(standardize_logits(jnp.array([2.0, 4.0, 6.0])), 3).tolist())
    [-1.0, 0.0, 1.0]
    """
    (logits,) = checks.logits(logits=logits)
    checks.positive(epsilon=epsilon)
    present = logits != -jnp.inf
    count = jnp.sum(present, axis=-1, keepdims=True)
    centred = _centred(logits, present, axis=-1)
    variance = jnp.sum(centred**2, axis=-1, keepdims=True) / jnp.maximum(count - 1, 1)
    constant = variance == 0
    deviation = jnp.sqrt(jnp.where(constant, 1.0, variance))
    standard = jnp.where(constant, 0.0, centred / (deviation + epsilon))
    return jnp.where(present, standard, -jnp.inf)


def logit_standardized_kd(
    student_logits: Logits, teacher_logits: Logits, *, temperature: Scalar = 2.0
) -> Losses:
    """`kd` of standardised logits: only the order and the relative distances are taught.

        L = kd(standardize_logits(s), standardize_logits(t), temperature=T)

    Unchanged by s -> a s + b and t -> a t + b, a > 0. The authors weigh it with 9 against 0.1 of
    `cross_entropy`. Standardised `dkd` is `dkd` of `standardize_logits`.

    Args:
      student_logits: floats [..., classes]. Differentiated.
      teacher_logits: floats [..., classes]. Stopped.
      temperature: scalar > 0, may be traced.

    Returns:
      [...], >= 0.

    Raises:
      ValueError: shapes that differ, temperature <= 0. TypeError: arrays that are not floats.

    Source: Sun et al. 2024, arXiv:2403.01427.

    >>> import jax.numpy as jnp
    >>> student, teacher = jnp.array([2.0, 1.0, 0.0]), jnp.array([0.0, 10.0, 20.0])
    >>> print(f"{logit_standardized_kd(student, teacher):.4f}")
    1.2806
    """
    student, teacher = _pair(student_logits, teacher_logits)
    return kd(standardize_logits(student), standardize_logits(teacher), temperature=temperature)


def _pair(student_logits: Logits, teacher_logits: Logits) -> tuple[Array, Array]:
    student, teacher = checks.logits(student_logits=student_logits, teacher_logits=teacher_logits)
    return student, jax.lax.stop_gradient(teacher)


def _labelled(labels: Array, *logits: Array) -> tuple[Array, ...]:
    """Valid rows, the one-hot target as booleans, and the logits with invalid rows at 0."""
    num_classes = logits[0].shape[-1]
    valid = valid_labels(labels, num_classes)
    is_target = jnp.arange(num_classes) == jnp.where(valid, labels, 0)[..., None]
    return valid, is_target, *(jnp.where(valid[..., None], x, 0.0) for x in logits)


def _at_target(values: Array, is_target: Array) -> Array:
    return jnp.sum(jnp.where(is_target, values, 0.0), axis=-1)


def _target_log_odds(logits: Array, is_target: Array) -> Array:
    """log p_y / (1 - p_y), exact for any confidence; inf where no other class is present."""
    others = jnp.where(is_target, -jnp.inf, logits)
    return _at_target(logits, is_target) - log_space.logsumexp(others)


def _log_probs_of_others(logits: Array, is_target: Array) -> Array:
    return log_space.safe_log_softmax(jnp.where(is_target, -jnp.inf, logits))


def _centred(values: Array, where: Array, axis: int) -> Array:
    """values - mean over `axis`, 0 where masked. Exactly 0 for equal values of any size."""
    largest = jnp.max(values, axis=axis, keepdims=True, where=where, initial=-jnp.inf)
    offset = jax.lax.stop_gradient(jnp.where(jnp.any(where, axis, keepdims=True), largest, 0.0))
    values = jnp.where(where, jnp.where(where, values, 0.0) - offset, 0.0)
    count = jnp.maximum(jnp.sum(where, axis=axis, keepdims=True), 1)
    return jnp.where(where, values - jnp.sum(values, axis=axis, keepdims=True) / count, 0.0)


def _pearson(x: Array, y: Array, where: Array, axis: int, epsilon: float) -> Array:
    """Pearson's correlation over an axis, among the entries of `where`; 0 if x or y is constant.

    Constant up to rounding: one value in two rows of a softmax may differ in its last bits, and
    the correlation of such noise is arbitrary, its gradient huge.
    """
    centred, norms = [], []
    for values in (x, y):
        deviations = _centred(values, where, axis)
        square = jnp.sum(deviations**2, axis)
        rounding = 8 * jnp.finfo(values.dtype).eps
        noise = rounding**2 * jnp.sum(jnp.where(where, values, 0.0) ** 2, axis)
        constant = square <= noise
        norms.append(jnp.sqrt(jnp.where(constant, 1.0, square)))
        centred.append(jnp.where(jnp.expand_dims(constant, axis), 0.0, deviations))
    product = jnp.sum(centred[0] * centred[1], axis)
    return product / (norms[0] * norms[1] + epsilon)
