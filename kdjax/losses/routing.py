"""Losses that keep a router or a gate in order: balance among experts, small logits, sparsity.

Router logits are [..., tokens, experts], a group of tokens after another; a token goes to the
experts of the largest logits (ties: the lowest index). Which ones are chosen has no gradient: it
flows through the probabilities. The balance losses are one value a group, and their mean over the
groups is the published loss. Hard-concrete gates follow at the end.
"""

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtr
from jaxtyping import Array, Bool, Float
from numpy import ndarray

from kdjax.losses import checks, log_space
from kdjax.losses.checks import Scalar

GroupLogits = Float[Array | ndarray, "*groups tokens experts"]
GroupMask = Bool[Array | ndarray, "*groups tokens"]
GroupLosses = Float[Array, "*groups"]

# The hard-concrete distribution of Louizos et al.: temperature, and the ends of the stretched
# interval.
_GATE_TEMPERATURE = 2 / 3
_GATE_LOW, _GATE_HIGH = -0.1, 1.1


def switch_balance(
    router_logits: GroupLogits, *, num_selected: int = 1, where: GroupMask | None = None
) -> GroupLosses:
    """The balance loss of Switch Transformers: shares of tokens times mean probabilities.

        L = E sum_e f_e m_e
        f_e = share of the group's tokens that choose expert e,   m_e = mean probability of e

    With k experts a token f sums to k. The value is k at uniform probabilities, E where every
    token puts everything on one expert. GShard's l_aux = 1/E sum_e f_e m_e is this over E^2, but
    its code, and V-MoE's, has this scale.

    Args:
      router_logits: floats [..., tokens, experts]. Differentiated, through m alone.
      num_selected: k, experts a token, from 1 to experts.
      where: booleans [..., tokens]; False tokens take no part. 0 in a group without any.

    Returns:
      [...], one value a group.

    Raises:
      ValueError: shapes that do not fit, more experts selected than there are.
      TypeError: logits that are not floats, a mask that is not boolean.

    Source: Fedus et al. 2021, arXiv:2101.03961, equation 4; Lepikhin et al. 2020 (GShard),
      arXiv:2006.16668.

    >>> import jax.numpy as jnp
    >>> logits = jnp.array([[2.0, 0.0], [2.0, 0.0], [0.0, 2.0], [2.0, 0.0]])
    >>> print(f"{switch_balance(logits):.4f}")
    1.1904
    """
    router_logits, where = _tokens(router_logits, where)
    num_experts = router_logits.shape[-1]
    checks.count(1, num_experts, num_selected=num_selected)
    share = _mean(_selected(router_logits, num_selected), where)
    mean_probability = _mean(_probabilities(router_logits), where)
    return num_experts * jnp.sum(share * mean_probability, axis=-1)


def mixtral_balance(
    router_logits: Float[Array | ndarray, "*tokens experts"],
    *,
    num_selected: int = 2,
    where: Bool[Array | ndarray, "*tokens"] | None = None,
) -> Float[Array, ""]:
    """The balance loss of Mixtral's code: `switch_balance` with all tokens in one group.

        L = E sum_e f_e m_e,   f and m over all tokens of all leading axes

    Stack the layers' logits to pool them before f and m are multiplied, as the code does.

    Args:
      router_logits: floats [..., experts], layers, batch and positions leading. Differentiated,
        through m alone.
      num_selected: k, experts a token, from 1 to experts.
      where: booleans [...]; False tokens take no part. 0 if all are.

    Returns:
      Scalar; k at uniform probabilities.

    Raises:
      ValueError: shapes that do not fit, more experts selected than there are.
      TypeError: logits that are not floats, a mask that is not boolean.

    Source: Jiang et al. 2024 (Mixtral), arXiv:2401.04088; Fedus et al. 2021, arXiv:2101.03961.

    >>> import jax.numpy as jnp
    >>> print(f"{mixtral_balance(jnp.zeros((3, 5, 4)), num_selected=2):.4f}")
    2.0000
    """
    (router_logits,) = checks.shaped({"router_logits": "... experts"}, router_logits=router_logits)
    if where is not None:
        where = checks.boolean("where", where, router_logits.shape[:-1], "the tokens").reshape(-1)
    tokens = router_logits.reshape(-1, router_logits.shape[-1])
    return switch_balance(tokens, num_selected=num_selected, where=where)


