"""The noun `Network`: two pure functions, whatever library the network was written in.

`linen.py`, `nnx.py` and `functions.py` adapt Flax Linen modules, Flax NNX modules and plain
functions; `adapters.py` tells which is which. Mutable collections, random keys and train/eval are
their business and nobody else's.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from kdjax.networks.taps import Probe

PyTree = Any


class Applied(NamedTuple):
    """What a network's `apply` returns.

    Attributes:
      output: the module's own return value: logits `[..., C]`, or a dict with `logits` (and
        `features`, the pooled penultimate features).
      variables: the variables, with mutable collections (batch statistics) updated when
        `train=True`, unchanged otherwise. `params` are never changed.
      taps: name -> value, of what `taps` matched.
    """

    output: Any
    variables: Mapping[str, PyTree]
    taps: Mapping[str, jax.Array]


class Network(NamedTuple):
    """Two pure functions. Equal to another only if it holds the same function objects.

    Attributes:
      init: `(rng, *inputs) -> variables`, plain dicts `{"params": ..., "batch_stats": ...}`.
      apply: `(variables, *inputs, train=False, rng=None, taps=(), edits=None) -> Applied`.
        `rng`: key of dropout and whatever else is random. `taps`: patterns over the names of
        intermediate values (see `taps.py`). `edits`: pattern -> function, applied to the matched
        values where they arise; must keep shape and dtype.
    """

    init: Callable[..., Mapping[str, PyTree]]
    apply: Callable[..., Applied]


def logits_of(output: Any) -> jax.Array:
    """The logits of a network's output: the array itself, or its entry `logits`.

    Args:
      output: `[..., C]`, or a dict with that under `logits`.

    Raises:
      TypeError: `output` is neither.
      ValueError: the dict has no `logits`.

    >>> import jax.numpy as jnp
    >>> logits_of({"logits": jnp.ones((2, 3)), "features": jnp.ones((2, 8))}).shape
    (2, 3)
    """
    if isinstance(output, Mapping):
        if "logits" not in output:
            raise ValueError(f"a network's output must have 'logits', it has {sorted(output)}")
        return output["logits"]
    if not hasattr(output, "shape"):
        raise TypeError(
            f"a network's output must be logits or a dict with 'logits', got {type(output)}"
        )
    return output


def count_parameters(variables: Mapping[str, PyTree]) -> int:
    """The number of trainable parameters: the sizes in the collection `params`, summed.

    Works on shapes (`jax.eval_shape`) as well as on arrays; batch statistics do not count.

    >>> import jax.numpy as jnp
    >>> count_parameters({"params": {"w": jnp.ones((2, 3))}, "batch_stats": {"mean": jnp.ones(3)}})
    6
    """
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


def available_taps(
    network: Network, variables: PyTree, *inputs: PyTree
) -> dict[str, jax.ShapeDtypeStruct]:
    """The names that `taps` can match, with shape and dtype; nothing is computed.

    Args:
      network: any.
      variables: its variables, or their shapes.
      *inputs: what it is applied to, or shapes.

    >>> from kdjax.networks import build
    >>> import jax.numpy as jnp
    >>> mlp = build("mlp", num_classes=3, widths=(4,))
    >>> x = jnp.ones((1, 2))
    >>> sorted(available_taps(mlp, mlp.init(jax.random.key(0), x), x))
    ['dense0/in', 'dense0/out', 'features', 'head/in', 'head/out', 'in', 'logits']
    """

    def everything(variables, *inputs):
        return network.apply(variables, *inputs, taps=("**",)).taps

    return jax.eval_shape(everything, variables, *inputs)


def probed(probe: Probe, inputs: tuple, call: Callable[..., tuple]) -> tuple[Any, Any, dict]:
    """Shows a network's own input and output to `probe`, around `call`.

    Args:
      probe: what is asked for.
      inputs: of the network.
      call: `(*inputs) -> (output, state)`.

    Returns:
      `(output, state, taps)`, the output edited where an edit matches.
    """
    if not probe:
        return (*call(*inputs), {})
    if inputs:
        inputs = (probe.record("in", inputs[0]), *inputs[1:])
    output, state = call(*inputs)
    output = probe.record("out", output, leaves_are_entries=isinstance(output, Mapping))
    return output, state, probe.finish()


def mode_arguments(function: Callable) -> Callable[[bool], dict[str, bool]]:
    """How `function` is told whether it trains: `train -> keyword arguments`.

    Recognises arguments named `train`, `training`, `is_training`, `deterministic` and
    `use_running_average`; a function that has none of them gets none.

    >>> mode_arguments(lambda x, deterministic: x)(True)
    {'deterministic': False}
    """
    polarity = {
        "train": True,
        "training": True,
        "is_training": True,
        "deterministic": False,
        "use_running_average": False,
    }
    found = [name for name in inspect.signature(function).parameters if name in polarity]
    return lambda train: {name: train == polarity[name] for name in found}


def check_call_options(function: Callable, options: Mapping[str, Any], name: str) -> None:
    """TypeError where `function` takes no keyword argument of that name."""
    parameters = inspect.signature(function).parameters
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return
    unknown = [option for option in options if option not in parameters]
    if unknown:
        raise TypeError(f"{name} takes no argument {unknown[0]!r}; it has {list(parameters)}")
