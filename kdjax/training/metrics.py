"""Metrics on disk: JSON lines always, TensorBoard when a writer for it is installed."""

from __future__ import annotations

import importlib.util
import json
import os
import pathlib
from typing import Any

import jax
import numpy as np

from kdjax.training.checkpoint import CheckpointError


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
    reads as that of a run which was never stopped. Each line is written at once and whole, or the
    run stops: what a full disk cuts short is dropped when the run goes on.
    """

    def __init__(self, workdir: str | os.PathLike | None, tensorboard: bool = True):
        self._file = self._board = None
        self.rows: list[dict[str, Any]] = []
        if workdir is None or jax.process_index() != 0:
            return
        workdir = pathlib.Path(workdir)
        workdir.mkdir(parents=True, exist_ok=True)
        self._path = workdir / "metrics.jsonl"
        self._open()
        if tensorboard and importlib.util.find_spec("tensorboardX"):
            import tensorboardX

            self._board = tensorboardX.SummaryWriter(str(workdir / "tensorboard"))

    def _open(self) -> None:
        try:
            self._file = self._path.open("ab", buffering=0)  # nothing is kept back for later
        except OSError as error:
            raise CheckpointError(f"could not open {self._path}: {error.strerror}") from error

    def rewind(self, stage: str, step: int) -> list[int]:
        """Drops the lines of `stage` after `step`, and a last one cut short by a kill.

        Returns the numbers of other lines that cannot be read: damage, which is dropped too.
        """
        self.rows = [row for row in self.rows if row["stage"] != stage or row["step"] <= step]
        if self._file is None:
            return []
        self._file.close()
        rows, damaged = _read(self._path)
        kept = [line for line, row in rows if row["stage"] != stage or row["step"] <= step]
        temporary = self._path.with_name(".metrics.jsonl")
        try:
            temporary.write_bytes(b"".join(kept))
            os.replace(temporary, self._path)
        except OSError as error:
            raise CheckpointError(f"could not write {self._path}: {error.strerror}") from error
        self._open()
        return damaged

    def write(self, stage: str, step: int, kind: str, values: dict[str, Any]) -> None:
        row = {"stage": stage, "step": step, "kind": kind}
        row |= {name: finite(value) for name, value in values.items()}
        self.rows.append(row)
        if self._file is None:
            return
        line = json.dumps(row).encode() + b"\n"
        try:
            written = self._file.write(line)
            if written != len(line):
                self._file.write(line[written:])  # what is in the way says so now
        except OSError as error:
            raise CheckpointError(
                f"could not write {self._path}: {error.strerror}; the newest checkpoint stays"
            ) from error
        if self._board is not None:
            for name, value in values.items():
                if np.ndim(value) == 0:
                    self._board.add_scalar(f"{stage}/{kind}/{name}", float(value), step)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        if self._board is not None:
            self._board.close()


def _read(path: pathlib.Path) -> tuple[list[tuple[bytes, dict[str, Any]]], list[int]]:
    """Lines and their rows, and the numbers of lines that are no rows; a last part is left out."""
    rows, damaged = [], []
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines[:-1], 1):
        try:
            row = json.loads(line)
            row["stage"], row["step"] + 0, row["kind"]
            rows.append((line + b"\n", row))
        except (ValueError, KeyError, TypeError):
            damaged.append(number)
    return rows, damaged


def read_metrics(workdir: str | os.PathLike) -> list[dict[str, Any]]:
    """The rows of a run's `metrics.jsonl`; a last line that is not yet whole is left out.

    Raises:
      ValueError: another line is damaged.
    """
    path = pathlib.Path(workdir) / "metrics.jsonl"
    rows, damaged = _read(path)
    if damaged:
        raise ValueError(f"{path}: line {damaged[0]} is damaged")
    return [row for _, row in rows]
