"""CPRD's queue: what it holds, who reads it, and that a run with one goes on where it stopped."""

import dataclasses
import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import retrieval_toys

from kdjax.methods import cprd
from kdjax.training import Settings, divide, run
from kdjax.training.gradients import gradient
from kdjax.training.stage import Context
from kdjax.training.state import pick

SIZE = 40  # more than two batches of 16 and less than the 48 pairs of an epoch
CONFIG = cprd.Config(candidates=4, queue=SIZE, momentum=0.75)
STILL = dataclasses.replace(CONFIG, momentum=1.0)  # encoders that stay as they were


@pytest.fixture(scope="module")
def task():
    return retrieval_toys.crossed()


def stage_of(task, config=CONFIG):
    return cprd.recipe(task, config).send(None)


def outcome_of(task, config, steps=3):
    """The first steps of a stage that would be longer, without validation."""

    def recipe():
        stage = stage_of(task, config)
        return (yield dataclasses.replace(stage, steps=steps, validation=None))

    return run(recipe())


def batches(stage, number):
    stream = stage.data["train"]
    items = stream.items()
    return [stream.assemble(stream.table, next(items)) for _ in range(number)]


@pytest.fixture(scope="module")
def three_steps(task):
    return outcome_of(task, STILL)


def first_texts(batch):
    return {**batch, **{name: batch[name][:, :1] for name in ("tokens", "segments")}}


@pytest.fixture(scope="module")
def compute(task):
    """`(batch, queue, config, parts) -> Result` of a step in which momentum is not the student."""
    other = dataclasses.replace(task, seed=1)
    live = {"student": task.variables("student"), "momentum": other.variables("student")}
    frozen = {"teacher": task.variables("teacher")}

    @functools.cache
    def compiled(config, parts):
        training = dataclasses.replace(task.training["student"], microbatches=parts)
        nets = (task.networks[role] for role in ("student", "teacher"))
        program = cprd.program(*nets, training, config)
        (update,) = program.updates

        def step(live, frozen, batch, queue):
            context = Context(queue, jax.random.key(0), jnp.int32(0), {})
            ready, _ = program.prepare({**live, **frozen}, {"train": batch}, context)
            return gradient(update, pick(live, update.trains), live, frozen, ready, context)

        return jax.jit(step)

    def evaluate(batch, queue, config=CONFIG, parts=1):
        return compiled(config, parts)(live, frozen, batch, queue)

    return evaluate


def term(result, name):
    return float(divide(*result.metrics[f"loss/{name}"][:2]))


def test_without_a_queue_there_is_neither_memory_nor_momentum(task):
    stage = stage_of(task, cprd.Config(candidates=4))
    assert stage.memory == {}
    assert "momentum" not in stage.variables
    assert stage.program.live == ("student",)
    assert stage.program.updates[0].after is None


def test_the_queue_holds_the_last_pairs_and_what_the_encoders_made_of_them(task, three_steps):
    seen = batches(stage_of(task), 3)
    ids = np.concatenate([batch["id"] for batch in seen])
    queue = outcome_of(task, STILL, 1).memory
    assert queue.where.tolist() == [False] * (SIZE - 16) + [True] * 16
    assert queue.id[-16:].tolist() == ids[:16].tolist()
    queue = three_steps.memory
    assert queue.where.all()
    assert queue.id.tolist() == ids[-SIZE:].tolist()
    images = np.concatenate([batch["image"] for batch in seen])[-SIZE:]
    np.testing.assert_array_equal(queue.inputs["image"], images)
    # Each text is one of the two of its image.
    of_image = np.concatenate([batch["tokens"] for batch in seen])[-SIZE:]
    assert (queue.inputs["tokens"][:, None] == of_image).all(-1).any(1).all()
    read = [queue.inputs[name] for name in task.reads("teacher")]
    out = task.networks["student"].apply(task.variables("student"), *read).output
    np.testing.assert_allclose(queue.image, out["image"], atol=1e-5)
    np.testing.assert_allclose(queue.text, out["text"], atol=1e-5)


