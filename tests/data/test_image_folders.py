"""Image folders and zips of them: labels, splits, and everything that is refused."""

import errno
import io
import json
import os
import zipfile

import numpy as np
import pytest
from PIL import Image

from kdjax.data import load


@pytest.fixture(autouse=True)
def prepared(tmp_path_factory, monkeypatch):
    """Where these tests keep decoded images."""
    folder = tmp_path_factory.mktemp("prepared")
    monkeypatch.setenv("KDJAX_DATA_DIR", str(folder))
    return folder


def png(value, size=(4, 3), mode="RGB", kind="PNG") -> bytes:
    rng = np.random.default_rng(value)
    shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
    out = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).convert(mode).save(out, kind)
    return out.getvalue()


def good(per_class=20, splits=("train", "test"), classes=("cat", "dog"), mode="RGB"):
    return {
        f"{split}/{name}/{i:02}.png": png(1000 * s + 100 * c + i, mode=mode)
        for s, split in enumerate(splits)
        for c, name in enumerate(classes)
        for i in range(per_class)
    }


def write_zip(path, files):
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items() if isinstance(files, dict) else files:
            archive.writestr(name, data)
    return f"folder:{path}"


def write_folder(path, files):
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data) if not name.endswith("/") else (path / name).mkdir()
    return f"folder:{path}"


@pytest.mark.parametrize("write", [write_zip, write_folder])
def test_pixels_labels_and_splits(write, tmp_path):
    files = good()
    data = load(write(tmp_path / "pets", files))
    assert data.class_names == ("cat", "dog")
    assert {s: len(x) for s, x in data.splits.items()} == {
        "train": 36,
        "validation": 4,
        "test": 40,
    }
    test = data.splits["test"].arrays()
    assert test["image"].shape == (40, 3, 4, 3)
    assert test["label"].tolist() == [0] * 20 + [1] * 20
    expected = np.asarray(Image.open(io.BytesIO(files["test/dog/05.png"])))
    np.testing.assert_array_equal(data.splits["test"][25]["image"], expected)


def test_the_carved_validation_split_is_stratified_disjoint_and_always_the_same(tmp_path):
    files = good()
    first, second = (load(write_zip(tmp_path / f"{i}.zip", files)) for i in range(2))
    parts = {s: first.splits[s].arrays() for s in ("train", "validation")}
    assert np.bincount(parts["validation"]["label"]).tolist() == [2, 2]
    images = [x.tobytes() for part in parts.values() for x in part["image"]]
    assert len(set(images)) == 40
    again = second.splits["validation"].arrays()["image"]
    np.testing.assert_array_equal(parts["validation"]["image"], again)


def test_a_folder_without_splits_is_split(tmp_path):
    files = {name.removeprefix("train/"): x for name, x in good(splits=("train",)).items()}
    data = load(write_zip(tmp_path / "x.zip", files))
    assert [len(data.splits[s]) for s in ("train", "validation", "test")] == [32, 4, 4]


def test_val_is_validation(tmp_path):
    data = load(write_zip(tmp_path / "x.zip", good(splits=("train", "val", "test"))))
    assert [len(x) for x in data.splits.values()] == [40, 40, 40]


@pytest.mark.parametrize("listed", [["dog", "cat"], {"dog": "Hund", "cat": "Katze"}])
def test_classes_json_gives_the_order_and_the_words(listed, tmp_path):
    files = good() | {"classes.json": json.dumps(listed).encode()}
    data = load(write_zip(tmp_path / "x.zip", files))
    assert data.class_names == (("dog", "cat") if isinstance(listed, list) else ("Hund", "Katze"))
    image = np.asarray(Image.open(io.BytesIO(files["test/dog/00.png"])))
    np.testing.assert_array_equal(data.splits["test"][0]["image"], image)
    assert data.splits["test"][0]["label"] == 0


