"""Halves of images: of one picture, with one noise, in splits that can be dealt anew."""

import numpy as np
import pytest

from kdjax import data
from kdjax.data import Dataset
from kdjax.data.halves import halves


def test_the_halves_are_those_of_the_image():
    for records in halves("digits", noise=0.3).splits.values():
        arrays = records.arrays()
        both = np.concatenate([arrays["left"], arrays["right"]], 2)
        np.testing.assert_array_equal(both, arrays["image"])
        assert arrays["left"].shape[1:] == (8, 4, 1)


def test_without_noise_they_are_the_images_in_the_unit_interval():
    found, whole = data.load("halves:digits"), data.load("digits")
    assert found.class_names == whole.class_names
    for split, records in found.splits.items():
        expected = whole.splits[split].arrays()
        np.testing.assert_allclose(records.arrays()["image"], expected["image"] / 255, rtol=1e-6)
        np.testing.assert_array_equal(records.labels(), expected["label"])


def test_the_noise_has_its_deviation_and_comes_from_the_seed():
    plain, first, again, other = (
        halves("digits", noise=noise, seed=seed).splits["train"].arrays()["image"]
        for noise, seed in ((0.0, 0), (0.2, 0), (0.2, 0), (0.2, 1))
    )
    np.testing.assert_allclose([(first - plain).std(), (other - plain).std()], 0.2, rtol=0.02)
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_splits_are_dealt_anew_and_share_no_example():
    found, other = (halves("digits", sizes=(300, 200), seed=seed) for seed in (0, 1))
    assert [len(x) for x in found.splits.values()] == [300, 200, 1297]
    whole = data.load("digits").splits.values()
    label = np.concatenate([x.labels() for x in whole])
    counts = [np.bincount(x.labels(), minlength=10) for x in found.splits.values()]
    np.testing.assert_array_equal(sum(counts), np.bincount(label))
    assert max(counts[0]) - min(counts[0]) <= 2  # classes in proportion
    images = np.concatenate([x.arrays()["image"] for x in found.splits.values()])
    everything = np.concatenate([x.arrays()["image"] for x in whole]) / np.float32(255)
    np.testing.assert_array_equal(
        np.unique(images.reshape(1797, -1), axis=0, return_counts=True)[1],
        np.unique(everything.reshape(1797, -1), axis=0, return_counts=True)[1],
    )
    assert (found.splits["train"].labels() != other.splits["train"].labels()).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(noise=-0.1), "noise must be finite and >= 0, got -0.1"),
        (dict(noise=float("nan")), "noise must be finite and >= 0, got nan"),
        (dict(sizes=(300,)), "sizes must be two numbers"),
        (dict(sizes=(300, 0)), r"at least 1 and together below the 1797 examples, got \(300, 0\)"),
        (dict(sizes=(1000, 797)), "together below the 1797"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        data.load("halves:digits", **options)


@pytest.mark.parametrize("shape", [(6,), (4, 1, 1)])
def test_what_cannot_be_halved_is_refused(shape, monkeypatch):
    vectors = Dataset.of((np.zeros((30, *shape), np.float32), np.arange(30) % 3))
    monkeypatch.setattr("kdjax.data.registry.load", lambda name: vectors)
    with pytest.raises(ValueError, match=r"images must be \[height, width >= 2, channels\]"):
        halves("vectors")
