"""HARD on shifted digits that the student has never seen, against other views of the same images.

    python -m experiments.hard                # three seeds
    python -m experiments.hard results 3 none,hard,unbound,random    # some of the arms

The task is that of `configs/digits/hard.py`. Students are scored on the centred test digits and on
these shifted by up to 3 pixels each way. `none` is distillation on the images as they are,
`standard` that on crops, cutout and noise, `random` shifts uniformly and so knows the family,
`adversarial` moves pixels. `unbound` is HARD without the teacher's consistency. Writes a record a
seed and arm, and a page that says which claims hold, to `results/digits-hard`.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
import sys
import tempfile
import time
from collections.abc import Generator

import numpy as np

from configs.digits import hard as single
from experiments import configuration, tasks
from kdjax import data, evaluation
from kdjax.data import Split
from kdjax.methods import hard, supervised
from kdjax.methods.task import Task
from kdjax.training import Outcome, Settings, read_metrics, run

SEEDS, SHIFT = 3, 3
BUDGET = 2.0
STANDARD = (("pad_crop", {"padding": 1}), ("cutout", {"size": 3}), ("gaussian_noise", {"std": 0.1}))
ARMS = {
    "labels": hard.Config(views="none", label_weight=1.0, distillation_weight=0.0),
    "none": hard.Config(views="none"),
    "standard": hard.Config(views="none"),
    "adversarial": hard.Config(views="adversarial"),
    "hard": hard.Config(augmentor_budget=BUDGET),
    "unbound": hard.Config(augmentor_budget=BUDGET, consistency_weight=0.0),
    "random": hard.Config(views="random"),
}
SHOWN = ("accuracy", "shifted", "augmentor_steps", "n_switches", "rise", "teacher_accuracy")


def shifted(task: Task) -> Task:
    """The task with every test digit shifted, always the same way."""
    arrays, rng = task.dataset.splits["test"].arrays(), np.random.default_rng(0)
    images, around = arrays["image"], ((SHIFT, SHIFT), (SHIFT, SHIFT), (0, 0))
    height, width = images.shape[1:3]
    moved = []
    for image in images:
        row, column = rng.integers(0, 2 * SHIFT + 1, 2)
        moved.append(np.pad(image, around)[row : row + height, column : column + width])
    test = Split.of({**arrays, "image": np.stack(moved)}, "digits/test, shifted")
    splits = {**task.dataset.splits, "test": test}
    return dataclasses.replace(task, dataset=dataclasses.replace(task.dataset, splits=splits))


def kept(recipe: Generator, outcomes: list[Outcome]) -> Generator:
    """The recipe; what its stages gave goes to `outcomes`."""
    value = None
    while True:
        try:
            node = recipe.send(value)
        except StopIteration as end:
            return end.value
        value = yield node
        outcomes.append(value)


def phases(rows: list[dict]) -> dict[str, float]:
    """How the augmentor's phases went: mean rise of L_st, the teacher's accuracy on late views."""
    found = [(r["step"], r["augmentor/gap"], r["augmentor/teacher_accuracy"]) for r in rows]
    ends = [i for i in range(1, len(found)) if found[i][0] != found[i - 1][0] + 1]
    parts = [x for x in np.split(np.array(found), ends) if len(x) > 1]
    first, last = (np.mean([part[i, 1] for part in parts]) for i in (0, -1))
    late = np.array(found)[len(found) // 2 :, 2]
    return {"rise": float(last - first), "teacher_accuracy": float(late.mean())}


def acted(row: dict) -> bool:
    gap = row.get("augmentor/gap")
    return row["kind"] == "train" and gap is not None and math.isfinite(gap)


def one_seed(
    seed: int, arms: tuple[str, ...], folder: pathlib.Path, around: dict
) -> dict[str, dict[str, float]]:
    """The arms of a seed; writes the records."""
    config = single.get_config()
    config.seed = seed
    task = tasks.task(config)
    teacher = run(supervised_teacher(task), seed=seed)
    task = task.with_teacher(teacher)
    elsewhere, found = shifted(task), {}
    told = {name: t.scores("teacher", teacher, None)["accuracy"] for name, t in both(task)}
    print(f"seed {seed}: teacher {told}", flush=True)
    for name in arms:
        chosen, began, outcomes, mine = ARMS[name], time.monotonic(), [], task
        if name == "standard":
            augment = data.augmentations(STANDARD)
            training = dataclasses.replace(task.training["student"], augment=augment)
            mine = dataclasses.replace(task, training={**task.training, "student": training})
        with tempfile.TemporaryDirectory() as workdir:
            trained = run(
                kept(hard.recipe(mine, chosen), outcomes),
                seed=seed,
                workdir=workdir,
                settings=Settings(log_every=1),
            )
            scored = {}
            for which in ("last", "selected"):
                student = getattr(trained, which)
                scored[which] = task.scores("student", student, None)
                moved = elsewhere.scores("student", student, None)
                scored[which]["shifted"] = moved["accuracy"]
            scored["selected"]["step"] = float(trained.selected_step)
            last = scored["last"]
            last |= {f"teacher_{k}": v for k, v in told.items()}
            rows = [row for row in read_metrics(pathlib.Path(workdir)) if acted(row)]
            if chosen.views == "learned":
                memory = outcomes[-1].memory
                last["augmentor_steps"] = float(memory.augmentor_steps)
                last["n_switches"] = float(memory.controller.n_switches)
                last |= phases(rows)
        record = evaluation.Record(
            method=name,
            task="digits-hard",
            seed=seed,
            config={
                **configuration.plain(config),
                "method": {"name": "hard", **dataclasses.asdict(chosen)},
                "augment": STANDARD if name == "standard" else (),
            },
            metrics=scored,
            curves={},
            commit=around.get("commit"),
            versions=around,
            seconds=round(time.monotonic() - began, 3),
        )
        evaluation.write_record(folder / f"{name}-seed{seed}.json", record)
        found[name] = last
        print(f"  {name}: {last['accuracy']:.3f}, shifted {last['shifted']:.3f}", flush=True)
    return found


def both(task: Task) -> list[tuple[str, Task]]:
    return [("centred", task), ("shifted", shifted(task))]


def supervised_teacher(task: Task) -> Generator:
    return (yield from supervised.teacher(task))


def claims(found: dict[str, list[dict[str, float]]]) -> list[tuple[str, bool, str]]:
    """What is claimed, whether it holds, the numbers."""

    def values(arm, key):
        return np.array([x[key] for x in found[arm]])

    def compared(one, other, key):
        a, b = values(one, key), values(other, key)
        p = evaluation.paired_test(a, b).p
        text = f"{100 * a.mean():.1f} against {100 * b.mean():.1f} %"
        return a - b, f"{text}, p = {'none' if p is None else f'{p:.2g}'}"

    gained, text = compared("hard", "none", "shifted")
    out = [("shifted accuracy above `none` by more than 10 points, in every seed", gained, text)]
    out[0] = (out[0][0], bool((gained > 0.1).all()), text)
    lost, text = compared("hard", "none", "accuracy")
    out.append(("centred accuracy within 3 points of `none`", bool(lost.mean() > -0.03), text))
    rise = values("hard", "rise")
    out.append(
        (
            "L_st at the end of an augmentor's phase above that at its start",
            bool((rise > 0).all()),
            f"mean rise {rise.mean():.2f} nats, least of a seed {rise.min():.2f}",
        )
    )
    drop, text = compared("unbound", "hard", "teacher_accuracy")
    claim = "without the consistency the teacher's accuracy on the views is lower"
    out.append((claim, bool((drop < 0).all()), text))
    switches = values("hard", "n_switches")
    out.append(
        (
            "the controller switched at least 10 times, in every seed",
            bool((switches >= 10).all()),
            f"{switches.min():.0f} to {switches.max():.0f}",
        )
    )
    return out


def page(found: dict[str, list[dict[str, float]]], seeds: int, seconds: float) -> str:
    student = single.get_config().student.training
    lines = ["# digits-hard", "", *(__doc__ or "").split("\n\n")[2].splitlines(), ""]
    lines += [
        f"{seeds} seeds; {student.steps} student steps of {student.batch_size} images, at most "
        f"{BUDGET:g} augmentor steps for each of them; after the last step; "
        f"{seconds / 60:.1f} minutes in all.",
        "",
        evaluation.claims_table(claims(found)),
        "",
        evaluation.arms_table(found, SHOWN, digits=3),
    ]
    told = found["none"]
    text = ", ".join(
        f"{what} {np.mean([x[f'teacher_{what}'] for x in told]):.3f}"
        for what in ("centred", "shifted")
    )
    lines += ["", f"The teacher: {text}. Mean ± standard deviation over the seeds.", ""]
    return "\n".join(lines)


def main(results: str = "results", seeds: str = str(SEEDS), arms: str = ",".join(ARMS)) -> None:
    """Runs the arms, and writes records and page; the claims need three of them."""
    names = tuple(arms.split(","))
    missing = {"none", "hard", "unbound"} - set(names)
    if missing or not set(names) <= set(ARMS):
        raise ValueError(f"arms must be of {tuple(ARMS)}, none, hard and unbound with them: {arms}")
    folder, began = pathlib.Path(results) / "digits-hard", time.monotonic()
    around, found = evaluation.environment(), {name: [] for name in names}
    for seed in range(int(seeds)):
        for name, metrics in one_seed(seed, names, folder, around).items():
            found[name].append(metrics)
    text = page(found, int(seeds), time.monotonic() - began)
    (folder / "table.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main(*sys.argv[1:])