def test_a_set_is_grey_only_where_every_image_is(tmp_path):
    grey = good(mode="L")
    assert load(write_zip(tmp_path / "a.zip", grey)).splits["test"].fields["image"] == (3, 4, 1)
    mixed = grey | {"train/dog/05.png": png(5)}
    data = load(write_zip(tmp_path / "b.zip", mixed))
    assert data.splits["test"].fields["image"] == (3, 4, 3)


def test_images_are_decoded_once(tmp_path, monkeypatch):
    place = write_zip(tmp_path / "x.zip", good())
    first = load(place).splits["train"].arrays()["image"]

    def decode(*arguments):
        raise AssertionError("decoded again")

    monkeypatch.setattr("kdjax.data.files.decode", decode)
    np.testing.assert_array_equal(load(place).splits["train"].arrays()["image"], first)


def test_a_changed_folder_is_decoded_again(tmp_path):
    place = write_folder(tmp_path / "x", good())
    load(place)
    path = tmp_path / "x" / "test" / "cat" / "00.png"
    path.write_bytes(png(77))
    os.utime(path, ns=(1, 1))
    expected = np.asarray(Image.open(path))
    np.testing.assert_array_equal(load(place).splits["test"][0]["image"], expected)


def test_a_failed_decoding_keeps_nothing(tmp_path, prepared):
    files = good() | {"test/dog/19.png": b"not an image"}
    with pytest.raises(ValueError, match="broken image"):
        load(write_zip(tmp_path / "x.zip", files))
    assert [p.suffix for p in (prepared / "images").iterdir()] == [".lock"]


def test_a_full_disk_keeps_nothing(tmp_path, prepared, monkeypatch):
    place = write_zip(tmp_path / "x.zip", good())

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(np.lib.format, "write_array_header_1_0", full)
        with pytest.raises(OSError, match="No space left"):
            load(place)
    assert [p.suffix for p in (prepared / "images").iterdir()] == [".lock"]
    assert len(load(place).splits["test"]) == 40


def test_hidden_files_and_files_at_the_root_are_not_looked_at(tmp_path):
    extra = {"__MACOSX/train/cat/._0.png": b"", "train/.DS_Store": b"", "LICENSE": b"MIT"}
    assert len(load(write_zip(tmp_path / "x.zip", good() | extra)).splits["test"]) == 40


def without(files, prefix):
    return {name: x for name, x in files.items() if not name.startswith(prefix)}


BROKEN = {
    "broken image": (
        good() | {"test/cat/03.png": b"nonsense"},
        "test/cat/03.png is a broken image",
    ),
    "truncated image": (
        good() | {"train/cat/03.png": png(3, (64, 64))[:-3000]},
        "train/cat/03.png is",
    ),
    "truncated pixels": (
        {n.replace("png", "jpg"): png(0, (64, 64), kind="JPEG") for n in good()}
        | {"train/cat/03.jpg": png(0, (64, 64), kind="JPEG")[:-900]},
        "train/cat/03.jpg is a broken image",
    ),
    "sixteen bits": (
        good() | {"test/cat/03.png": png(0, mode="I;16")},
        "test/cat/03.png has pixels",
    ),
    "several sizes": (
        good() | {"test/cat/03.png": png(0, (5, 3))},
        "test/cat/03.png is 5x3, but test/cat/00.png is 4x3: all images need one size",
    ),
    "empty class": (good() | {"train/cow/": b""}, "the class folder train/cow/ is empty"),
    "empty class in test": (
        without(good(), "test/cat/") | {"test/cat/": b""},
        "the class folder test/cat/ is empty",
    ),
    "empty split": (without(good(), "test/") | {"test/": b""}, "the split test/ is empty"),
    "no train": (without(good(), "train/"), "has no train split, only"),
    "class only in test": (
        good() | {"test/cow/0.png": png(0)},
        "class 'cow' is in test and not in",
    ),
    "one class": (good(classes=("cat",)), "has one class, 'cat'"),
    "no images": ({"readme.txt": b""}, "holds no images in class folders"),
    "other files": (good() | {"train/cat/notes.txt": b""}, "train/cat/notes.txt is no image"),
    "stray folder": (good() | {"extra/cat/0.png": png(0)}, "'extra' lies beside"),
    "no class folder": (good() | {"train/0.png": png(0)}, "train/0.png does not lie in a class"),
    "too deep": (
        good() | {"train/cat/a/0.png": png(0)},
        "train/cat/a/0.png does not lie in a class",
    ),
    "two validations": (good(splits=("train", "val", "validation")), "has both val and validation"),
    "too few": (good(per_class=2, splits=("train",)), "too few to carve validation"),
    "classes.json lacks one": (
        good() | {"classes.json": b'["cat"]'},
        "class 'dog' is not in classes.json",
    ),
    "classes.json has one more": (
        good() | {"classes.json": b'["cat", "dog", "cow"]'},
        "class 'cow' of classes.json has no images",
    ),
    "classes.json twice": (
        good() | {"classes.json": b'["cat", "dog", "cat"]'},
        "classes.json names a class twice",
    ),
    "classes.json broken": (good() | {"classes.json": b'["cat"'}, "classes.json is no JSON"),
    "classes.json number": (good() | {"classes.json": b"3"}, "must be a list or a mapping"),
}
ESCAPES = {
    "up": ("train/cat/../../../x.png", "leads out of the archive"),
    "absolute": ("/train/cat/x.png", "leads out of the archive"),
    "drive": ("C:/train/x.png", "leads out of the archive"),
    "backslash": ("train\\..\\x.png", "leads out of the archive"),
    "dot": ("train/./cat/x.png", "is no plain path"),
    "double slash": ("train//cat/x.png", "is no plain path"),
}


