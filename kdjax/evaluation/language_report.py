"""The report of a run on text: perplexity, likeness to the teacher, curves, samples in a row."""

from __future__ import annotations

import dataclasses
import datetime
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from kdjax.evaluation import page
from kdjax.evaluation.report import curve_panels, header, now, provenance, write_page
from kdjax.evaluation.tables import NOTHING, models_rows, text_table

SHORT = ("perplexity", "kl_to_teacher", "agreement")


@dataclasses.dataclass(frozen=True)
class LanguageReport:
    """What a report on language models is made of: plain data.

    Attributes:
      title: of the page.
      models: name -> metric -> number, a mean over predicted tokens of the test split; the teacher
        first, then the student alone, then distilled ones.
      tokens: how many tokens were predicted.
      prompts: the beginnings that every model went on from, as text.
      samples: name -> one continuation a prompt.
      speed: stage -> tokens a second, of training.
      curves, config, environment, seconds, finished: as for `Report`.

    Raises:
      ValueError: no model, or not one sample a prompt.
    """

    title: str
    models: Mapping[str, Mapping[str, float]]
    tokens: int
    prompts: Sequence[str] = ()
    samples: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    speed: Mapping[str, float] = dataclasses.field(default_factory=dict)
    curves: Mapping[str, Mapping[str, tuple]] = dataclasses.field(default_factory=dict)
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    environment: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    seconds: float | None = None
    finished: datetime.datetime = dataclasses.field(default_factory=now)

    def __post_init__(self):
        if not self.models:
            raise ValueError("models must hold the metrics of at least one model, got none")
        for name, texts in self.samples.items():
            if len(texts) != len(self.prompts):
                raise ValueError(
                    f"samples[{name!r}] must be {len(self.prompts)}, one a prompt, got {len(texts)}"
                )


def language_table(report: LanguageReport) -> str:
    """The models of a report in rows, as plain text: perplexity and likeness to the teacher.

    >>> print(language_table(LanguageReport("t", {"teacher": {"perplexity": 12.0}}, tokens=10)))
    model    perplexity  KL to teacher (nats)  agreement with teacher (%)
    ---------------------------------------------------------------------
    teacher       12.00                     -                           -
    """
    head, rows = models_rows(report.models, SHORT)
    return text_table(head, [[cell.replace(NOTHING, "-") for cell in row] for row in rows])


def _samples(report: LanguageReport) -> list[str]:
    if not report.samples:
        return []
    out = ["<h2>Samples</h2>"]
    for i, prompt in enumerate(report.prompts):
        out.append(f"<h3>{page.escape(prompt)}</h3>")
        for name, texts in report.samples.items():
            out.append(page.paragraph(name, note=True))
            out.append(f"<pre>{page.escape(texts[i])}</pre>")
    return out


def write_language_report(path: str | os.PathLike, report: LanguageReport) -> pathlib.Path:
    """Writes the report as one HTML file that needs no network and no script.

    In it: what ran; perplexities and the divergence from the teacher; curves of every stage (a
    method's schedules among them); the speed of training; how every model goes on from the same
    beginnings; the config; versions.

    Returns:
      The path. The file is written whole or not at all.
    """
    facts = (report.config, report.environment)
    size = ("predicted test tokens", f"{report.tokens:,}")
    every = sorted({metric for values in report.models.values() for metric in values})
    more = [metric for metric in every if metric not in SHORT]
    body = [
        *header(report.title, *facts, report.seconds, report.finished, size),
        "<h2>Summary</h2>",
        page.table(*models_rows(report.models, SHORT)),
        page.details("More measures", page.table(*models_rows(report.models, more))),
    ]
    if report.speed:
        speeds = [[stage, f"{rate:,.0f}"] for stage, rate in report.speed.items()]
        body.append(page.table(["stage", "tokens / s"], speeds))
    body += [*_samples(report), *curve_panels(report.curves), *provenance(*facts)]
    return write_page(path, report.title, body)
