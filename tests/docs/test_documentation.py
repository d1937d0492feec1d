"""The documentation is complete, and builds without a warning."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

from kdjax import losses

DOCS = pathlib.Path(__file__).parents[2] / "docs"
PAGES = {path.stem: path.read_text() for path in (DOCS / "losses").glob("*.rst")}


def test_every_loss_is_on_one_page():
    shown = re.findall(r"automodule:: (\S+)", "\n".join(PAGES.values()))
    assert len(shown) == len(set(shown))
    public = [x for name, x in vars(losses).items() if callable(x) and not name.startswith("_")]
    needed = {x.__module__ for x in public}
    needed.discard("kdjax.losses.checks")  # `valid_labels`, told by whoever reads labels
    assert needed <= set(shown)


def test_every_page_is_in_the_index():
    listed = re.findall(r"^   ([a-z_]+)$", PAGES["index"], re.MULTILINE)
    assert sorted(listed) == sorted(set(PAGES) - {"index"})


@pytest.mark.slow
def test_it_builds_without_a_warning(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", DOCS, tmp_path],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "MPLBACKEND": "agg"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    page = (tmp_path / "losses" / "divergences.html").read_text()
    assert "generalized_jsd" in page
    assert list((tmp_path / "_images").glob("divergences-*.png"))
