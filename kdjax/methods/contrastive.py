"""Contrastive training of a dual encoder on pairs alone. Every teacher, and the baseline.

CLIP, Radford et al. 2021 (arXiv:2103.00020): in a batch of B pairs each image is to find its text
among B, and each text its image, at a temperature that is learned.

    L = -1/(2B) sum_i ( log softmax_j(s x_i . y_j)_i + log softmax_j(s x_j . y_i)_i )

With micro-batches the gradient is that of the whole batch (gradient caching, Gao et al. 2021,
arXiv:2101.06983), but for batch normalisation, which sees a micro-batch at a time.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Generator

import jax.numpy as jnp

from kdjax import losses
from kdjax.methods.retrieval_task import FIELDS, RetrievalTask, one_text
from kdjax.methods.task import Fields, Trained, inputs
from kdjax.networks import Network
from kdjax.training import Evaluation, Program, Stage, Term, Update, mean
from kdjax.training.optimizers import Training

TASKS = ("retrieval",)


@dataclasses.dataclass(frozen=True)
class Config:
    """Nothing to choose: how a role is trained is the task's, the temperature is learned."""


def embed(role: str, network: Network, fields: Fields = FIELDS):
    """An update's `embed`: the unit vectors of a role's pairs, `image` and `text` `[B, D]`."""

    def embeddings(variables, batch, context):
        x = inputs(batch["train"], fields)
        out = network.apply(variables[role], *x, train=True, rng=context.rng)
        return {name: out.output[name] for name in ("image", "text")}, {role: out.variables}

    return embeddings


def scale_of(network: Network, variables):
    """1 / temperature of a dual encoder, differentiable; no tower is run."""
    return network.apply(variables, None, None, None).output["scale"]


@functools.lru_cache(maxsize=64)
def program(role: str, network: Network, training: Training, fields: Fields = FIELDS) -> Program:
    """One update of one role on the stream `train`."""
    embedded = embed(role, network, fields)

    def prepare(variables, batch, context):
        return {**batch, "train": one_text(batch["train"], context.rng)}, context.memory

    def objective(variables, batch, context):
        found, new = batch.get("embeddings"), {}
        if found is None:
            found, new = embedded(variables, batch, context)
        where, scale = batch["train"]["where"], scale_of(network, variables[role])
        loss = losses.clip_info_nce(found["image"], found["text"], scale=scale, where=where)
        return Evaluation(
            {"info_nce": mean(loss, where)}, new, metrics={"scale": Term(scale, scale * 0 + 1)}
        )

    update = Update(
        objective,
        (role,),
        training.transformation,
        microbatches=training.microbatches,
        batchwise=True,
        embed=embedded if training.microbatches > 1 else None,
        loss_scale=training.scaling,
    )
    return Program((update,), prepare=prepare, schedules=training.schedules)


@functools.lru_cache(maxsize=64)
def matching_program(
    role: str, network: Network, training: Training, fields: Fields = FIELDS
) -> Program:
    """One update of a cross-encoder: the same loss of its scores, at a temperature of 1."""

    def prepare(variables, batch, context):
        return {**batch, "train": one_text(batch["train"], context.rng)}, context.memory

    def objective(variables, batch, context):
        x = inputs(batch["train"], fields)
        out = network.apply(variables[role], *x, train=True, rng=context.rng)
        where, own = batch["train"]["where"], jnp.arange(len(batch["train"]["where"]))
        # A row of padding keeps its own column, so that it is finite; it has no weight.
        known = where[None, :] | jnp.eye(len(own), dtype=bool)
        both = [
            losses.cross_entropy(jnp.where(known, s, -jnp.inf), own)
            for s in (out.output["score"], out.output["score"].T)
        ]
        return Evaluation({"matching": mean(sum(both) / 2, where)}, {role: out.variables})

    update = Update(
        objective,
        (role,),
        training.transformation,
        microbatches=training.microbatches,
        batchwise=True,
        loss_scale=training.scaling,
    )
    return Program((update,), prepare=prepare, schedules=training.schedules)


def stage(task: RetrievalTask, role: str, name: str) -> Stage:
    """The stage that trains `role` on the pairs."""
    training = task.training[role]
    made = matching_program if task.crosses(role) else program
    return Stage(
        name,
        made(role, task.networks[role], training, task.reads(role)),
        {role: task.start(role)},
        {"train": task.stream(role)},
        training.steps,
        validation=task.validation(role),
    )


def teacher(task: RetrievalTask) -> Generator:
    """The variables of the teacher: given ones, or those a stage `teacher` trains."""
    if "teacher" in task.given:
        return task.given["teacher"]
    outcome = yield stage(task, "teacher", "teacher")
    return outcome.selected["teacher"]


def recipe(task: RetrievalTask, config: Config) -> Generator:
    """The student alone."""
    outcome = yield stage(task, "student", "contrastive")
    return Trained.of(outcome, "student")
