"""Members that differ in values share one compiled step and one forward of the teacher."""

import dataclasses

import jax
import jax.numpy as jnp
import optax
import pytest
import training_toys as toys

from kdjax.training import (
    Evaluation,
    Layout,
    Program,
    Settings,
    Stage,
    Update,
    Validation,
    mean,
    prefixed,
    run,
    together,
)
from kdjax.training.loop import start
from kdjax.training.step import compiled_step, frozen_of

TABLE = {name: jnp.asarray(x) for name, x in toys.problem().items()}
SPLIT = toys.Split(TABLE, 32)
HIDDEN = 13  # of the teacher alone: tells its products from all others
SEEDS = (3, 4)
VALUES = {
    "cold": {"temperature": 1.0, "rate": 0.02},
    "hot": {"temperature": 4.0, "rate": 0.02},
    "fast": {"temperature": 4.0, "rate": 0.05},
}


def teach(variables, batch, context):
    taught = toys.logits(variables["teacher"], batch["train"]["x"])
    return {"train": {**batch["train"], "taught": taught}}, context.memory


def objective(variables, batch, context):
    batch, temperature = batch["train"], context.values["temperature"]
    noise = 0.1 * jax.random.normal(context.rng, batch["x"].shape)
    logits = toys.logits(variables["student"], batch["x"] + noise)
    target = jax.nn.softmax(batch["taught"] / temperature)
    loss = -jnp.sum(target * jax.nn.log_softmax(logits / temperature), -1) * temperature**2
    return Evaluation({"kd": mean(loss)}, memory=context.memory + temperature)


PROGRAM = Program(
    (Update(objective, ("student",), lambda values: optax.adam(values["rate"]), microbatches=2),),
    prepare=teach,
    schedules={"rate": lambda step, steps: 1 - step / steps},
    values=("temperature", "rate"),
)
ACCURACY = toys.accuracy("student")


def remember(memory, means):
    return memory + 1000 * means["accuracy"]


def recipe(seed, stream, teacher, values, start=0):
    first = yield Stage(
        "first",
        PROGRAM,
        {"student": toys.init(seed + start), "teacher": teacher},
        {"train": stream},
        20,
        jnp.float32(0),
        validation=Validation(ACCURACY, SPLIT, 10, after=remember),
        values=values,
    )
    more = yield Stage(
        "more",
        PROGRAM,
        {"student": toys.init(0), "teacher": teacher},
        {"train": stream},
        15,
        jnp.float32(0),
        validation=Validation(ACCURACY, SPLIT, 10),
        continues=first,
        values=values,
    )
    return more.load()


def parts(seed):
    return toys.TableStream(TABLE, 16, seed), toys.init(seed, hidden=HIDDEN)


def members(seed):
    """The members of a seed, with one stream and one teacher, which are the seed's."""
    stream, teacher = parts(seed)
    recipes = [recipe(seed, stream, teacher, values) for values in VALUES.values()]
    return together(recipes, (seed,) * len(VALUES), names=tuple(VALUES))


def everything():
    return together([members(seed) for seed in SEEDS], SEEDS)


@pytest.fixture(scope="module")
def alone():
    return [
        [
            run(prefixed(recipe(seed, *parts(seed), v), name), seed=seed)
            for name, v in VALUES.items()
        ]
        for seed in SEEDS
    ]


def close(found, expected):
    for name in ("variables", "optimizers", "selected", "memory"):
        assert toys.difference(getattr(found, name), getattr(expected, name)) < 5e-6, name


def test_members_compute_what_they_would_alone_and_differ(alone):
    found = run(everything())
    for seed, alone_of_seed in zip(found, alone, strict=True):
        for member, solo in zip(seed, alone_of_seed, strict=True):
            close(member, solo)
    for other in (alone[0][1], alone[0][2], alone[1][0]):
        assert toys.difference(alone[0][0].variables, other.variables) > 1e-2
    assert toys.difference(alone[0][1].variables, alone[0][2].variables) > 1e-2


