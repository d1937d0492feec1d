"""Decoders in the Hugging Face layout: `config.json` beside `*.safetensors`."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from kdjax.networks.importers.settings import Settings
from kdjax.networks.importers.weights import HUGGING_FACE, HUGGING_FACE_POST_NORMS, assemble
from kdjax.networks.transformer import DecoderConfig

FAMILIES = ("llama", "qwen2", "qwen3", "gemma3_text")
INDEX = "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
# Of training, of generation or of the file: the network computes the same.
_NEUTRAL = {
    "_name_or_path",
    "architectures",
    "bos_token_id",
    "cache_implementation",
    "chunk_size_feed_forward",
    "dtype",
    "eos_token_id",
    "id2label",
    "initializer_range",
    "is_llama_config",
    "label2id",
    "model_type",
    "output_attentions",
    "output_hidden_states",
    "pad_token_id",
    "pretraining_tp",
    "problem_type",
    "return_dict",
    "torch_dtype",
    "transformers.js_config",
    "transformers_version",
    "use_cache",
}


def load_safetensors(
    path: str | os.PathLike, family: str | None = None
) -> tuple[DecoderConfig, dict[str, Any]]:
    """A Llama (SmolLM2), Qwen2, Qwen3 or Gemma-3 text decoder, as `save_pretrained` writes it.

    The weights may be in one file or in the shards of `model.safetensors.index.json`. Parameters
    become float32 whatever the file holds; `dataclasses.replace(config, dtype="bfloat16")` makes
    the computation narrower.

    Args:
      path: the folder, or a `.safetensors` file with `config.json` beside it.
      family: one of `FAMILIES`. None: the `model_type` of `config.json`.

    Returns:
      `(config, variables)`: `Decoder(config).apply(variables, tokens)`.

    Raises:
      FileNotFoundError: no such folder, no `config.json`, no weights, or a missing shard.
      ImportError: the package safetensors is not installed.
      ValueError: pickled weights; another family; a setting that is not supported; a broken file;
        missing, unexpected or misshapen tensors (all are listed).
    """
    place = pathlib.Path(path)
    if place.suffix in PICKLES:
        raise ValueError(_pickled(place.name))
    folder = place if place.is_dir() else place.parent
    if not place.exists():
        raise FileNotFoundError(f"there is no folder or safetensors file at {path}")
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} has no config.json, which says what the weights are")
    config, tied = read_config(_json(folder / "config.json"), str(folder / "config.json"), family)
    names = HUGGING_FACE_POST_NORMS if config.post_norms else HUGGING_FACE
    files = _weight_files(place, folder)
    handles = {file: _opened(file) for file in files}
    tensors = dict(_tensors(handles))
    if (folder / INDEX).is_file() and place.is_dir():
        _check_index(folder, tensors)
    shapes = {name: tuple(handle.get_slice(name).get_shape()) for name, handle in tensors.items()}

    def read(name: str) -> np.ndarray:
        return tensors[name].get_tensor(name)

    head, embedding = names["head/embedding"], names["embedding/embedding"]
    if tied and head in shapes and embedding in shapes:
        # Some files repeat the embedding. Another matrix there would be lost.
        if shapes[head] != shapes[embedding] or not np.array_equal(read(head), read(embedding)):
            raise ValueError(f"{folder}: {head} differs from {embedding}, yet they are to be tied")
        del shapes[head]
    return config, assemble(config, names, shapes, read, str(place))


def read_config(
    values: dict[str, Any], where: str, family: str | None = None
) -> tuple[DecoderConfig, bool]:
    """`config.json` as a `DecoderConfig`, and whether the output matrix is tied.

    Args:
      values: the JSON object.
      where: the file, for errors.
      family: one of `FAMILIES`. None: the `model_type`.

    Raises:
      ValueError: another family, a missing setting, or one that is not supported.
    """
    found = values.get("model_type")
    if family is not None and found is not None and family != found:
        raise ValueError(f"{where}: model_type is {found!r}, but family={family!r} was asked for")
    family = family if family is not None else found
    if family not in FAMILIES:
        raise ValueError(f"{where}: model_type {family!r} is not one of {', '.join(FAMILIES)}")
    settings = Settings(values, where)
    gemma = family == "gemma3_text"
    width = settings.take("hidden_size", int)
    num_layers = settings.take("num_hidden_layers", int)
    num_heads = settings.take("num_attention_heads", int)
    own_head_width = {"qwen3": 128, "gemma3_text": 256}.get(family, width // num_heads)
    head_width = settings.take("head_dim", int, own_head_width)
    base, base_local = _rope(settings, gemma)
    window, window_every = _windows(settings, family, num_layers)
    tied = settings.take("tie_word_embeddings", bool, gemma)
    query_scale = None
    if gemma:
        query_scale = settings.take("query_pre_attn_scalar", float, 256.0) ** -0.5
        settings.expect("hidden_activation", "gelu_pytorch_tanh")
        settings.expect("use_bidirectional_attention", False)
    else:
        settings.expect("hidden_act", "silu")
    if family == "llama":
        settings.expect("mlp_bias", False)
        settings.expect("rope_interleaved", False)
    if family != "qwen2":
        settings.expect("attention_bias", False)
    settings.expect("attention_dropout", 0)
    config = DecoderConfig(
        vocabulary=settings.take("vocab_size", int),
        width=width,
        num_layers=num_layers,
        num_heads=num_heads,
        num_key_value_heads=settings.take("num_key_value_heads", int, num_heads),
        head_width=head_width,
        hidden=settings.take("intermediate_size", int),
        max_length=settings.take("max_position_embeddings", int),
        rope_base=base,
        rope_base_local=base_local,
        window=window,
        window_every=window_every,
        norm_epsilon=settings.take("rms_norm_eps", float, 1e-6),
        norm_offset=gemma,
        activation="gelu_tanh" if gemma else "silu",
        query_key_norm=family in ("qwen3", "gemma3_text"),
        attention_bias=family == "qwen2",
        post_norms=gemma,
        embedding_scale=gemma,
        query_scale=query_scale,
        logit_softcap=settings.take("final_logit_softcapping", float, None) if gemma else None,
        tied=tied,
    )
    settings.skip(_NEUTRAL)
    settings.finish()
    return config, tied


def _rope(settings: Settings, gemma: bool) -> tuple[float, float | None]:
    """The rotary bases of global and of sliding layers."""
    old = settings.take("rope_scaling", dict, None)
    if old is not None:
        _plain_rope(old, f"{settings.where}: rope_scaling", None)
    defaults = (1e6, 1e4) if gemma else (1e4, None)
    base = settings.take("rope_theta", float, defaults[0])
    local = settings.take("rope_local_base_freq", float, defaults[1]) if gemma else None
    new = settings.take("rope_parameters", dict, None)
    if new is None:
        return base, local
    where = f"{settings.where}: rope_parameters"
    if not gemma:
        return _plain_rope(new, where, base), None
    kinds = {"full_attention": base, "sliding_attention": local}
    if unknown := new.keys() - kinds.keys():
        raise ValueError(f"{where} has {sorted(unknown)}, expected {sorted(kinds)}")
    full, sliding = (_plain_rope(new.get(k) or {}, f"{where}.{k}", b) for k, b in kinds.items())
    return full, sliding


def _plain_rope(values: dict[str, Any], where: str, base: float | None) -> float:
    settings = Settings(values, where)
    for name in ("rope_type", "type"):
        settings.expect(name, "default")
    settings.expect("partial_rotary_factor", 1.0)
    base = settings.take("rope_theta", float, base)
    settings.finish()
    return base


def _windows(settings: Settings, family: str, num_layers: int) -> tuple[int | None, int | None]:
    """(window, window_every), from what the family says of its sliding layers."""
    window, slides, named = None, [False] * num_layers, "layer_types"
    if family == "gemma3_text":
        window = settings.take("sliding_window", int, 4096)
        every = settings.take("_sliding_window_pattern", int, 6)
        every = settings.take("sliding_window_pattern", int, every)
        slides = [(layer + 1) % every != 0 for layer in range(num_layers)]
    elif family in ("qwen2", "qwen3"):
        window = settings.take("sliding_window", int, 4096)
        first = settings.take("max_window_layers", int, 28)
        if settings.take("use_sliding_window", bool, False):
            slides = [layer >= first for layer in range(num_layers)]
            named = "max_window_layers"
    types = settings.take("layer_types", list, None)
    if types is not None:
        known = {"sliding_attention": True, "full_attention": False}
        if len(types) != num_layers or not set(types) <= known.keys():
            raise ValueError(
                f"{settings.where}: layer_types must name {num_layers} layers, each "
                f"{' or '.join(map(repr, known))}, got {types}"
            )
        slides, named = [known[kind] for kind in types], "layer_types"
    if not any(slides):
        return None, None
    if window is None:
        raise ValueError(f"{settings.where}: {named} has sliding layers, but no sliding_window")
    if all(slides):
        return window, None
    every = slides.index(False) + 1
    if slides != [(layer + 1) % every != 0 for layer in range(num_layers)]:
        raise ValueError(
            f"{settings.where}: {named} is not supported: the layers that see everything must be "
            f"every n-th, got {[layer for layer, s in enumerate(slides) if not s]} of {num_layers}"
        )
    return window, every


def _weight_files(place: pathlib.Path, folder: pathlib.Path) -> list[pathlib.Path]:
    if place.is_file():
        return [place]
    if (folder / INDEX).is_file():
        listed = _json(folder / INDEX).get("weight_map")
        if not isinstance(listed, dict) or not listed:
            raise ValueError(f"{folder / INDEX} has no weight_map")
        files = [folder / name for name in sorted(set(listed.values()))]
        for file in files:
            if file.parent != folder:
                raise ValueError(f"{folder / INDEX}: {file.name!r} leads out of the folder")
            if not file.is_file():
                raise FileNotFoundError(f"{folder / INDEX} names {file.name}, which is not there")
        return files
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickles = sorted(f.name for f in folder.iterdir() if f.suffix in PICKLES)
        if pickles:
            raise ValueError(_pickled(pickles[0]))
        raise FileNotFoundError(f"{folder} has no *.safetensors")
    return files


def _pickled(name: str) -> str:
    return (
        f"{name} is pickled, and unpickling runs whatever code the file brings: "
        "only .safetensors is read (transformers' save_pretrained writes it)"
    )


def _opened(file: pathlib.Path):
    try:
        # jaxlib needs ml_dtypes; its import teaches NumPy the bfloat16 that files hold.
        import ml_dtypes  # noqa: F401
        import safetensors
    except ImportError as error:
        raise ImportError(
            "reading weights needs the package safetensors: pip install 'kdjax[language]'"
        ) from error
    try:
        return safetensors.safe_open(file, framework="numpy")
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(f"{file} is broken or cut short ({error})") from error


def _tensors(handles: dict) -> Iterator[tuple[str, Any]]:
    """(name, the open file that holds it), a name only once."""
    seen: dict[str, pathlib.Path] = {}
    for file, handle in handles.items():
        for name in handle.keys():  # noqa: SIM118 (no mapping)
            if name in seen:
                raise ValueError(f"{name} is both in {seen[name].name} and in {file.name}")
            seen[name] = file
            yield name, handle


def _check_index(folder: pathlib.Path, tensors: dict[str, Any]) -> None:
    listed = _json(folder / INDEX)["weight_map"]
    if listed.keys() != tensors.keys():
        raise ValueError(
            f"{folder / INDEX} does not list what its files hold: only in the index "
            f"{sorted(listed.keys() - tensors.keys())}, only in the files "
            f"{sorted(tensors.keys() - listed.keys())}"
        )


def _json(file: pathlib.Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is no JSON ({error})") from error
    if not isinstance(values, dict):
        raise ValueError(f"{file} must hold a JSON object, got {type(values).__name__}")
    return values
