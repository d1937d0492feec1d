"""How kernels grow: exponents of time and of temporary memory, beside what the mathematics says.

    python -m experiments.benchmark.growth --out=results/benchmark/growth.json

A kernel's value and gradient are compiled at growing sizes; a power law is fitted to the processor
time and to the temporary bytes of the larger half, where constants no longer count. The process
keeps to one core and the time is what it spent there itself, the least of several rounds: how the
work is spread over cores, and what else the machine does, are no part of it. Temporary memory stays
below 12 MiB, which shared caches hold and malloc keeps for the next call: beyond, the time grows by
the price of a byte or of a page, not by the kernel.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmark import measurement
from experiments.benchmark.kernels import ONLY, OUT, ROUNDS, logits, maps, on_pair, vectors
from experiments.command import launch
from kdjax import losses

LEAST_SECONDS = 0.02  # a timing repeats its function until it takes so long


class Growth(NamedTuple):
    """How a kernel should grow along one size: exponents of time and of temporary memory."""

    kernel: Callable[..., jax.Array]
    arrays: Callable[[int], dict[str, np.ndarray]]
    sizes: tuple[int, ...]
    exponent: float
    memory: float


def growths() -> dict[str, Growth]:
    return {
        "kd / classes": Growth(
            on_pair(losses.kd), lambda n: logits(256, n), (256, 512, 1024, 2048), 1, 1
        ),
        "kd / batch": Growth(
            on_pair(losses.kd), lambda n: logits(n, 1024), (64, 128, 256, 512), 1, 1
        ),
        "dist / classes": Growth(
            on_pair(losses.dist), lambda n: logits(256, n), (128, 256, 512, 1024), 1, 1
        ),
        "similarity_preserving / batch": Growth(
            on_pair(losses.similarity_preserving),
            lambda n: vectors(n, 256),
            (80, 160, 320, 640),
            2,
            2,
        ),
        "similarity_preserving / features": Growth(
            on_pair(losses.similarity_preserving),
            lambda n: vectors(64, n),
            (1024, 2048, 4096, 8192),
            1,
            1,
        ),
        "pkt / batch": Growth(
            on_pair(losses.pkt), lambda n: vectors(n, 256), (80, 160, 320, 640), 2, 2
        ),
        "rkd_distance / batch": Growth(
            on_pair(losses.rkd_distance), lambda n: vectors(n, 256), (80, 160, 320, 640), 2, 2
        ),
        "rkd_angle / batch": Growth(
            on_pair(losses.rkd_angle), lambda n: vectors(n, 16), (16, 32, 64, 80), 3, 3
        ),
        "attention_transfer / channels": Growth(
            on_pair(losses.attention_transfer),
            lambda n: maps(channels=n, size=8),
            (32, 64, 128, 256),
            1,
            1,
        ),
        "info_nce / batch": Growth(
            lambda x: losses.clip_info_nce(x["student"], x["teacher"], scale=10.0).mean(),
            lambda n: vectors(n, 128),
            (80, 160, 320, 640),
            2,
            2,
        ),
    }


def slope(sizes: Sequence[int], values: Sequence[float]) -> float:
    """The exponent of a power law through the larger half."""
    half = len(sizes) // 2
    return float(np.polyfit(np.log(sizes[half - 1 :]), np.log(values[half - 1 :]), 1)[0])


def seconds(function: Callable[[], Any], repeats: int) -> float:
    """Of this process, on its core."""
    began = time.process_time()
    for _ in range(repeats):
        function()
    return (time.process_time() - began) / repeats


def growth(entry: Growth) -> dict[str, Any]:
    """Times and temporary bytes at each size, and the exponents fitted to them."""
    functions, memory = [], []
    for size in entry.sizes:
        arrays = {k: jnp.asarray(v) for k, v in entry.arrays(size).items()}
        rest = {"teacher": arrays["teacher"]}
        function = jax.jit(jax.value_and_grad(lambda s, rest: entry.kernel({"student": s, **rest})))
        compiled = function.lower(arrays["student"], rest).compile()
        memory.append(compiled.memory_analysis().temp_size_in_bytes)

        def run(compiled=compiled, arrays=arrays, rest=rest):
            return jax.block_until_ready(compiled(arrays["student"], rest))

        run()
        functions.append((run, math.ceil(LEAST_SECONDS / max(seconds(run, 3), 1e-5))))
    times = np.min([[seconds(*each) for each in functions] for _ in range(ROUNDS.value)], axis=0)
    return {
        "sizes": entry.sizes,
        "ms": [1000 * float(t) for t in times],
        "temporary_bytes": memory,
        "time_exponent": slope(entry.sizes, times),
        "memory_exponent": slope(entry.sizes, memory),
        "expected": {"time": entry.exponent, "memory": entry.memory},
    }


def main(argv: Sequence[str]) -> None:
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # before JAX counts its threads
    result = measurement.begin(OUT.value)
    result["growth"] = {}
    for name, entry in growths().items():
        if ONLY.value in name:
            row = result["growth"][name] = growth(entry)
            print(name, json.dumps(row), flush=True)
    measurement.end(result, OUT.value)


if __name__ == "__main__":
    launch(main)
