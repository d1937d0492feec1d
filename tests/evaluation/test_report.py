"""The report holds every section, needs nothing but itself, and says what it cannot show."""

import html.parser
import re
import subprocess

import numpy as np
import pytest

import kdjax
from kdjax import evaluation
from kdjax.evaluation import page, plots

NAMES = ("zero", "<b>one</b>", "two & $\\frac$", 'three "q"')
PNG = b"\x89PNG\r\n\x1a\n"


def make(**changes):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 120)
    one = 2 * np.eye(4)[labels]
    steps = np.array([50, 100, 150])
    curves = {
        "teacher": {
            "train/loss": (steps, np.array([2.0, 1.0, np.nan])),
            "train/loss/cross_entropy": (steps, np.array([2.0, 1.0, np.nan])),
            "validation/accuracy": (steps, np.array([0.5, 0.6, 0.7])),
        },
        "distill": {
            "train/loss": (steps, rng.random((3, 5))),
            "train/loss/kd": (steps, rng.random((3, 5))),
            "train/student/loss/hint": (steps, rng.random(3)),
            "train/examples_per_second": (steps, rng.random(3)),
            "validation/accuracy": (steps, rng.random((3, 5))),
        },
    }
    fields = dict(
        title="kd on <digits>",
        models={
            "teacher": one + 0.8 * rng.normal(size=one.shape),
            "student alone": one + 2.0 * rng.normal(size=one.shape),
            "distilled <student>": one + 1.2 * rng.normal(size=one.shape),
        },
        labels=labels,
        class_names=NAMES,
        curves=curves,
        config={"method": {"name": "kd"}, "data": {"name": "digits"}, "seed": 7, "tag": "<i>"},
        environment={"jax": "0.10.2", "commit": "0123456789abcdef", "dirty": True},
        seconds=75.0,
    )
    return evaluation.Report(**{**fields, **changes})


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "workdir" / "report.html"
    assert evaluation.write_report(path, make()) == path
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]
    return path.read_text("utf-8")


def test_the_report_contains_every_section(text):
    assert re.findall("<h2>(.*?)</h2>", text) == [
        "Summary",
        "Learning curves",
        "Calibration",
        "Confusion",
        "Agreement with the teacher",
        "Transfer by class",
        "Config",
        "Versions",
    ]
    assert re.findall("<h3>(.*?)</h3>", text) == ["Validation", "Training", "Speed"]
    # 1 of validation, 3 losses, 1 of speed, 3 reliability, 3 confusion, 2 agreement, 1 transfer.
    assert text.count("<svg") == text.count("</svg>") == 14


def test_the_report_says_what_ran(text):
    header = text[text.index("<header>") : text.index("</header>")]
    facts = dict(re.findall("<dt>(.*?)</dt><dd>(.*?)</dd>", header))
    assert facts.pop("finished").endswith("UTC")
    assert facts == {
        "method": "kd",
        "data": "digits",
        "seed": "7",
        "test examples": "120",
        "commit": "0123456789ab, with changes",
        "duration": "1 min 15 s",
    }
    assert "<dt>jax</dt><dd>0.10.2</dd>" in text


def test_the_report_needs_no_network_and_no_script(text):
    assert not re.search(r"https?://|//\w|@import|url\((?!#)|<(script|link|iframe|object)\b", text)
    # What is left of references points into the file itself.
    references = re.findall(r'\b(?:src|href)="([^"]*)"', text)
    assert references
    assert all(x.startswith(("#", "data:image/png;base64,")) for x in references)


def test_the_report_is_made_for_telephones_and_for_the_dark(text):
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in text
    assert "prefers-color-scheme: dark" in text
    assert "currentColor" in text
    assert plots.INK not in text[text.index("<main>") :]


def test_the_report_escapes_names_and_config(text):
    main = text[text.index("<main>") :]
    for bad in ("<b>", "<i>", "<digits>", "<student>"):
        assert bad not in main
    for good in (
        "&lt;b&gt;one&lt;/b&gt;",
        "two &amp; $\\frac$",
        "&lt;i&gt;",
        "kd on &lt;digits&gt;",
    ):
        assert good in main


def test_a_table_escapes_every_cell():
    assert "<i>" not in page.table(("<i>a", "b"), [("<i>", "&")])


def test_the_report_is_well_formed(text):
    class Parser(html.parser.HTMLParser):
        def __init__(self):
            super().__init__()
            self.open_tags = []

        def handle_starttag(self, tag, attributes):
            if tag not in ("meta", "br"):
                self.open_tags.append(tag)

        def handle_endtag(self, tag):
            assert self.open_tags.pop() == tag

    parser = Parser()
    parser.feed(text)
    assert not parser.open_tags


def test_the_summary_table_is_what_the_metrics_say(text):
    report = make()
    student = report.models["student alone"]
    accuracy = 100 * evaluation.accuracy(student, report.labels)
    agreement = 100 * evaluation.agreement(student, report.models["teacher"])
    error = 100 * evaluation.expected_calibration_error(student, report.labels)
    row = [f"{x:.2f}" for x in (accuracy, agreement, error)]
    cells = "".join(f"<td>{x}</td>" for x in ("student alone", *row))
    assert cells in text
    lines = evaluation.summary_table(report).splitlines()
    assert lines[3].split()[-3:] == row
    assert [line.split()[0] for line in lines[2:]] == ["teacher", "student", "distilled"]
    assert lines[2].split()[2] == "-"  # a teacher is not compared with itself
    assert all(ord(x) < 128 for x in "".join(lines))


