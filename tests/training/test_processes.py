"""Two processes compute what one does, save together and go on together."""

import pathlib
import socket
import subprocess
import sys

import numpy as np

SCRIPT = """
import faulthandler, pathlib, sys
faulthandler.dump_traceback_later(240, exit=True)  # where it hangs, if it does
sys.path.insert(0, {here!r})
import jax
port, process, workdir = sys.argv[1], int(sys.argv[2]), pathlib.Path(sys.argv[3])
if port != "alone":
    jax.distributed.initialize("localhost:" + port, 2, process)
import jax.numpy as jnp
import numpy as np
import training_toys as toys
from jax.sharding import PartitionSpec as P
from kdjax.training import (
    Compute, Layout, Settings, Stage, Validation, gather, load_variables, make_mesh, run,
    save_variables,
)

class Halved(toys.TableStream):
    # Each process brings its part of every batch.
    def items(self, start=0, state=None):
        for item in super().items(start, state):
            part = self.batch_size // jax.process_count()
            first = part * jax.process_index()
            yield {{"row": item["row"][first:first + part]}}

class Split(toys.Split):
    def items(self):
        part = self.batch_size // jax.process_count()
        first = part * jax.process_index()
        for item in super().items():
            yield {{name: x[first:first + part] for name, x in item.items()}}

table = {{name: jnp.asarray(x) for name, x in toys.problem().items()}}
program = toys.program(
    toys.distill, toys.adam(), schedules={{"weight": lambda step, steps: step / steps}}
)
validation = Validation(toys.accuracy("student"), Split(table, 32), 10)

def recipe():
    found = yield Compute("shift", lambda rng: {{"shift": rng.normal(size=3)}})
    variables = {{"student": toys.init(0), "teacher": toys.init(1)}}
    bias = variables["teacher"]["params"]["head"]["bias"] + jnp.asarray(found["shift"], jnp.float32)
    variables["teacher"]["params"]["head"]["bias"] = bias
    stream = Halved(table, 16)
    outcome = yield Stage(
        "s", program, variables, {{"train": stream}}, 40, validation=validation
    )
    return outcome.load()

class Stop(Exception):
    pass

def stop(stage, step):
    if step == 25:
        raise Stop

layout = Layout(make_mesh(), {{"teacher": [("body/kernel", P(None, "data"))]}})
for on_step in (stop, None):
    settings = Settings(checkpoint_every=10, log_every=5, layout=layout, on_step=on_step)
    try:
        state = run(recipe(), seed=1, workdir=workdir, settings=settings)
    except Stop:
        pass
student = state.variables["student"]
save_variables(workdir / "weights", student)
again = gather(load_variables(workdir / "weights", jax.eval_shape(lambda: toys.init(0))))
student = gather(student)
jax.tree.map(np.testing.assert_array_equal, student, again)
score = float(gather(state.selected["score"]))
if jax.process_index() == 0:
    flat = {{jax.tree_util.keystr(k): x for k, x in jax.tree_util.tree_leaves_with_path(student)}}
    np.savez(workdir / "result.npz", score=score, **flat)
"""


def free_port():
    with socket.socket() as sock:
        sock.bind(("localhost", 0))
        return str(sock.getsockname()[1])


def start(folder, output, port, process):
    script = SCRIPT.format(here=str(pathlib.Path(__file__).parent))
    arguments = [sys.executable, "-c", script, port, str(process), str(folder)]
    # To files: a pipe that nobody reads would stop the process.
    with output.open("w") as file:
        return subprocess.Popen(arguments, stdout=file, stderr=subprocess.STDOUT)


def test_two_processes_compute_save_and_resume_like_one(tmp_path):
    port = free_port()
    roles = [("two", port, 0), ("two", port, 1), ("one", "alone", 0)]
    outputs = [tmp_path / f"{name}-{process}.txt" for name, _, process in roles]
    started = [
        start(tmp_path / name, output, port, process)
        for output, (name, port, process) in zip(outputs, roles)
    ]
    for process, output in zip(started, outputs):
        assert process.wait() == 0, output.read_text()[-3000:]
    with (
        np.load(tmp_path / "two" / "result.npz") as two,
        np.load(tmp_path / "one" / "result.npz") as one,
    ):
        assert set(one.files) == set(two.files)
        for name in one.files:
            np.testing.assert_allclose(two[name], one[name], rtol=1e-5, atol=1e-6, err_msg=name)
    lines = (tmp_path / "two" / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 8 + 4  # windows and validations, written by one process only
