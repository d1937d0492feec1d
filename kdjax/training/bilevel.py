"""One-step bilevel optimisation: what a training step would do, as a function of what shaped it.

    min_w outer(theta'(w)),   theta'(w) = theta - lr d inner(theta, w) / d theta

An objective that trains w computes theta' with `virtual_step`, and returns the outer loss at it as
its term: the engine differentiates through the step. theta itself is trained by another update
of the program, under the inner loss; see `kdjax.methods.tgeo_kd`. The whole inner batch shapes one
step, so such an update is `batchwise`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from kdjax.training.stage import PyTree, Scalar


class VirtualStep(NamedTuple):
    """What `virtual_step` returns.

    Attributes:
      parameters: theta', of the structure of the parameters.
      gradient_norm: of the inner gradient before it was clipped, a scalar to be reported.
    """

    parameters: PyTree
    gradient_norm: jax.Array


def virtual_step(
    inner_loss: Callable[[PyTree], jax.Array],
    parameters: PyTree,
    learning_rate: Scalar,
    *,
    max_norm: float | None = None,
) -> VirtualStep:
    """One step of gradient descent, differentiable in everything that `inner_loss` reads.

        theta' = theta - lr min(1, max_norm / |g|) g,   g = d inner_loss / d theta

    With an outer loss L at theta', and without clipping,

        dL/dw = -lr d/dw < dL/dtheta', g(theta, w) >

    a mixed second derivative, which is never a matrix: its cost is some gradients of the inner
    loss. For lr = 0 it is 0.

    Args:
      inner_loss: parameters -> scalar, twice differentiable.
      parameters: pytree of floats, theta. Differentiated.
      learning_rate: scalar >= 0, may be traced. Differentiated.
      max_norm: number > 0, the length that a longer g is shortened to. The shortening is
        differentiated too. None: no clipping.

    Returns:
      theta' and |g|.

    Raises:
      ValueError: learning_rate below 0, max_norm that is not positive.

    Source: Liu et al. 2019 (DARTS), arXiv:1806.09055, equation 6, there with finite differences;
      Ren et al. 2018, arXiv:1803.09050, for weights of examples.

    The target w of theta is scored by what one step towards it does:

    >>> def outer(w):
    ...     step = virtual_step(lambda theta: (theta - w) ** 2 / 2, jnp.float32(0), 0.5)
    ...     return (step.parameters - 3) ** 2
    >>> [float(x) for x in jax.value_and_grad(outer)(2.0)]
    [4.0, -2.0]
    """
    if not isinstance(learning_rate, jax.Array) and not 0 <= learning_rate < math.inf:
        raise ValueError(f"learning_rate must be finite and >= 0, got {learning_rate}")
    if max_norm is not None and not max_norm > 0:
        raise ValueError(f"max_norm must be positive, got {max_norm}")
    parameters = jax.tree.map(jnp.asarray, parameters)
    gradient = jax.grad(inner_loss)(parameters)
    square = sum(jnp.vdot(x, x) for x in jax.tree.leaves(gradient))
    # A root has no slope at 0, where there is nothing to clip.
    norm = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)
    factor = 1.0
    if max_norm is not None:
        factor = jnp.where(norm > max_norm, max_norm / jnp.where(norm > 0, norm, 1), 1)
    rate = learning_rate * factor
    stepped = jax.tree.map(lambda x, g: (x - rate * g).astype(x.dtype), parameters, gradient)
    return VirtualStep(stepped, jax.lax.stop_gradient(norm))
