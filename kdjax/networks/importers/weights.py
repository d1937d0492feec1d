"""From the tensors of a file to the variables of a decoder: names, shapes, completeness."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np

from kdjax.networks.transformer import Decoder, DecoderConfig

# A parameter of the decoder -> the tensor in the file; those of a block, then the others.
HUGGING_FACE = {
    "attention_norm/scale": "model.layers.{}.input_layernorm.weight",
    "query/kernel": "model.layers.{}.self_attn.q_proj.weight",
    "query/bias": "model.layers.{}.self_attn.q_proj.bias",
    "key/kernel": "model.layers.{}.self_attn.k_proj.weight",
    "key/bias": "model.layers.{}.self_attn.k_proj.bias",
    "value/kernel": "model.layers.{}.self_attn.v_proj.weight",
    "value/bias": "model.layers.{}.self_attn.v_proj.bias",
    "out/kernel": "model.layers.{}.self_attn.o_proj.weight",
    "query_norm/scale": "model.layers.{}.self_attn.q_norm.weight",
    "key_norm/scale": "model.layers.{}.self_attn.k_norm.weight",
    "mlp_norm/scale": "model.layers.{}.post_attention_layernorm.weight",
    "gate/kernel": "model.layers.{}.mlp.gate_proj.weight",
    "up/kernel": "model.layers.{}.mlp.up_proj.weight",
    "down/kernel": "model.layers.{}.mlp.down_proj.weight",
    "embedding/embedding": "model.embed_tokens.weight",
    "head/embedding": "lm_head.weight",
    "final_norm/scale": "model.norm.weight",
}
# The same name stands for another norm where attention is normalised before and after.
HUGGING_FACE_POST_NORMS = {
    **HUGGING_FACE,
    "post_attention_norm/scale": "model.layers.{}.post_attention_layernorm.weight",
    "mlp_norm/scale": "model.layers.{}.pre_feedforward_layernorm.weight",
    "post_mlp_norm/scale": "model.layers.{}.post_feedforward_layernorm.weight",
}
GGUF = {
    "attention_norm/scale": "blk.{}.attn_norm.weight",
    "query/kernel": "blk.{}.attn_q.weight",
    "query/bias": "blk.{}.attn_q.bias",
    "key/kernel": "blk.{}.attn_k.weight",
    "key/bias": "blk.{}.attn_k.bias",
    "value/kernel": "blk.{}.attn_v.weight",
    "value/bias": "blk.{}.attn_v.bias",
    "out/kernel": "blk.{}.attn_output.weight",
    "query_norm/scale": "blk.{}.attn_q_norm.weight",
    "key_norm/scale": "blk.{}.attn_k_norm.weight",
    "post_attention_norm/scale": "blk.{}.post_attention_norm.weight",
    "mlp_norm/scale": "blk.{}.ffn_norm.weight",
    "gate/kernel": "blk.{}.ffn_gate.weight",
    "up/kernel": "blk.{}.ffn_up.weight",
    "down/kernel": "blk.{}.ffn_down.weight",
    "post_mlp_norm/scale": "blk.{}.post_ffw_norm.weight",
    "embedding/embedding": "token_embd.weight",
    "head/embedding": "output.weight",
    "final_norm/scale": "output_norm.weight",
}


def assemble(
    config: DecoderConfig,
    names: Mapping[str, str],
    shapes: Mapping[str, tuple[int, ...]],
    read: Callable[[str], np.ndarray],
    where: str,
) -> dict[str, Any]:
    """The decoder's variables, from a file that holds exactly their tensors.

    Matrices lie in the file as `[out, in]`, kernels are `[in, out]`. Nothing is read before all
    names and shapes are known to be right.

    Args:
      config: of the decoder.
      names: parameter -> tensor, as in the tables here.
      shapes: of every tensor in the file.
      read: gives one tensor.
      where: the file, for errors.

    Returns:
      `{"params": ...}`, float32.

    Raises:
      ValueError: tensors are missing, left over or misshapen: all are listed, with shapes.
    """
    wanted, file_shapes = {}, {}
    for path, shape in _parameter_shapes(config).items():
        block = re.fullmatch(r"block(\d+)/(.+)", path)
        name = names[block[2]].format(block[1]) if block else names[path]
        wanted[path] = name
        file_shapes[name] = shape[::-1] if path.endswith("kernel") else shape
    missing = [f"{n} {s}" for n, s in file_shapes.items() if n not in shapes]
    extra = [f"{n} {tuple(s)}" for n, s in shapes.items() if n not in file_shapes]
    misshapen = [
        f"{n} is {tuple(shapes[n])}, expected {s}"
        for n, s in file_shapes.items()
        if n in shapes and tuple(shapes[n]) != tuple(s)
    ]
    faults = {"missing": missing, "not expected": extra, "misshapen": misshapen}
    if any(faults.values()):
        lines = [
            f"\n{kind}:\n  " + "\n  ".join(listed) for kind, listed in faults.items() if listed
        ]
        raise ValueError(f"{where} does not hold the tensors of its decoder:{''.join(lines)}")

    def parameter(path):
        array = np.asarray(read(wanted[path])).astype(np.float32, copy=False)
        return jnp.asarray(array.T if path.endswith("kernel") else array)

    flat = {path: parameter(path) for path in wanted}
    return {"params": flax.traverse_util.unflatten_dict(flat, sep="/")}


def _parameter_shapes(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter by its path; one block is traced, since all are alike."""
    one = Decoder(dataclasses.replace(config, num_layers=1))
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    tree = jax.eval_shape(one.init, jax.random.key(0), tokens)["params"]
    shapes = {}
    for path, leaf in flax.traverse_util.flatten_dict(tree, sep="/").items():
        inside = path.startswith("block0/")
        for layer in range(config.num_layers if inside else 1):
            shapes[path.replace("block0/", f"block{layer}/") if inside else path] = leaf.shape
    return shapes
