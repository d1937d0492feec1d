"""What an update does: when it acts, what it trains, what comes after, what is refused."""

import jax
import numpy as np
import pytest
import training_toys as toys
from jax import lax
from jax import numpy as jnp

from kdjax.training import (
    Evaluation,
    MetricWriter,
    Program,
    Settings,
    Update,
    mean,
)
from kdjax.training.bilevel import virtual_step


def pair(**kwargs):
    """An objective of the students a and b, each alone."""
    return {"a": toys.init(1), "b": toys.init(2), **kwargs}


def test_an_update_that_does_not_act_changes_and_reports_nothing():
    """Every third step: equal to a run of a third of the steps on those batches."""

    class Thirds(toys.TableStream):
        def items(self, start=0, state=None):
            for step, item in enumerate(super().items(start), start):
                if step % 3 == 0:
                    yield item

    table = toys.problem()
    some = toys.program(optimizer=toys.adam(), when=3)
    every = toys.program(optimizer=toys.adam())
    metrics, log = MetricWriter(None), Settings(log_every=1)
    student = {"student": toys.init(1)}
    data = {"train": toys.TableStream(table, 24)}
    skipping = toys.train(some, student, 9, data, log, metrics)
    dense = toys.train(every, student, 3, {"train": Thirds(table, 24)}, log)
    # Variables and optimizer slots; the count of the optimizer tells that it acted three times.
    assert toys.bits(skipping.load().optimizers) == toys.bits(dense.load().optimizers)
    assert toys.bits(skipping.variables) == toys.bits(dense.variables)
    assert [row["step"] for row in metrics.rows if "loss/ce" in row] == [1, 4, 7]


def test_a_condition_decides_with_memory_and_schedules():
    program = toys.program(
        optimizer=toys.adam(),
        when=lambda context: (context.memory["on"] == 1) & (context.values["gate"] > 0.5),
        schedules={"gate": lambda step, steps: step >= steps - 4},
    )
    metrics, student = MetricWriter(None), {"student": toys.init(1)}
    outcomes = [
        toys.train(
            program,
            student,
            10,
            settings=Settings(log_every=1),
            metrics=metrics,
            memory={"on": jnp.int32(on)},
        )
        for on in (0, 1)
    ]
    assert toys.bits(outcomes[0].variables["student"]) == toys.bits(toys.init(1))
    acted = [row["step"] for row in metrics.rows if "loss/ce" in row]
    assert acted == [7, 8, 9, 10]
    assert int(outcomes[1].load().optimizers[0][0].count) == 4


def test_a_second_update_sees_what_the_first_has_changed():
    """b learns to be a: with a rate of one half b is half of the new a, not of the old."""

    def towards(variables, batch, context):
        a, b = (variables[role]["params"]["head"]["bias"] for role in "ab")
        return Evaluation({"gap": mean((lax.stop_gradient(a) - b) ** 2 * len(a) / 2)})

    def rise(variables, batch, context):
        return Evaluation({"rise": mean(-variables["a"]["params"]["head"]["bias"] * 3)})

    program = Program(
        (
            Update(rise, ("a:^head/bias",), toys.sgd(1.0)),
            Update(towards, ("b:^head/bias",), toys.sgd(0.5), name="b"),
        )
    )
    outcome = toys.train(program, pair(), 1)
    bias = {role: outcome.variables[role]["params"]["head"]["bias"] for role in "ab"}
    np.testing.assert_allclose(bias["a"], 1, rtol=1e-6)
    np.testing.assert_allclose(bias["b"], 0.5, rtol=1e-6)


