"""Says what a config's run will need, stage by stage, before anything is trained or allocated.

    python -m experiments.plan --config=configs/mnist/plackett_luce.py
    python -m experiments.plan --config=configs/language/python.py --devices=8 --hbm=16GiB

Every stage's step is compiled for the mesh of the config, on shapes: bytes a device, operations a
step, and where `--hbm` is exceeded a number of micro-batches that fits. Only data (for its shapes)
and pretrained decoders (for their config) are read.
"""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
from absl import flags
from rich.console import Console
from rich.table import Table

from experiments import configuration, run, tasks
from experiments.command import launch
from kdjax.training import Layout, planning

DEVICES = flags.DEFINE_integer(
    "devices", 0, "CPU devices to simulate; 0: the plan is for the devices that are here."
)
HBM = flags.DEFINE_string("hbm", "", "Memory of a device, such as 16GiB; empty: not compared.")
STAGES = flags.DEFINE_list("stages", [], "Names of the stages that are planned; empty: all.")
JSON = flags.DEFINE_string("json", "", "A file for the plan, as JSON.")

_UNITS = {"B": 1} | {
    f"{letter}{i}B": (1024 if i else 1000) ** power
    for power, letter in enumerate("KMGT", 1)
    for i in ("", "i")
}


def memory_size(text: str) -> int:
    """Bytes of a number with a unit.

    >>> memory_size("16GiB"), memory_size("1.5 MB")
    (17179869184, 1500000)
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?i?B)\s*", text)
    if not found or found[2] not in _UNITS or not float(found[1]):
        raise configuration.ConfigError(
            f"--hbm must be a positive number with one of the units {', '.join(_UNITS)}, such as "
            f"16GiB, got {text!r}"
        )
    return int(float(found[1]) * _UNITS[found[2]])


def readable(size: float) -> str:
    """Bytes as people say them.

    >>> readable(5 * 2**20), readable(12)
    ('5.0 MiB', '12 B')
    """
    for power, unit in ((3, "GiB"), (2, "MiB"), (1, "KiB")):
        if size >= 1024**power:
            return f"{size / 1024**power:,.1f} {unit}"
    return f"{size} B"


def recipe_of(config, found: Any) -> Callable[[], Any]:
    """What makes the recipe of a config under a trace. Weights that are given become shapes."""
    config = config.copy_and_resolve_references()
    module, chosen = tasks.method(config, config.method, "config.method")
    given = [role for role in configuration.roles(config) if config[role].get("checkpoint")]
    for role in given:
        config[role].checkpoint = ""
    task = tasks.task(config, found)
    tasks.check_roles(task, {"config.method": (module, chosen)})

    def make():
        roles = {role: planning.without_values(x) for role, x in task.given.items()}
        roles |= {role: task.variables(role) for role in given}
        return run.experiment(dataclasses.replace(task, given=roles), module, chosen)

    return make


def taught(config, stage: planning.StagePlan) -> str:
    """The role whose `training` a stage follows: a method's own roles learn as the student does."""
    trained = [r for r in configuration.roles(config) if "training" in config[r]]
    mine = [role for role in trained if role in stage.live]
    return "student" if "student" in mine or not mine else mine[0]


def suggestion(
    config, found: Any, stage: planning.StagePlan, layout: Layout, hbm: int
) -> dict[str, Any]:
    """Micro-batches with which a stage fits: `{"text", "microbatches", "peak"}`.

    Their number is about doubled, over divisors of the batch that leave every device its part, and
    the step compiled for each, until it fits or the peak no longer falls. `microbatches` and `peak`
    are None where none fits.
    """
    role = taught(config, stage)
    training, devices = config[role].training, layout.mesh.shape["data"]
    name = f"config.{role}.training.microbatches"

    def none(text: str) -> dict[str, Any]:
        return {"text": text, "microbatches": None, "peak": None}

    if stage.held > hbm:
        return none(
            f"variables, slots and data alone take {readable(stage.held)}, so micro-batches do not "
            "help; cut roles over more devices (config.sharding, config.mesh)"
        )
    if stage.held + stage.validation > hbm:
        return none(
            f"the validation needs {readable(stage.validation)} beside {readable(stage.held)}, so "
            "micro-batches do not help; cut roles over more devices (config.sharding, config.mesh)"
        )
    parts, peak = training.microbatches, stage.peak
    while smaller := [
        n
        for n in range(2 * parts, training.batch_size + 1)
        if not training.batch_size % n and not training.batch_size // n % devices
    ]:
        changed = config.copy_and_resolve_references()
        changed[role].training.microbatches = smaller[0]
        try:
            (planned,), _ = planning.plan(recipe_of(changed, found), layout, {stage.name})
        except ValueError as error:
            return none(f"its batch cannot be cut: {error}")
        if planned.peak <= hbm:
            text = f"it does with --{name}={smaller[0]}: {readable(planned.peak)}"
            return {"text": text, "microbatches": smaller[0], "peak": planned.peak}
        if planned.peak > 0.99 * peak:
            break
        parts, peak = smaller[0], planned.peak
    return none(
        f"no number of micro-batches fits; the least peak is {readable(peak)}, with "
        f"--{name}={parts}. What `prepare` does, the teacher's forward pass, is done on the whole "
        "batch: a smaller batch, shorter rows or a cached teacher (config.teacher.cached) need less"
    )


