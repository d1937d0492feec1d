"""Prepared data sets of the tests lie in the checkout's test cache, not in the user's."""

import os


def pytest_configure(config):
    os.environ.setdefault("KDJAX_DATA_DIR", str(config.rootpath / ".pytest_cache" / "kdjax-data"))