def alternation(low=0.4, high=0.8):
    """Two players; memory says whose turn it is, and its threshold depends on the turn."""

    def gap(variables):
        a, b = (variables[role]["params"]["head"]["bias"] for role in "ab")
        return jnp.sum(jnp.abs(a - b))

    def close(variables, batch, context):
        return Evaluation({"gap": mean(gap(variables))})

    def open_up(variables, batch, context):
        return Evaluation({"gap": mean(-gap(variables))})

    def turn(variables, context, metrics):
        distance, at = gap(variables), context.memory["turn"]
        new = jnp.where(at == 0, distance < low, distance <= high).astype(jnp.int32)
        switched = context.memory["switches"] + (new != at)
        return variables, {"turn": new, "switches": switched}

    # The turn at the start of the step decides for both.
    keep = ("now", lambda variables, batch, context: (batch, context.memory))
    student = Update(close, ("a:bias",), toys.sgd(0.03), when=lambda c: c.memory["turn"] == 0)
    augmentor = Update(
        open_up, ("b:bias",), toys.sgd(0.03), when=lambda c: c.memory["turn"] == 1, name="open"
    )
    watch = Update(
        lambda v, b, c: Evaluation({"none": mean(0.0 * v["c"]["params"]["head"]["bias"])}),
        ("c",),
        toys.sgd(),
        after=turn,
        name="watch",
    )
    return Program((student, augmentor, watch), prepare=keep[1])


def test_hysteresis_alternates_two_players():
    variables = pair(c=toys.init(3))
    head = variables["b"]["params"]["head"]
    variables["b"]["params"]["head"] = {**head, "bias": jnp.array([0.2, 0.2, 0.2])}
    memory = {"turn": jnp.int32(0), "switches": jnp.int32(0)}
    outcome = toys.train(alternation(), variables, 40, memory=memory)

    a, b, turn, switches = np.zeros(3, np.float32), np.full(3, 0.2, np.float32), 0, 0
    for _ in range(40):
        if turn == 0:
            a = a - np.float32(0.03) * np.sign(a - b)
        else:
            b = b - np.float32(0.03) * np.sign(a - b)
        distance = np.abs(a - b).sum()
        new = int(distance < 0.4) if turn == 0 else int(distance <= 0.8)
        turn, switches = new, switches + (new != turn)
    assert switches > 4
    assert int(outcome.memory["switches"]) == switches
    bias = {role: outcome.variables[role]["params"]["head"]["bias"] for role in "ab"}
    np.testing.assert_allclose([bias["a"], bias["b"]], [a, b], atol=1e-5)


def average(variables, context, metrics):
    new = jax.tree.map(lambda old, x: 0.9 * old + 0.1 * x, variables["ema"], variables["student"])
    return {**variables, "ema": new}, context.memory


def test_after_keeps_a_moving_average_of_a_carried_role():
    student = toys.init(1)
    variables = {"student": student, "ema": toys.init(1)}
    program = toys.program(after=average, carries=("ema",))
    seen = [student]
    for steps in range(1, 5):  # each run begins anew, so its end is step `steps` of the longest
        outcome = toys.train(program, variables, steps)
        seen.append(outcome.variables["student"])
    expected = seen[0]
    for x in seen[1:]:
        expected = jax.tree.map(lambda old, new: 0.9 * old + 0.1 * new, expected, x)
    assert toys.difference(outcome.variables["ema"], expected) < 1e-6
    assert toys.difference(seen[0], seen[-1]) > 1e-2
    assert len(jax.tree.leaves(outcome.load().optimizers)) == 0  # sgd, and no slot for the average


def test_after_may_not_change_a_frozen_role():
    program = toys.program(after=average)
    variables = {"student": toys.init(1), "ema": toys.init(1)}
    with pytest.raises(ValueError, match="after changed the frozen role 'ema'; name it in `carr"):
        toys.train(program, variables)


def test_after_may_not_bring_a_role_that_the_stage_does_not_have():
    program = toys.program(after=lambda v, c, m: ({**v, "new": v["student"]}, c.memory))
    with pytest.raises(ValueError, match="after changed the frozen role 'new'"):
        toys.train(program, {"student": toys.init(1)})


