"""A small run of one or several processes: `python several.py --workdir=W [--coordinator=...]`.

A computation, two stages, a sharded teacher, validation, checkpoints.
`--signal=PROCESS:PLACE:STEP:NUMBER` is a signal that a process sends itself: in a stage after a
step, or in the computation (`shift:0`).
"""

import faulthandler
import os
import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent))

import jax
import jax.numpy as jnp
import numpy as np
import training_toys as toys
from absl import flags
from jax.sharding import PartitionSpec as P

from experiments.command import launch
from kdjax.training import (
    Compute,
    Display,
    Layout,
    Settings,
    Stage,
    Validation,
    gather,
    load_variables,
    make_mesh,
    run,
    save_variables,
)

WORKDIR = flags.DEFINE_string("workdir", None, "Where the run lies.")
WALK = flags.DEFINE_bool("walk", False, "The last stage reads a stream with a state of its own.")
SIGNAL = flags.DEFINE_string("signal", "", "PROCESS:PLACE:STEP:NUMBER.")
TABLE = {name: np.asarray(x) for name, x in toys.problem().items()}


def mine(stream, item):
    """This process's part of every batch."""
    part = stream.batch_size // jax.process_count()
    first = part * jax.process_index()
    return {name: x[first : first + part] for name, x in item.items()}


class Stream(toys.TableStream):
    def items(self, start=0, state=None):
        return (mine(self, item) for item in super().items(start, state))


class Walk(toys.WalkStream):
    """Each process walks alone, from a place of its own."""

    def items(self, start=0, state=None):
        process, processes = jax.process_index(), jax.process_count()
        part = toys.WalkStream(TABLE, self.batch_size // processes)
        return part.items(start, state or {"at": 1 + process})


class Split(toys.Split):
    def items(self):
        return (mine(self, item) for item in super().items())


def strike(place, step):
    if SIGNAL.value:
        process, where, when, number = SIGNAL.value.split(":")
        if (int(process), where, int(when)) == (jax.process_index(), place, step):
            os.kill(os.getpid(), int(number))
            time.sleep(1.5)  # the runtime looks for a signal once a second; the run is shorter


def recipe():
    table = {name: jnp.asarray(x) for name, x in TABLE.items()}
    program = toys.program(
        toys.distill, toys.adam(), schedules={"weight": lambda step, steps: step / steps}
    )
    validation = Validation(
        toys.accuracy("student"),
        Split(table, 32),
        10,
        after=lambda memory, means: {"heard": memory["heard"] + means["accuracy"]},
    )
    nothing = {"heard": jnp.float32(0)}

    def shift(rng):
        strike("shift", 0)
        return {"shift": rng.normal(size=3)}

    found = yield Compute("shift", shift)
    variables = {"student": toys.init(0), "teacher": toys.init(1)}
    bias = variables["teacher"]["params"]["head"]["bias"] + jnp.asarray(found["shift"], jnp.float32)
    variables["teacher"]["params"]["head"]["bias"] = bias
    stream = Stream(table, 16)
    first = yield Stage(
        "first", program, variables, {"train": stream}, 20, nothing, validation=validation
    )
    variables = {**variables, "student": first.variables["student"]}
    if WALK.value:
        stream = Walk(table, 16)
    outcome = yield Stage(
        "last", program, variables, {"train": stream}, 40, nothing, validation=validation
    )
    return outcome.load()


def main(argv):
    workdir = pathlib.Path(WORKDIR.value)
    layout = Layout(make_mesh(), {"teacher": [("body/kernel", P(None, "data"))]})
    settings = Settings(checkpoint_every=10, log_every=5, layout=layout, on_step=strike)
    state = run(recipe(), seed=1, workdir=workdir, settings=settings, display=Display())
    student = state.variables["student"]
    save_variables(workdir / "weights", student)
    like = jax.eval_shape(lambda: toys.init(0))
    again, student = gather(load_variables(workdir / "weights", like)), gather(student)
    jax.tree.map(np.testing.assert_array_equal, student, again)
    score = float(gather(state.selected["score"]))
    heard = float(gather(state.memory["heard"]))
    if jax.process_index() == 0:
        leaves = jax.tree_util.tree_leaves_with_path(student)
        flat = {jax.tree_util.keystr(path): x for path, x in leaves}
        np.savez(workdir / "result.npz", score=score, heard=heard, **flat)


if __name__ == "__main__":
    faulthandler.dump_traceback_later(240, exit=True)  # where it hangs, if it does
    launch(main, several=True)
