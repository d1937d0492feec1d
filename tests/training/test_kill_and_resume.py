"""A run that is killed anywhere and started again ends with the bits of one that was not."""

import json
import pathlib
import random
import shutil
import signal
import subprocess
import sys

import pytest

SCRIPT = pathlib.Path(__file__).parent / "resumable.py"
STAGES = ("teacher", "student", "more")


def start(workdir, *arguments):
    return subprocess.run(
        [sys.executable, str(SCRIPT), str(workdir), *arguments],
        capture_output=True,
        text=True,
        timeout=300,
    )


def metrics(workdir):
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in r.items() if k not in ("examples_per_second", "stall")} for r in rows]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole")
    done = start(workdir)
    assert done.returncode == 0, done.stderr
    return workdir, json.loads(done.stdout.splitlines()[-1])["digest"]


def survives(whole, workdir, kills):
    reference, digest = whole
    for stage, step in kills:
        killed = start(workdir, f"{stage}:{step}", str(int(signal.SIGKILL)))
        assert killed.returncode == -signal.SIGKILL
    done = start(workdir)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["digest"] == digest
    assert metrics(workdir) == metrics(reference)
    assert (workdir / "computed").read_text() == "once\n"


def test_kills_in_every_stage_leave_no_trace(whole, tmp_path):
    rng = random.Random(0)
    survives(whole, tmp_path, [(stage, rng.randint(1, 59)) for stage in STAGES])


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(12))
def test_many_kills_leave_no_trace(whole, tmp_path, seed):
    rng = random.Random(seed)
    # The later one second: a run goes on behind the first and never comes by there again.
    kills = [(stage, step) for stage in STAGES for step in sorted(rng.sample(range(1, 60), 2))]
    survives(whole, tmp_path, kills)


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_a_signal_saves_and_a_finished_run_is_only_replayed(whole, tmp_path, number):
    _, digest = whole
    stopped = start(tmp_path, "student:37", str(int(number)))
    assert stopped.returncode == 128 + number
    assert "Traceback" not in stopped.stderr
    assert "saved 'student' at step 37" in stopped.stdout
    done = start(tmp_path)
    assert "student: continues at step 37" in done.stdout
    assert json.loads(done.stdout.splitlines()[-1])["digest"] == digest
    again = start(tmp_path)
    assert "steps in" not in again.stdout
    assert json.loads(again.stdout.splitlines()[-1])["digest"] == digest


def test_damage_is_noticed_and_computed_again(whole, tmp_path):
    reference, digest = whole
    workdir = tmp_path / "damaged"
    shutil.copytree(reference, workdir)
    node = workdir / "journal" / "0002-student"
    victim = max((p for p in node.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    done = start(workdir)
    assert "is damaged: it is put aside and computed again" in done.stdout
    assert json.loads(done.stdout.splitlines()[-1])["digest"] == digest
    assert (workdir / "journal" / "damaged-0002-student").exists()
