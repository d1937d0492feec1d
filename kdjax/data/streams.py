"""Batches in a fixed order: position p of the endless stream is row `order(epoch)[p % n]`.

The order is a function of the seed alone, whatever the number of processes. The records of a
resident stream lie on the device; those of a host stream are read by Grain's threads; both give
the same batches for the same seed. A stateful stream is a Grain iterator. A numbered stream has no
records at all: its examples are what random keys make of their numbers.
"""

from __future__ import annotations

import copy
import functools
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np

from kdjax.data.augmentation import (
    Augmentation,
    augmentations,
    mixing,
    normalize,
    partners,
    viewer,
)
from kdjax.data.source import Split, check_finite

Item = dict[str, np.ndarray]


@functools.lru_cache(maxsize=64)
def processing(
    augment: tuple[Augmentation, ...], mean: tuple | None, std: tuple | None, resident: bool
) -> Callable:
    """`(table, item) -> batch`: one function for all streams that process alike."""
    view = jax.vmap(viewer(augment, 0.0 if mean is None else mean), in_axes=(None, 0, 0, 0))
    alpha = {a.name: dict(a.options).get("alpha", 1.0) for a in augment}.get("mixup")

    def prepare(image, seed, epoch, example):
        scale = 255 if image.dtype == jnp.uint8 else 1
        image = image.astype(jnp.float32) / scale
        if any(a.name != "mixup" for a in augment):
            image = view(seed, epoch, example, image)
        return normalize(image, mean, std)

    def assemble(table, item):
        fields = {n: x[item["row"]] for n, x in table.items()} if resident else item["record"]
        pixels = "image" if "image" in fields else None
        batch = {n: x for n, x in fields.items() if n != pixels}
        batch |= {"id": item["row"], "where": item["where"]}
        if pixels is None:
            if augment or mean is not None or std is not None:
                raise ValueError(
                    f"augment, mean and std are for images, but the fields are {sorted(fields)}"
                )
            return batch
        seed, epoch = item["seed"], item["epoch"]
        batch["image"] = prepare(fields[pixels], seed, epoch, item["row"])
        if alpha is None:
            return batch
        row = item["partner"]
        other = {n: x[row] for n, x in table.items()} if resident else item["partner_record"]
        mix = jax.vmap(lambda e, i: mixing(seed, e, i, alpha))(epoch, item["row"])
        weight = mix.reshape(-1, *[1] * (batch["image"].ndim - 1))
        partner = prepare(other[pixels], seed, epoch, row)
        batch["image"] = weight * batch["image"] + (1 - weight) * partner
        return batch | {"partner_label": other["label"], "mix": mix}

    return assemble


