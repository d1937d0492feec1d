"""Several seeds run together compute what each would alone, and are saved and resumed as one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import training_toys as toys

from kdjax.training import Compute, Context, Evaluation, Settings, Stage, mean, run, together

TABLE = {name: jnp.asarray(x) for name, x in toys.problem().items()}
SEEDS = (3, 4, 5)


def objective(variables, batch, context: Context):
    """Noise from the stage's key, a shift that a computation drew, and a memory."""
    batch = batch["train"]
    noise = 0.1 * jax.random.normal(context.rng, batch["x"].shape)
    logits = toys.logits(variables["student"], batch["x"] + noise) + context.memory["shift"]
    seen = {**context.memory, "seen": context.memory["seen"] + logits.mean()}
    return Evaluation({"ce": mean(toys.cross_entropy(logits, batch["y"]))}, memory=seen)


PROGRAM = toys.program(objective, toys.adam())


def recipe(seed):
    shift = yield Compute("shift", lambda rng: {"shift": rng.normal(size=3).astype(np.float32)})
    stream = toys.TableStream(TABLE, 16, seed)
    memory = {"shift": jnp.asarray(shift["shift"]), "seen": jnp.float32(0)}
    variables = {"student": toys.init(seed)}
    outcome = yield Stage("train", PROGRAM, variables, {"train": stream}, 30, memory)
    more = yield Stage("more", PROGRAM, variables, {"train": stream}, 20, memory, continues=outcome)
    return more.load()


def group(**options):
    return together([recipe(seed) for seed in SEEDS], SEEDS, **options)


@pytest.fixture(scope="module")
def alone():
    return [run(recipe(seed), seed=seed) for seed in SEEDS]


@pytest.mark.parametrize("apart", [(), ("train",), ("train", "more")])
def test_members_compute_what_they_would_alone(alone, apart):
    for member, solo in zip(run(group(apart=apart)), alone):
        assert toys.difference(member.variables, solo.variables) < 2e-6
        assert toys.difference(member.memory, solo.memory) < 1e-4


def test_members_differ_from_one_another(alone):
    assert toys.difference(alone[0].variables, alone[1].variables) > 1e-2


def test_a_population_that_is_stopped_goes_on_to_the_same_bits(tmp_path):
    class Stop(Exception):
        pass

    def stop(stage, step):
        if (stage, step) == ("more", 13):
            raise Stop

    whole = run(group())
    settings = Settings(checkpoint_every=5)
    with pytest.raises(Stop):
        run(group(), workdir=tmp_path, settings=Settings(checkpoint_every=5, on_step=stop))
    resumed = run(group(), workdir=tmp_path, settings=settings)
    for a, b in zip(resumed, whole):
        assert toys.bits(a.variables) == toys.bits(b.variables)
        assert toys.bits(a.memory) == toys.bits(b.memory)


def test_what_cannot_run_together_is_refused():
    def other(steps=30, program=PROGRAM, names=("train",), batch=16):
        data = {name: toys.TableStream(TABLE, batch) for name in names}
        yield Stage("train", program, {"student": toys.init(0)}, data, steps)

    def pair(**changes):
        return together([other(), other(**changes)], (0, 1))

    for changes, message in (
        ({"steps": 31}, "their steps differ"),
        ({"program": toys.program()}, "each built a program of its own"),
        ({"names": ("train", "more")}, "their streams differ"),
        ({"batch": 8}, "different batch sizes"),
    ):
        with pytest.raises(ValueError, match=message):
            run(pair(**changes))
    with pytest.raises(ValueError, match="2 recipes for 1 seeds"):
        run(together([other(), other()], (0,)))
