"""What the engine costs as runs grow: sharded teachers, seeds together, checkpoints, the loop.

    python -m experiments.benchmark.scale --out=results/benchmark/scale.json
    python -m experiments.benchmark.scale --parts=loop --blocks=3

- `sharded`: a teacher cut over eight simulated devices against one that each holds whole: its bytes
  on the fullest device, and the student after 20 steps. In a process of its own.
- `together`: four students under `vmap` with one teacher forward against four runs, beside what
  sharing the teacher alone would give, (t_T + 4 t_S) / (4 t_T + 4 t_S), from the time of the
  teacher's forward pass and of a student's step with the teacher's outputs at hand.
- `checkpoints`: what a checkpoint costs the stages of configs/mnist/plackett_luce.py, by runs that
  save and runs that do not, as a share of the time of 50 steps, for each and for the whole job; and
  the seconds from starting a run again to its next step. The teacher's steps are long and are saved
  every 5, so that what is looked for is larger than the noise.
- `loop`: a stage, with its streams, reports and metrics, against the same compiled step called in a
  plain loop with one batch.

What is compared runs in turn, block by block, in one process; reported are medians and quartiles.
The time of a step is that of a stage of 2n steps less one of n, so that what a stage does once is
not counted. The load of the machine is printed beside them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax.sharding import PartitionSpec as P

from configs.mnist import plackett_luce as default
from experiments import configuration
from experiments.benchmark import measurement, overhead
from experiments.command import launch
from kdjax import networks
from kdjax.data import Dataset
from kdjax.methods import kd
from kdjax.methods.task import Task
from kdjax.networks import logits_of
from kdjax.training import Layout, Settings, Stage, make_mesh, planning, run, together
from kdjax.training.optimizers import Training
from kdjax.training.step import frozen_of

PARTS = flags.DEFINE_multi_enum(
    "parts",
    ["sharded", "together", "checkpoints", "loop"],
    ["sharded", "together", "checkpoints", "loop"],
    "What is measured.",
)
DEVICES = flags.DEFINE_integer("devices", 0, "CPU devices to simulate; 0: those that are here.")

MEMBERS = 4
STEPS_TO_COMPARE = 20
EVERY = 50  # steps between checkpoints


def make_task(
    teacher: Sequence[int], student: Sequence[int], batch_size: int, steps: int = 100
) -> Task:
    """Fully connected networks of these widths on random images of 28 x 28, the teacher given."""
    rng = np.random.default_rng(0)

    def pair(size):
        images = rng.integers(0, 256, (size, 28, 28, 1), np.uint8)
        return images, np.concatenate([np.arange(10), rng.integers(0, 10, size - 10)])

    dataset = Dataset.of(pair(2048), pair(200), pair(200), name="random")
    training = Training(steps=steps, batch_size=batch_size, optimizer="sgd", learning_rate=0.05)
    nets = {
        role: networks.build("mlp", 10, widths=tuple(widths))
        for role, widths in (("teacher", teacher), ("student", student))
    }
    task = Task(dataset, nets, {"student": training, "teacher": training})
    return task.with_teacher(task.variables("teacher"))


def distillation(task: Task) -> Stage:
    """The stage of `kd` of a task, without validation: what is timed is the step."""
    recipe, value = kd.recipe(task, kd.Config.of("kd")), None
    while not isinstance(node := recipe.send(value), Stage):
        value = node.function(np.random.default_rng(0))  # the teacher's outputs, cached
    return dataclasses.replace(node, validation=None)


def seconds_of(stage: Stage, steps: int, **settings: Any) -> float:
    """Seconds that a stage takes, start and end included."""

    def recipe():
        yield dataclasses.replace(stage, steps=steps)

    began = time.perf_counter()
    run(recipe(), settings=Settings(log_every=50, **settings))
    return time.perf_counter() - began


def step_of(stage: Stage, steps: int) -> float:
    """Seconds a step in the engine."""
    return (seconds_of(stage, 2 * steps) - seconds_of(stage, steps)) / steps


def sharded() -> dict[str, Any]:
    """Bytes of the teacher on the fullest device, and how far the students are apart."""
    task = make_task((2048, 2048), (256,), 64)
    stage, mesh = distillation(task), make_mesh()
    rules = {"teacher": [("dense../bias|kernel", P("data"))]}
    whole, cut = Layout(mesh), Layout(mesh, rules)

    def bytes_held(layout: Layout) -> int:
        held = dict.fromkeys(mesh.devices.flat, 0)
        for x in jax.tree.leaves(layout.frozen(stage, frozen_of(stage))):
            for shard in x.addressable_shards:
                held[shard.device] += shard.data.nbytes
        return max(held.values())

    def student(layout: Layout) -> Any:
        def recipe():
            return (yield dataclasses.replace(stage, steps=STEPS_TO_COMPARE))

        return run(recipe(), settings=Settings(layout=layout)).variables["student"]

    ours, theirs = student(cut), student(whole)
    gap = jax.tree.map(lambda a, b: float(jnp.max(jnp.abs(a - b))), ours, theirs)
    size = bytes_held(cut), bytes_held(whole)
    shapes = dataclasses.replace(
        stage, variables=jax.eval_shape(lambda: dict(stage.variables)), memory={}
    )
    peaks = [planning.plan_stage(shapes, layout).peak for layout in (cut, whole)]
    return {
        "devices": mesh.size,
        "teacher_bytes": {"sharded": size[0], "replicated": size[1]},
        "ratio": size[0] / size[1],
        "planned_peak_bytes": {"sharded": peaks[0], "replicated": peaks[1]},
        "largest_difference_of_students": max(jax.tree.leaves(gap)),
        "steps": STEPS_TO_COMPARE,
    }


def population() -> dict[str, Any]:
    """Four students together over four runs, and the share that one teacher forward would give."""
    task, steps = make_task((1200, 1200), (256,), 256), 60
    stage = distillation(task)
    cached = distillation(dataclasses.replace(task, cache_teacher=True))
    students = [
        dataclasses.replace(task, seed=seed).variables("student") for seed in range(MEMBERS)
    ]

    def recipe(student, steps):
        variables = {**stage.variables, "student": student}
        yield dataclasses.replace(stage, variables=variables, steps=steps)

    def all_together(steps: int) -> float:
        recipes = [recipe(student, steps) for student in students]
        began = time.perf_counter()
        run(together(recipes, range(MEMBERS)), settings=Settings(log_every=50))
        return time.perf_counter() - began

    stream, network = stage.data["train"], task.networks["teacher"]
    image = jax.jit(stream.assemble)(stream.table, next(stream.items()))["image"]
    forward = jax.jit(lambda v, x: logits_of(network.apply(v, x).output))

    def teacher() -> float:
        began = time.perf_counter()
        for _ in range(steps):
            out = forward(task.given["teacher"], image)
        jax.block_until_ready(out)
        return (time.perf_counter() - began) / steps

    found = {name: [] for name in ("ratio", "bound", "together", "apart", "teacher", "student")}
    for _ in range(overhead.BLOCKS.value + 1):
        one = (all_together(2 * steps) - all_together(steps)) / steps
        apart = MEMBERS * step_of(stage, steps)
        t, s = teacher(), step_of(cached, steps)
        bound = (t + MEMBERS * s) / (MEMBERS * (t + s))
        for name, x in zip(found, (one / apart, bound, one, apart, t, s), strict=True):
            found[name].append(x if name in ("ratio", "bound") else 1000 * x)
    found = {name: measurement.quartiles(values[1:]) for name, values in found.items()}
    return {
        "members": MEMBERS,
        "ratio": found.pop("ratio"),
        "teacher_shared_only": found.pop("bound"),
        "milliseconds": found,
    }


class _Killed(Exception):
    """Stands for the end of a process."""


def _kill(at: int) -> Callable[[str, int], None]:
    def on_step(name: str, step: int) -> None:
        if step == at:
            raise _Killed

    return on_step


def _goes_on(name: str, step: int) -> None:
    if step != 11:
        raise RuntimeError(f"{name} went on with step {step}, not after its checkpoint at step 10")
    raise _Killed


def stages_of(config) -> Mapping[str, Stage]:
    """The stages of a config's method, the teacher as it starts, without validation."""
    task = configuration.task(config)
    module, chosen = configuration.method(config.method)
    found, value = {}, None
    recipe = module.recipe(task, chosen)
    untrained = task.variables("teacher")
    while True:
        node = recipe.send(value)
        if isinstance(node, Stage):
            found[node.name] = dataclasses.replace(node, validation=None)
            if node.name == "distill":
                return found
            recipe = module.recipe(task.with_teacher(untrained), chosen)
            value = None
        else:
            value = node.function(np.random.default_rng(0))


