"""What a teacher with a cache of labelled images answers, and what its training moves."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.methods import dho, tip_adapter, zero_shot
from kdjax.methods.task import Task
from kdjax.training import MetricWriter, run


@pytest.fixture
def zero(task, digits):
    """A task with a zero-shot teacher: mean images with noise."""
    train = digits.splits["train"].arrays()
    images = train["image"].reshape(len(train["image"]), -1) / 255.0
    means = np.stack([images[train["label"] == c].mean(0) for c in range(10)])
    means = means + 0.22 * np.random.default_rng(0).normal(size=means.shape)
    teacher = dataclasses.replace(task.training["teacher"], steps=20, learning_rate=1e-2)
    nets = {**task.networks, "teacher": tip_adapter.classifier(10, scale=20.0)}
    made = Task(digits, nets, {**task.training, "teacher": teacher}, validate_every=3)
    embeddings = jnp.asarray(means, jnp.float32)
    return made.with_teacher({"params": {"class_embeddings": embeddings}})


def accuracy(task, variables, split, rows=slice(None)):
    labels = task.dataset.splits[split].labels()
    return np.mean(task.predict("teacher", variables, split).argmax(1)[rows] == labels[rows])


def test_a_cache_that_weighs_nothing_leaves_the_zero_shot_answers(zero):
    variables = zero.given["teacher"]
    cached = tip_adapter.with_cache(variables, jnp.ones((3, 64)), jnp.arange(3))
    x = jnp.asarray(np.random.default_rng(0).random((4, 8, 8, 1)), jnp.float32)
    nets = zero_shot.classifier(10, scale=20.0), tip_adapter.classifier(10, scale=20.0, alpha=0.0)
    one, other = (
        net.apply(v, x).output["logits"] for net, v in zip(nets, (variables, cached), strict=True)
    )
    np.testing.assert_allclose(one, other, rtol=1e-5)
    net = tip_adapter.classifier(10, scale=20.0, alpha=2.0)
    assert np.abs(net.apply(cached, x).output["logits"] - one)[:, :3].min() > 0.1


def test_training_moves_the_keys_alone_from_the_features_of_the_labelled_images(zero):
    rows = dho.labeled_rows(zero, 4)
    train, given, metrics = zero.dataset.splits["train"], zero.given["teacher"], MetricWriter(None)
    images = train.arrays()["image"][rows].reshape(len(rows), -1) / 255.0
    start = tip_adapter.with_cache(given, images, train.labels()[rows])
    np.testing.assert_allclose(np.linalg.norm(start["params"]["keys"], axis=1), 1, rtol=1e-5)
    found = run(tip_adapter.teacher(zero, rows), metrics=metrics)
    assert jax.tree.structure(found) == jax.tree.structure(start)
    moved = np.abs(found["params"]["keys"] - start["params"]["keys"])
    assert 0 < moved.max() < 0.5  # twenty steps of Adam at 0.01
    np.testing.assert_array_equal(
        found["params"]["class_embeddings"], given["params"]["class_embeddings"]
    )
    np.testing.assert_array_equal(found["cache"]["values"], np.eye(10)[train.labels()[rows]])
    bare = tip_adapter.with_cache(given, np.zeros_like(images), train.labels()[rows])
    assert accuracy(zero, bare, "train", rows) < 0.9 < accuracy(zero, found, "train", rows)


def test_a_network_of_its_own_start_has_a_key_a_class(zero):
    net, x = zero.networks["teacher"], jnp.ones((1, 8, 8, 1))
    variables = net.init(jax.random.key(0), x)
    assert variables["params"]["keys"].shape == (10, 64)
    np.testing.assert_array_equal(variables["cache"]["values"], np.eye(10))
    assert net.apply(variables, x).output["logits"].shape == (1, 10)
