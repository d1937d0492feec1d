"""A data set is three splits of records; a split is a sequence that can also be had as arrays."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Record = Mapping[str, np.ndarray]
BLOCK = 1024  # records read at once where only their labels are kept


class Split:
    """Records in a fixed order, read one at a time or all at once.

    Args:
      records: a sequence of dicts of arrays; anything with `len` and `[i]`.
      where: what to call the split in errors, e.g. "mnist5k/train".
      labels: `[N]`, where they are known without reading the records.

    >>> split = Split.of({"image": np.zeros((3, 8, 8, 1), np.uint8), "label": np.arange(3)}, "tiny")
    >>> len(split), split.fields
    (3, {'image': (8, 8, 1), 'label': ()})
    """

    def __init__(self, records: Sequence[Record], where: str, labels: np.ndarray | None = None):
        if len(records) == 0:
            raise ValueError(f"{where} is empty")
        self.records, self.where = records, where
        self._labels = labels
        self._arrays: dict[str, np.ndarray] | None = None
        self.on_device: dict[Any, Any] = {}  # tables of streams, shared between them

    @classmethod
    def of(cls, arrays: Mapping[str, np.ndarray], where: str) -> Split:
        """A split of arrays that lead with the example axis."""
        arrays = {name: np.asarray(x) for name, x in arrays.items()}
        sizes = {name: len(x) for name, x in arrays.items()}
        if len(set(sizes.values())) != 1:
            raise ValueError(f"{where}: fields differ in length: {sizes}")
        split = cls(Rows(arrays), where)
        split._arrays = arrays
        return split

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, i: int) -> Record:
        return self.records[i]

    @property
    def fields(self) -> dict[str, tuple[int, ...]]:
        """The shape of each field of a record."""
        return {name: np.shape(x) for name, x in self[0].items()}

    def stack(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """The records of the given rows, stacked."""
        if self._arrays is not None:
            return {name: x[rows] for name, x in self._arrays.items()}
        records = _read(self.records, rows)
        out = {}
        for name in records[0]:
            shapes = {np.shape(r[name]): row for row, r in zip(rows, records)}
            if len(shapes) > 1:
                (one, i), (other, j), *_ = shapes.items()
                raise ValueError(
                    f"{self.where}: {name} of example {i} is {list(one)}, of example {j} "
                    f"{list(other)}: all examples need one shape"
                )
            out[name] = np.stack([r[name] for r in records])
        return out

    def arrays(self) -> dict[str, np.ndarray]:
        """All records, stacked; read once and kept."""
        if self._arrays is None:
            self._arrays = self.stack(np.arange(len(self)))
        return self._arrays

    def labels(self) -> np.ndarray:
        """The labels of all records, `[N]`; read once and kept."""
        if self._labels is None:
            if self._arrays is not None:
                return self._arrays["label"]
            blocks = np.split(np.arange(len(self)), range(BLOCK, len(self), BLOCK))
            found = [[r["label"] for r in _read(self.records, rows)] for rows in blocks]
            self._labels = np.array([label for block in found for label in block], np.int32)
        return self._labels

    def take(self, rows: np.ndarray, where: str = "") -> Split:
        """The split of the given rows, in their order; read only if this one has been."""
        where = where or self.where
        if self._arrays is not None:
            return Split.of(self.stack(rows), where)
        return Split(_Part(self.records, rows), where, self.labels()[rows])

    def subset(self, examples: int, seed: int) -> Split:
        """A stratified part: classes in the proportions of the whole, chosen by the seed.

        >>> whole = Split.of({"label": np.arange(100) % 10}, "tiny")
        >>> np.bincount(whole.subset(20, seed=0).labels()).tolist()
        [2, 2, 2, 2, 2, 2, 2, 2, 2, 2]
        """
        if not 0 < examples <= len(self):
            raise ValueError(f"{self.where} has {len(self)} examples, {examples} were asked for")
        chosen, _ = stratified(self.labels(), (examples,), seed)
        return self.take(chosen, f"{self.where}[{examples}]")

    def long_tailed(self, imbalance: float, seed: int) -> Split:
        """A part whose classes fall off exponentially, the first the largest.

            n_c = n_max imbalance^(-c / (C - 1)),   c = 0 ... C - 1

        n_max is the size of the largest class; a class that has fewer than n_c examples keeps all
        of them, and none loses its last one.

        Args:
          imbalance: n_0 / n_{C-1}, at least 1; 100 and 50 are usual.
          seed: of which examples are kept.

        Raises:
          ValueError: an imbalance below 1.

        Source: Cui et al. 2019 (arXiv:1901.05555), section 5.1.

        >>> whole = Split.of({"label": np.arange(300) % 3}, "tiny")
        >>> np.bincount(whole.long_tailed(100, seed=0).labels()).tolist()
        [100, 10, 1]
        """
        if not imbalance >= 1:
            raise ValueError(f"imbalance must be at least 1, got {imbalance}")
        labels, rng = self.labels(), np.random.default_rng(seed)
        counts = np.bincount(labels)
        places = np.arange(len(counts)) / max(len(counts) - 1, 1)
        wanted = np.maximum(1, np.floor(counts.max() * imbalance**-places + 1e-9)).astype(int)
        kept = [rng.permutation(np.flatnonzero(labels == c))[:n] for c, n in enumerate(wanted)]
        return self.take(np.sort(np.concatenate(kept)), f"{self.where}[1:{imbalance:g}]")

    def check_labels(self, num_classes: int) -> None:
        """Refuses a label outside the classes."""
        labels = self.labels()
        bad = np.flatnonzero((labels < 0) | (labels >= num_classes))
        if len(bad):
            raise ValueError(
                f"{self.where}, example {bad[0]}: label {labels[bad[0]]} is outside the "
                f"{num_classes} classes"
            )


def _read(records: Sequence[Record], rows: Sequence[int]) -> list[Record]:
    if hasattr(records, "__getitems__"):  # TFDS reads many at once much faster than one by one
        return records.__getitems__([int(row) for row in rows])
    return [records[int(row)] for row in rows]


class Rows(Sequence):
    """Records of arrays that lead with the example axis."""

    def __init__(self, arrays: Mapping[str, np.ndarray]):
        self._arrays = arrays

    def __len__(self) -> int:
        return len(next(iter(self._arrays.values())))

    def __getitem__(self, i):
        return {name: x[i] for name, x in self._arrays.items()}


class _Part(Sequence):
    """Some of the records, in a given order."""

    def __init__(self, records: Sequence[Record], rows: np.ndarray):
        self._records, self._rows = records, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, i):
        return self._records[int(self._rows[i])]

    def __getitems__(self, rows: Sequence[int]) -> list[Record]:
        return _read(self._records, self._rows[rows])


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Named splits with the classes they share.

    Attributes:
      name: what it is called in reports.
      splits: `train`, `validation`, `test`.
      class_names: one a class, in label order.
    """

    name: str
    splits: Mapping[str, Split]
    class_names: tuple[str, ...]

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def padded(self, padding: int) -> Dataset:
        """The data set with so many rows and columns of zeros on each side of every image.

        All images are read into memory.

        Raises:
          ValueError: padding that is no positive integer.

        >>> images = np.ones((30, 8, 8, 1), np.uint8)
        >>> Dataset.of((images, np.arange(30) % 3)).padded(3).splits["test"].fields["image"]
        (14, 14, 1)
        """
        if not isinstance(padding, int) or padding < 1:
            raise ValueError(f"padding must be a positive integer, got {padding!r}")
        around = ((0, 0), (padding, padding), (padding, padding), (0, 0))
        splits = {}
        for name, split in self.splits.items():
            arrays = split.arrays()
            image = np.pad(arrays["image"], around)
            splits[name] = Split.of({**arrays, "image": image}, split.where)
        return dataclasses.replace(self, splits=splits)

    @classmethod
    def of(
        cls,
        train: tuple[np.ndarray, np.ndarray],
        validation: tuple[np.ndarray, np.ndarray] | None = None,
        test: tuple[np.ndarray, np.ndarray] | None = None,
        *,
        name: str = "arrays",
        input: str = "image",
        class_names: Sequence[str] = (),
    ) -> Dataset:
        """A data set of `(inputs, labels)` pairs.

        A split that is not given is carved out of `train`, a tenth each, stratified, always the
        same way.

        Args:
          train, validation, test: inputs `[N, ...]` and integer labels `[N]`. Images are uint8
            (0..255, read as 0..1) or floats.
          name: what the data set is called in reports and errors.
          input: the field of a batch that holds the inputs.
          class_names: in label order; default: the numbers up to the highest label.

        Raises:
          ValueError: labels that are no integers, inputs and labels of different lengths, images
            of another kind, a number that is not finite, a label outside the classes.

        >>> data = Dataset.of((np.zeros((100, 4), np.float32), np.arange(100) % 2))
        >>> {split: len(records) for split, records in data.splits.items()}
        {'train': 80, 'validation': 10, 'test': 10}
        """
        pairs = {"train": train, "validation": validation, "test": test}
        splits = {}
        for split, pair in pairs.items():
            if pair is None:
                continue
            inputs, labels = np.asarray(pair[0]), np.asarray(pair[1])
            where = f"{name}/{split}"
            if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
                raise ValueError(
                    f"{where}: labels must be integers [N], got {labels.dtype}{list(labels.shape)}"
                )
            floats = np.issubdtype(inputs.dtype, np.floating)
            if input == "image" and not floats and inputs.dtype != np.uint8:
                raise ValueError(f"{where}: images must be uint8 or floats, got {inputs.dtype}")
            check_finite(inputs, where)
            inputs = inputs.astype(np.float32) if floats else inputs
            splits[split] = Split.of({input: inputs, "label": labels.astype(np.int32)}, where)
        highest = max(int(split.labels().max()) for split in splits.values())
        class_names = tuple(class_names) or tuple(str(c) for c in range(highest + 1))
        for split in splits.values():
            split.check_labels(len(class_names))
        return cls(name, carve(splits, name), class_names)


