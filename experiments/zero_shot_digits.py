"""Digits with a zero-shot teacher: what the experiments on DHO and on active learning share."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import numpy as np

from kdjax import data, evaluation, networks
from kdjax.methods import zero_shot
from kdjax.methods.task import Task
from kdjax.training.optimizers import Training

Scores = Mapping[str, Sequence[Mapping[str, float]]]  # arm -> one a seed


def images() -> tuple[np.ndarray, np.ndarray]:
    """The training digits, `[N, 64]` in [0, 1], and their labels."""
    train = data.load("digits").splits["train"].arrays()
    return train["image"].reshape(len(train["image"]), -1) / 255.0, train["label"]


def task(seed: int, embeddings: np.ndarray, scale: float, training: Training) -> Task:
    """A task of a seed, whose teacher has these class embeddings; the student is 64-64-10."""
    nets = {
        "teacher": zero_shot.classifier(10, scale=scale),
        "student": networks.build("mlp", 10, widths=(64,)),
    }
    roles = {"teacher": Training(), "student": training}
    found = Task(data.load("digits"), nets, roles, seed=seed, validate_every=training.steps // 4)
    return found.with_teacher(
        {"params": {"class_embeddings": jnp.asarray(embeddings, jnp.float32)}}
    )


def accuracy(task: Task, logits: np.ndarray, split: str = "test") -> float:
    """Of logits of a split."""
    labels = task.dataset.splits[split].arrays()["label"]
    return float(np.mean(logits.argmax(1) == labels))


def write(folder: pathlib.Path, name: str, arm: str, seed: int, config, metrics, seconds, around):
    """One record; `metrics`: those of the `last` and of the `selected` student."""
    record = evaluation.Record(
        method=arm,
        task=name,
        seed=seed,
        config=config if isinstance(config, dict) else dataclasses.asdict(config),
        metrics=metrics,
        curves={},
        commit=around.get("commit"),
        versions=around,
        seconds=seconds,
    )
    evaluation.write_record(folder / f"{arm}-seed{seed}.json", record)


def compared(scores: Scores, one: tuple[str, str], other: tuple[str, str]) -> tuple:
    """`(differences of a seed, text)` of two (arm, metric)."""
    a, b = (np.array([x[metric] for x in scores[arm]]) for arm, metric in (one, other))
    test = evaluation.paired_test(a, b)
    p = "none" if test.p is None else f"{test.p:.2g}"
    text = (
        f"{a.mean():.4f} ± {a.std(ddof=1):.4f} against {b.mean():.4f} ± {b.std(ddof=1):.4f}, "
        f"larger in {(a > b).sum()} of {len(a)}; paired difference {test.difference:+.4f}, p = {p}"
    )
    return a - b, text
