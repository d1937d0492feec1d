"""Any network as a `Network`."""

from __future__ import annotations

from typing import Any

from flax import linen, nnx

from kdjax.networks.functions import from_function
from kdjax.networks.linen import from_linen
from kdjax.networks.network import Network
from kdjax.networks.nnx import from_nnx, takes_rngs


def as_network(network: Any) -> Network:
    """What is given, as a `Network`.

    Args:
      network: a `Network`; a Flax Linen module; a Flax NNX module, its class, or a function of
        `rngs` that constructs it; or a pair `(init, apply)` of functions (see `from_function`).

    Raises:
      TypeError: it is none of these.

    >>> as_network(linen.Dense(3)).apply.__name__
    'apply'
    """
    if isinstance(network, Network):
        return network
    if isinstance(network, linen.Module):
        return from_linen(network)
    if isinstance(network, nnx.Module):
        return from_nnx(network)
    if isinstance(network, type) and issubclass(network, linen.Module):
        raise TypeError(f"{network.__name__} is a class: give an instance, {network.__name__}(...)")
    if isinstance(network, tuple) and len(network) == 2 and all(map(callable, network)):
        return from_function(network[1], network[0])
    if callable(network) and takes_rngs(network):
        return from_nnx(network)
    raise TypeError(
        "a network must be a Network, a Flax Linen module, a Flax NNX module or a function of "
        f"`rngs` that constructs one, or a pair (init, apply); got {network!r}"
    )
