"""The decoder is the one of the literature, whatever its config, packing, padding or cache."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.networks import Decoder, DecoderConfig, available_taps, build, count_parameters
from kdjax.networks.attention import (
    attend,
    attention_weights,
    rotary_tables,
    rotate,
    soft_cap,
    visible,
)
from kdjax.networks.linen import from_linen
from kdjax.networks.transformer import RMSNorm, empty_cache, head, project

SMALL = {"width": 8, "num_layers": 2, "num_heads": 4, "num_key_value_heads": 2, "hidden": 12}
GEMMA = {
    "head_width": 6,
    "rope_base_local": 100.0,
    "window": 3,
    "window_every": 2,
    "norm_offset": True,
    "activation": "gelu_tanh",
    "query_key_norm": True,
    "post_norms": True,
    "embedding_scale": True,
    "query_scale": 0.3,
    "attention_softcap": 2.0,
    "logit_softcap": 3.0,
}
QWEN = {"attention_bias": True, "tied": False, "rope_interleaved": True, "rope_base": 50.0}
CONFIGS = {"plain": {}, "gemma": GEMMA, "qwen": QWEN}
VOCABULARY, LENGTH = 11, 8


@functools.cache
def model(name, **changes):
    """Network, config, variables far from their start, and the compiled output."""
    config = DecoderConfig(vocabulary=VOCABULARY, **{**SMALL, **CONFIGS[name], **changes})
    network = from_linen(Decoder(config))
    shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 2), int))
    random = np.random.default_rng(0)
    variables = jax.tree.map(lambda x: random.normal(0, 0.6, x.shape).astype(np.float32), shapes)
    compiled = jax.jit(lambda *arguments: network.apply(*arguments).output)
    return network, config, variables, compiled


def row(*documents, left=0):
    """Tokens, positions and segments of a row in which documents are packed."""
    arrays = np.zeros((3, LENGTH), np.int32)
    at = left
    for segment, document in enumerate(documents, 1):
        place = slice(at, at + len(document))
        arrays[:, place] = document, range(len(document)), [segment] * len(document)
        at += len(document)
    return arrays


A, B, C = [3, 1, 4], [1, 5, 9, 2], [6, 5, 3, 5, 8]
ROWS = np.stack([row(A, B), row(A, left=5), row(B, left=2), row(C, left=1)], axis=1)


def reference(config, params, tokens):
    """One document's logits [L, V], by the definition, in float64."""
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    length, width = len(tokens), config.head_width

    def norm(x, p):
        scale = p["scale"] + 1 if config.norm_offset else p["scale"]
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + config.norm_epsilon) * scale

    def turn(x, base):  # each pair of numbers is a complex number
        angle = np.arange(length)[:, None] * base ** (-np.arange(0, width, 2) / width)
        pairs = (slice(0, None, 2), slice(1, None, 2))
        if not config.rope_interleaved:
            pairs = (slice(0, width // 2), slice(width // 2, None))
        z = (x[..., pairs[0]] + 1j * x[..., pairs[1]]) * np.exp(1j * angle)
        out = np.empty_like(x)
        out[..., pairs[0]], out[..., pairs[1]] = z.real, z.imag
        return out

    def cap(x, bound):
        return x if bound is None else bound * np.tanh(x / bound)

    def linear(x, p):
        return x @ p["kernel"] + p.get("bias", 0)

    x = params["embedding"]["embedding"][tokens]
    x = x * config.width**0.5 if config.embedding_scale else x
    for layer in range(config.num_layers):
        p = params[f"block{layer}"]
        slides = config.window and (layer + 1) % (config.window_every or length) != 0
        base = (slides and config.rope_base_local) or config.rope_base
        h = norm(x, p["attention_norm"])
        heads = []
        for n in range(config.num_heads):
            group = n // (config.num_heads // config.num_key_value_heads)
            own, shared = (
                slice(n * width, (n + 1) * width),
                slice(group * width, (group + 1) * width),
            )
            q, k = linear(h, p["query"])[:, own], linear(h, p["key"])[:, shared]
            if config.query_key_norm:
                q, k = norm(q, p["query_norm"]), norm(k, p["key_norm"])
            scale = config.query_scale or width**-0.5
            scores = cap(turn(q, base) @ turn(k, base).T * scale, config.attention_softcap)
            for i in range(length):
                scores[i, i + 1 :] = -np.inf
                if slides:
                    scores[i, : max(0, i - config.window + 1)] = -np.inf
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            weights /= weights.sum(-1, keepdims=True)
            heads.append(weights @ linear(h, p["value"])[:, shared])
        h = linear(np.concatenate(heads, -1), p["out"])
        x = x + (norm(h, p["post_attention_norm"]) if config.post_norms else h)
        h = norm(x, p["mlp_norm"])
        gate = linear(h, p["gate"])
        if config.activation == "silu":
            gate = gate / (1 + np.exp(-gate))
        else:
            inner = np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3)
            gate = gate * (1 + np.tanh(inner)) / 2
        h = linear(gate * linear(h, p["up"]), p["down"])
        x = x + (norm(h, p["post_mlp_norm"]) if config.post_norms else h)
    matrix = params["embedding" if config.tied else "head"]["embedding"]
    return cap(norm(x, params["final_norm"]) @ matrix.T, config.logit_softcap)


@pytest.mark.parametrize("name", CONFIGS)
def test_decoder_equals_the_definition_in_packed_and_padded_rows(name):
    _, config, variables, compiled = model(name)
    output = compiled(variables, *ROWS)
    logits = np.asarray(output["logits"])
    places = [(0, 0, A), (0, 3, B), (1, 5, A), (2, 2, B), (3, 1, C)]
    for row_index, start, document in places:
        expected = reference(config, variables["params"], document)
        got = logits[row_index, start : start + len(document)]
        np.testing.assert_allclose(got, expected, atol=3e-5, rtol=3e-5)
    assert np.isfinite(logits).all()
    np.testing.assert_allclose(
        project(output["features"], head(variables), config.logit_softcap), logits, atol=1e-5
    )


def test_cached_calls_equal_one_call():
    _, config, variables, compiled = model("gemma")
    expected = compiled(variables, *ROWS)["features"]
    cache, features = empty_cache(config, 4, LENGTH), []
    for start in range(0, LENGTH, 2):
        output = compiled(variables, *ROWS[:, :, start : start + 2], cache)
        cache = output["cache"]
        features.append(output["features"])
    np.testing.assert_allclose(jnp.concatenate(features, 1), expected, atol=2e-5)
    assert int(cache["index"]) == LENGTH
    np.testing.assert_array_equal(cache["segments"], ROWS[2])
    assert np.isnan(compiled(variables, *ROWS[:, :, :2], cache)["logits"]).all()  # it was full


def test_positions_count_from_zero_and_on_from_the_cache():
    _, config, variables, compiled = model("plain", num_layers=1)
    tokens, cache = jnp.array([B]), empty_cache(config, 1, 4)
    whole = reference(config, variables["params"], B)
    for start in (0, 2):
        output = compiled(variables, tokens[:, start : start + 2], None, None, cache)
        cache = output["cache"]
        np.testing.assert_allclose(output["logits"][0], whole[start : start + 2], atol=1e-5)
    np.testing.assert_array_equal(cache["positions"], [[0, 1, 2, 3]])


@pytest.mark.parametrize("window", [None, 1, 2])
def test_visible_is_document_causality_and_window(window):
    random = np.random.default_rng(0)
    segments = random.integers(0, 3, (2, 6))
    positions = random.integers(0, 5, (2, 6))
    seen = visible(*map(jnp.asarray, (positions, segments, positions, segments)), window)
    for b, i, j in np.ndindex(2, 6, 6):
        expected = segments[b, i] == segments[b, j] != 0
        expected &= 0 <= positions[b, i] - positions[b, j] < (window or 99)
        assert seen[b, i, j] == expected


@pytest.mark.parametrize("cap", [None, 0.7])
def test_grouped_heads_equal_repeated_heads_and_the_unseeing_get_zero(cap):
    random = np.random.default_rng(0)
    query = random.normal(size=(2, 5, 6, 4)).astype(np.float32)
    key, value = random.normal(size=(2, 2, 5, 2, 4)).astype(np.float32)
    seen = random.random((2, 5, 5)) < 0.5
    seen[0, 2] = False
    out = jax.jit(attend, static_argnums=(4, 5))(query, key, value, seen, 0.4, cap)
    weights = jax.jit(attention_weights, static_argnums=(3, 4))(query, key, seen, 0.4, cap)
    key, value = np.repeat(key, 3, axis=2), np.repeat(value, 3, axis=2)
    scores = 0.4 * np.einsum("blnh,bsnh->bnls", query, key)
    scores = scores if cap is None else cap * np.tanh(scores / cap)
    expected = np.exp(scores) * seen[:, None]
    expected /= np.maximum(expected.sum(-1, keepdims=True), 1e-9)
    np.testing.assert_allclose(weights, expected, atol=1e-6)
    np.testing.assert_allclose(out, np.einsum("bnls,bsnh->blnh", expected, value), atol=1e-6)
    assert not out[0, 2].any()


def test_rotation_depends_on_distance_alone():
    random = np.random.default_rng(0)
    query, key = random.normal(size=(2, 1, 1, 1, 8)).astype(np.float32)

    def product(i, j, interleaved):
        tables = [rotary_tables(jnp.array([[at]]), 8, 100.0) for at in (i, j)]
        turned = [rotate(x, t, interleaved) for x, t in zip((query, key), tables)]
        return float(jnp.vdot(*turned))

    for interleaved in (False, True):
        assert product(7, 3, interleaved) == pytest.approx(product(24, 20, interleaved), abs=1e-5)
        assert product(7, 3, interleaved) != pytest.approx(product(7, 4, interleaved), abs=1e-2)
        assert product(5, 5, interleaved) == pytest.approx(np.vdot(query, key), abs=1e-5)


def test_interleaved_rotation_is_the_other_one_after_a_permutation():
    x = np.random.default_rng(0).normal(size=(1, 3, 2, 8)).astype(np.float32)
    tables = rotary_tables(jnp.arange(3)[None], 8, 100.0)
    order = np.arange(8).reshape(2, 4).T.ravel()  # 0, 4, 1, 5, ...
    expected = rotate(x, tables)[..., order]
    np.testing.assert_allclose(rotate(x[..., order], tables, interleaved=True), expected, atol=1e-6)


def test_a_sliding_layer_cuts_and_a_global_one_does_not():
    def reach(**changes):
        """The places whose token changes the last logits."""
        _, _, variables, compiled = model("plain", num_layers=1, **changes)
        tokens = np.full((8, LENGTH), 2)
        changed = np.where(np.eye(8, dtype=bool), 3, tokens)
        last = compiled(variables, jnp.asarray(changed))["logits"][:, -1]
        base = compiled(variables, jnp.asarray(tokens))["logits"][:, -1]
        return np.flatnonzero(np.abs(last - base).max(-1) > 1e-7).tolist()

    assert reach(window=3) == [5, 6, 7]
    assert reach(window=3, window_every=1) == list(range(8))


def test_sliding_layers_are_counted_from_one():
    config = DecoderConfig(vocabulary=3, window=4, window_every=6, num_layers=12)
    assert [layer for layer in range(12) if not config.slides(layer)] == [5, 11]
    everywhere = dataclasses.replace(config, window_every=None)
    assert all(map(everywhere.slides, range(12)))
    assert not any(map(DecoderConfig(vocabulary=3).slides, range(4)))


def test_soft_cap_bounds_and_leaves_small_values():
    x = jnp.array([-1e9, -1e-3, 0.0, 1e-3, 1e9])
    np.testing.assert_allclose(soft_cap(x, 5.0), [-5, -1e-3, 0, 1e-3, 5], atol=1e-9)
    assert soft_cap(x, None) is x
    _, config, variables, compiled = model("gemma")
    wild = jax.tree.map(lambda leaf: 50 * leaf, variables)
    logits = compiled(wild, *ROWS)["logits"]
    assert 2.9 < jnp.abs(logits).max() <= config.logit_softcap


def test_parameter_counts_are_the_published_ones():
    # SmolLM2-135M and Gemma-3-1B.
    configs = {
        134_515_008: {
            "width": 576,
            "num_layers": 30,
            "num_heads": 9,
            "num_key_value_heads": 3,
            "hidden": 1536,
            "vocabulary": 49152,
        },
        999_885_952: {
            "width": 1152,
            "num_layers": 26,
            "num_heads": 4,
            "num_key_value_heads": 1,
            "head_width": 256,
            "hidden": 6912,
            "vocabulary": 262_144,
            "query_key_norm": True,
            "post_norms": True,
        },
    }
    for count, options in configs.items():
        vocabulary = options.pop("vocabulary")
        network = build("decoder", vocabulary, **options)
        shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 2), int))
        assert count_parameters(shapes) == count