def carve(splits: Mapping[str, Split], name: str) -> dict[str, Split]:
    """Adds the missing ones of validation and test, a tenth of `train` each, stratified."""
    missing = [split for split in ("validation", "test") if split not in splits]
    if missing:
        train = splits["train"]
        labels = train.labels()
        *parts, rest = stratified(labels, (len(labels) // 10,) * len(missing), 0)
        lost = np.setdiff1d(labels, labels[rest])
        if len(labels) < 10 or len(lost):
            few = f"{len(labels)} examples" if len(labels) < 10 else f"too few of class {lost[0]}"
            raise ValueError(f"{name}/train has {few}: too few to carve {missing[0]} out of it")
        cut = {"train": rest, **dict(zip(missing, parts))}
        splits = {**splits, **{s: train.take(rows, f"{name}/{s}") for s, rows in cut.items()}}
    return {split: splits[split] for split in ("train", "validation", "test")}


def stratified(labels: np.ndarray, sizes: Sequence[int], seed: int) -> list[np.ndarray]:
    """Disjoint rows of the given sizes and the rest, each with the classes in proportion.

    Rows are dealt out by their place within their class, after a shuffle by the seed, so that
    any prefix of the order is as balanced as it can be.

    >>> [np.bincount(np.arange(20)[rows] % 2).tolist() for rows in
    ...  stratified(np.arange(20) % 2, (4, 6), seed=0)]
    [[2, 2], [3, 3], [5, 5]]
    """
    if sum(sizes) > len(labels):
        raise ValueError(f"{sum(sizes)} examples were asked for, there are {len(labels)}")
    rng = np.random.default_rng(seed)
    place = np.empty(len(labels))
    for c in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == c))
        place[rows] = (np.arange(len(rows)) + rng.random()) / len(rows)
    order = np.lexsort((labels, place))
    cuts = np.cumsum(sizes)
    return [np.sort(part) for part in np.split(order, cuts)]


