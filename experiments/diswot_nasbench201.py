"""How well scores without training rank the networks of NAS-Bench-201: a part of `diswot.py`."""

from __future__ import annotations

import csv
import gzip
import pathlib
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from experiments.architecture_rankings import agreement, claim, named, pools, recorded, table
from kdjax import data, evaluation, networks
from kdjax.methods.architecture_scores import cost, initial, observe, proxies, similarities
from kdjax.networks.nasbench201 import edges_of

SEEDS = (0, 1, 2)
CELLS = 64  # a seed, of the 15,625
BATCH = 64
STARTS = ("default", "gaussian")
TRUE = "cifar10_test"
BESIDE = ("cifar10_val", "cifar100_test", "imagenet16_120_test")
TEACHER, TEACHER_MAP, STUDENT_MAP = "resnet56", "stage3/out", "last/out"
RELUS = ("**/first/in", "**/second/in", "last/norm/out")
RELUS_OF_CONVOLUTIONS = ("**/edge*/in",)
PROXIES = ("snip", "plain", "grad_norm", "l2_norm", "synflow", "nwot", "zen")
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)  # of CIFAR-10


def ground_truth(path: pathlib.Path) -> tuple[list[str], dict[str, np.ndarray]]:
    """The cells of a file, and their accuracies (%) by column.

    Raises:
      ValueError: a missing column, an accuracy or a cell that is none, a cell that comes twice,
        fewer cells than a sample has.
    """
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    columns = (TRUE, *BESIDE)
    missing = [name for name in ("cell", *columns) if not rows or name not in rows[0]]
    if missing:
        raise ValueError(f"{path} must have the columns cell, {', '.join(columns)}; not {missing}")
    cells = [row["cell"] for row in rows]
    distinct = {edges_of(cell) for cell in cells}
    if len(distinct) < len(cells) or len(cells) < CELLS:
        raise ValueError(
            f"{path} must have {CELLS} cells or more, each once, got {len(cells)} rows of "
            f"{len(distinct)} cells"
        )
    accuracies = {name: np.array([float(row[name]) for row in rows]) for name in columns}
    for name, values in accuracies.items():
        if not np.all((values >= 0) & (values <= 100)):
            raise ValueError(f"{path}: {name} must be in [0, 100]")
    return cells, accuracies


def student(cell: str) -> networks.Network:
    """A network of the benchmark, for ten classes."""
    return networks.build("nasbench201", 10, edges=edges_of(cell))


def rectified(cell: str) -> tuple[str, ...]:
    """Patterns of what enters the ReLUs of a network."""
    return RELUS + RELUS_OF_CONVOLUTIONS * any("conv" in edge for edge in edges_of(cell))


def batch_of(split: data.Split, seed: int) -> tuple[jax.Array, jax.Array]:
    """Images and labels that a seed scores on.

    Raises:
      ValueError: no images of CIFAR-10's shape, or labels beyond its ten.
    """
    if split.fields.get("image") != (32, 32, 3) or split.labels().max() > 9:
        raise ValueError(
            f"{split.where} must have images shaped (32, 32, 3) of ten classes, got "
            f"{split.fields} and labels up to {split.labels().max()}"
        )
    rows = split.stack(np.random.default_rng(seed).choice(len(split), BATCH, replace=False))
    images = (rows["image"].astype(np.float32) / 255 - np.array(MEAN)) / np.array(STD)
    return jnp.asarray(images, jnp.float32), jnp.asarray(rows["label"])


def likeness(
    cells: Sequence[str], seed: int, x: jax.Array, labels: jax.Array, start: str
) -> dict[str, np.ndarray]:
    """DisWOT's scores of cells on one batch, each network from a start of its own."""
    first, second = jax.random.split(jax.random.key(seed))
    teacher, inputs = networks.build(TEACHER, 10), (x,)
    shown = observe(teacher, initial(teacher, first, inputs, start), inputs, labels, TEACHER_MAP)
    found = []
    for key, cell in zip(jax.random.split(second, len(cells)), cells):
        variables = initial(student(cell), key, inputs, start)
        seen = observe(student(cell), variables, inputs, labels, STUDENT_MAP)
        found.append(similarities(seen, shown))
    return pools(*(np.array([row[name] for row in found]) for name in ("relation", "semantic")))


