"""Runs on simulated devices: `python sharded.py CASE[:ARGUMENT...] ...` prints findings as JSON.

`XLA_FLAGS=--xla_force_host_platform_device_count=8` gives the devices.
"""

import functools
import json
import os
import pathlib
import re
import signal
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).parent))

import jax
import jax.numpy as jnp
import numpy as np
import optax
import training_toys as toys

from kdjax.networks import build
from kdjax.training import (
    Deferred,
    Evaluation,
    Layout,
    Settings,
    Stage,
    Validation,
    load_variables,
    make_mesh,
    mean,
    run,
    save_variables,
)
from kdjax.training import step as engine
from kdjax.training.loop import abstract_state, stage_keys, start
from kdjax.training.partition_rules import fsdp, fsdp_and_tensor_parallel
from kdjax.training.sharding import place
from kdjax.training.state import flatten

TABLE = {name: jnp.asarray(x) for name, x in toys.problem().items()}
STREAM, VALIDATION = toys.TableStream(TABLE, 16), toys.Split(TABLE, 32)
SMALL = functools.partial(fsdp, smallest=16)  # the toys are smaller than what `fsdp` cuts
WIDE = 64
SCHEDULES = {"weight": lambda step, steps: step / steps}


def layout(devices, rules=None, model=1):
    return Layout(make_mesh(model=model, devices=jax.devices()[:devices]), rules or {})


def init(key, width):
    """Variables of a toy, traced only: an array made here would be whole on one device."""
    assert isinstance(key, jax.core.Tracer)
    body, head = jax.random.split(key)
    return {
        "params": {
            "body": {
                "kernel": jax.random.normal(body, (4, width.shape[0])),
                "bias": jnp.zeros(width.shape[0]),
            },
            "head": {
                "kernel": jax.random.normal(head, (width.shape[0], 3)) / 8,
                "bias": jnp.zeros(3),
            },
        }
    }


def fresh(seed, width=WIDE):
    return Deferred(init, (jax.random.key(seed), np.zeros(width, np.int8)))


def parts(tree):
    """The largest share of its array that a device holds, of all arrays that are large."""
    leaves = [x for x in jax.tree.leaves(tree) if x.size >= WIDE]
    return max(x.addressable_shards[0].data.size / x.size for x in leaves)


def chain():
    """A teacher made, trained, kept, handed on, saved and read again, never whole anywhere."""
    rules = {"teacher": SMALL}
    teach = toys.program(toys.supervised("teacher"), toys.adam(), ("teacher",))
    distill = toys.program(toys.distill, toys.adam(), schedules=SCHEDULES)
    score = Validation(toys.accuracy("teacher"), VALIDATION, 6)
    biggest, made, make = [], [], Deferred.make

    def making(deferred, shardings=None):
        variables = make(deferred, shardings)
        if not any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(variables)):
            made.append(shardings is not None)  # else only its shapes are asked for
        return variables

    def watch(stage, step):
        # Of what is alive on the devices: only the teacher and its slots are WIDE.
        live = [x for x in jax.live_arrays() if WIDE in x.shape]
        biggest.append(parts(live))

    def recipe(taught=None):
        if taught is None:
            stage = Stage("teacher", teach, {"teacher": fresh(0)}, {"train": STREAM}, 12)
            outcome = yield Stage(**{**vars(stage), "validation": score})
            taught = outcome.selected["teacher"]
        roles = {"student": fresh(1, 8), "teacher": taught}
        outcome = yield Stage("distill", distill, roles, {"train": STREAM}, 12)
        return taught, outcome.variables["student"]

    def go(layout, workdir=None, taught=None, on_step=None):
        settings = Settings(checkpoint_every=5, layout=layout, on_step=on_step)
        return run(recipe(taught), workdir=workdir, settings=settings)

    out, cut = {"made": made}, layout(8, rules)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        Deferred.make = making
        teacher, student = go(cut, folder / "run", on_step=watch)
        Deferred.make = make
        kept = toys.bits(teacher)
        again, same = go(cut, folder / "run")  # from the journal
        out["journal"] = toys.bits((again, same)) == toys.bits((teacher, student))
        save_variables(folder / "teacher", teacher)
        shapes = jax.eval_shape(init, *fresh(0).arguments)
        restored = load_variables(folder / "teacher", shapes, cut.role("teacher", shapes))
        out["shares"] = [max(biggest), parts(teacher), parts(again), parts(restored)]
        other = go(cut, None, restored)[1]
        out["given"] = toys.bits(other) == toys.bits(student)
        out["frozen"] = toys.bits(restored) == kept == toys.bits(teacher)
    whole = go(layout(1))
    out["apart"] = toys.difference(whole, (teacher, student))
    out["start"] = toys.bits(fresh(0).make()) == toys.bits(cut.make("teacher", fresh(0)))
    out["compilations"] = [
        compiled.function._cache_size()
        for program in (teach, distill)
        for compiled in engine._compiled[program].values()
    ]
    return out


