"""Prepared data sets of the tests lie in the checkout's test cache, not in the user's.

Nearly all of the tests' time goes into compiling programs that run once, so they, and the processes
they start, are compiled without most of the compiler's effort.
"""

import os
import sys
from pathlib import Path

os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # before JAX is imported

collect_ignore = ["kernels"]  # tables, not tests
sys.path.insert(0, str(Path(__file__).parent))  # for the tables in tests/kernels


def pytest_configure(config):
    os.environ.setdefault("KDJAX_DATA_DIR", str(config.rootpath / ".pytest_cache" / "kdjax-data"))
