"""One division: a gradient does not depend on how the batch was cut."""

import chex
import jax
import numpy as np
import optax
import pytest
import training_toys as toys
from jax import numpy as jnp

from kdjax.training import (
    Combined,
    Context,
    Evaluation,
    MetricWriter,
    Program,
    Settings,
    Term,
    Update,
    divide,
    mean,
)
from kdjax.training.gradients import gradient, microbatch
from kdjax.training.state import pick

ROUNDING = 3e-6


def run_cut(objective, microbatches, steps=60, stream=None, variables=None, **update):
    program = toys.program(
        objective,
        lambda values: optax.sgd(0.1, momentum=0.9),
        microbatches=microbatches,
        **update,
    )
    metrics = MetricWriter(None)
    outcome = toys.train(
        program,
        variables or {"student": toys.init(1)},
        steps,
        {"train": stream or toys.TableStream(toys.problem(), 24)},
        Settings(log_every=steps),
        metrics,
    )
    return outcome, metrics.rows[-1]


def same_for_every_cut(objective, cuts=(1, 2, 4, 8), **kwargs):
    whole, report = run_cut(objective, 1, **kwargs)
    assert toys.difference(whole.variables["student"], toys.init(1)) > 0.1
    for microbatches in cuts[1:]:
        cut, cut_report = run_cut(objective, microbatches, **kwargs)
        assert toys.difference(cut.variables, whole.variables) < ROUNDING
        assert set(cut_report) == set(report)
        for name in report:
            if name.startswith("loss") or name == "gap":
                assert cut_report[name] == pytest.approx(report[name], rel=1e-5)


def test_microbatches_equal_one_batch_for_a_masked_mean():
    stream = toys.PaddedStream(toys.problem(), 24)
    same_for_every_cut(toys.supervised("student", where=True), stream=stream)


def test_microbatches_equal_one_batch_for_weights_that_are_unequal_between_them():
    def objective(variables, batch, context):
        batch = batch["train"]
        values = toys.cross_entropy(toys.logits(variables["student"], batch["x"]), batch["y"])
        # Row i goes to part i % n, so whole parts weigh nothing and others a lot.
        weights = jnp.where(jnp.arange(24) % 8 < 5, jnp.arange(24) % 8, 0)[batch["place"]]
        other = Term(jnp.sum(values**2), jnp.sum(batch["y"].astype(jnp.float32)), 0.1)
        return Evaluation({"ce": mean(values, weights), "other": other})

    class Placed(toys.TableStream):
        def items(self, start=0, state=None):
            for item in super().items(start):
                yield {**item, "place": np.arange(24, dtype=np.int32)}

    def assemble(table, item):
        return {**toys.rows(table, item), "place": item["place"]}

    stream = Placed(toys.problem(), 24, assemble=assemble)
    same_for_every_cut(objective, stream=stream)


def two_terms(variables, batch, context):
    output = toys.logits(variables["student"], batch["train"]["x"])
    ce = mean(toys.cross_entropy(output, batch["train"]["y"]))
    return Evaluation({"ce": ce, "size": mean(jnp.sum(output**2, -1), coefficient=0.3)})


def aligned(gradients):
    """The second gradient without what opposes the first."""
    first, second = gradients["ce"], gradients["size"]
    dot = optax.tree.vdot(first, second)
    share = jnp.minimum(dot, 0) / optax.tree.vdot(first, first)
    kept = jax.tree.map(lambda a, b: a + b - share * a, first, second)
    return Combined(kept, {"opposes": Term((dot < 0).astype(jnp.float32), jnp.float32(1))})


def test_microbatches_equal_one_batch_when_gradients_are_combined():
    same_for_every_cut(two_terms, (1, 2, 6), combine=aligned)


def test_combine_is_given_each_terms_gradient_with_its_coefficient():
    student = {"student": toys.init(1)}
    batch = {"train": jax.tree.map(lambda x: x[:8], toys.problem())}
    context = Context({}, jax.random.key(0), jnp.int32(0), {})

    def alone(name):
        def loss(variables):
            term = two_terms(variables, batch, context).terms[name]
            return term.coefficient * term.total / term.weight

        return pick(jax.grad(loss)(student), ("student",))

    update = Update(two_terms, ("student",), toys.sgd(), combine=Combined)
    params = pick(student, ("student",))
    result = gradient(update, params, student, {}, batch, context)
    expected = {name: alone(name) for name in ("ce", "size")}
    chex.assert_trees_all_close(result.gradient, expected, rtol=1e-5, atol=1e-7)


def test_what_combine_reports_is_logged():
    _, report = run_cut(two_terms, 2, steps=20, combine=aligned)
    assert 0 <= report["opposes"] <= 1


def normalised(variables, batch, context):
    """Batch statistics as everywhere: of the micro-batch, averaged over time."""
    x = batch["train"]["x"]
    student, old = variables["student"], variables["student"]["batch_stats"]
    values = toys.cross_entropy(toys.logits(student, x - x.mean(0)), batch["train"]["y"])
    stats = {"mean": 0.5 * old["mean"] + 0.5 * x.mean(0), "count": old["count"] + 1}
    return Evaluation({"ce": mean(values)}, {"student": {"batch_stats": stats}})


