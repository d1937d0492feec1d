"""Records: a round trip, the same bytes, whole or not at all, and refusals by name."""

import dataclasses
import json
import os

import numpy as np
import pytest

from kdjax import evaluation

RECORD = evaluation.Record(
    method="kd",
    task="digits",
    seed=3,
    config={"method": {"name": "kd", "temperature": 4.0}, "sizes": [8, 8]},
    metrics={"last": {"accuracy": 0.9}, "selected": {"accuracy": 0.925}},
    curves={"distill": {"train/loss": (np.array([10, 20]), np.array([0.5, np.nan]))}},
    commit=None,
    versions={"jax": "0.10.2", "dirty": None},
    seconds=1.5,
)


def test_a_record_comes_back_as_it_was_written(tmp_path):
    path = evaluation.write_record(tmp_path / "new" / "kd_3.json", RECORD)
    back = evaluation.read_records(path.parent)
    assert len(back) == 1
    for field in dataclasses.fields(RECORD):
        if field.name != "curves":
            assert getattr(back[0], field.name) == getattr(RECORD, field.name), field.name
    steps, values = back[0].curves["distill"]["train/loss"]
    np.testing.assert_array_equal(steps, [10, 20])
    np.testing.assert_array_equal(values, [0.5, np.nan])


def test_the_same_record_has_the_same_bytes_whatever_the_order_of_its_keys(tmp_path):
    config = dict(reversed(RECORD.config.items()))
    first = evaluation.write_record(tmp_path / "a.json", RECORD).read_bytes()
    other = dataclasses.replace(RECORD, config=config)
    assert evaluation.write_record(tmp_path / "b.json", other).read_bytes() == first
    assert b"NaN" not in first


def test_curves_of_several_seeds_come_back(tmp_path):
    curves = {"distill": {"train/loss": (np.array([1, 2]), np.array([[0.1, 0.2], [0.3, np.inf]]))}}
    record = dataclasses.replace(RECORD, curves=curves)
    back = evaluation.read_record(evaluation.write_record(tmp_path / "a.json", record))
    np.testing.assert_array_equal(
        back.curves["distill"]["train/loss"][1], [[0.1, 0.2], [0.3, np.nan]]
    )


def test_a_write_that_fails_leaves_the_old_record_and_nothing_else(tmp_path, monkeypatch):
    path = evaluation.write_record(tmp_path / "a.json", RECORD)
    before = path.read_bytes()

    def full(file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        evaluation.write_record(path, dataclasses.replace(RECORD, seed=4))
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"metrics": {"last": {"accuracy": np.nan}, "selected": {}}},
            r"metrics\['last'\]\['accuracy'\] must be finite, got nan",
        ),
        ({"metrics": {"best test": {}}}, "metrics must be 'last' and 'selected'"),
        ({"seed": "3"}, "seed has the wrong type str"),
        ({"config": {"lr": float("inf")}}, "the record of 'kd' is not JSON"),
        ({"config": {"f": print}}, "the record of 'kd' is not JSON"),
    ],
)
def test_a_record_that_cannot_be_published_is_refused(change, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        evaluation.write_record(tmp_path / "a.json", dataclasses.replace(RECORD, **change))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "[]",
        lambda text: json.dumps({k: v for k, v in json.loads(text).items() if k != "seed"}),
        lambda text: json.dumps({**json.loads(text), "extra": 1}),
        lambda text: json.dumps({**json.loads(text), "curves": {"distill": {"loss": [1, 2]}}}),
        lambda text: json.dumps({**json.loads(text), "metrics": {"last": 1, "selected": {}}}),
    ],
    ids=["cut", "list", "missing", "extra", "curves", "metrics"],
)
def test_a_malformed_record_is_refused_by_its_name(damage, tmp_path):
    path = evaluation.write_record(tmp_path / "kd_3.json", RECORD)
    path.write_text(damage(path.read_text()))
    with pytest.raises(ValueError, match=r"kd_3\.json is not a record"):
        evaluation.read_records(tmp_path)


def test_records_become_arms_with_their_seeds_in_order():
    def record(method, seed, value):
        metrics = {"last": {"accuracy": 0.0}, "selected": {"accuracy": value}}
        return dataclasses.replace(RECORD, method=method, seed=seed, metrics=metrics)

    runs = [record("kd", 1, 0.2), record("kd", 0, 0.1), record("pl", 0, 0.3), record("pl", 1, 0.4)]
    assert evaluation.arms(runs) == {"kd": {"accuracy": [0.1, 0.2]}, "pl": {"accuracy": [0.3, 0.4]}}
    assert evaluation.arms(runs, "last")["pl"] == {"accuracy": [0.0, 0.0]}
    with pytest.raises(ValueError, match=r"method 'pl' has seeds \[0\], others \[0, 1\]"):
        evaluation.arms(runs[:3])
    with pytest.raises(ValueError, match="two records of seed 1"):
        evaluation.arms([*runs, runs[0]])
    with pytest.raises(ValueError, match="must be of one task"):
        evaluation.arms([*runs, dataclasses.replace(runs[0], task="mnist5k")])
    with pytest.raises(ValueError, match="'last' or 'selected', got 'best'"):
        evaluation.arms(runs, "best")


def test_a_folder_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder of records"):
        evaluation.read_records(tmp_path / "nowhere")


def test_curves_group_rows_by_stage_kind_and_metric():
    rows = [
        {"stage": "teacher", "step": 1, "kind": "train", "loss": 2.0},
        {"stage": "distill", "step": 1, "kind": "train", "loss": [1.0, 3.0]},
        {"stage": "distill", "step": 2, "kind": "train", "loss": [0.5, None]},
        {"stage": "distill", "step": 2, "kind": "validation", "accuracy": 0.7},
    ]
    found = evaluation.curves(rows)
    assert list(found) == ["teacher", "distill"]
    np.testing.assert_array_equal(found["distill"]["train/loss"][0], [1, 2])
    np.testing.assert_array_equal(found["distill"]["train/loss"][1], [[1.0, 3.0], [0.5, np.nan]])
    np.testing.assert_array_equal(found["distill"]["validation/accuracy"][1], [0.7])
