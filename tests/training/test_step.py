"""One compilation a program, what is donated, and exact ends."""

import gc

import jax
import numpy as np
import pytest
import training_toys as toys
from jax import numpy as jnp

from kdjax.training import (
    Compute,
    Layout,
    MetricWriter,
    Program,
    Settings,
    Stage,
    Term,
    Update,
    Validation,
    read_metrics,
    run,
)
from kdjax.training import step as engine
from kdjax.training.loop import stage_keys, start


def compilations(program):
    """How often each step of a program was compiled."""
    return [compiled.function._cache_size() for compiled in engine._compiled[program].values()]


def annealed():
    schedules = {
        "weight": lambda step, steps: 0.9 * step / steps,
        "rate": lambda step, steps: 0.05 * (1 - step / steps),
    }
    optimizer = lambda values: toys.optax.adam(values["rate"])  # noqa: E731
    return toys.program(toys.distill, optimizer, schedules=schedules)


def pair():
    return {"student": toys.init(1), "teacher": toys.init(2)}


def test_annealed_schedules_compile_once_and_are_followed():
    program, metrics = annealed(), MetricWriter(None)
    toys.train(program, pair(), 30, settings=Settings(log_every=1), metrics=metrics)
    assert compilations(program) == [1]
    logged = [row["values/weight"] for row in metrics.rows]
    np.testing.assert_allclose(logged, 0.9 * np.arange(30) / 30, rtol=1e-5)


def test_rounds_that_share_a_program_share_its_compilation():
    """Twenty rounds of selection: other rows, steps and starting points each time."""
    program, table, rng = annealed(), toys.problem(), np.random.default_rng(0)
    table = jax.tree.map(jnp.asarray, table)
    validation = Validation(toys.accuracy("student"), toys.Split(table, 40), 4)

    def recipe():
        variables = pair()
        for i in range(20):
            chosen = yield Compute(f"choose-{i}", lambda rng, *_: {"row": rng.permutation(96)[:40]})
            data = {"train": toys.TableStream(table, 24, seed=i, index=chosen["row"])}
            steps = int(rng.integers(3, 8))
            outcome = yield Stage(
                f"round-{i}", program, variables, data, steps, validation=validation
            )
            variables = {**variables, "student": outcome.variables["student"]}

    run(recipe())
    assert compilations(program) == [1]


def test_a_stage_that_continues_another_shares_its_compilation_and_keeps_the_optimizer(tmp_path):
    program, data = annealed(), {"train": toys.TableStream(toys.problem(), 24)}

    def recipe():
        first = yield Stage("first", program, pair(), data, 6, memory={"n": jnp.int32(3)})
        return first, (yield Stage("second", program, pair(), data, 4, continues=first))

    first, second = run(recipe(), workdir=tmp_path)
    again = run(recipe(), workdir=tmp_path)[1]  # from the journal
    assert toys.bits(again.load()) == toys.bits(second.load())
    assert compilations(program) == [1]
    assert int(second.load().optimizers[0][0].count) == 10
    assert int(second.memory["n"]) == 3
    assert second.steps == second.selected_step == 4
    assert toys.bits(first.variables) != toys.bits(second.variables)  # and the first lives on


def test_a_resumed_stage_does_not_compile_again(tmp_path):
    program = annealed()
    data = {"train": toys.TableStream(toys.problem(), 24)}

    class Stopped(Exception):
        pass

    def stop_at(number):
        def hook(name, step):
            if step == number:
                raise Stopped

        return hook

    def recipe():
        return (yield Stage("toy", program, pair(), data, 30))

    for number in (13, 25):
        with pytest.raises(Stopped):
            run(
                recipe(),
                workdir=tmp_path,
                settings=Settings(checkpoint_every=5, on_step=stop_at(number)),
            )
    resumed = run(recipe(), workdir=tmp_path, settings=Settings(checkpoint_every=5))
    assert compilations(program) == [1]
    assert toys.bits(resumed.variables) == toys.bits(run(recipe()).variables)


def test_a_program_that_is_gone_leaves_no_compiled_step():
    program = annealed()
    toys.train(program, pair(), 1)
    before = len(engine._compiled)
    del program
    gc.collect()
    assert len(engine._compiled) < before


