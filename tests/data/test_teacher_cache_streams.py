"""Streams that bring what a cache has kept: what the live teacher says of the same batches."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest
from teacher_cache_toys import SIZE

from kdjax import data
from kdjax.data.source import Split
from kdjax.data.teacher_cache import (
    Contents,
    TeacherCache,
    processing_of,
    write_stream,
)


def toy():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (22, 4, 4, 1), np.uint8)
    return Split.of({"image": images, "label": (np.arange(22) % 5).astype(np.int32)}, "toy")


@jax.jit
def looks(batch):
    return batch["image"].reshape(len(batch["image"]), -1)[:, :SIZE] * 2


def taught(stream, n, start=0):
    assemble = jax.jit(stream.assemble)
    items = itertools.islice(stream.items(start), n)
    return [assemble(stream.table, item) for item in items]


AUGMENT = ("flip", ("pad_crop", {"padding": 1}))


@pytest.mark.parametrize("mixup", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_cached_views_are_those_of_the_live_teacher_for_two_epochs(tmp_path, mixup):
    split = toy()
    options = dict(seed=5, augment=AUGMENT + ("mixup",) * mixup, mean=(0.4,), std=(0.2,))
    stream = data.resident(split, 8, **options)
    fields = ("image", "id", "epoch") + ("partner_image", "partner_id") * mixup
    contents = Contents("dense", SIZE, "pixels", fields, processing_of(stream))
    write_stream(tmp_path, stream, looks, contents, steps=6, split=split)  # 2.2 epochs
    cache = TeacherCache(tmp_path, contents)
    assert len(cache) == 48
    for other in (stream, data.host(split, 8, **options)):
        reading = cache.stream(other, split)
        for start in (0, 3):
            for batch in taught(reading, 6 - start, start):
                np.testing.assert_array_equal(batch["teacher_logits"], looks(batch))
    assert reading.assemble is cache.stream(other).assemble  # so that nothing compiles twice
    with pytest.raises(LookupError, match=r"example \d+, epoch 2 of toy"):
        taught(reading, 7)
    with pytest.raises(ValueError, match="augmentation_seed: 5 -> 6"):
        cache.stream(data.resident(split, 8, **{**options, "seed": 6}), split)
    with pytest.raises(ValueError, match=r"mean: .* -> null"):
        cache.stream(data.resident(split, 8, **{**options, "mean": None}), split)
    with pytest.raises(ValueError, match="which change with the epoch"):
        cache.fields(split)
    blind = dataclasses.replace(contents, fields=("image",))
    with pytest.raises(ValueError, match="fields must hold id, epoch"):
        write_stream(tmp_path / "blind", stream, looks, blind, steps=1, split=split)


def test_fields_of_a_split_are_the_same_in_memory_from_disk_and_through_a_stream(tmp_path):
    split = toy()
    stream = data.resident(split, 8, seed=0)
    contents = Contents("dense", SIZE, "pixels", ("image",), processing_of(stream))
    write_stream(tmp_path, stream, looks, contents, steps=3, split=split)
    cache = TeacherCache(tmp_path, contents)
    in_memory = Split.of({**split.arrays(), **cache.fields(split)}, "toy")
    ways = [
        data.resident(in_memory, 8, seed=1),
        data.host(cache.split(split), 8, seed=1),
        cache.stream(data.resident(split, 8, seed=1), split),
        cache.stream(data.host(split, 8, seed=1)),
    ]
    first, *others = (taught(way, 4) for way in ways)
    for found in first:
        np.testing.assert_array_equal(found["teacher_logits"], looks(found))
    for other in others:
        jax.tree.map(np.testing.assert_array_equal, other, first)
    with pytest.raises(ValueError, match="give its split"):
        cache.stream(ways[0])
