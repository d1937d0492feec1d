"""Writing a teacher cache: by any callable, by several processes, through kills."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from kdjax.data.source import Split
from kdjax.data.teacher_cache_format import (
    CONTENTS,
    MANIFEST,
    TeacherCacheError,
    example_keys,
    file_digest,
    index_keys,
    index_of,
    read_sealed,
    salt,
    shard_index,
    write_sealed,
    write_shard,
)
from kdjax.data.teacher_cache_kinds import (
    Contents,
    check_contents,
    encode,
    positions_of,
    prepare,
)
from kdjax.data.teacher_cache_stream import check_stream, examples_of


class Writer:
    """Writes entries as shards of about `shard_bytes`; what is there already is kept.

    What a killed process had finished stays, and what it had not is written again: given the
    same batches, the files are in the end those of a process that was never killed.

    Args:
      path: the cache's folder; made if it is not there.
      contents: what is cached.
      process, processes: which of how many write; default: those of the run. Each writes shards
        of its own, of examples of its own.
      shard_bytes: of a shard, uncompressed; as much is lost when a process is killed.

    Raises:
      ValueError: the folder holds a cache of other contents.
      TeacherCacheError: what is there is damaged, or the disk is full.
    """

    def __init__(
        self,
        path: str | pathlib.Path,
        contents: Contents,
        *,
        process: int | None = None,
        processes: int | None = None,
        shard_bytes: int = 1 << 26,
    ):
        process = jax.process_index() if process is None else process
        self._processes = jax.process_count() if processes is None else processes
        if not 0 <= process < self._processes:
            raise ValueError(f"process={process} is none of the {self._processes} processes")
        if shard_bytes < 1:
            raise ValueError(f"shard_bytes must be at least 1, got {shard_bytes}")
        self._path, self._contents, self._process = pathlib.Path(path), contents, process
        self._limit, self._secret = shard_bytes, salt(contents.to_json())
        self._path.mkdir(parents=True, exist_ok=True)
        described = self._path / CONTENTS
        if described.exists():
            check_contents(self._path, read_sealed(described)[0], contents)
        else:
            write_sealed(described, contents.to_json(), process)
        self._known: set[bytes] = set()
        self._clear()
        for shard in _shards(self._path):
            index, _ = shard_index(shard)
            if file_digest(shard) != index["digest"]:
                raise TeacherCacheError(
                    f"{shard} is damaged: remove it and {index_of(shard).name} to write it again"
                )
            self._known.update(index_keys(index))
        self._begin()

    def _begin(self) -> None:
        self._entries: list[tuple[bytes, bytes]] = []
        self._facts: list[tuple[tuple[int, ...], int]] = []
        self._size = 0

    def _clear(self) -> None:
        """Removes what this process had begun and not finished."""
        for left in self._path.glob(f".*.{self._process:05d}.part"):
            left.unlink()
        for shard in self._path.glob(f"shard-{self._process:05d}-*.arrayrecord"):
            if not index_of(shard).exists():
                shard.unlink()

    def missing(self, examples: Mapping[str, Any]) -> np.ndarray:
        """Booleans [B]: the examples that count (`where`) and have no entry yet."""
        return self._missing(examples, example_keys(examples, self._contents.fields)[0])

    def _missing(self, examples: Mapping[str, Any], keys: Sequence[bytes]) -> np.ndarray:
        counts = np.asarray(examples.get("where", np.ones(len(keys), bool)))
        return counts & np.array([key not in self._known for key in keys], bool)

    def write(self, examples: Mapping[str, Any], outputs: Any) -> None:
        """Adds the entries of a batch that are not there yet.

        Args:
          examples: arrays `[B, ...]` with the fields of the contents; `where` `[B]`, False: not
            kept; `id` `[B]`, to name examples in errors.
          outputs: `[B, ..., size]`, logits (of `hidden`: hidden states), a row an example; for
            `top_k` and `sampled` also the finished lists, see `Contents`: a mapping of `ids` and
            `log_probs` (perhaps `tail`), or of `ids` and `weights`. An id < 0 is no entry.

        Raises:
          ValueError: outputs that are not finite, that do not fit the contents, ids that occur
            twice or are not in the vocabulary, a mass above 1; with the example's name.
          TeacherCacheError: the disk is full.
        """
        keys, lengths = example_keys(examples, self._contents.fields)
        ids = examples.get("id")
        names = [
            f"example {i} of the batch" + ("" if ids is None else f" (id {ids[i]})")
            for i in range(len(keys))
        ]
        fresh, rows = set(), []
        for row in np.flatnonzero(self._missing(examples, keys)):
            if keys[row] not in fresh:
                fresh.add(keys[row])
                rows.append(int(row))
        kept = prepare(self._contents, outputs, len(keys), lengths, names, rows, keys)
        for row, arrays in zip(rows, kept, strict=True):
            longest = int(arrays["lists"].max(initial=0)) if "lists" in arrays else 0
            self._facts.append((positions_of(self._contents, arrays), longest))
            payload = encode(self._contents, arrays)
            self._entries.append((keys[row], payload))
            self._known.add(keys[row])
            self._size += len(payload)
            if self._size >= self._limit:
                self._flush()

    def _flush(self) -> None:
        if not self._entries:
            return
        # From here on the cache is another than the manifest says.
        for stale in (MANIFEST, self._mark().name):
            (self._path / stale).unlink(missing_ok=True)
        own, number = f"shard-{self._process:05d}-", 0
        while (shard := self._path / f"{own}{number:06d}.arrayrecord").exists():
            number += 1
        places = [lead for lead, _ in self._facts]
        facts = {
            "payload": self._size,
            "positions": int(sum(np.prod(lead, dtype=int) for lead in places)),
            "longest": np.max(places, axis=0).astype(int).tolist(),
            "lists": max(longest for _, longest in self._facts),
        }
        write_shard(shard, self._entries, self._secret, facts, self._process)
        self._begin()

    def _mark(self, process: int | None = None) -> pathlib.Path:
        process = self._process if process is None else process
        return self._path / f"finished-{process:05d}-of-{self._processes:05d}.json"

    def finish(self) -> None:
        """Writes the last shard; the last of the processes to finish writes the manifest."""
        self._flush()
        write_sealed(self._mark(), {"process": self._process}, self._process)
        if all(self._mark(process).exists() for process in range(self._processes)):
            shards = {}
            for shard in _shards(self._path):
                index, digest = shard_index(shard)
                shards[shard.name] = {"index": digest, "digest": index["digest"]}
            if not shards:
                raise ValueError(f"{self._path}: nothing was written")
            content = {"contents": self._contents.to_json(), "shards": shards}
            write_sealed(self._path / MANIFEST, content, self._process)


def _shards(path: pathlib.Path) -> list[pathlib.Path]:
    """The shards that are finished, in order."""
    return sorted(index.with_suffix(".arrayrecord") for index in path.glob("shard-*.json"))


def write_cache(
    path: str | pathlib.Path,
    batches: Iterable[Mapping[str, Any]],
    teacher: Callable[[Mapping[str, Any]], Any],
    contents: Contents,
    *,
    process: int | None = None,
    processes: int | None = None,
    shard_bytes: int = 1 << 26,
) -> None:
    """Runs a teacher over batches and keeps what it says; goes on where it was killed.

    Args:
      path: the cache's folder.
      batches: of examples, see `Writer.write`; on several processes, this process's.
      teacher: a batch to its outputs, see `Writer.write`. Any callable: a JAX function, a module
        of another framework, an interface over the network. Called for the batches that hold an
        example without an entry, so a process must be able to call it alone.
      contents, process, processes, shard_bytes: see `Writer`.

    Raises: see `Writer`.

    >>> import tempfile
    >>> from kdjax.data.teacher_cache import TeacherCache
    >>> contents = Contents("dense", 2, "doubling", ("x",))
    >>> batch = {"x": np.arange(6.0).reshape(3, 2)}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_cache(folder, [batch], lambda batch: 2 * batch["x"], contents)
    ...     cache = TeacherCache(folder, contents)
    ...     print(cache.lookup({"x": batch["x"][[2, 0]]})["teacher_logits"])
    [[ 8. 10.]
     [ 0.  2.]]
    """
    writer = Writer(path, contents, process=process, processes=processes, shard_bytes=shard_bytes)
    for examples in batches:
        if writer.missing(examples).any():
            writer.write(examples, teacher(examples))
    _close(writer, path, process)


def write_stream(
    path: str | pathlib.Path,
    stream: Any,
    teacher: Callable[[Mapping[str, Any]], Any],
    contents: Contents,
    *,
    steps: int,
    split: Split | None = None,
    process: int | None = None,
    processes: int | None = None,
    shard_bytes: int = 1 << 26,
) -> None:
    """Keeps what a teacher says to the first `steps` batches of a stream, on the same views.

    The key of a view is made of the example as it is in the split, its `id` and the `epoch`; with
    mixup also of the partner, `partner_image` and `partner_id`.

    Args:
      path: the cache's folder.
      stream: `resident`, `host` or `iterator`.
      teacher: an assembled batch of the stream to its outputs, see `write_cache`.
      contents: with `fields` of the split (and `id`, `epoch` where the stream augments) and
        `processing_of(stream)` in its `preprocessing`.
      steps: batches; `ceil(epochs * examples / batch_size)`.
      split: that of a `resident` stream.
      process, processes, shard_bytes: see `Writer`.

    Raises: see `Writer`.
    """
    writer = Writer(path, contents, process=process, processes=processes, shard_bytes=shard_bytes)
    assemble = jax.jit(stream.assemble)
    check_stream(stream, contents)
    for _, item in zip(range(steps), stream.items(), strict=False):
        examples = examples_of(item, split, contents.fields)
        if writer.missing(examples).any():
            writer.write(examples, teacher(assemble(stream.table, item)))
    _close(writer, path, process)


def _close(writer: Writer, path: str | pathlib.Path, process: int | None) -> None:
    writer.finish()
    if process is None and jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"teacher cache {path}")
