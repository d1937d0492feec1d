"""One decoder-only transformer, which its config makes a Llama, SmolLM2, Qwen or Gemma-3.

Pre-norm blocks `x += attention(norm(x))`, `x += down(activation(gate(norm(x))) * up(norm(x)))` with
RMS normalisation, rotary positions and grouped-query attention. Several documents may be packed
into a row; they do not see each other. With a cache of keys and values the same network continues
sequences token by token.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from kdjax.networks.attention import (
    attend,
    attention_weights,
    rotary_tables,
    rotate,
    soft_cap,
    visible,
)
from kdjax.networks.rematerialization import check_remat, rematerialized

Cache = Mapping[str, Any]
_ACTIVATIONS = {"silu": nn.silu, "gelu_tanh": lambda x: nn.gelu(x, approximate=True)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """What distinguishes one decoder from another. The defaults are a small Llama.

    Attributes:
      vocabulary: V, number of token ids.
      width: D, of the hidden states.
      num_layers: number of blocks.
      num_heads: of the queries.
      num_key_value_heads: of keys and values; must divide `num_heads`. None: `num_heads`.
      head_width: of one head; even. None: `width / num_heads`.
      hidden: width of the MLPs.
      max_length: the longest sequence that is accepted.
      rope_base: of the rotary wavelengths.
      rope_base_local: the same in sliding layers. None: `rope_base`.
      window: how many tokens a sliding layer sees, the token itself included. None: none slides.
      window_every: layers n, 2n, 3n, ... (counted from 1) see everything, the others slide
        (Gemma-3: 6). None: every layer slides if `window` is given.
      norm_epsilon: of the RMS normalisations.
      norm_offset: they scale by 1 + w (Gemma), not by w.
      activation: of the gate, "silu" or "gelu_tanh".
      query_key_norm: RMS normalisation of every query and key head, before its rotation (Qwen3,
        Gemma-3).
      attention_bias: biases on queries, keys and values (Qwen2).
      post_norms: normalisation after attention and after the MLP too (Gemma).
      embedding_scale: embeddings are multiplied by sqrt(width) (Gemma).
      query_scale: of the inner products. None: head_width ** -0.5.
      attention_softcap: bound of the attention scores, or None.
      logit_softcap: bound of the logits, or None.
      tied: the output matrix is the embedding.
      rope_interleaved: rotated pairs are neighbours (the GGUF layout), not i and
        i + head_width / 2.
      dtype: of the computation. Parameters stay float32; normalisation, softmax and logits too.
      remat: what of the blocks is kept for the backward pass (see `rematerialization.py`).

    Raises:
      ValueError: a field out of range, or fields that do not fit each other.

    >>> config = DecoderConfig(vocabulary=11, width=8, num_heads=2, num_key_value_heads=1)
    >>> config.head_width, config.slides(0)
    (4, False)
    """

    vocabulary: int
    width: int = 64
    num_layers: int = 4
    num_heads: int = 4
    num_key_value_heads: int | None = None
    head_width: int | None = None
    hidden: int = 256
    max_length: int = 512
    rope_base: float = 10_000.0
    rope_base_local: float | None = None
    window: int | None = None
    window_every: int | None = None
    norm_epsilon: float = 1e-5
    norm_offset: bool = False
    activation: str = "silu"
    query_key_norm: bool = False
    attention_bias: bool = False
    post_norms: bool = False
    embedding_scale: bool = False
    query_scale: float | None = None
    attention_softcap: float | None = None
    logit_softcap: float | None = None
    tied: bool = True
    rope_interleaved: bool = False
    dtype: Any = "float32"
    remat: str = ""

    def __post_init__(self):
        counts = ("vocabulary", "width", "num_layers", "num_heads", "hidden", "max_length")
        optional = ("num_key_value_heads", "head_width", "window", "window_every")
        for field in (*counts, *optional):
            value = getattr(self, field)
            missing = value is None and field in optional
            if not missing and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ValueError(f"{field} must be a positive integer, got {value!r}")
        positive = ("rope_base", "rope_base_local", "norm_epsilon", "query_scale")
        for field in (*positive, "attention_softcap", "logit_softcap"):
            value = getattr(self, field)
            if value is not None and not value > 0:
                raise ValueError(f"{field} must be positive, got {value!r}")
        if self.head_width is None:
            if self.width % self.num_heads:
                raise ValueError(
                    f"width={self.width} must be a multiple of num_heads={self.num_heads}, "
                    "or head_width given"
                )
            object.__setattr__(self, "head_width", self.width // self.num_heads)
        if self.head_width % 2:
            raise ValueError(f"head_width must be even for rotary pairs, got {self.head_width}")
        if self.num_key_value_heads is None:
            object.__setattr__(self, "num_key_value_heads", self.num_heads)
        if self.num_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_heads={self.num_heads} must be a multiple of "
                f"num_key_value_heads={self.num_key_value_heads}"
            )
        if self.window_every is not None and self.window is None:
            raise ValueError(f"window_every={self.window_every} needs window, got window=None")
        if self.activation not in _ACTIVATIONS:
            raise ValueError(
                f"activation must be one of {sorted(_ACTIVATIONS)}, got {self.activation!r}"
            )
        check_remat(self.remat)
        if not jnp.issubdtype(jnp.dtype(self.dtype), jnp.floating):
            raise ValueError(f"dtype must be a floating-point type, got {self.dtype!r}")
        # By name, so that configs which say the same are equal, and can be written as JSON.
        object.__setattr__(self, "dtype", jnp.dtype(self.dtype).name)

    def slides(self, layer: int) -> bool:
        """Whether the block of that index (from 0) sees only a window."""
        globally = self.window_every is not None and (layer + 1) % self.window_every == 0
        return self.window is not None and not globally


class RMSNorm(nn.Module):
    """`x / sqrt(mean(x^2) + epsilon) * w`, or `* (1 + w)` with `offset`; in float32.

    Zhang and Sennrich 2019 (arXiv:1910.07467), eq. 4.
    """

    epsilon: float
    offset: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[..., D] -> [..., D]`, in the dtype of `x`."""
        start = nn.initializers.zeros if self.offset else nn.initializers.ones
        scale = self.param("scale", start, (x.shape[-1],))
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        wide = wide * jax.lax.rsqrt(jnp.mean(wide**2, -1, keepdims=True) + self.epsilon)
        return (wide * (scale + 1 if self.offset else scale)).astype(x.dtype)


