"""Projectors have the published kernels and widths, and bring maps to the shapes they promise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.networks import count_parameters, from_linen, projectors

KEY = jax.random.key(0)


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def start(module, *inputs):
    """Variables of random values; normalisations at their start. Nothing is compiled."""
    generator = np.random.default_rng(0)

    def value(path, leaf):
        constant = {"scale": 1.0, "var": 1.0, "mean": 0.0}.get(path[-1].key)
        if "norm" in path[-2].key and path[-1].key == "bias":
            constant = 0.0
        drawn = generator.normal(0, 0.5, leaf.shape)
        return jnp.asarray(drawn if constant is None else np.full(leaf.shape, constant), leaf.dtype)

    return jax.tree_util.tree_map_with_path(value, jax.eval_shape(module.init, KEY, *inputs))


def run(module, *arguments):
    return jax.jit(module.apply)(*arguments)


def shapes(module, *inputs):
    """({parameter: shape}, the output's shapes) without computing anything."""
    variables = jax.eval_shape(lambda *x: module.init(KEY, *x), *inputs)
    flat = jax.tree_util.tree_flatten_with_path(variables["params"])[0]
    params = {"/".join(key.key for key in path): leaf.shape for path, leaf in flat}
    output = jax.eval_shape(module.apply, variables, *inputs)
    return params, jax.tree.map(lambda leaf: leaf.shape, output)


@pytest.mark.parametrize(
    ("student", "teacher", "kernel"),
    [
        ((8, 8), (4, 4), (3, 3)),
        ((4, 4), (8, 8), (4, 4)),
        ((7, 7), (7, 7), (1, 1)),
        ((7, 6), (5, 6), (3, 1)),
        ((8, 3), (4, 6), (3, 4)),
        ((6, 5), (3, 2), (3, 4)),
        ((2, 2), (1, 1), (3, 3)),
    ],
)
def test_a_regressor_reaches_the_teachers_shape_by_the_published_kernels(student, teacher, kernel):
    module = projectors.ConvRegressor(teacher, 5)
    params, output = shapes(module, draw(2, *student, 3))
    assert output == (2, *teacher, 5)
    assert params["conv/kernel"] == (*kernel, 3, 5)
    assert set(params) == {"conv/kernel", "conv/bias", "norm/scale", "norm/bias"}


@pytest.mark.parametrize("student", [(3, 3), (8, 3), (3, 8)])
def test_a_regressor_refuses_a_smaller_student_by_both_shapes(student):
    module = projectors.ConvRegressor((8, 8), 5)
    with pytest.raises(ValueError, match=r"shape \(\d, \d, 2\) to the teacher's \(8, 8, 5\)"):
        module.init(KEY, draw(1, *student, 2))


def test_a_regressor_twice_as_long_is_a_transposed_convolution_of_stride_2_and_padding_1():
    """Entry i of 4 spreads over the outputs 2 i - 1 .. 2 i + 2."""
    module = projectors.ConvRegressor((8, 8), 1, relu=False)
    maps = jnp.zeros((1, 4, 4, 1)).at[0, 1, 2].set(1.0)
    variables = start(module, maps)
    kernel = jnp.arange(1.0, 17).reshape(4, 4, 1, 1)
    variables["params"]["conv"] = {"kernel": kernel, "bias": jnp.zeros(1)}
    output = run(module, variables, maps)[0, ..., 0] * jnp.sqrt(1 + 1e-5)
    expected = np.zeros((8, 8))
    expected[1:5, 3:7] = kernel[::-1, ::-1, 0, 0]
    np.testing.assert_allclose(output, expected, rtol=1e-6)


def test_a_regressor_ends_in_a_relu_or_is_nothing_at_all_on_request():
    maps = draw(4, 3, 3, 2)
    values = []
    for relu in (True, False):
        module = projectors.ConvRegressor((3, 3), 2, relu=relu)
        values.append(run(module, start(module, maps), maps))
    np.testing.assert_array_equal(values[0], np.maximum(values[1], 0))
    assert np.any(values[1] < 0)
    same = projectors.ConvRegressor((3, 3), 2, relu=False, identity=True)
    assert start(same, maps) == {}
    np.testing.assert_array_equal(same.apply({}, maps), maps)
    other = projectors.ConvRegressor((3, 3), 4, relu=False, identity=True)
    assert shapes(other, maps)[1] == (4, 3, 3, 4)


def test_vid_starts_at_the_published_variance_and_has_no_biases():
    module, maps = projectors.VIDHead(5), draw(2, 3, 2, 4)
    params, (mean, log_scale) = shapes(module, maps)
    assert (mean, log_scale) == ((2, 3, 2, 5), (5,))
    convs = {f"conv{i}/kernel": (1, 1, 4 if i == 1 else 5, 5) for i in (1, 2, 3)}
    assert params == {**convs, "log_scale": (5,)}
    variables = jax.jit(module.init)(KEY, maps)
    mean, log_scale = run(module, variables, maps)
    np.testing.assert_allclose(jax.nn.softplus(log_scale) + 1e-5, 5.0, rtol=1e-6)
    assert np.any(mean < 0)


def test_paraphraser_and_translator_agree_on_the_number_of_factors():
    paraphraser, translator = projectors.Paraphraser(0.5), projectors.Translator(6, 0.5)
    params, (factors, reconstruction) = shapes(paraphraser, draw(2, 4, 3, 6))
    assert (factors, reconstruction) == ((2, 4, 3, 3), (2, 4, 3, 6))
    widths = [
        params[f"{part}/conv{i}/kernel"] for part in ("encoder", "decoder") for i in (1, 2, 3)
    ]
    assert [width[2:] for width in widths] == [(6, 6), (6, 3), (3, 3), (3, 3), (3, 6), (6, 6)]
    assert all(width[:2] == (3, 3) for width in widths)
    assert not any("norm" in name for name in params)
    params, output = shapes(translator, draw(2, 4, 3, 5))
    assert output == (2, 4, 3, 3)
    assert [params[f"encoder/conv{i}/kernel"][2:] for i in (1, 2, 3)] == [(5, 5), (5, 3), (3, 3)]
    assert params["encoder/norm3/scale"] == (3,)
    with pytest.raises(ValueError, match=r"a rate of 0\.1 leaves no factor of 6 channels"):
        projectors.Paraphraser(0.1).init(KEY, draw(1, 2, 2, 6))


def test_factors_leak_a_tenth():
    """All weights at 0 but the last bias at -1."""
    maps = draw(1, 2, 2, 4)
    module = projectors.FactorEncoder((4, 2, 2))
    params = jax.tree.map(jnp.zeros_like, start(module, maps)["params"])
    params["conv3"]["bias"] = -jnp.ones(2)
    np.testing.assert_allclose(run(module, {"params": params}, maps), -0.1, rtol=1e-6)


def test_the_ofd_connector_is_a_bare_convolution_and_normalisation():
    maps = draw(400, 1, 1, 300)
    module = projectors.OFDConnector(64)
    variables = jax.jit(module.init)(KEY, maps)
    kernel = variables["params"]["conv"]["kernel"]
    assert kernel.shape == (1, 1, 300, 64)
    np.testing.assert_allclose(jnp.std(kernel), np.sqrt(2 / 64), rtol=0.03)
    apply = jax.jit(lambda v, x: module.apply(v, x, train=True, mutable=["batch_stats"])[0])
    output = apply(variables, maps)
    np.testing.assert_allclose(output.mean((0, 1, 2)), 0, atol=1e-4)
    np.testing.assert_allclose(output.std((0, 1, 2)), 1, rtol=1e-3)


@pytest.mark.parametrize(
    ("length", "size", "taken"),
    [(2, 4, [0, 0, 1, 1]), (2, 5, [0, 0, 0, 1, 1]), (4, 2, [0, 2]), (3, 4, [0, 0, 1, 2])],
)
def test_residuals_are_resized_to_the_entry_at_or_before(length, size, taken):
    maps = jnp.arange(float(length)).reshape(1, 1, length, 1)
    assert projectors._nearest(maps, (1, size)).ravel().tolist() == taken


def test_fusion_weighs_the_level_and_the_residual_by_their_attention():
    maps, residual = draw(2, 4, 2, 3), draw(2, 2, 1, 5, seed=1)
    module = projectors.ABF(width=5, channels=6)
    variables = start(module, maps, residual)
    _, without = run(module, variables, maps)
    params = variables["params"]
    assert params["attention"]["kernel"].shape == (1, 1, 10, 2)
    attention = {"kernel": jnp.zeros((1, 1, 10, 2)), "bias": jnp.log(jnp.array([3.0, 1 / 3]))}
    variables = {**variables, "params": {**params, "attention": attention}}
    output, fused = jax.jit(lambda *x: module.apply(*x, size=(8, 4)))(variables, maps, residual)
    expected = 0.75 * without + 0.25 * jnp.repeat(jnp.repeat(residual, 2, 1), 2, 2)
    assert output.shape == (2, 8, 4, 6)
    np.testing.assert_allclose(fused[:, ::2, ::2], expected, rtol=1e-5, atol=1e-6)


def test_review_fuses_from_the_deepest_level_into_the_teachers_shapes():
    features = [draw(2, 8, 6, 3), draw(2, 4, 3, 4), draw(2, 1, 1, 5)]
    module = projectors.ReviewFusion((6, 7, 8), ((8, 6), (4, 3), (1, 1)))
    params, outputs = shapes(module, features)
    assert outputs == [(2, 8, 6, 6), (2, 4, 3, 7), (2, 1, 1, 8)]
    assert params["level0/conv1/kernel"] == (1, 1, 3, 5)
    assert not any(name.startswith("level2/attention") for name in params)
    narrow = projectors.ReviewFusion((6, 7, 8), ((8, 6), (4, 3), (1, 1)), max_width=2)
    assert shapes(narrow, features)[0]["level0/conv2/kernel"] == (3, 3, 2, 6)

    variables = start(module, features)
    apply = jax.jit(module.apply)
    before = apply(variables, features)
    for changed, felt in ((0, [True, False, False]), (2, [True, True, True])):
        other = [x + 1 if i == changed else x for i, x in enumerate(features)]
        differs = [bool(np.any(a != b)) for a, b in zip(apply(variables, other), before)]
        assert differs == felt
    with pytest.raises(ValueError, match="same levels, got 2, 3 and 3"):
        module.init(KEY, features[:2])


def test_semckd_attention_is_over_the_teachers_layers_and_teaches_the_student_alone():
    students = [draw(8, 3, 2, 2), draw(8, 1, 1, 3, seed=1)]
    teachers = [draw(8, 2, 2, 2, seed=2), draw(8, 4, seed=3), draw(8, 1, 5, seed=4)]
    module = projectors.SemCKDAttention(temperature=0.5)
    variables = start(module, students, teachers)
    kernels = {name: layer["kernel"].shape for name, layer in variables["params"].items()}
    assert len(kernels) == 10
    assert {kernels[f"{name}_hidden"] for name in ("query0", "key2")} == {(8, 4)}
    assert {kernels[name] for name in ("query1", "key0")} == {(4, 2)}

    @jax.jit
    def attention(students, teachers):
        return module.apply(variables, students, teachers)

    weights = attention(students, teachers)
    assert weights.shape == (8, 2, 3)
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-6)
    warmer = run(projectors.SemCKDAttention(temperature=1.0), variables, students, teachers)
    odds, warmer_odds = (jnp.log(x / x[..., :1]) for x in (weights, warmer))
    np.testing.assert_allclose(odds, 2 * warmer_odds, rtol=1e-3, atol=1e-5)
    # Products of unit vectors lie in [-1, 1].
    assert np.all(weights.max(-1) / weights.min(-1) <= np.exp(2 / 0.5) * 1.001)

    @jax.jit
    def loss(students, teachers):
        return jnp.sum(jnp.cos(jnp.arange(48.0)).reshape(8, 2, 3) * attention(students, teachers))

    gradients = jax.jit(jax.grad(loss, argnums=(0, 1)))(students, teachers)
    assert all(np.any(leaf != 0) for leaf in gradients[0])
    assert all(np.all(leaf == 0) for leaf in gradients[1])
    direction = draw(8, 3, 2, 2, seed=9)
    slope = jnp.vdot(direction, gradients[0][0])
    moved = [loss([students[0] + h * direction, students[1]], teachers) for h in (1e-3, -1e-3)]
    np.testing.assert_allclose(slope, (moved[0] - moved[1]) / 2e-3, rtol=2e-2, atol=2e-3)


