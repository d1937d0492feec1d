"""A loss or gradient that is not finite stops the run, is skipped, or rolled back: as asked for."""

import functools
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import training_toys as toys

from kdjax.training import (
    Combined,
    Evaluation,
    Interrupted,
    MetricWriter,
    NonFiniteLoss,
    Program,
    Settings,
    Stage,
    Update,
    mean,
    read_metrics,
    run,
    together,
)
from kdjax.training import step as engine

TABLE = {name: jnp.asarray(x) for name, x in toys.problem().items()}
AT = (4, 5, 9)


def objective(how="value"):
    """Cross-entropy beside a term that breaks at the steps in memory; batch statistics, a queue."""

    def evaluate(variables, batch, context):
        student, batch = variables["student"], batch["train"]
        loss = toys.cross_entropy(toys.logits(student, batch["x"]), batch["y"])
        weight = student["params"]["head"]["bias"].sum()
        now = jnp.any(context.step == context.memory["faults"])
        if how == "value":
            other = jnp.where(now, jnp.nan, 0.0) * weight
        else:  # sqrt has an infinite slope where its value is an innocent 0
            other = jax.lax.cond(now, lambda w: jnp.sqrt(w - w), lambda w: 0.0 * w, weight)
        statistics = {"mean": 0.9 * student["statistics"]["mean"] + 0.1 * batch["x"].mean(0)}
        queue = jnp.roll(context.memory["queue"], 1).at[0].set(loss.mean())
        return Evaluation(
            {"ce": mean(loss), "other": mean(jnp.broadcast_to(other, loss.shape))},
            {"student": {"statistics": statistics}},
            {**context.memory, "queue": queue},
        )

    return evaluate


def average(variables, context, metrics):
    mixed = jax.tree.map(lambda a, b: 0.9 * a + 0.1 * b, variables["average"], variables["student"])
    return {**variables, "average": mixed}, context.memory


def combine(grads):
    return Combined(jax.tree.map(jnp.add, grads["ce"], grads["other"]))


def variables(seed=0):
    student = {**toys.init(seed), "statistics": {"mean": jnp.zeros(4)}}
    return {"student": student, "average": student}


ALONGSIDE = {"carries": ("average",), "after": average}


@functools.cache  # one compilation for all tests that use it
def program(how="value", **options):
    return toys.program(objective(how), toys.adam(), **ALONGSIDE, **options)


def train(made, faults=(), policy="skip", **options):
    writer = MetricWriter(None)
    settings = Settings(nonfinite=policy, log_every=5, **options)
    outcome = toys.train(
        made, variables(), 20, settings=settings, metrics=writer, memory=memory(faults)
    )
    return outcome.load(), writer.rows


def memory(faults=()):
    steps = jnp.array([*faults, *[-1] * (5 - len(faults))])
    return {"queue": jnp.zeros(5), "prepared": jnp.zeros(()), "faults": steps}


WAYS = {
    "value": {},
    "gradient": {"how": "gradient"},
    "micro-batches": {"microbatches": 2},
    "combine": {"combine": combine},
    "when": {"when": lambda context: context.step % 3 != 1},
}


@pytest.mark.parametrize("way", WAYS)
def test_a_skipped_update_changes_nothing_and_is_counted(way):
    """As if the update had not been due at those steps: parameters, slots, statistics, memory."""
    options = WAYS[way]
    due = options.get("when", lambda context: True)
    state, rows = train(program(**options), AT)
    plain = {name: x for name, x in options.items() if name != "how"}
    plain["when"] = lambda context: due(context) & jnp.all(context.step != jnp.array(AT))
    expected, _ = train(toys.program(objective(), toys.adam(), **ALONGSIDE, **plain), (), "stop")
    assert toys.difference(state.variables, expected.variables) < 1e-6
    assert toys.difference(state.optimizers, expected.optimizers) < 1e-6
    assert toys.difference(state.memory["queue"], expected.memory["queue"]) < 1e-6
    assert jax.tree.all(jax.tree.map(lambda x: np.isfinite(x).all(), state.variables))
    # Step 4 is not due in the case "when": what does not act is not skipped.
    first, all_of_them = (0, 2) if way == "when" else (1, 3)
    assert [row["skipped"] for row in rows] == [first, all_of_them, all_of_them, all_of_them]
    assert all(np.isfinite(row["loss"]) for row in rows)


