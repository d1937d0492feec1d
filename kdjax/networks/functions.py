"""Plain functions (and the pairs of Haiku, stax and the like) as networks."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from kdjax.networks.network import Applied, Network, mode_arguments, probed
from kdjax.networks.taps import Probe

PyTree = Any


def from_function(
    apply: Callable, init: Callable | None = None, *, params: PyTree = None
) -> Network:
    """A plain function of parameters and inputs as a network.

    It has no module whose values could be named: taps see its input and the entries of its output.

    Args:
      apply: `(params, *inputs) -> output`. Whether it trains is passed as `train`, `training`,
        `is_training` or `deterministic` if it has such an argument, the random key as `rng`: by
        keyword, or in second place, `(params, rng, *inputs)`, where it stands there.
      init: `(rng, *inputs) -> params`, or `(rng) -> params`.
      params: given instead of `init`: where `init` starts.

    Raises:
      TypeError: both or none of `init` and `params`; `apply` wants a state next to its parameters.
      ValueError (from `apply`): its `rng` has no default, it trains and none was given.

    >>> network = from_function(lambda params, x: x @ params["w"], params={"w": jnp.ones((2, 3))})
    >>> variables = network.init(jax.random.key(0))
    >>> network.apply(variables, jnp.ones((5, 2))).output.shape
    (5, 3)
    """
    if (init is None) == (params is None):
        raise TypeError("from_function needs either init or params")
    parameters = inspect.signature(apply).parameters
    names = list(parameters)
    if names[1:2] == ["state"]:
        raise TypeError(
            "apply(params, state, ...) keeps a state: write Network(init, apply) with the state as "
            "a collection of its own"
        )
    mode = mode_arguments(apply)
    rng_second = names[1:2] == ["rng"]
    rng_needed = "rng" in names and parameters["rng"].default is inspect.Parameter.empty
    init_takes_inputs = init is not None and _num_positional(init) > 1

    def initialize(rng, *inputs):
        if init is None:  # a copy: training donates its buffers
            return {"params": jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), params)}
        return {"params": init(rng, *inputs) if init_takes_inputs else init(rng)}

    def call(variables, *inputs, train=False, rng=None, taps=(), edits=None):
        if train and rng_needed and rng is None:
            raise ValueError("the function takes rng and train=True: pass rng=jax.random.key(...)")
        options = mode(train)
        if "rng" in names and not rng_second:
            options["rng"] = rng

        def run(*inputs):
            first = (rng, *inputs) if rng_second else inputs
            return apply(variables["params"], *first, **options), None

        output, _, tapped = probed(Probe(taps, edits), inputs, run)
        return Applied(output, variables, tapped)

    return Network(initialize, call)


def _num_positional(function: Callable) -> float:
    kinds = [p.kind for p in inspect.signature(function).parameters.values()]
    if inspect.Parameter.VAR_POSITIONAL in kinds:
        return float("inf")
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(kind in positional for kind in kinds)