@pytest.mark.parametrize("case", BROKEN)
@pytest.mark.parametrize("write", [write_zip, write_folder])
def test_what_cannot_be_used_is_refused_before_any_training(write, case, tmp_path):
    files, message = BROKEN[case]
    with pytest.raises(ValueError, match=message) as error:
        load(write(tmp_path / "pets", files))
    assert str(error.value).startswith("pets")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("case", ESCAPES)
def test_a_path_that_leaves_the_archive_is_refused(case, tmp_path):
    name, message = ESCAPES[case]
    with pytest.raises(ValueError, match=message):
        load(write_zip(tmp_path / "x.zip", good() | {name: png(0)}))


def test_a_link_that_leaves_the_folder_is_refused(tmp_path):
    place = write_folder(tmp_path / "x", good())
    (tmp_path / "secret.png").write_bytes(png(0))
    (tmp_path / "x" / "train" / "cat" / "link.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(ValueError, match=r"train/cat/link.png leads out of the folder"):
        load(place)


def test_a_link_in_a_zip_is_refused(tmp_path):
    info = zipfile.ZipInfo("train/cat/link.png")
    info.external_attr = 0o120777 << 16
    with pytest.raises(ValueError, match=r"'train/cat/link\.png' is a link"):
        load(write_zip(tmp_path / "x.zip", [*good().items(), (info, b"/etc/passwd")]))


@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")  # zipfile's, as it is written
def test_a_name_that_occurs_twice_is_refused(tmp_path):
    files = [*good().items(), ("train/cat/00.png", png(1))]
    with pytest.raises(ValueError, match=r"'train/cat/00.png' occurs twice"):
        load(write_zip(tmp_path / "x.zip", files))


def test_a_damaged_member_is_refused(tmp_path):
    path = tmp_path / "x.zip"
    files = good()
    write_zip(path, files)
    content = bytearray(path.read_bytes())
    content[content.index(b"test/dog/07.png") + 40] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"test/dog/07.png cannot be read"):
        load(f"folder:{path}")


def test_no_zip_and_nothing_there(tmp_path):
    (tmp_path / "x.zip").write_bytes(b"PK but no zip")
    with pytest.raises(ValueError, match=r"x.zip is neither a folder nor a zip"):
        load(f"folder:{tmp_path}/x.zip")
    with pytest.raises(FileNotFoundError, match="there is no image folder or zip at"):
        load(f"folder:{tmp_path}/y.zip")