RELAY = toys.program(toys.distill, toys.adam(), schedules=SCHEDULES)
ACCURACY = toys.accuracy("student")


def relay(workdir, devices, stop, number=0):
    """Goes on in `workdir` on so many devices until the step `stop`, where a signal may end it."""

    class Stopped(Exception):
        pass

    def on_step(stage, step):
        if step == stop:
            if number:
                os.kill(os.getpid(), number)
            raise Stopped

    roles = {"student": fresh(1), "teacher": fresh(0)}
    score = Validation(ACCURACY, VALIDATION, 6)

    def recipe():
        stage = Stage("s", RELAY, roles, {"train": STREAM}, 24, validation=score)
        return (yield stage).load()

    where = layout(devices, {"student": SMALL, "teacher": SMALL})
    settings = Settings(checkpoint_every=4, layout=where, on_step=on_step)
    try:
        state = run(recipe(), workdir=workdir, settings=settings)
    except Stopped:
        return None
    assert len(state.variables["student"]["params"]["body"]["kernel"].devices()) == devices
    return state.variables, state.optimizers, state.selected


def relaid():
    """A run on eight devices goes on on two, then on four; beside one that was never stopped."""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        for devices, stop in ((8, 10), (2, 18), (4, 0)):
            state = relay(folder / "relaid", devices, stop)
        return {"apart": toys.difference(relay(folder / "whole", 4, 0), state)}


OPTIMIZERS = {
    "adamw": lambda values: optax.adamw(0.02),
    "sgd": lambda values: optax.sgd(0.1, momentum=0.9),
    "adafactor": lambda values: optax.adafactor(0.02, min_dim_size_to_factor=3),
}


def slots(*trained):
    """Slots lie as their parameters do, factored ones are whole; the step is that of one device."""
    out = {}
    for name, optimizer in OPTIMIZERS.items():
        program = toys.program(optimizer=optimizer)
        stage = Stage("s", program, {"student": fresh(0)}, {"train": STREAM}, 6)
        cut = layout(8, {"student": SMALL})
        state = abstract_state(stage, cut)
        params = flatten(state.variables["student"]["params"])
        found = jax.tree_util.tree_leaves_with_path(state.optimizers)
        leaves = [(params[path[-1].key], x) for path, x in found if x.ndim]
        follow = [x.sharding == p.sharding for p, x in leaves if x.shape == p.shape]
        others = [x.sharding.is_fully_replicated for p, x in leaves if x.shape != p.shape]
        out[name] = {
            "follow": [sum(follow), len(follow)],
            "others": [sum(others), len(others)],
        }
        if name in trained:
            (step, arguments), (one, its) = (compiled(stage, x) for x in (cut, layout(1)))
            out[name]["apart"] = toys.difference(step(*arguments)[0][:3], one(*its)[0][:3])
    return out


def compiled(stage, where):
    """The compiled step of a stage, and the arguments of its first step."""
    state = start(stage, where)
    step = engine.compiled_step(stage, jax.tree.map(lambda x: x.sharding, state))
    frozen = where.frozen(stage, engine.frozen_of(stage))
    (stream,) = stage.data.values()
    item = jax.tree.map(jnp.asarray, where.item(stage, "train", next(stream.items())))
    constants = (stream.table, jnp.int32(stage.steps), stage_keys(stage, jax.random.key(0)))
    table, steps, keys = place(constants, where.replicated)
    arguments = (state, frozen, {"train": table}, {"train": item}, {}, steps, keys)
    return step.function.lower(*arguments).compile(), arguments


def donated():
    """What the step writes over: all of the state, and nothing else."""
    program = toys.program(toys.distill, toys.adam(), schedules=SCHEDULES)
    roles = {"student": fresh(1), "teacher": fresh(0, 2 * WIDE)}
    stage = Stage("s", program, roles, {"train": STREAM}, 5)
    step, (state, frozen, *_) = compiled(stage, layout(8, {"student": SMALL, "teacher": SMALL}))
    header = step.as_text().splitlines()[0]
    pairs = re.findall(r"\{(\d*)\}: \((\d+),", header)
    parts = filter(None, map(jax.tree.leaves, step.args_info[0]))  # it brings no values
    given = [[x.donated for x in part] for part in parts]
    held = [x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(state)]
    return {
        "parameters": sorted(int(parameter) for _, parameter in pairs),
        "state": len(held),
        "donated": [[all(flags), any(flags)] for flags in given],
        "frozen": len(jax.tree.leaves(frozen)),
        "bytes": [step.memory_analysis().alias_size_in_bytes, sum(held)],
    }


