"""The networks are those of the literature: counts, shapes, blocks."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.networks import (
    NAMES,
    ResNet,
    available_taps,
    build,
    changed,
    count_parameters,
    edges_of,
    from_linen,
)
from kdjax.networks.nasbench201 import OPERATIONS
from kdjax.networks.resnet import BasicBlock
from kdjax.networks.wrn import WideBlock

KEY = jax.random.key(0)
# 100 classes, 32x32x3. Printed to the digit elsewhere: resnet20, 56 and 110 (model table of
# osmr/imgclsmob, CIFAR-100), resnet32x4, wrn_16_2 and wrn_40_2 (readmes of reproductions). Rounded,
# as reproductions quote the benchmark: 0.28, 0.86, 1.74, 1.23, 7.43 and 0.70, 2.26 million. The
# others follow from the definition, which `hand_count` counts.
PUBLISHED = {
    "resnet8": 83_892,
    "resnet14": 181_108,
    "resnet20": 278_324,
    "resnet32": 472_756,
    "resnet44": 667_188,
    "resnet56": 861_620,
    "resnet110": 1_736_564,
    "resnet8x4": 1_233_540,
    "resnet32x4": 7_433_860,
    "wrn_16_1": 180_916,
    "wrn_16_2": 703_284,
    "wrn_40_1": 569_780,
    "wrn_40_2": 2_255_156,
    "wrn_28_10": 36_536_884,
}


def resnet_count(depth, stem, *widths, num_classes=100, channels=3):
    """Convolutions, two numbers a normalised channel, a head; counted by hand."""
    total, before = 9 * channels * stem + 2 * stem, stem
    for width in widths:
        for _ in range((depth - 2) // 6):
            total += 9 * before * width + 2 * width + 9 * width * width + 2 * width
            # The first block of a stage projects: stage 1 only where it widens.
            total += before * width + 2 * width if before != width else 0
            before = width
    return total + before * num_classes + num_classes


def wrn_count(depth, widen, num_classes=100, channels=3):
    total, before = 9 * channels * 16, 16
    for width in (16 * widen, 32 * widen, 64 * widen):
        for _ in range((depth - 4) // 6):
            total += 2 * before + 9 * before * width + 2 * width + 9 * width * width
            total += before * width if before != width else 0
            before = width
    return total + 2 * before + before * num_classes + num_classes


def hand_count(name):
    if name.startswith("wrn"):
        return wrn_count(*map(int, name.split("_")[1:]))
    depth = int(name.removeprefix("resnet").removesuffix("x4"))
    return resnet_count(depth, *((32, 64, 128, 256) if name.endswith("x4") else (16, 16, 32, 64)))


def shapes(network, shape):
    return jax.eval_shape(network.init, KEY, jax.ShapeDtypeStruct(shape, jnp.float32))


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_counts_are_the_published_ones(name):
    assert count_parameters(shapes(build(name, 100), (1, 32, 32, 3))) == PUBLISHED[name]
    assert hand_count(name) == PUBLISHED[name]


def test_blocks_of_each_stage_make_the_resnets_of_equal_stages():
    equal = shapes(build("resnet", 100, depth=(3, 3, 3)), (1, 32, 32, 3))
    assert equal == shapes(build("resnet20", 100), (1, 32, 32, 3))
    other = shapes(build("resnet", 100, depth=(1, 5, 3)), (1, 32, 32, 3))["params"]
    assert [len(other[f"stage{i}"]) for i in (1, 2, 3)] == [1, 5, 3]


# From the benchmark's own tables, in millions to six digits: the cell of index 0, and all 3x3.
@pytest.mark.parametrize(
    ("cell", "parameters"),
    [
        (
            "|avg_pool_3x3~0|+|nor_conv_1x1~0|skip_connect~1|"
            "+|nor_conv_1x1~0|skip_connect~1|skip_connect~2|",
            129_306,
        ),
        (
            "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|"
            "+|nor_conv_3x3~0|nor_conv_3x3~1|nor_conv_3x3~2|",
            1_531_546,
        ),
    ],
)
def test_parameter_counts_of_nas_bench_201_are_the_published_ones(cell, parameters):
    network = build("nasbench201", 10, edges=edges_of(cell))
    assert count_parameters(shapes(network, (1, 32, 32, 3))) == parameters


def test_a_cell_is_the_sum_over_its_edges():
    edges = ("skip_connect", "avg_pool_3x3", "skip_connect", "none", "skip_connect", "avg_pool_3x3")
    network = build("nasbench201", 3, edges=edges, cells=1, width=1)
    x = np.random.default_rng(0).normal(size=(2, 4, 4, 1)).astype(np.float32)
    taps = ("group0_cell0/in", "group0_cell0/out")
    found = network.apply(network.init(KEY, x), x, taps=taps).taps
    first = np.asarray(found["group0_cell0/in"])

    def pool(x):  # a mean over what is inside
        near = [
            np.roll(
                np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=np.nan), shift, (1, 2)
            )
            for shift in [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)]
        ]
        return np.nanmean(near, axis=0)[:, 1:-1, 1:-1]

    second = first + pool(first)  # node 1 is node 0
    expected = first + pool(second)
    np.testing.assert_allclose(found["group0_cell0/out"], expected, rtol=1e-5, atol=1e-6)


def test_every_operation_has_the_parameters_that_the_two_published_counts_give_it():
    fixed, of_1x1 = 73_306, (129_306 - 73_306) // 2
    of_3x3 = (1_531_546 - fixed) // 6
    for edges in itertools.islice(itertools.product(OPERATIONS, repeat=6), 0, None, 4_001):
        found = count_parameters(shapes(build("nasbench201", 10, edges=edges), (1, 32, 32, 3)))
        counts = [edges.count(name) for name in ("nor_conv_1x1", "nor_conv_3x3")]
        assert found == fixed + np.dot(counts, (of_1x1, of_3x3)), edges


def test_a_cell_without_a_path_gives_the_classifiers_bias_and_a_map_of_zeros():
    cut = "|nor_conv_3x3~0|+|skip_connect~0|nor_conv_1x1~1|+|none~0|none~1|none~2|"
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
    network = build("nasbench201", 3, edges=edges_of(cut), cells=1, width=2)
    variables = network.init(KEY, x)
    found = network.apply(variables, x, train=True, taps=("last/out",))
    assert found.taps["last/out"].shape == (2, 2, 2, 8)
    assert not np.any(found.taps["last/out"])
    bias = np.asarray(variables["params"]["head"]["bias"])
    np.testing.assert_array_equal(found.output["logits"], [bias, bias])


def test_conv_nets_of_every_width_have_classifiers_of_one_shape():
    for width, depth in ((4, 1), (16, 3)):
        params = shapes(build("normalized_convnet", 3, width=width, depth=depth), (1, 8, 8, 1))[
            "params"
        ]
        assert params["head"]["kernel"].shape == (32, 3)
        assert sum(name.startswith("conv") for name in params) == depth


@pytest.mark.parametrize(
    "name",
    ["mlp", "convnet", "max_pool_convnet", "resnet8", "resnet8x4", "wrn_16_1", "vit", "vit_tiny"],
)
@pytest.mark.parametrize("shape", [(2, 8, 8, 1), (2, 28, 28, 1), (2, 32, 32, 3)])
def test_output_shapes_for_any_input(name, shape):
    network = build(name, 7)
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    output = jax.eval_shape(
        lambda v, x: network.apply(v, x, train=True, rng=KEY).output, shapes(network, shape), x
    )
    width = {"mlp": 256, "resnet8x4": 256, "vit_tiny": 192, "max_pool_convnet": 48}
    assert output["logits"].shape == (2, 7)
    assert output["features"].shape == (2, width.get(name, 64))
    assert {leaf.dtype for leaf in jax.tree.leaves(output)} == {jnp.dtype("float32")}


def test_the_blocks_of_a_convnet_are_convolutions_with_a_relu():
    network, x = build("convnet", 3, widths=(4, 5), strides=(1, 2)), draw_images()
    variables = network.init(KEY, x)
    out = network.apply(variables, x, taps=("block*/out",))
    for i, stride in enumerate((1, 2)):
        conv = jax.tree.map(np.asarray, variables["params"][f"block{i}"]["conv"])
        x = np.maximum(convolve(np.asarray(x), conv["kernel"], stride, 1) + conv["bias"], 0)
        np.testing.assert_allclose(out.taps[f"block{i}/out"], x, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(out.output["features"], x.mean((1, 2)), rtol=1e-4, atol=1e-5)


def draw_images():
    return jax.random.normal(KEY, (2, 8, 8, 1))


def test_every_named_network_can_be_built():
    for name in NAMES:
        if name not in (
            "fusion",
            "dual_encoder",
            "cross_encoder",
            "denoising_mlp",
        ):  # of several inputs
            shapes(build(name, 3), (1, 32, 32, 3))


def convolve(x, kernel, stride, padding):
    """A convolution as a sum over the kernel's positions."""
    size = kernel.shape[0]
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    extent = stride * ((x.shape[1] - size) // stride) + 1
    return sum(
        x[:, i : i + extent : stride, j : j + extent : stride] @ kernel[i, j]
        for i in range(size)
        for j in range(size)
    )


def normalise(x, params):
    mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
    return (x - mean) / np.sqrt(variance + 1e-5) * params["scale"] + params["bias"]


def relu(x):
    return np.maximum(x, 0)


def images(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def variables_of(network, shape):
    """Variables drawn at random, so that no scale or bias is the trivial one."""
    random = np.random.default_rng(1)
    return jax.tree.map(
        lambda leaf: random.uniform(0.2, 1.0, leaf.shape).astype(leaf.dtype), shapes(network, shape)
    )


@pytest.mark.parametrize(("stride", "channels"), [(1, 4), (2, 3)])
def test_basic_block_equals_the_definition(stride, channels):
    x = images(2, 5, 5, channels)
    network = from_linen(BasicBlock(4, stride))
    variables = variables_of(network, x.shape)
    p = variables["params"]
    h = relu(normalise(convolve(x, p["conv1"]["kernel"], stride, 1), p["norm1"]))
    h = normalise(convolve(h, p["conv2"]["kernel"], 1, 1), p["norm2"])
    residual = x
    if channels != 4:
        projected = convolve(x, p["shortcut_conv"]["kernel"], stride, 0)
        residual = normalise(projected, p["shortcut_norm"])
    applied = jax.jit(lambda v: network.apply(v, x, train=True, taps=("preact",)))(variables)
    np.testing.assert_allclose(applied.taps["preact"], h + residual, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(applied.output, relu(h + residual), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("stride", "channels"), [(1, 4), (2, 3)])
def test_wide_block_equals_the_definition(stride, channels):
    x = images(2, 6, 6, channels)
    network = from_linen(WideBlock(4, stride))
    variables = variables_of(network, x.shape)
    p = variables["params"]
    active = relu(normalise(x, p["norm1"]))
    shortcut = x
    if channels != 4:
        shortcut = convolve(active, p["shortcut_conv"]["kernel"], stride, 0)
    h = convolve(active, p["conv1"]["kernel"], stride, 1)
    h = convolve(relu(normalise(h, p["norm2"])), p["conv2"]["kernel"], 1, 1)
    output = jax.jit(lambda v: network.apply(v, x, train=True).output)(variables)
    np.testing.assert_allclose(output, shortcut + h, rtol=1e-4, atol=1e-5)


def test_running_statistics_move_by_a_tenth_and_are_float32():
    x = 3 + images(2, 5, 5, 3)
    network = from_linen(WideBlock(4))
    variables = variables_of(network, x.shape)
    update = jax.jit(lambda v: network.apply(v, x, train=True).variables["batch_stats"]["norm1"])
    before, statistics = variables["batch_stats"]["norm1"], update(variables)
    biased = {"mean": x.mean((0, 1, 2)), "var": x.var((0, 1, 2))}
    for name, value in biased.items():
        np.testing.assert_allclose(statistics[name], 0.9 * before[name] + 0.1 * value, rtol=1e-4)
    assert statistics["var"].dtype == jnp.float32


def test_layers_start_as_pytorch_starts_them():
    network = from_linen(ResNet(100, depth=8, widths=(4, 4, 64, 64)))

    @jax.jit
    def start(key):  # of two layers only, so that nothing else is compiled
        params = network.init(key, jnp.zeros((1, 8, 8, 3)))["params"]
        return params["stage2"]["block0"]["conv1"]["kernel"], params["head"]

    kernel, head = start(jax.random.key(3))
    np.testing.assert_allclose(kernel.std(), np.sqrt(2 / (9 * 64)), rtol=0.05)
    np.testing.assert_allclose(kernel.mean(), 0, atol=5e-3)
    for leaf in head.values():
        bound = 1 / np.sqrt(64)
        assert 0.9 * bound < np.abs(leaf).max() <= bound


def test_stages_and_attention_maps_are_taps():
    network = build("resnet14", 10)
    x = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    variables = shapes(network, x.shape)
    taps = jax.eval_shape(
        lambda v, x: network.apply(v, x, taps=("stage*/out", "logits")).taps, variables, x
    )
    assert {name: value.shape for name, value in taps.items()} == {
        "stage1/out": (2, 32, 32, 16),
        "stage2/out": (2, 16, 16, 32),
        "stage3/out": (2, 8, 8, 64),
        "logits": (2, 10),
    }
    assert "stage3/block1/preact" in available_taps(network, variables, x)
    vit = build("vit", 10, depth=1)
    maps = "block0/attention/attention_weights"
    listed = available_taps(vit, shapes(vit, (2, 8, 8, 1)), jnp.zeros((2, 8, 8, 1)))
    assert listed[maps].shape == (2, 4, 5, 5)


def test_attention_rows_sum_to_one_and_mean_pooling_has_no_token():
    vit = build("vit", 3, depth=1, width=8, heads=2, pool="mean", dropout=0.1)
    x = images(2, 8, 8, 1)
    variables = variables_of(vit, x.shape)
    assert "token" not in variables["params"]
    maps = "block0/attention/attention_weights"
    output, _, taps = jax.jit(lambda v: vit.apply(v, x, taps=(maps, "norm/out")))(variables)
    np.testing.assert_allclose(taps[maps].sum(-1), 1, rtol=1e-5)
    np.testing.assert_allclose(output["features"], taps["norm/out"].mean(1), rtol=1e-5, atol=1e-6)


def test_the_mlp_normalises_and_drops_only_when_asked():
    x = jnp.ones((2, 8, 8, 1))
    assert set(shapes(build("mlp", 3), x.shape)) == {"params"}
    network = build("mlp", 3, widths=(5, 4), norm=True, dropout=0.5)
    variables = variables_of(network, x.shape)
    assert set(variables["batch_stats"]) == {"norm0", "norm1"}
    assert variables["params"]["head"]["kernel"].shape == (4, 3)
    with pytest.raises(ValueError, match="rng"):
        network.apply(variables, x, train=True)


def test_the_same_arguments_give_the_same_network():
    assert build("mlp", 3, widths=[4, 4]) is build("mlp", num_classes=3, widths=(4, 4))
    assert build("wrn_16_2", 3) is build("wrn_16_2", 3)
    assert build("wrn_16_2", 3) is not build("wrn_16_2", 4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: build("resnet21", 10), r"unknown network 'resnet21'; did you mean 'resnet\d+'"),
        (lambda: build("mlp", 10, width=(3,)), "no option 'width'; did you mean 'widths'"),
        (lambda: build("mlp", 0), "num_classes must be a positive integer, got 0"),
        (lambda: build("wrn_17_2", 10), r"6n \+ 4"),
        (lambda: ResNet(10, depth=21), r"6n \+ 2"),
        (lambda: ResNet(10, depth=(3, 3)), r"three numbers of blocks, .* got \(3, 3\)"),
        (lambda: ResNet(10, depth=(3, 0, 3)), r"each at least 1, got \(3, 0, 3\)"),
        (
            lambda: build("normalized_convnet", 10, features=0),
            "features of a NormalizedConvNet must be at least 1",
        ),
        (lambda: build("nasbench201", 10, edges=("none",) * 5), "edges must be six of"),
        (lambda: build("nasbench201", 10, edges=("conv",) * 6), "edges must be six of"),
        (lambda: build("nasbench201", 10, cells=0), "cells must be at least 1, got 0"),
        (lambda: changed({"depth": 20}, {"depth/0": 1}), "'depth/0' .* depth is 20"),
        (lambda: changed({"depth": (1, 1)}, {"depth/2": 1}), r"'depth/2' .* depth is \(1, 1\)"),
        (lambda: edges_of("|none~0|+|none~0|none~0|+|none~0|none~1|none~2|"), "cell must be"),
        (lambda: edges_of("|none~0|+|conv~0|none~1|+|none~0|none~1|none~2|"), "cell must be"),
        (lambda: build("vit", 10, pool="max"), "pool must be"),
        (lambda: build("convnet", 10, strides=(1,)), "widths and strides must be of the same"),
        (lambda: build("vit", 10, heads=5), "multiple of heads=5"),
        (lambda: shapes(build("vit", 10, patch=5), (1, 8, 8, 1)), "patch=5 must divide"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
