"""Metrics on disk: JSON lines always, TensorBoard when a writer for it is installed."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import pathlib
import struct
import time
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
            self._board = Board(workdir / "tensorboard")

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
        _write(self._file, self._path, json.dumps(row).encode() + b"\n")
        if self._board is not None:
            scalars = {n: float(x) for n, x in values.items() if np.ndim(x) == 0}
            self._board.write(step, {f"{stage}/{kind}/{n}": x for n, x in scalars.items()})

    def close(self) -> None:
        for file in (self._file, self._board):
            if file is not None:
                file.close()


class Board:
    """Scalars for TensorBoard, each written at once by this thread: a full disk is an error here.

    `tensorboardX.SummaryWriter` writes in a thread that ends at the first error, without a word;
    some events later the run would wait for it for ever.
    """

    def __init__(self, folder: pathlib.Path):
        # The time of day, which TensorBoard sorts by, may come twice.
        name = f"events.out.tfevents.{int(time.time())}.{os.getpid()}.{time.monotonic_ns()}"
        self._path = folder / name
        folder.mkdir(exist_ok=True)
        self._file = self._path.open("ab", buffering=0)
        self._add(file_version="brain.Event:2")

    def write(self, step: int, scalars: dict[str, float]) -> None:
        from tensorboardX.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=name, simple_value=x) for name, x in scalars.items()]
        self._add(step=step, summary=Summary(value=values))

    def _add(self, **fields: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.record_writer import masked_crc32c

        data = Event(wall_time=time.time(), **fields).SerializeToString()
        size = struct.pack("<Q", len(data))
        sums = [struct.pack("<I", masked_crc32c(part)) for part in (size, data)]
        _write(self._file, self._path, size + sums[0] + data + sums[1])

    def close(self) -> None:
        self._file.close()


def _write(file: io.FileIO, path: pathlib.Path, content: bytes) -> None:
    try:
        written = file.write(content)
        if written != len(content):
            file.write(content[written:])  # what is in the way says so now
    except OSError as error:
        raise CheckpointError(
            f"could not write {path}: {error.strerror}; the newest checkpoint stays"
        ) from error


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
