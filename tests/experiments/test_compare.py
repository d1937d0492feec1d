"""A comparison as a user types it."""

import os
import pathlib
import subprocess
import sys

from kdjax.evaluation import read_records

ROOT = pathlib.Path(__file__).parents[2]


def test_a_comparison_writes_records_table_and_plots(tmp_path):
    arguments = (
        "--config=configs/digits/compare_plackett_luce.py",
        f"--workdir={tmp_path / 'w'}",
        f"--results={tmp_path / 'r'}",
        "--config.seeds=2",
        "--config.teacher.training.steps=40",
        "--config.student.training.steps=40",
        "--config.validate_every=20",
    )
    done = subprocess.run(
        [sys.executable, "-m", "experiments.compare", *arguments],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    records = read_records(tmp_path / "r")
    assert len(records) == 12
    assert {r.seed for r in records} == {0, 1}
    assert "listmle" in (tmp_path / "r" / "table.md").read_text()
    for name in ("accuracy.png", "curves.png"):
        assert (tmp_path / "r" / name).read_bytes().startswith(b"\x89PNG")