def test_what_is_prepared_for_a_skipped_update_is_not_remembered():
    def prepare(variables, batch, context):
        count = context.memory["prepared"] + 1
        return batch, {**context.memory, "prepared": count}

    made = program(prepare=prepare, when=lambda context: context.step > 3)
    state, _ = train(made, (0, *AT))  # at step 0 nothing is due, so nothing is skipped
    assert int(state.memory["prepared"]) == 20 - len(AT)


def test_a_good_update_stays_beside_one_that_is_skipped():
    first = Update(toys.supervised("student"), ("student:^head",), toys.sgd(), name="head")
    second = Update(objective(), ("student:^body",), toys.sgd(), name="body")
    made = Program((first, second), carries=("average",))
    _, rows = train(made, AT)
    moved = train(made, range(5))[0].variables["student"]["params"]
    assert rows[-1]["head/skipped"] == 0
    assert rows[-1]["body/skipped"] == 3
    again = train(made, AT)[0].variables["student"]["params"]
    assert toys.bits(moved["head"]) != toys.bits(again["head"])


def test_without_faults_the_policies_give_the_same_bits():
    states = [toys.bits(train(program(), (), policy)[0]) for policy in ("stop", "skip", "rollback")]
    assert states[0] == states[1] == states[2]


def test_skipping_compiles_once_and_reads_nothing_back():
    asked = []
    original = jax.device_get
    jax.device_get = lambda tree: asked.append(1) or original(tree)
    try:
        train(program(), AT)
    finally:
        jax.device_get = original
    assert len(asked) == 4  # the windows
    sizes = {key[-1]: c.function._cache_size() for key, c in engine._compiled[program()].items()}
    assert sizes[True] == 1


def test_too_many_skips_in_a_row_stop_the_run_with_the_term():
    train(program(), (2, 3, 5, 6), nonfinite_limit=3)
    message = r"step 9: 3 updates in a row were skipped .*the term 'loss/other' is not finite"
    with pytest.raises(NonFiniteLoss, match=message):
        train(program(), (2, 3, 6, 7, 8), nonfinite_limit=3)
    with pytest.raises(NonFiniteLoss, match=r"the term 'gradient_norm' is not finite"):
        train(program(**WAYS["gradient"]), (2, 3, 4), nonfinite_limit=3)


def test_members_skip_alone():
    def evaluate(variables, batch, context):
        inner = objective()(variables, batch, context)
        broken = variables["student"]["statistics"]["mean"][0] > 50  # the second member's only
        other = jnp.where(broken & (context.step % 4 == 1), jnp.inf, 0.0)
        return inner._replace(terms={**inner.terms, "other": mean(other[None])})

    made = toys.program(evaluate, toys.sgd(), carries=("average",))
    start = [variables(0), variables(1)]
    start[1]["student"]["statistics"] = {"mean": jnp.full(4, 1e6)}

    def one(i):
        data = {"train": toys.TableStream(TABLE, 24, i)}
        return (yield Stage("toy", made, start[i], data, 12, memory()))

    settings, writer = Settings(nonfinite="skip", log_every=4), MetricWriter(None)
    members = run(together([one(0), one(1)], (0, 1)), settings=settings, metrics=writer)
    assert [row["skipped"] for row in writer.rows] == [[0, 1], [0, 2], [0, 3]]
    alone = [run(one(i), seed=i, settings=settings) for i in range(2)]
    for member, expected in zip(members, alone):
        assert toys.difference(member.variables, expected.variables) < 1e-6


class Killed(BaseException):
    """What a run does not see coming."""


