"""Supervised training: cross-entropy with the labels. Every teacher, and the baseline.

The loss of Szegedy et al. 2016 (arXiv:1512.00567) where `label_smoothing` is above zero.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Generator
from typing import ClassVar

import jax
import jax.numpy as jnp

from kdjax import losses
from kdjax.methods.task import Fields, Task, Trained, inputs
from kdjax.networks import Network, logits_of
from kdjax.training import Evaluation, Program, Stage, Update, mean, traced
from kdjax.training.optimizers import Training


@dataclasses.dataclass(frozen=True)
class Config:
    """Attributes:
    label_smoothing: in [0, 1).
    """

    traced: ClassVar[tuple[str, ...]] = ("label_smoothing",)
    label_smoothing: float = 0.0

    def __post_init__(self):
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing must be in [0, 1), got {self.label_smoothing}")


def label_loss(logits: jax.Array, batch: dict, label_smoothing: float = 0.0) -> jax.Array:
    """Cross-entropy with the labels of a batch, `[B]`; with both labels of a mixed example."""
    loss = losses.cross_entropy(logits, batch["label"], label_smoothing=label_smoothing)
    if "mix" not in batch:
        return loss
    other = losses.cross_entropy(logits, batch["partner_label"], label_smoothing=label_smoothing)
    return batch["mix"] * loss + (1 - batch["mix"]) * other


@functools.lru_cache(maxsize=64)
def program(
    role: str,
    network: Network,
    training: Training,
    config: Config,
    fields: Fields = "image",
    parameters: str = "",
) -> Program:
    """One update of one role on the stream `train`; of the parameters whose path has `parameters`.

    `parameters` is a regex; empty: all.
    """

    def objective(variables, batch, context):
        batch, c = batch["train"], traced.bind(config, context.values)
        out = network.apply(variables[role], *inputs(batch, fields), train=True, rng=context.rng)
        logits = logits_of(out.output)
        where = batch["where"] & losses.valid_labels(batch["label"], logits.shape[-1])
        correct = (jnp.argmax(logits, -1) == batch["label"]).astype(jnp.float32)
        return Evaluation(
            {"cross_entropy": mean(label_loss(logits, batch, c.label_smoothing), where)},
            {role: out.variables},
            metrics={"accuracy": mean(correct, where)},
        )

    update = Update(
        objective,
        (f"{role}:{parameters}" if parameters else role,),
        training.transformation,
        microbatches=training.microbatches,
        loss_scale=training.scaling,
    )
    values = traced.names(training, config)
    return Program((update,), schedules=training.schedules, values=values)


def stage(task: Task, role: str, name: str, config: Config = Config()) -> Stage:
    """The stage that trains `role` with the labels."""
    training = task.training[role]
    fixed = traced.static(training), traced.static(config)
    return Stage(
        name,
        program(role, task.networks[role], *fixed, task.reads(role)),
        {role: task.start(role)},
        {"train": task.stream(role)},
        training.steps,
        validation=task.validation(role),
        values=traced.values(training, config),
    )


def teacher(task: Task) -> Generator:
    """The variables of the teacher: given ones, or those a stage `teacher` trains."""
    if "teacher" in task.given:
        return task.given["teacher"]
    outcome = yield stage(task, "teacher", "teacher")
    return outcome.selected["teacher"]


def recipe(task: Task, config: Config) -> Generator:
    """The student alone."""
    outcome = yield stage(task, "student", "supervised", config)
    return Trained.of(outcome, "student")