def test_parameters_have_the_documented_paths_and_start():
    config = DecoderConfig(
        vocabulary=VOCABULARY, **SMALL, head_width=6, **QWEN, query_key_norm=True
    )
    network = from_linen(Decoder(config))
    params = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 2), int))["params"]
    flat = jax.tree_util.tree_flatten_with_path(params)[0]
    shapes = {jax.tree_util.keystr(p, simple=True, separator="/"): x.shape for p, x in flat}
    norms = {"attention_norm": 8, "mlp_norm": 8, "query_norm": 6, "key_norm": 6}
    kernels = {"query": (8, 24), "key": (8, 12), "value": (8, 12), "out": (24, 8)}
    kernels |= {"gate": (8, 12), "up": (8, 12), "down": (12, 8)}
    expected = {"embedding/embedding": (11, 8), "head/embedding": (11, 8), "final_norm/scale": (8,)}
    for block in ("block0", "block1"):
        expected |= {f"{block}/{name}/scale": (size,) for name, size in norms.items()}
        expected |= {f"{block}/{name}/kernel": shape for name, shape in kernels.items()}
        expected |= {
            f"{block}/{name}/bias": kernels[name][1:] for name in ("query", "key", "value")
        }
    assert shapes == expected
    assert head({"params": params}) is params["head"]["embedding"]


