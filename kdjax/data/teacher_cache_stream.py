"""A stream whose batches bring a teacher's outputs, found by what the items hold."""

from __future__ import annotations

import collections
import concurrent.futures
import copy
import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from kdjax.data.source import Split
from kdjax.data.streams import Host, Iterated, Resident
from kdjax.data.teacher_cache_kinds import Contents, differences


def processing_of(stream: Resident | Host | Iterated) -> dict[str, Any]:
    """What a stream does to images before a network sees them, for a cache's `preprocessing`.

    The seed counts only where the stream augments. A Grain iterator says nothing of itself: {}.
    """
    if isinstance(stream, Iterated):
        return {}
    augment, mean, std = stream._processing
    return {
        "augment": [[a.name, dict(a.options)] for a in augment],
        "augmentation_seed": stream._seed if augment else None,
        "mean": None if mean is None else list(mean),
        "std": None if std is None else list(std),
    }


def check_stream(stream: Any, contents: Contents) -> None:
    """Refuses a stream that processes otherwise, and a key that does not tell its views apart."""
    processed = json.loads(json.dumps(processing_of(stream)))
    told = contents.to_json()["preprocessing"]
    found = differences({name: told.get(name) for name in processed}, processed)
    if found:
        raise ValueError(
            "the stream does not process as the cache's preprocessing says, see processing_of: "
            + "; ".join(found)
        )
    augment, fields = processed.get("augment", ()), contents.fields
    needed = ["id", "epoch"] if augment else []
    if "mixup" in [name for name, _ in augment]:
        needed += ["partner_image", "partner_id"]
    lacking = [name for name in needed if name not in fields]
    if lacking:
        raise ValueError(
            f"the stream augments: fields must hold {', '.join(needed)} beside the example's own, "
            f"got {list(fields)}"
        )


def examples_of(item: Mapping[str, Any], split: Split | None, fields: Sequence[str]) -> dict:
    """The fields of a key, and `id` and `where`, of a stream's item."""
    if "row" not in item:
        return {name: x for name, x in item.items() if np.ndim(x)}
    examples = {"id": item["row"], "epoch": item["epoch"], "where": item["where"]}
    own = [name for name in fields if not name.startswith("partner_") and name not in examples]
    other = [name for name in fields if name.startswith("partner_") and name != "partner_id"]
    for kind, names in (("", own), ("partner_", other)):
        if not names:
            continue
        record = item.get(f"{kind}record")
        if record is None:
            if split is None:
                raise ValueError("a resident stream's items are rows: give its split")
            record = split.stack(item["partner" if kind else "row"])
        for name in names:
            if name.removeprefix(kind) in record:
                examples[name] = record[name.removeprefix(kind)]
    if "partner" in item:
        examples["partner_id"] = item["partner"]
    return examples


@functools.lru_cache(maxsize=64)
def _assembling(assemble: Callable) -> Callable:
    """One function for all streams that assemble alike, so that they share a compilation."""

    def taught(table, item):
        return {**assemble(table, {n: x for n, x in item.items() if n != "teacher"})} | item[
            "teacher"
        ]

    return taught


class Taught:
    """See `TeacherCache.stream`."""

    def __init__(
        self,
        stream: Resident | Host | Iterated,
        split: Split | None,
        fields: Sequence[str],
        lookup: Callable,
        threads: int,
    ):
        if threads < 1:
            raise ValueError(f"threads must be at least 1, got {threads}")
        if isinstance(stream, Resident) and split is None:
            raise ValueError("a resident stream's items are rows: give its split")
        self.stateful, self.batch_size, self.table = (
            stream.stateful,
            stream.batch_size,
            stream.table,
        )
        self.assemble = _assembling(stream.assemble)
        self._stream, self._split, self._fields = stream, split, fields
        self._lookup, self._threads = lookup, threads

    def reordered(self, attempt: int) -> Taught:
        if not hasattr(self._stream, "reordered"):
            raise ValueError(f"{type(self._stream).__name__} has one order only")
        other = copy.copy(self)
        other._stream = self._stream.reordered(attempt)
        return other

    def items(self, start: int = 0, state: dict | None = None) -> Any:
        items = self._stream.items(start, state)
        return _Position(items, self._teach) if self.stateful else self._ahead(items)

    def _teach(self, item: Mapping[str, Any]) -> dict[str, Any]:
        examples = examples_of(item, self._split, self._fields)
        where = "the stream" if self._split is None else self._split.where
        return {**item, "teacher": self._lookup(examples, where, examples.get("id"))}

    def _ahead(self, items: Iterator) -> Iterator[dict[str, Any]]:
        with concurrent.futures.ThreadPoolExecutor(self._threads) as pool:
            waiting: collections.deque = collections.deque()
            try:
                for item in items:
                    waiting.append(pool.submit(self._teach, item))
                    if len(waiting) >= 2 * self._threads:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)


class _Position:
    """A stateful stream is not read ahead: its state is that after the item last returned."""

    def __init__(self, items: Any, teach: Callable):
        self._items, self._teach = items, teach

    def __iter__(self):
        return self

    def __next__(self) -> dict[str, Any]:
        return self._teach(next(self._items))

    def state(self) -> dict:
        return self._items.state()
