"""Passes the errors of one of several processes on, and says in one line why it ended.

The runtime aborts a process whose peers are gone: no Python runs in it then, and pages of traces of
threads that were waiting come out. `speaker` puts this file, as a program of its own, between the
process's stderr and what that was before. From the first line on that tells of a lost peer nothing
is passed on, and one line is said when the process has ended. KDJAX_TRACEBACK=1 shows everything.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys

_MARK, _BETWEEN = "\x01", "\x02"
_LOST = re.compile(rb"coordination[ _]service|JAX distributed service|UNAVAILABLE: ")


def speaker() -> None:
    """From here on this process's stderr is passed on by another one, until this one ends."""
    # In a session of its own, so that Ctrl-C and the end of a job step pass it by.
    relay = subprocess.Popen(
        [sys.executable, "-S", "-E", __file__],
        stdin=subprocess.PIPE,
        stdout=2,
        start_new_session=True,
    )
    sys.stderr.flush()
    os.dup2(relay.stdin.fileno(), 2)
    relay.stdin.close()


def last_words(lost: str, killed: str) -> None:
    """What is said if this process ends because another is gone, or is itself killed.

    Empty: nothing.
    """
    sys.stderr.flush()
    os.write(2, f"{_MARK}{lost}{_BETWEEN}{killed}\n".encode())


def _relay() -> None:
    show = bool(os.environ.get("KDJAX_TRACEBACK"))
    words, is_lost = [b"", b""], False
    for line in sys.stdin.buffer:
        if line.startswith(_MARK.encode()):
            if not is_lost:
                words = line[1:].rstrip(b"\n").split(_BETWEEN.encode())
            continue
        is_lost = is_lost or (_LOST.search(line) is not None and not line.startswith(b"error: "))
        if show or not is_lost:
            os.write(1, line)
    said = words[0 if is_lost else 1]
    if said:
        os.write(1, b"error: " + said + b"\n")


if __name__ == "__main__":
    _relay()
