"""The report of a run: how good the models are, and what the student has of its teacher."""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import binomtest

from kdjax.evaluation import page, plots
from kdjax.evaluation.fidelity import agreement_matrix, per_class_transfer, scores
from kdjax.evaluation.metrics import (
    confusion_matrix,
    expected_calibration_error,
    labelled,
    reliability_bins,
)
from kdjax.evaluation.tables import NOTHING, column, text_table

SHORT = ("accuracy", "agreement", "ece")
MORE = ("adaptive_ece", "nll", "brier", "kl_to_teacher", "kendall", "spearman")
UNITS = {
    "cross_entropy": "cross-entropy (nats)",
    "examples_per_second": "examples / s",
    "time": "ms a step",
}
SPEED = ("examples_per_second", "stall")
SHARES = ("accuracy", "agreement", "stall")  # metrics in [0, 1], shown in percent


def now() -> datetime.datetime:
    """The time, in UTC."""
    return datetime.datetime.now(datetime.UTC)


@dataclasses.dataclass(frozen=True)
class Report:
    """What a report is made of: plain data. Everything else is computed from it.

    Attributes:
      title: of the page.
      models: name -> logits `[N, C]` on the test split. The first model is the teacher, the second
        the student alone, further ones are distilled students; one model alone is reported too.
      labels: `[N]`, integers in [0, C).
      class_names: C names; empty: the classes are numbered.
      curves: stage -> `kind/metric` -> (steps `[T]`, values `[T]` or `[T, seeds]`), as from
        `kdjax.evaluation.curves`.
      config: nested plain values; `method.name`, `data.name` and `seed` also stand on top.
      environment: of `kdjax.evaluation.environment`.
      seconds: how long the run took; None: unknown.
      finished: when; by default now.

    Raises:
      ValueError: no model, logits of different shapes, labels outside the classes, or not one name
        a class.
    """

    title: str
    models: Mapping[str, np.ndarray]
    labels: np.ndarray
    class_names: Sequence[str] = ()
    curves: Mapping[str, Mapping[str, tuple]] = dataclasses.field(default_factory=dict)
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    environment: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    seconds: float | None = None
    finished: datetime.datetime = dataclasses.field(default_factory=now)

    def __post_init__(self):
        if not self.models:
            raise ValueError("models must hold the logits of at least one model, got none")
        shapes = {name: np.shape(logits) for name, logits in self.models.items()}
        if len(set(shapes.values())) != 1:
            raise ValueError(f"models must have logits of one shape, got {shapes}")
        for name, logits in self.models.items():
            labelled(logits, self.labels, name=f"models[{name!r}]")
        classes = next(iter(shapes.values()))[-1]
        if not self.class_names:
            object.__setattr__(self, "class_names", tuple(str(i) for i in range(classes)))
        if len(self.class_names) != classes:
            raise ValueError(
                f"class_names must be {classes}, one a class, got {len(self.class_names)}"
            )

    @property
    def teacher(self) -> np.ndarray | None:
        """The teacher's logits; None where there is one model only."""
        return next(iter(self.models.values())) if len(self.models) > 1 else None

    def scores(self) -> dict[str, dict[str, float]]:
        """Model -> metric -> number; the teacher is not compared with itself."""
        first = next(iter(self.models))
        return {
            name: scores(logits, self.labels, None if name == first else self.teacher)
            for name, logits in self.models.items()
        }


def summary_table(report: Report) -> str:
    """The models of a report in rows, as plain text: accuracy, agreement, calibration error."""
    shown = [column(metric) for metric in SHORT]
    rows = [
        (name, *(c.text(values.get(c.metric)).replace(NOTHING, "-") for c in shown))
        for name, values in report.scores().items()
    ]
    return text_table(("model", *(c.title for c in shown)), rows)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def header(
    title: str,
    config: Mapping[str, Any],
    environment: Mapping[str, Any],
    seconds: float | None,
    finished: datetime.datetime,
    size: tuple[str, str],
) -> list[str]:
    """The top of a report: what ran, on what, when; `size` names and counts what was tested."""
    pairs = []
    for label, path in (("method", "method.name"), ("data", "data.name"), ("seed", "seed")):
        value: Any = config
        for name in path.split("."):
            value = value.get(name) if isinstance(value, Mapping) else None
        if value is not None:
            pairs.append((label, str(value)))
    pairs.append(size)
    commit = environment.get("commit")
    if commit:
        changed = ", with changes" if environment.get("dirty") else ""
        pairs.append(("commit", f"{commit[:12]}{changed}"))
    pairs.append(("finished", finished.strftime("%Y-%m-%d %H:%M %Z")))
    if seconds is not None:
        pairs.append(("duration", _duration(seconds)))
    return [f"<header><h1>{page.escape(title)}</h1>", page.facts(pairs), "</header>"]