def router_z_loss(
    router_logits: Float[Array | ndarray, "*tokens experts"],
    *,
    where: Bool[Array | ndarray, "*tokens"] | None = None,
) -> Float[Array, "*tokens"]:
    """ST-MoE's z-loss: keeps the router's logits small.

        L = (log sum_e exp(logits_e))^2

    Args:
      router_logits: floats [..., experts]. Differentiated.
      where: booleans [...]; False tokens have loss 0.

    Returns:
      [...], one value a token, >= 0. Their mean is the published loss.

    Raises:
      ValueError: shapes that do not fit.
      TypeError: logits that are not floats, a mask that is not boolean.

    Source: Zoph et al. 2022 (ST-MoE), arXiv:2202.08906, equation 5.

    >>> import jax.numpy as jnp
    >>> print(f"{router_z_loss(jnp.zeros(4)):.4f}")
    1.9218
    """
    (router_logits,) = checks.shaped({"router_logits": "... experts"}, router_logits=router_logits)
    if where is not None:
        where = checks.boolean("where", where, router_logits.shape[:-1], "the tokens")
        router_logits = jnp.where(where[..., None], router_logits, 0.0)
    loss = log_space.logsumexp(router_logits) ** 2
    return loss if where is None else jnp.where(where, loss, 0.0)


def importance_loss(router_logits: GroupLogits, *, where: GroupMask | None = None) -> GroupLosses:
    """V-MoE's importance loss: the squared coefficient of variation of the experts' probability.

        L = var_e(I_e) / mean_e(I_e)^2,   I_e = sum over tokens of softmax(logits)_e

    with the population variance. `load_balancing_loss` with "cv" is its root, with the unbiased
    variance.

    Args:
      router_logits: floats [..., tokens, experts], without noise. Differentiated.
      where: booleans [..., tokens]; False tokens take no part. 0 in a group without any.

    Returns:
      [...], one value a group, in [0, experts - 1].

    Raises:
      ValueError: shapes that do not fit.
      TypeError: logits that are not floats, a mask that is not boolean.

    Source: Riquelme et al. 2021 (V-MoE), arXiv:2106.05974, appendix A; Shazeer et al. 2017,
      arXiv:1701.06538.

    >>> import jax.numpy as jnp
    >>> logits = jnp.array([[2.0, 0.0], [2.0, 0.0], [0.0, 2.0], [2.0, 0.0]])
    >>> print(f"{importance_loss(logits):.4f}")
    0.1450
    """
    router_logits, where = _tokens(router_logits, where)
    return _squared_variation(_mean(_probabilities(router_logits), where))


