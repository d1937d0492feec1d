"""Data sets that TFDS knows, read through its data source: lazily, without TensorFlow."""

import io
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from kdjax.data import load


def png(pixels) -> io.BytesIO:
    """TFDS stores encoded images as they are; to encode pixels it would need TensorFlow."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    out.seek(0)
    return out


class ToyShapes(tfds.core.GeneratorBasedBuilder):
    """Encoded images and their labels; an example without a label; images of two sizes."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "label": tfds.features.ClassLabel(names=["disc", "square"]),
        }
        return tfds.core.DatasetInfo(
            builder=self, description="toy", features=tfds.features.FeaturesDict(features)
        )

    def _split_generators(self, download_manager):
        return {
            "train": self._generate_examples(40),
            "unlabelled": self._examples(0, -1, 5),
            "uneven": self._examples(0, 1, 6),
        }

    def _generate_examples(self, size):
        for i in range(size):
            yield i, {"image": png(np.full((4, 5, 3), i, np.uint8)), "label": i % 2}

    def _examples(self, first, second, height):
        for i, (label, rows) in enumerate([(first, 5), (second, height)]):
            yield i, {"image": png(np.zeros((rows, 5, 3), np.uint8)), "label": label}


class ToyPixels(ToyShapes):
    """Images as arrays, which TFDS encodes with TensorFlow."""

    VERSION = tfds.core.Version("1.0.0")

    def _generate_examples(self, size):
        yield 0, {"image": np.zeros((4, 5, 3), np.uint8), "label": 0}


class ToyText(tfds.core.GeneratorBasedBuilder):
    """No image in it."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = tfds.features.FeaturesDict({"text": tfds.features.Text()})
        return tfds.core.DatasetInfo(builder=self, description="toy", features=features)

    def _split_generators(self, download_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        yield 0, {"text": "a"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Prepared once, as TFDS prepares what a user asks for."""
    place = str(tmp_path_factory.mktemp("tfds"))
    tfds.disable_progress_bar()
    for builder in (ToyShapes, ToyText):
        builder(data_dir=place, file_format="array_record").download_and_prepare()
    return place


def test_records_come_from_the_prepared_files_without_tensorflow(folder):
    data = load("tfds:toy_shapes", data_dir=folder)
    assert data.class_names == ("disc", "square")
    assert [len(x) for x in data.splits.values()] == [32, 4, 4]
    seen = []
    for split in data.splits.values():
        arrays = split.arrays()
        assert arrays["image"].shape == (len(split), 4, 5, 3)
        np.testing.assert_array_equal(arrays["image"][:, 0, 0, 0] % 2, arrays["label"])
        assert np.bincount(arrays["label"]).tolist() == [len(split) / 2] * 2
        seen += arrays["image"][:, 0, 0, 0].tolist()
    assert sorted(seen) == list(range(40))
    assert "tensorflow" not in sys.modules


def test_splits_are_asked_for_in_the_language_of_tfds(folder):
    parts = (("train", "train[:50%]"), ("validation", "train[50%:75%]"), ("test", "train[75%:]"))
    data = load("tfds:toy_shapes", data_dir=folder, splits=parts)
    assert [len(x) for x in data.splits.values()] == [20, 10, 10]
    assert data.splits["train"][3]["image"].shape == (4, 5, 3)


def test_preparing_what_needs_tensorflow_says_what_to_do(tmp_path):
    with pytest.raises(ModuleNotFoundError, match=r"tfds:toy_pixels .*prepare it") as error:
        load("tfds:toy_pixels", data_dir=str(tmp_path))
    assert "\n" not in str(error.value)


REFUSED = {
    "label": (
        "toy_shapes",
        (("train", "train"), ("test", "unlabelled")),
        r"tfds:toy_shapes/test, example \d: label -1 is outside the 2 classes",
    ),
    "shapes": (
        "toy_shapes",
        (("train", "train"), ("test", "uneven")),
        r"tfds:toy_shapes/test: image of example 0 is \[\d, 5, 3\], of example 1 \[\d, 5, 3\]",
    ),
    "empty": (
        "toy_shapes",
        (("train", "train"), ("test", "train[:0]")),
        r"tfds:toy_shapes/test is empty",
    ),
    "no train": ("toy_shapes", (("test", "train"),), r"tfds:toy_shapes needs a train split"),
    "features": ("toy_text", (), r"tfds:toy_text has \['text'\], but image and label are needed"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_used_is_refused(case, folder):
    name, splits, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        load(f"tfds:{name}", data_dir=folder, splits=splits).splits["test"].arrays()
