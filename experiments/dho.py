"""Dual-head optimization on 8 x 8 digits: four labels a class, a zero-shot teacher of some 80 %.

    python -m experiments.dho                 # six seeds
    python -m experiments.dho results 2       # two seeds

The teacher is the cosine to ten class means with noise, over 0.05; the student 64-64-10 with one
head or two, 1,200 steps of 32 labelled and 64 of all 1,257 training images. alpha and beta of two
heads are searched on the 180 validation images. `features` is one head beside the teacher's
features, which here are the pixels; `dho-f` has a teacher that the 40 labels have taught
(Tip-Adapter-F, 100 steps of its keys). Writes one record a seed and arm, and a page that
says which claims hold, to `results/digits-dho`.
"""

from __future__ import annotations

import dataclasses
import pathlib
import sys
import time
from collections.abc import Generator

import numpy as np

from experiments import zero_shot_digits as digits
from kdjax import evaluation
from kdjax.methods import dho, tip_adapter
from kdjax.methods.task import Task
from kdjax.training import MetricWriter, prefixed, run, together
from kdjax.training.optimizers import Training

SEEDS, NAME, NOISE, SCALE = 6, "digits-dho", 0.22, 20.0
TRAINING = Training(steps=1200, batch_size=64, learning_rate=2e-3, weight_decay=0.01)
FEW_SHOT = Training(steps=100, batch_size=40, learning_rate=1e-3)  # of the teacher's keys
SHARED = dict(labels_per_class=4, labeled_batch_size=32)
SINGLE = dict(SHARED, heads="single", report_conflict=True)
ARMS = {
    "ce": dho.Config(**SHARED, heads="single", lam=1.0),
    "kd": dho.Config(**SHARED, heads="single", lam=0.0),
    "single-0.5": dho.Config(**SINGLE, lam=0.5),
    "single-0.8": dho.Config(**SINGLE, lam=0.8),
    "single-0.95": dho.Config(**SINGLE, lam=0.95),
    "single-pcgrad": dho.Config(**SINGLE, alignment="pcgrad"),
    "features": dho.Config(**SINGLE, signal="features"),
    "dho": dho.Config(**SHARED, report_conflict=True),
    "dho-entropy": dho.Config(**SHARED, interpolation="entropy"),
    "dho-f": dho.Config(**SHARED, report_conflict=True),
}
SINGLES = ("single-0.5", "single-0.8", "single-0.95")


def task(seed: int) -> Task:
    """The task of a seed: class means with noise are its teacher."""
    images, labels = digits.images()
    means = np.stack([images[labels == c].mean(0) for c in range(10)])
    noise = np.random.default_rng([seed, 0]).normal(size=means.shape)
    return digits.task(seed, means + NOISE * noise, SCALE, TRAINING)


def few_shot(zero: Task) -> Generator:
    """The task whose teacher has learned from the few labels."""
    nets = {**zero.networks, "teacher": tip_adapter.classifier(10, scale=SCALE)}
    training = {**zero.training, "teacher": FEW_SHOT}
    task = dataclasses.replace(zero, networks=nets, training=training)
    rows = dho.labeled_rows(task, SHARED["labels_per_class"])
    return task.with_teacher((yield from tip_adapter.teacher(task, rows)))


def arms(zero: Task) -> Generator:
    """`(task, student)` of every arm of a seed."""
    few, found = (yield from prefixed(few_shot(zero), "tip-adapter")), {}
    for name, config in ARMS.items():
        task = few if name == "dho-f" else zero
        found[name] = task, (yield from prefixed(dho.recipe(task, config), name))
    return found


def scores(task: Task, config: dho.Config, student) -> dict[str, float]:
    """Accuracies of a student, and of its heads."""
    said = {split: dho.answers(task, student, split) for split in ("validation", "test")}
    out = {"accuracy": digits.accuracy(task, said["test"]["logits"])}
    out |= task.scores("student", student, task.reference(task.given["teacher"]))
    for head in ("ce", "kd") if config.heads == "dual" else ():
        out[f"{head}_head"] = digits.accuracy(task, said["test"][f"{head}_logits"])
        out[f"{head}_head_validation"] = digits.accuracy(
            task, said["validation"][f"{head}_logits"], "validation"
        )
    out["validation"] = digits.accuracy(task, said["validation"]["logits"], "validation")
    out |= {name: float(x) for name, x in student["interpolation"].items()}
    return out


