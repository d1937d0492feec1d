"""What an autoregressive attention layer is made of: rotary positions, who sees whom, the weights.

Queries come in `heads`, keys and values in `groups`; `heads` is a multiple of `groups` and query
head n reads group n // (heads / groups) (Ainslie et al. 2023, arXiv:2305.13245). Keys and values
are never repeated.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def rotary_tables(
    positions: Int[Array, "batch length"], head_width: int, base: float
) -> tuple[Float[Array, "batch length half"], Float[Array, "batch length half"]]:
    """Cosine and sine of `position * base^(-2i / head_width)`, i = 0 ... head_width / 2 - 1.

    Args:
      positions: [batch, length], of each token in its own document.
      head_width: even.
      base: of the geometric series of wavelengths.

    Returns:
      Two float32 arrays [batch, length, head_width / 2].

    Su et al. 2021 (arXiv:2104.09864), eq. 15.

    >>> cosine, sine = rotary_tables(jnp.array([[0, 1]]), 2, 10000.0)
    >>> cosine.round(4).tolist(), sine.round(4).tolist()
    ([[[1.0], [0.5403000116348267]]], [[[0.0], [0.8414999842643738]]])
    """
    frequencies = base ** (-jnp.arange(0, head_width, 2, dtype=jnp.float32) / head_width)
    angles = positions[..., None].astype(jnp.float32) * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def rotate(
    x: Float[Array, "batch length heads head_width"],
    tables: tuple[Float[Array, "batch length half"], Float[Array, "batch length half"]],
    interleaved: bool = False,
) -> Float[Array, "batch length heads head_width"]:
    """`(a, b) -> (a cos - b sin, b cos + a sin)` for each pair (a, b) of a head's numbers.

    Args:
      x: [batch, length, heads, head_width]; differentiated.
      tables: cosine and sine, from `rotary_tables`.
      interleaved: pairs are neighbours (0, 1), (2, 3), ...; otherwise number i of the first half
        is paired with number i of the second.

    Returns:
      Of the shape and dtype of `x`; computed in at least float32.

    >>> x = jnp.array([1.0, 0.0]).reshape(1, 1, 1, 2)
    >>> rotate(x, rotary_tables(jnp.array([[1]]), 2, 10000.0)).ravel().round(4).tolist()
    [0.5403000116348267, 0.8414999842643738]
    """
    cosine, sine = (table[:, :, None] for table in tables)
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    if interleaved:
        a, b = wide[..., 0::2], wide[..., 1::2]
    else:
        a, b = jnp.split(wide, 2, axis=-1)
    turned = (a * cosine - b * sine, b * cosine + a * sine)
    if interleaved:
        out = jnp.stack(turned, axis=-1).reshape(x.shape)
    else:
        out = jnp.concatenate(turned, axis=-1)
    return out.astype(x.dtype)


def visible(
    positions: Int[Array, "batch length"],
    segments: Int[Array, "batch length"],
    key_positions: Int[Array, "batch keys"],
    key_segments: Int[Array, "batch keys"],
    window: int | None = None,
) -> Bool[Array, "batch length keys"]:
    """Which keys a token attends to: those of its document, not after it, inside the window.

    Args:
      positions: [batch, length], of each token in its own document.
      segments: [batch, length], its document; 0 is padding, which sees and is seen by nothing.
      key_positions: [batch, keys].
      key_segments: [batch, keys].
      window: how many tokens are seen, the token itself included; None: all before it.

    Returns:
      Booleans [batch, length, keys].

    >>> one, two = jnp.array([[0, 1, 0]]), jnp.array([[1, 1, 2]])
    >>> visible(one, two, one, two)[0].astype(int).tolist()
    [[1, 0, 0], [1, 1, 0], [0, 0, 1]]
    """
    distance = positions[:, :, None] - key_positions[:, None, :]
    seen = (segments[:, :, None] == key_segments[:, None, :]) & (key_segments[:, None, :] > 0)
    seen &= distance >= 0
    return seen if window is None else seen & (distance < window)


def soft_cap(x: Float[Array, "*shape"], cap: float | None) -> Float[Array, "*shape"]:
    """`cap * tanh(x / cap)`, between -cap and cap; `x` where `cap` is None.

    Gemma Team 2024 (arXiv:2408.00118), section 2.

    >>> soft_cap(jnp.array([0.0, 1000.0]), 30.0).tolist()
    [0.0, 30.0]
    """
    return x if cap is None else cap * jnp.tanh(x / cap)


def attention_weights(
    query: Float[Array, "batch length heads head_width"],
    key: Float[Array, "batch keys groups head_width"],
    seen: Bool[Array, "batch length keys"],
    scale: float,
    cap: float | None = None,
) -> Float[Array, "batch heads length keys"]:
    """`softmax(soft_cap(scale * q k^T))` over the keys that are seen.

    Args:
      query: [batch, length, heads, head_width]; differentiated.
      key: [batch, keys, groups, head_width]; differentiated.
      seen: [batch, length, keys]; a row without any True has weights of exactly 0.
      scale: of the inner products.
      cap: None, or the bound of the scores.

    Returns:
      [batch, heads, length, keys] in at least float32.

    >>> query, key, seen = jnp.ones((1, 1, 2, 4)), jnp.ones((1, 2, 1, 4)), jnp.array([[[True] * 2]])
    >>> attention_weights(query, key, seen, scale=0.5).tolist()
    [[[[0.5, 0.5]], [[0.5, 0.5]]]]
    """
    batch, length, heads, head_width = query.shape
    groups = key.shape[2]
    grouped = query.reshape(batch, length, groups, heads // groups, head_width)
    dtype = jnp.promote_types(query.dtype, jnp.float32)
    scores = jnp.einsum("blkgh,bskh->bkgls", grouped, key, preferred_element_type=dtype)
    scores = soft_cap(scores * scale, cap)
    seen = seen[:, None, None]
    scores = jnp.where(seen, scores, jnp.finfo(dtype).min)
    weights = jnp.where(seen, jax.nn.softmax(scores, axis=-1), 0)
    return weights.reshape(batch, heads, length, key.shape[1])


def attend(
    query: Float[Array, "batch length heads head_width"],
    key: Float[Array, "batch keys groups head_width"],
    value: Float[Array, "batch keys groups head_width"],
    seen: Bool[Array, "batch length keys"],
    scale: float,
    cap: float | None = None,
) -> Float[Array, "batch length heads head_width"]:
    """`attention_weights(query, key, ...) @ value`.

    Args:
      query: [batch, length, heads, head_width]; differentiated.
      key: [batch, keys, groups, head_width]; differentiated.
      value: [batch, keys, groups, head_width]; differentiated.
      seen: [batch, length, keys]; a token that sees nothing gets exactly 0.
      scale: of the inner products.
      cap: None, or the bound of the scores.

    Returns:
      Of the shape and dtype of `query`.

    >>> query, key = jnp.ones((1, 1, 2, 1)), jnp.ones((1, 2, 1, 1))
    >>> value, seen = jnp.array([2.0, 4.0]).reshape(1, 2, 1, 1), jnp.array([[[True, True]]])
    >>> attend(query, key, value, seen, scale=1.0).ravel().tolist()
    [3.0, 3.0]
    """
    # jax.nn knows no cap, and its softmax is in float32 whatever comes.
    if cap is None and query.dtype != jnp.float64:
        out = jax.nn.dot_product_attention(query, key, value, mask=seen[:, None], scale=scale)
        return jnp.where(seen.any(-1)[:, :, None, None], out, 0)
    weights = attention_weights(query, key, seen, scale, cap).astype(value.dtype)
    batch, heads, length, keys = weights.shape
    groups = value.shape[2]
    grouped = weights.reshape(batch, groups, heads // groups, length, keys)
    return jnp.einsum("bkgls,bskh->blkgh", grouped, value).reshape(query.shape)
