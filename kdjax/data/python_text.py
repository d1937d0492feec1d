"""Two corpora that come with every Python: the code of its library, and its reference."""

from __future__ import annotations

import os
import pathlib
import platform
import re
import sys
import sysconfig
import tokenize

from kdjax.data.corpora import Corpus, Document

# Tests and tables; what depends on the platform; what distributions package apart from Python, so
# that it is there on one machine and not on the next.
LEFT_OUT = {
    *("encodings", "idlelib", "pydoc_data", "test"),
    *("distutils", "ensurepip", "lib2to3", "tkinter", "turtle", "turtledemo"),
}


def python_stdlib() -> Corpus:
    """`python_stdlib`: the source of Python's own library, one module a document, by path.

    Every pure Python module that `sys.stdlib_module_names` names, without tests, idlelib, the
    tables of `encodings` and what distributions package apart (tkinter, lib2to3, ...). Modules
    without text are left out. A module's split is a hash of its path. The text depends on the
    Python version, which the record names beside a hash of all documents.

    Raises:
      FileNotFoundError: this Python comes without its sources.
    """
    root = pathlib.Path(sysconfig.get_path("stdlib"))
    documents = []
    for path in _modules(root):
        with tokenize.open(path) as file:  # reads the encoding that the module declares
            text = file.read()
        if text.strip():
            documents.append(Document(text, name=path.relative_to(root).as_posix()))
    if not documents:
        raise FileNotFoundError(f"this Python has no sources of its library at {root}")
    return Corpus.of(documents, "python_stdlib", record={"python": platform.python_version()})


def _modules(root: pathlib.Path) -> list[pathlib.Path]:
    found = []
    for name in sys.stdlib_module_names - LEFT_OUT:
        if name.startswith("_sysconfigdata"):
            continue
        if (root / f"{name}.py").is_file():
            found.append(root / f"{name}.py")
        for folder, inner, files in os.walk(root / name):
            inner[:] = [f for f in inner if f not in ("test", "tests", "__pycache__")]
            found += [pathlib.Path(folder, file) for file in files if file.endswith(".py")]
    return sorted(found, key=lambda path: path.relative_to(root).as_posix())


def python_reference() -> Corpus:
    """`python_reference`: the language reference that `help("topics")` shows, a topic a document.

    English prose with grammar and examples. Topics repeat each other's sections: a paragraph that
    an earlier topic has is left out of the later ones, so that no split holds the text of
    another. A topic's split is a hash of its name. The text depends on the Python version, which
    the record names beside a hash of all documents.

    Raises:
      FileNotFoundError: this Python comes without `pydoc_data`.
    """
    try:
        from pydoc_data.topics import topics
    except ModuleNotFoundError as error:
        raise FileNotFoundError("this Python comes without pydoc_data, its reference") from error
    seen: set[str] = set()
    documents = []
    for name in sorted(topics):
        paragraphs = [p for p in re.split(r"\n\s*\n", topics[name].strip("\n")) if p.strip()]
        new = [p for p in paragraphs if p.strip() not in seen]
        seen.update(p.strip() for p in new)
        if new:
            documents.append(Document("\n\n".join(new) + "\n", name=name))
    return Corpus.of(documents, "python_reference", record={"python": platform.python_version()})