class DecoderBlock(nn.Module):
    """Attention and a gated MLP, each on the normalised residual stream and added to it.

    The attention map `[B, num_heads, L, keys]`, in float32, is the tap
    `<block>/attention_weights`; it is computed only for applications that ask for taps.
    """

    config: DecoderConfig

    @nn.compact
    def __call__(self, x, tables, seen, cache=None, index=None):
        """`[B, L, D] -> [B, L, D]`; with a cache `(that, the cache with this call's keys)`.

        Args:
          x: [B, L, D].
          tables: cosine and sine of the rotary angles.
          seen: [B, L, keys], True where a token attends to a key.
          cache: of this block: `key`, `value` [B, length, num_key_value_heads, head_width].
          index: where in it this call's keys and values are written.
        """
        config = self.config
        heads, groups = config.num_heads, config.num_key_value_heads
        split = (*x.shape[:-1], -1, config.head_width)

        def dense(name, features, bias=False, scale=1.0):
            start = nn.initializers.variance_scaling(scale, "fan_in", "truncated_normal")
            return nn.Dense(features, bias, config.dtype, kernel_init=start, name=name)

        def norm(name):
            return RMSNorm(config.norm_epsilon, config.norm_offset, name=name)

        # Each branch adds its variance to the residual stream, 2 * num_layers times.
        residual = 1 / (2 * config.num_layers)
        bias = config.attention_bias
        h = norm("attention_norm")(x)
        query = dense("query", heads * config.head_width, bias)(h).reshape(split)
        key = dense("key", groups * config.head_width, bias)(h).reshape(split)
        value = dense("value", groups * config.head_width, bias)(h).reshape(split)
        if config.query_key_norm:
            query, key = norm("query_norm")(query), norm("key_norm")(key)
        query = rotate(query, tables, config.rope_interleaved)
        key = rotate(key, tables, config.rope_interleaved)
        if cache is not None:
            start = (0, index, 0, 0)
            key = jax.lax.dynamic_update_slice(cache["key"], key, start)
            value = jax.lax.dynamic_update_slice(cache["value"], value, start)
            cache = {"key": key, "value": value}
        scale = config.head_width**-0.5 if config.query_scale is None else config.query_scale
        if self.is_mutable_collection("intermediates"):
            weights = attention_weights(query, key, seen, scale, config.attention_softcap)
            self.sow("intermediates", "attention_weights", weights)
        h = attend(query, key, value, seen, scale, config.attention_softcap)
        h = dense("out", config.width, scale=residual)(h.reshape(*x.shape[:-1], -1))
        x = x + (norm("post_attention_norm")(h) if config.post_norms else h)
        h = norm("mlp_norm")(x)
        gate = _ACTIVATIONS[config.activation](dense("gate", config.hidden)(h))
        h = dense("down", config.width, scale=residual)(gate * dense("up", config.hidden)(h))
        x = x + (norm("post_mlp_norm")(h) if config.post_norms else h)
        return x if cache is None else (x, cache)


