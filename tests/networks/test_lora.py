"""LoRA: the base at the start, gradients in A and B alone, and the same network once merged."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from kdjax.networks import LoRA, as_network, attach, build

X = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
TOKENS = np.array([[1, 5, 2, 7], [3, 3, 0, 6]])
EVERY = LoRA(r"block\d+/.*kernel$", rank=2, alpha=6.0)


class Twice(nn.Module):
    """A layer that is used again, one that keeps heads apart and one that contracts them."""

    @nn.compact
    def __call__(self, x, train=False):
        again = nn.Dense(4, name="again")
        x = again(nn.relu(again(x)))
        x = nn.DenseGeneral((2, 3), name="split")(x)
        return nn.DenseGeneral(5, axis=(-2, -1), name="join")(x)


class Batched(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        return nn.BatchNorm(use_running_average=not train)(nn.Dense(3, name="layer")(x))


@functools.cache
def networks():
    """name -> (network, LoRA, inputs)."""
    decoder = dict(width=8, num_layers=1, num_heads=2, num_key_value_heads=1, hidden=12)
    heads = LoRA("kernel$", rank=2, alpha=6.0, inputs=(("join/kernel", 2),))
    every = dataclasses.replace(heads, inputs=())
    return {
        "decoder": (build("decoder", num_classes=9, **decoder), EVERY, TOKENS),
        "remat": (build("decoder", num_classes=9, remat="block", **decoder), EVERY, TOKENS),
        "bfloat16": (build("decoder", num_classes=9, dtype="bfloat16", **decoder), EVERY, TOKENS),
        "heads": (as_network(Twice()), heads, X),
        "nnx": (as_network(lambda rngs: nnx.Linear(4, 3, rngs=rngs)), every, X),
    }


def output(applied):
    out = applied.output
    return out["logits"] if isinstance(out, dict) else out


@functools.cache
def changed(name):
    """`(network, adapted, lora, base, variables, inputs)`, with an A and a B that do something."""
    network, lora, inputs = networks()[name]
    base = jax.jit(network.init)(jax.random.key(0), inputs)
    adapted = lora.network(network)
    start = jax.jit(adapted.init)(jax.random.key(1), inputs)
    leaves, structure = jax.tree.flatten(start)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    moved = [x + 0.2 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys)]
    return network, adapted, lora, base, start, structure.unflatten(moved), inputs


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("remat", "bfloat16")]
NAMES = ["decoder", "heads", "nnx", *SLOW]


@functools.cache
def outputs(name):
    """What the base says, and what it says with the change beside it: at the start, and moved."""
    network, adapted, _, base, start, moved, inputs = changed(name)
    plain = jax.jit(lambda v: output(network.apply(v, inputs)))
    beside = jax.jit(lambda v: output(adapted.apply(v, inputs)))
    return plain, plain(base), *(beside(attach(base, v)) for v in (start, moved))


@pytest.mark.parametrize("name", NAMES)
def test_at_the_start_it_is_the_base(name):
    _, adapted, lora, base, start, _, inputs = changed(name)
    _, plain, found, _ = outputs(name)
    np.testing.assert_array_equal(found, plain)
    jax.tree.map(np.testing.assert_array_equal, jax.jit(lora.merge)(base, start), base)
    shapes = jax.eval_shape(lambda v: adapted.apply(v, inputs).variables, attach(base, start))
    assert shapes == jax.eval_shape(lambda: start)


@pytest.mark.parametrize("name", NAMES)
def test_merged_it_does_what_it_did_beside_the_base(name):
    _, _, lora, base, _, moved, _ = changed(name)
    run, plain, _, beside = outputs(name)
    merged = run(jax.jit(lora.merge)(base, moved))
    rough = name == "bfloat16"
    np.testing.assert_allclose(beside, merged, rtol=1e-4, atol=5e-2 if rough else 1e-5)
    assert np.abs(np.asarray(beside) - np.asarray(plain)).max() > 0.1


@pytest.mark.parametrize("name", NAMES[:4])
def test_gradients_are_those_of_the_merged_network_and_none_reach_the_base(name):
    network, adapted, lora, base, _, moved, inputs = changed(name)

    def beside(base, variables):
        return jnp.sum(jnp.sin(output(adapted.apply(attach(base, variables), inputs, train=True))))

    def merged(variables):
        return jnp.sum(jnp.sin(output(network.apply(lora.merge(base, variables), inputs))))

    frozen, found = jax.jit(jax.grad(beside, argnums=(0, 1)))(base, moved)
    expected = jax.jit(jax.grad(merged))(moved)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), found, expected
    )
    assert all(np.abs(x).max() > 0 for x in jax.tree.leaves(found))
    assert not any(np.any(x) for x in jax.tree.leaves(frozen))


def test_parameters_are_those_of_the_kernels_that_match():
    *_, start, _, _ = changed("decoder")
    shapes = jax.tree.map(jnp.shape, start["params"]["block0"])
    assert shapes["key"]["kernel"] == {"a": (8, 2), "b": (2, 4)}
    assert sorted(shapes) == ["down", "gate", "key", "out", "query", "up", "value"]
    assert sorted(start["params"]) == ["block0"]
    a = start["params"]["block0"]["down"]["kernel"]["a"]  # of 12 inputs
    assert 0.5 * 12**-0.5 < np.abs(a).max() <= 12**-0.5


def test_dropout_acts_in_training_only_and_keeps_the_mean():
    network, _, lora, base, _, moved, inputs = changed("nnx")
    adapted = dataclasses.replace(lora, dropout=0.5).network(network)
    variables = attach(base, moved)
    still = output(adapted.apply(variables, inputs, rng=jax.random.key(0)))

    @jax.jit
    @jax.vmap
    def draw(key):
        return output(adapted.apply(variables, inputs, train=True, rng=key))

    drawn = draw(jax.random.split(jax.random.key(0), 4000))
    np.testing.assert_allclose(drawn.mean(0), still, atol=0.05)
    assert drawn.std(0).max() > 0.1
    with pytest.raises(ValueError, match=r"dropout=0.5 needs a random key"):
        adapted.apply(variables, inputs, train=True)


def test_what_cannot_be_adapted_is_refused():
    network, _, lora, base, start, _, inputs = changed("heads")
    for fields, message in (
        ({"rank": 0}, "rank must be at least 1, got 0"),
        ({"alpha": 0.0}, "alpha must be positive"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        ({"inputs": (("x", 0),)}, "inputs of 'x' must be at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(lora, **fields)
    with pytest.raises(ValueError, match="matches no parameter of the base; it has"):
        dataclasses.replace(lora, pattern="kernels").init(jax.random.key(0), base)
    with pytest.raises(ValueError, match=r"must match kernels \[in, out\], but again/bias"):
        dataclasses.replace(lora, pattern="again").init(jax.random.key(0), base)
    wrong = dataclasses.replace(lora, inputs=())
    with pytest.raises(ValueError, match="the layer of join/kernel must contract"):
        wrong.network(network).apply(attach(base, wrong.init(jax.random.key(0), base)), inputs)
    with pytest.raises(ValueError, match="is where LoRA acts"):
        lora.network(network).apply(attach(base, start), inputs, edits={"join/out*": jnp.sin})
    batched = as_network(Batched())
    base = batched.init(jax.random.key(0), X)
    lora = LoRA("layer/kernel", rank=1, alpha=1.0)
    variables = attach(base, lora.init(jax.random.key(0), base))
    assert output(lora.network(batched).apply(variables, X)).shape == (3, 3)
    with pytest.raises(ValueError, match="must not change, but it has 'batch_stats'"):
        lora.network(batched).apply(variables, X, train=True)
