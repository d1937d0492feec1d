"""TGeo-KD on digits whose teacher is wrong here and whose labels are wrong there.

    python -m experiments.tgeo_kd --workdir=runs/tgeo_kd --results=results/digits-tgeo_kd

8 x 8 digits: 400 to train on, 100 held out for the controller, 180 and 360 to validate and test.
The teacher is trained on the 400 as they are; then its logits of 30 % of them are rolled by some
classes, and of the others 25 % are given another label. Students under fixed ratios, the rules of
the paper, ratios that are learned, and a controller that is not trained. All students of a seed
start alike and see the same batches. `more` is a fixed ratio whose student trains on the held-out
examples too: what they are worth without a controller.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import pathlib
import time
from collections.abc import Generator, Mapping, Sequence

import jax.numpy as jnp
import numpy as np

from kdjax import data, evaluation, networks
from kdjax.data.source import Dataset, Split, stratified
from kdjax.methods import supervised, tgeo_kd
from kdjax.methods.task import Task
from kdjax.training import Display, prefixed, read_metrics, run
from kdjax.training.optimizers import Training

NAME = "digits-tgeo_kd"
TRAIN, HELD_OUT = 400, 100
WRONG_TEACHER, WRONG_LABEL = 0.3, 0.25  # the second of those whose teacher is as it was
TRAINING = Training(steps=700, batch_size=64, optimizer="adam", learning_rate=2e-3)
WIDTHS = {"teacher": (256,), "student": (32,)}
NETWORKS = {role: networks.build("mlp", 10, widths=widths) for role, widths in WIDTHS.items()}

LEARNED = tgeo_kd.Config(held_out_split="held_out")
FIXED = {
    f"fixed-{ratio:g}": dataclasses.replace(LEARNED, ratio="fixed", fixed_ratio=ratio)
    for ratio in (0.0, 0.3, 0.5, 0.7, 1.0)
}
ARMS = {
    **FIXED,
    "more": FIXED["fixed-0.3"],
    **{name: dataclasses.replace(LEARNED, ratio=name) for name in ("wls", "ada", "annealed")},
    # One number an example is seen once in six steps: it needs a larger rate than a network.
    "per_example": dataclasses.replace(LEARNED, ratio="per_example", controller_learning_rate=0.03),
    "untrained": dataclasses.replace(LEARNED, ratio="untrained"),
    "tgeo": LEARNED,
}
KINDS = ("teacher_wrong", "clean", "label_wrong")


@dataclasses.dataclass(frozen=True)
class RolledTask(Task):
    """A task whose teacher's logits of the training split are rolled by `rolls` classes, `[N]`."""

    rolls: np.ndarray | None = None

    def predict(self, role: str, variables, split: str = "test") -> np.ndarray:
        logits = super().predict(role, variables, split)
        if role != "teacher" or split != "train":
            return logits
        classes = np.arange(logits.shape[-1])
        return np.take_along_axis(logits, (classes - self.rolls[:, None]) % len(classes), axis=-1)


@functools.cache
def whole() -> tuple[Dataset, Split, Split]:
    """The digits, the 400, and the 100; the same for every seed."""
    found = data.load("digits")
    train = found.splits["train"]
    rows, held_out, _ = stratified(train.labels(), (TRAIN, HELD_OUT), seed=0)
    return found, train.take(rows, "digits/400"), train.take(held_out, "digits/100")