class Decoder(nn.Module):
    """Token ids to next-token logits: `logits[:, i]` predict token i + 1.

    Touvron et al. 2023 (arXiv:2307.09288); Gemma Team 2025 (arXiv:2503.19786).

    Taps: `embedding/out`; `block0/out`, ... the hidden states after each block (`block0/out/0` with
    a cache); `block0/query/out`, `key/out`, `value/out` `[B, L, heads * head_width]`;
    `block0/attention_weights`; `final_norm/out`. Relations in the manner of MiniLM are had from
    those: `v = taps["block3/value/out"].reshape(B, L, relation_heads, -1)`, then
    `attention_weights(v, v, seen, v.shape[-1] ** -0.5)` of `attention.py`, where `seen` is
    `visible(positions, segments, positions, segments)`; the same for queries and keys.

    Attributes:
      config: a `DecoderConfig`.
    """

    config: DecoderConfig

    @nn.compact
    def __call__(
        self,
        tokens: Int[Array, "batch length"],
        positions: Int[Array, "batch length"] | None = None,
        segments: Int[Array, "batch length"] | None = None,
        cache: Cache | None = None,
    ) -> dict[str, Any]:
        """Applies the decoder.

        Args:
          tokens: ids [B, L] in [0, V); an id outside gives NaN.
          positions: [B, L], of each token in its own document. None: 0, 1, ..., counted on from
            the cache's index.
          segments: [B, L], the document of each token; tokens of different documents do not see
            each other, and 0 is padding, which neither sees nor is seen. None: one document.
          cache: keys and values so far (`empty_cache`); this call's are written at its index. A
            call that does not fit into what is left of the cache gives NaN.

        Returns:
          `logits` [B, L, V], at least float32; `features` [B, L, D], the hidden states after the
          last normalisation, which the output matrix (`head`) is multiplied with; `cache`, the new
          one, where one was given.

        Raises:
          TypeError: tokens are not integers.
          ValueError: tokens are not [B, L] or longer than `max_length`; positions or segments are
            of another shape; more tokens than the cache has places.
        """
        config = self.config
        _check_inputs(config, tokens, positions, segments, cache)
        index = 0 if cache is None else cache["index"]
        if positions is None:
            positions = jnp.broadcast_to(index + jnp.arange(tokens.shape[1]), tokens.shape)
        if segments is None:
            segments = jnp.ones_like(tokens)
        seen_by = (positions, segments)
        if cache is not None:
            seen_by = tuple(
                jax.lax.dynamic_update_slice(cache[name], new.astype(cache[name].dtype), (0, index))
                for name, new in (("positions", positions), ("segments", segments))
            )
        masks, tables = {}, {}
        for slides in {config.slides(layer) for layer in range(config.num_layers)}:
            local = slides and config.rope_base_local is not None
            base = config.rope_base_local if local else config.rope_base
            window = config.window if slides else None
            masks[slides] = visible(positions, segments, *seen_by, window)
            tables[slides] = rotary_tables(positions, config.head_width, base)

        start = nn.initializers.normal(0.02)
        shape = (config.vocabulary, config.width)
        embedding = nn.Embed(*shape, config.dtype, embedding_init=start, name="embedding")
        x = embedding(tokens)
        if config.embedding_scale:
            x = x * jnp.asarray(config.width**0.5, x.dtype)
        updated = {}
        if cache is not None:
            end = index + tokens.shape[1]
            updated = dict(zip(("positions", "segments"), seen_by), index=jnp.asarray(end))
            x = jnp.where(end <= cache["positions"].shape[1], x, jnp.nan)
        block = rematerialized(DecoderBlock, config.remat)
        for layer in range(config.num_layers):
            name, slides = f"block{layer}", config.slides(layer)
            apply = block(config, name=name)
            if cache is None:
                x = apply(x, tables[slides], masks[slides])
            else:
                x, updated[name] = apply(x, tables[slides], masks[slides], cache[name], index)
        x = RMSNorm(config.norm_epsilon, config.norm_offset, name="final_norm")(x)
        matrix = embedding.embedding
        if not config.tied:
            matrix = nn.Embed(*shape, config.dtype, embedding_init=start, name="head").embedding
        output = {"logits": project(x, matrix, config.logit_softcap), "features": x}
        return output if cache is None else {**output, "cache": updated}