def table(stages: Sequence[planning.StagePlan], hbm: int) -> Table:
    """The plan, a column a stage."""
    out = Table(title="bytes a device, operations a step")
    out.add_column("")
    for stage in stages:
        out.add_column(f"{stage.name}\n{stage.steps} steps", justify="right")

    def row(name: str, values: Sequence[Any], show=readable, **options) -> None:
        if any(values):
            out.add_row(name, *[show(x) if x else "" for x in values], **options)

    roles = list(dict.fromkeys(role for s in stages for role in (*s.live, *s.frozen)))
    for role in roles:
        row(f"parameters of {role}", [s.parameters.get(role, 0) for s in stages], "{:,}".format)
    for role in roles:
        row(f"{role}, trained", [s.live.get(role, 0) for s in stages])
        row(f"{role}, frozen", [s.frozen.get(role, 0) for s in stages])
    row("optimizer slots", [s.optimizers for s in stages])
    row("memory, best variables", [s.kept for s in stages])
    row("data", [s.inputs for s in stages])
    row("  of it the teacher's outputs", [s.cache for s in stages])
    row("temporaries of a step", [s.temporaries for s in stages])
    row("temporaries of a validation", [s.validation for s in stages])
    row("peak", [s.peak for s in stages], style="bold")
    if hbm:
        row(f"fits {readable(hbm)}", ["yes" if s.peak <= hbm else "no" for s in stages], str)
    flops = "{:.3g}".format
    row("FLOPs: teacher, forward", [s.prepare_flops for s in stages], flops)
    row("FLOPs: trained, forward", [s.forward_flops for s in stages], flops)
    row("FLOPs: trained, backward", [s.backward_flops for s in stages], flops)
    return out


def main(argv: Sequence[str]) -> None:
    if run.CONFIG.value is None:
        raise configuration.ConfigError("--config is needed")
    hbm = memory_size(HBM.value) if HBM.value else 0
    if DEVICES.value < 0:
        raise configuration.ConfigError(f"--devices must not be negative, got {DEVICES.value}")
    if DEVICES.value:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", DEVICES.value)
    config, console = run.CONFIG.value, Console(soft_wrap=True, highlight=False)
    found, layout = tasks.dataset(config), configuration.settings(config).layout
    stages, end = planning.plan(recipe_of(config, found), layout, STAGES.value or None)
    mesh = ", ".join(f"{axis}={size}" for axis, size in layout.mesh.shape.items())
    console.print(f"{config.method.name} on {layout.mesh.size} {jax.default_backend()} ({mesh})")
    console.print(table(stages, hbm))
    if end:
        console.print(f"not planned, after {end.name!r}: {end.reason}", markup=False)
    suggestions = {
        s.name: suggestion(config, found, s, layout, hbm) for s in stages if hbm and s.peak > hbm
    }
    for name, found_for in suggestions.items():
        console.print(f"{name} does not fit: {found_for['text']}", markup=False)
    if JSON.value:
        content = {
            "mesh": dict(layout.mesh.shape),
            "backend": jax.default_backend(),
            "hbm": hbm or None,
            "stages": [fields(s) for s in stages],
            "not_planned": vars(end) if end else None,
            "suggestions": suggestions,
        }
        pathlib.Path(JSON.value).write_text(json.dumps(content, indent=2) + "\n")


def fields(stage: planning.StagePlan) -> dict[str, Any]:
    """A stage's plan as JSON has it, with its sums."""
    out = {**vars(stage), "held": stage.held, "peak": stage.peak}
    if not math.isfinite(stage.compiled_flops):
        out["compiled_flops"] = None
    return out


if __name__ == "__main__":
    launch(main)
