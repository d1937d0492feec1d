"""The commands as a user types them: a run, its second start, its mistakes; a comparison."""

import importlib
import json
import os
import pathlib
import subprocess
import sys

import pytest

from experiments import configuration
from kdjax.evaluation import read_records

ROOT = pathlib.Path(__file__).parents[2]
CONFIGS = sorted(
    ".".join(p.relative_to(ROOT).with_suffix("").parts)
    for p in (ROOT / "configs").rglob("*.py")
    if p.name != "__init__.py"
)
SMALL = (
    "--config.data.name=digits",
    "--config.teacher.training.steps=40",
    "--config.student.training.steps=40",
    "--config.validate_every=20",
)


def command(module, *arguments):
    return subprocess.run(
        [sys.executable, "-m", f"experiments.{module}", *arguments],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=400,
    )


def run(workdir, *arguments):
    first = ("--config=configs/mnist/plackett_luce.py", f"--workdir={workdir}", *SMALL)
    return command("run", *first, *arguments)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run") / "pl"
    return workdir, run(workdir)


def test_a_run_ends_with_a_table_and_a_report(done):
    workdir, first = done
    assert first.returncode == 0, first.stderr
    table = first.stdout[first.stdout.index("model ") :]
    assert [line.split("  ")[0] for line in table.splitlines()[2:5]] == [
        "teacher",
        "student alone",
        "distilled student",
    ]
    assert (workdir / "report.html").stat().st_size > 10_000
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert {r["stage"] for r in rows} == {"teacher", "supervised", "distill"}


def test_started_again_it_only_replays_and_another_config_is_refused(done):
    workdir, first = done
    again = run(workdir)
    assert "steps in" not in again.stdout
    assert again.stdout.splitlines()[-6:-1] == first.stdout.splitlines()[-6:-1]
    other = run(workdir, "--config.method.temperature=2")
    assert other.returncode == 2
    assert "method.temperature: 1.0 -> 2.0" in other.stderr
    assert len(other.stderr.strip().splitlines()) == 1


MISTAKES = {
    "field": ("--config.method.temprature=2", 'Did you mean "temperature"'),
    "method": ("--config.method.name=plackettluce", "did you mean 'plackett_luce'"),
    "batch": ("--config.student.training.batch_size=5000", "larger than the train split"),
    "teacher": ("--config.teacher.checkpoint=nowhere", "nowhere holds no weights"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_line_before_any_compute(case, tmp_path):
    flag, message = MISTAKES[case]
    wrong = run(tmp_path / "x", flag)
    assert wrong.returncode == 2
    assert message in wrong.stderr
    assert len(wrong.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "x").exists()


def test_a_given_teacher_is_not_trained(done, tmp_path):
    workdir, _ = done
    given = run(tmp_path / "x", f"--config.teacher.checkpoint={workdir / 'weights' / 'teacher'}")
    assert given.returncode == 0, given.stderr
    assert "teacher:" not in given.stdout
    assert "distilled student" in given.stdout


def test_a_comparison_writes_records_table_and_plots(tmp_path):
    done = command(
        "compare",
        "--config=configs/digits/compare_plackett_luce.py",
        f"--workdir={tmp_path / 'w'}",
        f"--results={tmp_path / 'r'}",
        "--config.seeds=2",
        *SMALL[1:],
    )
    assert done.returncode == 0, done.stderr
    records = read_records(tmp_path / "r")
    assert len(records) == 12
    assert {r.seed for r in records} == {0, 1}
    assert "listmle" in (tmp_path / "r" / "table.md").read_text()
    for name in ("accuracy.png", "curves.png"):
        assert (tmp_path / "r" / name).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_builds(name):
    config = importlib.import_module(name).get_config()
    arms = config.get("arms", {"method": config.method})
    for fields in arms.values():
        configuration.method(fields)
    single = {k: v for k, v in config.items() if k in configuration.FIELDS}
    task = configuration.task(configuration.ml_collections.ConfigDict(single))
    assert task.dataset.num_classes == 10
