"""Data sets in one local file: arrays in a `.npz`, or rows in JSON lines or CSV."""

from __future__ import annotations

import csv
import gzip
import json
import pathlib
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from kdjax.data.files import SPLITS
from kdjax.data.source import Dataset

NAMES = (("images", "labels"), ("image", "label"), ("x", "y"), ("data", "target"))


def npz(path: str, *, fields: Mapping[str, str] | Sequence[Sequence[str]] = ()) -> Dataset:
    """Arrays in a `.npz`: `images` or `x`, `labels` or `y`, alone or after `train_`, `test_`, ...

    Args:
      path: the file; nothing in it is unpickled.
      fields: pairs of (ours, theirs), e.g. `{"train_images": "x_tr"}`, where names differ.

    A boolean array `test` beside one pair of arrays marks the rows that are the test split.

    Raises:
      FileNotFoundError: there is nothing at `path`.
      ValueError: a `test` that does not mark rows of one pair, no arrays of these names,
        arrays of objects, a number that is not finite, labels
        that are no classes 0, 1, ... with training examples each.
    """
    place = _existing(path)
    try:
        with place.open("rb") as opened:
            file = np.load(opened, allow_pickle=False)
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise ValueError("it is one array, not a .npz of several")
            held = {name: name for name in file.files}
            for ours, theirs in dict(fields).items():
                if theirs not in held:
                    raise ValueError(f"there is no {theirs!r}, it holds {sorted(held)}")
                held[ours] = theirs
            names = {"train": _pair(held, "train") or _pair(held, "")}
            names |= {"validation": _pair(held, "validation", "val"), "test": _pair(held, "test")}
            if names["train"] is None:
                raise ValueError(
                    "it needs images and labels (or x and y; after train_, validation_, test_); "
                    f"it holds {sorted(held)}"
                )
            pairs = {s: (file[p[0]], file[p[1]]) for s, p in names.items() if p is not None}
            marked = file[held["test"]] if "test" in held else None
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{place.name} cannot be used: {error}") from error
    if marked is not None:
        images, labels = pairs["train"]
        if set(pairs) != {"train"} or marked.dtype != bool or marked.shape != labels.shape:
            raise ValueError(
                f"{place.name}: 'test' must be booleans {list(labels.shape)} beside one pair of "
                f"arrays, got {marked.dtype}{list(marked.shape)} beside {sorted(pairs)}"
            )
        if len(images) == len(marked):
            pairs = {"train": (images[~marked], labels[~marked])}
            pairs["test"] = images[marked], labels[marked]
    for split, (inputs, labels) in pairs.items():
        if inputs.ndim == 0 or labels.ndim != 1 or len(inputs) != len(labels):
            raise ValueError(
                f"{place.name}/{split}: images {list(inputs.shape)} and labels "
                f"{list(labels.shape)} do not go together"
            )
        if not len(labels):
            raise ValueError(f"{place.name}/{split} is empty")
        if inputs.ndim == 3:
            pairs[split] = inputs[..., None], labels
    dataset = Dataset.of(**pairs, name=place.name)
    _check_classes(dataset)
    return dataset


def _pair(held: Mapping[str, str], *splits: str) -> tuple[str, str] | None:
    for x, y in NAMES:
        for split in splits:
            marks = ((f"{split}_", ""), ("", f"_{split}")) if split else (("", ""),)
            for before, after in marks:
                if (a := before + x + after) in held and (b := before + y + after) in held:
                    return held[a], held[b]
    return None


def table(
    path: str, *, input: Sequence[str] = (), label: str = "label", split: str = "split"
) -> Dataset:
    """Numbers in a `.jsonl` or `.csv`, also gzipped, as vectors `[N, D]` under the field `input`.

    Args:
      path: the file.
      input: the columns of the vector, in order; default: all but label and split.
      label: the column of the class: an integer, or a word (numbered in sorted order).
      split: the column that says train, validation or test; where there is none, validation and
        test are carved out.

    Raises:
      FileNotFoundError: there is nothing at `path`.
      ValueError: no rows, a row that lacks a column, a value that is no finite number, an unknown
        split, a class without training rows.
    """
    place = _existing(path)
    read = _json_lines if ".jsonl" in place.suffixes else _csv
    try:
        rows = list(read(place))
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{place.name} cannot be read: {error}") from error
    if not rows:
        raise ValueError(f"{place.name} has no rows")
    columns = list(input) or [c for c in rows[0] if c not in (label, split)]
    vectors = np.empty((len(rows), len(columns)), np.float32)
    parts, given = [], []
    for i, row in enumerate(rows):
        where = f"{place.name}, row {i + 1}"
        for name in (*columns, label):
            if row.get(name) is None:
                raise ValueError(f"{where}: no {name!r}; it has {sorted(row)}")
        for j, name in enumerate(columns):
            try:
                vectors[i, j] = float(row[name])
            except (TypeError, ValueError):
                raise ValueError(f"{where}: {name}={row[name]!r} is not a number") from None
            if not np.isfinite(vectors[i, j]):
                raise ValueError(f"{where}: {name}={row[name]!r} is not a finite number")
        part = row.get(split, "train")
        if part not in SPLITS:
            raise ValueError(f"{where}: {split}={part!r} is none of {sorted(SPLITS)}")
        parts.append(SPLITS[part])
        given.append(str(row[label]))
    words = sorted(set(given), key=lambda w: (not w.isdigit(), int(w) if w.isdigit() else 0, w))
    number_of = {word: i for i, word in enumerate(words)}
    labels = np.array([number_of[word] for word in given], np.int32)
    held = {s: np.array([part == s for part in parts]) for s in dict.fromkeys(parts)}
    if "train" not in held:
        raise ValueError(f"{place.name} has no rows of the train split")
    pairs = {s: (vectors[rows], labels[rows]) for s, rows in held.items()}
    dataset = Dataset.of(**pairs, name=place.name, input="input", class_names=words)
    _check_classes(dataset)
    return dataset


def _csv(place: pathlib.Path) -> Iterator[dict]:
    with _opened(place) as file:
        reader = csv.DictReader(file, strict=True)
        for row in reader:
            if None in row:
                raise ValueError(
                    f"{place.name}, line {reader.line_num}: more values than the header has columns"
                )
            yield row


def _json_lines(place: pathlib.Path) -> Iterator[dict]:
    with _opened(place) as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{place.name}, line {number}: no JSON ({error})") from error
            if not isinstance(row, dict):
                raise ValueError(f"{place.name}, line {number}: no JSON object, but {line[:40]!r}")
            yield row


def _opened(place: pathlib.Path):
    opened = gzip.open if place.suffix == ".gz" else open
    return opened(place, "rt", encoding="utf-8", newline="")


def _existing(path: str) -> pathlib.Path:
    place = pathlib.Path(path)
    if not place.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    return place


def _check_classes(dataset: Dataset) -> None:
    counts = np.bincount(dataset.splits["train"].labels(), minlength=dataset.num_classes)
    if (counts == 0).any() or len(counts) < 2:
        empty = dataset.class_names[int(np.argmin(counts))]
        problem = "has one class" if len(counts) < 2 else f"has none of class {empty!r}"
        raise ValueError(f"{dataset.name}/train {problem}: every class needs training examples")
