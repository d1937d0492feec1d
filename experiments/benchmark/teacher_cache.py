"""A step taught from a cache over a step taught by the live teacher, and what the cache keeps.

    python -m experiments.benchmark.teacher_cache --out=results/benchmark/teacher_cache.json

`decoders`: a language model, trained for a while on the source text of Python's standard library,
teaches a smaller one; every kind of cache in turn. `views`: a classifier of random images teaches
on augmented views, which a cache keeps one by one. Both sides run the same compiled student step in
a plain loop, live with the teacher's forward pass before it; they are run in turn, block by block.
Reported: the median of the ratios cached / live and their quartiles (below 1: the cache is
faster), and the cache's fidelity: KL(cached || dense), mass covered, bytes a position.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import json
import os
import pathlib
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags

from experiments.benchmark import measurement
from experiments.command import launch
from kdjax import data, losses, networks
from kdjax.data.source import Split
from kdjax.data.teacher_cache import (
    Contents,
    TeacherCache,
    fingerprint,
    processing_of,
    write_cache,
    write_stream,
)
from kdjax.data.teacher_cache_fidelity import fidelity
from kdjax.networks import transformer

BLOCKS = flags.DEFINE_integer("blocks", 9, "How many times live and cached are run in turn.")
STEPS = flags.DEFINE_integer("steps", 8, "Steps of a block.")
TRAINING = flags.DEFINE_integer("training", 150, "Steps that the language teacher is trained for.")
OUT = flags.DEFINE_string("out", "", "A JSON file for the result.")
PARTS = flags.DEFINE_list("parts", ["decoders", "views"], "Which parts to run.")

VOCABULARY, LENGTH, ROWS, BATCH = 4096, 64, 512, 16
TEACHER = dict(width=192, num_layers=3, num_heads=6, hidden=512, max_length=LENGTH)
STUDENT = dict(width=64, num_layers=2, num_heads=4, hidden=192, max_length=LENGTH)
KINDS = {
    "dense-float32": dict(kind="dense"),
    "dense-bfloat16": dict(kind="dense", dtype="bfloat16"),
    "top_k-64": dict(kind="top_k", k=64, dtype="float16"),
    "sampled-50": dict(kind="sampled", num_samples=50),
    "hidden-bfloat16": dict(kind="hidden", dtype="bfloat16"),
}
Batch = Mapping[str, jax.Array]


class Setting(NamedTuple):
    """One comparison: both sides of a step, and the report of the cache."""

    live: Callable[[Batch], Mapping[str, jax.Array]]  # the teacher's fields for a batch
    loss: Callable[[Any, Batch], jax.Array]  # of the student's variables
    variables: Any
    stream: Any
    cached: Any
    report: Callable[[], Mapping[str, Any]]


def text() -> tuple[np.ndarray, str]:
    """Rows of tokens of the standard library's source, and the fingerprint of the vocabulary."""
    words: list[str] = []
    for file in sorted(pathlib.Path(os.__file__).parent.glob("*.py")):
        words += re.findall(r"\w+|[^\w ]", file.read_text(errors="replace"))
        if len(words) > 4 * ROWS * LENGTH:
            break
    known = [word for word, _ in collections.Counter(words).most_common(VOCABULARY - 1)]
    numbers = {word: i + 1 for i, word in enumerate(known)}
    ids = np.array([numbers.get(word, 0) for word in words], np.int32)
    rows = ids[: len(ids) // LENGTH * LENGTH].reshape(-1, LENGTH)[:ROWS]
    return rows, fingerprint(np.array(known))


def trained(network: networks.Network, variables: Any, tokens: np.ndarray) -> Any:
    """The language teacher after a while of next-token prediction."""
    optimizer = optax.adam(3e-3)

    @jax.jit
    def step(variables, slots, rows):
        def loss(variables):
            logits = network.apply(variables, rows).output["logits"]
            return losses.cross_entropy(logits[:, :-1], rows[:, 1:]).mean()

        changes, slots = optimizer.update(jax.grad(loss)(variables), slots)
        return optax.apply_updates(variables, changes), slots

    slots, rng = optimizer.init(variables), np.random.default_rng(0)
    for _ in range(TRAINING.value):
        variables, slots = step(variables, slots, tokens[rng.integers(len(tokens), size=BATCH)])
    return variables


def decoders(folder: pathlib.Path) -> Iterator[tuple[str, Setting]]:
    tokens, words = text()
    split = Split.of({"tokens": tokens, "segments": np.ones_like(tokens)}, "standard library")
    teacher = networks.build("decoder", VOCABULARY, **TEACHER)
    student = networks.build("decoder", VOCABULARY, **STUDENT)
    variables = teacher.init(jax.random.key(0), tokens[:1])
    variables = trained(teacher, variables, tokens)
    head = transformer.head(variables)
    stream = data.resident(split, BATCH, seed=0)

    @jax.jit
    def run(variables, tokens):
        return teacher.apply(variables, tokens).output

    def loss(student_variables, batch):
        out = student.apply(student_variables, batch["tokens"]).output
        if "teacher_weights" in batch:
            ids, weights = batch["teacher_ids"], batch["teacher_weights"]
            return losses.sparse_cross_entropy(out["logits"], ids, weights).mean()
        if "teacher_log_probs" in batch:
            ids, log_probs = batch["teacher_ids"], batch["teacher_log_probs"]
            return losses.sparse_kl(out["logits"], ids, log_probs, missing="tail").mean()
        taught = batch.get("teacher_logits")
        if taught is None:
            taught = batch["teacher_hidden"] @ head.T
        return losses.forward_kl(taught, out["logits"]).mean()

    examples = [split.stack(rows) for rows in np.arange(len(split)).reshape(-1, BATCH)]
    for name, options in KINDS.items():
        hidden = options["kind"] == "hidden"
        size = TEACHER["width"] if hidden else VOCABULARY
        preprocessing = {"vocabulary": words, **processing_of(stream)}
        contents = Contents(
            size=size,
            teacher=fingerprint(variables),
            fields=("tokens", "segments"),
            preprocessing=preprocessing,
            **options,
        )
        output = "features" if hidden else "logits"
        began = time.perf_counter()
        write_cache(
            folder / name, examples, lambda b, o=output: run(variables, b["tokens"])[o], contents
        )
        seconds = time.perf_counter() - began
        cache = TeacherCache(folder / name, contents)

        def report(cache=cache, seconds=seconds, hidden=hidden):
            found = fidelity(
                cache,
                examples[:8],
                lambda batch: run(variables, batch["tokens"])["logits"],
                head=head if hidden else None,
            )
            return {"write_seconds": seconds, **dataclasses.asdict(found), "text": found.text()}

        yield (
            f"decoder/{name}",
            Setting(
                lambda batch: {"teacher_logits": run(variables, batch["tokens"])["logits"]},
                loss,
                student.init(jax.random.key(1), tokens[:1]),
                stream,
                cache.stream(stream, split),
                report,
            ),
        )


def views(folder: pathlib.Path) -> Iterator[tuple[str, Setting]]:
    rng = np.random.default_rng(0)
    split = Split.of({"image": rng.integers(0, 256, (512, 32, 32, 3), np.uint8)}, "random images")
    teacher = networks.build("resnet56", 100)
    student = networks.build("resnet20", 100)
    variables = teacher.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    stream = data.resident(split, 64, seed=0, augment=["flip", "pad_crop"], mean=[0.5], std=[0.25])
    contents = Contents(
        "dense", 100, fingerprint(variables), ("image", "id", "epoch"), processing_of(stream)
    )

    @jax.jit
    def run(variables, image):
        return networks.logits_of(teacher.apply(variables, image).output)

    def live(batch):
        return {"teacher_logits": run(variables, batch["image"])}

    def loss(student_variables, batch):
        out = student.apply(student_variables, batch["image"], train=True)
        return losses.kd(networks.logits_of(out.output), batch["teacher_logits"]).mean()

    write_stream(
        folder / "views",
        stream,
        lambda batch: live(batch)["teacher_logits"],
        contents,
        steps=STEPS.value,
        split=split,
    )
    cache = TeacherCache(folder / "views", contents)
    facts = {"disk_bytes": cache.disk_bytes / len(cache), "views": len(cache)}
    yield (
        "views",
        Setting(
            live,
            loss,
            student.init(jax.random.key(1), jnp.zeros((1, 32, 32, 3))),
            stream,
            cache.stream(stream, split),
            lambda: facts,
        ),
    )


def measure(setting: Setting) -> dict[str, Any]:
    """Seconds a step of both sides, in turn."""

    @jax.jit
    def step(params, rest, batch):
        def loss(params):
            return setting.loss({**rest, "params": params}, batch)

        grads = jax.grad(loss)(params)
        return jax.tree.map(lambda p, g: p - 0.01 * g, params, grads)

    params = setting.variables["params"]
    rest = {k: v for k, v in setting.variables.items() if k != "params"}

    def block(stream, teach) -> float:
        assemble = assembled[stream]
        items = stream.items()
        began, now = time.perf_counter(), params
        for item in itertools.islice(items, STEPS.value):
            batch = assemble(stream.table, item)
            now = step(now, rest, {**batch, **teach(batch)})
        jax.block_until_ready(now)
        return (time.perf_counter() - began) / STEPS.value

    assembled = {s: jax.jit(s.assemble) for s in (setting.stream, setting.cached)}
    live, cached = [], []
    for _ in range(BLOCKS.value + 1):
        live.append(block(setting.stream, setting.live))
        cached.append(block(setting.cached, lambda batch: {}))
    live, cached = np.array(live[1:]), np.array(cached[1:])  # the first block compiles
    return {
        "ratio": measurement.quartiles(cached / live),
        "live_ms": measurement.quartiles(1000 * live),
        "cached_ms": measurement.quartiles(1000 * cached),
    }


def main(argv: Sequence[str]) -> None:
    result = measurement.begin(OUT.value)
    with tempfile.TemporaryDirectory() as folder:
        for part in PARTS.value:
            for name, setting in {"decoders": decoders, "views": views}[part](pathlib.Path(folder)):
                result[name] = {**measure(setting), **setting.report()}
                print(name, json.dumps(result[name]), flush=True)
    measurement.end(result, OUT.value)


if __name__ == "__main__":
    launch(main)