def corruption(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The kind of each of the 400, what is added to its label, and by what its teacher is rolled.

    >>> kinds, labels, rolls = corruption(0)
    >>> [int((kinds == kind).sum()) for kind in range(3)], int((labels > 0).sum())
    ([120, 210, 70], 70)
    """
    rng = np.random.default_rng([seed, 0])
    order = rng.permutation(TRAIN)
    wrong = round(WRONG_TEACHER * TRAIN)
    mislabelled = round(WRONG_LABEL * (TRAIN - wrong))
    kinds = np.full(TRAIN, KINDS.index("clean"))
    kinds[order[:wrong]] = KINDS.index("teacher_wrong")
    kinds[order[wrong : wrong + mislabelled]] = KINDS.index("label_wrong")
    some = rng.integers(1, 10, (2, TRAIN))
    labels, rolls = (
        np.where(kinds == KINDS.index(kind), by, 0)
        for kind, by in zip(("label_wrong", "teacher_wrong"), some)
    )
    return kinds, labels, rolls


def tasks(seed: int) -> dict[str, Task]:
    """`clean`, which the teacher learns; `corrupted`; and `more`, with the 100 among the 400."""
    found, train, held_out = whole()
    _, shifts, rolls = corruption(seed)
    arrays = train.arrays()
    corrupted = {**arrays, "label": ((arrays["label"] + shifts) % 10).astype(np.int32)}
    both = {n: np.concatenate([x, held_out.arrays()[n]]) for n, x in corrupted.items()}
    splits = {
        "clean": train,
        "corrupted": Split.of(corrupted, "digits/corrupted"),
        "more": Split.of(both, "digits/more"),
    }
    out = {}
    for name, split in splits.items():
        aside = {} if name == "more" else {"held_out": held_out}
        dataset = dataclasses.replace(found, splits={**found.splits, "train": split, **aside})
        out[name] = RolledTask(
            dataset,
            NETWORKS,
            {"teacher": TRAINING, "student": TRAINING},
            seed=seed,
            cache_teacher=True,
            rolls={"clean": None, "corrupted": rolls}.get(name, np.pad(rolls, (0, HELD_OUT))),
        )
    return out


def recipe(seed: int) -> Generator:
    """One teacher, then every arm."""
    made = tasks(seed)
    teacher = yield from supervised.teacher(made["clean"])
    trained = {}
    for name, config in ARMS.items():
        task = made["corrupted"].with_teacher(teacher)
        if name == "more":  # nothing is learned from held-out examples: those of another split
            task = made["more"].with_teacher(teacher)
            config = dataclasses.replace(config, held_out_split="validation")
        trained[name] = yield from prefixed(tgeo_kd.recipe(task, config), name)
    return teacher, trained


def alphas(task: Task, config, teacher, found, student) -> np.ndarray:
    """The ratio of each training example for some student, `[N]`."""
    arrays = task.dataset.splits["train"].arrays()
    batch = {
        "teacher_logits": jnp.asarray(task.predict("teacher", teacher, "train")),
        "label": jnp.asarray(arrays["label"]),
        "id": jnp.arange(len(arrays["label"])),
    }
    logits = task.predict("student", student, "train")
    progress = 1 - 1 / TRAINING.steps
    return np.asarray(tgeo_kd.ratios(config, found.weighing, jnp.asarray(logits), batch, progress))


def of_ratios(seed: int, name: str, teacher, found) -> dict[str, float]:
    """The mean ratio at the end, over all and by kind, and how far that is from the start's."""
    if name == "more":
        return {}
    task, config = tasks(seed)["corrupted"], ARMS[name]
    end = alphas(task, config, teacher, found, found.last)
    kinds = corruption(seed)[0]
    out = {"ratio": end.mean()}
    out |= {f"ratio_{kind}": end[kinds == i].mean() for i, kind in enumerate(KINDS)}
    if name == "untrained":
        start = alphas(task, config, teacher, found, task.variables("student")).mean()
        out |= {"ratio_at_start": start, "ratio_largest_distance": np.abs(end - start).max()}
    return {key: float(value) for key, value in out.items()}


def compared(name: str, other: str, accuracy: Mapping[str, np.ndarray]) -> tuple[float, str]:
    """The mean difference of two arms' accuracies, and that in words."""
    test = evaluation.paired_test(accuracy[name], accuracy[other])
    a, b = (100 * accuracy[arm] for arm in (name, other))
    p = "no test" if test.p is None else f"p = {test.p:.2g}"
    return test.difference, (
        f"{a.mean():.2f} ± {a.std(ddof=1):.2f} against {b.mean():.2f} ± {b.std(ddof=1):.2f} %, "
        f"higher in {int((a > b).sum())} of {len(a)} seeds, {p}"
    )


def claims(arms: Mapping[str, Mapping[str, Sequence[float]]]) -> list[tuple[str, bool, str]]:
    """What is claimed, one by one, and comparisons that are not."""
    accuracy = {name: np.asarray(values["accuracy"]) for name, values in arms.items()}
    best = max(FIXED, key=lambda name: accuracy[name].mean())
    rule = max(("wls", "ada", "annealed"), key=lambda name: accuracy[name].mean())
    wrong, clean, label = (np.asarray(arms["tgeo"][f"ratio_{kind}"]) for kind in KINDS)
    start, end = (np.asarray(arms["untrained"][n]) for n in ("ratio_at_start", "ratio"))
    far = np.max(arms["untrained"]["ratio_largest_distance"])
    ordered = (wrong < clean) & (clean < label)
    out = []
    gain, said = compared("tgeo", best, accuracy)
    out.append((f"TGeo-KD is better than the best fixed ratio (`{best}`)", gain > 0, said))
    means = " < ".join(f"{x.mean():.3f}" for x in (wrong, clean, label))
    said = f"means {means}; in {int(ordered.sum())} of {len(ordered)} seeds"
    out.append(
        (
            "ratio where the teacher is wrong < clean < where the label is wrong, in every seed",
            bool(ordered.all()),
            said,
        )
    )
    drift = np.abs(end - start).max()
    said = f"at most {drift:.3f}; a single example's at most {far:.3f}"
    out.append(("untrained, the mean ratio stays within 0.05 of the start's", drift < 0.05, said))
    gap, said = compared("untrained", "fixed-0.5", accuracy)
    out.append(
        (
            "untrained, the accuracy is that of a fixed ratio of 0.5, within 1 %",
            abs(gap) < 0.01,
            said,
        )
    )
    for other, what in (
        ("more", "the held-out examples in the training instead"),
        (rule, f"the best rule (`{rule}`)"),
        ("per_example", "a free ratio of each example"),
    ):
        gain, said = compared("tgeo", other, accuracy)
        out.append((f"(not claimed) TGeo-KD is better than {what}", gain > 0, said))
    return out


def publish(results: pathlib.Path) -> str:
    """The table of a folder of records."""
    last = evaluation.arms(evaluation.read_records(results), "last")
    last = {name: last[name] for name in ARMS}
    rows = [
        [name, *(f"{np.mean(last[name][f'ratio_{kind}']):.3f}" for kind in KINDS)]
        for name in ARMS
        if name != "more"
    ]
    lines = [
        f"# {NAME}",
        "",
        *__doc__.split("\n\n", 2)[2].strip().splitlines(),
        "",
        f"{len(last['tgeo']['accuracy'])} seeds, after the last of {TRAINING.steps} steps; nothing "
        "is selected by validation.",
        "",
        evaluation.claims_table(claims(last)),
        "",
        evaluation.comparison_table(last, baseline="fixed-0.5"),
        "",
        "Mean ratio at the end, over the training examples of a kind:",
        "",
        evaluation.markdown_table(("arm", *(kind.replace("_", " ") for kind in KINDS)), rows),
        "",
    ]
    text = "\n".join(lines)
    (results / "table.md").write_text(text)
    return text


def main() -> None:
    parser = argparse.ArgumentParser(prog="experiments.tgeo_kd")
    parser.add_argument("--workdir", type=pathlib.Path, required=True, help="where the run lies")
    parser.add_argument("--results", type=pathlib.Path, required=True, help="for records and table")
    parser.add_argument("--seeds", type=int, default=6)
    given = parser.parse_args()
    workdir, results = given.workdir, given.results
    environment = evaluation.environment()
    about = {"training": dataclasses.asdict(TRAINING), "widths": WIDTHS}
    for seed in range(given.seeds):
        began, folder = time.monotonic(), workdir / f"seed-{seed}"
        teacher, trained = run(recipe(seed), seed=seed, workdir=folder, display=Display())
        curves = evaluation.curves(read_metrics(folder))
        seconds = (time.monotonic() - began) / len(ARMS)
        task = tasks(seed)["corrupted"]
        reference = task.reference(teacher)
        for name, found in trained.items():
            metrics = {
                kind: task.scores("student", getattr(found, kind), reference)
                for kind in ("last", "selected")
            }
            metrics["last"] |= of_ratios(seed, name, teacher, found)
            record = evaluation.Record(
                method=name,
                task=NAME,
                seed=seed,
                config={**about, "method": dataclasses.asdict(ARMS[name])},
                metrics=metrics,
                curves={s: c for s, c in curves.items() if s.startswith(f"{name}/")},
                commit=environment["commit"],
                versions=environment,
                seconds=seconds,
            )
            evaluation.write_record(results / f"{name}-seed{seed}.json", record)
    print(publish(results))


if __name__ == "__main__":
    main()
