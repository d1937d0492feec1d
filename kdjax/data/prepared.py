"""Where prepared data lies, and how one of several processes prepares it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pathlib
from collections.abc import Iterator


def data_dir() -> pathlib.Path:
    """Where prepared data lies: `KDJAX_DATA_DIR`, or a folder in the user's cache."""
    default = pathlib.Path.home() / ".cache" / "kdjax" / "data"
    return pathlib.Path(os.environ.get("KDJAX_DATA_DIR") or default)


@contextlib.contextmanager
def alone(target: pathlib.Path) -> Iterator[None]:
    """Only one process of the machine at a time is in here for the same target."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with (target.parent / f".{target.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
