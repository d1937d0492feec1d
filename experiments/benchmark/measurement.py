"""What the benchmarks share: quartiles, a stage's step in a plain loop, the file of a result."""

from __future__ import annotations

import json
import os
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kdjax import evaluation
from kdjax.training import Layout, Stage
from kdjax.training.loop import stage_keys, start
from kdjax.training.step import compiled_step, frozen_of


def quartiles(values: Sequence[float]) -> dict[str, float]:
    low, middle, high = np.percentile(values, [25, 50, 75])
    return {"median": float(middle), "q25": float(low), "q75": float(high)}


def begin(out: str) -> dict[str, Any]:
    """The beginning of a result: the load of the machine, its cores, and the sources.

    Raises:
      ValueError: `out` is a record, and the sources are not those of a commit.
    """
    result = {
        "load_before": os.getloadavg()[0],
        "cores": len(os.sched_getaffinity(0)),
        "environment": evaluation.environment(),
    }
    if out.startswith("results/") and result["environment"]["dirty"]:
        raise ValueError(
            "records are written from committed sources only: commit, or take another --out"
        )
    return result


def end(result: Mapping[str, Any], out: str) -> None:
    """Writes a result, with the load of the machine now, where `out` is not empty."""
    if out:
        path = pathlib.Path(out)
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({**result, "load_after": os.getloadavg()[0]}, indent=2)
        path.write_text(text + "\n")


class Steps:
    """The compiled step of a stage, as the engine runs it, in a plain loop.

    Args:
      stage: to be timed.
      one_batch: every step has the first batch; else each has its own, from the streams.
    """

    def __init__(self, stage: Stage, *, one_batch: bool = False):
        layout = Layout()
        self._stage, self._layout, self._one_batch = stage, layout, one_batch
        self._state = start(stage, layout)
        shardings = jax.tree.map(lambda x: x.sharding, self._state)
        self._step = compiled_step(stage, shardings).function
        frozen = layout.frozen(stage, frozen_of(stage))
        tables = {name: stream.table for name, stream in stage.data.items()}
        values = {name: jnp.float32(x) for name, x in stage.values.items()}
        key, count = stage_keys(stage, jax.random.key(0)), jnp.int32(stage.steps)
        self._before, self._after = (frozen, tables), (values, count, key)
        self._streams = {name: stream.items() for name, stream in stage.data.items()}
        self._items = self._next()

    def _next(self) -> dict[str, Any]:
        items = {name: next(stream) for name, stream in self._streams.items()}
        return {n: self._layout.item(self._stage, n, item) for n, item in items.items()}

    def compile(self) -> int:
        """Bytes of the step at its peak: arguments, outputs and temporaries, less the outputs that
        take the place of an argument. The steps that follow run what is compiled here."""
        self._step = self._step.lower(
            self._state, *self._before, self._items, *self._after
        ).compile()
        memory = self._step.memory_analysis()
        held = memory.argument_size_in_bytes + memory.output_size_in_bytes
        return held + memory.temp_size_in_bytes - memory.alias_size_in_bytes

    def seconds(self, steps: int) -> float:
        """Seconds a step, of the next `steps` of them."""
        began = time.perf_counter()
        for _ in range(steps):
            items = self._items if self._one_batch else self._next()
            self._state, report = self._step(self._state, *self._before, items, *self._after)
        jax.block_until_ready(report)
        return (time.perf_counter() - began) / steps
