"""The main command, as a user starts it: in a process of its own, six times."""

import functools
import json
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import pytest

from kdjax import networks
from kdjax.training import CheckpointError, load_variables, read_metrics

ROOT = pathlib.Path(__file__).parents[2]
SMALL = (
    "--config=configs/mnist/plackett_luce.py",
    "--config.data.name=digits",
    "--config.teacher.network.name=mlp",
    "--config.teacher.training.steps=40",
    "--config.student.training.steps=30",
    "--config.validate_every=10",
    "--config.log_every=10",
)


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """`(workdir, *flags) -> (exit status, stdout, stderr)` of a small run; programs are shared."""
    cache = tmp_path_factory.mktemp("cache")
    return functools.partial(_start, f"--compilation_cache={cache}")


def _start(cache, workdir, *more):
    done = subprocess.run(
        [sys.executable, "-m", "experiments.run", f"--workdir={workdir}", cache, *SMALL, *more],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    return done.returncode, done.stdout, done.stderr


def files(folder):
    """Every file below a folder but the lock: when it was written and what it holds."""
    found = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != ".lock")
    return {str(p.relative_to(folder)): (p.stat().st_mtime_ns, p.read_bytes()) for p in found}


def table(stdout):
    """The lines from the table's head on."""
    lines = [line for line in stdout.splitlines() if line and not line.startswith("report:")]
    return lines[next(i for i, line in enumerate(lines) if line.startswith("model")) :]


@pytest.fixture(scope="module")
def finished(start, tmp_path_factory):
    """A finished run: `(workdir, stdout)`."""
    workdir = tmp_path_factory.mktemp("run") / "pl"
    status, stdout, stderr = start(workdir)
    assert status == 0, stderr
    return workdir, stdout


@pytest.fixture(scope="module")
def teacher():
    """The shapes of the teacher's variables."""
    network = networks.build("mlp", 10)
    return jax.eval_shape(lambda: network.init(jax.random.key(0), jax.numpy.zeros((1, 8, 8, 1))))


@pytest.fixture(scope="module")
def refused(start):
    """`(workdir, *flags) -> line`: what a run that is refused says, nothing but that line."""

    def say(workdir, *more):
        status, stdout, stderr = start(workdir, *more)
        assert (status, stdout) == (2, ""), stderr
        (line,) = stderr.strip().splitlines()
        assert line.startswith("error: ")
        return line

    return say


def test_a_run_prints_its_table_and_leaves_report_metrics_and_weights(finished):
    workdir, stdout = finished
    for model in ("teacher", "student alone", "distilled student"):
        assert any(model in line for line in table(stdout)), stdout
    assert f"report: {workdir}/report.html" in stdout
    page = (workdir / "report.html").read_text()
    assert "plackett_luce on digits" in page
    assert "distilled student" in page
    rows = read_metrics(workdir)
    assert {row["stage"] for row in rows} == {"teacher", "supervised", "distill"}
    steps = {
        s: max(row["step"] for row in rows if row["stage"] == s) for s in ("teacher", "distill")
    }
    assert steps == {"teacher": 40, "distill": 30}
    config = json.loads((workdir / "config.json").read_text())
    assert config["method"] == {"name": "plackett_luce", "temperature": 1.0, "weighting": "teacher"}
    assert {p.name for p in (workdir / "weights").iterdir() if p.is_dir()} == {
        "teacher",
        "student_alone",
        "distilled_student",
    }


def test_started_again_nothing_is_computed_and_the_table_is_the_same(start, finished):
    workdir, stdout = finished
    kept = ("journal", "weights")
    before = {name: files(workdir / name) for name in kept}
    metrics = (workdir / "metrics.jsonl").read_bytes()
    status, again, stderr = start(workdir)
    assert status == 0, stderr
    assert table(again) == table(stdout)
    assert before == {name: files(workdir / name) for name in kept}
    assert (workdir / "metrics.jsonl").read_bytes() == metrics


def test_a_workdir_of_another_config_is_refused(refused, finished):
    workdir, _ = finished
    before = files(workdir)
    line = refused(workdir, "--config.method.temperature=2.0")
    assert "method.temperature: 1.0 -> 2.0" in line
    assert files(workdir) == before


def test_a_misspelt_flag_is_refused_with_the_nearest_name(refused, tmp_path):
    line = refused(tmp_path / "run", "--config.method.temprature=2")
    assert "temprature" in line
    assert "Did you mean" in line or "did you mean" in line
    assert "temperature" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_given_teacher_is_not_trained(start, finished, tmp_path):
    workdir, stdout = finished
    weights = workdir / "weights" / "teacher"
    status, again, stderr = start(tmp_path, f"--config.teacher.checkpoint={weights}")
    assert status == 0, stderr
    assert {row["stage"] for row in read_metrics(tmp_path)} == {"supervised", "distill"}
    assert table(again) == table(stdout)  # the same teacher, the same students


def test_weights_of_another_network_are_refused(refused, finished, tmp_path, teacher):
    weights = finished[0] / "weights" / "student_alone"
    line = refused(tmp_path / "run", f"--config.teacher.checkpoint={weights}")
    assert f"weights {weights} are not those of this network" in line
    assert "missing: " in line
    assert "params/dense1/kernel" in line
    assert "of another shape: " in line
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match=r"of another shape: .*params/dense0/kernel"):
        load_variables(weights, teacher)


def test_weights_that_were_cut_short_are_refused(finished, tmp_path, teacher):
    source = finished[0] / "weights"
    shutil.copytree(source / "teacher", tmp_path / "teacher")
    shutil.copy(source / "teacher.json", tmp_path / "teacher.json")
    load_variables(tmp_path / "teacher", teacher)
    largest = max(
        (p for p in (tmp_path / "teacher").rglob("*") if p.is_file()),
        key=lambda p: p.stat().st_size,
    )
    os.truncate(largest, largest.stat().st_size // 2)
    with pytest.raises(CheckpointError, match=f"{largest.name} is damaged"):
        load_variables(tmp_path / "teacher", teacher)
