"""Compares methods over seeds on one task: records, a table with paired tests, plots.

    python -m experiments.compare --config=configs/mnist/compare.py --workdir=runs/compare

Within a seed every method has the same teacher, the same initial student and the same batches in
the same order; where `config.vmap` is set all seeds train together, and with them the arms of one
method that differ in traced fields only (temperatures, weights of losses, learning rates). The
fields of an arm are its method's; `training` changes how its student is trained. With
`config.reseed_data` each seed is that of its data too (`config.data.seed`): of how they are split,
paired or disturbed. The records hold
the accuracy after the last step and where the validation split was best, never the best on the
test split.
"""

from __future__ import annotations

import dataclasses
import pathlib
import time
from collections.abc import Generator, Mapping, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
from absl import flags
from ml_collections import config_flags

from experiments import configuration, tasks
from experiments.command import launch
from experiments.workdir import claim
from kdjax import evaluation, methods
from kdjax.evaluation.tables import column
from kdjax.methods.sweep import program_of, sweep
from kdjax.methods.task import Task
from kdjax.training import Display, prefixed, read_metrics, run, together
from kdjax.training.optimizers import Training

CONFIG = config_flags.DEFINE_config_file("config", lock_config=True)
WORKDIR = flags.DEFINE_string("workdir", None, "Where the run lies; started again, it goes on.")
RESULTS = flags.DEFINE_string("results", "", "Where records, table and plots go; default: workdir.")

FIELDS = ("arms", "seeds", "baseline", "name", "vmap", "apart", "reseed_data")


class Arm(NamedTuple):
    """A method, its config, and how its student is trained."""

    module: ModuleType
    config: Any
    training: Training

    def task(self, task: Task) -> Task:
        return dataclasses.replace(task, training={**task.training, "student": self.training})


def arm(config: ml_collections.ConfigDict, name: str) -> Arm:
    """An arm of a config."""
    where, fields = f"config.arms.{name}", dict(config.arms[name])
    changes = configuration.plain(fields.pop("training", {}))
    usual = configuration.plain(config.student.training)
    training = configuration.training(f"{where}.training", {**usual, **changes})
    return Arm(*tasks.method(config, fields, where), training)


def sweeps(task: Task, arms: Mapping[str, Arm], apart: Sequence[str]) -> dict[str, list[str]]:
    """Prefix of stages -> the arms that train together; an arm with a stage in `apart` is alone."""
    found: dict[Any, list[str]] = {}
    for name, one in arms.items():
        alone = any(stage.startswith(f"{name}/") for stage in apart)
        if alone or not hasattr(one.module.Config, "traced"):
            found[name] = [name]
        else:
            key = program_of(one.module, (one.task(task), one.config))
            found.setdefault(key, []).append(name)
    return {f"{n[0]}+{len(n) - 1}" if len(n) > 1 else n[0]: n for n in found.values()}


def arms_of(task: Task, arms: Mapping[str, Arm], groups: Mapping[str, list[str]]) -> Generator:
    """One teacher, then every group of arms in turn."""
    teacher = yield from methods.get(task.baseline).teacher(task)
    taught = yield from task.with_teacher(teacher).prepared()
    trained = {}
    for prefix, names in groups.items():
        members = {name: (arms[name].task(taught), arms[name].config) for name in names}
        module = arms[names[0]].module
        if len(names) > 1:
            trained |= yield from prefixed(sweep(module, members), prefix)
        else:
            trained[names[0]] = yield from prefixed(module.recipe(*members[names[0]]), prefix)
    return teacher, {name: trained[name] for name in arms}


def series(workdir: pathlib.Path, prefix: str, name: str, member: int | None) -> dict[str, Any]:
    """The curves of one seed of the arm `name`, whose stages are called `prefix/stage`."""
    out: dict[str, Any] = {}
    for stage, metrics in evaluation.curves(read_metrics(workdir)).items():
        if not stage.startswith(f"{prefix}/"):
            continue
        for metric, (steps, values) in metrics.items():
            measured = metric.partition("/")[2]
            if measured in ("examples_per_second", "stall") or measured.startswith("time/"):
                continue
            mine = values if member is None or values.ndim == 1 else values[:, member]
            out.setdefault(name + stage.removeprefix(prefix), {})[metric] = (steps, mine)
    return out


