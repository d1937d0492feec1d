"""Masks of features, and gates among teachers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import networks
from kdjax.networks import GateNet, MaskNet, available_taps, from_linen, masked_feature


@pytest.mark.parametrize("shape", [(4, 8), (4, 5, 3, 8), (4, 1, 1, 8)])
def test_a_mask_is_one_value_in_0_1_a_channel(shape):
    x = 3 * jax.random.normal(jax.random.key(0), shape)
    net = from_linen(MaskNet(heads=2))
    variables = net.init(jax.random.key(1), x)
    mask = net.apply(variables, x).output
    assert mask.shape == (4, 8)
    assert 0 < mask.min() < mask.max() < 1
    assert masked_feature(x, mask).shape == shape
    assert ("batch_stats" in variables) == (shape == (4, 5, 3, 8))


def test_a_mask_of_ones_is_the_teacher_bit_for_bit():
    mlp = networks.build("mlp", 3, widths=(8, 6))
    x = jax.random.normal(jax.random.key(0), (5, 4))
    variables = mlp.init(jax.random.key(1), x)
    mask = jnp.ones((5, 6))
    edits = {"dense1/out": lambda value: masked_feature(value, mask)}
    assert "dense1/out" in available_taps(mlp, variables, x)
    masked = mlp.apply(variables, x, edits=edits).output["logits"]
    np.testing.assert_array_equal(masked, mlp.apply(variables, x).output["logits"])


@pytest.mark.parametrize("shape", [(4, 3), (4, 5, 3, 3)])
def test_a_gate_has_a_row_an_example(shape):
    x = jax.random.normal(jax.random.key(0), shape)
    net = from_linen(GateNet(5))
    assert net.apply(net.init(jax.random.key(1), x), x).output.shape == (4, 5)


def test_the_gate_of_vectors_is_affine():
    x, y = jax.random.normal(jax.random.key(0), (2, 4, 3))
    net = from_linen(GateNet(5))
    variables = net.init(jax.random.key(1), x)
    out = [net.apply(variables, v).output for v in (x, y, x + y, 0 * x)]
    np.testing.assert_allclose(out[0] + out[1] - out[3], out[2], atol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MaskNet().init(jax.random.key(0), jnp.ones((2, 5))), "at least 6 channels, got 5"),
        (lambda: MaskNet().init(jax.random.key(0), jnp.ones((2, 3, 9))), "features .* got shape"),
        (lambda: GateNet(2).init(jax.random.key(0), jnp.ones((2, 3, 9))), "logits .* got shape"),
        (lambda: masked_feature(jnp.ones((2, 3)), jnp.ones((2, 4))), r"= \[2, 3\], got \[2, 4\]"),
        (lambda: networks.mask_width(9, heads=0), "heads must be at least 1, got 0"),
    ],
)
def test_bad_input_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
