"""An image folder, or a zip of one: checked as a whole, decoded once, then read from a map."""

from __future__ import annotations

import concurrent.futures
import hashlib
import io
import json
import os
import pathlib
import stat
import struct
import threading
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from kdjax.data.prepared import alone, data_dir
from kdjax.data.source import Dataset, Rows, Split, carve

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp")
SPLITS = {"train": "train", "val": "validation", "validation": "validation", "test": "test"}
GREY = ("1", "L", "LA")
COLOUR = ("P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV")
BLOCK = 1024  # images decoded between two writes
BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


class _Files(NamedTuple):
    """The files under a root, by their path from it; a folder's path ends with a slash."""

    stamps: Mapping[str, object]  # what changes when the file does
    read: Callable[[str], bytes]


def image_folder(path: str) -> Dataset:
    """An image folder, or a zip of one: `train/CLASS/x.png`, `test/CLASS/x.png`, or `CLASS/x.png`.

    Classes are numbered by `classes.json` at the root (a list of folder names, or a mapping from
    them to words) or else by name. What is missing of validation and test is carved out of train,
    a tenth each, stratified, always the same way. The first time, every image is decoded into a
    file under `KDJAX_DATA_DIR`; from then on records are read from there. A set is grey, `[H, W,
    1]`, where all its images are. Hidden files are not looked at.

    Raises:
      FileNotFoundError: there is nothing at `path`.
      ValueError: no zip, a path that leaves the archive, a name that occurs twice, an empty class,
        a class that train lacks, a broken image, images of several sizes.
    """
    place = pathlib.Path(path)
    if not place.exists():
        raise FileNotFoundError(f"there is no image folder or zip at {path}")
    files = archive_or_folder(place)
    members = _members(place, files)
    classes, words = _classes(place, files, members)
    pixels = _pixels(place, sorted(name for name, *_ in members), files)
    parts: dict[str, tuple[list[int], list[int]]] = {}
    for row, (_, split, found) in enumerate(sorted(members)):
        rows, labels = parts.setdefault(split, ([], []))
        rows.append(row)
        labels.append(classes.index(found))
    labels = np.zeros(len(members), np.int32)
    for rows, found in parts.values():
        labels[rows] = found
    whole = Split(Rows({"image": pixels, "label": labels}), place.name, labels)
    splits = {}
    for split, (rows, found) in parts.items():
        # Class by class, in the order of the labels.
        order = np.argsort(found, kind="stable")
        splits[split] = whole.take(np.array(rows)[order], f"{place.name}/{split}")
    return Dataset(place.name, carve(splits, place.name), words)


def archive_or_folder(place: pathlib.Path) -> _Files:
    """The files of a folder, or of a zip; refuses paths that lead out of it."""
    return _folder(place) if place.is_dir() else _archive(place)


def decode(data: bytes, name: str, where: str) -> Image.Image:
    """A decoded image; refuses what is broken, and what has more than eight bits a channel."""
    try:
        image = Image.open(io.BytesIO(data))
        image.load()
    except BROKEN as error:
        raise ValueError(f"{where}: {name} is a broken image ({error})") from error
    if image.mode not in GREY + COLOUR:
        raise ValueError(f"{where}: {name} has pixels of the kind {image.mode!r}, not of 8 bits")
    return image


def _members(place: pathlib.Path, files: _Files) -> list[tuple[str, str, str]]:
    """(name, split, class) of every image."""
    names = [n for n in files.stamps if not _hidden(n)]
    inner = [n for n in names if "/" in n.rstrip("/")]
    images = [n for n in inner if n.lower().endswith(SUFFIXES)]
    others = [n for n in inner if not n.lower().endswith((*SUFFIXES, "/"))]
    if not images:
        raise ValueError(f"{place.name} holds no images in class folders ({', '.join(SUFFIXES)})")
    if others:
        raise ValueError(f"{place.name}: {min(others)} is no image of {', '.join(SUFFIXES)}")
    tops = {n.split("/")[0] for n in names if "/" in n}
    splits = {top for top in tops if top in SPLITS}
    if splits and splits != tops:
        raise ValueError(f"{place.name}: {min(tops - splits)!r} lies beside {sorted(splits)}")
    if {"val", "validation"} <= splits:
        raise ValueError(f"{place.name} has both val and validation")
    depth = 2 if splits else 1
    members = []
    for name in images:
        parts = name.split("/")
        if len(parts) != depth + 1:
            raise ValueError(f"{place.name}: {name} does not lie in a class folder")
        members.append((name, SPLITS[parts[0]] if splits else "train", parts[depth - 1]))
    full = {name.rsplit("/", up)[0] + "/" for name in images for up in range(1, depth + 1)}
    for folder in (n for n in names if n.endswith("/")):
        if folder.count("/") <= depth and folder not in full:
            kind = "class folder" if folder.count("/") == depth else "split"
            raise ValueError(f"{place.name}: the {kind} {folder} is empty")
    known = {found for _, split, found in members if split == "train"}
    if not known:
        raise ValueError(f"{place.name} has no train split, only {sorted(splits)}")
    for _, split, found in members:
        if found not in known:
            raise ValueError(f"{place.name}: class {found!r} is in {split} and not in train")
    return members


