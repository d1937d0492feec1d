"""A teacher's outputs on disk: written once, by any callable, and read at random.

    contents = Contents("top_k", vocabulary, fingerprint(variables), ("tokens", "segments"), k=64)
    write_cache(folder, batches, teacher, contents)          # again after a kill: it goes on
    cache = TeacherCache(folder, contents)                   # refused if anything differs
    stream = cache.stream(stream)                            # batches with `teacher_*` fields

An entry is found by the content of its example: not by its row, the file it came from, or the
order in which it was written.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kdjax.data.source import BLOCK, Record, Split
from kdjax.data.teacher_cache_format import (
    CONTENTS,
    MANIFEST,
    Shard,
    TeacherCacheError,
    example_keys,
    file_digest,
    fingerprint,
    index_keys,
    index_of,
    read_sealed,
    salt,
    shard_index,
)
from kdjax.data.teacher_cache_kinds import (
    Contents,
    check_contents,
    collect,
    decode,
    most_likely,
)
from kdjax.data.teacher_cache_stream import Taught, check_stream, processing_of
from kdjax.data.teacher_cache_writer import Writer, write_cache, write_stream

__all__ = [
    "Contents",
    "TeacherCache",
    "TeacherCacheError",
    "Writer",
    "fingerprint",
    "most_likely",
    "processing_of",
    "write_cache",
    "write_stream",
]


class TeacherCache:
    """A finished cache, open for reading by any number of threads and processes.

    Args:
      path: the cache's folder.
      contents: what it must hold.

    Raises:
      ValueError: it was made of something else; says what differs, old -> new.
      TeacherCacheError: there is none, it was not finished, or a file is damaged or missing. A
        shard's size is checked here, each record when it is read, every byte by `verify`.
    """

    def __init__(self, path: str | pathlib.Path, contents: Contents):
        self.path, self.contents = pathlib.Path(path), contents
        if not any((self.path / name).exists() for name in (CONTENTS, MANIFEST)):
            raise TeacherCacheError(f"there is no teacher cache at {self.path}")
        if not (self.path / MANIFEST).exists():
            raise TeacherCacheError(
                f"the teacher cache {self.path} is not finished: write it again with the same "
                "contents, and it goes on"
            )
        manifest, _ = read_sealed(self.path / MANIFEST)
        check_contents(self.path, manifest["contents"], contents)
        check_contents(self.path, read_sealed(self.path / CONTENTS)[0], contents)
        for mark in sorted(self.path.glob("finished-*.json")):
            read_sealed(mark)
        secret = salt(contents.to_json())
        self._shards, self._digests, keys, places = [], [], [], []
        facts = []
        for number, (name, sealed) in enumerate(sorted(manifest["shards"].items())):
            shard = self.path / name
            index, digest = shard_index(shard)
            if [digest, index["digest"]] != [sealed["index"], sealed["digest"]]:
                raise TeacherCacheError(f"{index_of(shard)} is not the one of {MANIFEST}")
            self._shards.append(Shard(shard, secret))
            self._digests.append(index["digest"])
            found = index_keys(index)
            keys += found
            places += [(number, i) for i in range(len(found))]
            facts.append(index)
        # Fixed-width bytes compare as memory does; of equal keys the first shard's counts.
        self._keys, first = np.unique(np.array(keys, "S16"), return_index=True)
        self._places = np.array(places, np.int64)[first]
        self._longest = tuple(np.max([f["longest"] for f in facts], axis=0).astype(int).tolist())
        self._lists = max(f["lists"] for f in facts)
        self.positions = sum(f["positions"] for f in facts)
        self.payload_bytes = sum(f["payload"] for f in facts)
        self.disk_bytes = sum(p.stat().st_size for p in self.path.iterdir())

    def __len__(self) -> int:
        return len(self._keys)

    def verify(self) -> None:
        """Reads every shard and refuses the first in which a bit has changed."""
        for shard, digest in zip(self._shards, self._digests, strict=True):
            if file_digest(shard.path) != digest:
                raise TeacherCacheError(f"{shard.path} is damaged")

    def lookup(
        self, examples: Mapping[str, Any], where: str = "the batch", rows: Any = None
    ) -> dict[str, np.ndarray]:
        """The teacher's outputs for a batch: the `teacher_*` fields of `Contents`.

        Args:
          examples: arrays `[B, ...]` with the fields of the contents.
          where: what the examples are called in errors.
          rows: the numbers of the examples in errors; default: their places.

        Returns:
          float32 and int32 arrays `[B, positions, ...]`, as many positions as `segments` has in
          this batch, or as the longest entry. Beyond an entry's end they are 0, ids -1 and
          log-probabilities -1e9.

        Raises:
          LookupError: an example has no entry.
          TeacherCacheError: a record is damaged.
        """
        keys, lengths = example_keys(examples, self.contents.fields)
        wanted = np.array(keys, "S16")
        at = np.searchsorted(self._keys, wanted)
        found = self._keys[np.minimum(at, len(self) - 1)] == wanted
        if not found.all():
            row = int(np.flatnonzero(~found)[0])
            number = row if rows is None else rows[row]
            epoch = f", epoch {examples['epoch'][row]}" if "epoch" in self.contents.fields else ""
            raise LookupError(
                f"the teacher cache {self.path} has no entry of example {number}{epoch} of {where}"
            )
        entries: list[Any] = [None] * len(keys)
        places = self._places[at]
        for number in np.unique(places[:, 0]):
            members = np.flatnonzero(places[:, 0] == number)
            shard = self._shards[number]
            payloads = shard.read(places[members, 1], [keys[i] for i in members])
            for i, payload in zip(members, payloads, strict=True):
                entries[i] = decode(self.contents, payload)
        lead = self._longest
        if any(length is not None for length in lengths):
            lead = (np.shape(examples["segments"])[1], *lead[1:])
        return collect(self.contents, entries, lead, self._lists)

    def fields(self, split: Split) -> dict[str, np.ndarray]:
        """The outputs for every row of a split, in memory: `Split.of({**arrays, **fields}, ...)`.

        Raises: see `lookup`. ValueError: the entries are of views, which change with the epoch.
        """
        blocks = np.split(np.arange(len(split)), range(BLOCK, len(split), BLOCK))
        parts = [self._rows(split, rows) for rows in blocks]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _rows(self, split: Split, rows: np.ndarray) -> dict[str, np.ndarray]:
        if "epoch" in self.contents.fields:
            raise ValueError(
                "the entries are of augmented views, which change with the epoch: give the "
                "stream to TeacherCache.stream"
            )
        return self.lookup(split.stack(rows), split.where, rows)

    def split(self, split: Split) -> Split:
        """The split with the outputs as further fields, read when a record is.

        Raises: see `fields`.
        """
        self._rows(split, np.arange(1))
        labels = split.labels() if "label" in split.fields else None
        return Split(_TaughtRecords(self, split), split.where, labels)

    def stream(self, stream: Any, split: Split | None = None, *, threads: int = 4) -> Taught:
        """A stream's batches with the outputs as further fields, for the same views.

        Args:
          stream: `resident`, `host` or `iterator`.
          split: that of a `resident` stream.
          threads: that read ahead, two batches each; a stateful stream is read as it goes.

        Raises:
          ValueError: the stream's processing is not that of the contents.
        """
        check_stream(stream, self.contents)
        return Taught(stream, split, self.contents.fields, self.lookup, threads)


class _TaughtRecords(Sequence):
    """A split's records with the teacher's outputs."""

    def __init__(self, cache: TeacherCache, split: Split):
        self._cache, self._split = cache, split

    def __len__(self) -> int:
        return len(self._split)

    def __getitem__(self, i):
        return self.__getitems__([i])[0]

    def __getitems__(self, rows: Sequence[int]) -> list[Record]:
        rows = np.asarray(rows)
        stacked = self._split.stack(rows)
        stacked |= self._cache.lookup(stacked, self._split.where, rows)
        return [{name: x[i] for name, x in stacked.items()} for i in range(len(rows))]