def test_the_gap_that_was_closed_is_stated(text):
    report = make()
    teacher, alone, distilled = (
        100 * evaluation.accuracy(x, report.labels) for x in report.models.values()
    )
    assert teacher > distilled > alone
    share = (distilled - alone) / (teacher - alone)
    expected = f"{distilled - alone:+.2f} points over student alone, {100 * share:.0f} % of the gap"
    assert expected in text


@pytest.mark.parametrize(("count", "missing"), [(1, "Agreement"), (2, "Transfer")])
def test_fewer_models_leave_out_what_needs_more(count, missing, tmp_path):
    models = dict(list(make().models.items())[:count])
    report = make(models=models, curves={}, class_names=(), environment={}, seconds=None)
    text = evaluation.write_report(tmp_path / "r.html", report).read_text("utf-8")
    assert f"<h2>{missing}" not in text
    assert "<h2>Learning curves" not in text
    assert len(evaluation.summary_table(report).splitlines()) == 2 + count


def test_many_classes_with_long_names_are_drawn_and_the_cut_is_said(tmp_path):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 40, 300)
    models = {name: rng.normal(size=(300, 40)) for name in ("teacher", "alone", "distilled")}
    names = tuple(f"a very long name of class {i}" for i in range(40))
    report = make(models=models, labels=labels, class_names=names, curves={})
    text = evaluation.write_report(tmp_path / "r.html", report).read_text("utf-8")
    assert "The figure shows the 30 classes that changed most" in text
    assert names[-1] in text


def test_a_report_that_fails_leaves_no_file(tmp_path):
    report = make(curves={"teacher": {"train/loss": (np.arange(3), np.zeros(2))}})
    with pytest.raises(ValueError, match=r"series\['total'\] must be values \[T\]"):
        evaluation.write_report(tmp_path / "r.html", report)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"models": {}}, "at least one model"),
        ({"class_names": ("a",)}, "class_names must be 4, one a class, got 1"),
        ({"labels": np.full(120, 4)}, r"labels must lie in \[0, 4\), got 4"),
        ({"labels": np.zeros(3, int)}, r"labels must have shape \(120,\)"),
        (
            {"models": {"teacher": np.zeros((120, 4)), "student": np.zeros((120, 3))}},
            "models must have logits of one shape",
        ),
        ({"models": {"teacher": np.full((120, 4), np.nan)}}, r"models\['teacher'\] is not finite"),
    ],
)
def test_a_report_of_parts_that_do_not_fit_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        make(**changes)


def test_figures_are_png_bytes_and_no_global_state():
    from matplotlib import _pylab_helpers

    arms = {"kd": [0.9, 0.91, 0.92], "one_seed": [0.9]}
    steps = np.arange(2)
    figures = [
        evaluation.arms_plot(arms, title="digits", x="accuracy (%)", percent=True),
        evaluation.learning_curves({"kd": (steps, np.ones((2, 3)))}, title="t", y="loss"),
        evaluation.heat_map(np.eye(4, dtype=int), NAMES, title="t", rows="a", columns="b"),
    ]
    assert all(evaluation.png(figure).startswith(PNG) for figure in figures)
    assert not _pylab_helpers.Gcf.figs


def test_a_figure_is_drawn_to_the_same_bytes_twice():
    def draw():
        curve = {"kd": (np.arange(3), np.arange(3.0))}
        return evaluation.svg(evaluation.learning_curves(curve, title="t", y="loss"), "a label")

    assert draw() == draw()


def test_a_band_is_one_standard_deviation_around_the_mean():
    values = np.array([[1.0, 2.0, 3.0], [2.0, 4.0, 6.0]])
    figure = evaluation.learning_curves({"kd": (np.array([0, 1]), values)}, title="t", y="loss")
    (axes,) = figure.axes
    np.testing.assert_allclose(axes.lines[0].get_ydata(), [2.0, 4.0])
    corners = axes.collections[0].get_paths()[0].vertices
    assert {1.0, 3.0} <= set(corners[corners[:, 0] == 0, 1])
    assert {2.0, 6.0} <= set(corners[corners[:, 0] == 1, 1])


def test_the_environment_names_versions_and_no_path():
    found = evaluation.environment()
    assert {"kdjax", "python", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint"} <= set(found)
    assert {"numpy", "platform", "device", "devices", "commit", "dirty"} <= set(found)
    assert not any("/" in str(value) for value in found.values())


def test_the_commit_is_that_of_kdjaxs_own_repository_only(tmp_path, monkeypatch):
    def git(*arguments):
        identity = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "init.defaultBranch=main")
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    package = tmp_path / "kdjax"
    package.mkdir()
    (package / "__init__.py").write_text("")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.setattr(kdjax, "__file__", str(package / "__init__.py"))
    found = evaluation.environment()
    assert (found["commit"], found["dirty"]) == (None, None)

    git("init")
    git("add", ".")
    git("commit", "-m", "one")
    commit = git("rev-parse", "HEAD")
    (tmp_path / "results.json").write_text("{}")
    found = evaluation.environment()
    assert (found["commit"], found["dirty"]) == (commit, False)
    (package / "new.py").write_text("")
    assert evaluation.environment()["dirty"] is True

    inner = tmp_path / "site-packages" / "kdjax"
    inner.mkdir(parents=True)
    monkeypatch.setattr(kdjax, "__file__", str(inner / "__init__.py"))
    assert evaluation.environment()["commit"] is None