def _hidden(name: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


def _classes(place, files: _Files, members) -> tuple[list[str], tuple[str, ...]]:
    """The class folders in label order, and what the classes are called."""
    found = sorted({name for _, _, name in members})
    classes, words = found, tuple(found)
    if "classes.json" in files.stamps:
        try:
            listed = json.loads(files.read("classes.json"))
        except ValueError as error:
            raise ValueError(f"{place.name}: classes.json is no JSON ({error})") from error
        if not isinstance(listed, list | dict):
            raise ValueError(f"{place.name}: classes.json must be a list or a mapping")
        classes = [str(c) for c in listed]
        words = tuple(str(w) for w in (listed.values() if isinstance(listed, dict) else listed))
        if len(set(classes)) != len(classes):
            raise ValueError(f"{place.name}: classes.json names a class twice")
        for name in classes:
            if name not in found:
                raise ValueError(f"{place.name}: class {name!r} of classes.json has no images")
        for name in found:
            if name not in classes:
                raise ValueError(f"{place.name}: class {name!r} is not in classes.json")
    if len(classes) < 2:
        raise ValueError(f"{place.name} has one class, {classes[0]!r}: at least two are needed")
    return classes, words


def _folder(place: pathlib.Path) -> _Files:
    root = place.resolve()
    stamps: dict[str, object] = {}
    for entry in sorted(place.rglob("*")):
        name = entry.relative_to(place).as_posix()
        if not entry.resolve().is_relative_to(root):
            raise ValueError(f"{place.name}: {name} leads out of the folder")
        if not entry.exists():
            raise ValueError(f"{place.name}: {name} is a link to nothing")
        if entry.is_dir():
            stamps[name + "/"] = None
        else:
            status = entry.stat()
            stamps[name] = (str(root), status.st_size, status.st_mtime_ns)
    return _Files(stamps, lambda name: (place / name).read_bytes())


def _archive(place: pathlib.Path) -> _Files:
    if not zipfile.is_zipfile(place):
        raise ValueError(f"{place.name} is neither a folder nor a zip")
    stamps: dict[str, object] = {}
    folders: set[str] = set()
    try:
        with zipfile.ZipFile(place) as archive:
            listed = archive.infolist()
    except zipfile.BadZipFile as error:
        raise ValueError(f"{place.name} is a broken zip ({error})") from error
    for info in listed:
        name, parts = info.filename, info.filename.rstrip("/").split("/")
        if name.startswith("/") or ".." in parts or ":" in parts[0] or "\\" in name:
            raise ValueError(f"{place.name}: {name!r} leads out of the archive")
        if "" in parts or "." in parts:
            raise ValueError(f"{place.name}: {name!r} is no plain path")
        if stat.S_ISLNK(info.external_attr >> 16):
            raise ValueError(f"{place.name}: {name!r} is a link")
        if name in stamps:
            raise ValueError(f"{place.name}: {name!r} occurs twice")
        stamps[name] = (info.CRC, info.file_size)
        folders |= {"/".join(parts[:i]) + "/" for i in range(1, len(parts))}
    local = threading.local()  # a ZipFile has one position in its file; every thread opens its own

    def read(name: str) -> bytes:
        if not hasattr(local, "archive"):
            local.archive = zipfile.ZipFile(place)
        try:
            return local.archive.read(name)
        except (zipfile.BadZipFile, RuntimeError, OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{place.name}: {name} cannot be read ({error})") from error

    return _Files(stamps | dict.fromkeys(folders - stamps.keys()), read)


def _pixels(place: pathlib.Path, images: Sequence[str], files: _Files) -> np.ndarray:
    """All images, uint8 `[N, H, W, C]`, decoded once and from then on mapped from a file."""
    stamps = json.dumps([[name, files.stamps[name]] for name in images])
    kept = data_dir() / "images" / f"{hashlib.sha256(stamps.encode()).hexdigest()[:32]}.npy"
    if not kept.exists():
        with alone(kept):
            if not kept.exists():
                part = kept.with_suffix(".part")
                try:
                    _decode_all(part, place, images, files)
                    os.replace(part, kept)
                finally:
                    part.unlink(missing_ok=True)
    return np.load(kept, mmap_mode="r")


def _decode_all(part: pathlib.Path, place, images: Sequence[str], files: _Files) -> None:
    size = decode(files.read(images[0]), images[0], place.name).size

    def inspect(name: str) -> bool:
        data = files.read(name)
        try:
            with Image.open(io.BytesIO(data)) as image:
                found, grey = image.size, image.mode in GREY
        except BROKEN as error:
            raise ValueError(f"{place.name}: {name} is a broken image ({error})") from error
        if found != size:
            raise ValueError(
                f"{place.name}: {name} is {found[0]}x{found[1]}, but {images[0]} is "
                f"{size[0]}x{size[1]}: all images need one size"
            )
        return grey

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool, part.open("wb") as out:
        grey = all(list(pool.map(inspect, images)))

        def pixels(name: str) -> np.ndarray:
            image = decode(files.read(name), name, place.name)
            # Alpha is dropped. So is a transparent palette, of which Pillow would warn.
            image.info.pop("transparency", None)
            return np.asarray(image.convert("L" if grey else "RGB"))

        shape = (len(images), size[1], size[0], 1 if grey else 3)
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(out, header)
        for at in range(0, len(images), BLOCK):
            out.write(np.stack(list(pool.map(pixels, images[at : at + BLOCK]))).tobytes())