def load_loss(
    router_logits: GroupLogits,
    noise: GroupLogits,
    *,
    noise_scale: Scalar,
    num_selected: int = 1,
    where: GroupMask | None = None,
) -> GroupLosses:
    """V-MoE's load loss: the squared coefficient of variation of the experts' expected load.

        l' = l + s noise,   threshold = the k-th largest l' of a token
        p_e = 1 - Phi((threshold - l_e) / s),   L = var_e / mean_e^2 of the tokens' mean of p_e

    p_e is the chance of expert e to be among the k if its own noise were drawn again.

    Args:
      router_logits: l, floats [..., tokens, experts], without noise. Differentiated, through the
        threshold too.
      noise: standard normal floats [..., tokens, experts], those the router used. Stopped.
      noise_scale: s, scalar > 0, may be traced. V-MoE's is its noise_std / experts.
      num_selected: k, experts a token, from 1 to experts.
      where: booleans [..., tokens]; False tokens take no part. 0 in a group without any.

    Returns:
      [...], one value a group, in [0, experts - 1].

    Raises:
      ValueError: shapes that do not fit, noise_scale <= 0, more experts selected than there are.
      TypeError: arrays that are not floats, a mask that is not boolean.

    Source: Riquelme et al. 2021 (V-MoE), arXiv:2106.05974, appendix A; Shazeer et al. 2017,
      arXiv:1701.06538.

    >>> import jax.numpy as jnp
    >>> logits = jnp.array([[1.0, 0.0], [1.0, 0.0]])
    >>> print(f"{load_loss(logits, jnp.zeros((2, 2)), noise_scale=0.5):.4f}")
    0.8335
    """
    router_logits, noise = checks.shaped(
        {"router_logits": "... tokens experts", "noise": "... tokens experts"},
        router_logits=router_logits,
        noise=noise,
    )
    router_logits, where = _tokens(router_logits, where)
    checks.positive(noise_scale=noise_scale)
    checks.count(1, router_logits.shape[-1], num_selected=num_selected)
    noise = jnp.where(where[..., None], jax.lax.stop_gradient(noise), 0.0)
    noisy = router_logits + noise_scale * noise
    threshold = jax.lax.top_k(noisy, num_selected)[0][..., -1:]
    return _squared_variation(_mean(ndtr((router_logits - threshold) / noise_scale), where))


def load_balancing_loss(
    gate_probs: GroupLogits,
    *,
    mode: str = "kl",
    divide_by_experts: bool = True,
    where: GroupMask | None = None,
) -> GroupLosses:
    """MST-Distill's balance of a gate among teachers: its mean probabilities against uniform.

        p = mean over the batch of gate_probs
        "kl":  KL(uniform || p) / M = 1/M sum_m 1/M (log(1/M) - log p_m)
        "cv":  std_m(p) / mean_m(p), unbiased

    The division by M of "kl" is a by-product of the authors' code, whose reduction takes the vector
    p for a batch.

    Args:
      gate_probs: floats [..., batch, experts] >= 0, rows that sum to 1. Differentiated.
      mode: "kl" or "cv".
      divide_by_experts: of "kl": False gives KL(uniform || p).
      where: booleans [..., batch]; False rows take no part. 0 without any.

    Returns:
      [...], one value a group, >= 0. "kl" takes probabilities below 1e-12 for 1e-12.

    Raises:
      ValueError: shapes that do not fit, "cv" with one expert, an unknown mode.
      TypeError: probabilities that are not floats, a mask that is not boolean.

    Source: MST-Distill, Li et al. 2025, arXiv:2507.07015.

    >>> import jax.numpy as jnp
    >>> print(f"{load_balancing_loss(jnp.array([[0.9, 0.1], [0.7, 0.3]]), mode='cv'):.4f}")
    0.8485
    """
    checks.choice("mode", mode, ("kl", "cv"))
    least = 2 if mode == "cv" else 1
    (gate_probs,) = checks.shaped(
        {"gate_probs": f"... batch experts>={least}"}, gate_probs=gate_probs
    )
    if where is None:
        where = jnp.ones(gate_probs.shape[:-1], bool)
    where = checks.boolean("where", where, gate_probs.shape[:-1], "the rows of gate_probs")
    some = jnp.any(where, axis=-1)
    num_experts = gate_probs.shape[-1]
    mean = _mean(jnp.where(where[..., None], gate_probs, 0.0), where)
    if mode == "kl":
        log_mean = jnp.log(jnp.maximum(jnp.where(some[..., None], mean, 1 / num_experts), 1e-12))
        loss = -jnp.mean(log_mean + jnp.log(num_experts), axis=-1)
        return loss / num_experts if divide_by_experts else loss
    square = _squared_variation(mean) * num_experts / (num_experts - 1)
    even = square == 0
    return jnp.where(even, 0.0, jnp.sqrt(jnp.where(even, 1.0, square)))


