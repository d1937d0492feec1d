"""The pmap back-end on eight simulated devices: `python per_device.py`; prints what it found."""

import json
import pathlib
import sys
import tempfile
import warnings

sys.path.insert(0, str(pathlib.Path(__file__).parent))

import jax
import jax.numpy as jnp
import numpy as np
import training_toys as toys
from jax.sharding import PartitionSpec as P

from kdjax.training import (
    Combined,
    Evaluation,
    Layout,
    Program,
    Settings,
    Stage,
    Term,
    Update,
    Validation,
    gathered,
    make_mesh,
    mean,
    run,
    together,
)

TABLE = {name: jnp.asarray(x) for name, x in toys.problem().items()}
VALIDATION = Validation(
    toys.accuracy("student"),
    toys.Split(TABLE, 32),
    10,
    after=lambda memory, means: {**memory, "heard": memory["heard"] + means["accuracy"]},
)


def teach(variables, batch, context):
    taught = toys.logits(variables["teacher"], batch["train"]["x"])
    return {"train": {**batch["train"], "taught": taught}}, context.memory


def objective(variables, batch, context):
    """Terms of two weights, a queue of what all devices saw, a metric."""
    batch = batch["train"]
    logits = toys.logits(variables["student"], batch["x"])
    gap = -jnp.sum(jax.nn.softmax(batch["taught"]) * jax.nn.log_softmax(logits), -1)
    right = (logits.argmax(-1) == batch["y"]).astype(jnp.float32)
    rows = gathered(jnp.where(batch["where"], logits[:, 0], 0.0), context)
    return Evaluation(
        {
            "ce": mean(toys.cross_entropy(logits, batch["y"]), batch["where"]),
            "kd": mean(gap, batch["where"] & (batch["y"] == 1), context.values["weight"]),
        },
        memory={**context.memory, "queue": rows},
        metrics={"accuracy": mean(right, batch["where"])},
    )


def combine(gradients):
    """The part of one term's gradient along the other's: not linear, so it needs whole ones."""
    first, second = gradients["ce"], gradients["kd"]
    size = sum(jnp.sum(x * x) for x in jax.tree.leaves(first)) + 1e-3
    along = sum(jax.tree.leaves(jax.tree.map(lambda a, b: jnp.sum(a * b), first, second))) / size
    gradient = jax.tree.map(lambda a, b: a + 0.5 * b + along * a, first, second)
    return Combined(gradient, {"along": Term(along, jnp.float32(1))})


def average(variables, context, metrics):
    """A moving average, and a controller that reads the metrics."""
    mixed = jax.tree.map(lambda a, b: 0.9 * a + 0.1 * b, variables["average"], variables["student"])
    loss = metrics["loss/ce"].total / metrics["loss/ce"].weight
    return {**variables, "average": mixed}, {**context.memory, "loss": loss}


def rich(microbatches):
    second = Update(
        toys.supervised("student", where=True),
        ("student:^head",),
        toys.sgd(),
        when=lambda context: context.memory["loss"] > 0.9,
        name="head",
    )
    first = Update(
        objective,
        ("student",),
        toys.adam(),
        combine=combine,
        after=average,
        microbatches=microbatches,
    )
    return Program(
        (first, second),
        prepare=teach,
        schedules={"weight": lambda step, steps: step / steps},
        carries=("average",),
    )


RICH = {n: rich(n) for n in (1, 2)}


