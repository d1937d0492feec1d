"""MST-Distill on halves of 8 x 8 digits, against labels alone and a single teacher.

    python -m experiments.mst_distill                 # five seeds
    python -m experiments.mst_distill results 2       # two seeds

The student reads the left four columns, the cross-modal teacher the right ones, the teacher both;
Gaussian noise of 0.35 on pixels in [0, 1]; 300 digits to train, 300 to select, 1,197 to test, split
anew for each seed. Every arm is a config of the method: a weight of 0 of what it goes without, so
that all students see as many examples. Writes a record a seed and arm, and a page that says which
claims hold, to `results/digits-mst_distill`.
"""

from __future__ import annotations

import dataclasses
import pathlib
import sys
import time

import numpy as np

from kdjax import data, evaluation, networks
from kdjax.data import Dataset, Split
from kdjax.methods import mst_distill
from kdjax.methods.task import Task
from kdjax.training import run
from kdjax.training.optimizers import Training

SEEDS, NOISE = 5, 0.35
LAYERS = ("dense0/out", "dense1/out")
STEPS = {"cotraining": 141, "masks": 71, "distill": 282}  # 30, 15 and 60 epochs of 300 digits
MST = mst_distill.Config(
    teacher_layers=LAYERS,
    cross_modal_layers=LAYERS,
    heads=2,
    cotraining_steps=STEPS["cotraining"],
    mask_steps=STEPS["masks"],
)


def _with(**changes) -> mst_distill.Config:
    return dataclasses.replace(MST, **changes)


ALONE = dict(mutual_weight=0.0, balance_weight=0.0)
ARMS = {
    "labels": _with(**ALONE, distillation_weight=0.0),
    "kd_cross_modal": _with(**ALONE, teacher_layers=None, cross_modal_layers=()),
    "kd_multimodal": _with(**ALONE, teacher_layers=(), cross_modal_layers=None),
    "mst": MST,
    "mst-no_masks": _with(teacher_layers=(), cross_modal_layers=()),
    "mst-random": _with(routing="random"),
    "mst-all": _with(active_teachers=4),
    "mst-no_balance": _with(balance_weight=0.0),
}


def halves(seed: int) -> Task:
    """The task of a seed."""
    rng, found = np.random.default_rng(seed), data.load("digits").splits
    image = np.concatenate([s.arrays()["image"] for s in found.values()])[..., 0]
    label = np.concatenate([s.arrays()["label"] for s in found.values()])
    image = np.float32(image / np.float32(255 if image.dtype == np.uint8 else 1))
    image = image + rng.normal(0, NOISE, image.shape).astype(np.float32)
    order, splits = rng.permutation(len(label)), {}
    parts = np.split(order, (300, 600))
    for name, rows in zip(("train", "validation", "test"), parts):
        x = image[rows]
        arrays = {"both": x, "left": x[:, :, :4], "right": x[:, :, 4:], "label": label[rows]}
        splits[name] = Split.of(arrays, f"halves/{name}")
    widths = {"teacher": (64, 32), "cross_modal_teacher": (64, 32), "student": (32, 16)}
    return Task(
        Dataset("halves", splits, tuple(map(str, range(10)))),
        {role: networks.build("mlp", 10, widths=w) for role, w in widths.items()},
        {"student": Training(STEPS["distill"], 64, "adam", 2e-3)},
        seed=seed,
        input={"teacher": "both", "cross_modal_teacher": "right", "student": "left"},
        validate_every=20,
    )


def watched(recipe, stages: dict):
    """The recipe; its stages and their outcomes go to `stages`."""
    sent = None
    while True:
        try:
            stage = recipe.send(sent)
        except StopIteration as end:
            return end.value
        sent = yield stage
        stages[stage.name] = sent


