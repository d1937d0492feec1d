"""Arrays and tables in local files: what is read, and what is refused."""

import gzip
import json

import numpy as np
import pytest

from kdjax.data import load

X = np.arange(40 * 3 * 4, dtype=np.uint8).reshape(40, 3, 4)
Y = np.arange(40) % 4


def write(path, **arrays):
    np.savez(path, **arrays)
    return f"npz:{path}"


def test_grey_images_of_an_npz_get_a_channel_and_stay_bytes(tmp_path):
    data = load(write(tmp_path / "a.npz", images=X, labels=Y, test_images=X[:8], test_labels=Y[:8]))
    arrays = data.splits["test"].arrays()
    assert arrays["image"].shape == (8, 3, 4, 1)
    assert arrays["image"].dtype == np.uint8
    assert arrays["label"].tolist() == Y[:8].tolist()


def test_fields_say_what_the_arrays_of_an_npz_are_called(tmp_path):
    place = write(tmp_path / "a.npz", pixels=X, digits=Y)
    data = load(place, fields={"images": "pixels", "labels": "digits"})
    assert [len(x) for x in data.splits.values()] == [32, 4, 4]
    assert data.class_names == ("0", "1", "2", "3")


def nan(example):
    x = X.astype(np.float32)
    x[example, 1, 1] = np.nan
    return x


REFUSED_ARRAYS = {
    "nan": (dict(x=nan(7), y=Y), r"a.npz/train, example 7: not a finite number"),
    "nan in test": (
        dict(x=X, y=Y, test_x=nan(2), test_y=Y),
        r"a.npz/test, example 2: not a finite number",
    ),
    "objects": (dict(x=X, y=np.array([None] * 40)), r"a.npz cannot be used: .*allow_pickle"),
    "lengths": (dict(x=X, y=Y[:39]), r"a.npz/train: images \[40, 3, 4\] and labels \[39\]"),
    "empty": (dict(x=X[:0], y=Y[:0]), r"a.npz/train is empty"),
    "float labels": (dict(x=X, y=Y / 2), r"a.npz/train: labels must be integers"),
    "integer images": (dict(x=X.astype(int), y=Y), r"a.npz/train: images must be uint8 or floats"),
    "negative label": (dict(x=X, y=Y - 1), r"a.npz/train, example 0: label -1 is outside the 3"),
    "empty class": (dict(x=X, y=np.where(Y == 1, 0, Y)), r"a.npz/train has none of class '1'"),
    "class only in test": (
        dict(x=X, y=Y, test_x=X, test_y=Y + 1),
        r"a.npz/train has none of class '4'",
    ),
    "one class": (dict(x=X, y=Y * 0), r"a.npz/train has one class"),
    "names": (dict(pixels=X, y=Y), r"a.npz cannot be used: .*it holds \['pixels', 'y'\]"),
}


@pytest.mark.parametrize("case", REFUSED_ARRAYS)
def test_arrays_that_cannot_be_used_are_refused(case, tmp_path):
    arrays, message = REFUSED_ARRAYS[case]
    with pytest.raises(ValueError, match=message) as error:
        load(write(tmp_path / "a.npz", **arrays))
    assert "\n" not in str(error.value)


def test_a_file_that_is_no_npz_and_a_field_that_is_not_there(tmp_path):
    (tmp_path / "a.npz").write_bytes(b"PK\x03\x04 and then nothing")
    with pytest.raises(ValueError, match=r"a.npz cannot be used: "):
        load(f"npz:{tmp_path}/a.npz")
    with (tmp_path / "one.npz").open("wb") as file:
        np.save(file, X)
    with pytest.raises(ValueError, match=r"one.npz cannot be used: it is one array"):
        load(f"npz:{tmp_path}/one.npz")
    place = write(tmp_path / "b.npz", x=X, y=Y)
    with pytest.raises(ValueError, match=r"b.npz cannot be used: there is no 'z', it holds"):
        load(place, fields={"images": "z"})
    with pytest.raises(FileNotFoundError, match="there is no file"):
        load(f"npz:{tmp_path}/c.npz")


ROWS = [{"u": i, "v": 2 * i, "kind": "ab"[i % 2], "part": "train"} for i in range(30)]
ROWS += [{**row, "part": "test"} for row in ROWS[:6]]


def lines(rows):
    return "\n".join(json.dumps(row) for row in rows)


@pytest.mark.parametrize("zipped", [False, True])
def test_json_lines_with_their_columns_named(zipped, tmp_path):
    text = lines(ROWS).encode()
    path = tmp_path / ("a.jsonl.gz" if zipped else "a.jsonl")
    path.write_bytes(gzip.compress(text) if zipped else text)
    data = load(f"jsonl:{path}", input=("v", "u"), label="kind", split="part")
    assert data.class_names == ("a", "b")
    assert [len(x) for x in data.splits.values()] == [27, 3, 6]
    assert data.splits["test"].arrays()["input"].tolist()[:2] == [[0, 0], [2, 1]]
    assert data.splits["test"].arrays()["label"].tolist() == [0, 1] * 3


def test_classes_that_are_numbers_are_ordered_as_numbers(tmp_path):
    (tmp_path / "a.csv").write_text(
        "u,label\n" + "\n".join(f"{i},{[10, 9, 2][i % 3]}" for i in range(30))
    )
    data = load(f"csv:{tmp_path}/a.csv")
    assert data.class_names == ("2", "9", "10")


REFUSED_ROWS = {
    "no rows": ("a.csv", "u,label\n", "a.csv has no rows"),
    "value": ("a.csv", "u,label\n1,0\nsix,1\n", "a.csv, row 2: u='six' is not a number"),
    "nan": ("a.csv", "u,label\n1,0\nnan,1\n", "a.csv, row 2: u='nan' is not a finite number"),
    "inf": ("a.jsonl", '{"u": Infinity, "label": 0}', "a.jsonl, row 1: u=inf is not a finite"),
    "too long": ("a.csv", "u,label\n1,0\n1,0,3\n", "a.csv, line 3: more values than the header"),
    "too short": ("a.csv", "u,label\n1\n", "a.csv, row 1: no 'label'"),
    "no label": ("a.jsonl", '{"u": 1}', "a.jsonl, row 1: no 'label'; it has"),
    "no object": ("a.jsonl", "[1, 2]", "a.jsonl, line 1: no JSON object"),
    "no JSON": ("a.jsonl", '{"u": 1, "label": 0}\n{"u"', "a.jsonl, line 2: no JSON"),
    "split": ("a.csv", "u,label,split\n1,0,dev\n", "a.csv, row 1: split='dev' is none of"),
    "no train": ("a.csv", "u,label,split\n1,0,test\n", "a.csv has no rows of the train split"),
    "class only in test": (
        "a.csv",
        "u,label,split\n" + "1,0,train\n1,1,train\n" * 20 + "1,2,test\n",
        "a.csv/train has none of class '2'",
    ),
    "too few": ("a.csv", "u,label\n1,0\n1,1\n", "a.csv/train has 2 examples: too few to carve"),
    "no gzip": ("a.csv.gz", "u,label\n1,0\n", "a.csv.gz cannot be read"),
}


@pytest.mark.parametrize("case", REFUSED_ROWS)
def test_tables_that_cannot_be_used_are_refused(case, tmp_path):
    name, text, message = REFUSED_ROWS[case]
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        load(f"{name.split('.')[1]}:{tmp_path}/{name}")
    assert "\n" not in str(error.value)
