"""One JSON file a run: what was computed, with what, and every number of it."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Curves = Mapping[str, Mapping[str, tuple[np.ndarray, np.ndarray]]]


@dataclasses.dataclass(frozen=True)
class Record:
    """A finished run.

    Attributes:
      method, task: their names.
      seed: of the run.
      config: the whole config, as plain values.
      metrics: `last` and `selected` -> metric -> number: of the variables after the last step, and
        of those with the best validation accuracy. Neither may look at the test split to choose.
      curves: stage -> metric -> (steps `[T]`, values `[T]`).
      commit: of the sources; None outside a repository.
      versions: what `environment` returned.
      seconds: how long the run took.
    """

    method: str
    task: str
    seed: int
    config: Mapping[str, Any]
    metrics: Mapping[str, Mapping[str, float]]
    curves: Curves
    commit: str | None
    versions: Mapping[str, Any]
    seconds: float


def curves(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, tuple]]:
    """The rows of a run's `metrics.jsonl` as stage -> `kind/metric` -> (steps, values).

    Values are `[T]`, or `[T, K]` where K seeds trained together; what is not finite is NaN.

    >>> rows = [{"stage": "distill", "step": 10, "kind": "train", "loss": 0.5}]
    >>> {name: values.tolist() for name, (_, values) in curves(rows)["distill"].items()}
    {'train/loss': [0.5]}
    """
    found: dict[str, dict[str, tuple[list, list]]] = {}
    for row in rows:
        stage = found.setdefault(row["stage"], {})
        for name, value in row.items():
            if name not in ("stage", "step", "kind"):
                steps, values = stage.setdefault(f"{row['kind']}/{name}", ([], []))
                steps.append(row["step"])
                values.append(value)
    return {
        stage: {
            name: (np.asarray(steps), np.asarray(values, np.float64))
            for name, (steps, values) in metrics.items()
        }
        for stage, metrics in found.items()
    }


def _numbers(values: Any) -> Any:
    """JSON numbers, null where not finite."""
    values = np.asarray(values, np.float64)
    if values.ndim:
        return [_numbers(value) for value in values]
    return float(values) if math.isfinite(values) else None


def _check(record: Record) -> None:
    """Refuses a record that cannot be compared with others."""
    kinds = {
        "method": str,
        "task": str,
        "seed": int,
        "config": Mapping,
        "metrics": Mapping,
        "curves": Mapping,
        "commit": str | None,
        "versions": Mapping,
        "seconds": int | float,
    }
    for name, kind in kinds.items():
        value = getattr(record, name)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ValueError(f"{name} has the wrong type {type(value).__name__}")
    if set(record.metrics) != {"last", "selected"}:
        raise ValueError(f"metrics must be 'last' and 'selected', got {sorted(record.metrics)}")
    for which, values in record.metrics.items():
        for name, value in values.items():
            if not isinstance(value, int | float) or not math.isfinite(value):
                raise ValueError(f"metrics[{which!r}][{name!r}] must be finite, got {value!r}")


def write_record(path: str | os.PathLike, record: Record) -> pathlib.Path:
    """Writes a record whole or not at all, the same bytes for the same record.

    One line a field, keys sorted. A value of a curve that is not finite becomes null; a metric that
    is not finite is refused, since a number that is published must be one.

    Returns:
      The path.

    Raises:
      ValueError: a field of the wrong type, a metric that is not finite, a config that is not JSON.
      OSError: the file cannot be written; one that was there stays.
    """
    _check(record)
    fields = {field.name: getattr(record, field.name) for field in dataclasses.fields(Record)}
    fields["curves"] = {
        stage: {
            name: {"steps": np.asarray(steps).tolist(), "values": _numbers(values)}
            for name, (steps, values) in metrics.items()
        }
        for stage, metrics in record.curves.items()
    }
    try:
        lines = [
            f"{json.dumps(name)}: {json.dumps(fields[name], sort_keys=True, allow_nan=False)}"
            for name in sorted(fields)
        ]
    except (TypeError, ValueError) as error:
        raise ValueError(f"the record of {record.method!r} is not JSON: {error}") from error
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write("{\n" + ",\n".join(lines) + "\n}\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def read_record(path: str | os.PathLike) -> Record:
    """One record; curves become arrays, with NaN for null.

    Raises:
      ValueError: the file is not a whole record; the message names it and what is wrong.
    """
    path = pathlib.Path(path)
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        expected = {field.name for field in dataclasses.fields(Record)}
        if not isinstance(fields, dict) or set(fields) != expected:
            raise ValueError(f"its fields must be {sorted(expected)}")
        fields["curves"] = {
            stage: {
                name: (np.asarray(curve["steps"]), np.asarray(curve["values"], np.float64))
                for name, curve in metrics.items()
            }
            for stage, metrics in fields["curves"].items()
        }
        record = Record(**fields)
        _check(record)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path.name} is not a record: {error}") from error
    return record


def read_records(folder: str | os.PathLike) -> list[Record]:
    """Every `*.json` of a folder, in the order of their names.

    Raises:
      ValueError: one of them is not a whole record; the message names it.
      FileNotFoundError: there is no such folder.
    """
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder of records at {folder}")
    return [read_record(path) for path in sorted(folder.glob("*.json"))]


def arms(records: Sequence[Record], which: str = "selected") -> dict[str, dict[str, list[float]]]:
    """The records of one task as method -> metric -> a value a seed, seeds ascending.

    Args:
      records: methods x seeds of one task.
      which: `last` or `selected`.

    Raises:
      ValueError: records of several tasks, a run that is there twice, or methods with different
        seeds, which cannot be paired.
    """
    if which not in ("last", "selected"):
        raise ValueError(f"which must be 'last' or 'selected', got {which!r}")
    tasks = sorted({record.task for record in records})
    if len(tasks) != 1:
        raise ValueError(f"the records must be of one task, got {tasks}")
    runs: dict[str, dict[int, Mapping[str, float]]] = {}
    for record in records:
        seeds = runs.setdefault(record.method, {})
        if record.seed in seeds:
            raise ValueError(f"method {record.method!r} has two records of seed {record.seed}")
        seeds[record.seed] = record.metrics[which]
    reference = sorted(next(iter(runs.values())))
    for method, seeds in runs.items():
        if sorted(seeds) != reference:
            raise ValueError(f"method {method!r} has seeds {sorted(seeds)}, others {reference}")
    return {
        method: {name: [seeds[seed][name] for seed in reference] for name in seeds[reference[0]]}
        for method, seeds in runs.items()
    }