def test_only_the_state_is_donated():
    variables, table = pair(), jax.tree.map(jnp.asarray, toys.problem())
    program, stream = annealed(), toys.TableStream(table, 24)
    stage = Stage("toy", program, variables, {"train": stream}, 5, {"n": jnp.int32(0)})
    layout = Layout()
    state = start(stage, layout)
    compiled = engine.compiled_step(stage, jax.tree.map(lambda x: x.sharding, state))
    frozen = layout.frozen(stage, engine.frozen_of(stage))
    assert set(frozen) == {"teacher"}
    item = jax.tree.map(jnp.asarray, next(stream.items()))
    keys = stage_keys(stage, jax.random.key(0))
    inputs = {"train": table}, {"train": item}, {}, jnp.int32(5), keys
    new, _ = compiled.function(state, frozen, *inputs)
    jax.block_until_ready(new)
    assert all(x.is_deleted() for x in jax.tree.leaves(state))
    for kept in (frozen, table, item, variables, stage.memory, keys):
        assert not any(x.is_deleted() for x in jax.tree.leaves(kept))
    # The student, its two Adam moments and their count: no slot for the teacher.
    assert len(jax.tree.leaves(new.variables)) == 4
    assert len(jax.tree.leaves(new.optimizers)) == 1 + 2 * 4


def test_the_callers_own_arrays_stay_alive_and_unchanged():
    variables, memory = pair(), {"n": jnp.int32(7)}
    validation = Validation(toys.accuracy("student"), toys.Split(toys.problem(), 40), 3)
    before = toys.bits(variables)
    outcome = toys.train(annealed(), variables, 10, memory=memory, validation=validation)
    assert toys.bits(variables) == before
    assert int(memory["n"]) == 7
    assert set(outcome.variables) == {"student"}
    assert (
        toys.bits(outcome.selected) != toys.bits(outcome.variables) or outcome.selected_step == 10
    )


def counting(limit, microbatches=1):
    """A program that stops when its memory has counted to a limit."""

    def after(variables, context, metrics):
        return variables, {"n": context.memory["n"] + 1}

    return toys.program(
        optimizer=toys.adam(),
        after=after,
        stop=lambda context: context.memory["n"] >= limit,
        microbatches=microbatches,
    )


@pytest.mark.parametrize("limit", [1, 17, 38, 40])
def test_stop_ends_exactly_at_its_step(limit):
    """Although later steps were dispatched: state, selection, metrics and validation end there."""
    metrics = MetricWriter(None)
    data = {"train": toys.TableStream(toys.problem(), 24)}
    validation = Validation(toys.accuracy("student"), toys.Split(toys.problem(), 40), 4)
    kwargs = dict(data=data, validation=validation, memory={"n": jnp.int32(0)})
    settings = Settings(log_every=10)
    student = {"student": toys.init(1)}
    stopped = toys.train(counting(limit), student, 40, settings=settings, metrics=metrics, **kwargs)
    whole = toys.train(counting(1000), student, limit, **kwargs)
    assert int(stopped.memory["n"]) == stopped.steps == limit
    assert toys.bits(stopped.load()._replace(done=())) == toys.bits(whole.load()._replace(done=()))
    steps = [row["step"] for row in metrics.rows if row["kind"] == "train"]
    assert steps == [*range(10, limit, 10), limit]
    steps = [row["step"] for row in metrics.rows if row["kind"] == "validation"]
    assert steps == [*range(4, limit, 4), limit]
    assert all("loss" in row for row in metrics.rows if row["kind"] == "train")


def test_a_stage_that_stops_early_saves_nothing_past_its_end(tmp_path):
    program = counting(17)
    data = {"train": toys.TableStream(toys.problem(), 24)}
    saved = []

    def recipe():
        memory = {"n": jnp.int32(0)}
        return (yield Stage("toy", program, {"student": toys.init(1)}, data, 60, memory))

    def watch(name, step):
        folder = tmp_path / "checkpoints" / "0000-toy"
        saved.extend(int(p.stem) for p in folder.glob("*.json"))

    settings = Settings(checkpoint_every=2, log_every=7, on_step=watch)
    outcome = run(recipe(), workdir=tmp_path, settings=settings)
    assert outcome.steps == 17
    assert max(saved) <= 16
    assert [row["step"] for row in read_metrics(tmp_path)] == [7, 14, 17]
    assert run(recipe(), workdir=tmp_path).steps == 17


