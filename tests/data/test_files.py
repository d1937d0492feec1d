"""Image folders that are damaged as files, and the pixels of every kind of image."""

import io
import zipfile

import numpy as np
import pytest
from PIL import Image

from kdjax.data.files import image_folder

COLOURS = np.random.default_rng(0).integers(0, 256, (256, 3), dtype=np.uint8)
PIXELS = np.arange(12, dtype=np.uint8).reshape(3, 4)
ALPHA = np.full((3, 4, 1), 7, np.uint8)


@pytest.fixture(autouse=True)
def prepared(tmp_path_factory, monkeypatch):
    """Where these tests keep decoded images."""
    monkeypatch.setenv("KDJAX_DATA_DIR", str(tmp_path_factory.mktemp("prepared")))


def png(image, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG", **options)
    return out.getvalue()


def palette() -> Image.Image:
    image = Image.new("P", (4, 3))
    image.putpalette(COLOURS.tobytes())
    image.putdata(PIXELS.ravel().tolist())
    return image


def files_of(content: bytes) -> dict[str, bytes]:
    """A train split and a test split of two classes, all with the same content."""
    return {
        f"{split}/{name}/{i:02}.png": content
        for split in ("train", "test")
        for name in ("cat", "dog")
        for i in range(10)
    }


def write_zip(path, files):
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def write_folder(path, files):
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


RGB = COLOURS[PIXELS]
KINDS = {
    "grey": (png(Image.fromarray(PIXELS)), PIXELS[..., None]),
    "grey, one value transparent": (
        png(Image.fromarray(PIXELS), transparency=3),
        PIXELS[..., None],
    ),
    "colour": (png(Image.fromarray(RGB)), RGB),
    "colour with alpha": (png(Image.fromarray(np.concatenate([RGB, ALPHA], -1))), RGB),
    "palette": (png(palette()), RGB),
    "palette, one colour transparent": (png(palette(), transparency=3), RGB),
    "palette, an alpha a colour": (png(palette(), transparency=bytes(range(12))), RGB),
}


@pytest.mark.parametrize("kind", KINDS)
def test_alpha_is_dropped_and_a_palette_becomes_its_colours(kind, tmp_path):
    content, expected = KINDS[kind]
    data = image_folder(write_zip(tmp_path / "x.zip", files_of(content)))
    np.testing.assert_array_equal(data.splits["test"][0]["image"], expected)


def test_a_record_is_the_row_of_the_whole_split(tmp_path):
    rng = np.random.default_rng(1)
    files = {
        name: png(Image.fromarray(rng.integers(0, 256, (3, 4, 3), dtype=np.uint8)))
        for name in files_of(b"")
    }
    data = image_folder(write_folder(tmp_path / "x", files))
    for split in data.splits.values():
        single = [split[i] for i in range(len(split))]
        whole = split.arrays()
        np.testing.assert_array_equal([r["image"] for r in single], whole["image"])
        np.testing.assert_array_equal([r["label"] for r in single], whole["label"])
        np.testing.assert_array_equal(split.labels(), whole["label"])


def test_a_zip_with_a_damaged_directory_is_refused(tmp_path):
    path = write_zip(tmp_path / "x.zip", files_of(KINDS["grey"][0]))
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02")] = 0
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"^x\.zip is a broken zip \(Bad magic number"):
        image_folder(path)


def test_a_link_to_nothing_is_refused(tmp_path):
    place = write_folder(tmp_path / "x", files_of(KINDS["grey"][0]))
    (place / "train" / "cat" / "99.png").symlink_to(place / "gone.png")
    with pytest.raises(ValueError, match=r"^x: train/cat/99\.png is a link to nothing$"):
        image_folder(place)
