"""Arms that differ in traced fields train together, and leave the records of arms one by one."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from kdjax.evaluation import read_records

ROOT = pathlib.Path(__file__).parents[2]


def compare(folder, *arguments):
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "experiments.compare",
            "--config=configs/digits/sweep_temperature.py",
            f"--workdir={folder}",
            "--config.seeds=2",
            "--config.teacher.training.steps=60",
            "--config.student.training.steps=60",
            "--config.validate_every=30",
            *arguments,
        ],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    return {(r.method, r.seed): r for r in read_records(folder / "results")}


@pytest.mark.slow
def test_arms_that_train_together_leave_the_records_of_arms_one_by_one(tmp_path):
    together = compare(tmp_path / "together")
    stages = {path.name for path in (tmp_path / "together" / "journal").glob("*.json")}
    assert [name for name in stages if "distill" in name] == ["0003-T1-lr1e-2+9_distill.json"]
    apart = compare(tmp_path / "apart", "--config.vmap=False")
    assert together.keys() == apart.keys()
    assert len(together) == 20
    for key, record in together.items():
        for which, metrics in apart[key].metrics.items():
            assert record.metrics[which].keys() == metrics.keys()
            np.testing.assert_allclose(record.metrics[which]["accuracy"], metrics["accuracy"])
        (stage,) = apart[key].curves
        assert list(record.curves) == [stage] == [f"{key[0]}/distill"]
        for metric, (steps, values) in apart[key].curves[stage].items():
            found = record.curves[stage][metric]
            np.testing.assert_array_equal(found[0], steps)
            np.testing.assert_allclose(found[1], values, rtol=1e-3, atol=1e-4, err_msg=metric)
