"""A comparison as a user types it."""

import os
import pathlib
import subprocess
import sys

import pytest

from kdjax.evaluation import read_records

ROOT = pathlib.Path(__file__).parents[2]
OF_THREE = """
from configs.digits import compare_mst_distill

def get_config():
    config = compare_mst_distill.get_config()
    small = dict(cotraining_steps=2, mask_steps=2)
    chosen = {name: config.arms[name].to_dict() for name in ("labels", "mst")}
    config.arms = {name: {**arm, **small} for name, arm in chosen.items()}
    config.teacher.training.steps, config.student.training.steps = 2, 4
    config.validate_every, config.seeds = 2, 2
    return config
"""


def compare(arguments):
    done = subprocess.run(
        [sys.executable, "-m", "experiments.compare", *arguments],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr


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
    compare(arguments)
    records = read_records(tmp_path / "r")
    assert len(records) == 12
    assert {r.seed for r in records} == {0, 1}
    assert "listmle" in (tmp_path / "r" / "table.md").read_text()
    for name in ("accuracy.png", "curves.png"):
        assert (tmp_path / "r" / name).read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow  # a process that compiles eight stages
def test_methods_of_three_networks_and_several_stages_are_compared_on_data_of_each_seed(tmp_path):
    (tmp_path / "config.py").write_text(OF_THREE)
    compare((f"--config={tmp_path}/config.py", f"--workdir={tmp_path}/w"))
    records = read_records(tmp_path / "w/results")
    assert [(r.method, r.seed) for r in records] == [
        (name, seed) for name in ("labels", "mst") for seed in (0, 1)
    ]
    for record in records:
        learned = ["cotraining", "distill", *(["masks"] if record.method == "mst" else [])]
        assert list(record.curves) == [f"{record.method}/{stage}" for stage in learned]
        for stage, length in (("cotraining", 1), ("distill", 2)):
            steps, _ = record.curves[f"{record.method}/{stage}"]["validation/accuracy"]
            assert len(steps) == length
    assert (tmp_path / "w/results/curves.png").read_bytes().startswith(b"\x89PNG")