@pytest.mark.parametrize("microbatches", [1, 4])
def test_batch_statistics_are_carried_from_part_to_part(microbatches):
    table, steps = toys.problem(), 5
    start = {**toys.init(1), "batch_stats": {"mean": jnp.zeros(4), "count": jnp.int32(0)}}
    outcome, _ = run_cut(normalised, microbatches, steps, variables={"student": start})
    expected = np.zeros(4)
    items = toys.TableStream(table, 24).items()
    for _ in range(steps):
        x = table["x"][next(items)["row"]]
        for part in range(microbatches):
            expected = 0.5 * expected + 0.5 * x[part::microbatches].mean(0)
    stats = outcome.variables["student"]["batch_stats"]
    assert int(stats["count"]) == steps * microbatches
    np.testing.assert_allclose(stats["mean"], expected, rtol=1e-5, atol=1e-6)


def test_row_i_goes_to_part_i_modulo_the_number_of_parts():
    cut = microbatch({"x": jnp.arange(12), "y": jnp.arange(24).reshape(12, 2)}, 3)
    np.testing.assert_array_equal(cut["x"], [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 11]])
    np.testing.assert_array_equal(cut["y"][1, 2], [14, 15])


def test_a_batch_that_cannot_be_cut_is_refused_naming_the_array():
    with pytest.raises(ValueError, match=r"\['x'\] of shape \(12, 2\) cannot be cut into 5"):
        microbatch({"x": jnp.zeros((12, 2))}, 5)


def embed(variables, batch, context):
    return toys.features(variables["student"], batch["train"]["x"]), {}


def contrast(variables, batch, context):
    """Every example against all others: cutting the batch would change it."""
    head = variables["student"]["params"]["head"]
    z = batch["embeddings"] @ head["kernel"] + head["bias"]
    z = z / jnp.sqrt(jnp.sum(z**2, -1, keepdims=True) + 1e-6)
    y = batch["train"]["y"]
    similar = jnp.where(jnp.eye(len(z), dtype=bool), -1e9, 4 * z @ z.T)
    same = (y[:, None] == y) & ~jnp.eye(len(z), dtype=bool)
    gap = -jnp.sum(jnp.where(same, jax.nn.log_softmax(similar), 0), 1)
    terms = {"ce": mean(gap / 24), "size": mean(jnp.sum(batch["embeddings"] ** 2, -1), None, 0.01)}
    metrics = {"gap": mean(gap)}
    return Evaluation(terms, metrics=metrics)


@pytest.mark.parametrize("combine", [None, aligned], ids=["summed", "combined"])
def test_gradient_caching_equals_the_whole_batch(combine):
    def joined(variables, batch, context):
        return contrast(variables, {**batch, "embeddings": embed(variables, batch, None)[0]}, None)

    whole, report = run_cut(joined, 1, batchwise=True, combine=combine)
    assert toys.difference(whole.variables["student"], toys.init(1)) > 0.1
    for microbatches in (1, 4):
        cut, cut_report = run_cut(
            contrast, microbatches, batchwise=True, embed=embed, combine=combine
        )
        assert toys.difference(cut.variables, whole.variables) < ROUNDING
        assert cut_report["gap"] == pytest.approx(report["gap"], rel=1e-5)


def test_cutting_a_batchwise_objective_without_embed_is_refused():
    with pytest.raises(ValueError, match=r"microbatches=4 .* give `embed` \(gradient caching\)"):
        Update(contrast, ("student",), toys.sgd(), microbatches=4, batchwise=True)


def test_what_is_masked_gives_neither_value_nor_gradient():
    where = jnp.array([True, True, False, False])

    def loss(values):
        term = mean(values, where, coefficient=2.0)
        return term.coefficient * divide(term.total, term.weight)

    values = jnp.array([1.0, 5.0, jnp.nan, jnp.inf])
    assert float(loss(values)) == 6
    np.testing.assert_array_equal(jax.grad(loss)(values), [1, 1, 0, 0])


def test_a_step_on_a_masked_nan_is_the_step_without_that_row():
    def objective(variables, batch, context):
        batch = batch["train"]
        values = toys.cross_entropy(toys.logits(variables["student"], batch["x"]), batch["y"])
        return Evaluation({"ce": mean(values + batch["noise"], batch["where"])})

    class Masked(toys.TableStream):
        def items(self, start=0, state=None):
            for item in super().items(start):
                yield {**item, "where": np.arange(24) < 18}

    def assemble(noise):
        def assemble(table, item):
            return {**toys.padded_rows(table, item), "noise": jnp.where(item["where"], 0, noise)}

        return assemble

    def outcome(noise, microbatches):
        stream = Masked(toys.problem(), 24, assemble=assemble(noise))
        return run_cut(objective, microbatches, 10, stream)[0].variables

    for microbatches in (1, 4):
        assert toys.bits(outcome(jnp.nan, microbatches)) == toys.bits(outcome(0.0, microbatches))


def test_a_batch_that_is_all_padding_changes_nothing():
    class Empty(toys.TableStream):
        def items(self, start=0, state=None):
            for item in super().items(start):
                yield {**item, "where": np.zeros(24, bool)}

    stream = Empty(toys.problem(), 24, assemble=toys.padded_rows)
    objective = toys.supervised("student", where=True)
    program = toys.program(objective, microbatches=2)
    metrics = MetricWriter(None)
    outcome = toys.train(program, {"student": toys.init(1)}, 3, {"train": stream}, metrics=metrics)
    assert toys.bits(outcome.variables["student"]) == toys.bits(toys.init(1))
    assert "loss/ce" not in metrics.rows[-1]


def test_an_objective_without_terms_is_refused():
    program = Program((Update(lambda v, b, c: Evaluation({}), ("student",), toys.sgd()),))
    with pytest.raises(ValueError, match="at least one term"):
        toys.train(program, {"student": toys.init(1)})
