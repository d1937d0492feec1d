"""Silhouettes of ten animals, as they come with animal-shape-mnist; exact duplicates removed."""

from __future__ import annotations

import gzip
import pathlib
import pickle
from typing import Any

import numpy as np

from kdjax.data.builders.packaged import PackagedBuilder, require

# What a pickle of a plain numpy array names; nothing else is ever looked up.
ADMITTED = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
}


class ArrayUnpickler(pickle.Unpickler):
    """Reads numpy arrays, and refuses a pickle that asks for anything else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ADMITTED:
            raise pickle.UnpicklingError(f"refused to load {module}.{name}: not a numpy array")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def read_array(path: pathlib.Path) -> np.ndarray:
    """The array in a gzip pickle."""
    with gzip.open(path, "rb") as file:
        array = ArrayUnpickler(file).load()
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{path.name} holds {type(array).__name__}, not an array")
    return array


class AnimalShapes(PackagedBuilder):
    """`animal_shapes`: 7,216 / 1,000 / 1,500 silhouettes of 28 x 28."""

    SHAPE = (28, 28, 1)
    CLASS_NAMES = (
        "bear",
        "bird",
        "cat",
        "cow",
        "dog",
        "elephant",
        "giraffe",
        "horse",
        "sheep",
        "zebra",
    )
    SIZES = (1000, 1500)
    DIGEST = "d6e4363e9955cabd"
    DESCRIPTION = "Animal silhouettes in the format of MNIST, without exact duplicates."

    @staticmethod
    def read() -> tuple[np.ndarray, np.ndarray]:
        folder = require("animal_shape_mnist", "animal-shape-mnist==0.39") / "data" / "Animal Shape"
        images = read_array(folder / "animal_data_version_3.gz")
        labels = read_array(folder / "animal_label_version_3.gz")
        images = images.reshape(-1, 28, 28, 1)
        _, first = np.unique(images.reshape(len(images), -1), axis=0, return_index=True)
        kept = np.sort(first)  # 284 of the 10,000 are exact copies of an earlier one
        return images[kept].astype(np.uint8), labels.reshape(-1)[kept].astype(np.int64)