def _interval(right: float, count: int) -> str:
    """The 95 % interval of an accuracy on `count` examples, in percent (Wilson 1927)."""
    low, high = binomtest(round(right * count), count).proportion_ci(0.95, "wilson")
    return f"{100 * low:.1f} to {100 * high:.1f}"


def _scores(
    found: Mapping[str, Mapping[str, float]], metrics: Sequence[str], count: int | None = None
) -> str:
    """Models in rows; with `count`, the number of examples, the accuracy has its interval."""
    shown = [c for c in map(column, metrics) if any(c.metric in v for v in found.values())]
    header = ["model", *(c.title for c in shown)]
    rows = [[name, *(c.text(v.get(c.metric)) for c in shown)] for name, v in found.items()]
    if count is not None:
        header.append("accuracy, 95 % interval")
        for row, values in zip(rows, found.values()):
            row.append(_interval(values["accuracy"], count))
    return page.table(header, rows)


def _summary(report: Report) -> list[str]:
    found, count = report.scores(), len(report.labels)
    out = ["<h2>Summary</h2>", _scores(found, SHORT, count)]
    names = list(report.models)
    for name in names[2:]:
        teacher, alone, distilled = (found[n]["accuracy"] for n in (names[0], names[1], name))
        gain = f"{name}: {100 * (distilled - alone):+.2f} points over {names[1]}"
        if teacher > alone:
            share = 100 * (distilled - alone) / (teacher - alone)
            gain += f", {share:.0f} % of the gap to {names[0]}"
        out.append(page.paragraph(gain + "."))
    note = (
        f"One run on {count:,} test examples. The interval (Wilson) is that of the test sample "
        "alone; how much another seed would differ takes several runs."
    )
    more = page.details("More measures", _scores(found, MORE))
    return [*out, page.paragraph(note, note=True), more]


def curve_panels(curves: Mapping[str, Mapping[str, tuple]]) -> list[str]:
    """Every stage in one panel a metric; but the training of a stage in panels of its own."""
    validation: dict[str, dict[str, tuple]] = {}
    training: dict[str, dict[str, tuple]] = {}
    speed: dict[str, dict[str, tuple]] = {}
    for stage, metrics in curves.items():
        for name, curve in metrics.items():
            kind, _, metric = name.partition("/")
            if kind == "validation":
                validation.setdefault(metric, {})[stage] = curve
            elif metric in SPEED:
                speed.setdefault(metric, {})[stage] = curve
            elif metric.startswith("time/"):
                speed.setdefault(f"{stage}: time", {})[metric[len("time/") :]] = curve
            else:
                # loss, loss/<term> and <update>/loss/<term>: one panel an update.
                head, loss, term = f"/{metric}".partition("/loss")
                if loss and term[:1] in ("", "/"):
                    panel, label = f"{head}/loss", term[1:] or "total"
                else:
                    panel, label = f"/{metric}", metric
                training.setdefault(f"{stage}: {panel[1:]}", {})[label] = curve
    sections = {"Validation": validation, "Training": training, "Speed": speed}
    out = ["<h2>Learning curves</h2>"]
    for title, found in sections.items():
        if found:
            drawn = page.panels(_panel(metric, series) for metric, series in found.items())
            out.append(f"<h3>{title}</h3>{drawn}")
    return out if len(out) > 1 else []


def _panel(metric: str, series: Mapping[str, tuple]) -> str:
    """One panel of curves; a loss whose total is its only term is one line."""
    if len(series) == 2 and "total" in series:
        (_, total), (_, term) = series["total"], next(v for k, v in series.items() if k != "total")
        if np.array_equal(total, term, equal_nan=True):
            series = {name: curve for name, curve in series.items() if name != "total"}
    name = metric.rpartition(": ")[2].rpartition("/")[2]
    percent = name in SHARES
    y = f"{name} (%)" if percent else UNITS.get(name, name.replace("_", " "))
    title = metric.replace("_", " ")
    if len(series) == 1 and name == "loss":
        y = f"loss: {next(iter(series)).replace('_', ' ')}"
    figure = plots.learning_curves(series, title=plots.short(title, 40), y=y, percent=percent)
    return plots.svg(figure, f"{title} over steps: {', '.join(series)}")