def test_an_objective_may_not_return_variables_of_a_frozen_role():
    def objective(variables, batch, context):
        evaluation = toys.supervised("student")(variables, batch, context)
        return evaluation._replace(variables={"teacher": {"batch_stats": {"mean": 0.0}}})

    variables = {"student": toys.init(1), "teacher": toys.init(2)}
    with pytest.raises(
        ValueError, match=r"the objective returned variables for 'teacher'.*neither"
    ):
        toys.train(toys.program(objective), variables)


def test_a_queue_in_memory_holds_the_newest_features():
    def objective(variables, batch, context):
        evaluation = toys.supervised("student")(variables, batch, context)
        x = batch["train"]["x"]
        queue = jnp.concatenate([x, context.memory["queue"][: -len(x)]])
        return evaluation._replace(memory={"queue": queue})

    table = toys.problem()
    stream = toys.TableStream(table, 24)
    memory = {"queue": jnp.zeros((60, 4))}
    for microbatches in (1, 2):
        program = toys.program(objective, microbatches=microbatches)
        outcome = toys.train(
            program, {"student": toys.init(1)}, 5, {"train": stream}, memory=memory
        )
        items = [item["row"] for _, item in zip(range(5), stream.items())]
        parts = [rows[i::microbatches] for rows in items for i in range(microbatches)]
        expected = np.concatenate([table["x"][part] for part in parts[::-1]])[:60]
        np.testing.assert_array_equal(outcome.memory["queue"], expected)
    assert not np.any(memory["queue"])


def test_a_bilevel_gradient_flows_through_a_virtual_step():
    """The teacher's temperature, scored by the student after one step: finite differences."""
    table = toys.problem()
    rng = np.random.default_rng(0)
    split = {"x": rng.normal(size=(24, 4)).astype(np.float32)}
    split["y"] = rng.integers(0, 3, 24)

    def outer(scale, student):
        def inner(params):
            soft = jax.nn.softmax(scale * table["x"][:24] @ jnp.eye(4, 3))
            return -jnp.mean(
                jnp.sum(soft * jax.nn.log_softmax(toys.logits(params, table["x"][:24])), -1)
            )

        stepped = virtual_step(inner, student, 0.5).parameters
        return toys.cross_entropy(toys.logits(stepped, split["x"]), split["y"])

    def objective(variables, batch, context):
        return Evaluation(
            {"outer": mean(outer(variables["scale"]["params"]["s"], variables["student"]))}
        )

    student, start = toys.init(1), 1.5
    variables = {"student": student, "scale": {"params": {"s": jnp.float32(start)}}}
    outcome = toys.train(toys.program(objective, toys.sgd(1.0), ("scale",)), variables, 1)
    got = start - float(outcome.variables["scale"]["params"]["s"])
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), student)
        value = lambda s: float(jnp.mean(outer(jnp.float64(s), wide)))  # noqa: E731
        expected = (value(start + 1e-5) - value(start - 1e-5)) / 2e-5
    assert abs(expected) > 1e-4
    assert got == pytest.approx(expected, rel=2e-3)


def test_a_regex_trains_only_the_parameters_it_finds():
    program = toys.program(optimizer=toys.adam(), trains=("student:^head/",))
    outcome = toys.train(program, {"student": toys.init(1)})
    new, old = outcome.variables["student"]["params"], toys.init(1)["params"]
    assert toys.bits(new["body"]) == toys.bits(old["body"])
    assert toys.difference(new["head"], old["head"]) > 1e-2
    assert len(jax.tree.leaves(outcome.load().optimizers)) == 1 + 2 * 2  # count, two moments


def test_a_regex_that_finds_nothing_lists_the_paths():
    program = toys.program(trains=("student:^tail/",))
    message = r"'student:\^tail/' matches no parameter .*'body/bias', 'body/kernel', 'head/bias'"
    with pytest.raises(ValueError, match=message):
        toys.train(program, {"student": toys.init(1)})


