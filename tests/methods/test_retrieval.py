"""Dual encoders: what a retrieval task promises, and contrastive training as its baseline."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import retrieval_toys

from kdjax import data, losses, methods, networks
from kdjax.methods import contrastive
from kdjax.methods.retrieval_task import RetrievalTask, one_text, teach
from kdjax.training import run
from kdjax.training.gradients import gradient
from kdjax.training.optimizers import Training
from kdjax.training.stage import Context
from kdjax.training.state import pick


@pytest.fixture(scope="module")
def pairs():
    return retrieval_toys.pairs()


@pytest.fixture(scope="module")
def task(pairs):
    options = dict(image=dict(name="mlp", widths=(16,)), embedding=8)
    nets = {
        role: networks.build("dual_encoder", 257, text=dict(width=w, depth=1, heads=2), **options)
        for role, w in (("teacher", 16), ("student", 8))
    }
    training = {role: Training(steps=60, batch_size=16, learning_rate=1e-2) for role in nets}
    return RetrievalTask(pairs, nets, training, validate_every=30)


def context(rng=0):
    return Context({}, jax.random.key(rng), jnp.int32(0), {})


def batch_of(task):
    stream = task.stream("student")
    return stream.assemble(stream.table, next(stream.items()))


@pytest.mark.slow
def test_contrastive_training_finds_pairs_of_texts_it_has_not_seen(task):
    first = run(contrastive.recipe(task, contrastive.Config()))
    before, after = (
        task.scores("student", x, None) for x in (task.variables("student"), first.last)
    )
    assert after["recall_at_5"] > before["recall_at_5"] + 0.1
    assert after["median_rank"] < before["median_rank"]
    assert first.last["params"]["log_scale"] != np.float32(-np.log(0.07))


@pytest.mark.slow
def test_scores_are_those_of_the_embeddings_one_by_one(task):
    variables, network = task.variables("student"), task.networks["student"]
    test = task.dataset.splits["test"].arrays()
    cosine = np.empty((20, 40))
    for i, (image, tokens, segments) in enumerate(zip(*(test[n] for n in task.reads("student")))):
        x = jnp.asarray(image[None]) / 255
        cosine[i] = np.nan
        out = [
            network.apply(variables, x, t[None], s[None]).output for t, s in zip(tokens, segments)
        ]
        for k in (0, 1):
            np.testing.assert_allclose(np.linalg.norm(out[k]["text"]), 1, rtol=1e-5)
        cosine[i, 2 * i : 2 * i + 2] = [(o["image"] * o["text"]).sum() for o in out]
    found = task.predict("student", variables)
    known = np.isfinite(cosine)
    np.testing.assert_allclose(found[known], cosine[known], atol=1e-5)
    scores = task.scores("student", variables, found)
    assert scores["agreement"] == 1.0
    assert scores["spearman"] == pytest.approx(1.0)
    own = found[np.arange(20).repeat(2), np.arange(40)]
    rank = 1 + (found > own).sum(0) + ((found == own).sum(0) - 1) / 2
    assert scores["image_recall_at_5"] == pytest.approx((rank <= 5).mean())
    assert scores["image_median_rank"] == np.median(rank)
    opposite = task.scores("student", variables, -found)
    assert opposite["spearman"] == pytest.approx(-1.0)


def gradients(task, batch, parts):
    training = dataclasses.replace(task.training["student"], microbatches=parts)
    program = contrastive.program("student", task.networks["student"], training)
    (update,) = program.updates
    live = {"student": task.variables("student")}

    @jax.jit
    def compute(live, batch):
        ready, _ = program.prepare(live, {"train": batch}, context())
        return gradient(update, pick(live, update.trains), live, {}, ready, context()).gradient

    return compute(live, batch)


def test_micro_batches_and_padding_do_not_change_the_gradient(task):
    batch = batch_of(task)
    batch["tokens"], batch["segments"] = batch["tokens"][:, :1], batch["segments"][:, :1]
    whole = gradients(task, batch, 1)
    padded = jax.tree.map(lambda x: jnp.concatenate([x, jnp.zeros_like(x)]), batch)
    padded["where"] = padded["where"].at[16:].set(False)
    other = gradients(task, padded, 4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), other, whole)
    assert any(np.abs(x).max() > 1e-3 for x in jax.tree.leaves(whole))


@pytest.mark.slow
def test_the_term_is_clips_loss_of_the_pairs(task):
    variables, network = {"student": task.variables("student")}, task.networks["student"]
    program = contrastive.program("student", network, task.training["student"])
    batch, _ = program.prepare(variables, {"train": batch_of(task)}, context())
    term = program.updates[0].objective(variables, batch, context()).terms["info_nce"]
    x = batch["train"]
    out = network.apply(variables["student"], x["image"], x["tokens"], x["segments"]).output
    expected = losses.clip_info_nce(out["image"], out["text"], scale=1 / 0.07)
    np.testing.assert_allclose(term.total / term.weight, expected.mean(), rtol=1e-4)


def test_each_step_draws_one_text_an_image():
    tokens = jnp.arange(64 * 3).reshape(64, 3, 1)
    batch = {"image": jnp.zeros(64), "tokens": tokens, "segments": tokens, "teacher_text": tokens}
    drawn = one_text(batch, jax.random.key(0))
    chosen = drawn["tokens"][:, 0] - tokens[:, 0, 0]
    assert set(chosen.tolist()) == {0, 1, 2}
    for name in ("segments", "teacher_text"):  # the same text everywhere
        np.testing.assert_array_equal(drawn[name], drawn["tokens"])
    np.testing.assert_array_equal(one_text(batch)["tokens"], tokens[:, 0])


@pytest.mark.slow
def test_a_cached_teacher_says_what_a_live_one_does(task):
    teacher = task.variables("teacher")
    cached = dataclasses.replace(task, cache_teacher=True)
    (node,) = [cached.taught(teacher).send(None)]
    fields = node.function(np.random.default_rng(0))
    assert {n: x.shape for n, x in fields.items()} == {n: x.shape for n, x in node.shapes.items()}
    stream = cached.stream("student", fields=fields)
    batch = stream.assemble(stream.table, next(stream.items()))
    prepare = teach(task.networks["teacher"])
    kept, _ = prepare({}, {"train": batch}, context(3))
    live, _ = prepare({"teacher": teacher}, {"train": batch_of(task)}, context(3))
    for name in ("teacher_image", "teacher_text"):
        np.testing.assert_allclose(kept["train"][name], live["train"][name], atol=1e-5)


def test_what_is_no_dual_encoder_or_no_retrieval_method_is_refused(task, pairs):
    augmented = dataclasses.replace(task.training["student"], augment=data.augmentations(["flip"]))
    training = {**task.training, "student": augmented}
    with pytest.raises(ValueError, match="cache_teacher keeps one embedding an image"):
        dataclasses.replace(task, training=training, cache_teacher=True)
    mlp = networks.from_function(lambda p, *x: x[0] * p["w"], params={"w": jnp.ones(())})
    with pytest.raises(ValueError, match="the student must be a dual encoder"):
        dataclasses.replace(task, networks={**task.networks, "student": mlp})
    with pytest.raises(ValueError, match="contrastive is for retrieval tasks"):
        methods.check_task("contrastive", "classification")
    with pytest.raises(ValueError, match="kd is for classification tasks"):
        methods.check_task("kd", "retrieval")


@pytest.mark.slow
def test_padding_of_a_text_has_no_influence(task):
    network, variables = task.networks["student"], task.variables("student")
    tokens = jnp.array([[1, 2, 3, 256]])
    segments = jnp.array([[1, 1, 1, 0]])
    texts = [
        network.apply(variables, None, t, s).output["text"]
        for t, s in (
            (tokens, segments),
            (tokens.at[0, 3].set(9), segments),
            (tokens[:, :3], segments[:, :3]),
        )
    ]
    np.testing.assert_array_equal(texts[0], texts[1])
    np.testing.assert_allclose(texts[0], texts[2], atol=1e-6)