class Order:
    """Which rows the batch of a step holds.

    Args:
      rows: the rows of the split that take part.
      batch_size: of the global batch.
      seed: of the permutations.
      process, processes: which part of each batch is this process's.
      attempt: other permutations for each.
    """

    def __init__(
        self,
        rows: np.ndarray,
        batch_size: int,
        seed: int,
        process: int,
        processes: int,
        attempt: int = 0,
    ):
        if batch_size % processes:
            raise ValueError(
                f"batch_size={batch_size} is not a multiple of the {processes} processes"
            )
        if not 0 <= process < processes:
            raise ValueError(f"process={process} is none of the {processes} processes")
        self._rows, self._batch, self._seed = rows, batch_size, seed
        self._attempt = [attempt] if attempt else []
        self._part = batch_size // processes
        self._first = process * self._part
        self._epoch = functools.lru_cache(maxsize=4)(self._permute)

    def _permute(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self._seed, epoch, *self._attempt]).permutation(self._rows)

    def __call__(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows and epochs of this process's part of a step's batch."""
        n = len(self._rows)
        at = step * self._batch + self._first
        epoch, place = divmod(at, n)
        if place + self._part <= n:
            rows = self._epoch(epoch)[place : place + self._part]
            return rows, np.full(self._part, epoch, np.int32)
        epochs, places = np.divmod(np.arange(at, at + self._part), n)
        rows = np.empty(self._part, np.int32)
        for epoch in np.unique(epochs):
            now = epochs == epoch
            rows[now] = self._epoch(int(epoch))[places[now]]
        return rows, epochs.astype(np.int32)


class _Ordered:
    stateful = False

    def __init__(
        self, split, batch_size, seed, indices, augment, mean, std, process, processes, repeats
    ):
        rows = np.arange(len(split), dtype=np.int32)
        if indices is not None:
            rows = np.asarray(indices)
            fit = rows.ndim == 1 and rows.size and rows.dtype.kind in "iu"  # a mask is no rows
            if not fit or rows.min() < 0 or rows.max() >= len(split):
                raise ValueError(
                    f"indices must be rows of {split.where}, at least one of 0 to {len(split) - 1}"
                )
            rows = rows.astype(np.int32)
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if not 0 <= seed < 2**32:
            raise ValueError(f"seed must be in [0, 2^32), got {seed}")
        if batch_size > len(rows) and not repeats:
            raise ValueError(
                f"batch_size={batch_size} is larger than {split.where}, which has {len(rows)} "
                "examples"
            )
        process = jax.process_index() if process is None else process
        processes = jax.process_count() if processes is None else processes
        self._augment = augmentations(augment)
        self._split, self._seed, self._rows = split, int(seed), rows
        self._mix = any(a.name == "mixup" for a in self._augment)
        self._ordering = (rows, batch_size, self._seed, process, processes)
        self._order = Order(*self._ordering)
        self._all = np.ones(batch_size // processes, bool)
        self._processing = (self._augment, _tuple(mean), _tuple(std))
        self.batch_size = batch_size

    def reordered(self, attempt: int) -> _Ordered:
        """The same examples in another order; what augments an example in an epoch stays."""
        other = copy.copy(self)
        other._order = Order(*self._ordering, attempt)
        return other

    def _item(self, step: int) -> Item:
        rows, epochs = self._order(step)
        item = {"row": rows, "epoch": epochs, "seed": np.uint32(self._seed), "where": self._all}
        if self._mix:
            # Of the rows that take part: no other example may enter the batch.
            item["partner"] = self._rows[partners(self._seed, epochs, rows, len(self._rows))]
        return item


class Resident(_Ordered):
    """A stream whose records all lie on the device; see `resident`."""

    def __init__(self, split: Split, *arguments):
        super().__init__(split, *arguments)
        self.table = device_table(split)
        self.assemble = processing(*self._processing, True)

    def items(self, start: int = 0, state: dict | None = None) -> Iterator[Item]:
        step = start
        while True:
            yield self._item(step)
            step += 1


class Host(_Ordered):
    """A stream whose records are read while it runs; see `host`."""

    def __init__(self, split: Split, *arguments, threads: int, ahead: int):
        super().__init__(split, *arguments)
        self.table: dict = {}
        self.assemble = processing(*self._processing, False)
        self._threads, self._ahead = threads, ahead

    def items(self, start: int = 0, state: dict | None = None) -> Iterator[Item]:
        steps = grain.MapDataset.range(start, np.iinfo(np.int32).max)
        options = grain.ReadOptions(num_threads=self._threads, prefetch_buffer_size=self._ahead)
        return iter(steps.map(self._read).to_iter_dataset(options))

    def _read(self, step: int) -> Item:
        item = self._item(int(step))
        item["record"] = self._stack(item["row"])
        if self._mix:
            item["partner_record"] = self._stack(item["partner"])
        return item

    def _stack(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        stacked = {n: x for n, x in self._split.stack(rows).items() if x.dtype.kind in "biuf"}
        for name, x in stacked.items():
            check_finite(x, f"{self._split.where}, field {name}", rows)
        return stacked


class Sequential:
    """Every example once, in order, the last batch padded; see `sequential`."""

    def __init__(self, split: Split, batch_size: int, mean, std):
        self.batch_size, self._size = batch_size, len(split)
        self.batches = -(-self._size // batch_size)
        self.table = device_table(split)
        self.assemble = processing((), _tuple(mean), _tuple(std), True)

    def items(self, whole: bool = False) -> Iterator[Item]:
        """This process's part of every batch, or all of it."""
        part = self.batch_size // (1 if whole else jax.process_count())
        first = 0 if whole else part * jax.process_index()
        for i in range(self.batches):
            at = i * self.batch_size + first + np.arange(part)
            yield {
                "row": np.minimum(at, self._size - 1).astype(np.int32),
                "epoch": np.zeros(part, np.int32),
                "seed": np.uint32(0),
                "where": at < self._size,
            }


class Iterated:
    """A stream with a state of its own: a Grain iterator; see `iterator`."""

    stateful = True

    def __init__(self, dataset: grain.IterDataset, batch_size: int, assemble: Callable):
        self.batch_size, self.assemble = batch_size, assemble
        self.table: dict = {}
        self._dataset = dataset

    def items(self, start: int = 0, state: dict | None = None) -> _Position:
        if start and state is None:
            raise ValueError(f"a stateful stream cannot begin at step {start} without its state")
        return _Position(iter(self._dataset), state, self.batch_size // jax.process_count())


class _Position:
    def __init__(self, iterator: Any, state: dict | None, examples: int):
        self._iterator, self._examples = iterator, examples
        if state is not None:
            iterator.set_state(json.loads(state["grain"]))

    def __iter__(self):
        return self

    def __next__(self) -> Item:
        item = next(self._iterator)
        for name, x in item.items():
            if np.ndim(x) and len(x) != self._examples:
                raise ValueError(
                    f"the iterator gave {len(x)} examples of {name!r}, its batch size on this "
                    f"process is {self._examples}"
                )
        return item

    def state(self) -> dict:
        """Where the iterator is, after the item last returned."""
        state = self._iterator.get_state()
        return {"grain": state.decode() if isinstance(state, bytes) else json.dumps(state)}


class Numbered:
    """A stream of nothing but the numbers of its examples; see `numbered`."""

    stateful = False

    def __init__(self, batch_size: int, seed: int, process: int, processes: int):
        if batch_size < 1 or batch_size % processes:
            raise ValueError(
                f"batch_size={batch_size} is not a positive multiple of the {processes} processes"
            )
        if not 0 <= process < processes:
            raise ValueError(f"process={process} is none of the {processes} processes")
        if not 0 <= seed < 2**32:
            raise ValueError(f"seed must be in [0, 2^32), got {seed}")
        self.batch_size, self.assemble = batch_size, _record
        self.table: dict = {}
        self._numbering = (process, processes)
        self._seed, self._part = int(seed), batch_size // processes
        self._first = process * self._part

    def reordered(self, attempt: int) -> Numbered:
        """Other examples, of another seed."""
        seed = int(np.random.SeedSequence([self._seed, attempt]).generate_state(1)[0])
        return Numbered(self.batch_size, seed, *self._numbering)

    def items(self, start: int = 0, state: dict | None = None) -> Iterator[Item]:
        seed = np.full(self._part, self._seed, np.uint32)
        row = np.arange(self._first, self._first + self._part, dtype=np.uint32)
        for step in itertools.count(start):
            yield {"seed": seed, "step": np.full(self._part, step, np.uint32), "row": row}


def resident(
    split: Split,
    batch_size: int,
    *,
    seed: int,
    indices: Sequence[int] | None = None,
    augment: Sequence[Any] = (),
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    process: int | None = None,
    processes: int | None = None,
    repeats: bool = False,
) -> Resident:
    """Batches of a split that lies on the device whole: the fastest for a small data set.

    Args:
      split: the records.
      batch_size: of the global batch; at most the number of examples.
      seed: of order and augmentation.
      indices: rows that take part; default: all.
      augment: names and options, see `augmentations`.
      mean, std: what images are normalised with, a number a channel, after the augmentation.
      process, processes: default: those of the run.
      repeats: a batch may be larger than the number of examples; it then goes through several
        epochs, and shows an example in another view in each.
    """
    return Resident(
        split, batch_size, seed, indices, augment, mean, std, process, processes, repeats
    )


def host(
    split: Split,
    batch_size: int,
    *,
    seed: int,
    indices: Sequence[int] | None = None,
    augment: Sequence[Any] = (),
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    process: int | None = None,
    processes: int | None = None,
    repeats: bool = False,
    threads: int = 4,
    ahead: int = 8,
) -> Host:
    """The same batches as `resident`, their records read by `threads`, `ahead` batches early."""
    arguments = (split, batch_size, seed, indices, augment, mean, std, process, processes, repeats)
    return Host(*arguments, threads=threads, ahead=ahead)


def sequential(
    split: Split,
    batch_size: int,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Sequential:
    """Every example once, for evaluation; `where` is False where the last batch is padded."""
    if batch_size < 1 or batch_size % jax.process_count():
        raise ValueError(
            f"batch_size={batch_size} is not a multiple of the {jax.process_count()} processes"
        )
    return Sequential(split, batch_size, mean, std)


def _record(table, item):
    examples = next(len(x) for x in item.values() if jnp.ndim(x))
    return {"where": jnp.ones(examples, bool)} | item


def iterator(
    dataset: grain.IterDataset, batch_size: int, *, assemble: Callable = _record
) -> Iterated:
    """A Grain dataset that has state (packing, remote sources), checkpointed with the run.

    Each process keeps the state of its part, so a run goes on with as many processes.

    Args:
      dataset: yields this process's items: dicts of arrays that lead with the batch axis; endless.
      batch_size: of the global batch.
      assemble: `(table, item) -> batch`, part of the compiled step; the table is empty. Default:
        the item as it is, every example counted.
    """
    if batch_size < 1 or batch_size % jax.process_count():
        raise ValueError(
            f"batch_size={batch_size} is not a multiple of the {jax.process_count()} processes"
        )
    return Iterated(dataset, batch_size, assemble)


def numbered(
    batch_size: int, *, seed: int, process: int | None = None, processes: int | None = None
) -> Numbered:
    """Batches without data: each example is told by `seed`, `step` and `row`, all uint32 `[B]`.

    What a method without data makes of them (noise, latent codes, times) it draws from
    `example_keys`, so that an example is the same however a batch is cut.

    Args:
      batch_size: of the global batch.
      seed: of all examples.
      process, processes: default: those of the run.
    """
    process = jax.process_index() if process is None else process
    processes = jax.process_count() if processes is None else processes
    return Numbered(batch_size, seed, process, processes)


def example_keys(batch: dict[str, jax.Array]) -> jax.Array:
    """The random keys `[B]` of the examples of a `numbered` stream, or of a split of such fields.

    >>> batch = next(numbered(2, seed=0).items(7))
    >>> jax.random.uniform(example_keys(batch)[1]) == jax.random.uniform(example_keys(batch)[0])
    Array(False, dtype=bool)
    """

    def key(seed, step, row):
        return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), step), row)

    return jax.vmap(key)(batch["seed"], batch["step"], batch["row"])


def device_table(split: Split) -> dict[str, jax.Array]:
    """A split's fields on the device, put there once."""
    if "table" not in split.on_device:
        arrays = {n: x for n, x in split.arrays().items() if x.dtype.kind in "biuf"}
        for name, x in arrays.items():
            check_finite(x, f"{split.where}, field {name}")
        with jax.ensure_compile_time_eval():  # arrays, also where a recipe is only traced
            split.on_device["table"] = {name: jnp.asarray(x) for name, x in arrays.items()}
    return split.on_device["table"]


def _tuple(values: Sequence[float] | None) -> tuple[float, ...] | None:
    return None if values is None else tuple(float(v) for v in values)
