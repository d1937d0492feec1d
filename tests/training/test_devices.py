"""Eight simulated devices compute what one does; what does not fit a mesh is refused."""

import json
import os
import pathlib
import subprocess
import sys

import pytest
import training_toys as toys

SCRIPT = """
import json, sys
sys.path.insert(0, {here!r})
import dataclasses, jax, jax.numpy as jnp, numpy as np, optax
from jax.sharding import PartitionSpec as P
import training_toys as toys
from kdjax.training import Layout, Settings, Stage, Validation, make_mesh, run, together
from kdjax.training.loop import abstract_state

table = {{name: jnp.asarray(x) for name, x in toys.problem().items()}}
schedules = {{"weight": lambda step, steps: step / steps}}
programs = {{n: toys.program(toys.distill, schedules=schedules, microbatches=n) for n in (1, 2)}}
padded = toys.program(toys.supervised("student", where=True))

def one(program, layout, stream, batch=16):
    variables = {{"student": toys.init(0), "teacher": toys.init(1)}}
    def recipe():
        return (yield Stage("s", program, variables, {{"train": stream(table, batch)}}, 30))
    return run(recipe(), settings=Settings(layout=layout)).variables["student"]

single = Layout(make_mesh(devices=jax.devices()[:1]))
eight, square = Layout(make_mesh()), make_mesh(data=4, model=2)
rules = {{"teacher": [("body/kernel", P(None, "model")), ("head/kernel", P("model", None))]}}
out = {{"devices": len(jax.devices())}}
for n, program in programs.items():
    reference = one(program, single, toys.TableStream)
    out[f"data-{{n}}"] = toys.difference(one(program, eight, toys.TableStream), reference)
    sharded = one(program, Layout(square, rules), toys.TableStream)
    out[f"model-{{n}}"] = toys.difference(sharded, reference)
reference = one(padded, single, toys.PaddedStream)
out["padded"] = toys.difference(one(padded, eight, toys.PaddedStream), reference)

def refusal(function):
    try:
        function()
    except ValueError as error:
        return str(error)

bad = lambda regex, spec: Layout(square, {{"teacher": [(regex, spec)]}})
program = programs[1]
out["batch"] = refusal(lambda: one(program, eight, toys.TableStream, 12))
out["nothing"] = refusal(lambda: one(program, bad("nope", P("model")), toys.TableStream))
out["uneven"] = refusal(
    lambda: one(program, bad("head/kernel", P(None, "model")), toys.TableStream)
)
out["mesh"] = refusal(lambda: make_mesh(data=3))

shared = toys.TableStream(table, 12), toys.init(1)  # 12: a batch that eight devices cannot cut
decayed = toys.program(
    toys.distill, lambda values: optax.adam(values["rate"]), schedules=schedules, values=("rate",)
)

def member(k):
    variables, data = {{"student": toys.init(k), "teacher": shared[1]}}, {{"train": shared[0]}}
    values = {{"rate": 0.01 * (k + 1)}}
    stage = Stage("s", decayed, variables, data, 30, values=values)
    return (yield dataclasses.replace(stage, validation=validation)).load()

validation = Validation(toys.accuracy("student"), toys.Split(table, 12), 10)

def population(layout, count=8):
    recipes = [member(k) for k in range(count)]
    return run(together(recipes, range(count)), settings=Settings(layout=layout))

over = Layout(make_mesh(), members_over_data=True)
pairs = list(zip(population(over), population(single)))
out["members"] = max(toys.difference(a.variables, b.variables) for a, b in pairs)
out["selected"] = max(toys.difference(a.selected, b.selected) for a, b in pairs)
stage = together([member(k) for k in range(8)], range(8)).send(None)
placed = over.state(stage, abstract_state(stage, over))
out["specs"] = sorted({{tuple(x.spec) for x in jax.tree.leaves(placed.optimizers)}})
out["remainder"] = refusal(lambda: population(over, 6))
print(json.dumps(out))
"""


@pytest.fixture(scope="module")
def found():
    here = str(pathlib.Path(__file__).parent)
    flags = "--xla_force_host_platform_device_count=8"
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(here=here)],
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", **toys.ONE_AT_A_TIME},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    "case", ["data-1", "data-2", "model-1", "model-2", "padded", "members", "selected"]
)
def test_eight_devices_equal_one(found, case):
    assert found["devices"] == 8
    assert found[case] < 1e-5


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("batch", "batch_size=12 of stream 'train' is not a multiple of the 8 devices"),
        ("nothing", "the rule 'nope' matches no variable of 'teacher'"),
        ("uneven", "teacher/params/head/kernel of shape (8, 3) cannot be cut"),
        ("remainder", "its 6 members are not a multiple of the 8 devices along 'data'"),
        ("mesh", "data=3 x model=1 is not the number of devices, 8"),
    ],
)
def test_what_does_not_fit_the_mesh_is_refused(found, case, message):
    assert message in found[case]


def test_members_laid_over_the_devices_are_cut_with_their_optimizers(found):
    assert found["specs"] == [["data"]]
