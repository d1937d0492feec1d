"""Tokens a second of sampling from a decoder, beside the same decoder in `transformers`.

    pip install torch transformers
    python -m experiments.benchmark.rollouts --out=results/benchmark/rollouts.json

A decoder of the shape of SmolLM2-135M (`--layers` of its 30) with random weights, loaded into both;
the same left-padded prompts, greedy, without stop tokens, so that both do the same work. What both
generate is compared before it is timed, and so is the largest difference of the prompts' logits:
random weights put the best tokens close together, so a few sequences may part on rounding. Both may
use all cores of the process; they are run in turn, round by round, compiled before, and what is
reported is the median of the ratios transformers / kdjax (above 1: kdjax is faster).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments.benchmark import measurement
from experiments.command import launch
from kdjax import networks
from kdjax.networks.generation import generate

LAYERS = flags.DEFINE_integer("layers", 30, "Number of blocks.")
BATCH = flags.DEFINE_integer("batch", 8, "Number of prompts.")
PROMPT = flags.DEFINE_integer("prompt", 32, "Length of the longest prompt.")
NEW = flags.DEFINE_integer("new", 64, "Tokens generated after each prompt.")
ROUNDS = flags.DEFINE_integer("rounds", 7, "How many times both sides are run in turn.")
OUT = flags.DEFINE_string("out", "", "A JSON file for the result.")

NAMES = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "out": "o_proj"}


def peer(config: networks.DecoderConfig, variables: Any) -> Any:
    """The Llama of `transformers` with these weights."""
    import torch
    import transformers

    llama = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=config.vocabulary,
            hidden_size=config.width,
            intermediate_size=config.hidden,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_key_value_heads,
            max_position_embeddings=config.max_length,
            rms_norm_eps=config.norm_epsilon,
            rope_theta=config.rope_base,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=None,
        )
    ).eval()
    params = jax.tree.map(np.asarray, variables["params"])
    state = {
        "model.embed_tokens.weight": params["embedding"]["embedding"],
        "lm_head.weight": params["embedding"]["embedding"],
        "model.norm.weight": params["final_norm"]["scale"],
    }
    for layer in range(config.num_layers):
        block, path = params[f"block{layer}"], f"model.layers.{layer}."
        for ours, theirs in NAMES.items():
            state[f"{path}self_attn.{theirs}.weight"] = block[ours]["kernel"].T
        for name in ("gate", "up", "down"):
            state[f"{path}mlp.{name}_proj.weight"] = block[name]["kernel"].T
        state[f"{path}input_layernorm.weight"] = block["attention_norm"]["scale"]
        state[f"{path}post_attention_layernorm.weight"] = block["mlp_norm"]["scale"]
    llama.load_state_dict({k: torch.tensor(np.array(v)) for k, v in state.items()})
    return llama


def seconds(run: Callable[[], Any]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def main(argv: Sequence[str]) -> None:
    import torch
    import transformers

    result = measurement.begin(OUT.value)
    result["torch"] = {"torch": torch.__version__, "transformers": transformers.__version__}
    options = dict(width=576, num_heads=9, num_key_value_heads=3, hidden=1536, max_length=2048)
    options |= dict(num_layers=LAYERS.value, rope_base=10_000.0)
    network = networks.build("decoder", 49152, **options)
    config = networks.DecoderConfig(vocabulary=49152, **options)
    variables = jax.jit(network.init)(jax.random.key(0), jnp.zeros((1, 2), int))
    llama = peer(config, variables)

    random = np.random.default_rng(0)
    prompts = random.integers(0, config.vocabulary, (BATCH.value, PROMPT.value))
    lengths = random.integers(PROMPT.value // 2, PROMPT.value + 1, BATCH.value)
    where = np.arange(PROMPT.value) >= PROMPT.value - lengths[:, None]
    inputs, rng = (jnp.asarray(prompts), jnp.asarray(where)), jax.random.key(0)

    def ours():
        steps = {"max_new_tokens": NEW.value, "temperature": 0}
        out = generate(network, config, variables, *inputs, rng, **steps)
        return np.asarray(out.tokens)

    def theirs():
        options = dict(max_new_tokens=NEW.value, do_sample=False, pad_token_id=0)
        with torch.no_grad():
            tokens, mask = torch.tensor(prompts), torch.tensor(where).long()
            return llama.generate(tokens, attention_mask=mask, **options).numpy()

    with torch.no_grad():
        expected = llama(torch.tensor(prompts)).logits[:, -1].numpy()
    logits = jax.jit(lambda v, x: network.apply(v, x).output["logits"][:, -1])(variables, inputs[0])
    result["logits_difference"] = float(np.abs(np.asarray(logits) - expected).max())
    if not result["logits_difference"] < 1e-3:
        raise AssertionError(f"another decoder: logits differ by {result['logits_difference']}")
    equal = (ours() == theirs()).all(-1)  # compiles
    rounds = [(seconds(ours), seconds(theirs)) for _ in range(ROUNDS.value)]
    mine, other = np.array(rounds).T
    result |= {
        "setting": {**options, "batch": BATCH.value, "prompt": PROMPT.value, "new": NEW.value},
        "equal_sequences": float(equal.mean()),
        "tokens_per_second": {
            "kdjax": BATCH.value * NEW.value / float(np.median(mine)),
            "transformers": BATCH.value * NEW.value / float(np.median(other)),
        },
        "ratio": dict(zip(("q25", "median", "q75"), np.percentile(other / mine, [25, 50, 75]))),
    }
    print(json.dumps(result), flush=True)
    measurement.end(result, OUT.value)


if __name__ == "__main__":
    launch(main)
