"""The step time of each method over its floor.

    python -m experiments.benchmark.overhead --out=results/overhead.json

The floor is what no method can do without: the teacher's forward pass, the student's value and
gradient of cross-entropy, and the optimizer, each compiled alone, called in a plain loop on a batch
that lies on the device. A method is timed through the whole engine: streams, reports, metrics. Both
are run in turn, block by block, in one process; a block of a method is the difference between a
stage of 2n steps and one of n, so that what a stage does once is not counted. Reported: the median
of the ratios and their quartiles. The load of the machine is printed beside them.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags

from experiments.benchmark import measurement
from experiments.command import launch
from kdjax import losses, networks
from kdjax.data import Dataset
from kdjax.methods import dual_head_kd, kd, plackett_luce
from kdjax.methods.task import Task
from kdjax.training import Settings, run
from kdjax.training.optimizers import Training

BLOCKS = flags.DEFINE_integer("blocks", 9, "How many times floor and method are run in turn.")
OUT = flags.DEFINE_string("out", "", "A JSON file for the result.")
ONLY = flags.DEFINE_string("only", "", "Only the settings whose name holds this.")

# name: teacher, student, their options, image shape, classes, batch size, steps of a block
SETTINGS = {
    "mlp-256": ("mlp", (1200, 1200), "mlp", (256,), (28, 28, 1), 10, 256, 200),
    "resnet20-64": ("resnet56", None, "resnet20", None, (32, 32, 3), 100, 64, 4),
    "resnet8x4-64": ("resnet32x4", None, "resnet8x4", None, (32, 32, 3), 100, 64, 2),
}


def make_task(name: str) -> tuple[Task, int]:
    """The task of a setting, on random images, and the steps of a block."""
    teacher, teacher_widths, student, widths, shape, classes, batch, steps = SETTINGS[name]
    rng = np.random.default_rng(0)

    def pair(size):
        images = rng.integers(0, 256, (size, *shape), np.uint8)
        return images, np.concatenate(
            [np.arange(classes), rng.integers(0, classes, size - classes)]
        )

    dataset = Dataset.of(pair(2048), pair(200), pair(200), name=name)

    def build(kind, options):
        return networks.build(kind, classes, **({} if options is None else {"widths": options}))

    training = Training(steps=steps, batch_size=batch, optimizer="sgd", learning_rate=0.05)
    nets = {"teacher": build(teacher, teacher_widths), "student": build(student, widths)}
    return Task(dataset, nets, {"student": training, "teacher": training}), steps


def floor(task: Task, variables) -> Callable[[int], float]:
    """Seconds that a number of steps of the floor take."""
    teacher, student = task.networks["teacher"], task.networks["student"]
    training = task.training["student"]
    optimizer = training.transformation({"learning_rate": jnp.float32(0.05)})
    stream = task.stream("student")
    batch = jax.jit(stream.assemble)(stream.table, next(stream.items()))
    image, label = batch["image"], batch["label"]
    state = jax.tree.map(jnp.copy, task.variables("student"))

    @jax.jit
    def forward(variables, image):
        return networks.logits_of(teacher.apply(variables, image).output)

    @jax.jit
    def gradient(params, rest, image, label):
        def loss(params):
            out = student.apply({**rest, "params": params}, image, train=True)
            logits = networks.logits_of(out.output)
            new = {k: v for k, v in out.variables.items() if k != "params"}
            return losses.cross_entropy(logits, label).mean(), new

        return jax.value_and_grad(loss, has_aux=True)(params)

    def apply(params, slots, grads):
        changes, slots = optimizer.update(grads, slots, params)
        return optax.apply_updates(params, changes), slots

    update = jax.jit(apply, donate_argnums=(0, 1))
    kept = {"params": state["params"], "rest": {k: v for k, v in state.items() if k != "params"}}
    kept["slots"] = jax.jit(optimizer.init)(kept["params"])

    def block(steps: int) -> float:
        params, rest, slots = kept["params"], kept["rest"], kept["slots"]
        began = time.perf_counter()
        for _ in range(steps):
            taught = forward(variables, image)
            (_, rest), grads = gradient(params, rest, image, label)
            params, slots = update(params, slots, grads)
        jax.block_until_ready((taught, params))
        seconds = time.perf_counter() - began
        kept.update(params=params, rest=rest, slots=slots)
        return seconds

    return block


def method(task: Task, module, config, variables) -> Callable[[int], float]:
    """Seconds that a stage of a number of steps takes, start and end included."""
    taught = dataclasses.replace(task.with_teacher(variables), validate_every=10**9)

    def block(steps: int) -> float:
        def recipe():
            # Without validation: what is timed is the step. Of any length: one program.
            node = module.recipe(taught, config).send(None)
            return (yield dataclasses.replace(node, validation=None, steps=steps))

        began = time.perf_counter()
        run(recipe(), settings=Settings(log_every=50))
        return time.perf_counter() - began

    return block


def main(argv: Sequence[str]) -> None:
    methods = {
        "kd": (kd, kd.Config.of("kd")),
        "plackett_luce": (plackett_luce, plackett_luce.Config()),
        "dual_head_kd": (dual_head_kd, dual_head_kd.Config()),
    }
    result = measurement.begin(OUT.value)
    for name in SETTINGS:
        if ONLY.value not in name:
            continue
        task, steps = make_task(name)
        teacher = task.variables("teacher")
        least = floor(task, teacher)
        timed = {n: method(task, m, c, teacher) for n, (m, c) in methods.items()}
        least(steps)
        for block in timed.values():
            block(steps)
        ratios = {n: [] for n in timed}
        floors = []
        for _ in range(BLOCKS.value):
            for n, block in timed.items():
                before = least(steps) / steps
                seconds = (block(2 * steps) - block(steps)) / steps
                after = least(steps) / steps
                floors += [before, after]
                ratios[n].append(seconds / ((before + after) / 2))
        result[name] = {
            "floor_ms": measurement.quartiles([1000 * f for f in floors]),
            "ratio": {n: measurement.quartiles(r) for n, r in ratios.items()},
        }
        print(name, json.dumps(result[name]), flush=True)
    measurement.end(result, OUT.value)


if __name__ == "__main__":
    launch(main)
