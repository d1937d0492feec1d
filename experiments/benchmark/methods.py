"""What a step of each method costs beside plain distillation, and how much code the method is.

    python -m experiments.benchmark.methods --out=results/benchmark/methods.json

Steps a second and peak memory of the stage in which a method trains its student, over those of a
baseline with the same networks and batch: `kd`, and `sequence_kd`, `contrastive` or
`trajectory_regression` where a task is not of classification. Data are random and the teachers
untrained; every method has its defaults but for what `GROUPS` says. What is timed is the compiled
step of the engine with the batches of its streams; method and baseline run in turn, block by block,
in one process on all of its cores, and the ratio is the median of a block over its two neighbours.
Memory is the compiler's: arguments, outputs and temporaries of the compiled step, less what is
written in place. Validation is left out of both. What a method computes between its stages is timed
once, with what it compiles.

Lines of code are counted from the sources, as `code_lines.py` says. The table goes to the terminal
and, as Markdown, beside the JSON file.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.benchmark import code_lines, measurement, method_tasks
from experiments.benchmark.method_tasks import Sizes
from kdjax import methods
from kdjax.methods.task import Task
from kdjax.training import Compute, Outcome, Stage
from kdjax.training.state import initial

ROUNDS, LEAST_SECONDS = 7, 0.4  # of a block


class Arm(NamedTuple):
    """A method in the table.

    Attributes:
      fields: of its config, where they are not the defaults: `(sizes) -> {field: value}`.
      stages: whose steps are timed; (): what comes before the first one is all that is timed.
      period: steps of a block are a multiple of it, so that all blocks have the same work.
      note: what a reader has to know of the row.
    """

    fields: Callable[[Sizes], Mapping[str, Any]] = lambda sizes: {}
    stages: tuple[str, ...] = ("distill",)
    period: int = 1
    note: str = ""


class Group(NamedTuple):
    """Methods on one task, and the one that the others are compared with."""

    task: Callable[[Sizes], Task]
    baseline: str
    arms: Mapping[str, Arm]


def taps(sizes: Sizes) -> dict[str, Any]:
    return dict(zip(("teacher_map", "student_map"), sizes.maps))


def layers(sizes: Sizes) -> dict[str, Any]:
    return dict(teacher_layers=sizes.maps[:1], cross_modal_layers=sizes.maps[:1], heads=2)


def space(sizes: Sizes) -> dict[str, Any]:
    counts = dict(population=2, tournament=2, evaluations=sizes.evaluations, finalists=1)
    return dict(choices=sizes.space, batch_size=sizes.batch, **taps(sizes), **counts)


GROUPS = {
    "images": Group(
        method_tasks.images,
        "kd",
        {
            "kd": Arm(),
            "plackett_luce": Arm(),
            "dual_head_kd": Arm(),
            "sinkd": Arm(),
            "hard": Arm(
                lambda sizes: dict(alternate=(1, 1)),
                period=2,
                note="a step of the student and one of the augmentor in turn",
            ),
            "trg": Arm(taps),
            "dho": Arm(
                lambda sizes: dict(labels_per_class=2), note="a labelled batch beside the other"
            ),
            "active_kd": Arm(
                lambda sizes: dict(rounds=1), ("round/00",), note="a round; a labelled batch too"
            ),
            "tgeo_kd": Arm(
                lambda sizes: dict(held_out=0.25), note="a held-out batch beside the other"
            ),
            "diswot": Arm(
                space,
                stages=(),
                note="a search, then the steps of kd for the student that was found",
            ),
        },
    ),
    "halves": Group(
        method_tasks.halves,
        "kd",
        {
            "kd": Arm(note="of the teacher of both halves"),
            "mst_distill": Arm(layers, ("cotraining", "masks", "distill")),
        },
    ),
    "texts": Group(
        method_tasks.texts,
        "sequence_kd",
        {
            "sequence_kd": Arm(),
            "taid": Arm(),
            "gkd": Arm(lambda sizes: dict(on_policy=1.0), note="the student answers in every step"),
            "distillm": Arm(
                lambda sizes: dict(threshold=1.0), note="the student answers in every step"
            ),
            "minillm": Arm(
                lambda sizes: dict(rollouts=2 * sizes.text_batch, epochs=2),
                period=4,
                note="the student answers two batches for four steps",
            ),
            "ddk": Arm(lambda sizes: dict(interval=100), ("distill/0000",)),
        },
    ),
    "one decoder": Group(
        lambda sizes: method_tasks.texts(sizes, alone=True),
        "sequence_kd",
        {
            "sequence_kd": Arm(note="of a teacher of the student's size"),
            "opsd": Arm(
                lambda sizes: dict(lora_rank=min(64, sizes.writer["width"] // 2)),
                note="the student answers in every step; adapters",
            ),
        },
    ),
    "pairs": Group(
        method_tasks.pairs,
        "contrastive",
        {
            "contrastive": Arm(stages=("contrastive",), note="no teacher"),
            "cprd": Arm(
                lambda sizes: dict(candidates=sizes.candidates),
                note="a cross-encoder reads every pair of a batch",
            ),
        },
    ),
    "noises": Group(
        method_tasks.noises,
        "trajectory_regression",
        {
            "trajectory_regression": Arm(
                stages=("trajectory_regression",), note="16 calls of the teacher"
            ),
            "boot": Arm(note="2 calls of the teacher"),
        },
    ),
}
WITHOUT = {
    "supervised": "has no teacher",
    "language_model": "has no teacher",
}


def nodes(recipe: Iterator, host: dict[str, float]) -> Iterator[Stage]:
    """The stages of a recipe, each sent back as it starts; seconds of the rest go to `host`."""
    value = None
    while True:
        try:
            node = recipe.send(value)
        except StopIteration:
            return
        if isinstance(node, Compute):
            began = time.perf_counter()
            value = node.function(np.random.default_rng(0), *node.arguments)
            host[node.name] = time.perf_counter() - began
        else:
            yield node
            value = Outcome(lambda node=node: initial(node), node.steps)


def stages_of(name: str, arm: Arm, task: Task, sizes: Sizes) -> tuple[dict[str, Stage], dict]:
    """The stages of a method that are timed, and the seconds of what its recipe computes."""
    methods.check_task(name, task.kind)
    config = methods.configure(name, **arm.fields(sizes))
    found: dict[str, Stage] = {}
    host: dict[str, float] = {}
    for stage in nodes(methods.get(name).recipe(task, config), host):
        if len(found) == len(arm.stages):
            break
        if stage.name in arm.stages:
            found[stage.name] = stage
    if tuple(found) != arm.stages:
        raise ValueError(f"{name} has the stages {list(found)}, not {list(arm.stages)}")
    return found, host


def examples(stage: Stage) -> int:
    """Those that a step trains on."""
    return stage.examples or sum(stream.batch_size for stream in stage.data.values())


class Timed:
    """A stage, compiled, with a number of steps that takes long enough."""

    def __init__(self, stage: Stage, period: int, least: float):
        # Without validation: what is timed is the step.
        without = dataclasses.replace(stage, validation=None)
        self.examples, self._steps = examples(stage), measurement.Steps(without)
        self.bytes = self._steps.compile()
        self._steps.seconds(period)
        count = math.ceil(least / (period * self._steps.seconds(period)))
        self._count = period * max(1, count)

    def block(self) -> float:
        """Seconds a step."""
        return self._steps.seconds(self._count)


def measure(group: Group, sizes: Sizes, rounds: int, least: float) -> dict[str, dict[str, Any]]:
    """The rows of a group: method, or method and stage -> figures."""
    task, timed, rows = group.task(sizes), {}, {}
    for name, arm in group.arms.items():
        stages, host = stages_of(name, arm, task, sizes)
        for stage in stages or (None,):
            row = name if len(stages) < 2 else f"{name}/{stage}"
            rows[row] = {"method": name, "baseline": group.baseline, "note": arm.note}
            rows[row] |= {"fields": dict(arm.fields(sizes)), "host_seconds": host}
            if stage is not None:
                timed[row] = Timed(stages[stage], arm.period, least)
                rows[row] |= {"examples": timed[row].examples, "peak_bytes": timed[row].bytes}
    base = timed[group.baseline]
    seconds: dict[str, list[float]] = {row: [] for row in timed}
    ratios: dict[str, list[float]] = {row: [] for row in timed if row != group.baseline}
    for _ in range(rounds):
        before = base.block()
        seconds[group.baseline].append(before)
        for row in ratios:
            taken = timed[row].block()
            after = base.block()
            seconds[row].append(taken)
            seconds[group.baseline].append(after)
            ratios[row].append((before + after) / 2 / taken)
            before = after
    for row, taken in seconds.items():
        rows[row]["steps_per_second"] = measurement.quartiles([1 / x for x in taken])
    for row, found in ratios.items():
        rows[row]["speed_ratio"] = measurement.quartiles(found)
        rows[row]["memory_ratio"] = timed[row].bytes / base.bytes
    return rows


def compare(sizes: Sizes, rounds: int = ROUNDS, least: float = LEAST_SECONDS) -> dict[str, Any]:
    """The rows of all groups, and the lines of code of every method."""
    rows = {}
    for name, group in GROUPS.items():
        began = time.perf_counter()
        rows[name] = measure(group, sizes, rounds, least)
        print(f"{name} ({time.perf_counter() - began:.0f} s)", json.dumps(rows[name]), flush=True)
        # What the group holds on the device is not there in the next one.
        jax.clear_caches()
    return {"rows": rows, "lines": code_lines.count(), "without": WITHOUT}


def table(found: Mapping[str, Any]) -> str:
    """Two tables in Markdown: of steps, and of lines."""
    lines = [
        "| method | beside | steps/s | speed | peak MiB | memory | examples | |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for rows in found["rows"].values():
        for name, row in rows.items():
            beside = f"`{row['baseline']}`" if name != row["baseline"] else "its baseline"
            figures = [""] * 5
            if "peak_bytes" in row:
                figures[0] = f"{row['steps_per_second']['median']:.3g}"
                figures[2] = f"{row['peak_bytes'] / 2**20:.1f}"
                figures[4] = str(row["examples"])
            if "speed_ratio" in row:
                figures[1] = "{median:.2f} ({q25:.2f}, {q75:.2f})".format(**row["speed_ratio"])
                figures[3] = f"{row['memory_ratio']:.2f}"
            host = [f"{n} {x:.1f} s" for n, x in row["host_seconds"].items()]
            note = "; ".join(([row["note"]] if row["note"] else []) + host)
            lines.append(f"| `{name}` | {beside} | {' | '.join(figures)} | {note} |")
    lines += [f"| `{name}` | | | | | | | {why} |" for name, why in found["without"].items()]
    parts = ("methods", "losses", "networks", "data", "training")
    lines += [
        "",
        f"| method | own | {' | '.join(parts)} | shared |",
        f"| --- | ---: | {'---: | ' * len(parts)}---: |",
    ]
    for name, row in found["lines"].items():
        own = " | ".join(str(row["own_by"].get(part, "")) for part in parts)
        lines.append(f"| `{name}` | {row['own']} | {own} | {row['shared']} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="experiments.benchmark.methods")
    parser.add_argument("--out", default="", help="a JSON file for the result")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="blocks of each method")
    asked = parser.parse_args()
    result = measurement.begin(asked.out)
    result |= compare(method_tasks.USUAL, asked.rounds)
    text = table(result)
    print(text)
    measurement.end(result, asked.out)
    if asked.out:
        pathlib.Path(asked.out).with_suffix(".md").write_text(text)


if __name__ == "__main__":
    main()
