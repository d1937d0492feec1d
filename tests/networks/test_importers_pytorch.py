"""The logits of transformers' own models, whose folders are loaded here.

Run as a program, it records the small folders in `fixtures/` that `test_importers.py` reads.
"""

import functools
import json
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.networks import Decoder
from kdjax.networks.importers import load_safetensors

torch = pytest.importorskip("torch", reason="torch is not installed: pip install -e '.[peers]'")
transformers = pytest.importorskip(
    "transformers", reason="transformers is not installed: pip install -e '.[peers]'"
)

FIXTURES = pathlib.Path(__file__).parent / "fixtures"
SMALL = dict(
    vocab_size=32,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)
GEMMA = dict(head_dim=8, query_pre_attn_scalar=12, sliding_window=3)
SLIDES, SEES_ALL = "sliding_attention", "full_attention"
CASES = {
    "llama": ("Llama", dict(tie_word_embeddings=True)),
    "llama_untied": (
        "Llama",
        dict(rope_parameters={"rope_type": "default", "rope_theta": 100.0}, head_dim=6),
    ),
    "qwen2": ("Qwen2", dict(tie_word_embeddings=True)),
    "qwen2_sliding": (
        "Qwen2",
        dict(use_sliding_window=True, sliding_window=3, max_window_layers=0),
    ),
    "qwen3": ("Qwen3", dict(head_dim=8)),
    "gemma3_text": ("Gemma3", dict(GEMMA, layer_types=[SLIDES, SEES_ALL])),
    "gemma3_pattern": (
        "Gemma3",
        dict(
            GEMMA,
            num_hidden_layers=7,
            final_logit_softcapping=2.0,
            rope_parameters={
                SLIDES: {"rope_type": "default", "rope_theta": 20.0},
                SEES_ALL: {"rope_type": "default", "rope_theta": 500.0},
            },
        ),
    ),
}
RECORDED = ("llama", "qwen2", "qwen3", "gemma3_text")


@functools.cache
def torch_model(case):
    """A model whose every weight is random, also those that start as ones and zeros."""
    name, options = CASES[case]
    config_class = name + ("TextConfig" if name == "Gemma3" else "Config")
    config = getattr(transformers, config_class)(
        **{**SMALL, **options}, attn_implementation="eager"
    )
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            start = 0.0 if parameter.ndim > 1 or name == "Gemma3" else 1.0
            parameter.copy_(start + 0.3 * torch.randn_like(parameter))
    return model


def tokens_and_logits(model):
    tokens = np.random.default_rng(0).integers(3, 32, (2, 13))
    with torch.no_grad():
        return tokens, model(torch.tensor(tokens)).logits.numpy()


@pytest.mark.filterwarnings("ignore")  # of torch and transformers
@pytest.mark.parametrize("case", CASES)
def test_logits_equal_those_of_transformers(case, tmp_path):
    model = torch_model(case)
    model.save_pretrained(tmp_path)
    tokens, expected = tokens_and_logits(model)
    config, variables = load_safetensors(tmp_path)
    logits = Decoder(config).apply(variables, jnp.asarray(tokens))["logits"]
    assert np.abs(expected).max() > 0.5
    np.testing.assert_allclose(logits, expected, atol=1e-4)


@pytest.mark.filterwarnings("ignore")
def test_shards_and_bfloat16_load_as_one_file_does(tmp_path):
    model = torch_model("qwen3").to(torch.bfloat16)
    model.save_pretrained(tmp_path / "sharded", max_shard_size="4KB")
    model.save_pretrained(tmp_path / "whole")
    torch_model.cache_clear()  # it was narrowed in place
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
    sharded, whole = (load_safetensors(tmp_path / name)[1] for name in ("sharded", "whole"))
    for name, array in model.state_dict().items():
        if name.endswith("layers.1.self_attn.q_proj.weight"):
            kernel = sharded["params"]["block1"]["query"]["kernel"]
            np.testing.assert_array_equal(kernel, array.float().numpy().T)
    np.testing.assert_array_equal(
        sharded["params"]["embedding"]["embedding"], whole["params"]["embedding"]["embedding"]
    )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", RECORDED)
def test_the_recorded_folders_are_what_transformers_computes_today(case):
    model = transformers.AutoModelForCausalLM.from_pretrained(
        FIXTURES / case, attn_implementation="eager", dtype=torch.float32
    )
    with np.load(FIXTURES / case / "logits.npz") as recorded, torch.no_grad():
        logits = model(torch.tensor(recorded["tokens"])).logits.numpy()
        np.testing.assert_allclose(logits, recorded["logits"], atol=1e-5)


def record():
    for case in RECORDED:
        model = torch_model(case)
        model.save_pretrained(FIXTURES / case)
        (FIXTURES / case / "generation_config.json").unlink(missing_ok=True)
        tokens, logits = tokens_and_logits(model)
        np.savez(FIXTURES / case / "logits.npz", tokens=tokens.astype(np.int32), logits=logits)
        settings = json.loads((FIXTURES / case / "config.json").read_text())
        assert settings["model_type"] == case


if __name__ == "__main__":
    record()
