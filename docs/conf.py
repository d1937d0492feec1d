"""How the documentation is built: `sphinx-build -W -b html docs docs/_build`."""

import re

import kdjax

project = "kdjax"
copyright = "the kdjax authors"
author = "the kdjax authors"
version = release = kdjax.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.doctest",
    "matplotlib.sphinxext.plot_directive",
]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "kdjax"

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings give every array's shape and range
autodoc_preserve_defaults = True
default_role = "code"
napoleon_use_ivar = True
napoleon_attr_annotations = False
napoleon_custom_sections = [("Source", "notes_style")]
nitpicky = False

plot_html_show_source_link = False
plot_html_show_formats = False
plot_formats = [("png", 120)]
plot_rcparams = {"figure.figsize": (7.0, 3.0), "axes.spines.top": False, "axes.spines.right": False}

_EQUATION = re.compile(r"^    +\S")
_MARKUP = re.compile(r"([|*]|(?<=\w)_(?!\w))")


def as_it_is_set(app, what, name, obj, options, lines):
    """The docstrings are plain text: indented blocks are equations, and no sign is markup."""
    marked, equation, example = [], False, False
    for i, line in enumerate(lines):
        if not line.strip():
            example = False
        elif not equation and _EQUATION.match(line) and i > 0 and not lines[i - 1].strip():
            above = next((x for x in reversed(marked) if x.strip()), "")
            if not above.startswith(" "):
                marked += ["::", ""]
                equation = True
        if line.strip():
            equation = equation and bool(_EQUATION.match(line))
        example = example or line.lstrip().startswith(">>>")
        marked.append(line if equation or example else _MARKUP.sub(r"\\\1", line))
    lines[:] = marked


def skip_fields(app, what, name, obj, skip, options):
    """Fields of named tuples are told in the docstring of the tuple."""
    return True if type(obj).__name__ == "_tuplegetter" else None


def setup(app):
    # Before napoleon (priority 500), which rewrites the sections.
    app.connect("autodoc-process-docstring", as_it_is_set, priority=400)
    app.connect("autodoc-skip-member", skip_fields)
