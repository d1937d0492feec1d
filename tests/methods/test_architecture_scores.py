"""Scores of whole networks: published values, limits, what a proxy does where it is undefined."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import losses
from kdjax.methods.architecture_scores import (
    PROXIES,
    cost,
    gaussian,
    initial,
    observe,
    proxies,
    similarities,
)
from kdjax.networks import Network, build

GOLDENS = np.load(Path(__file__).parents[1] / "goldens" / "24-zero_cost_proxies.npz")
KEY = jax.random.key(0)
NET = build("normalized_convnet", 3, width=2, depth=1, features=4)
X = jax.random.normal(KEY, (6, 4, 4, 1))
LABELS = jnp.array([0, 1, 2, 0, 1, 2])
RELUS = ("norm*/out", "last/norm/out")


def golden_network(case):
    """The MLP of a golden case as a network that always starts from its weights."""
    count = int(GOLDENS[f"{case}_n_layers"])
    weights = [(GOLDENS[f"{case}_w{i}"].T, GOLDENS[f"{case}_b{i}"]) for i in range(count)]
    names = [f"dense{i}" for i in range(count - 1)] + ["head"]
    params = {n: {"kernel": w, "bias": b} for n, (w, b) in zip(names, weights)}
    widths = tuple(w.shape[1] for w, _ in weights[:-1])
    network = build("mlp", weights[-1][0].shape[1], widths=widths)
    return Network(lambda rng, x: {"params": jax.tree.map(jnp.asarray, params)}, network.apply)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["case0", "case1"])
def test_proxies_of_a_network_are_the_published_ones(case):
    x, y = jnp.asarray(GOLDENS[f"{case}_x"]), jnp.asarray(GOLDENS[f"{case}_y"].astype(np.int32))
    names = [name for name in PROXIES if f"{case}_{name}" in GOLDENS.files]
    assert len(names) == 10
    found = proxies(
        golden_network(case), KEY, (x,), y, tap="features", rectified=("dense*/out",), names=names
    )
    for name in names:
        np.testing.assert_allclose(found[name], GOLDENS[f"{case}_{name}"], rtol=2e-4, err_msg=name)


@functools.cache
def seen(seed=0):
    variables = initial(NET, jax.random.key(seed), (X,), "default")
    return observe(NET, variables, (X,), LABELS, "last/out"), variables


def test_the_gradient_of_the_classifier_is_that_of_the_loss():
    found, variables = seen()

    def loss(kernel):
        head = {**variables["params"]["head"], "kernel": kernel}
        params = {**variables["params"], "head": head}
        logits = NET.apply({**variables, "params": params}, X, train=True).output["logits"]
        return jnp.mean(losses.cross_entropy(logits, LABELS))

    expected = jax.jit(jax.grad(loss))(variables["params"]["head"]["kernel"]).T
    np.testing.assert_allclose(found.head_gradients, expected, rtol=1e-4, atol=1e-6)
    assert found.maps.shape == (6, 4, 4, 4)


def test_a_network_is_most_similar_to_itself():
    (one, _), (other, _) = seen(), seen(seed=1)
    assert similarities(one, one) == pytest.approx({"relation": 0.0, "semantic": 0.0}, abs=1e-6)
    assert max(similarities(one, other).values()) < -1e-4


def test_classifiers_of_other_widths_have_relations_only():
    one, _ = seen()
    other = one.__class__(one.maps, one.head_gradients[:, :2])
    assert list(similarities(one, other)) == ["relation"]


def test_gaussian_kernels_are_standard_normal_and_the_rest_is_where_norms_start():
    mlp = build("mlp", 3, widths=(200,), norm=True)
    x = jnp.ones((2, 100))
    params = initial(mlp, KEY, (x,), "gaussian")
    kernel = np.asarray(params["params"]["dense0"]["kernel"])
    assert abs(kernel.mean()) < 0.03
    assert abs(kernel.std() - 1) < 0.03
    assert not np.any(params["params"]["dense0"]["bias"])
    assert np.all(params["params"]["norm0"]["scale"] == 1)
    started = mlp.init(KEY, x)["batch_stats"]
    jax.tree.map(np.testing.assert_array_equal, params["batch_stats"], started)
    again = gaussian(mlp.init(KEY, x), jax.random.split(KEY)[1])["params"]
    jax.tree.map(np.testing.assert_array_equal, params["params"], again)


@pytest.mark.slow
def test_synflow_passes_normalisations_by():
    plain = proxies(NET, KEY, (X,), LABELS, tap="last/out", rectified=RELUS, names=["synflow"])
    params = {
        name: {k: jnp.abs(v) for k, v in part.items()} if name != "last" else part
        for name, part in initial(NET, KEY, (X,), "default")["params"].items()
    }

    def flow(scale):  # the network without its normalisations, on ones
        window = jnp.pad(jnp.ones((4, 4, 1)), ((1, 1), (1, 1), (0, 0)))
        kernel = scale * params["conv0"]["kernel"]
        maps = sum(window[i : i + 4, j : j + 4] @ kernel[i, j] for i in range(3) for j in range(3))
        maps = maps @ (scale * jnp.abs(params["last"]["conv"]["kernel"])[0, 0])
        head = params["head"]
        return jnp.sum(maps.mean((0, 1)) @ (scale * head["kernel"]) + head["bias"])

    # Scaling all kernels: the derivative at 1 is sum w dR/dw over the three layers.
    np.testing.assert_allclose(plain["synflow"], jax.grad(flow)(1.0), rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1, 1e6])
def test_zen_counts_what_normalisations_divide_by(scale):
    network = Network(NET.init, lambda v, x, **options: NET.apply(v, scale * x, **options))
    first = proxies(network, KEY, (X,), LABELS, tap="last/out", rectified=RELUS, names=["zen"])
    # Inputs of zen are noise: the batch gives only their shape.
    again = proxies(network, KEY, (7 * X,), LABELS, tap="last/out", rectified=RELUS, names=["zen"])
    assert first == again
    assert np.isfinite(first["zen"])
    rng = jax.random.split(jax.random.fold_in(KEY, 1), 3)
    variables = initial(NET, rng[0], (X,), "gaussian")
    noise = jax.random.normal(rng[1], X.shape)
    near = noise + 0.01 * jax.random.normal(rng[2], X.shape)
    taps = ("conv0/out", "last/conv/out", "last/out")
    one, two = (network.apply(variables, x, train=True, taps=taps).taps for x in (noise, near))
    gap = jnp.mean(jnp.sum(jnp.abs(one["last/out"] - two["last/out"]), (1, 2, 3)))
    variances = [jnp.mean(jnp.var(one[name], (0, 1, 2))) for name in taps[:2]]
    expected = jnp.log(gap) + sum(jnp.log(v) / 2 for v in variances)
    np.testing.assert_allclose(first["zen"], expected, rtol=1e-3)


@pytest.mark.slow
def test_an_example_whose_relus_are_dead_has_no_jacobian_score():
    network = build("mlp", 3, widths=(4,))
    variables = network.init(KEY, X)
    variables["params"]["dense0"]["bias"] = jnp.full(4, -1e3)
    dead = Network(lambda rng, x: variables, network.apply)
    names = ["jacov", "epe_nas"]
    found = proxies(dead, KEY, (X,), LABELS, tap="features", rectified=("dense0/out",), names=names)
    assert np.isnan(list(found.values())).all()


def test_costs_are_counted_by_hand():
    found = cost(NET, (X,))
    # conv 3x3x1x2, norm 2+2, conv 2x4, norm 4+4, head 4x3+3.
    assert found["parameters"] == 18 + 4 + 8 + 8 + 15
    # A 3x3 window on a map of 4x4 has 100 positions that are not padding.
    assert found["flops"] == 2 * (100 * 2 + 16 * 8 + 12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: observe(NET, seen()[1], (X,), LABELS, "**/out"), "map='.*' must match one value"),
        (lambda: observe(NET, seen()[1], (X,), LABELS, "stage3/out"), "matches nothing"),
        (
            lambda: observe(
                Network(NET.init, lambda *a, **k: NET.apply(*a, **k)._replace(output=X[:, 0, 0])),
                seen()[1],
                (X,),
                LABELS,
                "last/out",
            ),
            "must have 'features'",
        ),
        (
            lambda: proxies(NET, KEY, (X,), LABELS, tap="last/out", rectified=(), names=["zico"]),
            "names must be of .* got 'zico'",
        ),
        (
            lambda: proxies(NET, KEY, (X, X), LABELS, tap="last/out", rectified=RELUS),
            "read one input, got 2",
        ),
        (
            lambda: proxies(NET, KEY, (X[:1],), LABELS[:1], tap="last/out", rectified=RELUS),
            "need two examples or more, got 1: normalisations use the statistics of the batch",
        ),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_batch_of_one_has_no_relations():
    one = observe(NET, seen()[1], (X[:1],), LABELS[:1], "last/out")
    with pytest.raises(ValueError, match="batch"):
        similarities(one, one)