def test_the_result_does_not_depend_on_how_often_it_is_logged_or_saved(tmp_path):
    program = annealed()
    data = {"train": toys.WalkStream(toys.problem(), 24)}
    validation = Validation(toys.accuracy("student"), toys.Split(toys.problem(), 40), 5)

    def recipe():
        return (yield Stage("toy", program, pair(), data, 20, validation=validation))

    ways = [(None, 50, 0), (tmp_path / "a", 1, 0), (tmp_path / "b", 7, 3), (tmp_path / "c", 3, 1)]
    results = set()
    for folder, log_every, checkpoint_every in ways:
        settings = Settings(log_every=log_every, checkpoint_every=checkpoint_every)
        outcome = run(recipe(), workdir=folder, settings=settings)
        results.add(tuple(toys.bits(outcome.load()).items()))
    assert len(results) == 1


def test_the_windows_of_metrics_add_up():
    """The mean over a window weighs steps as the data did, and the last window may be short."""
    stream, student = toys.PaddedStream(toys.problem(), 24), {"student": toys.init(1)}
    program = toys.program(toys.supervised("student", where=True))
    rows = {}
    for every in (1, 4):
        metrics = MetricWriter(None)
        toys.train(program, student, 10, {"train": stream}, Settings(log_every=every), metrics)
        rows[every] = {row["step"]: row["loss/ce"] for row in metrics.rows}
    assert list(rows[4]) == [4, 8, 10]
    weights = np.array([24 - step % 5 for step in range(10)])
    single = np.array(list(rows[1].values()))
    for first, last in ((0, 4), (4, 8), (8, 10)):
        expected = np.average(single[first:last], weights=weights[first:last])
        assert rows[4][last] == pytest.approx(expected, rel=1e-6)