def project(
    features: Float[Array, "*batch width"],
    matrix: Float[Array, "vocabulary width"],
    logit_softcap: float | None = None,
) -> Float[Array, "*batch vocabulary"]:
    """`soft_cap(features matrix^T)`: a decoder's logits from its features.

    Args:
      features: [..., D]; differentiated.
      matrix: [V, D], from `head`; cast to the dtype of the features; differentiated.
      logit_softcap: bound of the logits, or None.

    Returns:
      [..., V] in at least float32.

    >>> project(jnp.ones((2, 3)), jnp.ones((5, 3))).shape
    (2, 5)
    """
    dtype = jnp.promote_types(features.dtype, jnp.float32)
    matrix = matrix.astype(features.dtype)
    logits = jnp.einsum("...d,vd->...v", features, matrix, preferred_element_type=dtype)
    return soft_cap(logits, logit_softcap)


def head(variables: Mapping[str, Any]) -> Float[Array, "vocabulary width"]:
    """The output matrix [V, D] of a decoder: its head, or its embedding where the two are tied.

    >>> head({"params": {"embedding": {"embedding": jnp.ones((5, 3))}}}).shape
    (5, 3)
    """
    params = variables["params"]
    return params["head" if "head" in params else "embedding"]["embedding"]


def empty_cache(config: DecoderConfig, batch: int, length: int) -> dict[str, Any]:
    """A cache with room for `length` tokens of each of `batch` sequences, none written.

    Args:
      config: of the decoder that will use it.
      batch: B.
      length: at most `config.max_length`.

    Returns:
      `block0`, `block1`, ...: `key` and `value` [B, length, num_key_value_heads, head_width] in the
      dtype of the computation; `positions` and `segments` int32 [B, length]; `index` int32 scalar,
      where the next token is written.

    Raises:
      ValueError: `length` is not in [1, max_length].

    >>> config = DecoderConfig(vocabulary=11, width=8, num_layers=1, num_heads=2)
    >>> empty_cache(config, 3, 5)["block0"]["key"].shape
    (3, 5, 2, 4)
    """
    if not 1 <= length <= config.max_length:
        raise ValueError(f"length must be in [1, max_length={config.max_length}], got {length}")
    shape = (batch, length, config.num_key_value_heads, config.head_width)
    return {
        **{
            f"block{layer}": {
                "key": jnp.zeros(shape, config.dtype),
                "value": jnp.zeros(shape, config.dtype),
            }
            for layer in range(config.num_layers)
        },
        "positions": jnp.zeros((batch, length), jnp.int32),
        "segments": jnp.zeros((batch, length), jnp.int32),
        "index": jnp.zeros((), jnp.int32),
    }


def _check_inputs(config, tokens, positions, segments, cache):
    if not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise TypeError(f"tokens must be integers, got dtype {tokens.dtype}")
    if tokens.ndim != 2:
        raise ValueError(f"tokens must be shaped [batch, length], got shape {tokens.shape}")
    if tokens.shape[1] > config.max_length:
        raise ValueError(
            f"tokens must be at most max_length={config.max_length} long, got {tokens.shape[1]}"
        )
    for name, array in (("positions", positions), ("segments", segments)):
        if array is not None and not jnp.issubdtype(array.dtype, jnp.integer):
            raise TypeError(f"{name} must be integers, got dtype {array.dtype}")
        if array is not None and array.shape != tokens.shape:
            raise ValueError(
                f"{name} must have the shape {tokens.shape} of tokens, got {array.shape}"
            )
    if cache is not None:
        batch, length = cache["positions"].shape
        if batch != tokens.shape[0] or length < tokens.shape[1]:
            raise ValueError(
                f"tokens must fit into the cache of {batch} sequences of {length} tokens, "
                f"got shape {tokens.shape}"
            )
