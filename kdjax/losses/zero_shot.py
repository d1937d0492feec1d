"""Classifiers made of an image encoder and embeddings of the classes: zero-shot and few-shot.

Features are [batch, features], class embeddings one row a class, [classes, features]; neither
needs unit norm, unless it is said. Values in float32 (float64 for float64).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float
from numpy import ndarray

from kdjax.losses import checks, log_space
from kdjax.losses.checks import Labels, Logits, Scalar
from kdjax.losses.contrastive import l2_normalize

Features = Float[Array | ndarray, "batch features"]
Embeddings = Float[Array | ndarray, "classes features"]


def zero_shot_class_embeddings(
    text_features: Float[Array | ndarray, "classes templates features"],
    *,
    normalize_templates: bool = True,
) -> Float[Array, "classes features"]:
    """One embedding a class, of the texts of several prompt templates.

        w_c = n( mean_t n(text_ct) )        n(x) = x / |x|
        w_c = n( mean_t text_ct )           with normalize_templates=False

    CLIP and DHO normalise the texts first, ActiveKD's code does not.

    Args:
      text_features: floats [classes, templates, features]. Differentiated.
      normalize_templates: whether each text has the same weight.

    Returns:
      [classes, features], unit-norm.

    Raises:
      ValueError: an array of another rank. TypeError: features that are not floats.

    Source: Radford et al. 2021 (CLIP), arXiv:2103.00020.

    >>> import jax.numpy as jnp
    >>> texts = jnp.array([[[3.0, 0.0], [0.0, 1.0]]])
    >>> print(zero_shot_class_embeddings(texts).round(2))
    [[0.71 0.71]]
    >>> print(zero_shot_class_embeddings(texts, normalize_templates=False).round(2))
    [[0.95 0.32]]
    """
    (texts,) = checks.shaped(
        {"text_features": "classes templates features"}, text_features=text_features
    )
    if normalize_templates:
        texts = l2_normalize(texts)
    return l2_normalize(texts.mean(1))


def clip_zero_shot_logits(
    features: Features, class_embeddings: Embeddings, *, scale: Scalar = 100.0
) -> Float[Array, "batch classes"]:
    """Cosine similarities of images and classes, scaled.

        l_bc = scale n(f_b) . n(w_c)        n(x) = x / |x|

    As the head of a student it is DHO's language-aware head (equation 10 of arXiv:2505.07675; its
    code leaves w as it is and adds a bias).

    Args:
      features: floats [batch, features]. Differentiated.
      class_embeddings: floats [classes, features]. Differentiated.
      scale: scalar > 0, may be traced; 1 / temperature.

    Returns:
      [batch, classes], in [-scale, scale]; a zero vector has similarity 0 with everything.

    Raises:
      ValueError: widths that differ, scale <= 0. TypeError: arrays that are not floats.

    Source: Radford et al. 2021 (CLIP), arXiv:2103.00020.

    >>> import jax.numpy as jnp
    >>> clip_zero_shot_logits(jnp.array([[2.0, 0.0]]), jnp.array([[3.0, 0.0], [0.0, 1.0]])).tolist()
    [[100.0, 0.0]]
    """
    features, embeddings = _pair(features, class_embeddings)
    checks.positive(scale=scale)
    return scale * l2_normalize(features) @ l2_normalize(embeddings).T


def tip_adapter_logits(
    features: Features,
    keys: Float[Array | ndarray, "examples features"],
    values: Float[Array | ndarray, "examples classes"],
    class_embeddings: Embeddings,
    *,
    alpha: Scalar = 1.0,
    beta: Scalar = 5.5,
    scale: Scalar = 100.0,
) -> Float[Array, "batch classes"]:
    """A zero-shot classifier with a cache of labelled examples: Tip-Adapter.

        l = scale f . w + alpha sum_n exp( -beta (1 - f . k_n) ) v_n

    Without training the keys are the features of the labelled images; Tip-Adapter-F fine-tunes
    them.

    Args:
      features: f, floats [batch, features], unit-norm. Differentiated.
      keys: floats [examples, features], unit-norm at first. Differentiated.
      values: floats [examples, classes], one-hot labels. Differentiated.
      class_embeddings: w, floats [classes, features], unit-norm. Differentiated.
      alpha: scalar >= 0, may be traced; 0: the zero-shot classifier.
      beta: scalar > 0, may be traced; how near a key must be.
      scale: scalar > 0, may be traced.

    Returns:
      [batch, classes].

    Raises:
      ValueError: axes that differ, a number out of range. TypeError: arrays that are not floats.

    Source: Zhang et al. 2022 (Tip-Adapter), arXiv:2207.09519.

    >>> import jax.numpy as jnp
    >>> unit = jnp.eye(2)
    >>> logits = tip_adapter_logits(unit[:1], unit[1:], unit[:1], unit, alpha=2.0, beta=1.0)
    >>> print(f"{logits[0, 0]:.4f} {logits[0, 1]:.4f}")  # 100 + 2 exp(-1)
    100.7358 0.0000
    """
    features, keys, values, embeddings = checks.shaped(
        {
            "features": "batch features",
            "keys": "examples features",
            "values": "examples classes",
            "class_embeddings": "classes features",
        },
        features=features,
        keys=keys,
        values=values,
        class_embeddings=class_embeddings,
    )
    checks.not_negative(alpha=alpha)
    checks.positive(beta=beta, scale=scale)
    affinity = jnp.exp(-beta * (1 - features @ keys.T))
    return scale * features @ embeddings.T + alpha * affinity @ values


def clap_class_weights(
    logits: Logits, labels: Labels, *, where: Bool[Array | ndarray, " batch"] | None = None
) -> Float[Array, " classes"]:
    """How much a zero-shot classifier is to be trusted in every class, by its few labels.

        a_c = mean over labelled images of class c of softmax(l)_c

    Taken once, before training, and constant then.

    Args:
      logits: l, floats [batch, classes], `clip_zero_shot_logits` of the labelled images. Stopped.
      labels: integers [batch]. Outside [0, classes): not counted.
      where: booleans [batch]; False rows (padding) are not counted.

    Returns:
      [classes], in [0, 1]; 0 for a class without an image.

    Raises:
      ValueError: shapes that do not fit. TypeError: logits that are not floats, labels that are
        not integers, where that is not boolean.

    Source: Silva-Rodriguez et al. 2024 (CLAP), arXiv:2312.12730.

    >>> import jax.numpy as jnp
    >>> features, labels = jnp.eye(2)[jnp.array([0, 0, 1])], jnp.array([0, 1, 1])
    >>> logits = clip_zero_shot_logits(features, jnp.eye(2), scale=10.0)
    >>> print(" ".join(f"{a:.4f}" for a in clap_class_weights(logits, labels)))
    1.0000 0.5000
    """
    (logits,) = checks.shaped({"logits": "batch classes"}, logits=logits)
    labels = checks.labels(labels, logits.shape[:1])
    where = jnp.ones(labels.shape, bool) if where is None else where
    where = checks.mask(where, labels.shape)
    probs = log_space.softmax(jax.lax.stop_gradient(jnp.where(where[:, None], logits, 0.0)))
    mine = jax.nn.one_hot(labels, logits.shape[1], dtype=probs.dtype) * where[:, None]
    return jnp.sum(mine * probs, 0) / jnp.maximum(jnp.sum(mine, 0), 1)


def clap_constraint(
    class_embeddings: Embeddings,
    initial_class_embeddings: Embeddings,
    class_weights: Float[Array | ndarray, " classes"],
) -> Float[Array, " classes"]:
    """What holds a linear probe near its zero-shot start, class by class.

        r_c = a_c |w_c - w0_c|^2

    CLAP's loss is the mean cross-entropy of `clip_zero_shot_logits(features, w)` plus the mean of r
    over the classes.

    Args:
      class_embeddings: w, floats [classes, features]. Differentiated.
      initial_class_embeddings: w0, floats [classes, features]. Stopped.
      class_weights: a, floats [classes], `clap_class_weights`. Stopped.

    Returns:
      [classes], >= 0 for weights >= 0.

    Raises:
      ValueError: shapes that differ. TypeError: arrays that are not floats.

    Source: Silva-Rodriguez et al. 2024 (CLAP), arXiv:2312.12730.

    >>> import jax.numpy as jnp
    >>> clap_constraint(2 * jnp.eye(2), jnp.eye(2), jnp.array([1.0, 0.5])).tolist()
    [1.0, 0.5]
    """
    embeddings, initial, weights = checks.shaped(
        {
            "class_embeddings": "classes features",
            "initial_class_embeddings": "classes features",
            "class_weights": "classes",
        },
        class_embeddings=class_embeddings,
        initial_class_embeddings=initial_class_embeddings,
        class_weights=class_weights,
    )
    initial, weights = jax.lax.stop_gradient((initial, weights))
    return weights * jnp.sum((embeddings - initial) ** 2, -1)


def _pair(features: Features, class_embeddings: Embeddings) -> tuple[Array, Array]:
    return checks.shaped(
        {"features": "batch features", "class_embeddings": "classes features"},
        features=features,
        class_embeddings=class_embeddings,
    )
