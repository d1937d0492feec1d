"""From a config to a retrieval task: images with texts, a tokenizer, dual encoders."""

from __future__ import annotations

import dataclasses

import ml_collections
import numpy as np

from experiments import configuration as base
from kdjax import data
from kdjax.methods.retrieval_task import RetrievalTask

DATA = ("name", "options", "captions", "train_examples", "mean", "std")
ROLE = tuple(name for name in base.ROLE if name != "input")


def defaults() -> ml_collections.ConfigDict:
    """What every config on images and texts starts from: OpenMoji with English names.

    `data`: `name` and `options` of `kdjax.data.load_captions`, whose `tokenizer` and `length` are
    `data.captions`; `train_examples`, 0 for all; `mean` and `std` of the images. Networks are dual
    encoders: `image` is a network by name and options, `text` options of the text tower.
    """
    config = base.defaults()
    config.data = dict(
        name="openmoji",
        options=dict(),
        captions=dict(tokenizer="bytes", length=0),
        train_examples=0,
        mean=(),
        std=(),
    )
    for role, width in (("teacher", 64), ("student", 32)):
        del config[role].input  # image, tokens, segments
        config[role].network = dict(
            name="dual_encoder",
            image=dict(name="vit", patch=8, width=width, depth=2, pool="mean"),
            text=dict(width=width, depth=2),
            embedding=64,
        )
        config[role].training.update(schedule="cosine", warmup=0.05, batch_size=128)
    config.method = dict(name="contrastive")
    return config


def dataset(config: ml_collections.ConfigDict) -> data.CaptionDataset:
    """The images and texts of a config's `data`."""
    fields = base.plain(config.data)
    base.only("config.data", fields, DATA)
    base.only("config.data.captions", fields["captions"], ("tokenizer", "length"))
    found = data.load_captions(fields["name"], **fields["captions"], **fields["options"])
    examples = fields["train_examples"]
    if examples:
        train = found.splits["train"]
        if not 0 < examples <= len(train):
            raise base.ConfigError(
                f"config.data.train_examples={examples}, but {found.name!r} has {len(train)}"
            )
        rows = np.sort(np.random.default_rng(0).permutation(len(train))[:examples])
        texts = {**found.texts, "train": [found.texts["train"][i] for i in rows]}
        splits = {**found.splits, "train": train.take(rows, f"{train.where}[{examples}]")}
        found = dataclasses.replace(found, splits=splits, texts=texts)
    return found


def task(
    config: ml_collections.ConfigDict, found: data.CaptionDataset | None = None
) -> RetrievalTask:
    """The retrieval task of a config; `found` spares reading the data set again."""
    base.only("config", config, base.FIELDS)
    base.finite("config", config)
    found = found or dataset(config)
    nets, trainings = {}, {}
    for role in ("teacher", "student"):
        nets[role], trainings[role] = base.actor(config, role, found.tokenizer.vocabulary, ROLE)
    made = RetrievalTask(
        found,
        nets,
        trainings,
        seed=config.seed,
        validate_every=config.validate_every,
        mean=tuple(config.data.mean) or None,
        std=tuple(config.data.std) or None,
        cache_teacher=config.teacher.cached,
        teacher_weights=base.teacher_weights(config),
    )
    return made.with_teacher(base.restored(config, made)) if config.teacher.checkpoint else made
