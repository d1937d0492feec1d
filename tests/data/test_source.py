"""Splits and data sets of arrays: what is carved, what is kept, what is refused."""

import numpy as np
import pytest

from kdjax import data
from kdjax.data.source import Split, carve, stratified


def rows(size, classes=4):
    return Split.of({"x": np.arange(size), "label": np.arange(size) % classes}, "toy/train")


@pytest.mark.parametrize("seed", [0, 1])
def test_parts_are_disjoint_whole_and_in_proportion_where_classes_are_uneven(seed):
    labels = np.repeat([0, 1, 2], [600, 300, 100])
    parts = stratified(labels, (100, 50), seed)
    assert [len(part) for part in parts] == [100, 50, 850]
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(1000))
    for part in parts:
        share = np.bincount(labels[part], minlength=3) - len(part) * np.array([0.6, 0.3, 0.1])
        assert np.abs(share).max() <= 1.5


def test_what_is_carved_is_disjoint_and_always_the_same():
    first, again = carve({"train": rows(80)}, "toy"), carve({"train": rows(80)}, "toy")
    assert {s: len(x) for s, x in first.items()} == {"train": 64, "validation": 8, "test": 8}
    found = np.concatenate([x.arrays()["x"] for x in first.values()])
    np.testing.assert_array_equal(np.sort(found), np.arange(80))
    np.testing.assert_array_equal(found, np.concatenate([x.arrays()["x"] for x in again.values()]))


def test_a_split_that_is_given_is_not_touched():
    test = rows(12)
    found = carve({"train": rows(80), "test": test}, "toy")
    assert found["test"] is test
    assert [len(x) for x in found.values()] == [72, 8, 12]


def test_a_subset_of_everything_is_everything():
    assert rows(20).subset(20, seed=3).arrays()["x"].tolist() == list(range(20))


def test_records_of_several_blocks_are_labelled_in_their_order():
    labels = np.arange(2500) % 7
    read = Split([{"label": label} for label in labels], "toy")
    np.testing.assert_array_equal(read.labels(), labels)
    np.testing.assert_array_equal(read.take(np.array([9, 3])).arrays()["label"], labels[[9, 3]])


REFUSED = {
    "high label": (lambda: rows(8).check_labels(3), "toy/train, example 3: label 3 is outside"),
    "nan": (
        lambda: data.Dataset.of((np.where(np.arange(40)[:, None] == 7, np.nan, 1.0), rows40())),
        "arrays/train, example 7: not a finite number",
    ),
    "kind": (
        lambda: data.Dataset.of((np.zeros((40, 2, 2, 1), np.int64), rows40())),
        "arrays/train: images must be uint8 or floats, got int64",
    ),
    "lengths": (
        lambda: data.Dataset.of((np.zeros((39, 2)), rows40())),
        "arrays/train: fields differ in length: {'image': 39, 'label': 40}",
    ),
    "few": (lambda: carve({"train": rows(9)}, "toy"), "toy/train has 9 examples: too few"),
    "class": (
        lambda: carve({"train": rows(10, classes=10)}, "toy"),
        "toy/train has too few of class",
    ),
    "shapes": (
        lambda: Split([{"x": np.zeros(2)}, {"x": np.zeros(3)}], "toy").arrays(),
        r"toy: x of example 0 is \[2\], of example 1 \[3\]",
    ),
}


def rows40():
    return np.arange(40) % 4


@pytest.mark.parametrize("case", REFUSED)
def test_arrays_that_cannot_be_used_are_refused(case):
    make, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        make()


def test_a_long_tail_falls_off_exponentially_and_loses_no_class():
    labels = np.arange(1000) % 10
    whole = Split.of({"label": labels, "row": np.arange(1000)}, "tiny")
    part = whole.long_tailed(50, seed=0)
    expected = np.floor(100 * 50.0 ** (-np.arange(10) / 9))
    assert np.bincount(part.labels()).tolist() == expected.tolist()
    assert (labels[part.arrays()["row"]] == part.labels()).all()
    rows = [set(whole.long_tailed(50, seed).arrays()["row"]) for seed in (0, 0, 1)]
    assert rows[0] == rows[1] != rows[2]
    assert np.bincount(whole.long_tailed(1e6, seed=0).labels()).min() == 1
    with pytest.raises(ValueError, match=r"imbalance must be at least 1, got 0\.5"):
        whole.long_tailed(0.5, seed=0)