@pytest.mark.slow
def test_parameters_start_as_documented():
    network = build("decoder", 256, num_layers=1, tied=False, post_norms=True)
    assert network is build("decoder", 256, post_norms=True, num_layers=1, tied=False)
    params = jax.jit(network.init)(jax.random.key(0), jnp.zeros((1, 2), int))["params"]
    deviations = {"query": 64, "up": 64, "out": 64 * 2, "down": 256 * 2}  # 2 branches
    for name, variance in deviations.items():
        kernel = params["block0"][name]["kernel"]
        assert float(kernel.std()) == pytest.approx(variance**-0.5, rel=0.1)
    for name in ("embedding", "head"):
        assert float(params[name]["embedding"].std()) == pytest.approx(0.02, rel=0.1)
    assert (params["final_norm"]["scale"] == 1).all()
    assert (params["block0"]["post_mlp_norm"]["scale"] == 1).all()


def test_offset_norms_start_at_zero_and_scale_by_one_plus_it():
    x = jnp.array([[3.0, 4.0]])
    norm = RMSNorm(0.0, offset=True)
    variables = norm.init(jax.random.key(0), x)
    assert not variables["params"]["scale"].any()
    np.testing.assert_allclose(norm.apply(variables, x), x / 12.5**0.5, rtol=1e-6)