def l0_gate(
    log_alpha: Float[Array | ndarray, "*gates"], uniform: Float[Array | ndarray, "*gates"]
) -> Float[Array, "*gates"]:
    """A hard-concrete gate: a random number in [0, 1] that is often exactly 0 or 1.

        s = sigmoid( (log u - log(1 - u) + log_alpha) / (2/3) )
        z = clip(1.2 s - 0.1, 0, 1)

    The gradient in log_alpha is that of the sample, 0 where it was clipped.

    Args:
      log_alpha: floats [...]. Differentiated.
      uniform: floats [...], drawn uniformly from (0, 1) (the authors': [1e-6, 1 - 1e-6]). Stopped.

    Returns:
      [...], in [0, 1].

    Raises:
      ValueError: shapes that differ. TypeError: arrays that are not floats.

    Source: Louizos et al. 2018, arXiv:1712.01312; used by TinyCLIP, Wu et al. 2023,
      arXiv:2309.12314.

    >>> import jax.numpy as jnp
    >>> print(l0_gate(jnp.array([-9.0, 0.0, 9.0]), jnp.array([0.5, 0.5, 0.5])))
    [0.  0.5 1. ]
    """
    log_alpha, uniform = checks.shaped(
        {"log_alpha": "...", "uniform": "..."}, log_alpha=log_alpha, uniform=uniform
    )
    uniform = jax.lax.stop_gradient(uniform)
    logistic = jnp.log(uniform) - jnp.log1p(-uniform)
    stretched = jax.nn.sigmoid((logistic + log_alpha) / _GATE_TEMPERATURE)
    return jnp.clip(stretched * (_GATE_HIGH - _GATE_LOW) + _GATE_LOW, 0.0, 1.0)


def l0_open_probability(log_alpha: Float[Array | ndarray, "*gates"]) -> Float[Array, "*gates"]:
    """The probability that a hard-concrete gate is not 0.

        P(z > 0) = sigmoid( log_alpha - 2/3 log(0.1 / 1.1) )

    Args:
      log_alpha: floats [...]. Differentiated.

    Returns:
      [...], in [0, 1].

    Raises:
      TypeError: log_alpha that is not floats.

    Source: Louizos et al. 2018, arXiv:1712.01312.

    >>> import jax.numpy as jnp
    >>> print(f"{l0_open_probability(jnp.array(0.0)):.4f}")
    0.8318
    """
    (log_alpha,) = checks.shaped({"log_alpha": "..."}, log_alpha=log_alpha)
    return jax.nn.sigmoid(log_alpha - _GATE_TEMPERATURE * jnp.log(-_GATE_LOW / _GATE_HIGH))


def l0_expected_sparsity(
    log_alpha: Float[Array | ndarray, "*gates"], sizes: Float[Array | ndarray, "*gates"]
) -> Float[Array, ""]:
    """The share of the parameters behind gates that is expected to be cut.

        1 - sum_i n_i P(z_i > 0) / sum_i n_i

    Args:
      log_alpha: floats [...]. Differentiated.
      sizes: n, floats [...] >= 0: the parameters behind each gate (counts; ones for the share of
        gates). Stopped.

    Returns:
      Scalar in [0, 1].

    Raises:
      ValueError: shapes that differ. TypeError: arrays that are not floats.

    Source: Louizos et al. 2018, arXiv:1712.01312; Wu et al. 2023 (TinyCLIP), arXiv:2309.12314.

    >>> import jax.numpy as jnp
    >>> print(f"{l0_expected_sparsity(jnp.array([-9.0, 9.0]), jnp.array([1.0, 3.0])):.4f}")
    0.2499
    """
    log_alpha, sizes = checks.shaped(
        {"log_alpha": "...", "sizes": "..."}, log_alpha=log_alpha, sizes=sizes
    )
    sizes = jax.lax.stop_gradient(sizes)
    total = jnp.maximum(jnp.sum(sizes), jnp.finfo(sizes.dtype).tiny)
    return jnp.sum(sizes * (1 - l0_open_probability(log_alpha))) / total


