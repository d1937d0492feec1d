"""The packaged data sets, and what is refused."""

import gzip
import hashlib
import importlib.util
import io
import os
import pickle
import zipfile

import numpy as np
import pytest
from PIL import Image

from kdjax import data
from kdjax.data import files
from kdjax.data.builders import packaged
from kdjax.data.builders.animal_shapes import ArrayUnpickler, read_array
from kdjax.data.source import Split, carve, stratified

SIZES = {
    "mnist5k": (3500, 500, 1000),
    "animal_shapes": (7216, 1000, 1500),
    "digits": (1257, 180, 360),
}
DIGESTS = {
    "mnist5k": "c9ae2813722cbdd4",
    "animal_shapes": "9f7f0b2f9c3347b8",
    "digits": "3682d1217ebad9a4",
}


@pytest.mark.parametrize("name", SIZES)
def test_packaged_splits_are_fixed_stratified_and_disjoint(name):
    found = data.load(name)
    assert tuple(len(s) for s in found.splits.values()) == SIZES[name]
    digest, pixels = hashlib.sha256(), []
    for split in found.splits.values():
        arrays = split.arrays()
        assert arrays["image"].dtype == np.uint8
        shares = np.bincount(arrays["label"], minlength=10) / len(split)
        assert np.abs(shares - 0.1).max() < 0.02
        digest.update(arrays["image"].tobytes() + arrays["label"].astype(np.int64).tobytes())
        pixels.append(arrays["image"].reshape(len(split), -1))
    assert digest.hexdigest()[:16] == DIGESTS[name]
    if name == "animal_shapes":  # 284 exact duplicates are gone, so no image is in two splits
        whole = np.concatenate(pixels)
        assert len(np.unique(whole, axis=0)) == len(whole) == 9716


def test_a_prepared_data_set_is_only_read():
    builder = packaged.prepare(_digits())
    before = {p: p.stat().mtime for p in builder.data_path.iterdir()}
    packaged.prepare(_digits())
    assert before == {p: p.stat().mtime for p in builder.data_path.iterdir()}


def _digits():
    from kdjax.data.builders.digits import Digits

    return Digits


def test_a_missing_package_is_named_with_its_command(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"pip install mlxtend==0\.25\.0"):
        packaged.require("mlxtend", "mlxtend==0.25.0")


def test_the_unpickler_admits_arrays_only(tmp_path):
    class Attack:
        def __reduce__(self):
            return os.system, ("true",)

    with pytest.raises(pickle.UnpicklingError, match="refused to load"):
        ArrayUnpickler(io.BytesIO(pickle.dumps(Attack()))).load()
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(pickle.dumps(np.arange(6).reshape(2, 3))))
    np.testing.assert_array_equal(read_array(path), [[0, 1, 2], [3, 4, 5]])
    path.write_bytes(gzip.compress(pickle.dumps([1, 2])))
    with pytest.raises(ValueError, match="holds list"):
        read_array(path)


def test_subsets_are_stratified_and_nested_by_nothing_but_the_seed():
    train = data.load("digits").splits["train"]
    a, b, c = train.subset(100, seed=0), train.subset(100, seed=0), train.subset(100, seed=1)
    assert np.bincount(a.arrays()["label"]).tolist() == [10] * 10
    np.testing.assert_array_equal(a.arrays()["image"], b.arrays()["image"])
    assert (a.arrays()["image"] != c.arrays()["image"]).any()


def test_any_tfds_name_is_read_without_tensorflow():
    packaged.prepare(_digits())
    found = data.load(
        "tfds:digits",
        data_dir=os.environ["KDJAX_DATA_DIR"],
        splits=(("train", "train[:90%]"), ("test", "test")),
    )
    assert {s: len(x) for s, x in found.splits.items()} == {
        "train": 1018,
        "validation": 113,
        "test": 360,
    }


def _png(value=0, size=(4, 4), mode="RGB"):
    out = io.BytesIO()
    Image.new(mode, size, value).save(out, "png")
    return out.getvalue()


def _zip(path, entries):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return str(path)


def _good(classes=("cat", "dog"), splits=("train", "test"), n=10):
    return [
        (f"{s}/{c}/{i}.png", _png((i, k, 0)))
        for s in splits
        for k, c in enumerate(classes)
        for i in range(n)
    ]


def test_an_image_zip_becomes_splits_in_label_order(tmp_path):
    path = _zip(tmp_path / "a.zip", [*_good(), ("classes.json", '["dog", "cat"]')])
    found = data.load(f"folder:{path}")
    assert found.class_names == ("dog", "cat")
    assert {s: len(x) for s, x in found.splits.items()} == {
        "train": 18,
        "validation": 2,
        "test": 20,
    }
    test = found.splits["test"].arrays()
    np.testing.assert_array_equal(test["image"][:, 0, 0, 1], 1 - test["label"])
    np.testing.assert_array_equal(found.splits["test"][3]["image"], test["image"][3])
    seen = [x.arrays()["image"][:, 0, 0, :2] for x in list(found.splits.values())[:2]]
    assert len(np.unique(np.concatenate(seen), axis=0)) == 20


