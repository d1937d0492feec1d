"""Training on text alone: cross-entropy with the next token. Every teacher, and the baseline."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Generator

from kdjax import losses
from kdjax.methods.language_task import LanguageTask, read, targets
from kdjax.methods.task import Trained
from kdjax.networks.transformer import DecoderConfig
from kdjax.training import Evaluation, Program, Stage, Term, Update
from kdjax.training.optimizers import Training

TASKS = ("language",)


@dataclasses.dataclass(frozen=True)
class Config:
    """Nothing to choose: how a role is trained is the task's."""


@functools.lru_cache(maxsize=64)
def program(role: str, config: DecoderConfig, training: Training) -> Program:
    """One update of one role on the stream `train`."""

    def objective(variables, batch, context):
        batch = batch["train"]
        reading = read(config, variables[role], batch, train=True, rng=context.rng)
        labels, where = targets(batch)
        total, weight = losses.linear_cross_entropy(
            reading.hidden, reading.head, labels, where=where
        )
        return Evaluation({"cross_entropy": Term(total, weight)}, {role: reading.variables})

    update = Update(
        objective,
        (role,),
        training.transformation,
        microbatches=training.microbatches,
        loss_scale=training.scaling,
    )
    return Program((update,), schedules=training.schedules)


def stage(task: LanguageTask, role: str, name: str) -> Stage:
    """The stage that trains `role` on the text."""
    training = task.training[role]
    return Stage(
        name,
        program(role, task.decoders[role], training),
        {role: task.start(role)},
        {"train": task.stream(role)},
        training.steps,
        validation=task.validation(role),
    )


def teacher(task: LanguageTask) -> Generator:
    """The variables of the teacher: given ones, or those a stage `teacher` trains."""
    if "teacher" in task.given:
        return task.given["teacher"]
    outcome = yield stage(task, "teacher", "teacher")
    return outcome.selected["teacher"]


def recipe(task: LanguageTask, config: Config) -> Generator:
    """The student alone."""
    outcome = yield stage(task, "student", "language_model")
    return Trained.of(outcome, "student")
