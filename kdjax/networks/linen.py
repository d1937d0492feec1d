"""Flax Linen modules as networks."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import flax
import jax
from flax import linen

from kdjax.networks.network import (
    Applied,
    Network,
    check_call_options,
    mode_arguments,
    probed,
)
from kdjax.networks.taps import COLLECTION, Probe, linen_interceptor


def from_linen(
    module: linen.Module, method: str | Callable | None = None, **call_options: Any
) -> Network:
    """A Flax Linen module as a network.

    Whether it trains is passed as `train`, `training`, `is_training`, `deterministic` or
    `use_running_average`, whichever its signature has. When `train=True` all collections but
    `params` are mutable. `init` gives `rng` to the module's parameters, so that it equals
    `module.init(rng, ...)`; `apply` gives it to 'dropout', and a key derived from it to streams of
    any other name.

    Args:
      module: unbound.
      method: name of the method to apply, or the function; None: `__call__`.
      **call_options: further keyword arguments of every call.

    Raises:
      TypeError: `module` is no Linen module, or the method has no such argument.
      ValueError (from `apply`): a random key is needed and `rng` was not given.

    >>> import jax.numpy as jnp
    >>> network = from_linen(linen.Dense(3))
    >>> variables = network.init(jax.random.key(0), jnp.ones((1, 2)))
    >>> network.apply(variables, jnp.ones((5, 2))).output.shape
    (5, 3)
    """
    if not isinstance(module, linen.Module):
        hint = " (an instance is needed, not the class)" if isinstance(module, type) else ""
        raise TypeError(f"from_linen needs a flax.linen.Module, got {module!r}{hint}")
    name = method if isinstance(method, str) else getattr(method, "__name__", "__call__")
    function = getattr(type(module), name)
    check_call_options(function, call_options, f"{type(module).__name__}.{name}")
    mode = mode_arguments(function)

    def init(rng, *inputs):
        rngs = {"params": rng, "dropout": jax.random.fold_in(rng, 1)}
        variables = module.init(rngs, *inputs, method=method, **call_options, **mode(False))
        return {"params": {}, **linen.unbox(flax.core.unfreeze(variables))}

    def apply(variables, *inputs, train=False, rng=None, taps=(), edits=None):
        probe = Probe(taps, edits)
        mutable = [key for key in variables if key != "params"] if train else []
        # Flax turns to the stream 'params' for names that it was not given.
        rngs = None if rng is None else {"dropout": rng, "params": jax.random.fold_in(rng, 1)}

        def call(*inputs):
            intercepting = contextlib.nullcontext()
            if probe:
                intercepting = linen.intercept_methods(linen_interceptor(probe, name))
            with intercepting:
                output, state = module.apply(
                    variables,
                    *inputs,
                    method=method,
                    rngs=rngs,
                    mutable=[*mutable, COLLECTION] if probe else mutable,
                    **call_options,
                    **mode(train),
                )
            state = dict(state)
            probe.collect(state.pop(COLLECTION, {}))
            return output, state

        try:
            output, state, tapped = probed(probe, inputs, call)
        except flax.errors.InvalidRngError as error:
            if rng is not None:
                raise
            raise ValueError(
                f"{type(module).__name__} needs a random key with train={train} and rng=None: "
                f"pass rng=jax.random.key(...). {error}"
            ) from error
        return Applied(output, {**variables, **state}, tapped)

    return Network(init, apply)
