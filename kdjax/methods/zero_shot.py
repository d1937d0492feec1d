"""Teachers that need no training, or a few labels: an encoder and one embedding a class.

A zero-shot classifier (Radford et al. 2021, CLIP, arXiv:2103.00020) is made of an image encoder
and the embeddings of the class names (`losses.zero_shot_class_embeddings`). CLAP
(Silva-Rodriguez et al. 2024, arXiv:2312.12730) moves these embeddings by a few labels, held near
their start, class by class, by how well it did:

    L = mean CE(scale n(f) . n(w), label) + mean_c a_c |w_c - w0_c|^2
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from kdjax import losses
from kdjax.methods.task import Fields, inputs
from kdjax.networks import Applied, Network
from kdjax.training import Evaluation, Program, Update, mean, traced
from kdjax.training.optimizers import Training

PyTree = Any


@functools.lru_cache(maxsize=64)
def classifier(num_classes: int, encoder: Network | None = None, scale: float = 100.0) -> Network:
    """A network of an image encoder and embeddings of the classes.

    Its `params` are `class_embeddings`, `[C, D]`, and the encoder's under `encoder`, whose other
    collections come under `encoder` too; its output has `logits` and `features`.

    Args:
      num_classes: C.
      encoder: a network whose output is features `[B, D]`, or a dict with them under `features`;
        None: the image itself, flattened.
      scale: of the cosines, > 0; 1 / temperature.
    """

    def parts(variables: Mapping[str, PyTree]) -> dict[str, PyTree]:
        return {name: x["encoder"] for name, x in variables.items() if "encoder" in x}

    def encode(variables, *x, **options):
        if encoder is None:
            return x[0].reshape(len(x[0]), -1), {}
        output = encoder.apply(variables, *x, **options).output
        return output["features"] if isinstance(output, Mapping) else output, {}

    def init(rng, *x):
        inner = {} if encoder is None else encoder.init(rng, *x)
        features = jax.eval_shape(lambda v: encode(v, *x)[0], inner)
        shape = num_classes, features.shape[-1]
        variables = {name: {"encoder": x} for name, x in inner.items()}
        embeddings = jax.random.normal(jax.random.fold_in(rng, 1), shape)
        return {
            **variables,
            "params": {**variables.get("params", {}), "class_embeddings": embeddings},
        }

    def apply(variables, *x, train=False, rng=None, taps=(), edits=None):
        if taps or edits:
            raise ValueError("a zero-shot classifier has no taps; its output has the features")
        features, _ = encode(parts(variables), *x)  # frozen: never in training mode
        embeddings = variables["params"]["class_embeddings"]
        logits = losses.clip_zero_shot_logits(features, embeddings, scale=scale)
        return Applied({"logits": logits, "features": features}, variables, {})

    return Network(init, apply)


@functools.lru_cache(maxsize=64)
def clap(network: Network, training: Training, fields: Fields = "image") -> Program:
    """One update of the class embeddings of the role `teacher`, on the stream `labeled`.

    The frozen role `anchor` holds `class_embeddings`, w0, and `class_weights`, a.
    """

    def objective(variables, batch, context):
        batch, anchor = batch["labeled"], variables["anchor"]
        out = network.apply(variables["teacher"], *inputs(batch, fields)).output
        where = batch["where"] & losses.valid_labels(batch["label"], out["logits"].shape[-1])
        embeddings = variables["teacher"]["params"]["class_embeddings"]
        held = losses.clap_constraint(
            embeddings, anchor["class_embeddings"], anchor["class_weights"]
        )
        # Every micro-batch has all of it: weighed as its examples are, it counts once.
        counted = jnp.sum(where.astype(jnp.float32))
        return Evaluation(
            {
                "cross_entropy": mean(losses.cross_entropy(out["logits"], batch["label"]), where),
                "constraint": mean(jnp.mean(held) * jnp.ones_like(counted), counted),
            }
        )

    update = Update(
        objective,
        ("teacher:^class_embeddings",),
        training.transformation,
        microbatches=training.microbatches,
    )
    return Program((update,), schedules=training.schedules, values=traced.names(training))