def main(argv: Sequence[str]) -> None:
    if CONFIG.value is None or WORKDIR.value is None:
        raise configuration.ConfigError("--config and --workdir are needed")
    config, workdir = CONFIG.value, pathlib.Path(WORKDIR.value)
    fields = *configuration.FIELDS, *configuration.roles(config)
    configuration.only("config", config, (*fields, *FIELDS))
    seeds = tuple(range(config.seeds))
    if not seeds:
        raise configuration.ConfigError(f"config.seeds must be at least 1, got {config.seeds}")
    arms = {name: arm(config, name) for name in config.arms}
    if config.baseline not in arms:
        raise configuration.ConfigError(
            f"config.baseline={config.baseline!r} is not one of the arms {sorted(arms)}"
        )
    single = ml_collections.ConfigDict({k: v for k, v in config.items() if k in fields})
    members = tasks.members(single, seeds, config.get("reseed_data", False))
    first = members[0]
    settings = configuration.settings(config)
    configuration.check_layout(settings.layout, first)
    chosen = {f"config.arms.{name}": one for name, one in arms.items()}
    tasks.check_roles(first, {where: (one.module, one.config) for where, one in chosen.items()})
    for where, one in chosen.items():
        tasks.check(one.module, one.config, one.task(first), where)
    claim(workdir, config)
    display, began = Display(), time.monotonic()

    groups = {name: [name] for name in arms}
    if config.vmap:
        groups = sweeps(first, arms, config.apart)
        recipes = [arms_of(task, arms, groups) for task in members]
        outcomes = run(
            together(recipes, seeds, tuple(config.apart)),
            workdir=workdir,
            settings=settings,
            display=display,
        )
        folders = [workdir] * len(seeds)
    else:
        outcomes, folders = [], []
        for task in members:
            folder = workdir / f"seed-{task.seed}"
            display.say(f"seed {task.seed}")
            outcomes.append(
                run(
                    arms_of(task, arms, groups),
                    seed=task.seed,
                    workdir=folder,
                    settings=settings,
                    display=display,
                )
            )
            folders.append(folder)
    seconds = (time.monotonic() - began) / (len(seeds) * len(arms))
    results = pathlib.Path(RESULTS.value) if RESULTS.value else workdir / "results"
    environment = evaluation.environment()
    teachers, writes = [], jax.process_index() == 0
    places = {n: (prefix, names) for prefix, names in groups.items() for n in names}
    for k, (task, (teacher, trained), folder) in enumerate(zip(members, outcomes, folders)):
        taught = task.reference(teacher)
        teachers.append(task.scores("teacher", teacher, None)[task.shown[0]])
        for name, student in trained.items():
            chosen = {"chosen": dict(student.changes)} if student.changes else {}
            metrics = {
                which: student.on(task).scores("student", getattr(student, which), taught)
                for which in ("last", "selected")
            }
            if not writes:  # but all must score: variables may lie on several hosts
                continue
            metrics["selected"]["step"] = float(student.selected_step)
            prefix, names = places[name]
            member = k * len(names) + names.index(name) if config.vmap else None
            record = evaluation.Record(
                method=name,
                task=config.name,
                seed=task.seed,
                config=configuration.plain(config) | chosen,
                metrics=metrics,
                curves=series(folder, prefix, name, member),
                commit=environment["commit"],
                versions=environment,
                seconds=seconds,
            )
            evaluation.write_record(results / f"{name}-seed{task.seed}.json", record)
    if writes:
        publish(results, config, first, teachers)


def publish(results: pathlib.Path, config, task: Task, teachers: Sequence[float]) -> None:
    """The table and the plots of a folder of records."""
    records = [r for r in evaluation.read_records(results) if r.method in config.arms]
    headline, score = column(task.shown[0]), f"validation/{task.score}"
    table = []
    for which, title in (("last", "after the last step"), ("selected", "selected by validation")):
        arms = evaluation.arms(records, which)
        arms = {name: arms[name] for name in config.arms}
        table += [
            f"Students {title}:",
            "",
            evaluation.comparison_table(arms, baseline=config.baseline, metrics=task.shown),
            "",
        ]
    teacher = evaluation.summary(np.asarray(teachers))
    head = [
        f"# {config.name}",
        "",
        f"{len(teachers)} seeds; the teacher's {headline.title}: "
        f"{headline.spread(teacher.mean, teacher.sd or 0)}; paired t-tests against "
        f"`{config.baseline}`, Holm-corrected.",
        "",
    ]
    text = "\n".join(head + table)
    (results / "table.md").write_text(text)
    last, percent = evaluation.arms(records, "last"), headline.scale == 100
    values = {name: last[name][headline.metric] for name in config.arms}
    figure = evaluation.arms_plot(
        values,
        title=f"{config.name}: test {headline.metric}",
        x=headline.metric if percent else headline.title,
        percent=percent,
    )
    (results / f"{headline.metric}.png").write_bytes(evaluation.png(figure))
    bands = {}
    for name in config.arms:
        curves = [r.curves for r in records if r.method == name]
        stages = [stage for stage, x in curves[0].items() if score in x]
        # Where the student learned in several stages, that in which it was distilled.
        stage = f"{name}/distill" if f"{name}/distill" in stages else "".join(stages[:1])
        kept = [c[stage][score] for c in curves if stage]
        if kept:
            bands[name] = (kept[0][0], np.stack([v for _, v in kept], axis=1))
    if bands:
        what = task.score.replace("_", " ")
        figure = evaluation.learning_curves(
            bands, title=f"{config.name}: validation {what}", y=what, percent=percent
        )
        (results / "curves.png").write_bytes(evaluation.png(figure))
    print(text)
    print(f"records, table and plots: {results}")


if __name__ == "__main__":
    launch(main, several=True)