def zero_cost(cells: Sequence[str], seed: int, x: jax.Array, labels: jax.Array):
    """The zero-cost proxies of cells on one batch."""
    key, rows = jax.random.key(seed), []
    for cell in cells:
        options = dict(tap=STUDENT_MAP, rectified=rectified(cell), names=PROXIES)
        rows.append(proxies(student(cell), key, (x,), labels, **options))
    return {name: np.array([row[name] for row in rows]) for name in PROXIES}


def nasbench201(
    results: pathlib.Path,
    path: pathlib.Path,
    images: str,
    with_proxies: bool,
    seeds: Sequence[int] = SEEDS,
) -> str:
    """The records of seeds, each with a sample of cells, and the table of all that there are."""
    cells, accuracies = ground_truth(path)
    split, environment = data.load(images).splits["train"], evaluation.environment()
    batches = {seed: batch_of(split, seed) for seed in seeds}
    for seed in seeds:
        began = time.monotonic()
        chosen = np.random.default_rng(seed).choice(len(cells), CELLS, replace=False)
        sample = [cells[i] for i in chosen]
        true = {name: values[chosen] for name, values in accuracies.items()}
        costs = [cost(student(cell), (np.zeros((1, 32, 32, 3), "f4"),)) for cell in sample]
        scores = {name: np.array([x[name] for x in costs], float) for name in costs[0]}
        scores |= {f"accuracy, {name}": true[name] for name in BESIDE}
        for start in STARTS:
            measured = likeness(sample, seed, *batches[seed], start)
            scores |= {f"{name}, {start}": x for name, x in measured.items()}
        if with_proxies and seed == SEEDS[0]:
            scores |= zero_cost(sample, seed, *batches[seed])
        metrics = named({name: agreement(true[TRUE], x) for name, x in scores.items()})
        record = evaluation.Record(
            method="scores",
            task="diswot-nasbench201",
            seed=seed,
            config={
                "cells": sample,
                "accuracies": {name: values.tolist() for name, values in true.items()},
                "scores": recorded(scores),
                "batch": BATCH,
            },
            metrics={"last": metrics, "selected": metrics},  # published: the same
            curves={},
            commit=environment["commit"],
            versions=environment,
            seconds=time.monotonic() - began,
        )
        evaluation.write_record(results / f"scores-seed{seed}.json", record)
    return report(results)


def report(results: pathlib.Path) -> str:
    """The table of the records that lie in a folder."""
    records = sorted(evaluation.read_records(results), key=lambda record: record.seed)
    measures: dict[str, dict[str, list[float]]] = {"kendall": {}, "spearman": {}}
    for record in records:
        for name, value in record.metrics["last"].items():
            score, measure = name.rsplit(": ", 1)
            if measure in measures:
                measures[measure].setdefault(score, []).append(value)
    seeds = ", ".join(str(record.seed) for record in records)
    head = (
        f"{CELLS} cells of NAS-Bench-201 a seed, each seed with a sample of its own; teacher "
        f"ResNet-56; {BATCH} images of CIFAR-10; seeds {seeds} (zero-cost proxies: {SEEDS[0]}). "
        "Kendall's tau with the published CIFAR-10 test accuracies after 12 epochs without "
        "distillation: the benchmark has none with it. Beside it the mean of Spearman's "
        "correlation."
    )
    taus = measures["kendall"]
    beside = {"Spearman": measures["spearman"]}
    return table("diswot-nasbench201", head, taus, claims(taus), results, beside)


def claims(taus: dict[str, list[float]]) -> list[str]:
    """What was expected of the ranking, beside what came."""
    said = []
    for start in STARTS:
        for name, least in (("relation", 0.35), ("semantic", 0.3)):
            values = taus[f"{name}, {start}"]
            text = f"{name}, {start} init: tau > {least} in every seed"
            said.append(claim(text, min(values) > least))
        both = taus[f"sum, {start}"]
        pairs = zip(both, taus["parameters"], strict=True)
        text = f"sum, as published, {start} init: above the number of parameters"
        said.append(claim(f"{text} in every seed", all(a > b for a, b in pairs)))
        if PROXIES[0] in taus:
            best = max(PROXIES, key=lambda name: taus[name][0])
            text = f"sum, as published, {start} init: above every zero-cost proxy"
            said.append(claim(f"{text} (the best is {best})", both[0] > taus[best][0]))
    return said