def checkpoints() -> dict[str, Any]:
    """Time spent on saving as a share of the steps' time, and seconds to go on."""
    config, out = default.get_config(), {}
    for name, stage in stages_of(config).items():
        # The last step of a stage is not saved as a checkpoint.
        steps, often = (101, 5) if name == "teacher" else (20 * EVERY + 1, EVERY)
        few = steps // 4

        def block(count: int, every: int, stage=stage) -> float:
            def recipe():
                yield dataclasses.replace(stage, steps=count)

            with tempfile.TemporaryDirectory() as workdir:
                began = time.perf_counter()
                run(recipe(), workdir=workdir, settings=Settings(checkpoint_every=every))
                return time.perf_counter() - began

        costs, times = [], []
        for _ in range(max(overhead.BLOCKS.value // 3, 1) + 1):
            start_and_end = block(few, 0)
            without = block(steps, 0)
            saving = block(steps, often)
            costs.append(1000 * (saving - without) / ((steps - 1) // often))
            times.append(1000 * (without - start_and_end) / (steps - few))
        step = np.median(times[1:])
        out[name] = {
            "share": measurement.quartiles(np.array(costs[1:]) / (EVERY * step)),
            "save_ms": measurement.quartiles(costs[1:]),
            "step_ms": measurement.quartiles(times[1:]),
            "resume_seconds": resume(stage),
        }
        print(name, json.dumps(out[name]), flush=True)
    steps = {"teacher": config.teacher.training.steps, "distill": config.student.training.steps}
    saving = sum(steps[name] / EVERY * out[name]["save_ms"]["median"] for name in steps)
    plain = sum(steps[name] * out[name]["step_ms"]["median"] for name in steps)
    return {"every": EVERY, "share_of_the_job": saving / plain, **out}


def resume(stage: Stage) -> dict[str, float]:
    """Seconds from starting a killed run again to its next step, compiled before and not; the
    smaller of two."""
    found = {}
    for name in ("compiled", "not_compiled"):
        seconds = []
        for _ in range(2):
            with tempfile.TemporaryDirectory() as workdir:

                def recipe():
                    yield dataclasses.replace(stage, steps=100)

                def go(on_step, workdir=workdir, recipe=recipe):
                    settings = Settings(checkpoint_every=10, on_step=on_step)
                    with contextlib.suppress(_Killed):
                        run(recipe(), workdir=workdir, settings=settings)

                go(_kill(15))
                if name == "not_compiled":
                    jax.clear_caches()
                began = time.perf_counter()
                go(_goes_on)
                seconds.append(time.perf_counter() - began)
        found[name] = min(seconds)
    return found


def loop() -> dict[str, Any]:
    """The engine's time a step over that of its compiled step alone."""
    sizes = {"2ms": ((256, 256), (256,), 128, 600), "20ms": ((1200, 1200), (1200,), 1024, 120)}
    out = {}
    for name, (teacher, student, batch_size, steps) in sizes.items():
        stage = distillation(make_task(teacher, student, batch_size))
        bare = measurement.Steps(stage, one_batch=True)
        bare.seconds(steps)
        ratios, floors = [], []
        for _ in range(overhead.BLOCKS.value + 1):
            before = bare.seconds(steps)
            engine = step_of(stage, steps)
            after = bare.seconds(steps)
            floors += [1000 * before, 1000 * after]
            ratios.append(engine / ((before + after) / 2))
        out[name] = {
            "ratio": measurement.quartiles(ratios[1:]),
            "bare_step_ms": measurement.quartiles(floors[2:]),
        }
    return out


def in_a_process() -> dict[str, Any]:
    """What `sharded` finds on eight simulated devices, which a process has from its start."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "found.json"
        command = [sys.executable, "-m", "experiments.benchmark.scale", "--parts=sharded"]
        subprocess.run([*command, "--devices=8", f"--out={path}"], check=True, stdout=sys.stderr)
        return json.loads(path.read_text())["sharded"]


def main(argv: Sequence[str]) -> None:
    if DEVICES.value:
        jax.config.update("jax_num_cpu_devices", DEVICES.value)
    result = measurement.begin(overhead.OUT.value)
    measured = {
        "sharded": sharded if DEVICES.value else in_a_process,
        "together": population,
        "checkpoints": checkpoints,
        "loop": loop,
    }
    for part in dict.fromkeys(PARTS.value):
        began = time.perf_counter()
        result[part] = measured[part]()
        seconds = time.perf_counter() - began
        print(f"{part} ({seconds:.0f} s)", json.dumps(result[part]), flush=True)
    measurement.end(result, overhead.OUT.value)


if __name__ == "__main__":
    launch(main)
