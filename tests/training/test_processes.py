"""Several processes compute what one does, stop together, and go on together or fewer."""

import concurrent.futures
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from kdjax.training import read_metrics

ROOT = pathlib.Path(__file__).parents[2]
SCRIPT = ROOT / "tests/training/several.py"
HEARTBEAT = 10  # seconds


def free_port():
    with socket.socket() as sock:
        sock.bind(("localhost", 0))
        return sock.getsockname()[1]


def start(workdir, processes, *flags, host="localhost", on=None):
    """`[(exit status, stdout, stderr)]` of the processes of a run, and how long they outlived
    the first to end, in seconds. `on`: a command for each process that runs another one."""
    command = [sys.executable, str(SCRIPT), f"--workdir={workdir}", *flags]
    cluster = [f"--coordinator={host}:{free_port()}", f"--heartbeat={HEARTBEAT}"]
    on = on or [[]] * processes
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}

    def one(process):
        mine = [*cluster, f"--processes={processes}", f"--process={process}"]
        done = subprocess.run(
            on[process] + command + mine * (processes > 1),
            capture_output=True,
            text=True,
            env=environment,
        )
        return (done.returncode, done.stdout, done.stderr), time.monotonic()

    with concurrent.futures.ThreadPoolExecutor(processes) as pool:
        ended = list(pool.map(one, range(processes)))
    times = [at for _, at in ended]
    return [result for result, _ in ended], max(times) - min(times)


def finished(found):
    """The first process's stdout, of processes that all reached their end."""
    results, _ = found
    for status, _, stderr in results:
        assert status == 0, stderr[-3000:]
    return results[0][1]


def stopped(found, number, asked):
    """The first process's stdout, of processes that all stopped because one was asked to."""
    results, _ = found
    statuses = [status for status, _, _ in results]
    for process, status in enumerate(statuses):
        own = number if process == asked else signal.SIGTERM
        assert status == 128 + own, results
    assert not any("Traceback" in stderr for _, _, stderr in results)
    return results[0][1]


def noticed(found, killed):
    """Checks that all others ended soon, each with one line that says why."""
    results, seconds = found
    assert seconds < 3 * HEARTBEAT
    for process, (status, _, stderr) in enumerate(results):
        (line,) = stderr.strip().splitlines()
        assert line.startswith(f"error: process {process} of {len(results)} ")
        assert "goes on from the last checkpoint" in line
        if process == killed:
            assert status == -signal.SIGKILL
            assert "was killed" in line
        else:
            assert status not in (0, -signal.SIGKILL)
            assert "another one was killed" in line


def same(workdir, other):
    """One result, up to the order in which float32 numbers are summed."""
    with np.load(workdir / "result.npz") as a, np.load(other / "result.npz") as b:
        assert set(a.files) == set(b.files)
        for name in a.files:
            np.testing.assert_allclose(a[name], b[name], rtol=1e-5, atol=1e-6, err_msg=name)
    # Windows and validations, each once: written by one process only, and none twice.
    assert len(read_metrics(workdir)) == len(read_metrics(other)) == 4 + 2 + 8 + 4


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("alone") / "run"
    finished(start(workdir, 1))
    return workdir


def test_two_processes_one_killed_then_one_preempted_end_like_one(alone, tmp_path):
    noticed(start(tmp_path, 2, f"--signal=1:last:25:{int(signal.SIGKILL)}"), killed=1)
    damaged = [path for path in tmp_path.rglob("*") if path.name.startswith("damaged")]
    assert not damaged
    out = stopped(
        start(tmp_path, 2, f"--signal=1:last:30:{int(signal.SIGTERM)}"), signal.SIGTERM, 1
    )
    assert re.search(r"last: continues at step (10|20)\n", out)
    step = int(re.search(r"SIGTERM: saved 'last' at step (\d+); the same command", out)[1])
    assert step >= 30
    out = finished(start(tmp_path, 2))
    assert f"last: continues at step {step}" in out
    same(tmp_path, alone)


