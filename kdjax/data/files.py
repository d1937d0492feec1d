"""Data sets in local files: an image folder or a zip of one, arrays, tables."""

from __future__ import annotations

import concurrent.futures
import csv
import gzip
import io
import json
import pathlib
import stat
import threading
import zipfile
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from PIL import Image, UnidentifiedImageError

from kdjax.data.source import Dataset, Split, carve, check_finite, stratified

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp")
SPLITS = {"train": "train", "val": "validation", "validation": "validation", "test": "test"}


class _Images(Sequence):
    """Images read when they are asked for; their labels are known without reading."""

    def __init__(
        self,
        names: Sequence[str],
        labels: np.ndarray,
        read: Callable[[str], bytes],
        where: str,
        shape: tuple[int, int, int],
        first: str,
    ):
        self._names, self.labels, self._read = list(names), labels, read
        self._where, self._shape, self._first = where, shape, first

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:
        name = self._names[i]
        image = decode(self._read(name), name, self._where, color=self._shape[2] == 3)
        if image.shape != self._shape:
            raise ValueError(
                f"{self._where}: {name} is {image.shape[1]}x{image.shape[0]}, but "
                f"{self._first} is {self._shape[1]}x{self._shape[0]}: all images need one size"
            )
        return {"image": image, "label": np.int32(self.labels[i])}

    def __getitems__(self, rows: Sequence[int]) -> list[dict[str, np.ndarray]]:
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            return list(pool.map(self.__getitem__, rows))

    def rows(self, rows: np.ndarray) -> _Images:
        names = [self._names[i] for i in rows]
        return _Images(names, self.labels[rows], self._read, self._where, self._shape, self._first)