def scores(task: Task, config, stages: dict, which: str) -> dict[str, float]:
    """Of a seed's arm, on the test split: accuracy, T^2 KL with and without masks, shares."""
    cast, stream = mst_distill.cast_of(task, config), task.sequential("test")
    peers = stages["cotraining"].variables
    masks = stages["masks"].selected if "masks" in stages else {}
    student = getattr(stages["distill"], which)
    evaluations = {
        mst_distill.student_metrics(cast): {**student},
        **({mst_distill.alignment_metrics(cast): {**peers, **masks}} if masks else {}),
    }
    found: dict[str, np.ndarray] = {}
    for evaluate, variables in evaluations.items():
        for item in stream.items():
            for name, term in evaluate(variables, stream.assemble(stream.table, item)).items():
                found[name] = found.get(name, 0) + np.array([term.total, term.weight], float)
    return {name: float(total / weight) for name, (total, weight) in found.items()}


def page(found: dict[str, list[dict[str, float]]], seconds: float) -> str:
    """Claims and table."""

    def accuracy(arm):
        return np.array([x["accuracy"] for x in found[arm]])

    def shares(arm):
        return np.array([max(v for k, v in x.items() if k.startswith("share")) for x in found[arm]])

    rows, names = [], ("labels", "kd_cross_modal", "kd_multimodal")
    for other in names:
        test = evaluation.paired_test(accuracy("mst"), accuracy(other))
        better = int((accuracy("mst") > accuracy(other)).sum())
        text = f"{accuracy('mst').mean():.4f} against {accuracy(other).mean():.4f}, better in "
        p = "none" if test.p is None else f"{test.p:.2g}"
        text += f"{better} of {len(accuracy('mst'))}, p = {p}"
        held = accuracy("mst").mean() >= accuracy(other).mean()
        claim = "mean accuracy not below " + other
        rows.append((claim if other == "labels" else f"(not claimed) {claim}", held, text))
    held, texts = True, []
    for m, role in enumerate(("teacher", "teacher", *2 * ("cross_modal_teacher",))):
        masked, bare = (np.array([x[f"kl/{k}"] for x in found["mst"]]) for k in (f"mask{m}", role))
        held &= bool((masked < bare).all())
        texts.append(f"{role} {bare.mean():.3f} to {masked.mean():.3f}")
    rows.append(("every mask lowers the KL to the student, in every seed", held, "; ".join(texts)))
    with_, without = shares("mst"), shares("mst-no_balance")
    rows.append(("largest share below 0.5 with balance", bool((with_ < 0.5).all()), f"{with_}"))
    drifts = bool(without.mean() > with_.mean())
    rows.append(("shares drift further without balance", drifts, f"{without}"))
    lines = ["# digits-mst_distill", "", *(__doc__ or "").split("\n\n")[2].splitlines(), ""]
    lines += [f"{len(found['mst'])} seeds, {seconds / 60:.1f} minutes; selected by validation.", ""]
    lines += [evaluation.claims_table(rows), "", evaluation.arms_table(found, ("accuracy",))]
    return "\n".join([*lines, ""])


def main(results: str = "results", seeds: str = str(SEEDS)) -> None:
    """Runs all arms, and writes records and page."""
    folder, began = pathlib.Path(results) / "digits-mst_distill", time.monotonic()
    around, found = evaluation.environment(), {name: [] for name in ARMS}
    for seed in range(int(seeds)):
        task = halves(seed)
        for name, config in ARMS.items():
            start, stages = time.monotonic(), {}
            trained = run(watched(mst_distill.recipe(task, config), stages), seed=seed)
            last = scores(task, config, stages, "variables")
            selected = scores(task, config, stages, "selected")
            found[name].append(selected)
            record = evaluation.Record(
                method=name,
                task="digits-mst_distill",
                seed=seed,
                config=dataclasses.asdict(config),
                metrics={
                    "last": last,
                    "selected": {**selected, "step": float(trained.selected_step)},
                },
                curves={},
                commit=around.get("commit"),
                versions=around,
                seconds=round(time.monotonic() - start, 3),
            )
            evaluation.write_record(folder / f"{name}-seed{seed}.json", record)
            print(f"seed {seed} {name}: {selected['accuracy']:.4f}", flush=True)
    text = page(found, time.monotonic() - began)
    (folder / "table.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main(*sys.argv[1:])
