"""What an example says of a kernel."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np


class Refused(NamedTuple):
    """Arguments that the kernel must refuse, by name, and what the error must say."""

    changes: Mapping[str, Any]
    message: str  # a regular expression
    error: type[Exception] = ValueError


class Example(NamedTuple):
    """A kernel, arguments it accepts, and what holds of it.

    arguments: (NumPy generator) -> {argument: array}, the arrays of a call, in float32, small and
      in general position (no ties, no zero gradient).
    options: the other arguments, as keywords.
    differentiated: the arguments with a gradient, which is not zero in the example. Floating
      arguments named `teacher_*`, and those in `stopped`, must have a gradient of exactly zero.
    extreme: the arguments that may hold anything up to +-1e4: values and gradients stay finite
      (a value may be -inf, the logarithm of what is impossible).
    batched: the arguments whose first axis is that of the batch; () if there is none. The kernel
      must mean the same when this axis is cut over 8 devices.
    masked: for a kernel with `where`, {argument: index of what where=False hides}: NaN there, in
      value and gradient, changes nothing. `where` is among the arguments and not all True.
    refused: bad arguments.
    sloped: False where the gradient is not the slope on purpose (a part is stopped, or passes
      straight through); say which in the kernel's docstring.
    jitted: False for a kernel on the host (its result's shape depends on values).
    """

    kernel: Callable[..., Any]
    arguments: Callable[[np.random.Generator], dict[str, np.ndarray]]
    options: Mapping[str, Any] = {}
    differentiated: tuple[str, ...] = ()
    stopped: tuple[str, ...] = ()
    extreme: tuple[str, ...] = ()
    batched: tuple[str, ...] = ()
    masked: Mapping[str, Any] = {}
    refused: tuple[Refused, ...] = ()
    sloped: bool = True
    jitted: bool = True


def normal(*shape, scale=1.0):
    """Standard normal float32 arrays of this shape, times scale, from a generator."""
    return lambda generator: generator.normal(0, scale, shape).astype(np.float32)


def draw(**arrays):
    """The `arguments` of an example: each a constant, or a function of the generator."""

    def arguments(generator):
        return {
            name: np.asarray(value(generator) if callable(value) else value)
            for name, value in arrays.items()
        }

    return arguments
