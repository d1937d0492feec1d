"""Weight-only quantisation after training: the kernels of a frozen network in eight bits.

A kernel W is kept as `Q` and one scale an output channel, W ~ Q * scale, and multiplied out again
in every application; activations, biases, embeddings and statistics are not touched. The numbers
are Qwix's. Its own way through a module, `qwix.quantize_model`, is not taken: Qwix 0.1.8 refuses
convolutions whose inputs are not quantised too, and a `Network` shows no module.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from kdjax.networks.network import Applied, Network
from kdjax.networks.precision import PRECISIONS, stored

PyTree = Any
# Jacob et al. 2018 (arXiv:1712.05877); Micikevicius et al. 2022 (arXiv:2209.05433).
TYPES: Mapping[str, str] = {"int8": "int8", "float8": "float8_e4m3fn"}
KEPT = (*PRECISIONS, *TYPES)


class Quantized(NamedTuple):
    """A kernel in eight bits: `values * scale`, `[..., D] * [1, ..., 1, D]`."""

    values: jax.Array
    scale: jax.Array


def quantize(variables: Mapping[str, PyTree], quantization: str) -> Mapping[str, PyTree]:
    """The variables with every parameter called `kernel` in eight bits, largest value exact.

    Args:
      variables: of a network, trained. Kernels `[..., D]`: one scale for each of the D outputs.
      quantization: "int8" or "float8" (4 bits of exponent, 3 of mantissa).

    Raises:
      ImportError: Qwix is not installed.
      ValueError: another name; no parameter is called `kernel`.
    """
    if quantization not in TYPES:
        raise ValueError(f"quantize must be one of {('', *TYPES)}, got {quantization!r}")
    try:
        import qwix
    except ImportError as error:
        raise ImportError(
            f"quantize={quantization!r} needs Qwix: pip install 'kdjax[quantization]'"
        ) from error
    found = []

    def convert(path, x):
        if getattr(path[-1], "key", None) != "kernel" or x.ndim < 2:
            return x
        found.append(path)
        array = qwix.quantize(
            jnp.asarray(x, jnp.float32), TYPES[quantization], channelwise_axes=(x.ndim - 1,)
        )
        return Quantized(array.qvalue, array.scale)

    params = jax.tree_util.tree_map_with_path(convert, variables["params"])
    if not found:
        raise ValueError(f"quantize={quantization!r}: no parameter is called 'kernel'")
    return {**variables, "params": params}


def check_kept(kind: str) -> None:
    """ValueError where `keep` knows no such kind."""
    if kind not in KEPT:
        raise ValueError(f"the weights of a teacher must be one of {KEPT}, got {kind!r}")


def keep(variables: Mapping[str, PyTree], kind: str) -> Mapping[str, PyTree]:
    """The variables of a frozen role as they lie on the device: `stored`, or `quantize`d.

    Args:
      variables: trained.
      kind: one of `KEPT`.
    """
    check_kept(kind)
    return quantize(variables, kind) if kind in TYPES else stored(variables, kind)


def dequantize(variables: Mapping[str, PyTree]) -> Mapping[str, PyTree]:
    """The variables with every `Quantized` multiplied out in float32; others as they are.

    >>> kernel = Quantized(jnp.array([[2, -1]], jnp.int8), jnp.array([[0.5, 3.0]]))
    >>> dequantize({"params": {"kernel": kernel}})["params"]["kernel"].tolist()
    [[1.0, -3.0]]
    """

    def convert(x):
        return x.values.astype(x.scale.dtype) * x.scale if isinstance(x, Quantized) else x

    return jax.tree.map(convert, variables, is_leaf=lambda x: isinstance(x, Quantized))


@functools.lru_cache(maxsize=256)
def quantizable(network: Network) -> Network:
    """A network that also takes variables from `quantize`. The same network gives the same object.

    Kernels are multiplied out within the application, so inside a compiled step; variables that
    are not quantised are passed on as they are.
    """

    def apply(variables, *inputs, **options):
        found = network.apply(dequantize(variables), *inputs, **options)
        return Applied(found.output, {**found.variables, "params": variables["params"]}, found.taps)

    return Network(network.init, apply)
