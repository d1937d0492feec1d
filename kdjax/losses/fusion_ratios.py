"""How much of an example's loss comes from the teacher, and how much from its label.

    L_n = alpha_n T^2 KL(teacher || student) + (1 - alpha_n) CE(student, label)

`fused_kd` is that loss; the other functions give alpha, or what a network computes it from.
Unreduced, in float32 (float64 for float64). A row whose label is outside [0, classes) has loss,
ratio and features 0; see `valid_labels` for its weight.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
from numpy import ndarray

from kdjax.losses import checks
from kdjax.losses.checks import Labels, Logits, Losses, Scalar, valid_labels
from kdjax.losses.logits import cross_entropy, kd

Probs = Float[Array | ndarray, "*batch classes"]
Ratios = Float[Array | ndarray, "*batch"]

# Mode -> the blocks of `trilateral_features`, in order; from `vertices` on as the authors number
# them, 1 to 7.
TRILATERAL_MODES = {
    "vertices": ("vertices",),
    "student_edges": ("student_edges",),
    "vertices+edges": ("vertices", "student_edges", "other_edges"),
    "vertices+angles": ("vertices", "angles"),
    "student_edges+angles": ("student_edges", "angles"),
    "vertices+student_edges+angles": ("vertices", "student_edges", "angles"),
    "angles": ("angles",),
    "norms": ("norms", "at_target"),
}


def fused_kd(
    student_logits: Logits,
    teacher_logits: Logits,
    labels: Labels,
    ratios: Ratios,
    *,
    temperature: Scalar = 1.5,
) -> Losses:
    """Distillation and cross-entropy, mixed by a ratio of each example.

        L = alpha T^2 KL(p || q) + (1 - alpha) CE(s, y),   p, q at T, alpha = ratios

    Affine in each alpha: 0 is `cross_entropy`, 1 is `kd`. The gradient in the ratios is what
    learns them; where a student is trained under given ones, stop it.

    Args:
      student_logits: floats [..., classes]. Differentiated.
      teacher_logits: floats [..., classes]. Stopped.
      labels: integers [...]. Outside [0, classes): loss 0, gradient 0.
      ratios: floats [...], in [0, 1]. Differentiated.
      temperature: scalar > 0, may be traced.

    Returns:
      [...], >= 0.

    Raises:
      ValueError: shapes that differ, temperature <= 0. TypeError: labels that are not integers,
        logits or ratios that are not floats.

    Source: Hu et al. 2024 (TGeo-KD), arXiv:2312.15112.

    >>> import jax.numpy as jnp
    >>> student, teacher = jnp.array([2.0, 1.0, 0.0]), jnp.array([0.0, 1.0, 2.0])
    >>> print(f"{fused_kd(student, teacher, jnp.array(0), jnp.array(0.5), temperature=1.0):.4f}")
    0.7790
    """
    student, teacher = checks.logits(student_logits=student_logits, teacher_logits=teacher_logits)
    labels = checks.labels(labels, student.shape[:-1])
    (ratios,) = checks.shaped({"ratios": "..."}, ratios=ratios)
    if ratios.shape != labels.shape:
        raise ValueError(f"ratios must have the shape {labels.shape} of labels, got {ratios.shape}")
    valid = valid_labels(labels, student.shape[-1])
    student, teacher = (jnp.where(valid[..., None], x, 0.0) for x in (student, teacher))
    soft = kd(student, teacher, temperature=temperature)
    mixed = ratios * soft + (1 - ratios) * cross_entropy(student, labels)
    return jnp.where(valid, mixed, 0.0)


def class_mean_predictions(
    teacher_probs: Float[Array | ndarray, "examples classes"],
    labels: Int[Array | ndarray, " examples"],
    *,
    where: Bool[Array | ndarray, " examples"] | None = None,
) -> Float[Array, "classes classes"]:
    """What a teacher predicts for the examples of a class, in the mean.

        M_c = mean of p_n over the n with y_n = c

    An outlier's own prediction is far from its class's. Compute it once, over the training set.

    Args:
      teacher_probs: floats [examples, classes], rows that sum to 1. Stopped.
      labels: integers [examples]. Outside [0, classes): not counted.
      where: booleans [examples]; False: not counted, whatever it holds. None: all count.

    Returns:
      [classes, classes], rows that sum to 1; 1 / classes for a class without examples.

    Raises:
      ValueError: shapes that differ. TypeError: labels that are not integers, probabilities that
        are not floats, a mask that is not boolean.

    Source: Hu et al. 2024 (TGeo-KD), arXiv:2312.15112.

    >>> import jax.numpy as jnp
    >>> probs = jnp.array([[0.75, 0.25], [0.25, 0.75]])
    >>> print(class_mean_predictions(probs, jnp.array([1, 1])))
    [[0.5 0.5]
     [0.5 0.5]]
    """
    (probs,) = checks.shaped({"teacher_probs": "examples classes"}, teacher_probs=teacher_probs)
    labels = checks.labels(labels, probs.shape[:1])
    classes = probs.shape[-1]
    counted = valid_labels(labels, classes)
    if where is not None:
        counted &= checks.mask(where, probs.shape[:1])
    rows = jnp.where(counted, labels, classes)
    probs = jnp.where(counted[:, None], jax.lax.stop_gradient(probs), 0.0)
    total = jax.ops.segment_sum(probs, rows, classes + 1)[:-1]
    count = jax.ops.segment_sum(counted.astype(probs.dtype), rows, classes + 1)[:-1, None]
    return jnp.where(count > 0, total / jnp.maximum(count, 1), 1 / classes)


def trilateral_features(
    student_probs: Probs,
    teacher_probs: Probs,
    labels: Labels,
    teacher_means: Float[Array | ndarray, "classes classes"],
    *,
    mode: str = "vertices+edges",
) -> Float[Array, "*batch features"]:
    """Where student, teacher and label stand on the simplex, for a network that weighs them.

        S, T: predictions   G = onehot(y)   M = teacher_means[y]
        vertices:       [S, T, G, M]                            4 C
        student_edges:  [(M - S)^2, (G - S)^2, (T - S)^2]       3 C
        other_edges:    [(T - G)^2, (M - G)^2]                  2 C
        angles:         [(M - S)(G - S), (T - S)(G - S)]        2 C
        norms:          |M - S|, |G - S|, |T - S|, |T - G|, |M - G|     5
        at_target:      S_y, T_y, M_y                           3

    Squares and products are element-wise. S, T, G are the paper's relations within an example, M
    those between examples. "vertices+edges" (all edges) is the authors' choice, 9 C wide; "norms"
    (with at_target) is 8 wide whatever C is, for many classes; it is not theirs.

    Args:
      student_probs: floats [..., classes], at temperature 1. Stopped.
      teacher_probs: floats [..., classes], at temperature 1. Stopped.
      labels: integers [...]. Outside [0, classes): features of 0.
      teacher_means: floats [classes, classes], of `class_mean_predictions`. Stopped.
      mode: a key of `TRILATERAL_MODES`.

    Returns:
      [..., features].

    Raises:
      ValueError: shapes that differ, an unknown mode. TypeError: labels that are not integers,
        probabilities that are not floats.

    Source: Hu et al. 2024 (TGeo-KD), arXiv:2312.15112; element-wise as in the authors' code.

    >>> import jax.numpy as jnp
    >>> s, t, means = jnp.array([0.5, 0.5]), jnp.array([1.0, 0.0]), jnp.eye(2)
    >>> print(trilateral_features(s, t, jnp.array(0), means, mode="student_edges"))
    [0.25 0.25 0.25 0.25 0.25 0.25]
    """
    student, teacher, means = checks.shaped(
        {
            "student_probs": "... classes",
            "teacher_probs": "... classes",
            "teacher_means": "classes classes",
        },
        student_probs=student_probs,
        teacher_probs=teacher_probs,
        teacher_means=teacher_means,
    )
    labels = checks.labels(labels, student.shape[:-1])
    checks.choice("mode", mode, tuple(TRILATERAL_MODES))
    student, teacher, means = map(jax.lax.stop_gradient, (student, teacher, means))
    classes = student.shape[-1]
    valid = valid_labels(labels, classes)
    target = jnp.where(valid, labels, 0)
    truth, mean = jax.nn.one_hot(target, classes, dtype=student.dtype), means[target]
    edges = mean - student, truth - student, teacher - student, teacher - truth, mean - truth
    found = {
        "vertices": lambda: [student, teacher, truth, mean],
        "student_edges": lambda: [edge**2 for edge in edges[:3]],
        "other_edges": lambda: [edge**2 for edge in edges[3:]],
        "angles": lambda: [edges[0] * edges[1], edges[2] * edges[1]],
        "norms": lambda: [jnp.linalg.norm(e, axis=-1, keepdims=True) for e in edges],
        "at_target": lambda: [
            jnp.take_along_axis(x, target[..., None], axis=-1) for x in (student, teacher, mean)
        ],
    }
    blocks = [block for name in TRILATERAL_MODES[mode] for block in found[name]()]
    return jnp.where(valid[..., None], jnp.concatenate(blocks, axis=-1), 0.0)


def wls_ratio(
    student_logits: Logits, teacher_logits: Logits, labels: Labels, *, epsilon: float = 1e-7
) -> Losses:
    """WLS: the teacher counts where the student is not yet better than it is.

        alpha = 1 - exp(-CE(s, y) / (CE(t, y) + epsilon))

    The weight of `wsld`, as the ratio of `fused_kd`.

    Args:
      student_logits: floats [..., classes]. Stopped.
      teacher_logits: floats [..., classes]. Stopped.
      labels: integers [...]. Outside [0, classes): 0.
      epsilon: number > 0.

    Returns:
      [...], in [0, 1].

    Raises:
      ValueError: shapes that differ, epsilon <= 0. TypeError: labels that are not integers,
        logits that are not floats.

    Source: Zhou et al. 2021 (WSLD), arXiv:2102.00650; as a ratio in Hu et al. 2024,
      arXiv:2312.15112.

    >>> import jax.numpy as jnp
    >>> student, teacher = jnp.array([2.0, 1.0, 0.0]), jnp.array([0.0, 1.0, 2.0])
    >>> print(f"{wls_ratio(student, teacher, jnp.array(0)):.4f}")
    0.1557
    """
    student, teacher = checks.logits(student_logits=student_logits, teacher_logits=teacher_logits)
    labels = checks.labels(labels, student.shape[:-1])
    checks.positive(epsilon=epsilon)
    valid = valid_labels(labels, student.shape[-1])
    student, teacher = (jnp.where(valid[..., None], x, 0.0) for x in (student, teacher))
    student, teacher = jax.lax.stop_gradient((student, teacher))
    ratio = cross_entropy(student, labels) / (cross_entropy(teacher, labels) + epsilon)
    return jnp.where(valid, -jnp.expm1(-ratio), 0.0)


def ada_ratio(teacher_probs: Probs, labels: Labels) -> Losses:
    """ADA: the teacher counts by the margin with which it knows the label.

        alpha = max(0, p_y - mean_{c != y} p_c)

    Args:
      teacher_probs: floats [..., classes], classes >= 2, at temperature 1. Stopped.
      labels: integers [...]. Outside [0, classes): 0.

    Returns:
      [...], in [0, 1].

    Raises:
      ValueError: labels of another shape, one class. TypeError: labels that are not integers,
        probabilities that are not floats.

    Source: the ADA-KD baseline of Hu et al. 2024 (TGeo-KD), arXiv:2312.15112.

    >>> import jax.numpy as jnp
    >>> print(ada_ratio(jnp.array([0.5, 0.25, 0.25]), jnp.array(0)))
    0.25
    """
    (probs,) = checks.shaped({"teacher_probs": "... classes>=2"}, teacher_probs=teacher_probs)
    labels = checks.labels(labels, probs.shape[:-1])
    classes = probs.shape[-1]
    valid = valid_labels(labels, classes)
    probs = jnp.where(valid[..., None], jax.lax.stop_gradient(probs), 0.0)
    target = jnp.where(valid, labels, 0)[..., None]
    at_target = jnp.take_along_axis(probs, target, axis=-1)[..., 0]
    others = (jnp.sum(probs, axis=-1) - at_target) / (classes - 1)
    return jnp.where(valid, jnp.maximum(at_target - others, 0.0), 0.0)


def annealed_ratio(progress: Scalar, *, levels: int = 10) -> Float[Array, ""]:
    """ANL: from the teacher alone to the labels alone, in equal steps.

        alpha = 1 - min(floor(levels * progress), levels - 1) / (levels - 1)

    Args:
      progress: scalar in [0, 1], may be traced: the part of the training that is done.
      levels: integer >= 2, how many values alpha takes, equally long each.

    Returns:
      Scalar, in [0, 1]: 1 in the first part of the training, 0 in the last.

    Raises:
      ValueError: progress outside [0, 1], levels < 2. TypeError: levels that are no integer.

    Source: the ANL-KD baseline of Hu et al. 2024 (TGeo-KD), arXiv:2312.15112.

    >>> [float(annealed_ratio(progress, levels=3)) for progress in (0.0, 0.5, 1.0)]
    [1.0, 0.5, 0.0]
    """
    checks.fraction(progress=progress)
    checks.count(2, levels=levels)
    level = jnp.minimum(jnp.floor(levels * jnp.asarray(progress, jnp.float32)), levels - 1)
    return 1 - level / (levels - 1)
