"""The processes of one run: how they find each other, and how one ends when the others cannot.

A process that fails leaves at once instead of waiting for the others at its exit: they notice that
it is gone, at the latest when it has been silent for `--heartbeat` seconds, and end too.
"""

from __future__ import annotations

import atexit
import os
import re
import socket
import sys
import time

import jax
from absl import flags

from experiments.last_words import last_words, speaker

COORDINATOR = flags.DEFINE_string(
    "coordinator", "", "host:port of process 0, for several hosts; `auto`: from the cluster."
)
PROCESSES = flags.DEFINE_integer(
    "processes", 0, "How many there are, with --coordinator=host:port."
)
PROCESS = flags.DEFINE_integer(
    "process", -1, "The number of this one, from 0, with --coordinator=host:port."
)
CONNECT = flags.DEFINE_integer(
    "connect_timeout", 300, "Seconds within which all processes must have come.", lower_bound=1
)
HEARTBEAT = flags.DEFINE_integer(
    "heartbeat", 100, "Seconds of silence after which a process counts as lost.", lower_bound=5
)

# Of the runtime's errors, in a collective or at a barrier, when a process is lost.
_LOST = re.compile(r"Gloo|(ABORTED|CANCELLED|DEADLINE_EXCEEDED|UNAVAILABLE): ")
_GO_ON = (
    "nothing that was saved is lost, and the same command on as many hosts, or fewer, goes on from "
    "the last checkpoint"
)


def several() -> bool:
    """Whether this is one of several processes."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def leave(status: int) -> None:
    """Exits with `status`; of several processes this one leaves without waiting for the others."""
    if not several():
        raise SystemExit(status)
    sys.stdout.flush()
    last_words("", "")
    time.sleep(1)  # where all fail alike, each can say so before the first is gone
    os._exit(status)


def lost(error: Exception) -> str | None:
    """What to say of an error that comes of a process that is gone; None for any other error."""
    if not several() or not _LOST.search(str(error)):
        return None
    return _gone(f"the network failed ({' '.join(str(error).split())[:200]})")


def _who() -> str:
    return f"process {jax.process_index()} of {jax.process_count()}"


def _gone(other: str) -> str:
    return f"{_who()} cannot go on, for another one was killed, has crashed, or {other}; {_GO_ON}"


def join(allowed: bool = True) -> None:
    """Joins the processes of this run, as the flags or the cluster say; alone without them.

    To be called before anything is computed.

    Args:
      allowed: whether the command runs on several processes.

    Raises:
      ValueError: it does not, the flags do not fit together, the cluster is not known, or process 0
        cannot be reached within `--connect_timeout` seconds.
    """
    if COORDINATOR.value and not allowed:
        raise ValueError("this command runs on one process: --coordinator is for run and compare")
    given = PROCESSES.value != 0 or PROCESS.value != -1
    if COORDINATOR.value in ("", "auto") and given:
        raise ValueError(
            "--processes and --process go with --coordinator=host:port, got "
            f"--coordinator={COORDINATOR.value!r}"
        )
    if not COORDINATOR.value:
        return
    if COORDINATOR.value == "auto":
        _connect("the processes of the cluster")
        return
    address = _address()
    if PROCESSES.value < 1:
        raise ValueError(f"--processes must be at least 1, got {PROCESSES.value}")
    if not 0 <= PROCESS.value < PROCESSES.value:
        raise ValueError(
            f"--process must be one of 0 to {PROCESSES.value - 1}, got {PROCESS.value}"
        )
    if PROCESS.value:
        _reach(*address)
    _connect(
        f"process {PROCESS.value} and the others of {PROCESSES.value}",
        coordinator_address=COORDINATOR.value,
        num_processes=PROCESSES.value,
        process_id=PROCESS.value,
        cluster_detection_method="deactivate",
    )


def _address() -> tuple[str, int]:
    host, _, port = COORDINATOR.value.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise ValueError(f"--coordinator must be host:port or `auto`, got {COORDINATOR.value!r}")
    return host.strip("[]"), int(port)


def _reach(host: str, port: int) -> None:
    """Waits until process 0 listens: the runtime would abort where this says what is wrong."""
    end = time.monotonic() + CONNECT.value
    while True:
        try:
            socket.create_connection((host, port), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > end:
                raise ValueError(
                    f"process {PROCESS.value} could not reach process 0 at "
                    f"--coordinator={COORDINATOR.value} within {CONNECT.value} s: {error}"
                ) from error
        time.sleep(0.2)


def _connect(who: str, **cluster) -> None:
    # A notice to stop is passed on by the runtime's preemption service, see kdjax.training.
    jax.config.update("jax_enable_preemption_service", True)
    speaker()
    late = (
        f"{who} did not all come within {CONNECT.value} s: each host must start the same command, "
        "with the same --coordinator"
    )
    last_words(late, "")
    atexit.register(last_words, "", "")  # before the runtime's own, so that it is called after it
    try:
        jax.distributed.initialize(
            initialization_timeout=CONNECT.value,
            heartbeat_timeout_seconds=HEARTBEAT.value,
            **cluster,
        )
    except ValueError as error:  # of the detection: no address, or no number of processes
        raise ValueError(
            "--coordinator=auto, but the cluster does not say who is who (a TPU VM, SLURM, Open "
            f"MPI, or Kubernetes with the Python package `kubernetes` would): {error}"
        ) from error
    except RuntimeError as error:
        raise ValueError(f"--coordinator={COORDINATOR.value}: {error}") from error
    silent = f"was silent for {HEARTBEAT.value} s"
    last_words(_gone(silent), f"{_who()} was killed; {_GO_ON}")
