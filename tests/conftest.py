"""Prepared data sets of the tests lie in the checkout's test cache, not in the user's."""

import os
import sys
from pathlib import Path

collect_ignore = ["kernels"]  # tables, not tests
sys.path.insert(0, str(Path(__file__).parent))  # for the tables in tests/kernels


def pytest_configure(config):
    os.environ.setdefault("KDJAX_DATA_DIR", str(config.rootpath / ".pytest_cache" / "kdjax-data"))
