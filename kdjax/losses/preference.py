"""Preference losses on the log-probabilities of whole responses: DPO, its hinge, IPO and KTO.

    c = log pi(chosen) - log ref(chosen),   r = log pi(rejected) - log ref(rejected)

`sequence_logprob` gives the log-probabilities, [batch]. The reference model is a constant: no
gradient reaches an argument named `reference_*`.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
from numpy import ndarray

from kdjax.losses import checks
from kdjax.losses.checks import Scalar, valid_labels
from kdjax.losses.tokens import next_token_labels, selective_log_softmax

Responses = Float[Array | ndarray, "*batch"]
Losses = Float[Array, "*batch"]


def sequence_logprob(
    logits: Float[Array | ndarray, "*batch length vocabulary"],
    labels: Int[Array | ndarray, "*batch length"],
) -> Losses:
    """The log-probability of a response: the sum of those of its tokens.

        log pi = sum_(i: y_(i+1) is a label) log softmax(z_i)_(y_(i+1))

    Args:
      logits: floats [..., length, vocabulary], of position i for token i + 1. Differentiated.
      labels: integers [..., length], unshifted. Outside [0, vocabulary), as -100 on the prompt and
        the padding: not summed.

    Returns:
      [...], <= 0; 0 for a row without labels. Divided by the number of labels it is what TRL's IPO
      takes.

    Raises:
      ValueError: shapes that do not fit. TypeError: labels that are not integers, logits that are
        not floats.

    Source: Rafailov et al. 2023 (DPO), arXiv:2305.18290.

    >>> import jax.numpy as jnp
    >>> logits = jnp.log(jnp.array([[0.5, 0.5], [0.2, 0.8], [0.9, 0.1]]))
    >>> print(f"{sequence_logprob(logits, jnp.array([-100, 0, 1])):.4f}")
    -0.9163
    """
    (logits,) = checks.shaped({"logits": "... length vocabulary"}, logits=logits)
    labels = checks.integers("labels", labels, logits.shape[:-1], "logits without their vocabulary")
    labels = next_token_labels(labels)
    log_probs = selective_log_softmax(logits, labels)
    return jnp.sum(jnp.where(valid_labels(labels, logits.shape[-1]), log_probs, 0.0), axis=-1)


def dpo(
    chosen_log_probs: Responses,
    rejected_log_probs: Responses,
    reference_chosen_log_probs: Responses,
    reference_rejected_log_probs: Responses,
    *,
    beta: Scalar = 0.1,
    label_smoothing: Scalar = 0.0,
) -> Losses:
    """Direct preference optimisation, with the label smoothing of conservative DPO.

        L = -(1 - e) log sigmoid(beta (c - r)) - e log sigmoid(-beta (c - r))

    Args:
      chosen_log_probs: floats [...]. Differentiated.
      rejected_log_probs: floats [...]. Differentiated.
      reference_chosen_log_probs: floats [...]. Stopped.
      reference_rejected_log_probs: floats [...]. Stopped.
      beta: scalar > 0, may be traced.
      label_smoothing: e, scalar in [0, 0.5), may be traced: how often a preference is wrong.

    Returns:
      [...], >= 0.

    Raises:
      ValueError: shapes that differ, beta <= 0, label_smoothing outside [0, 0.5). TypeError: arrays
        that are not floats.

    Source: Rafailov et al. 2023, arXiv:2305.18290; Mitchell 2023 (conservative DPO).

    >>> import jax.numpy as jnp
    >>> zero = jnp.array(0.0)
    >>> print(f"{dpo(jnp.array(2.0), jnp.array(-1.0), zero, zero, beta=0.1):.4f}")
    0.5544
    """
    margin = _margin(
        chosen_log_probs,
        rejected_log_probs,
        reference_chosen_log_probs,
        reference_rejected_log_probs,
    )
    checks.positive(beta=beta)
    checks.fraction(label_smoothing=label_smoothing)
    smoothed = isinstance(label_smoothing, jax.core.Tracer) or float(label_smoothing) < 0.5
    if not smoothed:
        raise ValueError(f"label_smoothing must be < 0.5, got {label_smoothing}")
    logits = beta * margin
    right, wrong = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
    return -(1 - label_smoothing) * right - label_smoothing * wrong


def dpo_hinge(
    chosen_log_probs: Responses,
    rejected_log_probs: Responses,
    reference_chosen_log_probs: Responses,
    reference_rejected_log_probs: Responses,
    *,
    beta: Scalar = 0.1,
) -> Losses:
    """The hinge loss on the margin of DPO.

        L = max(0, 1 - beta (c - r))

    Args:
      chosen_log_probs: floats [...]. Differentiated.
      rejected_log_probs: floats [...]. Differentiated.
      reference_chosen_log_probs: floats [...]. Stopped.
      reference_rejected_log_probs: floats [...]. Stopped.
      beta: scalar > 0, may be traced.

    Returns:
      [...], >= 0.

    Raises:
      ValueError: shapes that differ, beta <= 0. TypeError: arrays that are not floats.

    Source: Zhao et al. 2023 (SLiC-HF), arXiv:2305.10425; Liu et al. 2023 (RSO), arXiv:2309.06657.

    >>> import jax.numpy as jnp
    >>> zero = jnp.array(0.0)
    >>> print(f"{dpo_hinge(jnp.array(2.0), jnp.array(-1.0), zero, zero, beta=0.1):.4f}")
    0.7000
    """
    margin = _margin(
        chosen_log_probs,
        rejected_log_probs,
        reference_chosen_log_probs,
        reference_rejected_log_probs,
    )
    checks.positive(beta=beta)
    return jax.nn.relu(1 - beta * margin)


def ipo(
    chosen_log_probs: Responses,
    rejected_log_probs: Responses,
    reference_chosen_log_probs: Responses,
    reference_rejected_log_probs: Responses,
    *,
    beta: Scalar = 0.1,
) -> Losses:
    """Identity preference optimisation: a regression of the margin to 1 / (2 beta).

        L = ( c - r - 1 / (2 beta) )^2

    Newer versions of TRL divide the log-probabilities by the lengths of their responses before.

    Args:
      chosen_log_probs: floats [...]. Differentiated.
      rejected_log_probs: floats [...]. Differentiated.
      reference_chosen_log_probs: floats [...]. Stopped.
      reference_rejected_log_probs: floats [...]. Stopped.
      beta: scalar > 0, may be traced.

    Returns:
      [...], >= 0.

    Raises:
      ValueError: shapes that differ, beta <= 0. TypeError: arrays that are not floats.

    Source: Azar et al. 2023, arXiv:2310.12036.

    >>> import jax.numpy as jnp
    >>> zero = jnp.array(0.0)
    >>> print(f"{ipo(jnp.array(2.0), jnp.array(-1.0), zero, zero, beta=0.1):.4f}")
    4.0000
    """
    margin = _margin(
        chosen_log_probs,
        rejected_log_probs,
        reference_chosen_log_probs,
        reference_rejected_log_probs,
    )
    checks.positive(beta=beta)
    return (margin - 1 / (2 * beta)) ** 2


def kto_reference_point(
    log_probs: Responses,
    reference_log_probs: Responses,
    *,
    where: Bool[Array | ndarray, "*batch"] | None = None,
) -> Float[Array, ""]:
    """KTO's estimate of the KL between policy and reference, from mismatched pairs.

        z = max(0, mean_b( log pi(y_b' | x_b) - log ref(y_b' | x_b) ))

    where y_b' is the response to another prompt than x_b, as the next one's of the batch.

    Args:
      log_probs: floats [...], the policy's of the mismatched pairs. Stopped.
      reference_log_probs: floats [...]. Stopped.
      where: booleans [...]: the pairs that count.

    Returns:
      A scalar >= 0; 0 where no pair counts.

    Raises:
      ValueError: shapes that differ. TypeError: arrays that are not floats, a mask that is not
        boolean.

    Source: Ethayarajh et al. 2024, arXiv:2402.01306.

    >>> import jax.numpy as jnp
    >>> print(kto_reference_point(jnp.array([-1.0, -2.0]), jnp.array([-2.0, -2.5])))
    0.75
    """
    ratios = jax.lax.stop_gradient(
        _log_ratios("log_probs", log_probs, "reference_log_probs", reference_log_probs)
    )
    return jax.nn.relu(_mean(ratios, _pairs(where, ratios)))


def kto(
    log_probs: Responses,
    reference_log_probs: Responses,
    desirable: Bool[Array | ndarray, "*batch"],
    reference_point: Scalar,
    *,
    beta: Scalar = 0.1,
    desirable_weight: Scalar = 1.0,
    undesirable_weight: Scalar = 1.0,
) -> Losses:
    """Kahneman-Tversky optimisation: responses that are good or bad on their own, not in pairs.

        L = w_d (1 - sigmoid(beta (c - z)))   for a desirable response, c its log-ratio
        L = w_u (1 - sigmoid(beta (z - r)))   for an undesirable one, r its log-ratio

    Args:
      log_probs: floats [...]. Differentiated.
      reference_log_probs: floats [...]. Stopped.
      desirable: booleans [...].
      reference_point: z, scalar, of `kto_reference_point`. Stopped.
      beta: scalar > 0, may be traced.
      desirable_weight: scalar >= 0, may be traced.
      undesirable_weight: scalar >= 0, may be traced.

    Returns:
      [...], in [0, weight].

    Raises:
      ValueError: shapes that differ, beta <= 0, weights < 0. TypeError: arrays that are not floats,
        desirable that is not boolean.

    Source: Ethayarajh et al. 2024, arXiv:2402.01306.

    >>> import jax.numpy as jnp
    >>> ratios, desirable = jnp.array([2.0, -1.0]), jnp.array([True, False])
    >>> print(kto(ratios, jnp.zeros(2), desirable, jnp.array(0.0)).round(4))
    [0.4502 0.475 ]
    """
    ratios = _log_ratios("log_probs", log_probs, "reference_log_probs", reference_log_probs)
    desirable = checks.boolean("desirable", desirable, ratios.shape, "log_probs")
    checks.finite(reference_point=reference_point)
    checks.positive(beta=beta)
    checks.not_negative(desirable_weight=desirable_weight, undesirable_weight=undesirable_weight)
    gain = beta * (ratios - jax.lax.stop_gradient(reference_point))
    weight = jnp.where(desirable, desirable_weight, undesirable_weight)
    # 1 - sigmoid(x) = sigmoid(-x), without the cancellation.
    return weight * jax.nn.sigmoid(jnp.where(desirable, -gain, gain))


def kto_pair(
    chosen_log_probs: Float[Array | ndarray, " batch"],
    rejected_log_probs: Float[Array | ndarray, " batch"],
    reference_chosen_log_probs: Float[Array | ndarray, " batch"],
    reference_rejected_log_probs: Float[Array | ndarray, " batch"],
    *,
    beta: Scalar = 0.1,
    stop_reference_point: bool = True,
    where: Bool[Array | ndarray, " batch"] | None = None,
) -> Float[Array, "2 batch"]:
    """KTO on pairs, each side's reference point the mean log-ratio of the other side.

        L_1b = 1 - sigmoid( beta (c_b - max(mean r, 0)) )
        L_2b = 1 - sigmoid( beta (max(mean c, 0) - r_b) )

    The caller's mean over all 2 x batch is the published loss. It compares the examples of a
    batch. KTO stops the gradient in the two means, LLaVA-MoD does not:
    stop_reference_point=False.

    Args:
      chosen_log_probs: floats [batch]. Differentiated.
      rejected_log_probs: floats [batch]. Differentiated.
      reference_chosen_log_probs: floats [batch]. Stopped.
      reference_rejected_log_probs: floats [batch]. Stopped.
      beta: scalar > 0, may be traced.
      stop_reference_point: stop the gradient in the two means.
      where: booleans [batch]: the pairs that count. Elsewhere 0, also in the means.

    Returns:
      [2, batch], in [0, 1]: the losses of the chosen and of the rejected responses.

    Raises:
      ValueError: shapes that differ, beta <= 0. TypeError: arrays that are not floats, a mask that
        is not boolean.

    Source: Ethayarajh et al. 2024, arXiv:2402.01306; Shu et al. 2024 (LLaVA-MoD),
      arXiv:2408.15881.

    >>> import jax.numpy as jnp
    >>> zero = jnp.zeros(1)
    >>> print(f"{kto_pair(jnp.array([2.0]), jnp.array([-1.0]), zero, zero).mean():.4f}")
    0.4379
    """
    chosen, rejected = _pair(
        chosen_log_probs,
        rejected_log_probs,
        reference_chosen_log_probs,
        reference_rejected_log_probs,
        "batch",
    )
    checks.positive(beta=beta)
    where = _pairs(where, chosen)
    chosen, rejected = (jnp.where(where, x, 0.0) for x in (chosen, rejected))
    points = [jax.nn.relu(_mean(x, where)) for x in (rejected, chosen)]
    if stop_reference_point:
        points = jax.lax.stop_gradient(points)
    losses = jax.nn.sigmoid(beta * jnp.stack([points[0] - chosen, rejected - points[1]]))
    return jnp.where(where, losses, 0.0)


def _pair(
    chosen: Responses,
    rejected: Responses,
    reference_chosen: Responses,
    reference_rejected: Responses,
    axes: str = "...",
) -> tuple[Array, Array]:
    """The log-ratios of the chosen and of the rejected responses."""
    named = {
        "chosen_log_probs": chosen,
        "rejected_log_probs": rejected,
        "reference_chosen_log_probs": reference_chosen,
        "reference_rejected_log_probs": reference_rejected,
    }
    chosen, rejected, *reference = checks.shaped(dict.fromkeys(named, axes), **named)
    reference_chosen, reference_rejected = jax.lax.stop_gradient(reference)
    return chosen - reference_chosen, rejected - reference_rejected


def _margin(
    chosen: Responses,
    rejected: Responses,
    reference_chosen: Responses,
    reference_rejected: Responses,
) -> Array:
    chosen, rejected = _pair(chosen, rejected, reference_chosen, reference_rejected)
    return chosen - rejected


def _log_ratios(name: str, log_probs: Responses, other: str, reference: Responses) -> Array:
    named = {name: log_probs, other: reference}
    log_probs, reference = checks.shaped(dict.fromkeys(named, "..."), **named)
    return log_probs - jax.lax.stop_gradient(reference)


def _pairs(where: Array | None, values: Array) -> Array:
    if where is None:
        return jnp.ones(values.shape, bool)
    return checks.boolean("where", where, values.shape, "log-probabilities")


def _mean(values: Array, where: Array) -> Array:
    count = jnp.maximum(jnp.sum(where, dtype=values.dtype), 1)
    return jnp.sum(jnp.where(where, values, 0.0)) / count