@functools.cache
def gradient(remat):
    network, _, variables, _ = model("gemma", num_layers=1, remat=remat)
    tokens, positions, segments = ROWS[:, :2].copy()
    segments[1] = 0  # a row of nothing but padding

    def loss(variables, counted):
        logits = network.apply(variables, tokens, positions, segments).output["logits"]
        log_probs = jax.nn.log_softmax(logits)[..., 2]
        return jnp.where(counted, log_probs, 0).sum()

    compiled = jax.jit(jax.grad(loss))
    return [compiled(variables, counted) for counted in (segments > 0, segments == 0)]


def test_gradients_are_finite_with_padding_and_padding_moves_no_attention():
    real, padding = gradient("")
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves([real, padding]))
    for name in ("query", "key", "value", "out"):
        assert not padding["params"]["block0"][name]["kernel"].any()
        assert real["params"]["block0"][name]["kernel"].any()


@pytest.mark.slow
def test_rematerialisation_gives_the_same_gradient():
    for kept, recomputed in zip(gradient(""), gradient("block")):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), kept, recomputed)


def test_bfloat16_computes_but_parameters_and_logits_are_float32():
    network, _, variables, compiled = model("gemma", dtype="bfloat16")
    shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 2), int))
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}
    output = compiled(variables, *ROWS)
    assert output["logits"].dtype == jnp.float32
    assert output["features"].dtype == jnp.bfloat16
    exact = model("gemma")[3](variables, *ROWS)["logits"]
    assert 1e-4 < np.abs(output["logits"] - exact)[ROWS[2] > 0].mean() < 0.1
    assert DecoderConfig(vocabulary=2, dtype=jnp.bfloat16) == DecoderConfig(
        vocabulary=2, dtype="bfloat16"
    )


