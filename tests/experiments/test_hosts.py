"""How processes find each other: what is refused, in one line and in bounded time."""

import os
import pathlib
import socket
import subprocess
import sys
import time

import pytest
from absl.testing import flagsaver

from experiments import configuration, hosts

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def flags():
    if not hosts.flags.FLAGS.is_parsed():
        hosts.flags.FLAGS(["test"])
    with flagsaver.flagsaver(connect_timeout=1):
        yield


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"processes": 2}, "--processes and --process go with --coordinator=host:port, got .*''"),
        ({"process": 0}, "--processes and --process go with --coordinator"),
        ({"coordinator": "auto", "processes": 2}, "got --coordinator='auto'"),
        ({"coordinator": "localhost", "processes": 2, "process": 0}, "host:port .*'localhost'"),
        ({"coordinator": "localhost:x", "processes": 2, "process": 0}, "must be host:port"),
        ({"coordinator": ":80", "processes": 2, "process": 0}, "must be host:port"),
        ({"coordinator": "localhost:70000", "processes": 2, "process": 0}, "must be host:port"),
        ({"coordinator": "localhost:1"}, "--processes must be at least 1, got 0"),
        ({"coordinator": "localhost:1", "processes": 2}, "--process must be one of 0 to 1, got -1"),
        ({"coordinator": "localhost:1", "processes": 2, "process": 2}, "of 0 to 1, got 2"),
    ],
)
def test_flags_that_do_not_fit_together_are_refused(given, message):
    with flagsaver.flagsaver(**given), pytest.raises(ValueError, match=message):
        hosts.join()


def test_without_flags_a_process_is_alone():
    hosts.join()
    assert not hosts.several()


def test_a_command_for_one_process_refuses_a_coordinator():
    with flagsaver.flagsaver(coordinator="auto"), pytest.raises(ValueError, match="one process"):
        hosts.join(allowed=False)


def test_a_coordinator_that_is_not_there_is_named_within_the_time_given():
    with socket.socket() as sock:
        sock.bind(("localhost", 0))
        address = f"localhost:{sock.getsockname()[1]}"  # bound, and nobody listens
        given = dict(coordinator=address, processes=2, process=1, connect_timeout=1)
        began = time.monotonic()
        with (
            flagsaver.flagsaver(**given),
            pytest.raises(
                ValueError, match=f"could not reach process 0 at --coordinator={address}"
            ),
        ):
            hosts.join()
    assert time.monotonic() - began < 10


def start(*flags):
    command = [sys.executable, "-m", "experiments.run", "--config=configs/mnist/kd.py"]
    return subprocess.run(
        [*command, "--workdir=/nowhere", *flags],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.slow
def test_a_first_process_whose_others_do_not_come_says_so_in_one_line():
    with socket.socket() as sock:
        sock.bind(("localhost", 0))
        port = sock.getsockname()[1]
    cluster = (f"--coordinator=localhost:{port}", "--processes=2", "--process=0")
    done = start(*cluster, "--connect_timeout=2")
    assert done.returncode != 0
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: process 0 and the others of 2 did not all come within 2 s")


@pytest.mark.slow
def test_a_machine_that_is_no_cluster_is_refused_in_one_line():
    done = start("--coordinator=auto")
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: --coordinator=auto, but the cluster does not say who is who")


def test_only_an_error_of_the_network_counts_as_a_lost_process(monkeypatch):
    monkeypatch.setattr(hosts, "several", lambda: True)
    gone = ValueError("UNKNOWN: Gloo all-reduce failed: Connection reset by peer")
    assert hosts.lost(gone).startswith("process 0 of 1 cannot go on, for another one was killed")
    assert "goes on from the last checkpoint" in hosts.lost(gone)
    assert hosts.lost(configuration.ConfigError("config.seeds must be at least 1")) is None
