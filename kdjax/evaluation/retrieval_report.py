"""The report of a run on images and texts: recalls, curves, what is found for the same images."""

from __future__ import annotations

import base64
import dataclasses
import datetime
import io
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from kdjax.evaluation import page
from kdjax.evaluation.report import curve_panels, header, now, provenance, write_page
from kdjax.evaluation.tables import NOTHING, models_rows, text_table

SHORT = ("recall_at_1", "recall_at_5", "recall_at_10", "median_rank", "agreement")


@dataclasses.dataclass(frozen=True)
class RetrievalReport:
    """What a report on dual encoders is made of: plain data.

    Attributes:
      title: of the page.
      models: name -> metric -> number on the test split; the teacher first.
      images, texts: how many there are to search among.
      pictures: uint8 `[M, H, W, 3]`, of the first test images.
      found: name -> for each picture the texts that were found first.
      curves, config, environment, seconds, finished: as for `Report`.

    Raises:
      ValueError: no model, or not one list of texts a picture.
    """

    title: str
    models: Mapping[str, Mapping[str, float]]
    images: int
    texts: int
    pictures: Sequence[np.ndarray] = ()
    found: Mapping[str, Sequence[Sequence[str]]] = dataclasses.field(default_factory=dict)
    curves: Mapping[str, Mapping[str, tuple]] = dataclasses.field(default_factory=dict)
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    environment: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    seconds: float | None = None
    finished: datetime.datetime = dataclasses.field(default_factory=now)

    def __post_init__(self):
        if not self.models:
            raise ValueError("models must hold the metrics of at least one model, got none")
        for name, texts in self.found.items():
            if len(texts) != len(self.pictures):
                raise ValueError(
                    f"found[{name!r}] must be {len(self.pictures)} lists, one a picture, got "
                    f"{len(texts)}"
                )


def retrieval_table(report: RetrievalReport) -> str:
    """The models of a report in rows, as plain text: recalls and likeness to the teacher.

    >>> report = RetrievalReport("t", {"teacher": {"recall_at_1": 0.5}}, images=4, texts=4)
    >>> retrieval_table(report).splitlines()[2].split()
    ['teacher', '50.00', '-', '-', '-', '-']
    """
    head, rows = models_rows(report.models, SHORT)
    return text_table(head, [[cell.replace(NOTHING, "-") for cell in row] for row in rows])


def _examples(report: RetrievalReport) -> list[str]:
    if not report.found:
        return []
    out = ["<h2>What is found</h2>"]
    for i, picture in enumerate(report.pictures):
        file = io.BytesIO()
        Image.fromarray(np.asarray(picture)).save(file, "PNG")
        data = base64.b64encode(file.getvalue()).decode()
        rows = [[name, "; ".join(texts[i])] for name, texts in report.found.items()]
        out.append(f'<img alt="test image {i}" width="96" src="data:image/png;base64,{data}">')
        out.append(page.table(["model", "texts, the best first"], rows))
    return out


def write_retrieval_report(path: str | os.PathLike, report: RetrievalReport) -> pathlib.Path:
    """Writes the report as one HTML file that needs no network and no script.

    Returns:
      The path. The file is written whole or not at all.
    """
    facts = (report.config, report.environment)
    size = ("test images, texts", f"{report.images:,}, {report.texts:,}")
    every = sorted({metric for values in report.models.values() for metric in values})
    more = [metric for metric in every if metric not in SHORT]
    body = [
        *header(report.title, *facts, report.seconds, report.finished, size),
        "<h2>Summary</h2>",
        page.table(*models_rows(report.models, SHORT)),
        page.details("More measures", page.table(*models_rows(report.models, more))),
        *_examples(report),
        *curve_panels(report.curves),
        *provenance(*facts),
    ]
    return write_page(path, report.title, body)
