"""One network in three libraries gives the same numbers, and the same rules hold for all."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from kdjax.networks import (
    Applied,
    Network,
    as_network,
    count_parameters,
    from_function,
    from_linen,
    from_nnx,
    logits_of,
)

X = jax.random.normal(jax.random.key(1), (4, 6))
KEY = jax.random.key(0)


class LinenMLP(nn.Module):
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x, train=False):
        h = nn.Dense(5, name="hidden")(x)
        h = nn.BatchNorm(not train, momentum=0.9, name="norm")(h)
        h = nn.Dropout(self.dropout, deterministic=not train)(nn.relu(h))
        return {"logits": nn.Dense(3, name="head")(h), "features": h}


class NnxMLP(nnx.Module):
    def __init__(self, rngs, dropout=0.0):
        self.hidden = nnx.Linear(6, 5, rngs=rngs)
        self.norm = nnx.BatchNorm(5, momentum=0.9, rngs=rngs)
        self.dropout = nnx.Dropout(dropout, rngs=rngs)
        self.head = nnx.Linear(5, 3, rngs=rngs)

    def __call__(self, x):
        h = self.dropout(nnx.relu(self.norm(self.hidden(x))))
        return {"logits": self.head(h), "features": h}


def plain_mlp(params, x):
    h = x @ params["hidden"]["kernel"] + params["hidden"]["bias"]
    h = (h - 0.0) / jnp.sqrt(1.0 + 1e-5) * params["norm"]["scale"] + params["norm"]["bias"]
    h = jax.nn.relu(h)
    return {"logits": h @ params["head"]["kernel"] + params["head"]["bias"], "features": h}


def values(tree):
    return jax.tree.map(np.array, tree)


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, values(a), values(b))


@pytest.fixture(scope="module")
def linen():
    network = from_linen(LinenMLP())
    return network, network.init(KEY, X)


def test_linen_nnx_and_a_plain_function_agree_on_the_same_weights(linen):
    network, variables = linen
    expected = network.apply(variables, X).output
    by_nnx = from_nnx(NnxMLP)
    assert jax.tree.structure(by_nnx.init(KEY)) == jax.tree.structure(variables)
    by_function = from_function(plain_mlp, params=variables["params"])
    for other, given in ((by_nnx, variables), (by_function, by_function.init(KEY))):
        actual = other.apply(given, X).output
        for name in ("logits", "features"):
            np.testing.assert_allclose(actual[name], expected[name], rtol=1e-5, atol=1e-6)


def test_linen_and_nnx_train_alike(linen):
    network, variables = linen
    a = network.apply(variables, X, train=True)
    b = from_nnx(NnxMLP).apply(variables, X, train=True)
    np.testing.assert_allclose(a.output["logits"], b.output["logits"], rtol=1e-5, atol=1e-6)
    for statistic in ("mean", "var"):
        moved = a.variables["batch_stats"]["norm"][statistic]
        np.testing.assert_allclose(moved, b.variables["batch_stats"]["norm"][statistic], rtol=1e-5)


@pytest.mark.parametrize("network", [from_linen(LinenMLP()), from_nnx(NnxMLP)])
def test_batch_statistics_move_in_training_only_and_params_never(network):
    variables = network.init(KEY, X)
    before = values(variables)
    evaluated = network.apply(variables, X)
    trained = jax.jit(lambda v: network.apply(v, X, train=True).variables)(variables)
    assert_equal(evaluated.variables, before)
    assert_equal(trained["params"], before["params"])
    assert np.abs(trained["batch_stats"]["norm"]["mean"]).max() > 0
    assert_equal(variables, before)


@pytest.mark.parametrize(
    "network",
    [from_linen(LinenMLP(dropout=0.5)), from_nnx(lambda rngs: NnxMLP(rngs, dropout=0.5))],
)
def test_dropout_needs_a_key_in_training_and_uses_it(network):
    variables = network.init(KEY, X)
    with pytest.raises(ValueError, match=r"train=True and rng=None"):
        network.apply(variables, X, train=True)

    def logits(**options):
        return np.array(network.apply(variables, X, **options).output["logits"])

    first = logits(train=True, rng=jax.random.key(1))
    np.testing.assert_array_equal(first, logits(train=True, rng=jax.random.key(1)))
    assert (first != logits(train=True, rng=jax.random.key(2))).any()
    np.testing.assert_array_equal(logits(), logits(rng=jax.random.key(1)))


def test_no_collection_moves_in_evaluation():
    class Counter(nn.Module):
        @nn.compact
        def __call__(self, x):
            count = self.variable("count", "calls", lambda: jnp.zeros(()))
            if self.is_mutable_collection("count"):
                count.value += 1
            return x

    network = from_linen(Counter())
    variables = network.init(KEY, X)
    for train in (False, True):
        moved = network.apply(variables, X, train=train, taps=("out",)).variables["count"]["calls"]
        assert float(moved - variables["count"]["calls"]) == train


def test_nnx_layers_under_scan_work_with_and_without_a_key():
    class Layer(nnx.Module):
        def __init__(self, rngs):
            self.linear = nnx.Linear(6, 6, rngs=rngs)
            self.dropout = nnx.Dropout(0.5, rngs=rngs)

        def __call__(self, x):
            return self.dropout(jnp.tanh(self.linear(x)))

    class Scanned(nnx.Module):
        def __init__(self, rngs):
            vmapped = nnx.vmap(Layer, in_axes=0, out_axes=0)
            self.layers = nnx.split_rngs(splits=3)(vmapped)(rngs)

        def __call__(self, x):
            scan = nnx.scan(lambda layer, x: layer(x), in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
            return scan(self.layers, x)

    network = from_nnx(Scanned)
    variables = network.init(KEY)
    h, linear = X, variables["params"]["layers"]["linear"]
    for kernel, bias in zip(linear["kernel"], linear["bias"]):
        h = jnp.tanh(h @ kernel + bias)
    np.testing.assert_allclose(network.apply(variables, X).output, h, rtol=1e-5, atol=1e-6)
    dropped = network.apply(variables, X, train=True, rng=KEY).output
    assert 0 < (np.array(dropped) == 0).mean() < 1
    with pytest.raises(ValueError, match="train=True and rng=None"):
        network.apply(variables, X, train=True)


def test_linen_init_equals_flax_with_the_same_key():
    module = LinenMLP()
    assert_equal(from_linen(module).init(KEY, X), dict(module.init(KEY, X)))


def test_linen_dropout_equals_flax_with_the_same_key():
    module = LinenMLP(dropout=0.5)
    network = from_linen(module)
    variables = network.init(KEY, X)
    expected, _ = module.apply(
        variables, X, train=True, rngs={"dropout": KEY}, mutable=["batch_stats"]
    )
    assert_equal(network.apply(variables, X, train=True, rng=KEY).output, expected)


def test_random_streams_of_any_name_get_a_key_of_their_own():
    class Noisy(nn.Module):
        @nn.compact
        def __call__(self, x, training=False):
            if not training:
                return x
            names = ("dropout", "noise", "path")
            return jnp.stack([jax.random.normal(self.make_rng(name), x.shape) for name in names])

    drawn = from_linen(Noisy()).apply({"params": {}}, X, train=True, rng=KEY).output
    assert len({float(value) for value in drawn[:, 0, 0]}) == 3


@pytest.mark.parametrize("argument", ["train", "training", "is_training"])
def test_a_module_is_told_by_the_argument_it_has(argument):
    namespace = {"jnp": jnp, "nn": nn}
    exec(
        f"class Told(nn.Module):\n"
        f"    def __call__(self, x, {argument}):\n"
        f"        return jnp.float32({argument})",
        namespace,
    )
    network = from_linen(namespace["Told"]())
    assert float(network.apply({"params": {}}, X, train=True).output) == 1.0
    assert float(network.apply({"params": {}}, X).output) == 0.0


def test_deterministic_is_the_opposite_of_train():
    network = from_linen(nn.Dropout(0.5))
    assert_equal(network.apply({"params": {}}, X).output, X)
    dropped = network.apply({"params": {}}, X, train=True, rng=KEY).output
    assert (np.array(dropped) == 0).any()


def test_a_module_without_a_train_argument_works():
    network = from_linen(nn.Sequential([nn.Dense(4), nn.relu, nn.Dense(3)]))
    variables = network.init(KEY, X)
    assert network.apply(variables, X, train=True, rng=KEY).output.shape == (4, 3)


def test_a_method_and_further_options_of_the_call():
    embed = nn.Embed(7, 6)
    network = from_linen(embed, method="attend")
    variables = from_linen(embed).init(KEY, jnp.zeros((1,), jnp.int32))
    expected = X @ variables["params"]["embedding"].T
    np.testing.assert_allclose(network.apply(variables, X).output, expected, rtol=1e-5)

    class Scaled(nn.Module):
        def __call__(self, x, scale=1.0):
            return scale * x

    assert_equal(from_linen(Scaled(), scale=2.0).apply({"params": {}}, X).output, 2 * X)
    with pytest.raises(TypeError, match="'scael'"):
        from_linen(Scaled(), scael=2.0)


def test_an_nnx_instance_starts_from_its_own_values_and_keeps_its_arrays():
    module = NnxMLP(nnx.Rngs(3))
    network = from_nnx(module)
    variables = network.init(KEY, X)
    assert_equal(variables["params"]["head"]["kernel"], module.head.kernel.get_value())
    donated = jax.jit(lambda v: jax.tree.map(lambda x: x + 1, v), donate_argnums=0)(variables)
    jax.block_until_ready(donated)
    assert module(X)["logits"].shape == (4, 3)
    moved = network.apply(network.init(KEY), X, train=True).variables["batch_stats"]
    assert (np.array(moved["norm"]["mean"]) != np.array(module.norm.mean.get_value())).any()


def test_other_nnx_state_and_modules_in_lists_are_kept():
    class Counter(nnx.Variable):
        pass

    class Listed(nnx.Module):
        def __init__(self, rngs):
            self.layers = nnx.List([nnx.Linear(6, 6, rngs=rngs) for _ in range(2)])
            self.calls = Counter(jnp.zeros(()))

        def __call__(self, x):
            self.calls.set_value(self.calls.get_value() + 1)
            for layer in self.layers:
                x = layer(x)
            return x

    network = from_nnx(Listed)
    variables = network.init(KEY)
    assert set(variables["params"]["layers"]) == {"0", "1"}
    trained = network.apply(variables, X, train=True).variables
    assert float(trained["counter"]["calls"]) == 1.0
    assert float(network.apply(variables, X).variables["counter"]["calls"]) == 0.0


def test_gradients_of_nnx_equal_those_of_linen(linen):
    network, variables = linen

    def loss(params, network):
        applied = network.apply({**variables, "params": params}, X, train=True)
        return jnp.sum(applied.output["logits"] ** 2)

    a, b = (
        jax.jit(jax.grad(loss), static_argnums=1)(variables["params"], n)
        for n in (network, from_nnx(NnxMLP))
    )
    jax.tree.map(lambda p, q: np.testing.assert_allclose(p, q, rtol=1e-4, atol=1e-5), a, b)


def test_a_plain_function_gets_train_and_rng_if_it_asks_for_them():
    def keyword(params, x, train, rng):
        return x + train * jax.random.normal(rng if train else KEY, x.shape)

    def second(params, rng, x):
        return x + jax.random.normal(rng, x.shape)

    network = from_function(keyword, lambda rng: {})
    assert_equal(network.apply(network.init(KEY, X), X).output, X)
    noise = jax.random.normal(KEY, X.shape)
    for function in (keyword, second):
        network = from_function(function, lambda rng, x: {})
        output = network.apply(network.init(KEY, X), X, train=True, rng=KEY).output
        np.testing.assert_allclose(output, X + noise)
        with pytest.raises(ValueError, match="rng"):
            network.apply(network.init(KEY, X), X, train=True)


def test_from_function_refuses_what_it_cannot_know():
    with pytest.raises(TypeError, match="either init or params"):
        from_function(plain_mlp)
    with pytest.raises(TypeError, match="keeps a state"):
        from_function(lambda params, state, x: x, lambda rng: {})


def test_as_network_recognises_everything(linen):
    network, _ = linen
    assert as_network(network) is network
    given = [LinenMLP(), NnxMLP, NnxMLP(nnx.Rngs(0)), lambda rngs: NnxMLP(rngs)]
    given.append((lambda rng, x: {"w": jnp.ones((6, 3))}, lambda params, x: x @ params["w"]))
    for each in given:
        made = as_network(each)
        assert isinstance(made, Network)
        applied = made.apply(made.init(KEY, X), X)
        assert isinstance(applied, Applied)
        assert logits_of(applied.output).shape == (4, 3)
    with pytest.raises(TypeError, match=r"give an instance, LinenMLP\(\.\.\.\)"):
        as_network(LinenMLP)
    with pytest.raises(TypeError, match="Flax Linen module"):
        as_network(3)


def test_a_network_is_hashable_by_identity():
    a, b = from_linen(LinenMLP()), from_linen(LinenMLP())
    assert len({a, b, a}) == 2


def test_logits_of_names_the_keys_there_are():
    with pytest.raises(ValueError, match=r"\['main'\]"):
        logits_of({"main": X})
    with pytest.raises(TypeError, match="tuple"):
        logits_of((X,))


def test_count_parameters_counts_params_only(linen):
    assert count_parameters(linen[1]) == 6 * 5 + 5 + 2 * 5 + 5 * 3 + 3
