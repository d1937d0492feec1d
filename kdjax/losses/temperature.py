"""CTKD: a temperature that is learned against the student.

    temperature = learned_temperature(gradient_reversal(theta, scale=reversal_schedule(epoch)))
    loss = kd(student_logits, teacher_logits, temperature=temperature)

One optimizer then descends in the student and, through the reversed gradient, ascends in theta.
For a temperature of each example, `jax.vmap` the loss over it.

Source: Li et al. 2023 (CTKD), arXiv:2211.16231.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from numpy import ndarray

from kdjax.losses import checks
from kdjax.losses.checks import Scalar


def gradient_reversal(
    x: Float[Array | ndarray, "*shape"], *, scale: Scalar = -1.0
) -> Float[Array, "*shape"]:
    """The identity, whose derivative is multiplied by scale.

        y = x,   dy/dx := scale

    The gradient is not the slope of the value, on purpose: what lies before x climbs, for
    scale < 0, what lies after it descends. In forward mode the tangent is scaled as well.

    Args:
      x: floats of any shape. Differentiated.
      scale: scalar, may be traced; -1 reverses, 0 stops, 1 does nothing. Stopped.

    Returns:
      x.

    Raises:
      ValueError: scale that is not finite. TypeError: x that is not of floats.

    Source: Ganin and Lempitsky 2015, arXiv:1409.7495; Li et al. 2023 (CTKD), arXiv:2211.16231.

    >>> import jax
    >>> print(jax.grad(lambda x: gradient_reversal(x, scale=-0.5) ** 2)(3.0))
    -3.0
    """
    (x,) = checks.shaped({"x": "..."}, x=x)
    checks.finite(scale=scale)
    return _scaled_gradient(x, jnp.asarray(scale, x.dtype))


@jax.custom_jvp
def _scaled_gradient(x: Array, scale: Array) -> Array:
    del scale
    return x


@_scaled_gradient.defjvp
def _scaled_tangent(primals: tuple[Array, Array], tangents: tuple) -> tuple[Array, Array]:
    (x, scale), (tangent, _) = primals, tangents
    return x, jax.lax.stop_gradient(scale) * tangent


def learned_temperature(
    theta: Float[Array | ndarray, "*batch"], *, start: Scalar = 1.0, span: Scalar = 20.0
) -> Float[Array, "*batch"]:
    """A temperature of one free number, kept between start and start + span.

        T = start + span sigmoid(theta)

    The authors call span `t_end`, although the temperature ends at start + span, and begin at
    theta = 1, which with their 1 and 20 is T = 15.62.

    Args:
      theta: floats of any shape. Differentiated.
      start: scalar > 0, may be traced; the lowest temperature.
      span: scalar > 0, may be traced; how far above it the highest is.

    Returns:
      Floats, shaped as theta, in [start, start + span].

    Raises:
      ValueError: start or span <= 0. TypeError: theta that is not of floats.

    Source: Li et al. 2023 (CTKD), arXiv:2211.16231.

    >>> import jax.numpy as jnp
    >>> print(f"{learned_temperature(jnp.array(1.0)):.4f}")
    15.6212
    """
    (theta,) = checks.shaped({"theta": "..."}, theta=theta)
    checks.positive(start=start, span=span)
    return start + span * jax.nn.sigmoid(theta)


def reversal_schedule(
    epoch: Scalar | int, *, num_epochs: Scalar = 10.0, maximum: Scalar = 1.0
) -> Float[Array, ""]:
    """The scale of `gradient_reversal` over time: from 0 down to -maximum along half a cosine.

        scale = -maximum (1 - cos(pi min(e, E) / E)) / 2,   e = epoch,  E = num_epochs

    The authors count epochs from 1, and compute it once an epoch; e may be a fraction.

    Args:
      epoch: scalar >= 0, may be traced; the time since the start.
      num_epochs: scalar > 0, may be traced; when -maximum is reached.
      maximum: scalar >= 0, may be traced.

    Returns:
      Scalar, in [-maximum, 0].

    Raises:
      ValueError: epoch or maximum < 0, num_epochs <= 0.

    Source: Li et al. 2023 (CTKD), arXiv:2211.16231.

    >>> print(f"{reversal_schedule(5):.2f} {reversal_schedule(12):.2f}")
    -0.50 -1.00
    """
    checks.not_negative(epoch=epoch, maximum=maximum)
    checks.positive(num_epochs=num_epochs)
    share = jnp.minimum(jnp.asarray(epoch, float) / num_epochs, 1.0)
    return -0.5 * maximum * (1 - jnp.cos(jnp.pi * share))