@pytest.mark.slow
def test_four_processes_then_two_then_one_end_like_one(alone, tmp_path):
    four = tmp_path / "four"
    finished(start(four, 4))
    same(four, alone)
    fewer = tmp_path / "fewer"
    stopped(start(fewer, 4, f"--signal=3:first:12:{int(signal.SIGTERM)}"), signal.SIGTERM, 3)
    noticed(start(fewer, 2, f"--signal=0:last:25:{int(signal.SIGKILL)}"), killed=0)
    assert re.search(r"last: continues at step (10|20)\n", finished(start(fewer, 1)))
    same(fewer, alone)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("asked", [0, 1])
def test_a_signal_between_stages_stops_all_before_the_next(tmp_path, number, asked):
    found = start(tmp_path, 2, f"--signal={asked}:shift:0:{int(number)}")
    assert "steps in" not in stopped(found, number, asked)
    assert (tmp_path / "journal" / "0000-shift.json").exists()


@pytest.mark.slow
def test_a_stream_with_a_state_goes_on_where_each_process_was(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    finished(start(whole, 2, "--walk"))
    asked = f"--signal=0:last:15:{int(signal.SIGTERM)}"
    stopped(start(parts, 2, "--walk", asked), signal.SIGTERM, 0)
    ((status, _, stderr),) = start(parts, 1, "--walk")[0]
    assert status == 2
    assert "the stream 'train' has a state of its own on each of the 2 processes" in stderr
    finished(start(parts, 2, "--walk"))
    with np.load(whole / "result.npz") as a, np.load(parts / "result.npz") as b:
        for name in a.files:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@pytest.fixture
def hosts(tmp_path):
    """The address of the first of two network namespaces, and a command for each that runs another
    one in it, under a name of its own that both can look up, as machines have."""
    if shutil.which("ip") is None:
        pytest.skip("two network namespaces need `ip` (iproute2)")
    names = [f"kdjax-{os.getpid()}-{i}" for i in (0, 1)]
    known = tmp_path / "hosts"
    known.write_text("".join(f"10.77.0.{i + 1} {name}\n" for i, name in enumerate(names)))
    commands = [f"netns add {name}" for name in names]
    commands.append(f"link add veth0 netns {names[0]} type veth peer veth0 netns {names[1]}")
    for i, name in enumerate(names):
        commands.append(f"-n {name} addr add 10.77.0.{i + 1}/24 dev veth0")
        commands += [f"-n {name} link set {device} up" for device in ("veth0", "lo")]
    inside = 'echo "$0" > /proc/sys/kernel/hostname; mount --bind "$1" /etc/hosts; shift; exec "$@"'
    shell = ["unshare", "--uts", "--mount", "sh", "-c", inside]
    try:
        for command in commands:
            made = subprocess.run(["ip", *command.split()], capture_output=True, text=True)
            if made.returncode:
                pytest.skip(f"two network namespaces cannot be made here: {made.stderr.strip()}")
        yield "10.77.0.1", [["ip", "netns", "exec", n, *shell, n, str(known)] for n in names]
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


@pytest.mark.slow
def test_two_network_namespaces_train_stop_and_go_on_like_one(alone, hosts, tmp_path):
    host, on = hosts
    workdir, asked = tmp_path / "w", f"--signal=1:last:12:{int(signal.SIGTERM)}"
    stopped(start(workdir, 2, asked, host=host, on=on), signal.SIGTERM, 1)
    finished(start(workdir, 2, host=host, on=on))
    same(workdir, alone)
    # Neither reaches the other by the loopback: the coordinator of another namespace is not found.
    lonely = start(tmp_path / "l", 2, "--connect_timeout=2", host="127.0.0.1", on=on)[0]
    assert "could not reach process 0" in lonely[1][2]
