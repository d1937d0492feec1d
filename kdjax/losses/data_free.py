"""Terms that stand in for data: what a generator, or the pixels themselves, are trained with.

A frozen teacher looks at synthetic examples and the gradient flows through it into them, so its
logits and features are plain arguments here and are not stopped; only its stored statistics are.
Values in float32, or float64 for float64.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from kdjax.losses import checks, log_space
from kdjax.losses.checks import Logits, Losses, Scalar


def one_hot_loss(logits: Logits) -> Losses:
    """Synthetic examples shall look like one class or other: cross-entropy with the best class.

        L = -max_c log softmax(z)_c

    The caller's mean over the batch is the published loss (DAFL, DFQ, DeepInversion: weight 1).

    Args:
      logits: the teacher's on synthetic examples, floats [..., classes]. Differentiated.

    Returns:
      [...], in [0, log classes].

    Raises:
      TypeError: logits that are not floats.

    Source: Chen et al. 2019 (DAFL), arXiv:1904.01186.

    >>> import jax.numpy as jnp
    >>> print(f"{one_hot_loss(jnp.array([jnp.log(3.0), 0.0])):.4f}")
    0.2877
    """
    (logits,) = checks.logits(logits=logits)
    return -jnp.max(log_space.safe_log_softmax(logits), axis=-1)


def activation_loss(features: Float[Array | np.ndarray, "batch ..."]) -> Float[Array, "batch"]:
    """Synthetic examples shall excite the teacher: minus the mean size of its features.

        L = -mean_d |f_d|

    The caller's mean over the batch is the published loss (DAFL: weight 0.001 in CMI's script, 0.1
    in the paper). Unbounded below: for saturated or normalised features, or with a small weight.

    Args:
      features: the teacher's before its classifier, floats [batch, ...]. Differentiated.

    Returns:
      [batch], <= 0.

    Raises:
      ValueError: one axis only. TypeError: features that are not floats.

    Source: Chen et al. 2019 (DAFL), arXiv:1904.01186.

    >>> import jax.numpy as jnp
    >>> activation_loss(jnp.array([[1.0, -3.0]])).tolist()
    [-2.0]
    """
    (features,) = checks.shaped({"features": "..."}, features=features)
    if features.ndim < 2:
        raise ValueError(f"features must be shaped [batch, ...], got shape {features.shape}")
    return -jnp.mean(jnp.abs(features), axis=range(1, features.ndim))


def class_balance(
    logits: Float[Array | np.ndarray, "batch classes"],
    *,
    where: Bool[Array | np.ndarray, "batch"] | None = None,
) -> Float[Array, ""]:
    """Synthetic batches shall hold all classes alike: minus the entropy of the mean prediction.

        L = sum_c m_c log m_c,   m = mean_b softmax(z_b)

    A scalar of the whole batch: accumulation over micro-batches is another loss. Weight 20 in CMI's
    script, 5 in the paper.

    Args:
      logits: the teacher's on synthetic examples, floats [batch, classes]. Differentiated.
      where: booleans [batch]; False examples take no part. 0 if all are.

    Returns:
      Scalar, in [-log classes, 0].

    Raises:
      ValueError: another shape, where of another shape. TypeError: logits that are not floats,
        where that is not boolean.

    Source: Chen et al. 2019 (DAFL), arXiv:1904.01186.

    >>> import jax.numpy as jnp
    >>> print(f"{class_balance(jnp.array([[9.0, 0.0], [0.0, 9.0]])):.4f}")
    -0.6931
    """
    (logits,) = checks.shaped({"logits": "batch classes"}, logits=logits)
    if where is None:
        where = jnp.ones(len(logits), bool)
    where = checks.boolean("where", where, logits.shape[:1], "the batch")[:, None]
    log_probs = log_space.safe_log_softmax(jnp.where(where, logits, 0.0))
    log_probs = jnp.where(where, log_probs, -jnp.inf)
    number = jnp.maximum(jnp.sum(where), 1)
    log_mean = log_space.logsumexp(log_probs.T) - jnp.log(number).astype(logits.dtype)
    return -log_space.cross_entropy(log_mean, log_mean)


def bn_statistics(
    inputs: Float[Array | np.ndarray, "... channels"],
    running_mean: Float[Array | np.ndarray, "channels"],
    running_var: Float[Array | np.ndarray, "channels"],
) -> Float[Array, ""]:
    """Synthetic examples shall have the statistics that a batch normalisation has stored.

        L = || var x - running_var ||_2 + || mean x - running_mean ||_2

    of the inputs of one normalisation, with the biased variance, over all axes but the channels.
    The norms are not squared. The published loss is the sum over all such layers; a scalar of the
    whole batch each: accumulation over micro-batches is another loss.

    Args:
      inputs: what enters the normalisation, floats [..., channels]. Differentiated.
      running_mean: floats [channels]. Stopped.
      running_var: floats [channels], > 0. Stopped.

    Returns:
      Scalar, >= 0. A gap of exactly 0 has no gradient.

    Raises:
      ValueError: shapes that do not fit, one axis only, a variance <= 0 (where it is known: a
        traced one is not checked). TypeError: arrays that are not floats.

    Source: Yin et al. 2020 (DeepInversion), arXiv:1912.08795.

    >>> import jax.numpy as jnp
    >>> inputs = jnp.array([[0.0, 1.0], [2.0, 1.0]])
    >>> print(bn_statistics(inputs, jnp.array([1.0, 4.0]), jnp.array([5.0, 3.0])))
    8.0
    """
    if not isinstance(running_var, jax.core.Tracer) and not np.all(np.asarray(running_var) > 0):
        raise ValueError(f"running_var must be > 0, got {np.min(running_var)}")
    inputs, running_mean, running_var = checks.shaped(
        {"inputs": "... channels", "running_mean": "channels", "running_var": "channels"},
        inputs=inputs,
        running_mean=running_mean,
        running_var=running_var,
    )
    if inputs.ndim < 2:
        raise ValueError(f"inputs must be shaped [batch, ..., channels], got shape {inputs.shape}")
    axes = range(inputs.ndim - 1)
    running_mean, running_var = jax.lax.stop_gradient((running_mean, running_var))
    mean_gap = jnp.mean(inputs, axis=axes) - running_mean
    return _length(jnp.var(inputs, axis=axes) - running_var) + _length(mean_gap)


def image_tv_prior(
    images: Float[Array | np.ndarray, "batch height width channels"],
) -> Float[Array, "batch"]:
    """Synthetic images shall be smooth: total variation in four directions.

        L = sum over right, down and both diagonals of  mean |x - neighbour of x|

    The mean of a direction is over its pairs of pixels and the channels. The caller's mean over
    the batch is the published loss of CMI's DeepInversion (weight 1e-3), which has these absolute
    differences; the authors' own has the norms of the differences, summed over everything.

    Args:
      images: floats [batch, height, width, channels], both sides >= 2. Differentiated.

    Returns:
      [batch], >= 0.

    Raises:
      ValueError: another shape, a side of one pixel. TypeError: images that are not floats.

    Source: Yin et al. 2020 (DeepInversion), arXiv:1912.08795; Fang et al. 2021 (CMI),
      arXiv:2105.08584.

    >>> import jax.numpy as jnp
    >>> image_tv_prior(jnp.array([[0.0, 1.0], [2.0, 4.0]]).reshape(1, 2, 2, 1)).tolist()
    [9.0]
    """
    (images,) = checks.shaped({"images": "batch height>=2 width>=2 channels"}, images=images)
    right = images[:, :, 1:] - images[:, :, :-1]
    down = images[:, 1:] - images[:, :-1]
    falling = images[:, 1:, 1:] - images[:, :-1, :-1]
    rising = images[:, 1:, :-1] - images[:, :-1, 1:]
    return sum(jnp.mean(jnp.abs(gap), axis=(1, 2, 3)) for gap in (right, down, falling, rising))


def clamped_jsd(
    p_logits: Logits, q_logits: Logits, *, temperature: Scalar = 1.0, floor: Scalar = 0.01
) -> Losses:
    """The adversarial Jensen-Shannon term: how far teacher and student disagree, bounded.

        L = 1/2 KL(M || P) + 1/2 KL(M || Q),   KL(M || P) = sum_c M_c log(M_c / P_c)
        P, Q, M = clip(p), clip(q), clip((p + q) / 2),   clip to [floor, 1 - floor]

    with p, q softened at `temperature`. Examples are trained to make it large, where the student
    fails. Two things differ from the textbook (`generalized_jsd`), after the code of CMI: the order
    in both KL, and the clipping, after which P, Q, M are no distributions (the value may be below
    0) and have no gradient where they are clipped. M is the mean of the unclipped probabilities.
    No squared temperature is applied. The caller's mean over the batch is the term of that code.

    Args:
      p_logits: floats [..., classes]. Differentiated.
      q_logits: floats [..., classes]. Differentiated.
      temperature: scalar > 0, may be traced.
      floor: scalar in (0, 1/2), may be traced.

    Returns:
      [...].

    Raises:
      ValueError: shapes that differ, temperature <= 0, floor <= 0 or >= 1/2.
      TypeError: arrays that are not floats.

    Source: Fang et al. 2021 (CMI), arXiv:2105.08584; Yin et al. 2020, arXiv:1912.08795.

    >>> import jax.numpy as jnp
    >>> print(f"{clamped_jsd(jnp.array([jnp.log(3.0), 0.0]), jnp.array([0.0, jnp.log(3.0)])):.4f}")
    0.1438
    """
    p_logits, q_logits = checks.logits(p_logits=p_logits, q_logits=q_logits)
    checks.positive(temperature=temperature, floor=floor)
    checks.positive(**{"1/2 - floor": 0.5 - floor})
    p, q = (jax.nn.softmax(z / temperature, axis=-1) for z in (p_logits, q_logits))
    p, q, mean = (jnp.clip(x, floor, 1 - floor) for x in (p, q, (p + q) / 2))
    terms = mean * (jnp.log(mean) - 0.5 * (jnp.log(p) + jnp.log(q)))
    return jnp.sum(terms, axis=-1)


def _length(vector: Array) -> Array:
    square = jnp.sum(vector**2)
    return jnp.where(square == 0, 0.0, jnp.sqrt(jnp.where(square == 0, 1.0, square)))