def test_semckd_attention_keeps_to_its_batch():
    module = projectors.SemCKDAttention()
    with pytest.raises(ValueError, match="at least reduction = 4, got 3"):
        module.init(KEY, [draw(3, 2)], [draw(3, 2)])
    with pytest.raises(ValueError, match="layers of one batch"):
        module.init(KEY, [draw(4, 2)], [draw(8, 2)])
    with pytest.raises(ValueError, match="layers of one batch"):
        module.init(KEY, [draw(4, 2)], [])
    variables = start(module, [draw(4, 2)], [draw(4, 2)])
    with pytest.raises(Exception, match="shape"):
        module.apply(variables, [draw(8, 2)], [draw(8, 2)])


def test_values_and_simkd_have_the_published_bottlenecks():
    params, output = shapes(projectors.SemCKDProjector(4), draw(2, 3, 2, 5))
    assert output == (2, 3, 2, 4)
    kernels = [params[f"conv{i}/kernel"] for i in (1, 2, 3)]
    assert kernels == [(1, 1, 5, 8), (3, 3, 8, 8), (1, 1, 8, 4)]
    params, output = shapes(projectors.SimKDProjector(8, reduction=4), draw(2, 3, 2, 5))
    assert output == (2, 3, 2, 8)
    kernels = [params[f"conv{i}/kernel"] for i in (1, 2, 3)]
    assert kernels == [(1, 1, 5, 2), (3, 3, 2, 2), (1, 1, 2, 8)]
    assert not any(name.startswith("conv") and name.endswith("bias") for name in params)


