"""Networks of noisy data and a time: a learned one, and one that is known in closed form."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from kdjax.networks.functions import from_function
from kdjax.networks.network import Network


class DenoisingMLP(nn.Module):
    """`h_0 = [x, sin(w_k t), cos(w_k t), e_c]`, `h_i = silu(W_i h_{i-1} + b_i)`, `W h_n + b`.

    Attributes:
      dimension: the number of values of an example.
      widths: of the hidden layers.
      time_features: even; half of them sines, half cosines, of frequencies w_k in a geometric
        series from 1 to `max_frequency` radians.
      max_frequency: > 1.
      conditions: how many conditions there are; 0: no condition is read.
    """

    dimension: int
    widths: tuple[int, ...] = (128, 128, 128)
    time_features: int = 16
    max_frequency: float = 64.0
    conditions: int = 0

    @nn.compact
    def __call__(
        self, x: jax.Array, times: jax.Array, condition: jax.Array | None = None
    ) -> jax.Array:
        """`[B, ...]`, times `[B]` and conditions `[B]` (`conditions` is none) -> `[B, ...]`."""
        if x[0].size != self.dimension:
            raise ValueError(
                f"examples must have {self.dimension} values, got shape {x.shape[1:]} of an example"
            )
        if (condition is None) != (not self.conditions):
            given = "none was given" if condition is None else "one was given"
            raise ValueError(f"conditions={self.conditions}, but {given}")
        if self.time_features < 2 or self.time_features % 2:
            raise ValueError(f"time_features must be even and > 0, got {self.time_features}")
        if not self.max_frequency > 1:
            raise ValueError(f"max_frequency must be > 1, got {self.max_frequency}")
        frequencies = jnp.geomspace(1.0, self.max_frequency, self.time_features // 2)
        angles = times[:, None] * frequencies
        parts = [x.reshape(len(x), -1), jnp.sin(angles), jnp.cos(angles)]
        if condition is not None:
            embed = nn.Embed(self.conditions + 1, self.time_features, name="condition")
            parts.append(embed(condition))
        h = jnp.concatenate(parts, axis=-1)
        for i, width in enumerate(self.widths):
            h = nn.silu(nn.Dense(width, name=f"dense{i}")(h))
        return nn.Dense(self.dimension, name="head")(h).reshape(x.shape)


def gaussian_mixture(
    means: Sequence[Sequence[float]],
    std: float,
    schedule: Callable[[jax.Array], tuple[jax.Array, jax.Array]],
) -> Network:
    """The exact denoiser of a mixture of K equally likely isotropic Gaussians: E[x | z].

        E[x | z] = sum_k w_k ( mu_k + alpha std^2 / v (z - alpha mu_k) )
        w = softmax_k( -||z - alpha mu_k||^2 / 2v ),   v = alpha^2 std^2 + sigma^2

    Its variables are the means and the standard deviation; nothing is trained. It reads
    `(noisy [B, D], times [B])`, and a condition `[B]` if one is given: the number of the only
    component, or K for all of them. The same arguments give the same object.

    Args:
      means: K points of D values.
      std: of the components, > 0.
      schedule: times -> (alpha, sigma).

    Raises:
      ValueError: means that are not K points of one length, a std that is not positive.

    >>> still = gaussian_mixture([[-1.0], [1.0]], 0.5, lambda times: (1 - times, times))
    >>> variables = still.init(jax.random.key(0))
    >>> print(still.apply(variables, jnp.array([[0.0], [2.0]]), jnp.zeros(2)).output[:, 0])
    [0. 2.]
    """
    array = np.asarray(means, np.float64)
    if array.ndim != 2 or not array.size or not np.isfinite(array).all():
        raise ValueError(f"means must be K points of D finite values, got {means}")
    if not 0 < std < np.inf:
        raise ValueError(f"std must be positive, got {std}")
    return _mixture(tuple(map(tuple, array.tolist())), float(std), schedule)


@functools.lru_cache(maxsize=64)
def _mixture(means: tuple[tuple[float, ...], ...], std: float, schedule: Callable) -> Network:
    def denoise(params, noisy, times, condition=None):
        alpha, sigma = (x[:, None, None] for x in schedule(times))
        means, variance = params["means"], params["std"] ** 2
        away = noisy[:, None, :] - alpha * means  # [B, K, D]
        spread = alpha**2 * variance + sigma**2
        logits = -jnp.sum(away**2, -1) / (2 * spread[..., 0])
        if condition is not None:
            count = len(means)
            possible = (condition[:, None] == jnp.arange(count)) | (condition[:, None] == count)
            logits = jnp.where(possible, logits, -jnp.inf)
        weights = jax.nn.softmax(logits)[..., None]
        return jnp.sum(weights * (means + alpha * variance / spread * away), axis=1)

    params = {"means": np.asarray(means, np.float32), "std": np.asarray(std, np.float32)}
    return from_function(denoise, params=params)
