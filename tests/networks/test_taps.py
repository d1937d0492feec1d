"""Taps reach any value of modules that the library has never seen."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from kdjax.networks import available_taps, from_function, from_linen, from_nnx

X = jax.random.normal(jax.random.key(1), (4, 6))
KEY = jax.random.key(0)


class Cell(nn.Module):
    """Returns a tuple, as a scanned module must."""

    @nn.compact
    def __call__(self, h, _):
        self.sow("intermediates", "before", h)
        return nn.tanh(nn.Dense(6, name="dense")(h)), None


class Pair(nn.Module):
    @nn.compact
    def __call__(self, x):
        return {"a": nn.Dense(2, name="dense")(x), "b": (x, "a string")}


class Parent(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(6, name="dense")(x)


class Child(Parent):
    @nn.compact
    def __call__(self, x):
        return 2 * super().__call__(x)


class Strange(nn.Module):
    """Setup-style, compact, shared, scanned, vmapped, rematerialised and sowing submodules."""

    def setup(self):
        self.shared = nn.Dense(6)
        self.embed = nn.Embed(3, 6)
        self.pair = Pair()
        self.child = Child()
        self.kept = nn.remat(Parent)()
        lifted = {"split_rngs": {"params": True}, "length": 3}
        self.layers = nn.scan(Cell, variable_axes={"params": 0, "intermediates": 0}, **lifted)()
        self.closed = nn.scan(Cell, variable_axes={"params": 0}, **lifted)()
        self.heads = nn.vmap(
            Parent,
            variable_axes={"params": 0, "intermediates": 0},
            split_rngs={"params": True},
            in_axes=None,
            axis_size=2,
        )()

    def __call__(self, x):
        h = self.shared(nn.relu(self.shared(x)))
        h = self.child(self.kept(h))
        self.sow("intermediates", "middle", h)
        h, _ = self.layers(h, None)
        h, _ = self.closed(h, None)
        h = h + self.heads(h).sum(0)
        return {"logits": self.embed.attend(h), "pair": self.pair(h)["a"]}


@pytest.fixture(scope="module")
def strange():
    network = from_linen(Strange())
    return network, jax.jit(network.init)(KEY, X)


@pytest.fixture(scope="module")
def everything(strange):
    network, variables = strange
    return jax.jit(lambda v, x: network.apply(v, x, taps=("**",)))(variables, X)


def dense(params, x):
    return x @ params["kernel"] + params["bias"]


def test_tapped_values_equal_values_computed_by_hand(strange, everything):
    params, taps = strange[1]["params"], everything.taps
    expected = {"in": X, "shared/in": X}
    expected["shared/out"] = h = dense(params["shared"], X)
    expected["shared/in#1"] = h = jax.nn.relu(h)
    expected["shared/out#1"] = expected["kept/in"] = h = dense(params["shared"], h)
    expected["kept/dense/out"] = expected["kept/out"] = h = dense(params["kept"]["dense"], h)
    expected["child/dense/out"] = h = dense(params["child"]["dense"], h)
    expected["child/out"] = expected["middle"] = h = 2 * h
    befores, sums, outs = [], [], []
    for i in range(3):
        befores.append(h)
        cell = jax.tree.map(lambda leaf, i=i: leaf[i], params["layers"]["dense"])
        sums.append(dense(cell, h))
        outs.append(h := jnp.tanh(sums[-1]))
    expected["layers/before"] = expected["layers/in"] = jnp.stack(befores)
    expected["layers/out/0"] = jnp.stack(outs)
    expected["layers/dense/out"] = jnp.stack(sums)
    for i in range(3):
        cell = jax.tree.map(lambda leaf, i=i: leaf[i], params["closed"]["dense"])
        h = jnp.tanh(dense(cell, h))
    both = [jax.tree.map(lambda leaf, i=i: leaf[i], params["heads"]["dense"]) for i in range(2)]
    expected["heads/out"] = jnp.stack([dense(head, h) for head in both])
    expected["pair/in"] = expected["embed/attend()/in"] = h = h + expected["heads/out"].sum(0)
    expected["embed/attend()/out"] = expected["logits"] = h @ params["embed"]["embedding"].T
    expected["pair/out/a"] = expected["pair"] = dense(params["pair"]["dense"], h)
    expected["pair/out/b/0"] = h
    for name, value in expected.items():
        np.testing.assert_allclose(taps[name], value, rtol=1e-4, atol=1e-5, err_msg=name)
    assert not any("string" in name for name in taps)
    assert "child/out#1" not in taps, "super().__call__ is not another call"


def test_taps_change_neither_output_nor_variables(strange, everything):
    network, variables = strange
    plain = jax.jit(network.apply)(variables, X)
    for name in plain.output:
        # Another program, which may round in another order.
        np.testing.assert_allclose(
            everything.output[name], plain.output[name], rtol=2e-6, atol=1e-7
        )
    assert jax.tree.structure(everything.variables) == jax.tree.structure(plain.variables)
    assert plain.taps == {}


def test_taps_compute_nothing_twice(strange):
    network, variables = strange

    def products(taps):
        program = jax.make_jaxpr(lambda v, x: network.apply(v, x, taps=taps))(variables, X)
        return str(program).count("dot_general")

    assert products(()) == products(("**",)) > 0


def test_available_taps_lists_names_and_shapes_without_computing(strange, everything):
    network, variables = strange
    shapes = jax.eval_shape(lambda: variables)
    listed = available_taps(network, shapes, jax.ShapeDtypeStruct(X.shape, X.dtype))
    assert {name: value.shape for name, value in listed.items()} == {
        name: value.shape for name, value in everything.taps.items()
    }


def test_patterns_stay_inside_a_component_unless_they_are_double(strange):
    network, variables = strange

    def names(*taps):
        shapes = jax.eval_shape(lambda v: network.apply(v, X, taps=taps).taps, variables)
        return set(shapes)

    assert names("*/out") == {"shared/out", "kept/out", "child/out", "heads/out"}
    assert names("shared/out*") == {"shared/out", "shared/out#1"}
    assert names("shared/*#1") == {"shared/in#1", "shared/out#1"}
    assert names("k?pt/**/out") == {"kept/out", "kept/dense/out"}
    assert names("[!l-z]*/dense/out") == {"child/dense/out", "kept/dense/out", "heads/dense/out"}
    assert names("pair/**") == {"pair/in", "pair/out/a", "pair/out/b/0"} | {
        "pair/dense/in",
        "pair/dense/out",
    }
    assert names("logits", "middle") == {"logits", "middle"}


def test_a_pattern_that_matches_nothing_lists_the_nearest(strange):
    network, variables = strange
    with pytest.raises(ValueError, match=r"'sharde/out' matches nothing.*shared/out"):
        network.apply(variables, X, taps=("logits", "sharde/out"))
    with pytest.raises(ValueError, match=r"edits: 'middel' matches nothing"):
        network.apply(variables, X, edits={"middel": lambda x: x})
    with pytest.raises(TypeError, match="sequence of patterns"):
        network.apply(variables, X, taps="logits")


def test_a_value_that_cannot_leave_a_scan_says_what_to_do(strange):
    network, variables = strange
    with pytest.raises(ValueError, match=r"closed/out/0.*variable_axes=\{'intermediates': 0"):
        network.apply(variables, X, taps=("closed/out/*",))


def test_a_gradient_through_a_tapped_value_is_right(strange):
    network, variables = strange

    def by_tap(params):
        taps = network.apply({"params": params}, X, taps=("kept/out", "layers/out/0")).taps
        return jnp.sum(taps["kept/out"] ** 2) + jnp.sum(taps["layers/out/0"][1])

    def by_hand(params):
        kept = dense(params["shared"], jax.nn.relu(dense(params["shared"], X)))
        kept = dense(params["kept"]["dense"], kept)
        h = 2 * dense(params["child"]["dense"], kept)
        for i in range(2):
            cell = jax.tree.map(lambda leaf, i=i: leaf[i], params["layers"]["dense"])
            h = jnp.tanh(dense(cell, h))
        return jnp.sum(kept**2) + jnp.sum(h)

    actual, expected = (jax.jit(jax.grad(f))(variables["params"]) for f in (by_tap, by_hand))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), actual, expected
    )
    assert np.abs(actual["kept"]["dense"]["kernel"]).max() > 0


def test_taps_work_under_vmap(strange, everything):
    network, variables = strange
    tapped = jax.jit(jax.vmap(lambda x: network.apply(variables, x, taps=("**/dense/out",)).taps))(
        X[:, None]
    )
    for name in ("child/dense/out", "kept/dense/out"):
        np.testing.assert_allclose(tapped[name][:, 0], everything.taps[name], rtol=1e-5, atol=1e-6)


def test_an_edit_acts_where_the_value_arises_and_taps_see_it(strange):
    network, variables = strange
    params = variables["params"]

    def edited(name, function, *taps):
        run = jax.jit(lambda v: network.apply(v, X, taps=taps, edits={name: function}))
        return run(variables)

    def halve(x):
        return x / 2

    second = dense(params["shared"], jax.nn.relu(dense(params["shared"], X) / 2))
    applied = edited("shared/out", halve, "shared/*")
    np.testing.assert_allclose(applied.taps["shared/out#1"], second, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(applied.taps["shared/out"], dense(params["shared"], X) / 2)
    applied = edited("shared/in", halve, "shared/*")
    np.testing.assert_allclose(applied.taps["shared/in"], X / 2)
    once = dense(params["shared"], X / 2)
    np.testing.assert_allclose(applied.taps["shared/out"], once, rtol=1e-5, atol=1e-6)
    zeroed = edited("closed/out/0", jnp.zeros_like, "heads/in")
    np.testing.assert_array_equal(zeroed.taps["heads/in"], 0)
    assert (np.array(edited("logits", jnp.zeros_like).output["logits"]) == 0).all()
    with pytest.raises(ValueError, match="keep shape"):
        edited("shared/out", lambda x: x[:1])


class Block(nnx.Module):
    def __init__(self, rngs):
        self.inner = nnx.Linear(6, 6, rngs=rngs)

    def __call__(self, x):
        self.sow(nnx.Intermediate, "before", x)
        return nnx.relu(self.inner(x))


class Unseen(nnx.Module):
    def __init__(self, rngs):
        self.blocks = nnx.List([Block(rngs) for _ in range(2)])
        self.head = nnx.Linear(6, 3, rngs=rngs)

    def __call__(self, x):
        for block in (*self.blocks, self.blocks[0]):
            x = block(x)
        return {"logits": self.head(x), "features": x}


def test_taps_and_edits_of_nnx_modules():
    network = from_nnx(Unseen)
    variables = network.init(KEY)
    params = variables["params"]
    taps = jax.jit(lambda v: network.apply(v, X, taps=("**",)).taps)(variables)
    expected = {"in": X}
    h = X
    for name, call in (("0", ""), ("1", ""), ("0", "#1")):
        expected[f"blocks/{name}/in{call}"] = expected[f"blocks/{name}/before{call}"] = h
        expected[f"blocks/{name}/inner/in{call}"] = h
        expected[f"blocks/{name}/inner/out{call}"] = h = dense(params["blocks"][name]["inner"], h)
        expected[f"blocks/{name}/out{call}"] = h = jax.nn.relu(h)
    expected["head/in"] = expected["features"] = h
    expected["head/out"] = expected["logits"] = dense(params["head"], h)
    assert set(taps) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(taps[name], value, rtol=1e-5, atol=1e-6, err_msg=name)
    (second,) = network.apply(variables, X, taps=("blocks/0/out#1",)).taps.values()
    np.testing.assert_allclose(second, expected["blocks/0/out#1"], rtol=1e-5, atol=1e-6)
    zeroed = network.apply(variables, X, edits={"blocks/1/out": jnp.zeros_like})
    features = jax.nn.relu(params["blocks"]["0"]["inner"]["bias"] * jnp.ones((4, 1)))
    np.testing.assert_allclose(zeroed.output["features"], features)
    with pytest.raises(ValueError, match=r"nearest.*blocks/0/out"):
        network.apply(variables, X, taps=("block/0/out",))
    assert type(Block(nnx.Rngs(0))).__call__ is Block.__call__


def test_nnx_values_leave_scan_and_remat():
    class Scanned(nnx.Module):
        def __init__(self, rngs):
            self.layers = nnx.split_rngs(splits=3)(nnx.vmap(Block, in_axes=0, out_axes=0))(rngs)
            self.kept = Block(rngs)

        def __call__(self, x):
            scan = nnx.scan(lambda layer, x: layer(x), in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
            return nnx.remat(lambda block, x: block(x))(self.kept, scan(self.layers, x))

    network = from_nnx(Scanned)
    variables = network.init(KEY)
    taps = network.apply(variables, X, taps=("**",)).taps
    h, linear, outs = X, variables["params"]["layers"]["inner"], []
    for kernel, bias in zip(linear["kernel"], linear["bias"]):
        outs.append(h := jax.nn.relu(h @ kernel + bias))
    np.testing.assert_allclose(taps["layers/out"], jnp.stack(outs), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(taps["layers/before"][1], outs[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(taps["kept/in"], h, rtol=1e-5, atol=1e-6)
    kept = dense(variables["params"]["kept"]["inner"], h)
    np.testing.assert_allclose(taps["kept/inner/out"], kept, rtol=1e-5, atol=1e-6)


def test_a_plain_function_has_taps_of_its_output():
    network = from_function(lambda params, x: {"logits": x, "features": 2 * x}, params={})
    taps = network.apply({"params": {}}, X, taps=("features", "in")).taps
    np.testing.assert_array_equal(taps["features"], 2 * X)
    with pytest.raises(ValueError, match=r"nearest of 3 available: .*logits"):
        network.apply({"params": {}}, X, taps=("stage1/out",))
    bare = from_function(lambda params, x: 3 * x, params={})
    np.testing.assert_array_equal(bare.apply({"params": {}}, X, taps=("out",)).taps["out"], 3 * X)


def test_a_branch_is_no_obstacle_to_a_pattern_that_cannot_match_inside():
    class Branching(nn.Module):
        @nn.compact
        def __call__(self, x):
            dense = nn.Dense(6, name="dense")
            if self.is_initializing():
                return dense(x)
            return nn.cond(x.sum() > 0, lambda m, x: m(x), lambda m, x: x, dense, x)

    network = from_linen(Branching())
    variables = network.init(KEY, X)
    tapped = network.apply(variables, X, taps=("out",))
    np.testing.assert_array_equal(tapped.taps["out"], tapped.output)
    with pytest.raises(TypeError, match="cond branch outputs"):
        network.apply(variables, X, taps=("dense/out",))


def test_batch_statistics_are_updated_next_to_taps():
    class Normed(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            return nn.BatchNorm(not train, name="norm")(x)

    network = from_linen(Normed())
    variables = network.init(KEY, X)
    with_taps = network.apply(variables, X, train=True, taps=("norm/out",))
    without = network.apply(variables, X, train=True)
    assert set(with_taps.variables) == {"params", "batch_stats"}
    jax.tree.map(np.testing.assert_array_equal, with_taps.variables, without.variables)