def test_momentum_encoders_are_the_average_of_the_student(task):
    start = task.variables("student")["params"]
    after = outcome_of(task, CONFIG, 1).variables
    assert any(np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (start, after["student"]))))
    jax.tree.map(
        lambda m, a, b: np.testing.assert_allclose(m, 0.75 * a + 0.25 * b, atol=1e-6),
        after["momentum"]["params"],
        start,
        after["student"]["params"],
    )


def test_of_what_was_filled_the_last_places_are_kept_and_padding_takes_none():
    def queue(numbers, where):
        x = jnp.array(numbers, jnp.float32)[:, None]
        return cprd.Queue(x, -x, {"tokens": x}, jnp.array(numbers), jnp.array(where))

    kept = queue([0, 1, 2], [False, True, True]).followed_by(queue([3, 4], [True, False]))
    assert (kept.id.tolist(), kept.where.tolist()) == ([1, 2, 3], [True] * 3)
    assert kept.text[:, 0].tolist() == [-1, -2, -3]
    many = kept.followed_by(queue([5, 6, 7, 8], [True] * 4))  # more than it has places for
    assert many.id.tolist() == many.inputs["tokens"][:, 0].tolist() == [6, 7, 8]


def test_equal_texts_and_other_texts_of_an_image_are_no_negatives():
    queries = {
        "tokens": jnp.array([[1, 1], [2, 2], [3, 3]]),
        "id": jnp.array([0, 1, 2]),
        "where": jnp.array([True, True, False]),
    }
    items = {
        "tokens": jnp.array([[1, 1], [1, 2], [9, 9], [8, 8]]),
        "id": jnp.array([7, 1, 0, 6]),
        "where": jnp.array([True, True, True, False]),
    }
    assert cprd.others(queries, items).tolist() == [
        [False, True, False, False],
        [True, False, True, False],
        [False] * 4,
    ]


@pytest.mark.parametrize("filled", [True, False])
def test_both_losses_are_those_of_batch_and_queue_pair_by_pair(task, compute, three_steps, filled):
    queue, batch = three_steps.memory, first_texts(batches(stage_of(task), 4)[-1])
    student, teacher = (task.networks[role] for role in ("student", "teacher"))
    variables = {role: task.variables(role) for role in ("student", "teacher")}
    momentum = dataclasses.replace(task, seed=1).variables("student")
    made = student.apply(momentum, *(queue.inputs[n] for n in task.reads("student"))).output
    queue = queue._replace(image=made["image"], text=made["text"])
    if not filled:
        queue = queue._replace(where=jnp.arange(SIZE) >= 20)
    found = compute(batch, queue)
    queue, batch = jax.tree.map(np.asarray, (queue, batch))
    text = {name: batch[name][:, 0] for name in ("tokens", "segments")}
    read = (batch["image"], text["tokens"], text["segments"])
    query, key = (
        jax.tree.map(np.asarray, student.apply(v, *read).output)
        for v in (variables["student"], momentum)
    )
    every = {
        n: np.concatenate([{**batch, **text}[n], queue.inputs[n]]) for n in task.reads("teacher")
    }
    scores = np.asarray(teacher.apply(variables["teacher"], *every.values()).output["score"])
    ids = np.concatenate([batch["id"], queue.id])
    real = np.concatenate([np.ones(16, bool), queue.where])
    scale, taught, nce = float(query["scale"]), {}, {}
    masked, older = 0, {"image": 0, "text": 0}
    for one, other, of in (("image", "text", scores), ("text", "image", scores.T)):
        keys = np.concatenate([key[other], getattr(queue, other)])
        taught[one], nce[one] = [], []
        for i in range(16):
            s = scale * keys @ query[one][i]
            same = (ids == ids[i]) | (every["tokens"] == every["tokens"][i]).all(1)
            masked += (same[16:] & real[16:]).sum()
            against = real & ~(same & (np.arange(len(ids)) >= 16))
            nce[one].append(np.log(np.exp(s[against]).sum()) - s[i])
            pool = np.flatnonzero(real & ~same)
            mined = pool[np.argsort(-s[pool])[:4]]
            older[one] += (mined >= 16).sum()
            ranked = s[mined[np.argsort(-of[i, mined])]]
            taught[one].append(
                np.mean([np.log(np.exp(ranked[j:]).sum()) - ranked[j] for j in range(2)])
            )
    assert masked  # of the queue: the task repeats itself
    assert min(older.values()) > 8, older  # negatives that are from the queue
    assert term(found, "info_nce") == pytest.approx(np.mean([*nce.values()]), rel=1e-4)
    for one in ("image", "text"):
        expected = pytest.approx(np.mean(taught[one]), rel=1e-4)
        assert term(found, f"partial_ranking_of_{one}s") == expected


