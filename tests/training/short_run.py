"""A stage, a computation and a stage in this process, which can be broken off and gone on with."""

import jax
import jax.numpy as jnp
import training_toys as toys

from kdjax.training import Compute, Display, Settings, Stage, run

TABLE = {name: jnp.asarray(x) for name, x in toys.problem().items()}
TEACHER = toys.program(toys.supervised("teacher"), toys.adam(), ("teacher",))
STUDENT = toys.program(optimizer=toys.adam())


class Killed(BaseException):
    """What a run does not see coming."""


class Lines(Display):
    def __init__(self):
        super().__init__(enabled=False)
        self.lines = []

    def say(self, line):
        self.lines.append(line)


def recipe():
    data = {"train": toys.TableStream(TABLE, 16)}
    teacher = yield Stage("teacher", TEACHER, {"teacher": toys.init(0)}, data, 20)
    scale = yield Compute("scale", lambda rng, o: {"scale": rng.normal(size=3)}, (teacher,))
    start = jax.tree.map(lambda x: x * float(scale["scale"][0]), toys.init(1))
    student = yield Stage("student", STUDENT, {"student": start}, data, 36)
    return teacher.load(), scale, student.load()


def go_on(workdir, kill=None):
    def on_step(stage, step):
        if kill == (stage, step):
            raise Killed

    display = Lines()
    settings = Settings(checkpoint_every=10, log_every=5, on_step=on_step)
    states = run(recipe(), seed=3, workdir=workdir, settings=settings, display=display)
    return toys.bits(states), display.lines
