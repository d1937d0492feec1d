"""Rows that a file marks as test are never trained on."""

import numpy as np
import pytest

from kdjax import data


def test_marked_rows_are_the_test_split(tmp_path):
    x, y = np.arange(40, dtype=np.float32)[:, None], np.arange(40) % 2
    test = np.arange(40) % 5 == 0
    np.savez(tmp_path / "a.npz", x=x, y=y, test=test)
    found = data.load(f"npz:{tmp_path / 'a.npz'}")
    images = {s: set(split.arrays()["image"].ravel()) for s, split in found.splits.items()}
    assert images["test"] == set(x[test].ravel())
    assert images["train"] | images["validation"] == set(x[~test].ravel())


@pytest.mark.parametrize("marks", [np.arange(40), np.zeros(39, bool)])
def test_marks_that_fit_no_rows_are_refused(tmp_path, marks):
    np.savez(tmp_path / "a.npz", x=np.zeros((40, 1)), y=np.arange(40) % 2, test=marks)
    with pytest.raises(ValueError, match="'test' must be booleans"):
        data.load(f"npz:{tmp_path / 'a.npz'}")
