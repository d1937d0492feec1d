"""From a config to a classification task on text: sentences with labels, a tokenizer, encoders."""

from __future__ import annotations

import dataclasses

import ml_collections

from experiments import configuration as base
from kdjax import data
from kdjax.data.tokenizers import (
    ByteTokenizer,
    Tokenizer,
    load_tokenizer,
    train_word_tokenizer,
)
from kdjax.methods.task import Task

DATA = ("name", "options", "tokenizer", "vocabulary", "length", "drop", "rows")


def defaults() -> ml_collections.ConfigDict:
    """What every config on labelled text starts from: words, two small encoders.

    `data`: `name` and `options` of `kdjax.data.load_text`, among them `label`, which makes the task
    one of classification; `tokenizer`, "words" (the `vocabulary` most frequent ones of the training
    split), "bytes" or the folder of a `tokenizer.json`; `length` and `drop` of
    `kdjax.data.text_dataset`; `rows`, how many rows of the training, validation and test split
    are used, 0 for all.
    """
    config = base.defaults()
    config.data = dict(
        name="",
        options=dict(text="text", label="label"),
        tokenizer="words",
        vocabulary=8000,
        length=64,
        drop=False,
        rows=(0, 0, 0),
    )
    for role in ("teacher", "student"):
        config[role].input = ("tokens", "segments")
    config.teacher.network = dict(name="text_classifier", width=64, num_layers=2)
    config.student.network = dict(name="text_classifier", width=16, num_layers=1, hidden=32)
    return config


def dataset(config: ml_collections.ConfigDict) -> tuple[data.TextDataset, Tokenizer]:
    """The labelled rows of a config's `data`, and the tokenizer that made them."""
    fields = dict(base.plain(config.data))
    base.only("config.data", fields, DATA)
    name = fields["name"]
    if not name:
        raise base.ConfigError("config.data.name must be a text with labels, such as jsonl:PATH")
    try:
        corpus = data.load_text(name, **fields["options"])
    except FileNotFoundError as error:
        raise base.ConfigError(
            f"config.data.name={name!r}: {error}; no installed package brings labelled sentences, "
            f"so give JSON lines with the fields {fields['options'].get('text')!r} and "
            f"{fields['options'].get('label')!r}: --config.data.name=jsonl:PATH"
        ) from error
    if fields["tokenizer"] == "words":
        texts = (document.text for document in corpus.splits["train"])
        tokenizer: Tokenizer = train_word_tokenizer(texts, fields["vocabulary"])
    elif fields["tokenizer"] == "bytes":
        tokenizer = ByteTokenizer()
    else:
        tokenizer = load_tokenizer(fields["tokenizer"])
    if not corpus.class_names:
        raise base.ConfigError(f"config.data.options.label: {corpus.name} has no labels")
    found = data.text_dataset(
        corpus, tokenizer, fields["length"], packed=False, drop=fields["drop"]
    )
    if len(fields["rows"]) != 3:
        raise base.ConfigError(f"config.data.rows must be three numbers, got {fields['rows']}")
    splits = dict(found.splits)
    for (split, rows), wanted in zip(found.splits.items(), fields["rows"]):
        if wanted:
            splits[split] = rows.subset(wanted, seed=0)
    return dataclasses.replace(found, splits=splits), tokenizer


def task(config: ml_collections.ConfigDict, found=None) -> Task:
    """The classification task of a config; `found` is what `dataset` gave."""
    base.only("config.data", config.data, DATA)
    rows, tokenizer = found or dataset(config)
    return base.task(config, rows, vocabulary=tokenizer.vocabulary)