def gathers(text):
    """The number of elements of every array that an all-gather of a compiled step makes."""
    found = []
    for kind in re.findall(r"= (.*?) all-gather(?:-start)?\(", text):
        shapes = re.findall(r"\w+\[([\d,]*)\]", kind)
        found += [int(np.prod([int(n) for n in s.split(",") if n])) for s in shapes]
    return found


IMAGES = {
    "x": np.random.default_rng(0).normal(size=(32, 8, 8, 3)).astype(np.float32),
    "y": np.zeros(32, np.int32),
}
TOKENS = {
    "x": np.random.default_rng(0).integers(0, 96, (32, 10)).astype(np.int32),
    "y": np.zeros(32, np.int32),
}
# A table, the teacher's options and the student's, whose arrays are of other sizes.
NETWORKS = {
    "decoder": (
        TOKENS,
        dict(width=32, num_layers=1, num_heads=4, hidden=128),
        dict(width=12, num_layers=1, num_heads=2, hidden=20),
    ),
    "vit": (IMAGES, dict(width=32, depth=1, heads=4), dict(width=12, depth=1, heads=2)),
    "resnet8": (IMAGES, dict(), dict(widths=(6, 6, 6, 12))),
    "wrn_10_1": (IMAGES, dict(), dict(dropout=0.0)),
    "mlp": (IMAGES, dict(widths=(128, 128)), dict(widths=(20,))),
}
RULES = {
    "fsdp": (functools.partial(fsdp, smallest=256), 1),
    "tensor_parallel": ("tensor_parallel", 2),
    "fsdp+tensor_parallel": (functools.partial(fsdp_and_tensor_parallel, smallest=256), 2),
}


def network(name, *kinds):
    """A replicated student beside a teacher that is cut: its step, and what the step gathers."""
    table, options, smaller = NETWORKS[name]
    student = build(name, num_classes=96, **smaller)
    teacher = build(name, num_classes=96, **options)
    stream, example, out = toys.TableStream(table, 16), table["x"][:1], {}

    def teach(variables, batch, context):
        logits = teacher.apply(variables["teacher"], batch["train"]["x"]).output["logits"]
        return {"train": {**batch["train"], "taught": logits}}, context.memory

    def objective(variables, batch, context):
        batch = batch["train"]
        logits = student.apply(variables["student"], batch["x"]).output["logits"]
        taught = jax.nn.softmax(batch["taught"] * 4)
        return Evaluation({"kd": mean(-jnp.sum(taught * jax.nn.log_softmax(logits), -1))})

    program = toys.program(objective, toys.sgd(), prepare=teach)
    roles = {
        role: Deferred(made.init, (jax.random.key(seed), example))
        for role, made, seed in (("student", student, 1), ("teacher", teacher, 0))
    }
    stage = Stage("s", program, roles, {"train": stream}, 3)
    step, arguments = compiled(stage, layout(1))
    reference = step(*arguments)[0].variables
    for kind in kinds:
        rules, model = RULES[kind]
        step, arguments = compiled(stage, layout(8, {"teacher": rules}, model))
        frozen = jax.tree.leaves(arguments[1])
        sizes = sorted({x.size for x in frozen if not x.is_fully_replicated})
        before, new = toys.bits(arguments[1]), step(*arguments)[0].variables
        out[kind] = {
            "share": sum(x.addressable_shards[0].data.size for x in frozen)
            / sum(x.size for x in frozen),
            "sizes": sizes,
            "gathers": sorted(gathers(step.as_text())),
            "moved": toys.difference(reference["student"], roles["student"].make()),
            "apart": toys.difference(new, reference),
            "frozen": toys.bits(arguments[1]) == before,
        }
    return out


def main():
    if sys.argv[1] == "relay":
        workdir, devices, stop = pathlib.Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
        state = relay(workdir, devices, stop, signal.SIGKILL)
        leaves = jax.tree_util.tree_leaves_with_path(state)
        np.savez(workdir / "result.npz", **{jax.tree_util.keystr(k): x for k, x in leaves})
        return
    cases = {"chain": chain, "relaid": relaid, "slots": slots, "donated": donated}
    out = {}
    for argument in sys.argv[1:]:
        name, *arguments = argument.split(":")
        case = cases[name] if name in cases else functools.partial(network, name)
        out[name] = case(*arguments)
    print(json.dumps(out))


if __name__ == "__main__":
    main()
