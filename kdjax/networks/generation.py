"""Sampling from decoders: one forward of the prompts, then one token a step, in one program."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from kdjax.networks.network import Network
from kdjax.networks.transformer import DecoderConfig, empty_cache, head, project

Variables = Mapping[str, Any]


class Generated(NamedTuple):
    """What `generate` returns, for B prompts of P places and at most N new tokens.

    Attributes:
      tokens: int32 [B, P + N], the prompts as they came, what was sampled, then zeros.
      completion: bool [B, P + N], what was sampled: a stop token counts, what follows it does not.
      log_probs: float32 [B, N], of the sampled tokens under the model at temperature 1 and before
        any truncation (of the mixture, where there is one); 0 outside the completion.
      truncated: bool [B], whether the sequence ended at N tokens without a stop token.
      corrected: bool [B, N], which tokens a `Corrector` put in the place of the model's own.
    """

    tokens: Int[Array, "batch total"]
    completion: Bool[Array, "batch total"]
    log_probs: Float[Array, "batch new"]
    truncated: Bool[Array, " batch"]
    corrected: Bool[Array, "batch new"]


class Mixture(NamedTuple):
    """A second decoder that is mixed in: `p = (1 - weight) p_model + weight p_other`.

    Attributes:
      network: the other decoder, over the same vocabulary.
      config: its config.
      variables: its variables.
      weight: in [0, 1]; may be traced.
    """

    network: Network
    config: DecoderConfig
    variables: Variables
    weight: float | Float[Array, ""]


class Corrector(NamedTuple):
    """A second decoder that replaces what it would not have said.

    A token of the model passes if it is among the other's `accept` most probable ones after the
    same text; else the other draws one in its place. To draft several tokens, judge them in one
    pass and go on from the first that is refused gives the same distribution.

    Attributes:
      network: the other decoder, over the same vocabulary.
      config: its config.
      variables: its variables.
      accept: K, in [1, V]; V: every token passes. Tokens as probable as the K-th pass too.
      temperature: at least 0, of its own draws; may be traced.
    """

    network: Network
    config: DecoderConfig
    variables: Variables
    accept: int
    temperature: float | Float[Array, ""] = 1.0


def generate(
    network: Network,
    config: DecoderConfig,
    variables: Variables,
    prompts: Int[Array, "batch prompt"],
    prompt_where: Bool[Array, "batch prompt"],
    rng: Key[Array, "*batch"],
    *,
    max_new_tokens: int,
    temperature: float | Float[Array, ""] = 1.0,
    top_k: int | None = None,
    top_p: float | Float[Array, ""] | None = None,
    stop: tuple[int, ...] = (),
    mixture: Mixture | None = None,
    corrector: Corrector | None = None,
) -> Generated:
    """Continues prompts: `y_t ~ truncate(softmax(log p(. | prompt, y_<t) / temperature))`.

    Nothing is differentiated. Compiles once for each network, shape, `max_new_tokens`, `top_k` and
    number of stop ids, and ends when all sequences have. A row's tokens depend on its prompt and
    its key alone: neither on the other rows nor on the padding.

    Args:
      network: a decoder (`transformer.Decoder`).
      config: its config.
      variables: its variables.
      prompts: int [B, P], ids in [0, V), left-padded: every prompt ends at the last place.
      prompt_where: bool [B, P], which places hold a prompt. A row without any gets no completion.
      rng: a key, from which row b draws with `fold_in(rng, b)`; or keys [B], one a row, where the
        draw is to follow the example and not its place in the batch.
      max_new_tokens: N, at least 1.
      temperature: at least 0; 0 takes the most probable token.
      top_k: only the k most probable tokens. None: all.
      top_p: only the most probable tokens that together reach the probability p in (0, 1], at least
        one; of the distribution that temperature and `top_k` leave. None: all.
      stop: ids that end a sequence.
      mixture: a second decoder whose distribution is mixed in, before temperature and truncation.
      corrector: a second decoder, instead of `mixture`; `top_k` and `top_p` are of its draws too.

    Returns:
      A `Generated`.

    Raises:
      TypeError: tokens, mask or keys of another type.
      ValueError: shapes that do not fit; P + N above `max_length` of a config; a value out of
        range; a prompt that does not end at the last place (where the mask's values are known; a
        traced one counts as a row without a prompt).

    Nucleus sampling: Holtzman et al. 2020 (arXiv:1904.09751). Mixing the teacher in: Gu et al. 2024
    (arXiv:2306.08543), section 2.2. Letting it correct: Xu et al. 2024 (arXiv:2410.11325).

    >>> from kdjax.networks import DecoderConfig, build
    >>> options = {"width": 8, "num_layers": 1, "num_heads": 2, "hidden": 8}
    >>> decoder, config = build("decoder", 11, **options), DecoderConfig(vocabulary=11, **options)
    >>> prompts, where, rng = jnp.array([[3, 1, 4]]), jnp.ones((1, 3), bool), jax.random.key(0)
    >>> def sample(variables):
    ...     return generate(decoder, config, variables, prompts, where, rng, max_new_tokens=2)
    >>> jax.eval_shape(sample, jax.eval_shape(decoder.init, rng, prompts)).tokens.shape
    (1, 5)
    """
    _check(config, prompts, prompt_where, max_new_tokens)
    _check_second(config, prompts, max_new_tokens, mixture, corrector)
    _check_sampling(config, temperature, top_k, top_p, stop)
    batch = prompts.shape[0]
    if not jnp.issubdtype(rng.dtype, jax.dtypes.prng_key):
        raise TypeError(f"rng must be made by jax.random.key, got an array of dtype {rng.dtype}")
    if rng.shape not in ((), (batch,)):
        raise ValueError(f"rng must be one key or one a prompt, [{batch}], got shape {rng.shape}")
    if rng.ndim == 0:
        rng = jax.vmap(jax.random.fold_in, (None, 0))(rng, jnp.arange(batch))
    models, weight, correction = [(network, config)], None, None
    all_variables, second = [variables], mixture or corrector
    if second is not None:
        models.append((second.network, second.config))
        all_variables.append(second.variables)
    if mixture is not None:
        weight = jnp.asarray(mixture.weight, jnp.float32)
    if corrector is not None:
        correction = jnp.asarray(corrector.temperature, jnp.float32)
    return _generate(
        tuple(models),
        jax.lax.stop_gradient(tuple(all_variables)),
        jnp.asarray(prompts, jnp.int32),
        jnp.asarray(prompt_where),
        rng,
        jax.lax.stop_gradient(jnp.asarray(temperature, jnp.float32)),
        jax.lax.stop_gradient(weight),
        jax.lax.stop_gradient(correction),
        None if top_p is None else jnp.float32(top_p),
        jnp.array(stop, jnp.int32),
        max_new_tokens=max_new_tokens,
        top_k=top_k,
        accept=None if corrector is None else corrector.accept,
    )


@functools.partial(jax.jit, static_argnames=("models", "max_new_tokens", "top_k", "accept"))
def _generate(
    models,
    variables,
    prompts,
    where,
    keys,
    temperature,
    weight,
    correction,
    top_p,
    stop,
    *,
    max_new_tokens,
    top_k,
    accept,
):
    batch, length = prompts.shape
    steps = max_new_tokens

    def forward(tokens, positions, segments, caches):
        """Log-probabilities of the token after the last one, [B, V], one a source of tokens, and
        the new caches."""
        log_probs, updated = [], []
        for (network, config), own, cache in zip(models, variables, caches):
            output = network.apply(own, tokens, positions, segments, cache).output
            logits = project(output["features"][:, -1], head(own), config.logit_softcap)
            log_probs.append(jax.nn.log_softmax(logits.astype(jnp.float32)))
            updated.append(output["cache"])
        if weight is None:
            return log_probs, updated
        # log1p(-1) and log(0) are -inf, which logaddexp takes as a weight of 0.
        mixed = jnp.logaddexp(log_probs[0] + jnp.log1p(-weight), log_probs[1] + jnp.log(weight))
        return [mixed], updated

    def sample(step, log_probs, state):
        """The state with the token of that step."""
        step_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, step)
        draws, (own, *other) = jax.vmap(draw, (0, 0, None, None, None)), log_probs
        token, corrected = draws(step_keys, own, temperature, top_k, top_p), jnp.zeros(batch, bool)
        active = ~state["done"]
        if accept is not None:
            (judge,) = other
            corrected = (judge > _at(judge, token)[:, None]).sum(-1) >= accept
            other_keys = jax.vmap(jax.random.fold_in, (0, None))(step_keys, 0)
            replacement = draws(other_keys, judge, correction, top_k, top_p)
            token = jnp.where(corrected, replacement, token)
        chosen = _at(own, token)
        stopped = (token[:, None] == stop).any(-1)
        return {
            "tokens": state["tokens"].at[:, step].set(jnp.where(active, token, 0)),
            "completion": state["completion"].at[:, step].set(active),
            "log_probs": state["log_probs"].at[:, step].set(jnp.where(active, chosen, 0)),
            "corrected": state["corrected"].at[:, step].set(active & corrected),
            "done": state["done"] | stopped,
        }

    has_prompt = where[:, -1]
    where = where & has_prompt[:, None]
    lengths = where.sum(-1, dtype=jnp.int32)
    caches = [empty_cache(config, batch, length + steps) for _, config in models]
    positions = jnp.maximum(jnp.cumsum(where, -1, dtype=jnp.int32) - 1, 0)
    log_probs, caches = forward(prompts, positions, where.astype(jnp.int32), caches)
    state = sample(
        0,
        log_probs,
        {
            "tokens": jnp.zeros((batch, steps), jnp.int32),
            "completion": jnp.zeros((batch, steps), bool),
            "log_probs": jnp.zeros((batch, steps), jnp.float32),
            "corrected": jnp.zeros((batch, steps), bool),
            "done": ~has_prompt,
        },
    )

    def unfinished(carry):
        step, state, _ = carry
        return (step < steps) & ~state["done"].all()

    def advance(carry):
        step, state, caches = carry
        previous = jax.lax.dynamic_slice_in_dim(state["tokens"], step - 1, 1, axis=1)
        segments = (~state["done"])[:, None].astype(jnp.int32)
        log_probs, caches = forward(previous, (lengths + step - 1)[:, None], segments, caches)
        return step + 1, sample(step, log_probs, state), caches

    _, state, _ = jax.lax.while_loop(unfinished, advance, (1, state, caches))
    return Generated(
        jnp.concatenate([prompts, state["tokens"]], axis=1),
        jnp.concatenate([jnp.zeros_like(where), state["completion"]], axis=1),
        state["log_probs"],
        ~state["done"],
        state["corrected"],
    )


def _at(log_probs: jax.Array, tokens: jax.Array) -> jax.Array:
    """Those of one token a row, [B]."""
    return jnp.take_along_axis(log_probs, tokens[:, None], -1)[:, 0]


def draw(
    rng: Key[Array, ""],
    log_probs: Float[Array, " vocabulary"],
    temperature: float | Float[Array, ""] = 1.0,
    top_k: int | None = None,
    top_p: float | Float[Array, ""] | None = None,
) -> Int[Array, ""]:
    """One token from `truncate(softmax(log_probs / temperature))`.

    The Gumbel-max form, `argmax(log_probs + temperature * gumbel)`, in which a temperature of 0,
    traced or not, takes the most probable token.

    Args:
      rng: a key.
      log_probs: float [V], up to a constant; -inf is never drawn.
      temperature: at least 0.
      top_k: only the k most probable.
      top_p: of those, the fewest most probable whose probability reaches p.

    Returns:
      int32, in [0, V).

    >>> int(draw(jax.random.key(0), jnp.log(jnp.array([0.1, 0.6, 0.3])), top_p=0.5))
    1
    """
    ids = None
    if top_k is not None or top_p is not None:
        log_probs, ids = jax.lax.top_k(log_probs, top_k or log_probs.shape[-1])
    if top_p is not None:
        # The largest comes first: its quotient is 0, whatever the temperature.
        cold = jnp.finfo(log_probs.dtype).tiny
        scaled = (log_probs - log_probs[0]) / jnp.maximum(temperature, cold)
        probabilities = jax.nn.softmax(scaled)
        before = jnp.cumsum(probabilities) - probabilities
        # At p = 1 rounding alone would decide over the last ones.
        log_probs = jnp.where((before < top_p) | (top_p >= 1), log_probs, -jnp.inf)
    noise = jax.random.gumbel(rng, log_probs.shape, log_probs.dtype)
    place = jnp.argmax(log_probs + temperature * noise).astype(jnp.int32)
    return place if ids is None else ids[place]


def _check(config, prompts, prompt_where, max_new_tokens):
    if not jnp.issubdtype(prompts.dtype, jnp.integer):
        raise TypeError(f"prompts must be integers, got dtype {prompts.dtype}")
    if prompts.ndim != 2 or 0 in prompts.shape:
        raise ValueError(f"prompts must be shaped [batch, prompt], got shape {prompts.shape}")
    if prompt_where.dtype != jnp.bool_:
        raise TypeError(f"prompt_where must be boolean, got dtype {prompt_where.dtype}")
    if prompt_where.shape != prompts.shape:
        raise ValueError(
            f"prompt_where must have the shape {prompts.shape} of prompts, got {prompt_where.shape}"
        )
    _check_count("max_new_tokens", max_new_tokens)
    _check_length("config", config, prompts, max_new_tokens)
    if not isinstance(prompt_where, jax.core.Tracer):
        known = np.asarray(prompt_where)
        # Once a prompt has begun it goes on to the last place.
        gaps = np.flatnonzero((known[:, :-1] & ~known[:, 1:]).any(-1))
        if gaps.size:
            raise ValueError(
                "prompts must be left-padded, but prompt_where has False after True in row "
                f"{gaps[0]}"
            )


def _check_length(name, config, prompts, max_new_tokens):
    if prompts.shape[1] > config.max_length - max_new_tokens:
        raise ValueError(
            f"prompts must be at most max_length - max_new_tokens = {config.max_length} - "
            f"{max_new_tokens} long ({name}), got {prompts.shape[1]}"
        )


def _check_second(config, prompts, max_new_tokens, mixture, corrector):
    if mixture is not None and corrector is not None:
        raise ValueError("mixture and corrector must not both be given")
    for name, second in (("mixture", mixture), ("corrector", corrector)):
        if second is None:
            continue
        _check_length(f"{name}.config", second.config, prompts, max_new_tokens)
        if second.config.vocabulary != config.vocabulary:
            raise ValueError(
                f"{name} must have the vocabulary {config.vocabulary} of config, "
                f"got {second.config.vocabulary}"
            )
    weight = None if mixture is None else _known(mixture.weight)
    if weight is not None and not 0 <= weight <= 1:
        raise ValueError(f"mixture.weight must be in [0, 1], got {weight}")
    if corrector is not None:
        _check_count("corrector.accept", corrector.accept, config.vocabulary)
        _check_temperature("corrector.temperature", corrector.temperature)


def _check_temperature(name, temperature):
    known = _known(temperature)
    if known is not None and not 0 <= known < np.inf:
        raise ValueError(f"{name} must be finite and at least 0, got {known}")


def _check_sampling(config, temperature, top_k, top_p, stop):
    _check_temperature("temperature", temperature)
    if top_k is not None:
        _check_count("top_k", top_k, config.vocabulary)
    known = None if top_p is None else _known(top_p)
    if known is not None and not 0 < known <= 1:
        raise ValueError(f"top_p must be in (0, 1], got {top_p}")
    for token in stop:
        if not 0 <= token < config.vocabulary:
            raise ValueError(f"stop ids must be in [0, {config.vocabulary}), got {token}")


def _check_count(name, value, vocabulary=None):
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a positive integer, got {value!r}")
    if vocabulary is not None and value > vocabulary:
        raise ValueError(f"{name} must be at most the vocabulary, {vocabulary}, got {value}")


def _known(value) -> float | None:
    """The number, or None while it is traced."""
    return None if isinstance(value, jax.core.Tracer) else float(value)