def sparsity_penalty(
    expected_sparsity: Float[Array | ndarray, ""],
    multipliers: Float[Array | ndarray, "2"],
    *,
    target: Scalar,
) -> Float[Array, ""]:
    """TinyCLIP's Lagrangian of a sparsity that falls short of its target.

        gap = max(target - expected_sparsity, 0),   L = l_1 gap + l_2 gap^2

    The multipliers are trained to raise L: negate their gradient (the authors start both at 10).
    The target grows linearly in training.

    Args:
      expected_sparsity: scalar, of `l0_expected_sparsity`. Differentiated.
      multipliers: (l_1, l_2), floats [2]. Differentiated.
      target: scalar in [0, 1], may be traced.

    Returns:
      Scalar; 0 once the target is reached.

    Raises:
      ValueError: shapes that do not fit, a target outside [0, 1]. TypeError: arrays not of floats.

    Source: Wu et al. 2023 (TinyCLIP), arXiv:2309.12314; Wang et al. 2020, arXiv:1910.04732.

    >>> import jax.numpy as jnp
    >>> print(f"{sparsity_penalty(jnp.array(0.05), jnp.array([10.0, 10.0]), target=0.25):.4f}")
    2.4000
    """
    expected_sparsity, multipliers = checks.shaped(
        {"expected_sparsity": "", "multipliers": "two"},
        expected_sparsity=expected_sparsity,
        multipliers=multipliers,
    )
    if multipliers.shape != (2,):
        raise ValueError(f"multipliers must be two numbers, got shape {multipliers.shape}")
    checks.fraction(target=target)
    gap = jnp.maximum(target - expected_sparsity, 0.0)
    return multipliers[0] * gap + multipliers[1] * gap**2


def _tokens(router_logits: Array, where: Array | None) -> tuple[Array, Array]:
    """Logits with tokens that take no part at 0, and the mask."""
    (router_logits,) = checks.shaped(
        {"router_logits": "... tokens experts"}, router_logits=router_logits
    )
    if where is None:
        where = jnp.ones(router_logits.shape[:-1], bool)
    where = checks.boolean("where", where, router_logits.shape[:-1], "the tokens")
    return jnp.where(where[..., None], router_logits, 0.0), where


def _probabilities(router_logits: Array) -> Array:
    return jnp.exp(log_space.safe_log_softmax(router_logits))


def _selected(router_logits: Array, num_selected: int) -> Array:
    """1 for the experts a token chooses, 0 for the others: [..., tokens, experts]."""
    chosen = jax.lax.top_k(jax.lax.stop_gradient(router_logits), num_selected)[1]
    num_experts = router_logits.shape[-1]
    return jnp.sum(jax.nn.one_hot(chosen, num_experts, dtype=router_logits.dtype), axis=-2)


def _mean(values: Array, where: Array) -> Array:
    """Mean over the tokens that take part: [..., tokens, experts] -> [..., experts]."""
    count = jnp.maximum(jnp.sum(where, axis=-1, keepdims=True), 1)
    return jnp.sum(jnp.where(where[..., None], values, 0.0), axis=-2) / count


def _squared_variation(values: Array) -> Array:
    """var / mean^2 over the last axis; 0 where the mean is."""
    mean = jnp.mean(values, axis=-1, keepdims=True)
    zero = mean == 0
    return jnp.mean((jnp.where(zero, 0.0, values) / jnp.where(zero, 1.0, mean) - ~zero) ** 2, -1)
