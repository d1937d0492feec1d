"""Data sets by name."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from kdjax.data.source import Dataset, Split, carve


def load(name: str, **options: Any) -> Dataset:
    """The data set of that name.

    | name | what it is | options |
    | --- | --- | --- |
    | `mnist5k`, `animal_shapes`, `digits` | real images from pip packages, prepared once | |
    | `tfds:NAME` | any data set of TFDS, through `tfds.data_source` | `splits`, `data_dir` |
    | `folder:PATH` | an image folder, or a zip of one | |
    | `npz:PATH` | arrays | `fields` |
    | `jsonl:PATH`, `csv:PATH` | a table, also gzipped | `input`, `label`, `split` |

    Raises:
      ValueError: unknown name (the nearest valid one is named), or data that cannot be used.
    """
    kind, _, place = name.partition(":")
    if place:
        from kdjax.data import files

        readers: dict[str, Callable[..., Dataset]] = {
            "tfds": from_tfds,
            "folder": files.image_folder,
            "npz": files.npz,
            "jsonl": files.table,
            "csv": files.table,
        }
        if kind not in readers:
            raise ValueError(f"data {name!r} must begin with one of {sorted(readers)}")
        return readers[kind](place, **options)
    builders = _builders()
    if name not in builders:
        close = difflib.get_close_matches(name, builders, 1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are {sorted(builders)}"
        raise ValueError(f"there is no data set {name!r}; {hint}")
    if options:
        raise ValueError(f"{name} takes no options, got {sorted(options)}")
    from kdjax.data.builders import packaged

    builder = packaged.prepare(builders[name]())
    return _dataset(name, builder, {s: s for s in ("train", "validation", "test")})


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
    """
    import tensorflow_datasets as tfds

    builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
    builder.download_and_prepare()
    wanted = dict(splits) or {
        s: s for s in ("train", "validation", "test") if s in builder.info.splits
    }
    if "train" not in wanted:
        raise ValueError(f"tfds:{name} needs a train split; it has {list(builder.info.splits)}")
    return _dataset(f"tfds:{name}", builder, wanted)


def _dataset(name: str, builder, wanted: dict[str, str]) -> Dataset:
    label = builder.info.features["label"]
    sources = {s: builder.as_data_source(split=theirs) for s, theirs in wanted.items()}
    splits = {s: Split(_Records(x), f"{name}/{s}") for s, x in sources.items()}
    if len(splits) < 3:
        fields = carve({s: x.arrays() for s, x in splits.items()}, name)
        splits = {s: Split.of(f, f"{name}/{s}") for s, f in fields.items()}
    return Dataset(name, splits, tuple(label.names))


class _Records:
    """A TFDS data source as plain records."""

    def __init__(self, source):
        self._source = source

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:
        return self._plain(self._source[i])

    def __getitems__(self, rows: Sequence[int]) -> list[dict[str, np.ndarray]]:
        return [self._plain(r) for r in self._source.__getitems__(rows)]

    @staticmethod
    def _plain(record: dict) -> dict[str, np.ndarray]:
        return {
            "image": np.asarray(record["image"]),
            "label": np.asarray(record["label"], np.int32),
        }