def decode(data: bytes, name: str, where: str, color: bool) -> np.ndarray:
    """The pixels of an encoded image, uint8 `[H, W, 3]`, or `[H, W, 1]` where `color` is False."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            pixels = np.asarray(image.convert("RGB" if color else "L"))
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{where}: {name} is a broken image ({error})") from error
    return pixels if color else pixels[..., None]


def image_folder(path: str) -> Dataset:
    """An image folder, or a zip of one: `train/CLASS/x.png`, `test/CLASS/x.png`, or `CLASS/x.png`.

    Classes are numbered by `classes.json` at the root (a list of folder names, or a mapping from
    them to words) or else by name. What is missing of validation and test is carved out of train,
    a tenth each, stratified, always the same way. Images are read when they are asked for. A set
    whose first image is grey is grey.

    Raises:
      FileNotFoundError: there is nothing at `path`.
      ValueError: no zip, a path that leaves the archive, a name that occurs twice, an empty class,
        a class that train lacks; when it is read, a broken image or one of another size.
    """
    place = pathlib.Path(path)
    if not place.exists():
        raise FileNotFoundError(f"there is no image folder or zip at {path}")
    names, read = _folder(place) if place.is_dir() else _archive(place)
    images = sorted(n for n in names if n.lower().endswith(SUFFIXES))
    if not images:
        raise ValueError(f"{place.name} holds no images (of {', '.join(SUFFIXES)})")
    tops = {n.split("/")[0] for n in images}
    split_of = {top: SPLITS[top] for top in tops if top in SPLITS}
    if split_of and set(split_of) != tops:
        stray = sorted(tops - set(split_of))[0]
        raise ValueError(f"{place.name}: {stray!r} lies beside {sorted(split_of)}")
    depth = 2 if split_of else 1
    members: dict[str, dict[str, list[str]]] = {}
    for name in images:
        parts = name.split("/")
        if len(parts) != depth + 1:
            raise ValueError(f"{place.name}: {name} does not lie in a class folder")
        split = split_of[parts[0]] if split_of else "train"
        members.setdefault(split, {}).setdefault(parts[depth - 1], []).append(name)
    if "train" not in members:
        raise ValueError(f"{place.name} has no train split, only {sorted(members)}")
    _check_empty(place, names, members, split_of, depth)
    classes, words = _classes(place, names, read, members)
    first = members["train"][classes[0]][0]
    with Image.open(io.BytesIO(_bytes(read, first, place))) as probe:
        color = probe.mode not in ("L", "1", "LA", "I;16")
    shape = decode(read(first), first, place.name, color).shape
    if not color:
        shape = (*shape[:2], 1)
    splits = {}
    for split, found in members.items():
        listed = [(n, classes.index(c)) for c in classes for n in found.get(c, ())]
        labels = np.array([label for _, label in listed], np.int32)
        splits[split] = _Images([n for n, _ in listed], labels, read, place.name, shape, first)
    return Dataset(
        place.stem,
        {s: Split(x, f"{place.name}/{s}") for s, x in _carved(splits, place.name).items()},
        words,
    )


def _bytes(read, name: str, place: pathlib.Path) -> bytes:
    data = read(name)
    decode(data, name, place.name, True)
    return data


def _carved(splits: dict[str, _Images], where: str) -> dict[str, _Images]:
    missing = [s for s in ("validation", "test") if s not in splits]
    train = splits["train"]
    part = len(train) // 10
    if missing and not part:
        raise ValueError(f"{where}/train has {len(train)} images: too few to carve {missing[0]}")
    if missing:
        *parts, rest = stratified(train.labels, (part,) * len(missing), 0)
        splits = {**splits, "train": train.rows(rest)}
        splits |= {s: train.rows(rows) for s, rows in zip(missing, parts)}
    return {s: splits[s] for s in ("train", "validation", "test")}


def _check_empty(place, names, members, split_of, depth) -> None:
    for name in names:
        parts = name.rstrip("/").split("/")
        if not name.endswith("/") or len(parts) != depth:
            continue
        if split_of and parts[0] not in split_of:
            continue
        split = split_of[parts[0]] if split_of else "train"
        if parts[-1] not in members.get(split, {}):
            raise ValueError(f"{place.name}: the class folder {name} is empty")
    for split, found in members.items():
        extra = sorted(set(found) - set(members["train"]))
        if extra:
            raise ValueError(f"{place.name}: class {extra[0]!r} is in {split} and not in train")


def _classes(place, names, read, members) -> tuple[list[str], tuple[str, ...]]:
    found = sorted(members["train"])
    if "classes.json" not in names:
        return _two(place, found), tuple(found)
    listed = json.loads(read("classes.json"))
    classes = list(listed)
    words = tuple(str(listed[c]) if isinstance(listed, dict) else str(c) for c in classes)
    empty = [c for c in classes if c not in found]
    if empty:
        raise ValueError(f"{place.name}: class {empty[0]!r} of classes.json has no images")
    unknown = [c for c in found if c not in classes]
    if unknown:
        raise ValueError(f"{place.name}: class {unknown[0]!r} is not in classes.json")
    return _two(place, classes), words


def _two(place: pathlib.Path, classes: list[str]) -> list[str]:
    if len(classes) < 2:
        raise ValueError(f"{place.name} has one class, {classes[0]!r}: at least two are needed")
    return classes


def _folder(place: pathlib.Path) -> tuple[list[str], Callable[[str], bytes]]:
    names = []
    for entry in sorted(place.rglob("*")):
        name = entry.relative_to(place).as_posix()
        if not entry.resolve().is_relative_to(place.resolve()):
            raise ValueError(f"{place.name}: {name} leads out of the folder")
        names.append(name + "/" if entry.is_dir() else name)
    return names, lambda name: (place / name).read_bytes()


def _archive(place: pathlib.Path) -> tuple[list[str], Callable[[str], bytes]]:
    if not zipfile.is_zipfile(place):
        raise ValueError(f"{place.name} is neither a folder nor a zip")
    local = threading.local()

    def opened() -> zipfile.ZipFile:
        if not hasattr(local, "archive"):
            local.archive = zipfile.ZipFile(place)
        return local.archive

    names: dict[str, None] = {}
    folders: set[str] = set()
    with zipfile.ZipFile(place) as archive:
        for info in archive.infolist():
            name, parts = info.filename, info.filename.split("/")
            if name.startswith("/") or ".." in parts or ":" in parts[0] or "\\" in name:
                raise ValueError(f"{place.name}: {name!r} leads out of the archive")
            if stat.S_ISLNK(info.external_attr >> 16):
                raise ValueError(f"{place.name}: {name!r} is a link")
            if name in names and not name.endswith("/"):
                raise ValueError(f"{place.name}: {name!r} occurs twice")
            names[name] = None
            folders |= {"/".join(parts[:i]) + "/" for i in range(1, len(parts))}

    def read(name: str) -> bytes:
        try:
            return opened().read(name)
        except (zipfile.BadZipFile, zipfile.LargeZipFile, OSError, EOFError) as error:
            raise ValueError(f"{place.name}: {name} cannot be read ({error})") from error

    return [*names, *sorted(folders - names.keys())], read


def npz(path: str, *, fields: Mapping[str, str] | Sequence[Sequence[str]] = ()) -> Dataset:
    """Arrays in a `.npz`: `images` or `x`, `labels` or `y`, alone or after `train_`, `test_`, ...

    Args:
      path: the file; nothing in it is unpickled.
      fields: pairs of (ours, theirs), e.g. `{"train_images": "x_tr"}`, where names differ.
    """
    place = pathlib.Path(path)
    if not place.exists():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        with np.load(place, allow_pickle=False) as file:
            held = {name: file[name] for name in file.files}
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"{place.name} cannot be read: {error}") from error
    held |= {ours: held[theirs] for ours, theirs in dict(fields).items() if theirs in held}

    def pair(*splits: str) -> tuple[np.ndarray, np.ndarray] | None:
        for x, y in (("images", "labels"), ("image", "label"), ("x", "y"), ("data", "target")):
            for split in splits:
                marks = ((f"{split}_", ""), ("", f"_{split}")) if split else (("", ""),)
                for before, after in marks:
                    a, b = before + x + after, before + y + after
                    if a in held and b in held:
                        return held[a], held[b]
        return None

    train, validation, test = pair("train", ""), pair("validation", "val"), pair("test")
    if train is None:
        raise ValueError(
            f"{place.name} needs images and labels (or x and y; train_, validation_, test_ before "
            f"them); it holds {sorted(held)}"
        )
    if len(train[0]) != len(train[1]):
        raise ValueError(f"{place.name}: {len(train[0])} images, {len(train[1])} labels")
    train, validation, test = (
        None if p is None else (p[0][..., None] if p[0].ndim == 3 else p[0], p[1])
        for p in (train, validation, test)
    )
    return Dataset.of(train, validation, test, name=place.stem)


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
    """
    place = pathlib.Path(path)
    if not place.exists():
        raise FileNotFoundError(f"there is no file {path}")
    opened = gzip.open if place.suffix == ".gz" else open
    rows: list[dict] = []
    with opened(place, "rt", encoding="utf-8", newline="") as file:
        if ".jsonl" in place.name:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    rows.append(json.loads(line))
                except json.JSONDecodeError as error:
                    raise ValueError(f"{place.name}, line {number}: no JSON ({error})") from error
        else:
            rows = list(csv.DictReader(file))
    if not rows:
        raise ValueError(f"{place.name} has no rows")
    columns = list(input) or [c for c in rows[0] if c not in (label, split)]
    vectors = np.empty((len(rows), len(columns)), np.float32)
    for i, row in enumerate(rows):
        for name in (*columns, label):
            if row.get(name) is None:
                raise ValueError(f"{place.name}, row {i + 1}: no {name!r}; it has {sorted(row)}")
        for j, name in enumerate(columns):
            try:
                vectors[i, j] = float(row[name])
            except (TypeError, ValueError):
                raise ValueError(
                    f"{place.name}, row {i + 1}: {name}={row[name]!r} is not a number"
                ) from None
    check_finite(vectors, place.name)
    given = [str(row[label]) for row in rows]
    words = sorted(set(given), key=lambda w: (not w.isdigit(), int(w) if w.isdigit() else 0, w))
    labels = np.array([words.index(w) for w in given], np.int32)
    parts = np.array([SPLITS.get(str(row.get(split, "train")), "") for row in rows])
    if (parts == "").any():
        bad = int(np.flatnonzero(parts == "")[0])
        raise ValueError(f"{place.name}, row {bad + 1}: {split}={rows[bad][split]!r} is no split")
    fields = {
        s: {"input": vectors[parts == s], "label": labels[parts == s]} for s in sorted(set(parts))
    }
    if "train" not in fields:
        raise ValueError(f"{place.name} has no rows of the train split")
    fields = carve(fields, place.stem)
    return Dataset(
        place.stem,
        {s: Split.of(f, f"{place.name}/{s}") for s, f in fields.items()},
        tuple(words),
    )