def test_a_sweep_that_is_stopped_goes_on_to_the_same_bits(tmp_path):
    class Stop(Exception):
        pass

    def stop(stage, step):
        if (stage, step) == ("more", 8):
            raise Stop

    whole = run(everything())
    settings = Settings(checkpoint_every=5)
    with pytest.raises(Stop):
        run(everything(), workdir=tmp_path, settings=dataclasses.replace(settings, on_step=stop))
    resumed = run(everything(), workdir=tmp_path, settings=settings)
    assert toys.bits(resumed) == toys.bits(whole)


def arguments(stage):
    """A stage's compiled step and arguments of it."""
    layout = Layout()
    state = start(stage, layout)
    compiled = compiled_step(stage, jax.tree.map(lambda x: x.sharding, state))
    items = {name: next(stream.items()) for name, stream in stage.data.items()}
    tables = {name: stream.table for name, stream in stage.data.items()}
    keys = jax.random.split(jax.random.key(0), len(stage.seeds)) if stage.seeds else None
    values = {name: jnp.asarray(x, jnp.float32) for name, x in stage.values.items()}
    frozen, steps = layout.frozen(stage, frozen_of(stage)), jnp.int32(stage.steps)
    return compiled.function, (state, frozen, tables, items, values, steps, keys)


def products(stage):
    """The shapes of all matrix products of a step that have the teacher's width."""
    function, given = arguments(stage)
    found = []

    def visit(jaxpr):
        for eqn in jaxpr.eqns:
            if eqn.primitive.name == "dot_general":
                shapes = [v.aval.shape for v in (*eqn.invars, *eqn.outvars)]
                if any(HIDDEN in shape for shape in shapes):
                    found.append(shapes[-1])
            for inner in jax.tree.leaves(
                list(eqn.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
            ):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    visit(inner)

    visit(function.trace(*given).jaxpr.jaxpr)
    return found


def test_the_teacher_goes_forward_once_a_step_for_all_members_of_a_seed():
    assert products(members(3).send(None)) == [(16, HIDDEN), (16, 3)]
    both = products(everything().send(None))
    assert [sorted(shape) for shape in both] == [[2, HIDDEN, 16], [2, 3, 16]]


def test_other_values_do_not_compile_again():
    stream, teacher = parts(3)
    for values in VALUES.values():
        run(recipe(3, stream, teacher, values))
    stage = recipe(3, stream, teacher, VALUES["hot"]).send(None)
    function, _ = arguments(stage)
    assert function._cache_size() == 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": 1.0}, "stage 'first' lacks the value 'rate'"),
        ({**VALUES["hot"], "gamma": 1.0}, "brings, unread, the value 'gamma'"),
    ],
)
def test_values_that_the_program_does_not_name_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        run(recipe(0, *parts(0), values))


def test_what_cannot_be_told_apart_or_nested_is_refused():
    stream, teacher = parts(0)

    def one():
        return recipe(0, stream, teacher, VALUES["hot"])

    with pytest.raises(ValueError, match="members must have different names, or seeds"):
        run(together([one(), one()], (0, 0)))
    with pytest.raises(ValueError, match="2 recipes for 1 names"):
        run(together([one(), one()], (0, 0), names=("a",)))
    with pytest.raises(ValueError, match="groups of groups"):
        run(together([everything(), everything()], (0, 1)))
    with pytest.raises(ValueError, match="their numbers of members differ"):
        run(together([members(0), together([one()], (1,))], (0, 1)))


def test_a_loss_that_is_not_finite_names_its_member():
    stream, teacher = parts(0)
    pair = {"good": VALUES["hot"], "bad": {"temperature": float("nan"), "rate": 0.1}}
    recipes = [recipe(0, stream, teacher, values) for values in pair.values()]
    with pytest.raises(RuntimeError, match="of 'bad/first', seed 0"):
        run(together(recipes, (0, 0), names=tuple(pair)))