def claims(found: digits.Scores) -> list[tuple[str, bool, str]]:
    """What is claimed, whether it holds, the numbers."""
    means = {arm: np.mean([x["accuracy"] for x in found[arm]]) for arm in SINGLES}
    best = max(means, key=means.get)
    gap, text = digits.compared(found, ("dho", "accuracy"), (best, "accuracy"))
    out = [(f"DHO is better than the best single head ({best}) on average", gap.mean() > 0, text)]
    for head in ("ce", "kd"):
        gap, text = digits.compared(
            found, ("dho", "validation"), ("dho", f"{head}_head_validation")
        )
        claim = f"the mixture is no worse than the {head} head on validation, in every seed"
        out.append((claim, bool((gap >= 0).all()), text))
    gap, text = digits.compared(found, ("dho", "cosine"), ("single-0.5", "cosine"))
    claim = "the gradients conflict less in DHO's backbone than in one head's, in every seed"
    out.append((claim, bool((gap > 0).all()), text))
    for head in ("ce", "kd"):
        gap, text = digits.compared(found, ("dho", "accuracy"), ("dho", f"{head}_head"))
        out.append((f"(paper) the mixture is better than the {head} head", gap.mean() > 0, text))
    for arm in ("ce", "kd", "single-pcgrad", "features"):
        gap, text = digits.compared(found, ("dho", "accuracy"), (arm, "accuracy"))
        out.append((f"(paper) DHO is better than `{arm}`", bool(gap.mean() > 0), text))
    claim = "(paper) a teacher that the labels have taught makes DHO better"
    gap, text = digits.compared(found, ("dho-f", "accuracy"), ("dho", "accuracy"))
    return [*out, (claim, bool(gap.mean() > 0), text)]


def main(results: str = "results", seeds: str = str(SEEDS)) -> None:
    """Runs all arms, and writes records and page."""
    folder, began = pathlib.Path(results) / NAME, time.monotonic()
    around, metrics = evaluation.environment(), MetricWriter(None)
    tasks = [task(seed) for seed in range(int(seeds))]
    recipes = [arms(task) for task in tasks]
    trained = run(together(recipes, tuple(range(len(tasks)))), metrics=metrics)
    conflict = {}
    for row in metrics.rows:
        if "cosine/backbone" in row:
            conflict.setdefault(row["stage"].partition("/")[0], []).append(row["cosine/backbone"])
    seconds = (time.monotonic() - began) / (len(tasks) * len(ARMS))
    found = {name: [] for name in ARMS}
    for seed, students in enumerate(trained):
        for name, config in ARMS.items():
            one, student = students[name]
            taught = digits.accuracy(one, one.reference(one.given["teacher"]))
            reads, both = student.on(one), {"teacher": taught}
            if name in conflict:
                both["cosine"] = float(np.mean(conflict[name], axis=0)[seed])
            metrics = {
                which: {**scores(reads, config, getattr(student, which)), **both}
                for which in ("last", "selected")
            }
            chosen = dataclasses.asdict(config)
            if name == "dho-f":
                chosen["teacher"] = dataclasses.asdict(FEW_SHOT)
            digits.write(folder, NAME, name, seed, chosen, metrics, seconds, around)
            found[name].append(metrics["selected"])
    lines = [f"# {NAME}", "", *(__doc__ or "").split("\n\n")[2].splitlines(), ""]
    lines += [
        f"{len(tasks)} seeds; test accuracy of the student selected by validation, and of its "
        f"teacher; {(time.monotonic() - began) / 60:.1f} minutes in all. `cosine`: between the "
        "gradients of labels and teacher in the backbone, mean over the steps reported.",
        "",
        evaluation.claims_table(claims(found)),
        "",
        evaluation.arms_table(
            found, ("accuracy", "teacher", "ce_head", "kd_head", "alpha", "beta", "cosine", "ece")
        ),
        "",
    ]
    folder.joinpath("table.md").write_text("\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main(*sys.argv[1:])