def test_simkd_and_srrl_end_in_a_relu_and_semckd_does_not():
    for module, maps, ends_in_relu in (
        (projectors.SimKDProjector(4), draw(4, 3, 3, 2), True),
        (projectors.SRRLProjector(4), draw(16, 2), True),
        (projectors.SemCKDProjector(4), draw(4, 3, 3, 2), False),
    ):
        output = run(module, start(module, maps), maps)
        assert bool(np.all(output >= 0)) is ends_in_relu


def test_srrl_cannot_normalise_a_batch_of_one():
    module = projectors.SRRLProjector(4)
    variables = start(module, draw(2, 3))
    module.apply(variables, draw(1, 3))
    with pytest.raises(ValueError, match="cannot train on one of 1"):
        module.apply(variables, draw(1, 3), train=True, mutable=["batch_stats"])


@pytest.mark.parametrize("normalized", [True, False])
def test_an_embedding_is_linear_and_of_unit_length_on_request(normalized):
    module, maps = projectors.LinearEmbedding(16, normalized), draw(4, 3, 2, 5)
    variables = start(module, maps)
    dense = variables["params"]["linear"]
    assert dense["kernel"].shape == (30, 16)
    expected = maps.reshape(4, 30) @ dense["kernel"] + dense["bias"]
    if normalized:
        expected /= jnp.linalg.norm(expected, axis=-1, keepdims=True)
    np.testing.assert_allclose(run(module, variables, maps), expected, rtol=1e-4, atol=1e-6)


