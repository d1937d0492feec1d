"""Active learning with a biased zero-shot teacher on 8 x 8 digits.

    python -m experiments.active_kd                 # six seeds
    python -m experiments.active_kd results 2       # two seeds

The teacher is the cosine to class means of three images each, times 30, where 3, 9 and 1 are
blended half and half with 8, 7 and 4: its errors come in clusters. One label a class, then four
queries of ten among 1,257 training images; after each the student, 64-64-10 with two heads, is
trained anew for 400 steps of 64 labelled and 64 unlabelled images. `-alone`: without a teacher
(lam = 1, alpha = 1). Writes one record a seed and arm, and a page that says which claims hold, to
`results/digits-active_kd`.
"""

from __future__ import annotations

import pathlib
import sys
import time
from collections.abc import Generator

import numpy as np

from experiments import zero_shot_digits as digits
from kdjax import evaluation
from kdjax.data.selection import STRATEGIES
from kdjax.methods import active_kd
from kdjax.methods.task import Task
from kdjax.training import prefixed, run, together
from kdjax.training.optimizers import Training

SEEDS, NAME, SCALE, ROUNDS = 6, "digits-active_kd", 30.0, 4
TRAINING = Training(steps=400, batch_size=64, learning_rate=3e-3)
BLENDED = {3: 8, 9: 7, 1: 4}
SHARED = dict(rounds=ROUNDS, queries=10, labels_per_class=1)
BOTH = ("random", "entropy", "coreset", "pcoreset")  # with and without a teacher
ARMS = {
    **{name: active_kd.Config(**SHARED, strategy=name) for name in STRATEGIES},
    **{
        f"{name}-alone": active_kd.Config(**SHARED, strategy=name, lam=1.0, alpha=1.0)
        for name in BOTH
    },
}


def task(seed: int) -> Task:
    """The task of a seed, and its teacher."""
    images, labels = digits.images()
    rng = np.random.default_rng([seed, 1])
    rows = [rng.choice(np.flatnonzero(labels == c), 3, replace=False) for c in range(10)]
    means = np.stack([images[r].mean(0) for r in rows])
    blended = means.copy()
    for one, other in BLENDED.items():
        blended[one] = (means[one] + means[other]) / 2
    return digits.task(seed, blended, SCALE, TRAINING)


def arms(task: Task) -> Generator:
    """Every arm of a seed."""
    found = {}
    for name, config in ARMS.items():
        found[name] = yield from prefixed(active_kd.recipe(task, config), name)
    return found


def scores(task: Task, rounds: active_kd.Rounds) -> dict[str, float]:
    """Test accuracies after every round, and the covering radius after every query."""
    task = rounds.on(task)
    out = {
        f"round_{n}": digits.accuracy(task, task.predict("student", student))
        for n, student in enumerate(rounds.rounds)
    }
    out |= {f"radius_{n}": radius for n, radius in enumerate(rounds.radius)}
    return out | {"accuracy": out[f"round_{ROUNDS}"], "radius": float(np.mean(rounds.radius))}


def claims(found: digits.Scores) -> list[tuple[str, bool, str]]:
    """What is claimed, whether it holds, the numbers."""
    out = []
    for number in (0, 1):
        for name in BOTH:
            metric = f"round_{number}"
            gap, text = digits.compared(found, (name, metric), (f"{name}-alone", metric))
            claim = f"round {number}, {name}: the teacher adds more than 5 points"
            out.append((claim, bool(gap.mean() > 0.05), text))
    for number in (3, 4):
        for other in ("random", "entropy"):
            metric = f"round_{number}"
            gap, text = digits.compared(found, ("pcoreset", metric), (other, metric))
            claim = f"round {number}: PCoreSet is better than {other}"
            out.append((claim, bool(gap.mean() > 0), text))
    gap, text = digits.compared(found, ("pcoreset", "radius"), ("random", "radius"))
    claim = "PCoreSet covers the probabilities of the pool no worse than chance, on average"
    out.append((claim, bool(gap.mean() <= 0), text))
    gap, text = digits.compared(found, ("pcoreset", "accuracy"), ("coreset", "accuracy"))
    out.append(("(not claimed here) PCoreSet is better than CoreSet", bool(gap.mean() > 0), text))
    return out


def main(results: str = "results", seeds: str = str(SEEDS)) -> None:
    """Runs all arms, and writes records and page."""
    folder, began = pathlib.Path(results) / NAME, time.monotonic()
    around = evaluation.environment()
    tasks = [task(seed) for seed in range(int(seeds))]
    trained = run(together([arms(t) for t in tasks], tuple(range(len(tasks)))))
    seconds = (time.monotonic() - began) / (len(tasks) * len(ARMS))
    found, teachers = {name: [] for name in ARMS}, []
    for seed, (one, students) in enumerate(zip(tasks, trained)):
        teachers.append(digits.accuracy(one, one.reference(one.given["teacher"])))
        for name, config in ARMS.items():
            last = {**scores(one, students[name]), "teacher": teachers[-1]}
            # The rounds end with their last step: nothing is selected.
            metrics = {"last": last, "selected": last}
            digits.write(folder, NAME, name, seed, config, metrics, seconds, around)
            found[name].append(last)
    summary = evaluation.summary(teachers)
    lines = [f"# {NAME}", "", *(__doc__ or "").split("\n\n")[2].splitlines(), ""]
    lines += [
        f"{len(tasks)} seeds; test accuracy after the last step of each round; the teacher's "
        f"is {summary.mean:.4f} ± {summary.sd:.4f}; {(time.monotonic() - began) / 60:.1f} minutes "
        "in all. `radius`: the largest distance of a prediction of the pool to the nearest one "
        "that is labelled, after a query; mean over the queries.",
        "",
        evaluation.claims_table(claims(found)),
        "",
        evaluation.arms_table(found, (*(f"round_{n}" for n in range(ROUNDS + 1)), "radius")),
        "",
    ]
    folder.joinpath("table.md").write_text("\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main(*sys.argv[1:])