@pytest.mark.parametrize("remat", ["", "block"])
def test_taps_reach_hidden_states_maps_and_value_relations(remat):
    network, _, variables, compiled = model("plain", num_layers=1, remat=remat)
    names = available_taps(network, variables, *ROWS)
    assert names["block0/out"].shape == (4, LENGTH, 8)
    assert names["block0/attention_weights"].shape == (4, 4, LENGTH, LENGTH)
    assert names["embedding/out"].shape == names["final_norm/out"].shape == (4, LENGTH, 8)
    if remat:  # the rest needs no second compilation
        return
    wanted = ("block*/attention_weights", "block0/value/out", "block0/out")
    tapped = jax.jit(lambda *arguments: network.apply(*arguments, taps=wanted))(variables, *ROWS)
    np.testing.assert_array_equal(tapped.output["logits"], compiled(variables, *ROWS)["logits"])
    positions, segments = map(jnp.asarray, ROWS[1:])
    seen = visible(positions, segments, positions, segments)
    maps = tapped.taps["block0/attention_weights"]
    np.testing.assert_allclose(maps.sum(-1), np.repeat(seen.any(-1)[:, None], 4, 1), atol=1e-6)
    assert not maps[~np.repeat(seen[:, None], 4, 1)].any()
    values = tapped.taps["block0/value/out"].reshape(4, LENGTH, 1, -1)
    relations = attention_weights(values, values, seen, values.shape[-1] ** -0.5)
    v = np.asarray(tapped.taps["block0/value/out"])[3, 1:6]
    expected = np.exp(v @ v.T / np.sqrt(4)) * np.tri(5)
    expected /= expected.sum(-1, keepdims=True)
    np.testing.assert_allclose(relations[3, 0, 1:6, 1:6], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"width": 10}, "width=10 must be a multiple of num_heads=4"),
        ({"num_key_value_heads": 3}, "num_heads=4 must be a multiple of num_key_value_heads=3"),
        ({"head_width": 3}, "head_width must be even for rotary pairs, got 3"),
        ({"window": 0}, "window must be a positive integer, got 0"),
        ({"window_every": 2}, "window_every=2 needs window, got window=None"),
        ({"num_layers": 0}, "num_layers must be a positive integer, got 0"),
        ({"max_length": True}, "max_length must be a positive integer, got True"),
        ({"logit_softcap": 0.0}, "logit_softcap must be positive, got 0.0"),
        ({"rope_base": -1.0}, "rope_base must be positive, got -1.0"),
        ({"activation": "relu"}, r"activation must be one of \['gelu_tanh', 'silu'\], got 'relu'"),
        ({"dtype": "int32"}, "dtype must be a floating-point type, got 'int32'"),
    ],
)
def test_bad_configs_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        DecoderConfig(vocabulary=VOCABULARY, **{**SMALL, **fields})


def test_registry_names_the_nearest_field():
    with pytest.raises(ValueError, match="decoder has no option 'num_layer'; did you mean 'num_la"):
        build("decoder", 3, num_layer=1)
    with pytest.raises(ValueError, match="unknown network 'decodr'; did you mean 'decoder'"):
        build("decodr", 3)


TOKENS = np.zeros((2, 4), np.int32)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((TOKENS.astype(np.float32),), TypeError, "tokens must be integers, got dtype float32"),
        ((TOKENS[0],), ValueError, r"tokens must be shaped \[batch, length\], got shape \(4,\)"),
        ((np.zeros((1, 9), int),), ValueError, "tokens must be at most max_length=8 long, got 9"),
        ((TOKENS, TOKENS[:, 1:]), ValueError, r"positions must have the shape \(2, 4\) of tokens"),
        ((TOKENS, None, TOKENS > 0), TypeError, "segments must be integers, got dtype bool"),
        ((TOKENS, None, None, 3), ValueError, "fit into the cache of 2 sequences of 3 tokens"),
    ],
)
def test_bad_calls_are_refused_while_tracing(arguments, error, message):
    network, config, variables, _ = model("plain", max_length=8)
    if len(arguments) == 4:
        arguments = (*arguments[:3], empty_cache(config, 2, arguments[3]))
    with pytest.raises(error, match=message):
        jax.eval_shape(network.apply, variables, *arguments)


def test_a_cache_longer_than_the_model_is_refused():
    with pytest.raises(ValueError, match=r"length must be in \[1, max_length=8\], got 9"):
        empty_cache(model("plain", max_length=8)[1], 2, 9)


def test_an_id_outside_the_vocabulary_gives_nan_and_not_another_token():
    _, _, variables, compiled = model("plain")
    tokens = ROWS[0].copy()
    tokens[0, 0] = VOCABULARY
    logits = compiled(variables, tokens, *ROWS[1:])["logits"]
    assert np.isnan(logits[0, :3]).all()
    assert np.isfinite(logits[1:]).all()
