"""MLKD: how predictions of a batch, and of its classes, resemble each other.

With q, p [batch, classes] the probabilities of student and teacher at one temperature, MLKD
compares q_i . q_j over pairs of examples and q_:c . q_:d over pairs of classes. Both are sums, not
means, over what they are contracted with, so their size grows with the batch.

Source: Jin et al. 2023 (MLKD, Multi-Level Logit Distillation), CVPR 2023.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float
from numpy import ndarray

from kdjax.losses import checks
from kdjax.losses.checks import Scalar
from kdjax.losses.logits import kd

BatchLogits = Float[Array | ndarray, "batch classes"]
Rows = Bool[Array | ndarray, " batch"] | None


def batch_correlation(
    student_logits: BatchLogits,
    teacher_logits: BatchLogits,
    *,
    temperature: Scalar = 4.0,
    where: Rows = None,
) -> Float[Array, " batch"]:
    """Batch level of MLKD: which examples of the batch are predicted alike.

        L_i = sum_j (p_i . p_j - q_i . q_j)^2

    Args:
      student_logits: floats [batch, classes]. Differentiated.
      teacher_logits: floats [batch, classes]. Stopped.
      temperature: scalar > 0, may be traced.
      where: booleans [batch]; False rows are in no pair, and have loss 0.

    Returns:
      [batch], >= 0, one value an example i. The mean over the examples is the published loss.

    Raises:
      ValueError: shapes that differ, not two axes, temperature <= 0. TypeError: arrays that are
        not floats, where that is not boolean.

    Source: Jin et al. 2023 (MLKD), CVPR 2023.

    >>> import jax.numpy as jnp
    >>> same, apart = jnp.zeros((2, 2)), jnp.array([[99.0, 0.0], [0.0, 99.0]])
    >>> print(batch_correlation(same, apart, temperature=1.0))
    [0.5 0.5]
    """
    q, p = _probabilities(student_logits, teacher_logits, temperature, where)
    return jnp.sum((_gram(p) - _gram(q)) ** 2, axis=-1)


def class_correlation(
    student_logits: BatchLogits,
    teacher_logits: BatchLogits,
    *,
    temperature: Scalar = 4.0,
    where: Rows = None,
) -> Float[Array, " classes"]:
    """Class level of MLKD: which classes are predicted together.

        L_c = sum_d ( sum_b p_bc p_bd - sum_b q_bc q_bd )^2

    Unchanged by a permutation of the batch.

    Args:
      student_logits: floats [batch, classes]. Differentiated.
      teacher_logits: floats [batch, classes]. Stopped.
      temperature: scalar > 0, may be traced.
      where: booleans [batch]; False rows are in no sum.

    Returns:
      [classes], >= 0, one value a class c. The mean over the classes is the published loss.

    Raises:
      ValueError: shapes that differ, not two axes, temperature <= 0. TypeError: arrays that are
        not floats, where that is not boolean.

    Source: Jin et al. 2023 (MLKD), CVPR 2023.

    >>> import jax.numpy as jnp
    >>> same, apart = jnp.zeros((2, 2)), jnp.array([[99.0, 0.0], [0.0, 99.0]])
    >>> print(class_correlation(same, apart, temperature=1.0))
    [0.5 0.5]
    """
    q, p = _probabilities(student_logits, teacher_logits, temperature, where)
    return jnp.sum((_gram(p.T) - _gram(q.T)) ** 2, axis=-1)


def mlkd_masks(
    teacher_logits: BatchLogits,
) -> tuple[Bool[Array, " batch"], Bool[Array, " classes"]]:
    """The half of the examples, and of the classes, on which the teacher is less sure.

        examples: max_c p_bc <= median_b,   classes: sum_b p_bc <= median_c,   p = softmax(t)

    The median of an even number is the lower one. MLKD takes the logits of the weakly augmented
    view and distils under these masks; see `mlkd`.

    Args:
      teacher_logits: floats [batch, classes]. Stopped.

    Returns:
      Booleans [batch] and [classes], at least half of each True.

    Raises:
      ValueError: not two axes. TypeError: logits that are not floats.

    Source: Jin et al. 2023 (MLKD), CVPR 2023.

    >>> import jax.numpy as jnp
    >>> examples, classes = mlkd_masks(jnp.array([[3.0, 0.0], [1.0, 0.0]]))
    >>> examples.tolist(), classes.tolist()
    ([False, True], [False, True])
    """
    (teacher,) = checks.shaped({"teacher_logits": "batch classes"}, teacher_logits=teacher_logits)
    probabilities = jax.nn.softmax(teacher, axis=-1)

    def lower_half(values: Array) -> Array:
        return values <= jnp.sort(values)[(values.size - 1) // 2]

    return lower_half(jnp.max(probabilities, axis=-1)), lower_half(jnp.sum(probabilities, axis=0))


def mlkd(
    student_logits: BatchLogits,
    teacher_logits: BatchLogits,
    *,
    temperatures: tuple[float, ...] = (4.0, 3.0, 5.0, 2.0, 6.0),
    examples: Rows = None,
    classes: Bool[Array | ndarray, " classes"] | None = None,
) -> Float[Array, ""]:
    """Multi-level logit distillation of one view: instances, batch and classes, at many T.

        L = sum_T [ 1/B sum_b m_b (kd_b + batch_correlation_b)
                    + 1/C sum_c n_c class_correlation_c ]

    with the masks m, n of `mlkd_masks`. The method trains on two views, weakly and strongly
    augmented: add their losses, with 0.9, to 0.1 of the `cross_entropy` of both.

    The authors' code computes another total: its masks multiply losses that are already averaged,
    and so only scale them by about a half; the strong view's T = 2 and 6 read the weak logits; the
    strong view's correlations are left out.

    Args:
      student_logits: floats [batch, classes]. Differentiated.
      teacher_logits: floats [batch, classes], of the same view. Stopped.
      temperatures: numbers > 0.
      examples: booleans [batch], the examples m that are taught; None: all. False rows still
        belong to the pairs of the others, so they must be finite.
      classes: booleans [classes], the classes n; None: all.

    Returns:
      Scalar, >= 0.

    Raises:
      ValueError: shapes that differ, not two axes, a temperature <= 0. TypeError: arrays that are
        not floats, masks that are not boolean.

    Source: Jin et al. 2023 (MLKD), CVPR 2023.

    >>> import jax.numpy as jnp
    >>> student, teacher = jnp.array([[2.0, 1.0, 0.0]]), jnp.array([[0.0, 1.0, 2.0]])
    >>> print(f"{mlkd(student, teacher, temperatures=(1.0,)):.4f}")
    1.3027
    """
    axes = "batch classes"
    student, teacher = checks.shaped(
        {"student_logits": axes, "teacher_logits": axes},
        student_logits=student_logits,
        teacher_logits=teacher_logits,
    )
    batch, num_classes = student.shape
    examples = jnp.ones(batch, bool) if examples is None else examples
    classes = jnp.ones(num_classes, bool) if classes is None else classes
    examples = checks.boolean("examples", examples, (batch,), "the batch")
    classes = checks.boolean("classes", classes, (num_classes,), "the classes")
    total = jnp.zeros((), student.dtype)
    for temperature in temperatures:
        of_example = kd(student, teacher, temperature=temperature)
        of_example += batch_correlation(student, teacher, temperature=temperature)
        of_class = class_correlation(student, teacher, temperature=temperature)
        total += jnp.mean(jnp.where(examples, of_example, 0.0))
        total += jnp.mean(jnp.where(classes, of_class, 0.0))
    return total


def _probabilities(
    student_logits: BatchLogits, teacher_logits: BatchLogits, temperature: Scalar, where: Rows
) -> tuple[Array, Array]:
    """Those of student and teacher, 0 in masked rows, which then are in no sum."""
    axes = "batch classes"
    student, teacher = checks.shaped(
        {"student_logits": axes, "teacher_logits": axes},
        student_logits=student_logits,
        teacher_logits=teacher_logits,
    )
    checks.positive(temperature=temperature)
    if where is None:
        where = jnp.ones(student.shape[:1], bool)
    where = checks.mask(where, student.shape[:1])[:, None]
    student, teacher = (jnp.where(where, x, 0.0) for x in (student, teacher))
    q, p = (
        jnp.where(where, jax.nn.softmax(x / temperature, axis=-1), 0.0)
        for x in (student, jax.lax.stop_gradient(teacher))
    )
    return q, p


def _gram(vectors: Array) -> Array:
    return jnp.matmul(vectors, vectors.T, precision=jax.lax.Precision.HIGHEST)