def stage(n, steps=30):
    start = toys.init(0)
    return Stage(
        "rich",
        RICH[n],
        {"student": start, "average": start, "teacher": toys.init(1)},
        {"train": toys.PaddedStream(TABLE, 16)},
        steps,
        memory={"queue": jnp.zeros(16 // n), "loss": jnp.float32(1), "heard": jnp.float32(0)},
        validation=VALIDATION,
    )


def trained(given, backend="pmap", workdir=None, **settings):
    def recipe():
        return (yield given)

    return run(recipe(), workdir=workdir, settings=Settings(backend=backend, **settings)).load()


def gap(a, b):
    """The largest difference of two states, but for what a micro-batch of another cut queued."""
    assert int(a.step) == int(b.step)
    names = ("variables", "optimizers", "selected")
    return max(
        *(toys.difference(a.memory[name], b.memory[name]) for name in ("loss", "heard")),
        *(toys.difference(getattr(a, name), getattr(b, name)) for name in names),
    )


def noise(variables, batch, context):
    """The noise of each device, queued; statistics of each device's rows, averaged."""
    x = batch["train"]["x"]
    variance = {"variance": 0.5 * variables["student"]["stats"]["variance"] + 0.5 * x.var(0)}
    drawn = gathered(jax.random.normal(context.rng, (1,)), context)
    term = mean(toys.cross_entropy(toys.logits(variables["student"], x), batch["train"]["y"]))
    return Evaluation({"ce": term}, {"student": {"stats": variance}}, memory=drawn)


def apart(variables, batch, context):
    """A queue of this device's rows alone."""
    found = toys.supervised("student")(variables, batch, context)
    return found._replace(memory=batch["train"]["x"][:1])


def plain(program, **changes):
    given = {"variables": {"student": toys.init(0)}, "data": {"train": toys.TableStream(TABLE, 16)}}
    return Stage("plain", program, **{**given, "steps": 3, **changes})


def refusal(function):
    try:
        function()
    except ValueError as error:
        return str(error)


def refusals():
    supervised = toys.program()
    rules = {"student": [("head/kernel", P("data", None))]}
    pair = [iter([plain(supervised)]), iter([plain(supervised)])]

    def of(one):
        yield next(one)

    return {
        "batchwise": refusal(lambda: trained(plain(toys.program(batchwise=True)))),
        "model": refusal(
            lambda: trained(plain(supervised), layout=Layout(make_mesh(data=4, model=2)))
        ),
        "rules": refusal(lambda: trained(plain(supervised), layout=Layout(rules=rules))),
        "members": refusal(
            lambda: run(
                together([of(one) for one in pair], (0, 1)), settings=Settings(backend="pmap")
            )
        ),
        "memory": refusal(lambda: trained(plain(toys.program(apart), memory=jnp.zeros((1, 4))))),
        "backend": refusal(lambda: Settings(backend="xmap")),
    }


def main():
    warnings.simplefilter("error")
    out = {"devices": len(jax.devices())}
    compiled, at = [0], {}

    def count(name, *arguments, **options):
        compiled[0] += name.endswith("backend_compile_duration")

    jax.monitoring.register_event_duration_secs_listener(count)
    for n in RICH:
        jit = trained(stage(n), "jit")
        pmap = trained(stage(n), on_step=lambda name, step: at.update({step: compiled[0]}))
        out[f"rich-{n}"] = gap(jit, pmap)
        if n == 1:
            out["queue"] = toys.difference(jit.memory["queue"], pmap.memory["queue"])
            # Between validations, which compile at the first of them.
            out["compiled"] = at[29] - at[10]
            out["after the first step"] = at[9] - at[1]
            whole = jit
    with tempfile.TemporaryDirectory() as folder:
        for first, then in (("jit", "pmap"), ("pmap", "jit")):
            workdir = pathlib.Path(folder) / first

            class Stop(Exception):
                pass

            def stop(name, step):
                if step == 17:
                    raise Stop

            try:
                trained(stage(1), first, workdir, checkpoint_every=5, on_step=stop)
            except Stop:
                resumed = trained(stage(1), then, workdir, checkpoint_every=5)
            out[f"{first} to {then}"] = gap(whole, resumed)
    start = toys.init(0)
    start = {**start, "stats": {"variance": jnp.zeros(4)}}
    given = plain(toys.program(noise), variables={"student": start}, memory=jnp.zeros(8), steps=1)
    state = trained(given)
    out["noise"] = len(np.unique(np.asarray(state.memory)))
    rows = next(given.data["train"].items())["row"]
    parts = np.asarray(TABLE["x"])[rows].reshape(8, 2, 4)
    expected = 0.5 * parts.var(1).mean(0)
    out["statistics"] = toys.difference(state.variables["student"]["stats"]["variance"], expected)
    print(json.dumps({**out, **refusals()}))


if __name__ == "__main__":
    main()
