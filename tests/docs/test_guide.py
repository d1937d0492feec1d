"""The guide to a method runs as it is printed, and its names exist."""

import importlib
import pathlib
import re
import textwrap

import pytest

from kdjax import methods

GUIDE = pathlib.Path(__file__).parents[2] / "docs" / "add_a_method.rst"


def blocks(text: str) -> list[str]:
    """The Python blocks, in order."""
    found = re.findall(r"^\.\. code-block:: python\n\n((?:(?:   .*)?\n)+)", text, re.MULTILINE)
    return [textwrap.dedent(block) for block in found]


@pytest.mark.slow
def test_every_block_runs_from_top_to_bottom():
    found = blocks(GUIDE.read_text())
    assert len(found) == GUIDE.read_text().count("code-block:: python") == 6
    held: dict = {}
    for block in found:
        exec(compile(block, GUIDE.name, "exec"), held)
    assert held["trained"].selected_step in (20, 40)


def test_what_it_points_to_is_there():
    text = GUIDE.read_text()
    root = GUIDE.parents[1]
    for path in re.findall(r"``((?:kdjax|tests|configs)/[\w/.]+)``", text):
        assert (root / path).exists() or path == "kdjax/methods/gentle_kd.py", path
    for module in re.findall(r"``(kdjax\.[\w.]+)\.(\w+)``", text):
        assert hasattr(importlib.import_module(module[0]), module[1]) or importlib.import_module(
            ".".join(module)
        )
    for name in re.findall(r"\(``(\w+)``\)", text):
        assert name in methods.NAMES, name
