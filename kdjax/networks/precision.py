"""Mixed precision: parameters in float32, computation in a narrower type, results in float32."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from kdjax.networks.network import Applied, Network

PyTree = Any
PRECISIONS = ("float32", "bfloat16", "float16")


def check_precision(precision: str) -> None:
    """ValueError where `precision` is not one of `PRECISIONS`."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {PRECISIONS}, got {precision!r}")


@functools.lru_cache(maxsize=256)
def in_precision(network: Network, precision: str) -> Network:
    """A network that computes in another type; everything outside of it stays float32.

    Parameters and inputs of a floating type are cast on the way in; the output, taps and what
    edits see, on the way out, to float32. So parameters, their gradients and optimizer slots are
    float32, and so are logits, features and losses. Other inputs (token ids, masks, keys) are left
    alone. Micikevicius et al. 2018 (arXiv:1710.03740); in float16 small gradients vanish unless
    the loss is scaled (`kdjax.training.LossScale`).

    Collections other than `params` are never cast: the batch statistics of Flax are summed,
    averaged and kept in float32. So are the sums of Flax's other normalisations. A Linen
    `BatchNorm` gives back the type of its input; one of NNX gives float32, which the layers after
    it then compute in. A module that names a `dtype` of its own computes in that one whatever it
    is given; a decoder's is `DecoderConfig.dtype`, which casts as said here but keeps its
    normalisations and its softmax whole, and returns its `features` in the narrow type.

    Args:
      network: any; the same network and type give the same object.
      precision: one of `PRECISIONS`; "float32" gives the network itself.

    Raises:
      ValueError: another type.

    >>> from kdjax.networks import build
    >>> network = in_precision(build("mlp", num_classes=3, widths=(4,)), "bfloat16")
    >>> variables = network.init(jax.random.key(0), jnp.ones((1, 2)))
    >>> logits = network.apply(variables, jnp.ones((5, 2))).output["logits"]
    >>> variables["params"]["head"]["kernel"].dtype.name, logits.dtype.name
    ('float32', 'float32')
    """
    check_precision(precision)
    if precision == "float32":
        return network

    def apply(variables, *inputs, train=False, rng=None, taps=(), edits=None):
        narrow = {**variables, "params": cast(variables["params"], precision)}
        found = network.apply(
            narrow,
            *cast(inputs, precision),
            train=train,
            rng=rng,
            taps=taps,
            edits={pattern: _outside(function) for pattern, function in (edits or {}).items()},
        )
        changed = {k: v for k, v in found.variables.items() if k != "params"}
        return Applied(
            cast(found.output, "float32"), {**variables, **changed}, cast(found.taps, "float32")
        )

    return Network(network.init, apply)


def cast(tree: PyTree, dtype: str) -> PyTree:
    """The arrays of a floating type in another one, everything else as it is.

    >>> cast({"x": jnp.ones(2), "ids": jnp.arange(2)}, "bfloat16")["x"].dtype.name
    'bfloat16'
    """
    return jax.tree.map(lambda x: x.astype(dtype) if _floating(x) else x, tree)


def stored(variables: Mapping[str, PyTree], precision: str) -> Mapping[str, PyTree]:
    """The variables of a frozen role, its matrices kept in the type that they are computed in.

    A cast in every step is saved, and half the memory. Outputs have the same bits: parameters with
    two axes or more (kernels, embeddings) would be cast before anything else is done with them.
    Biases and scales stay float32, for a decoder normalises in float32.

    Args:
      variables: of a network in that precision.
      precision: one of `PRECISIONS`.

    >>> params = {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}
    >>> {k: v.dtype.name for k, v in stored({"params": params}, "bfloat16")["params"].items()}
    {'bias': 'float32', 'kernel': 'bfloat16'}
    """
    check_precision(precision)

    def store(x):
        return x.astype(precision) if _floating(x) and x.ndim > 1 else x

    return {**variables, "params": jax.tree.map(store, variables["params"])}


def _floating(x: Any) -> bool:
    return hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.floating)


def _outside(edit):
    def edited(value):
        if not _floating(value):
            return edit(value)
        return edit(value.astype("float32")).astype(value.dtype)

    return edited
