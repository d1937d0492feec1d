"""The files of a teacher cache: sealed JSON, shards of records, and keys of examples.

    contents.json                  what is cached, written first
    shard-PPPPP-NNNNNN.arrayrecord the entries of process P, and beside each its
    shard-PPPPP-NNNNNN.json        digest and keys, written after it
    finished-PPPPP-of-TTTTT.json   written by each of the T processes at its end
    manifest.json                  all of the above under one digest, written last

Every file is renamed to its name when it is whole, and a cache without a manifest is never read.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pathlib
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from array_record.python import array_record_module

KEY, CHECK = 16, 8  # bytes
MANIFEST, CONTENTS = "manifest.json", "contents.json"
GROUP = 1 << 16  # bytes that are compressed, and so read, together
RANDOM_ACCESS = "readahead_buffer_size:0,max_parallelism:0"


class TeacherCacheError(RuntimeError):
    """A teacher cache could not be written, or a file of it cannot be trusted."""


def fingerprint(tree: Any) -> str:
    """The digest of a pytree of arrays: of their paths, types, shapes and bytes.

    >>> fingerprint({"w": np.zeros(3)}) == fingerprint({"w": np.zeros(3)})
    True
    >>> fingerprint({"w": np.zeros(3)}) == fingerprint({"w": np.zeros((3, 1))})
    False
    """
    digest = hashlib.blake2b(digest_size=KEY)
    for path, x in jax.tree_util.tree_leaves_with_path(tree):
        if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x = jax.random.key_data(x)
        _add(digest, jax.tree_util.keystr(path), np.asarray(x))
    return digest.hexdigest()


def _add(digest: Any, name: str, x: np.ndarray) -> None:
    if x.dtype.hasobject:
        raise TypeError(f"{name} is no array of numbers, got {x.dtype}")
    header = json.dumps([name, x.dtype.name, list(x.shape)])
    digest.update(len(header).to_bytes(4, "little") + header.encode())
    digest.update(np.ascontiguousarray(x).reshape(-1).view(np.uint8))


def example_keys(
    examples: Mapping[str, Any], fields: Sequence[str]
) -> tuple[list[bytes], list[int | None]]:
    """The key and the length of every example of a batch.

    A key is the blake2b hash of the fields' names, types, shapes and bytes. Where `segments` is
    one of the fields, an example ends with its last position of a document (segment > 0), and the
    fields are cut there: how far a batch is padded changes no key.
    """
    missing = [name for name in fields if name not in examples]
    if missing:
        raise ValueError(
            f"the key of an entry is made of {list(fields)}: {missing[0]!r} is not among the "
            f"fields {sorted(examples)}"
        )
    arrays = {name: np.asarray(examples[name]) for name in fields}
    sizes = {name: len(x) if x.ndim else 0 for name, x in arrays.items()}
    if len(set(sizes.values())) != 1:
        raise ValueError(f"the fields of a batch differ in length: {sizes}")
    keys, lengths = [], []
    for i in range(next(iter(sizes.values()))):
        length = None
        if "segments" in arrays:
            used = np.flatnonzero(arrays["segments"][i])
            length = int(used[-1]) + 1 if len(used) else 0
        digest = hashlib.blake2b(digest_size=KEY)
        for name, x in arrays.items():
            one = x[i] if length is None or x.ndim < 2 else x[i][:length]
            _add(digest, name, one)
        keys.append(digest.digest())
        lengths.append(length)
    return keys, lengths


def part_of(path: pathlib.Path, process: int) -> pathlib.Path:
    """Where a process writes what will be `path`; what a kill leaves is found by the name."""
    return path.with_name(f".{path.name}.{process:05d}.part")


def write_sealed(path: pathlib.Path, content: Any, process: int) -> None:
    """Writes JSON under its own digest, whole or not at all."""
    part = part_of(path, process)
    try:
        with part.open("w") as file:
            file.write(_dump(content))
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise TeacherCacheError(f"could not write {path}: {error}") from error
    _settle(path.parent)


def _seal(content: Any) -> str:
    text = json.dumps(content, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=KEY).hexdigest()


def _dump(content: Any) -> str:
    return json.dumps({"digest": _seal(content), "content": content}, sort_keys=True) + "\n"


def read_sealed(path: pathlib.Path) -> tuple[Any, str]:
    """What `write_sealed` wrote, and its digest; refuses any other byte."""
    try:
        text = path.read_bytes().decode()
        content = json.loads(text)["content"]
        whole = _dump(content) == text
    except FileNotFoundError as error:
        raise TeacherCacheError(f"{path} is missing") from error
    except (ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        raise TeacherCacheError(f"{path} is damaged")
    return content, _seal(content)


def _settle(folder: pathlib.Path) -> None:
    """Renames in a folder reach the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def file_digest(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=KEY)).hexdigest()


