"""The prepared data of a builder: where it lies, and who writes it."""

import pathlib

import pytest

from kdjax import data
from kdjax.data.builders import packaged
from kdjax.data.builders.digits import Digits


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("KDJAX_DATA_DIR", str(tmp_path / "data"))
    return tmp_path / "data"


def test_data_lies_where_the_variable_says_and_loading_again_writes_nothing(place):
    data.load("digits")
    assert (place / "digits" / "1.0.0").is_dir()
    before = {path: path.stat().st_mtime_ns for path in sorted(place.rglob("*"))}
    data.load("digits")
    # The lock is not taken again either.
    assert before == {path: path.stat().st_mtime_ns for path in sorted(place.rglob("*"))}


def test_without_the_variable_data_lies_in_the_users_cache(monkeypatch):
    monkeypatch.setattr(pathlib.Path, "home", lambda: pathlib.Path("/home/someone"))
    for unset in (lambda: monkeypatch.delenv("KDJAX_DATA_DIR"), lambda: None):
        unset()
        assert packaged.data_dir() == pathlib.Path("/home/someone/.cache/kdjax/data")
        monkeypatch.setenv("KDJAX_DATA_DIR", "")


@pytest.mark.usefixtures("place")
def test_data_that_another_process_finishes_meanwhile_is_found():
    def builder(**options):
        made = Digits(**options)
        if not made.data_path.exists():
            packaged.prepare(Digits)  # the other process
        return made

    prepared = packaged.prepare(builder)
    assert prepared.info.splits["train"].num_examples == 1257
    assert len(prepared.as_data_source(split="test")) == 360