def test_an_embedding_without_a_bias_is_a_matrix():
    module, maps = projectors.LinearEmbedding(4, normalized=False, use_bias=False), draw(2, 3)
    variables = start(module, maps)
    assert set(variables["params"]["linear"]) == {"kernel"}
    expected = maps @ variables["params"]["linear"]["kernel"]
    np.testing.assert_allclose(run(module, variables, maps), expected, rtol=1e-5, atol=1e-6)


def test_an_embedding_of_zero_stays_zero_without_a_gradient():
    module, maps = projectors.LinearEmbedding(4), jnp.zeros((2, 3))
    variables = start(module, maps)
    variables["params"]["linear"]["bias"] = jnp.zeros(4)
    assert np.all(run(module, variables, maps) == 0)
    gradient = jax.jit(jax.grad(lambda x: module.apply(variables, x).sum()))(maps)
    assert np.all(gradient == 0)


def test_a_projector_is_a_network_whose_statistics_move_in_training():
    network = from_linen(projectors.ConvRegressor((2, 2), 3))
    maps = draw(2, 4, 4, 2)
    variables = network.init(KEY, maps)
    assert count_parameters(variables) == 9 * 2 * 3 + 3 + 2 * 3
    moved = network.apply(variables, maps, train=True).variables["batch_stats"]["norm"]
    assert np.any(moved["mean"] != 0)
    still = network.apply(variables, maps).variables["batch_stats"]["norm"]
    assert np.all(still["mean"] == 0)
