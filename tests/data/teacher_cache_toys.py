"""A small teacher, rows for it, and the cache that keeps what it says of them."""

import numpy as np

from kdjax.data.teacher_cache import (
    Contents,
    TeacherCache,
    fingerprint,
    write_cache,
)

SIZE = 12
WEIGHTS = np.random.default_rng(0).normal(size=(7, SIZE)).astype(np.float32)
PLAIN = Contents("dense", SIZE, fingerprint(WEIGHTS), ("x",))
TOKENS = Contents("dense", SIZE, "table", ("tokens", "segments"))
ROUNDING = {"float32": 0.0, "float16": 2e-3, "bfloat16": 2e-2}


def teacher(batch):
    return batch["x"] @ WEIGHTS


def inputs(n=20, seed=1):
    return {"x": np.random.default_rng(seed).normal(size=(n, 7)).astype(np.float32)}


def sentences():
    """Rows of 5 positions that end after 5, 3, 1 and 4 of them, and their logits."""
    rng = np.random.default_rng(2)
    lengths = np.array([5, 3, 1, 4])
    segments = (np.arange(5) < lengths[:, None]).astype(np.int32)
    tokens = rng.integers(0, SIZE, (4, 5)).astype(np.int32) * segments
    logits = 3 * rng.normal(size=(4, 5, SIZE)).astype(np.float32)
    return {"tokens": tokens, "segments": segments}, logits


def batches(examples, size):
    n = len(next(iter(examples.values())))
    return [{k: x[i : i + size] for k, x in examples.items()} for i in range(0, n, size)]


def written(path, examples, contents=PLAIN, function=teacher, size=4, **options):
    write_cache(path, batches(examples, size), function, contents, **options)
    return TeacherCache(path, contents)


def files(path):
    return {p.name: p.read_bytes() for p in sorted(path.iterdir())}
