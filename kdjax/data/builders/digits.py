"""1,797 digits of 8 x 8 pixels, as they come with scikit-learn: the size for tests."""

from __future__ import annotations

import numpy as np

from kdjax.data.builders.packaged import PackagedBuilder, require


class Digits(PackagedBuilder):
    """`digits`: 1,257 / 180 / 360 grey digits of 8 x 8, the 17 grey levels spread over 0..255."""

    SHAPE = (8, 8, 1)
    CLASS_NAMES = tuple("0123456789")
    SIZES = (180, 360)
    DIGEST = "bbe74ba6220adbe5"
    DESCRIPTION = "Optical recognition of handwritten digits (Alpaydin and Kaynak 1998)."

    @staticmethod
    def read() -> tuple[np.ndarray, np.ndarray]:
        require("sklearn", "scikit-learn")
        from sklearn.datasets import load_digits

        found = load_digits()
        images = np.round(found.images * (255 / 16)).astype(np.uint8)
        return images[..., None], found.target