def test_two_updates_of_one_term_need_names():
    def updates(name):
        a = Update(toys.supervised("a"), ("a",), toys.sgd())
        return a, Update(toys.supervised("b"), ("b",), toys.sgd(), name=name)

    with pytest.raises(ValueError, match=r"two updates report 'gradient_norm': give them names"):
        toys.train(Program(updates("")), pair())
    metrics = MetricWriter(None)
    toys.train(Program(updates("second")), pair(), metrics=metrics)
    assert {"loss", "loss/ce", "second/loss", "second/loss/ce"} <= set(metrics.rows[-1])


@pytest.mark.parametrize(
    ("new", "message"),
    [
        ({"queue": jnp.zeros(4), "n": 0}, r"memory\['queue'\]: float32\[3\] became float32\[4\]"),
        (
            {"queue": jnp.zeros(3), "n": 0.5},
            r"memory\['n'\]: int32\[\] became float32\[\]",
        ),
        ({"queue": jnp.zeros(3)}, "keep the structure of memory"),
    ],
)
@pytest.mark.parametrize("when", [1, 2])
def test_memory_that_changes_shape_type_or_structure_is_refused(new, message, when):
    def objective(variables, batch, context):
        return toys.supervised("student")(variables, batch, context)._replace(memory=new)

    memory = {"queue": jnp.zeros(3), "n": jnp.int32(0)}
    with pytest.raises(ValueError, match=message):
        toys.train(toys.program(objective, when=when), {"student": toys.init(1)}, memory=memory)


def test_prepare_is_outside_the_gradient_and_before_every_update():
    def prepare(variables, batch, context):
        soft = jax.nn.softmax(toys.logits(variables["student"], batch["train"]["x"]))
        return {**batch, "soft": soft}, {"n": context.memory["n"] + 1}

    def objective(variables, batch, context):
        # Against its own answer the gradient is zero only if that answer is a constant.
        log_p = jax.nn.log_softmax(toys.logits(variables["student"], batch["train"]["x"]))
        return Evaluation({"self": mean(-jnp.sum(batch["soft"] * log_p, -1))})

    program = toys.program(objective, prepare=prepare)
    outcome = toys.train(program, {"student": toys.init(1)}, 5, memory={"n": jnp.int32(0)})
    assert toys.difference(outcome.variables["student"], toys.init(1)) < 1e-6
    assert int(outcome.memory["n"]) == 5


def test_the_random_numbers_of_a_step_differ_by_step_update_and_part():
    def objective(variables, batch, context):
        draw = jax.random.uniform(context.rng)
        kept = lax.dynamic_update_slice(context.memory["draws"], draw[None], (context.memory["n"],))
        memory = {"draws": kept, "n": context.memory["n"] + 1}
        return toys.supervised("student")(variables, batch, context)._replace(memory=memory)

    update = Update(objective, ("student",), toys.sgd(), microbatches=2)
    again = Update(objective, ("student",), toys.sgd(), microbatches=2, name="again")
    memory = {"draws": jnp.zeros(12), "n": jnp.int32(0)}
    outcome = toys.train(Program((update, again)), {"student": toys.init(1)}, 3, memory=memory)
    assert len(np.unique(outcome.memory["draws"])) == 12


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"trains": "student"}, "trains must be a non-empty tuple of roles, got 'student'"),
        ({"trains": ()}, "trains must be a non-empty tuple"),
        ({"microbatches": 0}, "microbatches must be at least 1, got 0"),
        ({"when": 0}, "when must be at least 1"),
    ],
)
def test_a_bad_update_is_refused_when_it_is_made(fields, message):
    with pytest.raises(ValueError, match=message):
        Update(**{"objective": None, "trains": ("student",), "optimizer": None, **fields})


def test_a_program_without_updates_is_refused():
    with pytest.raises(ValueError, match="updates must hold at least one Update"):
        Program(())
