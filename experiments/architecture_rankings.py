"""How scores of architectures agree with what the architectures reach, as records and a table."""

from __future__ import annotations

import pathlib
import warnings
from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import numpy as np
import scipy.stats

from kdjax import losses


def kendall(true: Sequence[float], predicted: Sequence[float]) -> float:
    """Kendall's tau; NaN where one of the two is constant.

    >>> round(kendall((1, 2, 3), (1, 3, 2)), 4)
    0.3333
    """
    return float(scipy.stats.kendalltau(true, predicted).statistic)


def agreement(true: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """How a ranking agrees with the true one, by every measure of the paper.

    NaN, with a warning, where there is no ranking: a score is constant, or not a number.
    """
    names = (
        "kendall",
        "spearman",
        "pearson",
        "precision_at_top_quarter",
        "best_rank_at_quarter",
        "rank_difference",
    )
    if np.isnan(predicted).any() or len(np.unique(predicted)) == 1:
        warnings.warn(f"no ranking of {len(true)} candidates by {predicted}", stacklevel=2)
        return dict.fromkeys(names, np.nan)
    pair = jnp.asarray(true, jnp.float32), jnp.asarray(scipy.stats.rankdata(predicted), jnp.float32)
    k = max(1, len(true) // 4)
    finite = np.isfinite(predicted).all()
    values = (
        kendall(true, predicted),
        scipy.stats.spearmanr(true, predicted).statistic,
        scipy.stats.pearsonr(true, predicted).statistic if finite else np.nan,
        losses.precision_at_top_k(*pair, k=k),
        losses.best_rank_at_k(*pair, k=k),
        losses.rank_difference(*pair),
    )
    return dict(zip(names, map(float, values)))


def named(found: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Agreements of scores as the metrics of a record: `score: measure` -> number, if it is one."""
    flat = {f"{score}: {x}": value for score, of in found.items() for x, value in of.items()}
    return {name: value for name, value in flat.items() if np.isfinite(value)}


def recorded(scores: Mapping[str, np.ndarray]) -> dict[str, list[float | None]]:
    """Scores for a record; what is not finite becomes None."""
    return {n: [float(v) if np.isfinite(v) else None for v in x] for n, x in scores.items()}


def pools(relation: np.ndarray, semantic: np.ndarray) -> dict[str, np.ndarray]:
    """The scores of a pool that DisWOT's similarities give."""
    both = jnp.asarray(relation), jnp.asarray(semantic)
    combined = {
        c: np.asarray(losses.diswot(*both, combine=c)) for c in ("sum", "zscore", "rank_sum")
    }
    return {"relation": relation, "semantic": semantic, **combined}


def claim(said: str, holds: bool) -> str:
    return f"- {said}: {'holds' if holds else 'FAILS'}"


def table(
    name: str,
    head: str,
    taus: Mapping[str, list[float]],
    claims: list[str],
    results: pathlib.Path,
    beside: Mapping[str, Mapping[str, list[float]]] | None = None,
) -> str:
    """The table of the taus, the best mean first, with the claims below.

    Args:
      name: of the experiment.
      head: what was ranked by what.
      taus: score -> one of each seed.
      claims: lines.
      results: where `table.md` is written.
      beside: further columns, measure -> score -> one of each seed; their means are shown.
    """
    rows, more = sorted(taus.items(), key=lambda item: -np.mean(item[1])), beside or {}
    lines = [
        f"# {name}",
        "",
        head,
        "",
        f"| score | tau, mean | of the seeds |{''.join(f' {column} |' for column in more)}",
        f"| --- | ---: | --- |{' ---: |' * len(more)}",
    ]
    lines += [
        f"| {which} | {np.mean(values):.3f} | {', '.join(f'{v:.3f}' for v in values)} |"
        + "".join(f" {np.mean(column[which]):.3f} |" for column in more.values())
        for which, values in rows
    ]
    text = "\n".join([*lines, "", *claims, ""])
    results.mkdir(parents=True, exist_ok=True)
    (results / "table.md").write_text(text)
    return text