def test_a_folder_without_splits_is_carved(tmp_path):
    for c in ("a", "b"):
        (tmp_path / "set" / c).mkdir(parents=True)
        for i in range(20):
            (tmp_path / "set" / c / f"{i}.png").write_bytes(_png(i, mode="L"))
    found = data.load(f"folder:{tmp_path / 'set'}")
    assert {s: len(x) for s, x in found.splits.items()} == {
        "train": 32,
        "validation": 4,
        "test": 4,
    }
    assert found.splits["train"].arrays()["image"].shape == (32, 4, 4, 1)


BAD_ARCHIVES = {
    "broken image": (
        [*_good(), ("train/cat/x.png", b"no image")],
        r"train/cat/x\.png is a broken image",
    ),
    "empty class": ([*_good(), ("train/emu/", b"")], "train/emu/ is empty"),
    "escape": ([*_good(), ("../evil.png", _png())], r"'\.\./evil\.png' leads out"),
    "absolute": ([*_good(), ("/etc/x.png", _png())], "leads out"),
    "sizes": ([*_good(), ("train/cat/big.png", _png(size=(5, 4)))], r"big\.png is 5x4"),
    "class only in test": ([*_good(), ("test/emu/1.png", _png())], "'emu' is in test"),
    "one class": (_good(classes=("cat",)), "at least two"),
    "no images": ([("train/cat/x.txt", b"")], "holds no images"),
    "no train": (_good(splits=("test",)), "no train split"),
    "missing of classes.json": ([*_good(), ("classes.json", '["cat","dog","emu"]')], "'emu'"),
}


@pytest.mark.parametrize("case", BAD_ARCHIVES)
def test_a_bad_archive_is_refused_by_name(case, tmp_path):
    entries, message = BAD_ARCHIVES[case]
    path = _zip(tmp_path / "a.zip", entries)

    def read():
        for split in data.load(f"folder:{path}").splits.values():
            split.arrays()

    with pytest.raises(ValueError, match=message):
        read()


def test_a_name_that_occurs_twice_and_no_zip_are_refused(tmp_path):
    with pytest.warns(UserWarning, match="Duplicate"):
        path = _zip(tmp_path / "a.zip", [*_good(), ("train/cat/1.png", _png())])
    with pytest.raises(ValueError, match="occurs twice"):
        files.image_folder(path)
    (tmp_path / "b.zip").write_bytes(b"no zip")
    with pytest.raises(ValueError, match="neither a folder nor a zip"):
        files.image_folder(str(tmp_path / "b.zip"))
    with pytest.raises(FileNotFoundError, match="there is no"):
        files.image_folder(str(tmp_path / "c.zip"))


def test_npz_arrays(tmp_path):
    x, y = np.random.default_rng(0).random((40, 5), np.float32), np.arange(40) % 4
    np.savez(tmp_path / "a.npz", x_train=x, y_train=y, test_images=x[:8], test_labels=y[:8])
    found = data.load(f"npz:{tmp_path / 'a.npz'}")
    assert {s: len(v) for s, v in found.splits.items()} == {
        "train": 36,
        "validation": 4,
        "test": 8,
    }
    x[7, 2] = np.nan
    np.savez(tmp_path / "b.npz", x=x, y=y)
    with pytest.raises(ValueError, match="example 7: not a finite"):
        data.load(f"npz:{tmp_path / 'b.npz'}")
    np.savez(tmp_path / "c.npz", pixels=x)
    with pytest.raises(ValueError, match=r"holds \['pixels'\]"):
        data.load(f"npz:{tmp_path / 'c.npz'}")


def test_tables(tmp_path):
    lines = [f"{i},{i * 2},{'ab'[i % 2]},{'test' if i > 29 else 'train'}" for i in range(40)]
    text = "\n".join(["u,v,label,split", *lines])
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(text.encode()))
    found = data.load(f"csv:{tmp_path / 'a.csv.gz'}")
    assert found.class_names == ("a", "b")
    test = found.splits["test"].arrays()
    np.testing.assert_array_equal(test["input"][0], [30, 60])
    (tmp_path / "b.csv").write_text(text.replace("3,6,", "3,six,"))
    with pytest.raises(ValueError, match=r"row 4: v='six' is not a number"):
        data.load(f"csv:{tmp_path / 'b.csv'}")
    (tmp_path / "c.jsonl").write_text('{"u": 1, "label": 0}\n{"u": 1,\n')
    with pytest.raises(ValueError, match="line 2: no JSON"):
        data.load(f"jsonl:{tmp_path / 'c.jsonl'}")


REFUSED = {
    "unknown": (lambda: data.load("mnist5"), "did you mean 'mnist5k'"),
    "unknown kind": (lambda: data.load("foo:bar"), "must begin with one of"),
    "empty": (lambda: Split([], "x/train"), "x/train is empty"),
    "lengths": (lambda: Split.of({"a": np.zeros(2), "b": np.zeros(3)}, "x"), "differ in length"),
    "label": (
        lambda: data.Dataset.of((np.zeros((30, 2)), np.arange(30) % 4), class_names=("a", "b")),
        "outside the 2 classes",
    ),
    "negative label": (
        lambda: data.Dataset.of((np.zeros((30, 2)), np.arange(30) - 1)),
        "label -1 is outside",
    ),
    "labels": (lambda: data.Dataset.of((np.zeros((3, 2)), np.zeros(3))), "must be integers"),
    "few": (lambda: carve({"train": Split.of({"label": np.zeros(5)}, "x/train")}, "x"), "too few"),
    "subset": (lambda: stratified(np.zeros(5), (6,), 0), "6 examples were asked for"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_data_is_refused(case):
    make, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        make()
