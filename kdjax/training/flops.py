"""Floating-point operations of a traced function: matrix products and convolutions.

XLA's own cost analysis counts the body of a loop once, whatever its length; here a scan counts as
often as it runs.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from jax.extend import core


def matrix_flops(jaxpr: Any) -> int:
    """The operations of all matrix products and convolutions, two for each multiply-add.

    A scan counts its length; of the branches of a condition the costliest counts; the body of a
    `while` loop, whose length is not known before it runs, counts once. Element-wise operations are
    not counted, as is the custom where utilisation is reported (Chowdhery et al. 2022,
    arXiv:2204.02311, appendix B).

    Args:
      jaxpr: what `jax.make_jaxpr(function)(*arguments)` returns.

    >>> import jax, jax.numpy as jnp
    >>> x = jnp.zeros((3, 4))
    >>> matrix_flops(jax.make_jaxpr(lambda a, b: a @ b)(x, x.T))
    72
    """
    total = 0
    for equation in _inner(jaxpr).eqns:
        name = equation.primitive.name
        if name == "dot_general":
            total += _product(equation)
        elif name == "conv_general_dilated":
            total += _convolution(equation)
        else:
            parts = [matrix_flops(x) for x in _bodies(equation.params)]
            if name == "cond":
                total += max(parts)
            else:
                total += sum(parts) * (equation.params["length"] if name == "scan" else 1)
    return total


def _inner(jaxpr: Any) -> Any:
    return jaxpr.jaxpr if isinstance(jaxpr, core.ClosedJaxpr) else jaxpr


def _bodies(params: dict[str, Any]) -> list[Any]:
    found = []
    for value in params.values():
        several = value if isinstance(value, tuple | list) else (value,)
        found += [x for x in several if isinstance(x, core.ClosedJaxpr | core.Jaxpr)]
    return found


def _product(equation: Any) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[i] for i in contracted)


def _convolution(equation: Any) -> int:
    p, (image, kernel) = equation.params, (x.aval.shape for x in equation.invars)
    out, names = equation.outvars[0].aval.shape, p["dimension_numbers"]
    batch, features, *axes = names.out_spec
    total = 2 * out[batch] * out[features] * kernel[names.rhs_spec[1]]
    for i, (at, inside, taps) in enumerate(zip(axes, names.lhs_spec[2:], names.rhs_spec[2:])):
        # Pairs of an output and a tap that meet an entry: neither padding nor a hole.
        start = np.arange(out[at])[:, None] * p["window_strides"][i] - p["padding"][i][0]
        place = start + np.arange(kernel[taps]) * p["rhs_dilation"][i]
        step = p["lhs_dilation"][i]
        met = (place >= 0) & (place <= (image[inside] - 1) * step) & (place % step == 0)
        total *= int(met.sum())
    return total
