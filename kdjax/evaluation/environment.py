"""What a result was computed with: versions, devices and the commit, never a path or a host."""

from __future__ import annotations

import pathlib
import platform
import subprocess
from importlib import metadata
from typing import Any

import jax

import kdjax

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
SOURCES = (":/kdjax", ":/experiments", ":/configs", ":/setup.py")


def _git(*arguments: str) -> str | None:
    """What git says about the repository around this package; None where there is none."""
    here = pathlib.Path(kdjax.__file__).parent
    try:
        done = subprocess.run(
            ["git", "-C", str(here), *arguments], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def environment() -> dict[str, Any]:
    """Versions, devices and commit of this process, as plain values for a record or a report.

    `commit` and `dirty` are None where kdjax does not run from its own repository. `dirty` says
    whether the sources differ from the commit; results and runs do not count.

    >>> environment()["kdjax"] == kdjax.__version__
    True
    """
    root, package = _git("rev-parse", "--show-toplevel"), pathlib.Path(kdjax.__file__).parent
    # An installed copy inside somebody else's repository must not report that one's commit.
    own = root is not None and pathlib.Path(root).resolve() == package.resolve().parent
    device = jax.local_devices()[0]
    return {
        "kdjax": kdjax.__version__,
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in PACKAGES},
        "platform": f"{platform.system()} {platform.machine()}",
        "device": device.device_kind,
        "backend": device.platform,
        "devices": jax.device_count(),
        "processes": jax.process_count(),
        "commit": _git("rev-parse", "HEAD") if own else None,
        "dirty": bool(_git("status", "--porcelain", "--", *SOURCES)) if own else None,
    }
