"""Fake quantisation: values rounded to few bits, with gradients that pass straight through.

Weights or activations stay floats but take the values that integers, fp4 or fp8 numbers times a
scale can have, so that a network learns to live with them. A scale is one for the whole tensor, for
the entries that differ only along `axis` (the axes summed out), or for each group of consecutive
entries along the last axis. All round to nearest, ties to even, as hardware does.

Rounding has gradient 1 here, not the 0 of its slope: that is the straight-through estimator
(Bengio et al. 2013, arXiv:1308.3432).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from kdjax.losses import checks
from kdjax.losses.checks import Scalar
from kdjax.losses.noise_schedules import level

Values = Float[Array | np.ndarray, "..."]


class FloatFormat(NamedTuple):
    """A small floating-point format: 2^exponent of its least normal number, bits, largest value."""

    mantissa_bits: int
    minimum_exponent: int
    maximum: float


FLOAT_FORMATS = {
    "e2m1": FloatFormat(1, 0, 6.0),
    "e4m3": FloatFormat(3, -6, 448.0),
    "e5m2": FloatFormat(2, -14, 57344.0),
}


def straight_through_round(values: Values) -> Values:
    """Rounding to the nearest integer, ties to even, with gradient 1.

        y = x + stop(round(x) - x)

    Args:
      values: floats [...]. Differentiated, straight through.

    Returns:
      Floats [...] that are integers.

    Raises:
      TypeError: values that are not floats.

    Source: Bengio et al. 2013, arXiv:1308.3432.

    >>> import jax.numpy as jnp
    >>> print(straight_through_round(jnp.array([0.4, 0.5, 1.5])))
    [0. 0. 2.]
    """
    (values,) = checks.shaped({"values": "..."}, values=values)
    return _straight_through(values, jnp.round(values))


def round_to_float(values: Values, *, format: str) -> Values:
    """The nearest number of a small floating-point format, the largest where that is exceeded.

                    mantissa   least normal   least step   largest
        e2m1 (fp4)      1          1            1/2            6
        e4m3 (fp8)      3          2^-6         2^-9         448
        e5m2 (fp8)      2          2^-14        2^-16      57344

    Ties go to the even mantissa. A plain cast makes NaN (e4m3) or inf (e5m2) of what is too large;
    this saturates. NaN stays NaN. Rounded once, where casts by way of float16 round twice.

    Args:
      values: floats [...]. Differentiated: 1 up to the largest number of the format, 0 beyond.
      format: "e2m1", "e4m3" (the finite one, "fn") or "e5m2".

    Returns:
      Floats [...], in float32 or wider.

    Raises:
      ValueError: another format. TypeError: values that are not floats.

    Source: Micikevicius et al. 2022, arXiv:2209.05433; Open Compute Project 2023, Microscaling
      Formats 1.0.

    >>> import jax.numpy as jnp
    >>> print(round_to_float(jnp.array([1.0625, 1.1875, 500.0]), format="e4m3"))
    [  1.     1.25 448.  ]
    """
    (values,) = checks.shaped({"values": "..."}, values=values)
    largest = _format(format).maximum
    saturated = jnp.where(jnp.abs(values) > largest, jnp.sign(values) * largest, values)
    return _straight_through(saturated, _round_to_float(values, format))


def symmetric_scale(
    values: Values,
    *,
    maximum: Scalar,
    axis: int | tuple[int, ...] | None = None,
    group_size: int | None = None,
    power_of_two: bool = False,
) -> Values:
    """The scale that maps the largest absolute value to the largest code.

        s = max |w| / maximum

    maximum is 2^(bits - 1) - 1 for symmetric integers, 6 for e2m1, 448 for e4m3. A scale of
    zeros is the smallest positive float, so that they stay zeros.

    With power_of_two the scale is 2^(floor log2 max |w| - floor log2 maximum), as in the
    microscaling (MX) formats with a group_size of 32; some values then exceed the largest code, and
    saturate.

    Args:
      values: floats [...]. Stopped.
      maximum: number > 0.
      axis: the axes over which the maximum is taken: None is all of them (one scale a tensor);
        for weights [..., in, out], all but the last give one scale an output channel; -1 gives
        one scale a token to activations.
      group_size: entries along the last axis that share a scale, in place of axis.
      power_of_two: whether the scale is a power of two.

    Returns:
      Floats that broadcast against values: of size 1 in each axis of `axis`, or [..., last] with
      one value repeated in each group.

    Raises:
      ValueError: maximum <= 0, both axis and group_size, a last axis that groups do not divide.
      TypeError: values that are not floats.

    Source: Jacob et al. 2017, arXiv:1712.05877; Rouhani et al. 2023, arXiv:2310.10537.

    >>> import jax.numpy as jnp
    >>> print(symmetric_scale(jnp.array([[7.0, 1.0], [2.0, -14.0]]), maximum=7.0, axis=-1))
    [[1.]
     [2.]]
    """
    (values,) = checks.shaped({"values": "..."}, values=values)
    checks.positive(maximum=maximum)
    largest = _reduced(jnp.max, jnp.abs(jax.lax.stop_gradient(values)), axis, group_size)
    tiny = jnp.finfo(values.dtype).tiny
    if power_of_two:
        (_, exponent), (_, highest) = jnp.frexp(largest), jnp.frexp(jnp.asarray(maximum))
        scale = jnp.ldexp(jnp.ones_like(largest), exponent - highest)
        return jnp.maximum(jnp.where(largest == 0, 0.0, scale), tiny)
    return jnp.maximum(largest / maximum, tiny)


def quantize_int(
    values: Values,
    *,
    bits: int,
    axis: int | tuple[int, ...] | None = None,
    group_size: int | None = None,
) -> Values:
    """Symmetric integers: the scale from the largest absolute value, zero at zero.

        w^ = s clip(round(w / s), -Q, Q),   Q = 2^(bits - 1) - 1,   s = max |w| / Q

    Nothing is clipped but rounding errors, so the gradient is 1 everywhere; that of the scale is
    left out. Two bits have the levels -s, 0, s: the code -2^(bits - 1) is not used.

    Args:
      values: floats [...]. Differentiated, straight through.
      bits: integer, 2 to 16.
      axis: the axes that share a scale, see `symmetric_scale`.
      group_size: entries along the last axis that share a scale, in place of axis.

    Returns:
      Floats [...].

    Raises:
      ValueError: bits out of range, both axis and group_size, a last axis that groups do not
      divide. TypeError: values that are not floats.

    Source: Jacob et al. 2017, arXiv:1712.05877.

    >>> import jax.numpy as jnp
    >>> print(quantize_int(jnp.array([7.0, -3.4, 0.5]), bits=4))
    [ 7. -3.  0.]
    """
    (values,) = checks.shaped({"values": "..."}, values=values)
    highest = _highest_code(bits)
    scale = symmetric_scale(values, maximum=highest, axis=axis, group_size=group_size)
    codes = jnp.clip(jnp.round(values / scale), -highest, highest)
    return _straight_through(values, codes * scale)


def quantize_int_asymmetric(
    values: Values,
    *,
    bits: int,
    axis: int | tuple[int, ...] | None = None,
    group_size: int | None = None,
) -> Values:
    """Integers with a zero point: the codes span from the smallest value to the largest.

        w^ = s (clip(round(w / s) + z, 0, 2^bits - 1) - z)
        s = (max w - min w) / (2^bits - 1),   z = round(-min w / s)

    The range is that of the values, whether or not 0 is in it (PyTorch's observers widen it to
    0). Equal values stay what they are. The gradient is 1 everywhere.

    Args:
      values: floats [...]. Differentiated, straight through.
      bits: integer, 2 to 16.
      axis: the axes that share scale and zero point, see `symmetric_scale`.
      group_size: entries along the last axis that share them, in place of axis.

    Returns:
      Floats [...].

    Raises:
      ValueError: bits out of range, both axis and group_size, a last axis that groups do not
      divide. TypeError: values that are not floats.

    Source: Jacob et al. 2017, arXiv:1712.05877.

    >>> import jax.numpy as jnp
    >>> print(quantize_int_asymmetric(jnp.array([-1.0, 0.4, 1.1, 2.0]), bits=2))
    [-1.  0.  1.  2.]
    """
    (values,) = checks.shaped({"values": "..."}, values=values)
    checks.count(2, 16, bits=bits)
    fixed = jax.lax.stop_gradient(values)
    low, high = (_reduced(end, fixed, axis, group_size) for end in (jnp.min, jnp.max))
    highest = 2**bits - 1
    scale = (high - low) / highest
    constant = scale < jnp.finfo(values.dtype).tiny
    scale = jnp.where(constant, 1.0, scale)
    zero = jnp.round(-low / scale)
    codes = jnp.clip(jnp.round(fixed / scale) + zero, 0, highest) - zero
    return _straight_through(values, jnp.where(constant, fixed, codes * scale))


def quantize_float(
    values: Values,
    *,
    format: str,
    axis: int | tuple[int, ...] | None = None,
    group_size: int | None = None,
    power_of_two: bool = False,
) -> Values:
    """Small floating-point numbers, scaled so that the largest absolute value is the largest code.

        w^ = s round_to_float(w / s),   s = max |w| / maximum

    The gradient is 1 everywhere. format="e2m1", group_size=32, power_of_two=True is MXFP4.

    Args:
      values: floats [...]. Differentiated, straight through.
      format: "e2m1", "e4m3" or "e5m2", see `round_to_float`.
      axis: the axes that share a scale, see `symmetric_scale`.
      group_size: entries along the last axis that share a scale, in place of axis.
      power_of_two: whether scales are powers of two.

    Returns:
      Floats [...].

    Raises:
      ValueError: another format, both axis and group_size, a last axis that groups do not divide.
      TypeError: values that are not floats.

    Source: Micikevicius et al. 2022, arXiv:2209.05433; Rouhani et al. 2023, arXiv:2310.10537.

    >>> import jax.numpy as jnp
    >>> print(quantize_float(jnp.array([6.0, 2.5, -5.0, 3.5]), format="e2m1"))
    [ 6.  2. -4.  4.]
    """
    (values,) = checks.shaped({"values": "..."}, values=values)
    scale = symmetric_scale(
        values,
        maximum=_format(format).maximum,
        axis=axis,
        group_size=group_size,
        power_of_two=power_of_two,
    )
    return _straight_through(values, scale * _round_to_float(values / scale, format))


def learned_step_quantize(
    values: Values,
    step: Values | float,
    *,
    bits: int,
    gradient_scale: Scalar = 1.0,
) -> Values:
    """Symmetric integers whose step is learned (LSQ); what lies outside is clipped.

        u = w / s,   w^ = s round(clip(u, -Q, Q)),   Q = 2^(bits - 1) - 1
        dw^/dw = 1 for |u| <= Q, else 0
        dw^/ds = round(u) - u for |u| <= Q, else sign(u) Q

    With a step that is not trained this is the clipped straight-through estimator. The authors
    multiply the step's gradient by 1 / sqrt(n Q), n values to a step, and start from
    s = 2 mean |w| / sqrt(Q).

    Args:
      values: floats [...]. Differentiated, straight through.
      step: floats > 0 that broadcast against values: a scalar, or one a channel. Differentiated.
      bits: integer, 2 to 16.
      gradient_scale: scalar >= 0, may be traced; times the gradient of the step only.

    Returns:
      Floats [...].

    Raises:
      ValueError: bits out of range, a known step <= 0, a step that does not broadcast.
      TypeError: values that are not floats.

    Source: Esser et al. 2019 (LSQ), arXiv:1902.08153, equations 1 to 5.

    >>> import jax.numpy as jnp
    >>> print(learned_step_quantize(jnp.array([0.3, -0.8, 9.0]), jnp.array(0.5), bits=3))
    [ 0.5 -1.   1.5]
    """
    (values,) = checks.shaped({"values": "..."}, values=values)
    step = level("step", step, above_zero=True).astype(values.dtype)
    sizes = zip(reversed(step.shape), reversed(values.shape))
    if step.ndim > values.ndim or any(size not in (1, wanted) for size, wanted in sizes):
        raise ValueError(
            f"step must broadcast against values {values.shape}, got shape {step.shape}"
        )
    highest = _highest_code(bits)
    checks.not_negative(gradient_scale=gradient_scale)
    scaled = step * gradient_scale
    step = jax.lax.stop_gradient(step - scaled) + scaled
    ratio = values / step
    # Not jnp.clip, which halves the gradient at the very ends.
    inside = jnp.abs(ratio) <= highest
    clipped = jnp.where(inside, ratio, jnp.sign(jax.lax.stop_gradient(ratio)) * highest)
    return step * _straight_through(clipped, jnp.round(clipped))


def _straight_through(values: Array, rounded: Array) -> Array:
    """The rounded values exactly, with the gradient of the values."""
    # values + stop(rounded - values) would differ from `rounded` in the last bit.
    return jax.lax.stop_gradient(rounded) + (values - jax.lax.stop_gradient(values))


def _round_to_float(values: Array, format: str) -> Array:
    values = jax.lax.stop_gradient(values)
    mantissa_bits, minimum_exponent, largest = _format(format)
    saturated = jnp.where(jnp.abs(values) > largest, jnp.sign(values) * largest, values)
    # frexp has the mantissa in [1/2, 1).
    _, exponent = jnp.frexp(saturated)
    exponent = jnp.maximum(exponent - 1, minimum_exponent) - mantissa_bits
    rounded = jnp.ldexp(jnp.round(jnp.ldexp(saturated, -exponent)), exponent)
    return jnp.where(jnp.isnan(values), values, jnp.clip(rounded, -largest, largest))


def _format(format: str) -> FloatFormat:
    checks.choice("format", format, tuple(FLOAT_FORMATS))
    return FLOAT_FORMATS[format]


def _highest_code(bits: int) -> int:
    checks.count(2, 16, bits=bits)
    return 2 ** (bits - 1) - 1


def _reduced(
    extremum, values: Array, axis: int | tuple[int, ...] | None, group_size: int | None
) -> Array:
    """The extremum over the entries that share a scale, to be broadcast against values."""
    if group_size is None:
        return extremum(values, axis=axis, keepdims=axis is not None)
    if axis is not None:
        raise ValueError(f"axis and group_size exclude each other, got {axis} and {group_size}")
    checks.count(1, group_size=group_size)
    if values.ndim < 1 or values.shape[-1] % group_size:
        raise ValueError(
            f"group_size must divide the last axis of values {values.shape}, got {group_size}"
        )
    groups = extremum(values.reshape(*values.shape[:-1], -1, group_size), axis=-1)
    return jnp.repeat(groups, group_size, axis=-1)
