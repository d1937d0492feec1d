"""Tables: Markdown for a comparison of methods over seeds, plain text for the terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from kdjax.evaluation.statistics import Values, holm, paired_test, summary

NOTHING = "–"


class Column(NamedTuple):
    """How a metric is printed: `value * scale` with `digits` decimals under `title`."""

    metric: str
    title: str
    scale: float = 1.0
    digits: int = 3

    def text(self, value: float | None, sign: bool = False) -> str:
        """The value as it is printed; a dash where there is none."""
        if value is None or not math.isfinite(value):
            return NOTHING
        return f"{value * self.scale:{'+' if sign else ''}.{self.digits}f}"

    def spread(self, mean: float, sd: float, sign: bool = False) -> str:
        """`mean ± sd`; without a spread where there was one seed."""
        text = self.text(mean, sign)
        return text if math.isnan(sd) else f"{text} ± {self.text(sd)}"


COLUMNS = {
    column.metric: column
    for column in (
        Column("accuracy", "accuracy (%)", 100, 2),
        Column("few_shot_accuracy", "accuracy on classes of < 20 examples (%)", 100, 2),
        Column("agreement", "agreement with teacher (%)", 100, 2),
        Column("ece", "calibration error (%)", 100, 2),
        Column("adaptive_ece", "calibration error, equal mass (%)", 100, 2),
        Column("nll", "negative log-likelihood (nats)"),
        Column("brier", "Brier score"),
        Column("kl_to_teacher", "KL to teacher (nats)"),
        Column("kendall", "Kendall tau with teacher"),
        Column("spearman", "Spearman rho with teacher"),
        *(Column(f"recall_at_{k}", f"recall at {k} (%)", 100, 2) for k in (1, 5, 10)),
        *(
            Column(f"{which}_recall_at_{k}", f"{which} recall at {k} (%)", 100, 2)
            for which in ("text", "image")
            for k in (1, 5, 10)
        ),
        Column("median_rank", "median rank", 1, 1),
        Column("perplexity", "perplexity", 1, 2),
        Column("cross_entropy", "cross-entropy (nats)"),
        Column("entropy", "entropy (nats)"),
        Column("reverse_kl", "KL from teacher (nats)"),
        Column("trajectory_error", "squared distance from the trajectory's end", 1, 4),
        Column("error_over_ddim_4", "over that of DDIM in 4 steps"),
        *(Column(f"ddim_{n}_error", f"DDIM in {n} steps", 1, 4) for n in (1, 2, 4, 8)),
    )
}


def column(metric: str) -> Column:
    """How a metric is printed: as in `COLUMNS`, or under its own name with three decimals."""
    return COLUMNS.get(metric, Column(metric, metric.replace("_", " ")))


def p_text(p: float | None) -> str:
    """A p-value with two significant digits; a dash where there was no test.

    >>> p_text(0.0312), p_text(1e-9), p_text(None)
    ('0.031', '< 0.0001', '–')
    """
    if p is None:
        return NOTHING
    return "< 0.0001" if p < 1e-4 else f"{p:.2g}"


def markdown_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], numbers: bool = True
) -> str:
    """A Markdown table, its first column to the left, and the others to the right if `numbers`.

    >>> print(markdown_table(("method", "n"), [("kd", "5")]))
    | method | n |
    | :--- | ---: |
    | kd | 5 |
    """
    others = ["---:" if numbers else ":---"] * (len(header) - 1)
    lines = [header, [":---", *others], *rows]
    cells = [[str(cell).replace("|", r"\|") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def claims_table(claims: Sequence[tuple[str, bool, str]]) -> str:
    """Claims as Markdown: each with whether it holds, and the numbers that say so.

    >>> print(claims_table([("better", True, "2 against 1")]).splitlines()[2])
    | better | holds | 2 against 1 |
    """
    rows = [(claim, "holds" if held else "fails", measured) for claim, held, measured in claims]
    return markdown_table(("claim", "", "measured"), rows, numbers=False)


def arms_table(
    scores: Mapping[str, Sequence[Mapping[str, float]]], metrics: Sequence[str], digits: int = 4
) -> str:
    """Arms in rows, metrics in columns, mean ± standard deviation over the seeds, as Markdown.

    Args:
      scores: arm -> metric -> value, one mapping a seed. An arm may lack a metric.
      metrics: what is shown, in this order.
      digits: decimals.

    >>> print(arms_table({"a": [{"x": 1.0}, {"x": 3.0}], "b": [{}]}, ("x",), 1).splitlines()[2:])
    ['| a | 2.0 ± 1.4 |', '| b |  |']
    """
    rows = []
    for arm, found in scores.items():
        cells = []
        for metric in metrics:
            values = [x[metric] for x in found if metric in x]
            shown = Column(metric, metric, 1, digits)
            cells.append(shown.spread(*summary(values)[:2]) if values else "")
        rows.append((arm, *cells))
    return markdown_table(("arm", *metrics), rows)


def models_rows(
    models: Mapping[str, Mapping[str, float]], metrics: Sequence[str]
) -> tuple[list[str], list[list[str]]]:
    """Head and rows of a report's table: a line a model, a column a metric."""
    shown = [column(metric) for metric in metrics]
    rows = [
        [name, *(c.text(values.get(c.metric)) for c in shown)] for name, values in models.items()
    ]
    return ["model", *(c.title for c in shown)], rows


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table for a terminal, its first column to the left and the others to the right.

    >>> print(text_table(("model", "accuracy"), [("teacher", "97.1")]))
    model    accuracy
    -----------------
    teacher      97.1
    """
    lines = [header, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]

    def text(line):
        first, *others = (
            cell.ljust(w) if i == 0 else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(line, widths))
        )
        return "  ".join((first, *others)).rstrip()

    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    return "\n".join([text(header), rule, *(text(row) for row in rows)])


def comparison_table(
    arms: Mapping[str, Mapping[str, Values]],
    *,
    baseline: str,
    metrics: Sequence[str] = ("accuracy", "agreement", "ece"),
) -> str:
    """Methods in rows, metrics in columns, as Markdown, each method tested against a baseline.

    A metric has three columns: mean ± standard deviation over the seeds, mean ± standard deviation
    of the paired difference from the baseline, and the p-value of `paired_test`, adjusted by `holm`
    over the methods tested on this metric. A line below the table says so.

    Args:
      arms: method -> metric -> values; entry i of every method belongs to the same seed.
      baseline: the method that the others are compared with.
      metrics: what is shown, in this order.

    Raises:
      ValueError: an unknown baseline, a metric that a method lacks, or different numbers of seeds.

    >>> arms = {"kd": {"accuracy": [0.9, 0.8]}, "new": {"accuracy": [0.95, 0.87]}}
    >>> print(comparison_table(arms, baseline="kd", metrics=("accuracy",)).splitlines()[3])
    | new | 91.00 ± 5.66 | +6.00 ± 1.41 | 0.11 |
    """
    if baseline not in arms:
        raise ValueError(f"baseline {baseline!r} is none of the methods {sorted(arms)}")
    for name, values in arms.items():
        for metric in metrics:
            if metric not in values:
                raise ValueError(f"method {name!r} has no metric {metric!r}: {sorted(values)}")
    seeds = {len(values[metric]) for values in arms.values() for metric in metrics}
    if len(seeds) != 1:
        raise ValueError(f"every method must have the same seeds, got {sorted(seeds)} of them")
    header, lines = ["method"], {name: [name] for name in arms}
    for shown in map(column, metrics):
        header += [shown.title, f"difference from {baseline}", "p"]
        reference = arms[baseline][shown.metric]
        tests = {
            name: paired_test(values[shown.metric], reference)
            for name, values in arms.items()
            if name != baseline
        }
        tested = {name: test.p for name, test in tests.items() if test.p is not None}
        adjusted = dict(zip(tested, holm(list(tested.values()))))
        for name, values in arms.items():
            mean, sd, *_ = summary(values[shown.metric])
            lines[name].append(shown.spread(mean, sd))
            if name == baseline:
                lines[name] += [NOTHING, NOTHING]
            else:
                test = tests[name]
                lines[name].append(shown.spread(test.difference, test.sd, sign=True))
                lines[name].append(p_text(adjusted.get(name)))
    n = seeds.pop()
    note = (
        f"Mean ± standard deviation over {n} seeds. p: paired t-test against {baseline} over the "
        f"seeds, two-sided, Holm-adjusted over the methods. {NOTHING}: no test."
        if n > 1
        else "One seed: no spread and no test."
    )
    return f"{markdown_table(header, list(lines.values()))}\n\n{note}"
