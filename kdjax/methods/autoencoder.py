"""A variational autoencoder of a task's images: what latent views are made with.

Kingma and Welling 2014 (arXiv:1312.6114): the negative evidence lower bound, in nats an image,

    L = sum over pixels of CE(x, decoder(z)) + KL(N(m, e^v), N(0, 1)),   z = m + e^(v / 2) noise
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import optax

from kdjax import losses
from kdjax.data.augmentation import denormalize
from kdjax.methods.task import Task
from kdjax.networks import Network, VariationalAutoencoder, from_linen
from kdjax.training import Deferred, Evaluation, Program, Stage, Update, mean
from kdjax.training.optimizers import Training


@functools.lru_cache(maxsize=64)
def networks(
    shape: tuple[int, int, int], latent: int, hidden: int
) -> tuple[Network, Network, Network]:
    """The autoencoder, its encoder and its decoder: three networks of the same variables."""
    module = VariationalAutoencoder(shape, latent, hidden)
    whole, encode, decode = (from_linen(module, m) for m in ("__call__", "encode", "decode"))
    return whole, encode, decode


@functools.lru_cache(maxsize=64)
def program(
    network: Network, training: Training, latent: int, field: str, mean_pixel=None, std=None
) -> Program:
    """One update of the role `autoencoder` on the images of a batch, in [0, 1]."""

    def objective(variables, batch, context):
        batch = batch["train"]
        x = denormalize(batch[field], mean_pixel, std)
        noise = jax.vmap(
            lambda i: jax.random.normal(jax.random.fold_in(context.rng, i), (latent,))
        )(batch["id"])
        out = network.apply(variables["autoencoder"], x, noise).output
        missed = optax.sigmoid_binary_cross_entropy(out["logits"], x)
        kl = losses.standard_normal_kl(out["mean"], out["log_variance"])
        return Evaluation(
            {
                "reconstruction": mean(jnp.sum(missed, axis=(1, 2, 3)), batch["where"]),
                "kl": mean(kl, batch["where"]),
            }
        )

    update = Update(
        objective, ("autoencoder",), training.transformation, microbatches=training.microbatches
    )
    return Program((update,), schedules=training.schedules)


def stage(
    task: Task,
    network: Network,
    *,
    field: str,
    shape: tuple[int, int, int],
    latent: int,
    steps: int,
) -> Stage:
    """The stage `autoencoder`, on the student's images in an order of its own, Adam at 1e-3."""
    usual = task.training["student"]
    training = Training(
        steps=steps,
        batch_size=usual.batch_size,
        optimizer="adam",
        learning_rate=1e-3,
        microbatches=usual.microbatches,
    )
    examples = jnp.zeros((1, *shape)), jnp.zeros((1, latent))
    start = Deferred(network.init, (task.key("variables of autoencoder"), *examples))
    return Stage(
        "autoencoder",
        program(network, training, latent, field, task.mean, task.std),
        {"autoencoder": start},
        {"train": task.stream("student", name="autoencoder")},
        steps,
    )
