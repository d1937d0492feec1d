"""Tip-Adapter-F: a zero-shot teacher that a few labelled images have taught.

Zhang et al. 2022, "Tip-Adapter: Training-free Adaption of CLIP for Few-shot Classification"
(arXiv:2207.09519).

    l = scale n(f) . n(w) + alpha sum_n exp( -beta (1 - n(f) . k_n) ) v_n       n(x) = x / |x|

The cache of labelled images has a key, its feature, and a value, its label, for each of them.
Cross-entropy on the same images then moves the keys; encoder, class embeddings and values stay.
DHO's few-shot teacher (arXiv:2505.07675, "DHO-F"). The authors search alpha and beta on validation
images; here they are given.
"""

from __future__ import annotations

import functools
from collections.abc import Generator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kdjax import losses
from kdjax.methods import dho, supervised, zero_shot
from kdjax.methods.task import Task
from kdjax.networks import Network
from kdjax.training import Compute, Stage, traced

PyTree = Any


@functools.lru_cache(maxsize=64)
def classifier(
    num_classes: int,
    encoder: Network | None = None,
    scale: float = 100.0,
    alpha: float = 1.0,
    beta: float = 5.5,
) -> Network:
    """A `zero_shot.classifier` with a cache.

    Its `params` have `keys` besides, `[N, D]`, and the collection `cache` has `values`, `[N, C]`.
    `init` makes the cache of one random key a class; that of labelled images: `with_cache`.

    Args:
      num_classes, encoder, scale: of the zero-shot classifier.
      alpha, beta: of `losses.tip_adapter_logits`.
    """
    bare = zero_shot.classifier(num_classes, encoder, scale)

    def init(rng, *x):
        variables = bare.init(rng, *x)
        shape = variables["params"]["class_embeddings"].shape
        keys = jax.random.normal(jax.random.fold_in(rng, 2), shape)
        return with_cache(variables, keys, jnp.arange(num_classes))

    def apply(variables, *x, **options):
        out, params = bare.apply(variables, *x, **options), variables["params"]
        logits = losses.tip_adapter_logits(
            losses.l2_normalize(out.output["features"]),
            params["keys"],
            variables["cache"]["values"],
            losses.l2_normalize(params["class_embeddings"]),
            alpha=alpha,
            beta=beta,
            scale=scale,
        )
        return out._replace(output={**out.output, "logits": logits})

    return Network(init, apply)


def with_cache(variables: PyTree, features: jax.Array, labels: jax.Array) -> PyTree:
    """The variables of a `zero_shot.classifier` with a cache of these images.

    Args:
      variables: with `class_embeddings`, `[C, D]`.
      features: floats [N, D]; the keys are these at unit length.
      labels: integers [N] in [0, C).
    """
    params = variables["params"]
    values = jax.nn.one_hot(jnp.asarray(labels), len(params["class_embeddings"]))
    keys = losses.l2_normalize(jnp.asarray(features, jnp.float32))
    return {**variables, "params": {**params, "keys": keys}, "cache": {"values": values}}


def teacher(task: Task, rows: np.ndarray) -> Generator:
    """The teacher of a task, a `classifier`, made of its given zero-shot one and labelled images.

    Args:
      task: has the zero-shot classifier's variables as its teacher; the keys are trained as its
        role `teacher` is.
      rows: which images of `train` are labelled.

    Returns:
      The variables after the last step.
    """
    given, labels = task.given["teacher"], task.dataset.splits["train"].labels()[rows]
    size = jax.ShapeDtypeStruct(
        (len(rows), given["params"]["class_embeddings"].shape[1]), jnp.float32
    )
    bare = with_cache(given, np.zeros(size.shape, np.float32), labels)
    found = yield Compute(
        "cache",
        lambda rng: {"features": dho.answers(task, bare, "train", "teacher")["features"][rows]},
        shapes={"features": size},
    )
    training = task.training["teacher"]
    fixed = traced.static(training), traced.static(supervised.Config())
    outcome = yield Stage(
        "keys",
        supervised.program(
            "teacher", task.networks["teacher"], *fixed, task.reads("teacher"), "^keys"
        ),
        {"teacher": with_cache(given, found["features"], labels)},
        {"train": task.stream("teacher", "train", name="labeled", indices=rows)},
        training.steps,
        values=traced.values(training, supervised.Config()),
    )
    return outcome.variables["teacher"]