def shared_rows(split: Split, other: Split, fields: Sequence[str]) -> np.ndarray:
    """The rows of `split` that `other` holds too: equal, byte for byte, in all of the fields.

    >>> one, two = (Split.of({"image": np.array(x)}, "tiny") for x in ([1.0, 2.0], [2.0, 3.0]))
    >>> shared_rows(one, two, ("image",)).tolist()
    [1]
    """

    def contents(part: Split) -> list[bytes]:
        columns = [part.arrays()[name] for name in fields]
        rows = (
            b"".join(np.ascontiguousarray(x[i]).tobytes() for x in columns)
            for i in range(len(part))
        )
        return [hashlib.blake2b(row, digest_size=16).digest() for row in rows]

    known = set(contents(other))
    return np.flatnonzero([row in known for row in contents(split)])


def check_finite(inputs: np.ndarray, where: str, rows: np.ndarray | None = None) -> None:
    """Refuses NaN and infinity, and says in which example; `rows` are the examples' numbers."""
    if np.issubdtype(inputs.dtype, np.floating):
        bad = ~np.isfinite(inputs).all(axis=tuple(range(1, inputs.ndim)))
        if bad.any():
            example = np.flatnonzero(bad)[0] if rows is None else rows[bad][0]
            raise ValueError(f"{where}, example {example}: not a finite number")