def test_micro_batches_and_padding_change_neither_gradient_nor_queue(task, compute, three_steps):
    queue, batch = three_steps.memory, first_texts(batches(stage_of(task), 4)[-1])
    whole = compute(batch, queue)
    padded = jax.tree.map(lambda x: jnp.concatenate([x, jnp.zeros_like(x)]), batch)
    padded["where"] = padded["where"].at[16:].set(False)
    other = compute(padded, queue, parts=4)
    close = functools.partial(np.testing.assert_allclose, atol=2e-5)
    jax.tree.map(close, other.gradient, whole.gradient)
    jax.tree.map(close, other.memory, whole.memory)
    assert any(np.abs(x).max() > 1e-3 for x in jax.tree.leaves(whole.gradient))


@pytest.mark.slow
def test_a_run_that_stopped_goes_on_with_its_queue(task, tmp_path):
    short = dataclasses.replace(task.training["student"], steps=8)
    task = dataclasses.replace(task, training={**task.training, "student": short})
    whole = run(cprd.recipe(task, CONFIG))

    def stop(stage, step):
        if step == 6:
            raise RuntimeError("stopped")

    settings = Settings(checkpoint_every=5)
    stopping = dataclasses.replace(settings, on_step=stop)
    with pytest.raises(RuntimeError, match="stopped"):
        run(cprd.recipe(task, CONFIG), workdir=tmp_path, settings=stopping)
    resumed = run(cprd.recipe(task, CONFIG), workdir=tmp_path, settings=settings)
    jax.tree.map(np.testing.assert_array_equal, resumed.last, whole.last)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(queue=-1), "queue must be at least 0, got -1"),
        (dict(queue=1.5), "queue must be an integer, got 1.5"),
        (dict(queue=True), "queue must be an integer, got True"),
        (dict(momentum=1.1), r"momentum must be in \[0, 1\], got 1.1"),
        (dict(momentum=float("nan")), r"momentum must be in \[0, 1\], got nan"),
    ],
)
def test_bad_queues_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        cprd.Config(**changes)


def test_more_candidates_than_batch_and_queue_have_are_refused(task, compute, three_steps):
    batch = first_texts(batches(stage_of(task), 1)[0])
    config = dataclasses.replace(CONFIG, candidates=16 + SIZE)
    message = "candidates=56 must be fewer than the 16 of a batch and the 40 of its queue"
    with pytest.raises(ValueError, match=message):
        compute(batch, three_steps.memory, config)


SCRIPT = """
import json
import jax
import numpy as np
import retrieval_toys
from kdjax.methods import cprd
from kdjax.training import Settings, run
from kdjax.training.optimizers import Training
from kdjax.training.sharding import Layout, make_mesh

jax.config.update("jax_disable_most_optimizations", True)
# Not Adam: where a gradient is zero but for rounding, its step is not.
task = retrieval_toys.crossed(Training(6, 16, "sgd", 0.1))
config = cprd.Config(candidates=4, queue=20, momentum=0.5)
layouts = [Layout(make_mesh(devices=jax.devices()[:1])), Layout(make_mesh())]

def states():
    for layout in layouts:
        def recipe():
            return (yield cprd.recipe(task, config).send(None)).load()
        state = run(recipe(), settings=Settings(layout=layout))
        yield {"variables": dict(state.variables), "queue": state.memory}

apart = jax.tree.map(
    lambda a, b: float(abs(np.float64(a) - np.float64(b)).max()), *states()
)
print(json.dumps([len(jax.devices()), max(jax.tree.leaves(apart))]))
"""


@pytest.mark.slow
def test_eight_devices_give_the_student_and_the_queue_of_one():
    flags = "--xla_force_host_platform_device_count=8"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    devices, apart = json.loads(done.stdout.splitlines()[-1])
    assert devices == 8
    assert apart < 1e-4