def test_selection_keeps_the_earliest_of_the_best():
    """Scores by step are 0.2, 0.7, 0.7, 0.1: the second evaluation is kept."""
    scores = jnp.array([0.2, 0.7, 0.7, 0.1])

    def evaluate(variables, batch):
        score = scores[variables["clock"]["n"] // 2 - 1]
        return {"score": toys.mean(jnp.full(batch["y"].shape, score), batch["where"])}

    def tick(variables, context, metrics):
        return {**variables, "clock": {"n": variables["clock"]["n"] + 1}}, context.memory

    program = toys.program(after=tick, carries=("clock",))
    split = toys.Split(toys.problem(), 40)
    outcome = toys.train(
        program,
        {"student": toys.init(1), "clock": {"n": jnp.int32(0)}},
        8,
        validation=Validation(evaluate, split, 2, "score"),
    )
    assert int(outcome.selected_step) == 4
    assert int(outcome.selected["clock"]["n"]) == 4
    assert int(outcome.variables["clock"]["n"]) == 8


def test_a_score_that_is_no_metric_is_refused():
    validation = Validation(toys.accuracy("student"), toys.Split(toys.problem(), 40), 2, "f1")
    with pytest.raises(ValueError, match=r"score 'f1' is not among the metrics \['accuracy'\]"):
        toys.train(toys.program(), {"student": toys.init(1)}, 4, validation=validation)


def test_streams_that_process_alike_share_a_step_and_others_do_not():
    program, student = toys.program(), {"student": toys.init(1)}
    table = toys.problem()
    toys.train(program, student, 2, {"train": toys.TableStream(table, 24)})
    toys.train(program, student, 2, {"train": toys.TableStream(table, 24, seed=5)})
    assert compilations(program) == [1]

    def mirrored(table, item):
        batch = toys.rows(table, item)
        return {**batch, "x": -batch["x"]}

    toys.train(program, student, 2, {"train": toys.TableStream(table, 24, assemble=mirrored)})
    assert compilations(program) == [1, 1]


def test_named_streams_feed_one_step():
    def objective(variables, batch, context):
        labelled, other = batch["labelled"], batch["unlabelled"]
        ce = toys.cross_entropy(toys.logits(variables["student"], labelled["x"]), labelled["y"])
        size = toys.logits(variables["student"], other["x"]) ** 2
        return toys.Evaluation({"ce": toys.mean(ce), "size": toys.mean(size)})

    data = {
        "labelled": toys.TableStream(toys.problem(), 12),
        "unlabelled": toys.WalkStream(toys.problem(seed=1), 30),
    }
    metrics = MetricWriter(None)
    program = Program((Update(objective, ("student",), toys.sgd(), microbatches=3),))
    toys.train(program, {"student": toys.init(1)}, 5, data, metrics=metrics)
    assert {"loss/ce", "loss/size"} <= set(metrics.rows[-1])


@pytest.mark.parametrize("size", [40, 7])
def test_a_validation_concludes_from_the_means_of_the_whole_split(size):
    """The best of a grid is that of the summed batches, not a mean of each batch's best."""
    scales, accuracy = jnp.array([-1.0, 1.0, 2.0]), toys.accuracy("student")

    def evaluate(variables, batch):
        total, weight, _ = accuracy(variables, batch)["accuracy"]
        hit = jnp.stack([weight - total, total, total])
        return {"grid": Term(hit, weight)}

    def conclude(means):
        best = jnp.argmax(means["grid"])
        return {"accuracy": means["grid"].max(), "scale": scales[best]}

    split = toys.Split(toys.problem(), size)
    plain = Validation(accuracy, split, 5)
    grid = Validation(evaluate, split, 5, conclude=conclude)
    rows = []
    for validation in (plain, grid):
        writer = MetricWriter(None)
        toys.train(
            annealed(),
            pair(),
            10,
            memory={"n": jnp.int32(7)},
            validation=validation,
            metrics=writer,
        )
        rows.append([r for r in writer.rows if r["kind"] == "validation"])
    assert [r["step"] for r in rows[1]] == [5, 10]
    for one, other in zip(*rows):
        assert other["accuracy"] == pytest.approx(max(one["accuracy"], 1 - one["accuracy"]))
        assert other["scale"] == (1.0 if one["accuracy"] > 0.5 else -1.0)
    missing = Validation(evaluate, split, 5, "f1", conclude)
    with pytest.raises(ValueError, match="score 'f1' is not among the metrics"):
        toys.train(annealed(), pair(), 5, memory={"n": jnp.int32(7)}, validation=missing)


def remembering(every, program=None):
    """A stage that counts its evaluations, and keeps their accuracies in the order they came."""

    def after(memory, means):
        heard = memory["heard"].at[memory["count"]].set(means["accuracy"])
        return {"count": memory["count"] + 1, "heard": heard}

    split, writer = toys.Split(toys.problem(), 40), MetricWriter(None)
    outcome = toys.train(
        program or annealed(),
        pair(),
        10,
        memory={"count": jnp.int32(0), "heard": jnp.full(8, jnp.nan)},
        validation=Validation(toys.accuracy("student"), split, every, after=after),
        metrics=writer,
    )
    logged = [row["accuracy"] for row in writer.rows if row["kind"] == "validation"]
    heard = np.asarray(outcome.memory["heard"])
    return outcome, heard[: int(outcome.memory["count"])], logged


def test_the_program_remembers_every_evaluation_and_one_before_the_first_step():
    student = pair()["student"]
    outcome, heard, logged = remembering(4)
    split = toys.Split(toys.problem(), 96)
    batch = split.assemble(split.table, next(iter(split.items())))
    accuracy = toys.accuracy("student")({"student": student}, batch)["accuracy"]
    assert len(logged) == 3  # steps 4, 8 and 10
    np.testing.assert_allclose(heard, [accuracy.total / accuracy.weight, *logged], rtol=1e-6)
    assert int(outcome.selected_step) in (4, 8, 10)  # the first one selects nothing


def test_evaluations_past_an_early_end_are_not_remembered():
    program = toys.program(stop=lambda context: context.step >= 4)
    _, heard, logged = remembering(2, program=program)
    assert len(heard) == 1 + len(logged) < 6


def test_what_is_remembered_does_not_compile_the_step_again_and_keeps_its_type():
    program = annealed()
    remembering(3, program=program)
    assert compilations(program) == [1]
    validation = Validation(
        toys.accuracy("student"),
        toys.Split(toys.problem(), 40),
        3,
        after=lambda memory, means: {"n": means["accuracy"]},
    )
    with pytest.raises(ValueError, match=r"memory\['n'\]: int32\[\] became float32\[\]"):
        toys.train(annealed(), pair(), 5, memory={"n": jnp.int32(7)}, validation=validation)
