"""Figures: small panels that say one thing each, readable for the colour-blind.

Every function returns a matplotlib `Figure` that no global state knows of; `png` and `svg` turn it
into bytes or text. A figure is about four inches wide, so that it keeps its size on a telephone
and several stand beside each other on a desk. Colours are those of Okabe and Ito 2008.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap, PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from kdjax.evaluation.fidelity import Transfer
from kdjax.evaluation.metrics import Bins
from kdjax.evaluation.statistics import Values, summary

BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
)
CYCLE = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY)
NAMES = {"blue": BLUE, "vermillion": VERMILLION, "green": GREEN}
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 2)))
INK = "#1b1b1f"  # of text and axes; `svg` makes it the colour of the page's text
SMALL, NORMAL, LARGE = 9.5, 10.5, 11.5  # points
WIDTH = 4.2  # inches
# From nothing to blue, so that an empty cell has the colour of the page, light or dark.
SHARES = LinearSegmentedColormap.from_list("shares", [(0.0, 0.447, 0.698, 0.0), BLUE])
_DENSE = 14  # classes up to which a heat map writes its counts


def png(figure: Figure, dpi: int = 160) -> bytes:
    """The figure as PNG on white."""
    FigureCanvasAgg(figure)
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=dpi, facecolor="white")
    return out.getvalue()


def svg(figure: Figure, label: str) -> str:
    """The figure as an `<svg>` element for a page: transparent, its ink the colour of the text.

    Args:
      figure: what a function of this module returned.
      label: what a screen reader says; plain text.
    """
    out = io.StringIO()
    # Glyphs are drawn as paths: the page need not have the font, and looks the same everywhere.
    with matplotlib.rc_context({"svg.fonttype": "path", "svg.hashsalt": label}):
        plain = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(out, format="svg", transparent=True, metadata=plain)
    text = out.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    for name, color in NAMES.items():  # a page may lighten them where it is dark
        text = text.replace(color, f"var(--{name}, {color})")
    text = re.sub(r' xmlns(:xlink)?="[^"]*"', "", text).replace("xlink:href", "href")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    label = label.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
    return text.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)


def _axes(title: str, x: str, y: str, height: float = 3.0) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.add_subplot()
    _style(axes, title, x, y)
    return figure, axes


def _style(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title, fontsize=LARGE, color=INK, loc="left")
    axes.set_xlabel(x, fontsize=NORMAL, color=INK)
    axes.set_ylabel(y, fontsize=NORMAL, color=INK)
    axes.tick_params(labelsize=SMALL, colors=INK, length=3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(INK)
    axes.grid(color=INK, alpha=0.12, linewidth=0.6)
    axes.set_axisbelow(True)


def _legend(axes: Axes, columns: int = 1) -> None:
    axes.legend(fontsize=SMALL, frameon=False, labelcolor=INK, ncols=columns)


def _legend_below(figure: Figure, axes: Axes) -> None:
    figure.legend(
        *axes.get_legend_handles_labels(),
        loc="outside lower center",
        ncols=3,
        fontsize=SMALL,
        frameon=False,
        labelcolor=INK,
        columnspacing=1.2,
        handletextpad=0.5,
    )


def _percent(axis) -> None:
    axis.set_major_formatter(lambda value, _: f"{round(100 * value, 6):g}")


def short(text: str, size: int = 18) -> str:
    """A name that fits an axis, and that matplotlib does not read as mathematics."""
    text = text if len(text) <= size else text[: size - 1] + "…"
    return text.replace("$", r"\$")


def learning_curves(
    series: Mapping[str, tuple[np.ndarray, np.ndarray]],
    *,
    title: str,
    y: str,
    percent: bool = False,
    x: str = "step",
) -> Figure:
    """Lines over steps; with several seeds their mean, in a band of one standard deviation.

    Args:
      series: label -> (steps `[T]`, values `[T]` or `[T, seeds]`); NaN leaves a gap.
      title, y, x: of the panel; give `y` with its unit.
      percent: values in [0, 1] are shown in percent.

    Raises:
      ValueError: values whose first axis is not that of the steps.
    """
    figure, axes = _axes(title, x, y)
    banded = False
    for i, (label, (steps, values)) in enumerate(series.items()):
        steps, values = np.asarray(steps), np.asarray(values, np.float64)
        if values.ndim not in (1, 2) or len(values) != len(steps):
            raise ValueError(
                f"series[{label!r}] must be values [T] or [T, seeds] of {len(steps)} steps, "
                f"got shape {values.shape}"
            )
        color, dashes = CYCLE[i % len(CYCLE)], DASHES[i % len(DASHES)]
        seeds = values[:, None] if values.ndim == 1 else values
        mean = seeds.mean(1)
        marker = "o" if len(steps) < 3 else None
        axes.plot(
            steps,
            mean,
            color=color,
            linestyle=dashes,
            linewidth=1.6,
            marker=marker,
            markersize=4,
            label=short(label, 28),
        )
        if seeds.shape[1] > 1:
            sd = seeds.std(1, ddof=1)
            axes.fill_between(steps, mean - sd, mean + sd, color=color, alpha=0.2, linewidth=0)
        banded |= seeds.shape[1] > 1
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    if banded:
        axes.set_xlabel(f"{x} (band: ± one standard deviation over seeds)", fontsize=SMALL)
    if percent:
        _percent(axes.yaxis)
    if len(series) > 1:
        _legend(axes, columns=2 if len(series) > 3 else 1)
    return figure


def arms_plot(values: Mapping[str, Values], *, title: str, x: str, percent: bool = False) -> Figure:
    """Methods in rows: every seed a dot, the mean and its 95 % interval beside them.

    Args:
      values: method -> one value a seed.
      title: of the panel.
      x: what the values are, with the unit.
      percent: values in [0, 1] are shown in percent.
    """
    figure, axes = _axes(title, x, "", 1.2 + 0.42 * len(values))
    for row, seeds in enumerate(values.values()):
        found, color = summary(seeds), CYCLE[row % len(CYCLE)]
        once = row == 0  # a legend entry for the first method stands for all
        axes.plot(
            seeds,
            np.full(len(seeds), row + 0.16),
            "o",
            color=color,
            alpha=0.45,
            ms=4,
            mew=0,
            label="a seed" if once else None,
        )
        half = np.nan_to_num(found.high - found.mean)
        axes.errorbar(
            found.mean,
            row - 0.12,
            xerr=half,
            fmt="D",
            color=color,
            ms=5,
            capsize=3,
            lw=1.6,
            label="mean, 95 % interval" if once else None,
        )
    axes.set_yticks(range(len(values)), [short(name, 24) for name in values])
    axes.set_ylim(len(values) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    if percent:
        _percent(axes.xaxis)
    _legend_below(figure, axes)
    return figure


def reliability_diagram(bins: Bins, *, title: str, color: str = BLUE) -> Figure:
    """Accuracy against confidence, bin by bin, over the number of examples in each bin.

    On the dashed diagonal a model is right as often as it says; below it is overconfident.

    Args:
      bins: of `reliability_bins`.
      title: of the panel.
      color: of the bars.
    """
    figure = Figure(figsize=(WIDTH, 4.2), layout="constrained")
    axes, strip = figure.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": (3.4, 1)})
    _style(axes, title, "", "accuracy (%)")
    _style(strip, "", "confidence (%)", "examples")
    filled = bins.count > 0
    left, width = bins.edges[:-1][filled], np.diff(bins.edges)[filled]
    count, confidence, right = (x[filled] for x in (bins.count, bins.confidence, bins.accuracy))
    place = dict(align="edge", color=color, edgecolor=color, linewidth=0.8)
    axes.bar(left, right, width, alpha=0.3, **place)
    axes.plot([0, 1], [0, 1], color=INK, linestyle="--", linewidth=1, label="perfect calibration")
    axes.plot(confidence, right, "o", color=color, ms=4.5, clip_on=False, label="mean of a bin")
    strip.bar(left, count, width, alpha=0.6, **place)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.tick_params(labelbottom=False)
    strip.yaxis.set_major_locator(MaxNLocator(2, integer=True))
    _percent(axes.yaxis)
    _percent(strip.xaxis)
    _legend_below(figure, axes)
    figure.align_ylabels()
    return figure


def heat_map(
    counts: np.ndarray, class_names: Sequence[str], *, title: str, rows: str, columns: str
) -> Figure:
    """A matrix of counts, its colour the share of the row; faint shares are made visible.

    Args:
      counts: `[C, C]`, not negative.
      class_names: C names.
      title, rows, columns: of the panel, the vertical and the horizontal axis.
    """
    size = len(counts)
    figure = Figure(figsize=(WIDTH, WIDTH), layout="constrained")
    axes = figure.add_subplot()
    _style(axes, title, columns, rows)
    total = counts.sum(1, keepdims=True)
    share = counts / np.where(total > 0, total, 1)
    norm = PowerNorm(0.5, 0, 1)
    axes.grid(visible=False)
    axes.imshow(share, cmap=SHARES, norm=norm, interpolation="nearest")
    axes.spines[:].set_visible(True)
    axes.spines[:].set_color(INK)
    axes.spines[:].set_linewidth(0.6)
    every = max(1, -(-size // 20))  # at most 20 names on an axis
    ticks = range(0, size, every)
    names = [short(class_names[i], 10) for i in ticks]
    axes.set_xticks(ticks, names, rotation=90 if max(map(len, names)) > 2 else 0)
    axes.set_yticks(ticks, names)
    if size <= _DENSE:
        for i, j in np.argwhere(counts):
            color = "white" if norm(share[i, j]) > 0.85 else INK
            text = f"{counts[i, j]}"
            points = min(SMALL, 90 / size if len(text) < 4 else 68 / size)
            axes.text(j, i, text, ha="center", va="center", fontsize=points, color=color)
    return figure


def transfer_plot(
    transfer: Transfer, class_names: Sequence[str], *, title: str, limit: int = 30
) -> Figure:
    """Classes in rows, the accuracy of teacher, student alone and distilled student on each.

    Args:
      transfer: of `per_class_transfer`.
      class_names: C names.
      title: of the panel.
      limit: how many classes are shown at most; those whose accuracy changed most come first.
    """
    shown = np.flatnonzero(transfer.count)
    if len(shown) > limit:
        shown = np.sort(shown[np.argsort(-np.abs(transfer.gain[shown]), kind="stable")[:limit]])
    figure, axes = _axes(title, "accuracy (%)", "", 1.3 + 0.27 * len(shown))
    y = np.arange(len(shown))
    alone, distilled = transfer.alone[shown], transfer.distilled[shown]
    axes.hlines(y, alone, distilled, color=INK, alpha=0.5, linewidth=1.5)
    axes.plot(transfer.teacher[shown], y, "|", color=BLUE, ms=11, mew=2, label="teacher")
    axes.plot(alone, y, "o", color=VERMILLION, ms=5.5, mfc="none", mew=1.5, label="alone")
    axes.plot(distilled, y, "o", color=GREEN, ms=5.5, label="distilled")
    axes.set_yticks(y, [short(class_names[i]) for i in shown])
    axes.set_ylim(len(shown) - 0.4, -0.6)
    _percent(axes.xaxis)
    _legend_below(figure, axes)
    return figure