def _calibration(report: Report) -> list[str]:
    figures = []
    for i, (name, logits) in enumerate(report.models.items()):
        bins = reliability_bins(logits, report.labels)
        color = plots.CYCLE[i % len(plots.CYCLE)]
        error = 100 * expected_calibration_error(logits, report.labels)
        title = f"{plots.short(name, 28)}: error {error:.2f} %"
        figure = plots.reliability_diagram(bins, title=title, color=color)
        figures.append(plots.svg(figure, f"Reliability diagram of {name}"))
    note = (
        "Accuracy of the examples in each of 15 bins of confidence, and below it how many there "
        "are. Below the diagonal a model is overconfident, above it is underconfident."
    )
    return ["<h2>Calibration</h2>", page.paragraph(note, note=True), page.panels(figures)]


def _confusion(report: Report) -> list[str]:
    confusion, agree = [], []
    first = next(iter(report.models))
    for name, logits in report.models.items():
        title = plots.short(name, 40)
        confusion.append(
            _heat(report, confusion_matrix(logits, report.labels), title, "label", "prediction")
        )
        if name != first:
            counts = agreement_matrix(logits, report.teacher)
            title = plots.short(f"{name} and {first}", 40)
            agree.append(
                _heat(report, counts, title, plots.short(first, 24), plots.short(name, 24))
            )
    note = "Counts of test examples; the colour is the share of the row."
    out = ["<h2>Confusion</h2>", page.paragraph(note, note=True), page.panels(confusion)]
    if agree:
        note = "How often a student predicts what its teacher predicts, right or wrong."
        out += ["<h2>Agreement with the teacher</h2>", page.paragraph(note, note=True)]
        out.append(page.panels(agree))
    return out


def _heat(report: Report, counts: np.ndarray, title: str, rows: str, columns: str) -> str:
    figure = plots.heat_map(counts, report.class_names, title=title, rows=rows, columns=columns)
    return plots.svg(figure, f"Matrix of {title}: {rows} in rows, {columns} in columns")


def _transfer(report: Report) -> list[str]:
    if len(report.models) < 3:
        return []
    (_, teacher), (_, alone), *students = report.models.items()
    points, share = column("accuracy"), column("accuracy")._replace(digits=0)
    out = ["<h2>Transfer by class</h2>"]
    for name, logits in students:
        found = per_class_transfer(report.labels, teacher, alone, logits)
        figure = plots.transfer_plot(found, report.class_names, title=plots.short(name, 40))
        rows = [
            (
                report.class_names[i],
                str(found.count[i]),
                points.text(found.teacher[i]),
                points.text(found.alone[i]),
                points.text(found.distilled[i]),
                points.text(found.gain[i], sign=True),
                share.text(found.closed[i]),
            )
            for i in range(len(report.class_names))
        ]
        header = ("class", "examples", "teacher (%)", "alone (%)", "distilled (%)")
        table = page.table((*header, "gain (points)", "gap closed (%)"), rows)
        drawn = plots.svg(figure, f"Accuracy by class of {name}")
        out.append(f'<div class="beside"><figure>{drawn}</figure>{table}</div>')
    shown = min(len(report.class_names), 30)
    note = f"The gap is teacher minus alone; {NOTHING} where the teacher is not ahead."
    if shown < len(report.class_names):
        note += f" The figure shows the {shown} classes that changed most."
    return [*out, page.paragraph(note, note=True)]


def provenance(config: Mapping[str, Any], environment: Mapping[str, Any]) -> list[str]:
    """The end of a report: every field of the config, and the versions."""
    config = json.dumps(config, indent=2, default=str, ensure_ascii=False)
    out = ["<h2>Config</h2>", page.details("Every field", f"<pre>{page.escape(config)}</pre>")]
    versions = ((name, NOTHING if v is None else str(v)) for name, v in environment.items())
    return [*out, "<h2>Versions</h2>", page.facts(versions)]


def write_report(path: str | os.PathLike, report: Report) -> pathlib.Path:
    """Writes the report as one HTML file that needs no network and no script.

    In it: what ran; the summary table; curves of every stage; reliability diagrams; confusion and
    agreement matrices; the transfer by class; the config; versions.

    Returns:
      The path. The file is written whole or not at all.
    """
    size = ("test examples", f"{len(report.labels):,}")
    facts = (report.config, report.environment)
    body = [
        *header(report.title, *facts, report.seconds, report.finished, size),
        *_summary(report),
        *curve_panels(report.curves),
        *(part for section in (_calibration, _confusion, _transfer) for part in section(report)),
        *provenance(*facts),
    ]
    return write_page(path, report.title, body)


def write_page(path: str | os.PathLike, title: str, body: Sequence[str]) -> pathlib.Path:
    """Writes a page of HTML whole or not at all; returns its path."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_text(page.page(title, body), "utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path
