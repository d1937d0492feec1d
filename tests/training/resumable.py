"""A run of three stages that can be killed: `python resumable.py WORKDIR [STAGE:STEP SIGNAL]`.

Moving average, projector, queue, schedule, accumulation, a computation, a stream with a state;
prints a digest of everything that is left at the end.
"""

import hashlib
import json
import os
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent))

import jax
import jax.numpy as jnp
import numpy as np
import optax
import training_toys as toys

from kdjax.training import (
    Compute,
    Context,
    Display,
    Evaluation,
    Program,
    Settings,
    Stage,
    Update,
    Validation,
    mean,
    run,
)

TABLE = {name: jnp.asarray(x) for name, x in toys.problem().items()}
SPLIT = toys.Split(TABLE, 32)
ACCURACY = toys.accuracy("student")
TEACHER = toys.program(toys.supervised("teacher"), toys.adam(), ("teacher",))


def teach(variables, batch, context):
    teacher, train = variables["teacher"], batch["train"]
    taught = {
        "logits": toys.logits(teacher, train["x"]),
        "hint": toys.features(teacher, train["x"]),
    }
    return {"train": {**train, "teacher": taught}}, context.memory


def objective(variables, batch, context: Context):
    batch = batch["train"]
    logits = toys.logits(variables["student"], batch["x"])
    target = jax.nn.softmax(batch["teacher"]["logits"] / context.values["temperature"])
    loss = -jnp.sum(target * jax.nn.log_softmax(logits), -1)
    queue = jnp.roll(context.memory["queue"], 1).at[0].set(logits.mean())
    projected = toys.features(variables["student"], batch["x"])
    projected = projected @ variables["projector"]["params"]["kernel"]
    hint = jnp.mean((projected - batch["teacher"]["hint"]) ** 2, -1)
    cross_entropy = toys.cross_entropy(logits, batch["y"])
    return Evaluation(
        {"kd": mean(loss), "ce": mean(cross_entropy, coefficient=0.5), "hint": mean(hint)},
        memory={**context.memory, "queue": queue},
    )


def average(variables, context, metrics):
    mixed = jax.tree.map(lambda a, b: 0.9 * a + 0.1 * b, variables["average"], variables["student"])
    return {**variables, "average": mixed}, context.memory


STUDENT = Program(
    (
        Update(
            objective,
            ("student", "projector"),
            lambda values: optax.adam(values["rate"]),
            microbatches=2,
            after=average,
        ),
    ),
    prepare=teach,
    schedules={
        "rate": lambda step, steps: 0.02 * (1 - step / steps),
        "temperature": lambda step, steps: 1 + 3 * step / steps,
    },
    carries=("average",),
)


def recipe(workdir):
    table = toys.TableStream(TABLE, 16, 0)
    teacher = yield Stage("teacher", TEACHER, {"teacher": toys.init(0)}, {"train": table}, 60)

    def centre(rng, outcome):
        with open(workdir / "computed", "a") as file:
            file.write("once\n")
        noise = rng.normal(size=3)
        return {
            "noise": noise,
            "bias": np.asarray(outcome.variables["teacher"]["params"]["head"]["bias"]),
        }

    yield Compute("centre", centre, (teacher,))
    student = toys.init(1)
    start = {
        "teacher": teacher.variables["teacher"],
        "student": student,
        "average": student,
        "projector": {"params": {"kernel": jnp.eye(8)}},
    }
    first = yield Stage(
        "student",
        STUDENT,
        start,
        {"train": toys.WalkStream(TABLE, 16, 1)},
        60,
        memory={"queue": jnp.zeros(5)},
        validation=Validation(ACCURACY, SPLIT, 20),
    )
    last = yield Stage(
        "more",
        STUDENT,
        start,
        {"train": toys.TableStream(TABLE, 16, 2)},
        60,
        memory={"queue": jnp.zeros(5)},
        validation=Validation(ACCURACY, SPLIT, 20),
        continues=first,
    )
    return teacher.load(), first.load(), last.load()


def main():
    workdir = pathlib.Path(sys.argv[1])
    workdir.mkdir(parents=True, exist_ok=True)
    kill = sys.argv[2].split(":") if len(sys.argv) > 2 else None

    def on_step(stage, step):
        if kill and stage == kill[0] and step == int(kill[1]):
            os.kill(os.getpid(), int(sys.argv[3]))

    settings = Settings(checkpoint_every=5, log_every=10, on_step=on_step)
    states = run(recipe(workdir), seed=3, workdir=workdir, settings=settings, display=Display())
    digest = hashlib.sha256()
    for x in jax.tree.leaves(states):
        digest.update(np.asarray(x).tobytes())
    print(json.dumps({"digest": digest.hexdigest()}))


if __name__ == "__main__":
    main()
