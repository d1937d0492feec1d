"""Runs one config: a teacher, the student alone, the distilled student, a table and a report.

    python -m experiments.run --config=configs/mnist/plackett_luce.py --workdir=runs/pl

Every field of the config is a flag: --config.method.temperature=2. The same command started again
goes on where it was.
"""

from __future__ import annotations

import pathlib
import time
from collections.abc import Generator, Sequence

import jax
from absl import flags
from ml_collections import config_flags

from experiments import configuration, reports, tasks
from experiments.command import launch
from experiments.workdir import claim
from kdjax import evaluation, methods
from kdjax.methods.task import Task
from kdjax.training import Display, Profile, read_metrics, run, save_variables
from kdjax.training.lock import locked

CONFIG = config_flags.DEFINE_config_file("config", lock_config=True)
WORKDIR = flags.DEFINE_string("workdir", None, "Where the run lies; started again, it goes on.")
CACHE = flags.DEFINE_string(
    "compilation_cache", "", "A directory for XLA's persistent compilation cache; empty: none."
)
PROFILE_STEPS = flags.DEFINE_string(
    "profile_steps", "", "FIRST:LAST, steps of each stage to trace into <workdir>/profile."
)
PROFILE_STAGE = flags.DEFINE_string(
    "profile_stage", "", "The only stage that --profile_steps traces; empty: every stage."
)


def experiment(task: Task, module, config) -> Generator:
    """The teacher, the student alone and the distilled student of a task."""
    baseline = methods.get(task.baseline)
    teacher = yield from baseline.teacher(task)
    task = yield from task.with_teacher(teacher).prepared()
    alone = yield from baseline.recipe(task, baseline.Config())
    distilled = alone
    if module is not baseline:
        distilled = yield from module.recipe(task, config)
    return teacher, alone, distilled


def profile(workdir: pathlib.Path) -> Profile | None:
    """What `--profile_steps` and `--profile_stage` ask for."""
    if PROFILE_STEPS.value:
        return Profile.of(PROFILE_STEPS.value, workdir / "profile", PROFILE_STAGE.value)
    if PROFILE_STAGE.value:
        raise configuration.ConfigError("--profile_stage needs --profile_steps")
    return None


def main(argv: Sequence[str]) -> None:
    began = time.monotonic()
    if CONFIG.value is None or WORKDIR.value is None:
        raise configuration.ConfigError("--config and --workdir are needed")
    if CACHE.value:
        jax.config.update("jax_compilation_cache_dir", CACHE.value)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    config, workdir = CONFIG.value, pathlib.Path(WORKDIR.value)
    module, method_config = tasks.method(config, config.method, "config.method")
    task = tasks.task(config)
    settings = configuration.settings(config, profile=profile(workdir))
    configuration.check_layout(settings.layout, task)
    tasks.check_roles(task, {"config.method": (module, method_config)})
    tasks.check(module, method_config, task, "config.method")
    display = Display()
    with locked(workdir, display.say):
        claim(workdir, config)
        _run(task, module, method_config, settings, config, workdir, display, began)


def _run(task, module, method_config, settings, config, workdir, display, began) -> None:
    display.say(f"{config.method.name} on {task.dataset.name}, seed {config.seed}: {workdir}")
    teacher, alone, distilled = run(
        experiment(task, module, method_config),
        seed=config.seed,
        workdir=workdir,
        settings=settings,
        display=display,
    )
    if PROFILE_STEPS.value and not (workdir / "profile").exists():
        display.say(
            "--profile_steps: no step was traced; the stages are finished or called otherwise"
        )
    if distilled.changes:
        display.say(f"the distilled student's network was chosen: {dict(distilled.changes)}")
    models = {"teacher": teacher, task.alone: alone.last}
    if module is not methods.get(task.baseline):
        models["distilled student"] = distilled.last
    readers = {"distilled student": distilled.on(task)}
    for name, variables in models.items():
        save_variables(workdir / "weights" / name.replace(" ", "_"), variables)
    first, path = jax.process_index() == 0, workdir / "report.html"
    table = reports.write(
        task,
        models,
        path,
        first,
        readers,
        title=f"{config.method.name} on {task.dataset.name}",
        curves=evaluation.curves(read_metrics(workdir)) if first else {},
        config=configuration.plain(config),
        environment=evaluation.environment(),
        seconds=time.monotonic() - began,
    )
    if first:
        print(table)
        print(f"report: {path}")


if __name__ == "__main__":
    launch(main, several=True)
