"""Makes `training_toys` importable by the tests, and by the scripts that they start."""

import pathlib
import sys

import jax
import pytest

# Scripts that the tests start, some with flags of their own: not to be imported for doctests.
collect_ignore = [
    "per_device.py",
    "resumable.py",
    "several.py",
    "sharded.py",
    "short_run.py",
    "torture.py",
]

sys.path.insert(0, str(pathlib.Path(__file__).parent))


@pytest.fixture(autouse=True, scope="module")
def empty_caches():
    """JAX forgets compiled functions when there are thousands: here compilations are counted."""
    jax.clear_caches()
