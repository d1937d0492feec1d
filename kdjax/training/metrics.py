"""Metrics on disk: JSON lines always, TensorBoard when a writer for it is installed."""

from __future__ import annotations

import importlib.util
import json
import os
import pathlib
from typing import Any

import jax
import numpy as np


def finite(value: Any) -> Any:
    """A JSON number or a list of them; what is not finite becomes null."""
    value = np.asarray(value, np.float64)
    if value.ndim:
        return [finite(x) for x in value]
    return float(value) if np.isfinite(value) else None


class MetricWriter:
    """Keeps one row a window in `rows`, and appends it to `metrics.jsonl` of the workdir.

    Only the first process writes to disk, and nothing does where there is no workdir.

    A run that is started again drops the lines of steps it is about to repeat, so that the file
    reads as that of a run which was never stopped.
    """

    def __init__(self, workdir: str | os.PathLike | None, tensorboard: bool = True):
        self._file = self._board = None
        self.rows: list[dict[str, Any]] = []
        if workdir is None or jax.process_index() != 0:
            return
        workdir = pathlib.Path(workdir)
        workdir.mkdir(parents=True, exist_ok=True)
        self._path = workdir / "metrics.jsonl"
        self._file = self._path.open("a", encoding="utf-8")
        if tensorboard and importlib.util.find_spec("tensorboardX"):
            import tensorboardX

            self._board = tensorboardX.SummaryWriter(str(workdir / "tensorboard"))

    def rewind(self, stage: str, step: int) -> None:
        """Drops the lines of `stage` after `step`, and a line cut short by a kill."""
        if self._file is None:
            return
        self._file.close()
        kept = []
        for line in self._path.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue
            if row["stage"] != stage or row["step"] <= step:
                kept.append(line + "\n")
        temporary = self._path.with_name(".metrics.jsonl")
        temporary.write_text("".join(kept), encoding="utf-8")
        os.replace(temporary, self._path)
        self._file = self._path.open("a", encoding="utf-8")

    def write(self, stage: str, step: int, kind: str, values: dict[str, Any]) -> None:
        row = {"stage": stage, "step": step, "kind": kind}
        row |= {name: finite(value) for name, value in values.items()}
        self.rows.append(row)
        if self._file is None:
            return
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in values.items():
                if np.ndim(value) == 0:
                    self._board.add_scalar(f"{stage}/{kind}/{name}", float(value), step)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        if self._board is not None:
            self._board.close()


def read_metrics(workdir: str | os.PathLike) -> list[dict[str, Any]]:
    """The rows of a run's `metrics.jsonl`."""
    path = pathlib.Path(workdir) / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
