"""What a kernel accepts: shapes, types and ranges, checked while tracing.

Every message names the argument, what came and what was expected. A number is checked wherever
its value is known (Python, NumPy, concrete JAX scalars); a traced scalar is not.
"""

import math
import numbers
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

Logits = Float[Array | np.ndarray, "*batch classes"]
Labels = Int[Array | np.ndarray, "*batch"]
Losses = Float[Array, "*batch"]
Scalar = float | np.number | Float[Array | np.ndarray, ""]


def logits(**named: ArrayLike) -> tuple[Array, ...]:
    """The arrays in one dtype of at least float32, after a check that they have one shape."""
    arrays = {name: jnp.asarray(array) for name, array in named.items()}
    for name, array in arrays.items():
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise TypeError(f"{name} must be a floating-point array, got dtype {array.dtype}")
        if array.ndim < 1 or array.shape[-1] < 1:
            raise ValueError(f"{name} must be shaped [..., classes], got shape {array.shape}")
    (first, *others) = arrays
    for other in others:
        if arrays[first].shape != arrays[other].shape:
            raise ValueError(
                f"{first} and {other} must have one shape [..., classes], "
                f"got {arrays[first].shape} and {arrays[other].shape}"
            )
    dtype = jnp.result_type(jnp.float32, *(array.dtype for array in arrays.values()))
    return tuple(array.astype(dtype) for array in arrays.values())


def labels(labels: ArrayLike, batch_shape: tuple[int, ...]) -> Array:
    """The labels, after a check that they are integers, one a row of the logits."""
    labels = jnp.asarray(labels)
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(f"labels must be integers, got dtype {labels.dtype}")
    if labels.shape != tuple(batch_shape):
        raise ValueError(
            f"labels must have the shape {tuple(batch_shape)} of the logits without their "
            f"classes, got {labels.shape}"
        )
    return labels


def mask(where: ArrayLike, batch_shape: tuple[int, ...]) -> Array:
    """The mask, after a check that it is boolean, one a row of the logits."""
    where = jnp.asarray(where)
    if where.dtype != jnp.bool_:
        raise TypeError(f"where must be boolean, got dtype {where.dtype}")
    if where.shape != tuple(batch_shape):
        raise ValueError(
            f"where must have the shape {tuple(batch_shape)} of the logits without their "
            f"classes, got {where.shape}"
        )
    return where


def valid_labels(labels: Labels, num_classes: int) -> Bool[Array, "*batch"]:
    """Which labels name a class: 0 <= label < num_classes.

    The kernels that read labels return 0, with a gradient of exactly 0, in every other row (the
    usual -100 among them). Such a row must not count either, so this is the caller's weight.

    Args:
      labels: integers [...].
      num_classes: the number of classes.

    Returns:
      Booleans [...].

    Raises:
      TypeError: labels that are not integers.

    >>> import jax.numpy as jnp
    >>> valid_labels(jnp.array([0, 2, 3, -100]), 3).tolist()
    [True, True, False, False]
    """
    labels = jnp.asarray(labels)
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(f"labels must be integers, got dtype {labels.dtype}")
    return (labels >= 0) & (labels < num_classes)


def shaped(axes: Mapping[str, str], **named: ArrayLike) -> tuple[Array, ...]:
    """The arrays in one dtype of at least float32, after a check of their axes.

    `axes` gives the axes of each argument by name, "batch height width channels": an argument has
    as many axes as names, and a name has one size wherever it occurs. A leading "..." stands for
    any number of axes, the same ones wherever it occurs. An axis "batch>=2" must be so long.

    >>> import jax.numpy as jnp
    >>> shaped({"a": "batch x", "b": "batch y"}, a=jnp.ones((2, 3)), b=jnp.ones((4, 5)))
    Traceback (most recent call last):
    ValueError: b must be shaped [batch, y] with batch = 2 as in a, got shape (4, 5)
    """
    arrays = {name: jnp.asarray(array) for name, array in named.items()}
    sizes: dict[str, tuple[int | tuple[int, ...], str]] = {}
    for name, array in arrays.items():
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise TypeError(f"{name} must be a floating-point array, got dtype {array.dtype}")
        axis_shapes(name, array, axes[name], sizes)
    dtype = jnp.result_type(jnp.float32, *(array.dtype for array in arrays.values()))
    return tuple(array.astype(dtype) for array in arrays.values())


