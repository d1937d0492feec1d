"""Data sets by name."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from kdjax.data.source import Dataset, Split, carve


def load(name: str, **options: Any) -> Dataset:
    """The data set of that name.

    | name | what it is | options |
    | --- | --- | --- |
    | `mnist5k`, `animal_shapes`, `digits` | real images from pip packages, prepared once | |
    | `tfds:NAME` | any data set of TFDS, through `tfds.data_source` | `splits`, `data_dir` |
    | `folder:PATH` | an image folder, or a zip of one, decoded once | |
    | `npz:PATH` | arrays | `fields` |
    | `jsonl:PATH`, `csv:PATH` | a table, also gzipped | `input`, `label`, `split` |
    | `spoken_digits:PATH` | written digits beside spoken ones of a file | `seed`, `missing` |
    | `halves:NAME` | images of another set, whole and in halves | `noise`, `sizes`, `seed` |

    Raises:
      ValueError: unknown name (the nearest valid one is named), or data that cannot be used.
      FileNotFoundError: nothing at PATH, or a package that is not installed (its pip command).
    """
    kind, _, place = name.partition(":")
    if place:
        from kdjax.data import files, halves, spoken_digits, tables

        readers: dict[str, Callable[..., Dataset]] = {
            "tfds": from_tfds,
            "folder": files.image_folder,
            "npz": tables.npz,
            "jsonl": tables.table,
            "csv": tables.table,
            "spoken_digits": spoken_digits.spoken_digits,
            "halves": halves.halves,
        }
        if kind not in readers:
            hint = _nearest(kind, readers)
            raise ValueError(f"data {name!r} must begin with one of {sorted(readers)}; {hint}")
        return readers[kind](place, **options)
    builders = _builders()
    if name not in builders:
        raise ValueError(f"there is no data set {name!r}; {_nearest(name, builders)}")
    if options:
        raise ValueError(f"{name} takes no options, got {sorted(options)}")
    from kdjax.data.builders import packaged

    builder = packaged.prepare(builders[name]())
    return _dataset(name, builder, {s: s for s in ("train", "validation", "test")})


def _nearest(name: str, valid: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(valid), 1)
    return f"did you mean {close[0]!r}?" if close else f"valid are {sorted(valid)}"


def _builders() -> dict[str, Callable]:
    def mnist5k():
        from kdjax.data.builders.mnist5k import Mnist5k

        return Mnist5k

    def animal_shapes():
        from kdjax.data.builders.animal_shapes import AnimalShapes

        return AnimalShapes

    def digits():
        from kdjax.data.builders.digits import Digits

        return Digits

    return {"mnist5k": mnist5k, "animal_shapes": animal_shapes, "digits": digits}


def from_tfds(name: str, *, splits: Sequence[tuple] = (), data_dir: str | None = None) -> Dataset:
    """A data set that TFDS knows, prepared (downloaded where it must be) and read without TF.

    Args:
      name: as TFDS spells it, e.g. `cifar10`; records need `image` and `label`.
      splits: pairs of (ours, theirs), e.g. `(("train", "train[:90%]"), ("validation",
        "train[90%:]"), ("test", "test"))`. Default: their splits; what is missing of validation
        and test is carved out of train.
      data_dir: where TFDS keeps its data.

    Raises:
      ModuleNotFoundError: the data set is not prepared yet, and only TensorFlow can encode it.
      ValueError: no train split, no image or label, a label outside the classes.
    """
    import tensorflow_datasets as tfds

    builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
    try:
        builder.download_and_prepare()
    except ModuleNotFoundError as error:  # it writes images as TensorFlow encodes them
        raise ModuleNotFoundError(
            f"tfds:{name} can be read but not prepared without TensorFlow: prepare it where there "
            "is one, with file_format='array_record', and give its data_dir"
        ) from error
    wanted = dict(splits) or {
        s: s for s in ("train", "validation", "test") if s in builder.info.splits
    }
    if "train" not in wanted:
        raise ValueError(f"tfds:{name} needs a train split; it has {list(builder.info.splits)}")
    return _dataset(f"tfds:{name}", builder, wanted)


def _dataset(name: str, builder, wanted: dict[str, str]) -> Dataset:
    features = builder.info.features
    if not {"image", "label"} <= set(features):
        raise ValueError(f"{name} has {sorted(features)}, but image and label are needed")
    if not hasattr(features["label"], "names"):
        raise ValueError(f"{name}: label is no class, but {features['label']}")
    names = tuple(features["label"].names)
    splits = {}
    for split, theirs in wanted.items():
        where = f"{name}/{split}"
        if not builder.info.splits[theirs].num_examples:
            raise ValueError(f"{where} is empty: it is {theirs!r}")
        source = builder.as_data_source(split=theirs)
        splits[split] = Split(_Records(source, where, len(names)), where)
    return Dataset(name, carve(splits, name), names)


class _Records:
    """A TFDS data source as plain records."""

    def __init__(self, source, where: str, num_classes: int):
        self._source, self._where, self._num_classes = source, where, num_classes

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:
        return self._plain(i, self._source[i])

    def __getitems__(self, rows: Sequence[int]) -> list[dict[str, np.ndarray]]:
        return [self._plain(i, r) for i, r in zip(rows, self._source.__getitems__(rows))]

    def _plain(self, i: int, record: dict) -> dict[str, np.ndarray]:
        label = np.asarray(record["label"], np.int32)
        if not 0 <= label < self._num_classes:
            raise ValueError(
                f"{self._where}, example {i}: label {label} is outside the {self._num_classes} "
                "classes"
            )
        return {"image": np.asarray(record["image"]), "label": label}
