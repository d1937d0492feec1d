"""Decoders in a GGUF file: settings, quantised weights and tokenizer in one."""

from __future__ import annotations

import os
import pathlib
from typing import Any

import numpy as np

from kdjax.data.tokenizers import LibraryTokenizer, tokenizer_from_gguf
from kdjax.networks.importers.settings import Settings
from kdjax.networks.importers.weights import GGUF, assemble
from kdjax.networks.transformer import DecoderConfig

ARCHITECTURES = ("llama", "qwen2", "qwen3", "gemma3")
# Readers know this of Gemma-3; files need not say it.
_GEMMA_WINDOW_EVERY, _GEMMA_LOCAL_BASE, _GEMMA_27B_LAYERS = 6, 1e4, 62


def load_gguf(
    path: str | os.PathLike,
) -> tuple[DecoderConfig, dict[str, Any], LibraryTokenizer]:
    """A Llama (SmolLM2), Qwen2, Qwen3 or Gemma-3 text decoder with its tokenizer.

    The weights are dequantised to float32 (every type that the package gguf dequantises: F16, BF16,
    Q4_0 ... Q8_0, Q2_K ... Q6_K, ...): the network is the quantised one, not the original.

    A Llama file has the rows of its query and key matrices permuted, so that neighbouring numbers
    are rotated together: its config says `rope_interleaved=True`. Gemma's normalisation weights lie
    in the file with 1 added; that is taken off, since `norm_offset=True` adds it.

    Returns:
      `(config, variables, tokenizer)`: `Decoder(config).apply(variables, tokens)`.

    Raises:
      FileNotFoundError: there is no such file.
      ImportError: the package gguf or tokenizers is not installed.
      ValueError: another architecture; a setting, a type of tensor or a tokenizer that is not
        supported; a broken file; missing, unexpected or misshapen tensors (all are listed).
    """
    place = pathlib.Path(path)
    if not place.is_file():
        raise FileNotFoundError(f"there is no GGUF file at {path}")
    reader = _opened(place)
    metadata = {name: field.contents() for name, field in reader.fields.items()}
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    shapes = {name: tuple(int(n) for n in t.shape[::-1]) for name, t in tensors.items()}
    if len(shapes.get(GGUF["embedding/embedding"], ())) != 2:
        raise ValueError(f"{place.name} has no matrix {GGUF['embedding/embedding']}")
    vocabulary = shapes[GGUF["embedding/embedding"]][0]
    config = config_from_metadata(
        metadata, place.name, vocabulary, tied=GGUF["head/embedding"] not in shapes
    )

    def read(name: str) -> np.ndarray:
        array = _dequantised(tensors[name], place.name).reshape(shapes[name])
        return (
            array - np.float32(1) if config.norm_offset and name.endswith("norm.weight") else array
        )

    variables = assemble(config, GGUF, shapes, read, place.name)
    tokenizer = tokenizer_from_gguf(metadata, place.name)
    if tokenizer.vocabulary > vocabulary:
        raise ValueError(
            f"{place.name} has {tokenizer.vocabulary} tokens and embeddings for {vocabulary}"
        )
    return config, variables, tokenizer


def config_from_metadata(
    metadata: dict[str, Any], where: str, vocabulary: int, tied: bool
) -> DecoderConfig:
    """The settings of a GGUF file as a `DecoderConfig`.

    Args:
      metadata: every key of the file.
      where: the file, for errors.
      vocabulary: rows of its embedding.
      tied: it has no output matrix.

    Raises:
      ValueError: another architecture, a missing setting, or one that is not supported.
    """
    settings = Settings(metadata, where)
    architecture = settings.take("general.architecture", str)
    if architecture not in ARCHITECTURES:
        raise ValueError(
            f"{where}: general.architecture {architecture!r} is not one of "
            f"{', '.join(ARCHITECTURES)}"
        )
    settings.expect("general.type", "model")
    settings.expect("split.count", 0, 1)
    settings.skip((), ("GGUF.", "general.", "tokenizer.", "quantize.", "split."))

    def take(name: str, *options: Any) -> Any:
        return settings.take(f"{architecture}.{name}", *options)

    gemma = architecture == "gemma3"
    width, num_layers = take("embedding_length", int), take("block_count", int)
    num_heads = take("attention.head_count", int)
    head_width = take("attention.key_length", int, width // num_heads)
    for name, expected in (
        ("attention.value_length", head_width),
        ("rope.dimension_count", head_width),
        ("vocab_size", vocabulary),
        ("rope.scaling.type", "none"),
        ("rope.scaling.factor", 1.0),
    ):
        settings.expect(f"{architecture}.{name}", expected)
    if gemma and num_layers == _GEMMA_27B_LAYERS:
        raise ValueError(f"{where}: Gemma-3 27B scales its queries otherwise and is not supported")
    window = window_every = None
    if gemma:
        window = take("attention.sliding_window", int)
        window_every = take("attention.sliding_window_pattern", int, _GEMMA_WINDOW_EVERY)
    config = DecoderConfig(
        vocabulary=vocabulary,
        width=width,
        num_layers=num_layers,
        num_heads=num_heads,
        num_key_value_heads=take("attention.head_count_kv", int, num_heads),
        head_width=head_width,
        hidden=take("feed_forward_length", int),
        max_length=take("context_length", int),
        rope_base=take("rope.freq_base", float, 1e6 if gemma else 1e4),
        rope_base_local=take("rope.freq_base_swa", float, _GEMMA_LOCAL_BASE) if gemma else None,
        window=window,
        window_every=window_every,
        norm_epsilon=take("attention.layer_norm_rms_epsilon", float),
        norm_offset=gemma,
        activation="gelu_tanh" if gemma else "silu",
        query_key_norm=architecture in ("qwen3", "gemma3"),
        attention_bias=architecture == "qwen2",
        post_norms=gemma,
        embedding_scale=gemma,
        logit_softcap=take("final_logit_softcapping", float, None) if gemma else None,
        tied=tied,
        rope_interleaved=architecture == "llama",
    )
    settings.finish()
    return config


def _opened(place: pathlib.Path):
    try:
        import gguf
    except ImportError as error:
        raise ImportError(
            "reading GGUF files needs the package gguf: pip install 'kdjax[language]'"
        ) from error
    try:
        return gguf.GGUFReader(place)
    except (ValueError, IndexError, KeyError, OverflowError, OSError) as error:
        raise ValueError(f"{place} is no whole GGUF file ({error})") from error


def _dequantised(tensor, where: str) -> np.ndarray:
    import gguf

    try:
        return gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    except NotImplementedError as error:
        raise ValueError(
            f"{where}: {tensor.name} is of type {tensor.tensor_type.name}, which is not supported"
        ) from error
