"""A workdir has one run at a time: a lock on a file, which goes with the process that holds it.

The lock is the kernel's (`flock`), so a run that was killed leaves none. On NFS it holds between
hosts where the mount passes locks on to the server (the default of Linux; not with `nolock` or
`local_lock=flock`), and on other shared file systems as far as they do; where a file system has no
locks the run says so and goes on without. Of several processes the first holds it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import pathlib
import socket
import threading
from collections.abc import Callable, Iterator

import jax

from kdjax.training.checkpoint import CheckpointError, agreed


class WorkdirInUse(ValueError):
    """Another run holds the workdir; names its process and host."""


_held: dict[pathlib.Path, int] = {}  # by this process: the thread that may enter again


@contextlib.contextmanager
def locked(workdir: pathlib.Path, say: Callable[[str], None] = print) -> Iterator[None]:
    """Holds a workdir; the thread that holds it may enter again.

    Args:
      workdir: created if it is not there.
      say: told where there are no locks.

    Raises:
      WorkdirInUse: on every process, another run holds it.
      CheckpointError: it cannot be written.
    """
    place = pathlib.Path(workdir).absolute()
    if _held.get(place) == threading.get_ident():
        yield
        return
    taken, error = None, None
    if jax.process_index() == 0:
        try:
            taken = _take(place, say)
        except (WorkdirInUse, CheckpointError) as refusal:
            error = refusal
    if not agreed(error is None):
        raise error or WorkdirInUse(
            f"workdir {place} was refused to the first process, which says why"
        )
    _held[place] = threading.get_ident()
    try:
        yield
    finally:
        del _held[place]
        if taken is not None:
            os.close(taken)


def _take(place: pathlib.Path, say: Callable[[str], None]) -> int | None:
    try:
        place.mkdir(parents=True, exist_ok=True)
        file = os.open(place / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise CheckpointError(f"workdir {place} cannot be written: {error.strerror}") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(file, 0)
        os.pwrite(file, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        return file
    except BlockingIOError:
        holder = os.pread(file, 1000, 0).decode(errors="replace") or "another process"
        os.close(file)
        raise WorkdirInUse(
            f"workdir {place} is in use by {holder}: wait for it, stop it, or use another workdir"
        ) from None
    except OSError as error:
        os.close(file)
        if error.errno in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
            say(f"workdir {place}: no locks here ({error.strerror}); start no second run on it")
            return None
        raise CheckpointError(f"workdir {place} cannot be written: {error.strerror}") from error
