"""What the builders share: fixed stratified splits, prepared once into ArrayRecord."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import logging
import pathlib
from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds

from kdjax.data.prepared import alone, data_dir
from kdjax.data.source import stratified

SPLIT_SEED = 0


class PackagedBuilder(tfds.core.GeneratorBasedBuilder):
    """A data set whose pixels lie in an installed package.

    A subclass gives `SHAPE`, `CLASS_NAMES`, `SIZES` (validation, test), `DIGEST` (of what `read`
    must return, so that the splits are the same everywhere), `DESCRIPTION` and `read()`.
    """

    VERSION = tfds.core.Version("1.0.0")
    pkg_dir_path = pathlib.Path(__file__).parent
    SHAPE: tuple[int, int, int]
    CLASS_NAMES: tuple[str, ...]
    SIZES: tuple[int, int]
    DIGEST: str
    DESCRIPTION: str

    @staticmethod
    def read() -> tuple[np.ndarray, np.ndarray]:
        """Images `[N, H, W, C]` uint8 and labels `[N]`."""
        raise NotImplementedError

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict(
            {
                "image": tfds.features.Tensor(shape=self.SHAPE, dtype=np.uint8),
                "label": tfds.features.ClassLabel(names=list(self.CLASS_NAMES)),
            }
        )
        return tfds.core.DatasetInfo(builder=self, description=self.DESCRIPTION, features=features)

    def _split_generators(self, download_manager):
        images, labels = self.read()
        if digest(images, labels) != self.DIGEST:
            raise ValueError(
                f"{self.name}: the installed package holds other data than this version of the "
                "data set was made of"
            )
        validation, test, train = stratified(labels, self.SIZES, SPLIT_SEED)
        parts = {"train": train, "validation": validation, "test": test}
        return {name: self._examples(images, labels, rows) for name, rows in parts.items()}

    def _generate_examples(self):
        raise NotImplementedError("examples are given by _split_generators")

    @staticmethod
    def _examples(images, labels, rows) -> Iterator[tuple[int, dict]]:
        for row in rows:
            yield int(row), {"image": images[row], "label": int(labels[row])}


def require(module: str, package: str) -> pathlib.Path:
    """The folder of an installed package, found without importing it."""
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(f"this data set comes with a package: pip install {package}")
    return pathlib.Path(spec.submodule_search_locations[0])


def digest(images: np.ndarray, labels: np.ndarray) -> str:
    """A fingerprint of images uint8 and labels, in their order."""
    hashed = hashlib.sha256(str(images.shape).encode())
    hashed.update(images.astype(np.uint8).tobytes())
    hashed.update(labels.astype(np.int64).tobytes())
    return hashed.hexdigest()[:16]


def prepare(builder: type[PackagedBuilder]) -> PackagedBuilder:
    """The builder, its data prepared; of several processes one prepares and the others wait."""
    folder = data_dir()
    made = builder(data_dir=str(folder), file_format="array_record")
    prepared = pathlib.Path(made.data_dir)  # TFDS renames a finished folder to this
    if not prepared.exists():
        with alone(folder / made.name):
            if not prepared.exists():
                with _quiet():
                    made.download_and_prepare()
    # Made anew: `made` may be older than what another process has prepared since.
    return builder(data_dir=str(folder), file_format="array_record")


@contextlib.contextmanager
def _quiet():
    tfds.disable_progress_bar()
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
