"""A run that is killed anywhere and started again ends with the bits of one that was not."""

import json
import pathlib
import shutil
import signal
import subprocess
import sys

import pytest
from torture import torture

SCRIPT = pathlib.Path(__file__).parent / "resumable.py"


def start(workdir, *arguments):
    return subprocess.run(
        [sys.executable, str(SCRIPT), str(workdir), *arguments],
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole")
    done = start(workdir)
    assert done.returncode == 0, done.stderr
    return workdir, json.loads(done.stdout.splitlines()[-1])["digest"]


def test_kills_at_random_moments_leave_no_trace(tmp_path):
    tally = torture(tmp_path, kills=5, seed=0)
    assert sum(tally.kills.values()) == 5
    assert tally.equal == tally.runs > 0, tally


@pytest.mark.slow
def test_a_hundred_kills_at_random_moments_leave_no_trace(tmp_path, capsys):
    tally = torture(tmp_path, kills=100, seed=1)
    with capsys.disabled():
        print(tally)
    assert sum(tally.kills.values()) == 100
    assert tally.equal == tally.runs > 0, tally


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
