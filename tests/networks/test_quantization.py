"""Weight-only quantisation of a frozen network."""

import importlib.util
import sys

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from kdjax.networks import build, from_function
from kdjax.networks.quantization import (
    Quantized,
    dequantize,
    keep,
    quantizable,
    quantize,
)

X = np.random.default_rng(0).normal(size=(6, 40)).astype(np.float32)
QWIX = importlib.util.find_spec("qwix") is not None
needs_qwix = pytest.mark.skipif(not QWIX, reason="pip install 'kdjax[quantization]'")


def network():
    built = build("mlp", 3, widths=(64,), norm=True)
    return built, built.init(jax.random.key(0), jnp.asarray(X))


def by_hand(variables, levels=127):
    """Kernels in int8 with a scale a channel, from the definition."""

    def convert(path, x):
        if path[-1].key != "kernel":
            return x
        scale = jnp.abs(x).max(axis=0, keepdims=True) / levels
        return Quantized(jnp.round(x / scale).astype(jnp.int8), scale)

    return {**variables, "params": jax.tree_util.tree_map_with_path(convert, variables["params"])}


def test_a_network_reads_eight_bit_kernels_and_float_ones_alike():
    plain, variables = network()
    reading = quantizable(plain)
    assert reading is quantizable(plain)
    small, x = by_hand(variables), jnp.asarray(X)
    forward = jax.jit(lambda variables: reading.apply(variables, x).output["logits"])
    np.testing.assert_array_equal(
        forward(variables), jax.jit(plain.apply)(variables, x).output["logits"]
    )
    error = np.abs(forward(small) - forward(variables)).max()
    assert 0 < error < 0.02 * np.abs(forward(variables)).max()
    assert reading.apply(small, x, train=True).variables["params"] is small["params"]
    sizes = [sum(x.nbytes for x in jax.tree.leaves(v["params"])) for v in (small, variables)]
    assert sizes[0] < sizes[1] / 3


@needs_qwix
@pytest.mark.parametrize(("kind", "error"), [("int8", 0.02), ("float8", 0.1)])
def test_qwix_quantises_the_kernels_and_nothing_else(kind, error):
    plain, variables = network()
    small, x = keep(variables, kind), jnp.asarray(X)
    dense = small["params"]["dense0"]
    assert dense["kernel"].values.dtype.itemsize == 1
    assert dense["kernel"].scale.shape == (1, 64)
    assert dense["bias"] is variables["params"]["dense0"]["bias"]
    exact = plain.apply(variables, x).output["logits"]
    found = quantizable(plain).apply(small, x).output["logits"]
    assert 0 < np.abs(found - exact).max() < error * np.abs(exact).max()
    if kind == "int8":
        kernel = dequantize(small)["params"]["dense0"]["kernel"]
        expected = dequantize(by_hand(variables))["params"]["dense0"]["kernel"]
        # Qwix's largest level is 127.5: half a level away at most, from another grid.
        largest = np.abs(variables["params"]["dense0"]["kernel"]).max(axis=0)
        assert (np.abs(kernel - expected) <= 1.1 * largest / 127).all()


@needs_qwix
def test_parameters_without_kernels_are_refused():
    found = from_function(lambda p, x: x @ p["w"], params={"w": jnp.ones((2, 2))})
    with pytest.raises(ValueError, match="no parameter is called 'kernel'"):
        quantize(found.init(jax.random.key(0)), "int8")


def test_what_is_missing_and_what_is_unknown_is_said(monkeypatch):
    _, variables = network()
    with pytest.raises(ValueError, match=r"quantize must be one of .* got 'int4'"):
        quantize(variables, "int4")
    with pytest.raises(ValueError, match=r"weights of a teacher must be one of .* got 'int4'"):
        keep(variables, "int4")
    monkeypatch.setitem(sys.modules, "qwix", None)
    with pytest.raises(ImportError, match=r"pip install 'kdjax\[quantization\]'"):
        quantize(variables, "int8")
