"""A data set is three splits of records; a split is a sequence that can also be had as arrays."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Record = Mapping[str, np.ndarray]


class Split:
    """Records in a fixed order, read one at a time or all at once.

    Args:
      records: a sequence of dicts of arrays; anything with `len` and `[i]`.
      where: what to call the split in errors, e.g. "mnist5k/train".
    """

    def __init__(self, records: Sequence[Record], where: str):
        if len(records) == 0:
            raise ValueError(f"{where} is empty")
        self.records, self.where = records, where
        self._arrays: dict[str, np.ndarray] | None = None
        self.on_device: dict[Any, Any] = {}  # tables of streams, shared between them

    @classmethod
    def of(cls, arrays: Mapping[str, np.ndarray], where: str) -> Split:
        """A split of arrays that lead with the example axis."""
        arrays = {name: np.asarray(x) for name, x in arrays.items()}
        sizes = {name: len(x) for name, x in arrays.items()}
        if len(set(sizes.values())) != 1:
            raise ValueError(f"{where}: fields differ in length: {sizes}")
        split = cls(_Rows(arrays), where)
        split._arrays = arrays
        return split

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, i: int) -> Record:
        return self.records[i]

    def arrays(self) -> dict[str, np.ndarray]:
        """All records, stacked; read once and kept."""
        if self._arrays is None:
            if hasattr(self.records, "__getitems__"):
                records = self.records.__getitems__(list(range(len(self))))
            else:
                records = [self.records[i] for i in range(len(self))]
            self._arrays = {n: np.stack([r[n] for r in records]) for n in records[0]}
        return self._arrays

    def take(self, rows: np.ndarray, where: str = "") -> Split:
        """The split of the given rows, in their order."""
        arrays = {name: x[rows] for name, x in self.arrays().items()}
        return Split.of(arrays, where or self.where)

    def subset(self, examples: int, seed: int) -> Split:
        """A stratified part: classes in the proportions of the whole, chosen by the seed."""
        if not 0 < examples <= len(self):
            raise ValueError(f"{self.where} has {len(self)} examples, {examples} were asked for")
        chosen, _ = stratified(self.arrays()["label"], (examples,), seed)
        return self.take(chosen, f"{self.where}[{examples}]")

    def check_labels(self, num_classes: int) -> None:
        """Refuses a label outside the classes."""
        labels = self.arrays()["label"]
        bad = np.flatnonzero((labels < 0) | (labels >= num_classes))
        if len(bad):
            raise ValueError(
                f"{self.where}, example {bad[0]}: label {labels[bad[0]]} is outside the "
                f"{num_classes} classes"
            )


class _Rows(Sequence):
    def __init__(self, arrays: Mapping[str, np.ndarray]):
        self._arrays = arrays

    def __len__(self) -> int:
        return len(next(iter(self._arrays.values())))

    def __getitem__(self, i):
        return {name: x[i] for name, x in self._arrays.items()}


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

        >>> data = Dataset.of((np.zeros((100, 4), np.float32), np.arange(100) % 2))
        >>> {split: len(records) for split, records in data.splits.items()}
        {'train': 80, 'validation': 10, 'test': 10}
        """
        pairs = {"train": train, "validation": validation, "test": test}
        pairs = {split: pair for split, pair in pairs.items() if pair is not None}
        fields = {}
        for split, (inputs, labels) in pairs.items():
            labels = np.asarray(labels)
            if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
                raise ValueError(
                    f"{name}/{split}: labels must be integers [N], got "
                    f"{labels.dtype}{list(labels.shape)}"
                )
            check_finite(np.asarray(inputs), f"{name}/{split}")
            fields[split] = {input: np.asarray(inputs), "label": labels.astype(np.int32)}
        highest = max(int(f["label"].max()) for f in fields.values())
        class_names = tuple(class_names) or tuple(str(c) for c in range(highest + 1))
        fields = carve(fields, name)
        splits = {s: Split.of(f, f"{name}/{s}") for s, f in fields.items()}
        for split in splits.values():
            split.check_labels(len(class_names))
        return cls(name, splits, class_names)


def carve(fields: dict[str, dict[str, np.ndarray]], name: str) -> dict[str, dict]:
    """Adds the missing ones of validation and test, a tenth of `train` each, stratified."""
    missing = [split for split in ("validation", "test") if split not in fields]
    if missing:
        train = fields["train"]
        size = len(train["label"])
        part = size // 10
        if not part:
            raise ValueError(f"{name}/train has {size} examples: too few to carve {missing[0]} out")
        *parts, rest = stratified(train["label"], (part,) * len(missing), 0)
        cut = {"train": rest, **dict(zip(missing, parts))}
        fields = {**fields, **{s: {n: x[r] for n, x in train.items()} for s, r in cut.items()}}
    return {split: fields[split] for split in ("train", "validation", "test")}


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


def check_finite(inputs: np.ndarray, where: str) -> None:
    """Refuses NaN and infinity, and says in which example."""
    if np.issubdtype(inputs.dtype, np.floating):
        bad = ~np.isfinite(inputs.reshape(len(inputs), -1)).all(axis=1)
        if bad.any():
            raise ValueError(f"{where}, example {np.flatnonzero(bad)[0]}: not a finite number")