@functools.cache
def poisoned(times):
    """A program that breaks on the batch that attempts 0 to `times` - 1 hold at step 27."""
    first = toys.TableStream(TABLE, 16)
    streams = [first, *[first.reordered(attempt) for attempt in range(1, times)]]
    poison = jnp.array([next(stream.items(27))["row"] for stream in streams])

    def evaluate(variables, batch, context):
        same = jnp.any(jnp.all(batch["train"]["id"] == poison, -1))
        value = jnp.where(same & (context.step == 27), jnp.nan, 0.0)
        noise = 0.01 * jax.random.normal(context.rng)
        logits = toys.logits(variables["student"], batch["train"]["x"])
        loss = toys.cross_entropy(logits, batch["train"]["y"])
        return Evaluation({"ce": mean(loss * (1 + noise)), "other": mean(value[None])})

    return toys.program(evaluate, toys.adam())


def rolled(workdir, kill=None, stop=None, limit=10, keep=1, stream=toys.TableStream, times=1):
    """Bits, metrics and dispatched steps of a run, killed or stopped after so many of these."""
    data, steps = {"train": stream(TABLE, 16)}, []

    def on_step(stage, step):
        steps.append(step)
        if len(steps) == kill:
            raise Killed
        if len(steps) == stop:
            os.kill(os.getpid(), signal.SIGTERM)

    def recipe():
        return (yield Stage("toy", poisoned(times), {"student": toys.init(0)}, data, 40))

    settings = Settings(10, keep, 5, nonfinite="rollback", nonfinite_limit=limit, on_step=on_step)
    outcome = run(recipe(), workdir=workdir, settings=settings)
    rows = [toys.unclocked(row) for row in read_metrics(workdir)]
    return toys.bits(outcome.load()), rows, steps


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return rolled(tmp_path_factory.mktemp("whole"))


def test_rolling_back_goes_on_from_the_last_checkpoint_in_another_order(whole):
    _, rows, steps = whole
    back = steps.index(21, 25)  # the step after the last checkpoint, dispatched a second time
    assert steps == [*range(1, back + 1), *range(21, 41)]
    assert 28 <= back <= 30
    assert [row["step"] for row in rows] == list(range(5, 45, 5))
    assert [row["rollbacks"] for row in rows] == [0] * 4 + [1] * 4
    assert all(np.isfinite(row["loss"]) for row in rows)


@pytest.mark.parametrize("keep", [1, 2])
@pytest.mark.parametrize("moment", [4, 19, 26, "back", "later"])
def test_a_run_killed_around_a_rollback_ends_with_the_same_bits(whole, tmp_path, moment, keep):
    bits, rows, steps = whole
    back = steps.index(21, 25) + 1  # how many steps until the first after the rollback
    moment = {"back": back + 2, "later": back + 14}.get(moment, moment)
    with pytest.raises(Killed):
        rolled(tmp_path, kill=moment, keep=keep)
    again = rolled(tmp_path, keep=keep)
    assert again[0] == bits
    assert again[1] == rows


def test_what_a_signal_had_saved_is_not_gone_back_to(whole, tmp_path):
    bits, rows, _ = whole
    for stop in (23, 2):  # twice, so that `keep` alone would have dropped step 20
        with pytest.raises(Interrupted):
            rolled(tmp_path, stop=stop)
    saved = sorted(int(p.stem) for p in (tmp_path / "checkpoints").rglob("*.json"))
    assert saved[0] == 20 < saved[-1] < 28
    again = rolled(tmp_path)
    assert again[0] == bits
    assert again[1] == rows


def test_rolling_back_has_a_limit(tmp_path):
    _, rows, _ = rolled(tmp_path / "enough", times=2, limit=2)
    assert rows[-1]["rollbacks"] == 2
    message = "step 28: the term 'loss/other' is not finite; the stage has gone back 2 times"
    with pytest.raises(NonFiniteLoss, match=message):
        rolled(tmp_path / "w", times=3, limit=2)


def test_a_stream_with_one_order_is_refused_before_the_stage(tmp_path):
    with pytest.raises(ValueError, match=r"stage 'toy': nonfinite='rollback' .* stream 'train': "):
        rolled(tmp_path, stream=toys.WalkStream)
    assert not list(tmp_path.rglob("checkpoints"))


@pytest.mark.parametrize(("name", "value"), [("nonfinite", "ignore"), ("nonfinite_limit", 0)])
def test_bad_settings_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} must be .*got {value!r}"):
        Settings(**{name: value})
