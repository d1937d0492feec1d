"""Where the sequences that a language model is taught on come from: data, a model, or a buffer.

A row of prompt and answer has a fixed place `prompt_length` where the answer begins: the prompt is
left-padded up to it, the answer right-padded after it. So a row from the data and one that a model
wrote have the same shape, and which of them a step sees may be decided on the device.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from kdjax.methods.language_task import decoder
from kdjax.networks.generation import Corrector, Mixture, generate
from kdjax.networks.transformer import DecoderConfig

Batch = Mapping[str, jax.Array]
ROW = ("tokens", "completion", "segments", "positions")


class Rollout(NamedTuple):
    """A batch whose answers a model wrote.

    Attributes:
      batch: as it came, with new `tokens`, `completion`, `segments`, `positions`.
      log_probs: `[B, N]`, of the sampled tokens under the sampler at temperature 1; 0 elsewhere.
      truncated: bool `[B]`, the answer ended at the limit, without a stop token.
      corrected: bool `[B, N]`, tokens that a corrector put in the place of the writer's.
    """

    batch: Batch
    log_probs: jax.Array
    truncated: jax.Array
    corrected: jax.Array


def roll_out(
    config: DecoderConfig,
    variables: Any,
    batch: Batch,
    rng: jax.Array,
    *,
    prompt_length: int,
    stop: tuple[int, ...],
    temperature: float | jax.Array = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    mixture: Mixture | None = None,
    corrector: Corrector | None = None,
) -> Rollout:
    """Answers the prompts of a batch. Nothing is differentiated.

    What a row is answered depends on `rng`, its `id` and its prompt alone: not on the batch it is
    in, nor on the number of devices.

    Args:
      config, variables: of the decoder that writes.
      batch: `tokens` `[B, L]`, `segments` (0: padding), `id` `[B]`, `where` `[B]`.
      rng: a key.
      prompt_length: the place where answers begin, in [1, L).
      stop: ids that end an answer.
      temperature, top_k, top_p, mixture, corrector: as of `generate`.

    Raises:
      ValueError: a `prompt_length` outside [1, L).
    """
    tokens = batch["tokens"]
    if not 1 <= prompt_length < tokens.shape[1]:
        raise ValueError(
            f"prompt_length must be in [1, {tokens.shape[1]}), the rows' length, "
            f"got {prompt_length}"
        )
    prompt = batch["segments"][:, :prompt_length] > 0
    found = generate(
        decoder(config),
        config,
        variables,
        tokens[:, :prompt_length],
        prompt,
        jax.vmap(jax.random.fold_in, (None, 0))(rng, batch["id"]),
        max_new_tokens=tokens.shape[1] - prompt_length,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        stop=stop,
        mixture=mixture,
        corrector=corrector,
    )
    completion = found.completion & batch["where"][:, None]
    seen = jnp.concatenate([prompt, completion[:, prompt_length:]], axis=1)
    written = {
        "tokens": found.tokens,
        "completion": completion,
        "segments": seen.astype(jnp.int32),
        "positions": jnp.maximum(jnp.cumsum(seen, axis=1, dtype=jnp.int32) - 1, 0),
    }
    return Rollout({**batch, **written}, found.log_probs, found.truncated, found.corrected)


def empty_buffer(batch: Batch, capacity: int) -> dict[str, jax.Array]:
    """A buffer of `capacity` rows like those of a batch, none of them written.

    >>> row = {name: jnp.ones((2, 4), jnp.int32) for name in ROW}
    >>> empty_buffer(row, 8)["tokens"].shape
    (8, 4)
    """
    if capacity < 1:
        raise ValueError(f"capacity must be at least 1, got {capacity}")
    rows = {n: jnp.zeros((capacity, *batch[n].shape[1:]), batch[n].dtype) for n in ROW}
    return {**rows, "written": jnp.int32(0)}


def push(buffer: Mapping[str, jax.Array], batch: Batch) -> dict[str, jax.Array]:
    """The buffer with the rows of a batch, in the place of the oldest ones.

    Raises:
      ValueError: more rows than the buffer has places.
    """
    capacity, rows = buffer["tokens"].shape[0], batch["tokens"].shape[0]
    if rows > capacity:
        raise ValueError(f"a buffer of {capacity} rows cannot take a batch of {rows}")
    places = (buffer["written"] + jnp.arange(rows)) % capacity
    new = {n: buffer[n].at[places].set(batch[n].astype(buffer[n].dtype)) for n in ROW}
    return {**new, "written": buffer["written"] + rows}


def draw(buffer: Mapping[str, jax.Array], batch: Batch, rng: jax.Array) -> dict[str, jax.Array]:
    """The batch with rows drawn from those written so far, with replacement.

    From a buffer without rows the batch comes back as it was.
    """
    capacity, rows = buffer["tokens"].shape[0], batch["tokens"].shape[0]
    held = jnp.minimum(buffer["written"], capacity)
    places = jax.random.randint(rng, (rows,), 0, jnp.maximum(held, 1))
    return {**batch, **{n: jnp.where(held > 0, buffer[n][places], batch[n]) for n in ROW}}
