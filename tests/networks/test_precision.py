"""Mixed precision: what is narrow, what stays float32, and what a frozen role is kept in."""

import functools

import jax
import numpy as np
import pytest
from flax import nnx
from jax import numpy as jnp

from kdjax.networks import as_network, build, from_function, from_nnx, in_precision
from kdjax.networks.precision import stored

X = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)
IMAGES = np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype(np.float32)


class NnxNet(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(5, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.second = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        return self.second(nnx.relu(self.norm(self.first(x))))


NETWORKS = {
    "linen": (build("mlp", 3, widths=(8,), norm=True), X),
    "nnx": (from_nnx(lambda rngs: NnxNet(rngs)), X),
    "function": (
        from_function(lambda params, x: x @ params["w"], params={"w": jnp.ones((5, 3)) / 3}),
        X,
    ),
    "resnet": (build("resnet8", 3, widths=(4, 4, 8, 8)), IMAGES),
}


def dtypes(tree):
    return {str(leaf.dtype) for leaf in jax.tree.leaves(tree) if hasattr(leaf, "dtype")}


@functools.cache
def start(name):
    network, x = NETWORKS[name]
    return network.init(jax.random.key(0), jnp.asarray(x))


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        ("linen", "bfloat16"),
        ("nnx", "bfloat16"),
        ("function", "float16"),
        *(pytest.param(n, "float16", marks=pytest.mark.slow) for n in ("linen", "nnx", "resnet")),
        pytest.param("resnet", "bfloat16", marks=pytest.mark.slow),
    ],
)
def test_parameters_gradients_outputs_and_statistics_are_float32_but_computed_narrowly(
    name, precision
):
    network, x = NETWORKS[name]
    narrow, variables = in_precision(network, precision), start(name)
    rest = {k: v for k, v in variables.items() if k != "params"}

    def loss(params, apply):
        out = apply({**rest, "params": params}, x, train=True)
        leaves = jax.tree.leaves(out.output)
        return sum((leaf**2).sum() for leaf in leaves), (out.output, out.variables)

    gradient, (output, changed) = jax.grad(loss, has_aux=True)(variables["params"], narrow.apply)
    exact, (wide, _) = jax.grad(loss, has_aux=True)(variables["params"], network.apply)
    assert dtypes([gradient, output, changed, narrow.init(jax.random.key(0), x)]) == {"float32"}
    assert changed["params"] is variables["params"] or all(
        a is b for a, b in zip(*map(jax.tree.leaves, (changed["params"], variables["params"])))
    )
    for a, b in zip(jax.tree.leaves([output, gradient]), jax.tree.leaves([wide, exact])):
        assert np.linalg.norm(a - b) < 0.2 * (1 + np.linalg.norm(b))
    assert any((a != b).any() for a, b in zip(*map(jax.tree.leaves, (output, wide))))
    jaxpr = str(jax.make_jaxpr(lambda p: loss(p, narrow.apply)[0])(variables["params"]))
    assert f"{'bf16' if precision == 'bfloat16' else 'f16'}[" in jaxpr


@pytest.mark.parametrize("name", ["linen", "nnx"])
def test_running_statistics_follow_those_of_float32_for_hundreds_of_steps(name):
    network, _ = NETWORKS[name]
    narrow = in_precision(network, "bfloat16")

    @jax.jit
    def follow(variables, xs):
        def step(both, x):
            after = (n.apply(v, x, train=True).variables for n, v in zip((network, narrow), both))
            return tuple(after), None

        return jax.lax.scan(step, (variables, variables), xs)[0]

    xs = np.random.default_rng(1).normal(3.0, 1.0, (400, 16, 5)).astype(np.float32)
    exact, rounded = (v["batch_stats"] for v in follow(start(name), xs))
    assert dtypes(rounded) == {"float32"}
    for a, b in zip(*map(jax.tree.leaves, (exact, rounded))):
        np.testing.assert_allclose(a, b, rtol=0.02, atol=0.02)


def test_integers_and_keys_are_left_alone_and_taps_and_edits_see_float32():
    def apply(params, ids, x, key):
        assert (ids.dtype, x.dtype) == (jnp.int32, jnp.bfloat16)
        return params["table"][ids] * x[:, None] + jax.random.normal(key, (), x.dtype)

    ids = jnp.array([300, 2], jnp.int32)  # bfloat16 has no 301
    network = as_network(from_function(apply, params={"table": jnp.arange(302.0)[:, None]}))
    narrow = in_precision(network, "bfloat16")
    variables, seen = narrow.init(jax.random.key(0)), []

    def edit(value):
        seen.append(value.dtype)
        return value + 1

    found = narrow.apply(
        variables, ids, jnp.ones(2), jax.random.key(1), taps=("out",), edits={"out": edit}
    )
    assert seen == [jnp.float32]
    assert dtypes([found.output, found.taps]) == {"float32"}
    np.testing.assert_array_equal(found.output, found.taps["out"])


def test_float32_is_the_network_itself_and_equal_requests_are_one_object():
    network, _ = NETWORKS["linen"]
    assert in_precision(network, "float32") is network
    assert in_precision(network, "bfloat16") is in_precision(network, "bfloat16")
    with pytest.raises(ValueError, match=r"precision must be one of .* got 'bf16'"):
        in_precision(network, "bf16")


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        ("linen", "bfloat16"),
        pytest.param("resnet", "bfloat16", marks=pytest.mark.slow),
        pytest.param("nnx", "float16", marks=pytest.mark.slow),
        pytest.param("decoder", "bfloat16", marks=pytest.mark.slow),
    ],
)
def test_a_frozen_role_kept_in_the_narrow_type_gives_the_same_bits(name, precision):
    if name == "decoder":
        options = dict(width=8, num_layers=2, num_heads=2, hidden=16, attention_bias=True)
        network, x = build("decoder", 7, **options, dtype=precision), np.arange(8).reshape(2, 4) % 7
        variables = network.init(jax.random.key(0), jnp.asarray(x))
        assert network.apply(variables, x).output["features"].dtype == precision
    else:
        (network, x), variables = NETWORKS[name], start(name)
        network = in_precision(network, precision)
    kept = stored(variables, precision)
    sizes = [sum(leaf.nbytes for leaf in jax.tree.leaves(v["params"])) for v in (kept, variables)]
    assert sizes[0] < 0.75 * sizes[1]
    assert dtypes(kept["params"]) == {precision, "float32"}
    forward = jax.jit(lambda variables: network.apply(variables, x).output)
    jax.tree.map(np.testing.assert_array_equal, forward(variables), forward(kept))
