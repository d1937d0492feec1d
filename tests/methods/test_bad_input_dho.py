"""DHO: fewer unlabelled than labelled images, and features of length 0."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from kdjax import networks
from kdjax.methods import dho, zero_shot


def test_where_fewer_images_are_unlabelled_they_come_again_and_the_steps_are_the_students(task):
    train = task.dataset.splits["train"]
    shots = int(np.bincount(train.labels()).min()) - 1
    nets = {**task.networks, "teacher": zero_shot.classifier(10, scale=20.0)}
    words = {"params": {"class_embeddings": jnp.ones((10, 64))}}
    taught = dataclasses.replace(task, networks=nets).with_teacher(words)
    config = dho.Config(labels_per_class=shots, labeled_batch_size=64, unlabeled="rest")
    stage = dho.recipe(taught, config).send(None)
    rows = dho.labeled_rows(taught, shots)
    left = len(train) - len(rows)
    assert left < len(rows)
    assert stage.steps == task.training["student"].steps
    items, size = stage.data["unlabeled"].items(), task.training["student"].batch_size
    seen = np.concatenate([next(items)["row"] for _ in range(-(-2 * left // size))])
    assert not np.isin(seen, rows).any()
    assert np.bincount(seen[: 2 * left], minlength=len(train)).max() == 2  # an epoch, and one more


def test_a_feature_of_length_0_is_like_no_class_and_has_a_finite_gradient():
    network = dho.two_heads(networks.build("mlp", 3, widths=(4,)), 3, "aligned")
    x = jnp.ones((2, 5))
    variables = network.init(jax.random.key(0), x)
    variables["params"]["dense0"]["bias"] = jnp.full(4, -1e3)  # no unit is active

    def found(params):
        return network.apply({**variables, "params": params}, x).output

    @jax.jit
    def slopes_of(params):
        pull_back = jax.grad(lambda p: (jnp.sum(found(p)["logits"][:, 0]), found(p)), has_aux=True)
        return pull_back(params)

    slopes, output = slopes_of(variables["params"])
    assert not np.any(output["features"])
    assert not np.any(output["kd_logits"])
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(slopes))
