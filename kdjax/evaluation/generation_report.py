"""The report of a run on a generation task: distances from the teacher's samples, curves."""

from __future__ import annotations

import dataclasses
import datetime
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from kdjax.evaluation import page
from kdjax.evaluation.report import curve_panels, header, now, provenance, write_page
from kdjax.evaluation.tables import column, text_table


@dataclasses.dataclass(frozen=True)
class GenerationReport:
    """What a report on one-step generators is made of: plain data.

    Attributes:
      title: of the page.
      models: name -> metric -> number; the teacher first.
      noises: how many samples were compared.
      steps: of the teacher's trajectories that they were compared with.
      curves, config, environment, seconds, finished: as for `Report`.

    Raises:
      ValueError: no model.
    """

    title: str
    models: Mapping[str, Mapping[str, float]]
    noises: int
    steps: int
    curves: Mapping[str, Mapping[str, tuple]] = dataclasses.field(default_factory=dict)
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    environment: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    seconds: float | None = None
    finished: datetime.datetime = dataclasses.field(default_factory=now)

    def __post_init__(self):
        if not self.models:
            raise ValueError("models must hold the metrics of at least one model, got none")


def _rows(report: GenerationReport) -> tuple[list[str], list[list[str]]]:
    """The models in one call each, then the teacher in several steps."""
    shown = column("trajectory_error")
    rows = [
        [f"{name}, one call", shown.text(values["trajectory_error"])]
        for name, values in report.models.items()
    ]
    steps = next(iter(report.models.values()))
    for metric in (f"ddim_{n}_error" for n in (2, 4, 8)):
        if metric in steps:
            rows.append([f"teacher, {column(metric).title}", shown.text(steps[metric])])
    return ["model", shown.title], rows


def generation_table(report: GenerationReport) -> str:
    """The models of a report in rows, as plain text.

    >>> models = {"teacher": {"trajectory_error": 2.0, "ddim_4_error": 0.05}}
    >>> print(generation_table(GenerationReport("t", models, noises=8, steps=100)))
    model                     squared distance from the trajectory's end
    --------------------------------------------------------------------
    teacher, one call                                             2.0000
    teacher, DDIM in 4 steps                                      0.0500
    """
    return text_table(*_rows(report))


def write_generation_report(path: str | os.PathLike, report: GenerationReport) -> pathlib.Path:
    """Writes the report as one HTML file that needs no network and no script.

    Returns:
      The path. The file is written whole or not at all.
    """
    facts = (report.config, report.environment)
    size = ("test noises, steps of the trajectories", f"{report.noises:,}, {report.steps:,}")
    body = [
        *header(report.title, *facts, report.seconds, report.finished, size),
        "<h2>Summary</h2>",
        page.table(*_rows(report)),
        *curve_panels(report.curves),
        *provenance(*facts),
    ]
    return write_page(path, report.title, body)