def salt(contents: Mapping[str, Any]) -> bytes:
    """What record checksums are keyed with: a record of another cache does not pass."""
    return bytes.fromhex(_seal(contents))


def _check(key: bytes, payload: bytes, secret: bytes) -> bytes:
    return hashlib.blake2b(key + payload, digest_size=CHECK, key=secret).digest()


def index_of(shard: pathlib.Path) -> pathlib.Path:
    return shard.with_suffix(".json")


def write_shard(
    shard: pathlib.Path,
    entries: Sequence[tuple[bytes, bytes]],
    secret: bytes,
    facts: Mapping[str, Any],
    process: int,
) -> None:
    """Writes (key, payload) entries as a shard and then its index, each whole or not at all."""
    part = part_of(shard, process)
    group = min(max(GROUP // max(len(entries[0][1]), 1), 1), 64)
    try:
        writer = array_record_module.ArrayRecordWriter(str(part), f"group_size:{group},zstd:3")
        for key, payload in entries:
            writer.write(key + _check(key, payload, secret) + payload)
        writer.close()
        # The writer may be silent about a full disk: what lies there decides.
        reader = array_record_module.ArrayRecordReader(str(part), RANDOM_ACCESS)
        count = reader.num_records()
        reader.close()
        if count != len(entries):
            raise OSError(f"{count} of {len(entries)} records arrived")
        with part.open("rb") as file:
            os.fsync(file.fileno())
        digest, size = file_digest(part), part.stat().st_size
        os.replace(part, shard)
    except (OSError, RuntimeError, ValueError) as error:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        reason = str(error).strip().splitlines()[0][:300]
        raise TeacherCacheError(
            f"could not write {shard}: {reason}; the shards before it are whole, and the same "
            "call goes on from them"
        ) from error
    keys = b"".join(key for key, _ in entries).hex()
    index = {"digest": digest, "bytes": size, "keys": keys, **facts}
    write_sealed(index_of(shard), index, process)


def shard_index(shard: pathlib.Path) -> tuple[dict[str, Any], str]:
    """The index of a shard and the index's digest; the shard must be there in its full size."""
    content, digest = read_sealed(index_of(shard))
    if not shard.exists():
        raise TeacherCacheError(f"{shard} is missing")
    found = shard.stat().st_size
    if found != content["bytes"]:
        raise TeacherCacheError(f"{shard} is damaged: {found} bytes instead of {content['bytes']}")
    return content, digest


def index_keys(content: Mapping[str, Any]) -> list[bytes]:
    keys = bytes.fromhex(content["keys"])
    return [keys[at : at + KEY] for at in range(0, len(keys), KEY)]


class Shard:
    """Random access to the records of a shard; opened when first read, by any thread."""

    def __init__(self, path: pathlib.Path, secret: bytes):
        self.path, self._secret = path, secret
        self._lock, self._reader = threading.Lock(), None

    def read(self, places: Sequence[int], keys: Sequence[bytes]) -> list[bytes]:
        """The payloads at some places, which must be those of the keys."""
        try:
            with self._lock:
                if self._reader is None:
                    module = array_record_module
                    self._reader = module.ArrayRecordReader(str(self.path), RANDOM_ACCESS)
            records = self._reader.read([int(place) for place in places])
        except (OSError, RuntimeError, ValueError, IndexError) as error:
            reason = str(error).strip().splitlines()[0][:200]
            raise TeacherCacheError(f"{self.path} is damaged: {reason}") from error
        out = []
        for place, key, record in zip(places, keys, records, strict=True):
            payload = record[KEY + CHECK :]
            if record[: KEY + CHECK] != key + _check(key, payload, self._secret):
                raise TeacherCacheError(f"{self.path} is damaged: record {place} is another")
            out.append(payload)
        return out