def axis_shapes(name: str, array: Array, axes: str, sizes: dict) -> None:
    """One argument's part of `shaped`, for one that is no float: `sizes` is kept between calls."""
    words = axes.split()
    leading = words[:1] == ["..."]
    words = words[leading:]
    bounds = [word.partition(">=") for word in words]
    expected = f"[{', '.join(['...'] * leading + words)}]"
    fits = array.ndim >= len(words) if leading else array.ndim == len(words)
    if not fits:
        raise ValueError(f"{name} must be shaped {expected}, got shape {array.shape}")
    cut = array.ndim - len(words)
    found = [("...", array.shape[:cut])] if leading else []
    found += [(axis, size) for (axis, _, _), size in zip(bounds, array.shape[cut:])]
    for axis, size in found:
        known, first = sizes.setdefault(axis, (size, name))
        if size != known:
            raise ValueError(
                f"{name} must be shaped {expected} with {axis} = {known} as in {first}, "
                f"got shape {array.shape}"
            )
    for (axis, _, least), size in zip(bounds, array.shape[cut:]):
        if size < int(least or 1):
            raise ValueError(
                f"{name} must be shaped {expected} with {axis} >= {least or 1}, "
                f"got shape {array.shape}"
            )


def boolean(name: str, array: ArrayLike, shape: tuple[int, ...], meaning: str) -> Array:
    """The mask, after a check that it is boolean and has the shape, described by `meaning`."""
    array = jnp.asarray(array)
    if array.dtype != jnp.bool_:
        raise TypeError(f"{name} must be boolean, got dtype {array.dtype}")
    if array.shape != tuple(shape):
        raise ValueError(
            f"{name} must have the shape {tuple(shape)} of {meaning}, got {array.shape}"
        )
    return array


def integers(name: str, array: ArrayLike, shape: tuple[int, ...] | None, meaning: str) -> Array:
    """The indices, after a check that they are integers of the shape, described by `meaning`."""
    array = jnp.asarray(array)
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise TypeError(f"{name} must be integers, got dtype {array.dtype}")
    if shape is not None and array.shape != tuple(shape):
        raise ValueError(
            f"{name} must have the shape {tuple(shape)} of {meaning}, got {array.shape}"
        )
    return array


def count(minimum: int, maximum: int | None = None, **named: int) -> None:
    """Each must be a Python integer from minimum to maximum: it decides a shape."""
    for name, value in named.items():
        if isinstance(value, bool) or not isinstance(value, numbers.Integral):
            raise TypeError(f"{name} must be an integer, got {value!r}")
        if value < minimum or (maximum is not None and value > maximum):
            upper = "" if maximum is None else f" and <= {maximum}"
            raise ValueError(f"{name} must be >= {minimum}{upper}, got {value}")


def positive(**named: Scalar) -> None:
    """Each number must be finite and > 0."""
    for name, value in named.items():
        known = number(name, value)
        if known is not None and not 0 < known < math.inf:
            raise ValueError(f"{name} must be finite and > 0, got {known}")


def not_negative(**named: Scalar) -> None:
    """Each number must be finite and >= 0."""
    for name, value in named.items():
        known = number(name, value)
        if known is not None and not 0 <= known < math.inf:
            raise ValueError(f"{name} must be finite and >= 0, got {known}")


def fraction(**named: Scalar) -> None:
    """Each number must lie in [0, 1]."""
    for name, value in named.items():
        known = number(name, value)
        if known is not None and not 0 <= known <= 1:
            raise ValueError(f"{name} must lie in [0, 1], got {known}")


def finite(**named: Scalar) -> None:
    """Each number must be finite."""
    for name, value in named.items():
        known = number(name, value)
        if known is not None and not math.isfinite(known):
            raise ValueError(f"{name} must be finite, got {known}")


def choice(name: str, value: str, options: tuple[str, ...]) -> None:
    """The value must be one of the options."""
    if value not in options:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, options))}, got {value!r}")


def number(name: str, value: Scalar) -> float | None:
    """The number, or None where it is only known when the compiled function runs."""
    is_number = isinstance(value, numbers.Real | np.number) and not isinstance(value, bool)
    if not is_number and not isinstance(value, jax.Array | np.ndarray):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if jnp.ndim(value) != 0:
        raise ValueError(f"{name} must be a scalar, got shape {jnp.shape(value)}")
    if isinstance(value, jax.core.Tracer):
        return None
    return float(value)
