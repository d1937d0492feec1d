"""Dynamic loss scaling: exact where nothing overflows, no update where something does."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from training_toys import (
    TableStream,
    adam,
    bits,
    cross_entropy,
    difference,
    features,
    init,
    logits,
    problem,
    program,
    supervised,
    train,
)

from kdjax.training import (
    Combined,
    Evaluation,
    LossScale,
    NonFiniteLoss,
    Outcome,
    Settings,
    Stage,
    Update,
    mean,
    read_metrics,
    run,
    together,
)
from kdjax.training.journal import Interrupted
from kdjax.training.optimizers import Training

SCALE = LossScale(2.0**10, growth_interval=4)


def state(outcome):
    return outcome.load()


def scale_of(outcome):
    return np.asarray(state(outcome).optimizers[0].scale)


@jax.custom_vjp
def overflowing(x, at):
    """`x`, whose cotangent overflows as float16 would: above 65504 / `at` it is infinite."""
    return x


overflowing.defvjp(
    lambda x, at: (x, at),
    lambda at, g: (jnp.where(jnp.abs(g * at).max() > 65504, jnp.inf, 1.0) * g, None),
)


def brittle(variables, batch, context):
    """A cross-entropy whose gradient overflows at scales of some thousands."""
    batch = batch["train"]
    found = overflowing(logits(variables["student"], batch["x"]), jnp.float32(500.0))
    return Evaluation(
        {"ce": mean(cross_entropy(found, batch["y"]))}, memory={"seen": context.memory["seen"] + 1}
    )


def by_term(variables, batch, context):
    batch = batch["train"]
    found = logits(variables["student"], batch["x"])
    return Evaluation(
        {"ce": mean(cross_entropy(found, batch["y"])), "norm": mean((found**2).sum(-1), None, 0.1)}
    )


def summed(grads):
    return Combined(jax.tree.map(lambda *g: sum(g), *grads.values()))


def embed(variables, batch, context):
    return features(variables["student"], batch["train"]["x"]), {}


def contrast(variables, batch, context):
    e = batch["embeddings"]
    kernel = variables["student"]["params"]["head"]["kernel"]
    return Evaluation({"relation": mean((e @ e.T - 1) ** 2), "head": mean((e @ kernel) ** 2)})


CASES = {
    "one batch": {},
    "micro-batches": dict(microbatches=3),
    "combine": dict(objective=by_term, combine=summed, microbatches=2),
    "gradient caching": dict(objective=contrast, embed=embed, batchwise=True, microbatches=2),
    "caching and combine": dict(
        objective=contrast, embed=embed, batchwise=True, microbatches=2, combine=summed
    ),
}


@pytest.mark.parametrize(
    "case",
    [
        "micro-batches",
        "caching and combine",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("one batch", "combine", "gradient caching")
        ),
    ],
)
def test_a_scale_that_is_a_power_of_two_changes_no_bit_of_the_parameters(case):
    plain = train(program(**CASES[case]), {"student": init(1)}, steps=6)
    scaled = train(program(**CASES[case], loss_scale=SCALE), {"student": init(1)}, steps=6)
    assert difference(plain.variables, scaled.variables) == 0
    assert scale_of(scaled) == 2.0**11  # grew once in six steps


@functools.cache
def overflown(**options):
    built = program(brittle, adam(), loss_scale=LossScale(2.0**16, **options))
    return built


def test_an_overflow_skips_everything_of_the_update_and_halves_the_scale(tmp_path):
    built, start = overflown(growth_interval=3), {"student": init(1)}
    first = train(built, start, steps=1, memory={"seen": jnp.int32(0)})
    assert difference(first.variables, start) == 0
    assert int(first.memory["seen"]) == 0
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(state(first).optimizers[0].slots))
    assert scale_of(first) == 2.0**15

    def recipe():
        data = {"train": TableStream(problem(), 24)}
        memory = {"seen": jnp.int32(0)}
        return (yield Stage("toy", built, start, data, 30, memory=memory))

    last = run(recipe(), workdir=tmp_path, settings=Settings(log_every=1))
    rows = [row for row in read_metrics(tmp_path) if row["kind"] == "train"]
    skipped = np.array([row["overflow"] for row in rows])
    scales = np.array([row["loss_scale"] for row in rows])
    assert 1 < skipped.sum() < 15
    assert skipped[0] == 1
    assert int(last.memory["seen"]) == 30 - skipped.sum()
    np.testing.assert_array_equal(scales[1:][skipped[:-1] == 1], scales[:-1][skipped[:-1] == 1] / 2)
    assert (scales[1:] > scales[:-1]).sum() >= 2
    # What was skipped reports no gradient norm, and the rest does.
    assert [("gradient_norm" in row) for row in rows] == [not x for x in skipped]


def test_a_run_that_is_cut_and_continued_has_the_same_bits(tmp_path):
    built = overflown(growth_interval=3)

    def recipe():
        data = {"train": TableStream(problem(), 24)}
        memory = {"seen": jnp.int32(0)}
        return (yield Stage("toy", built, {"student": init(1)}, data, 12, memory=memory))

    def cut(name, step):
        if step == 7:
            raise Interrupted(143)

    with pytest.raises(Interrupted):
        run(recipe(), workdir=tmp_path, settings=Settings(checkpoint_every=5, on_step=cut))
    resumed = run(recipe(), workdir=tmp_path, settings=Settings(checkpoint_every=5))
    whole = run(recipe())
    assert bits(state(resumed)) == bits(state(whole))
    assert 0 < scale_of(whole) < 2.0**16


def test_members_have_a_scale_of_their_own():
    even = {"student": jax.tree.map(jnp.zeros_like, init(2))}
    built = overflown(growth_interval=100)

    def recipe(start):
        data = {"train": TableStream(problem(), 24)}
        memory = {"seen": jnp.int32(0)}
        return (yield Stage("toy", built, start, data, 6, memory=memory))

    starts = ({"student": init(1)}, even)
    both = run(together([recipe(start) for start in starts], (0, 1)))
    alone = [run(recipe(start), seed=seed) for seed, start in enumerate(starts)]
    assert isinstance(both[0], Outcome)
    assert [scale_of(x) for x in both] == [scale_of(x) for x in alone]
    assert scale_of(both[0]) != scale_of(both[1])
    for a, b in zip(both, alone):
        assert difference(a.variables, b.variables) < 1e-5


def test_a_gradient_that_is_infinite_without_any_scaling_is_a_failure():
    def objective(variables, batch, context):
        found = overflowing(logits(variables["student"], batch["train"]["x"]), jnp.float32(1e9))
        return Evaluation({"ce": mean(cross_entropy(found, batch["train"]["y"]))})

    with pytest.raises(NonFiniteLoss, match=r"step 3: the term 'gradient_norm' is not finite"):
        train(program(objective, loss_scale=LossScale(4.0)), {"student": init(1)}, steps=8)


BAD = [
    (lambda: LossScale(0.5), "initial must be at least 1, got 0.5"),
    (lambda: LossScale(float("nan")), "initial must be at least 1, got nan"),
    (lambda: LossScale(growth_interval=0), "growth_interval must be at least 1, got 0"),
    (lambda: Training(loss_scale=0.5), "loss_scale must be 0 or at least 1, got 0.5"),
    (lambda: Training(loss_scale_growth=0), "loss_scale_growth must be at least 1, got 0"),
]


@pytest.mark.parametrize(("make", "message"), BAD)
def test_bad_values_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_training_hands_its_scale_to_the_update():
    assert Training().scaling is None
    assert Training(loss_scale=8.0, loss_scale_growth=5).scaling == LossScale(8.0, 5)
    update = Update(supervised("student"), ("student",), adam())
    assert update.loss_scale is None
