"""Regression on the ends of a diffusion model's trajectories. The baseline of generation.

Luhman and Luhman 2021, "Knowledge Distillation in Iterative Generative Models for Improved Sampling
Speed" (arXiv:2101.02388):

    L = mean_d ( g(eps, t_min) - DDIM_N(eps) )^2

Every example costs N calls of the teacher, where BOOT's cost one or two. The paper stores the
trajectories before the first step and starts from the teacher's weights; here each step samples
its own, from noise alone.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Generator

from kdjax import losses
from kdjax.methods.generation_task import Diffusion, GenerationTask, signal
from kdjax.methods.task import Trained
from kdjax.networks import Network
from kdjax.training import Evaluation, Program, Update, mean, traced
from kdjax.training.optimizers import Training

TASKS = ("generation",)


@dataclasses.dataclass(frozen=True)
class Config:
    """Attributes:
    num_steps: N, of the teacher's trajectories.
    """

    num_steps: int = 16

    def __post_init__(self):
        if self.num_steps < 1:
            raise ValueError(f"num_steps must be at least 1, got {self.num_steps}")


@functools.lru_cache(maxsize=64)
def program(student: Network, teacher: Diffusion, training: Training, config: Config) -> Program:
    """One update of the student on the ends of fresh trajectories."""

    def prepare(variables, batch, context):
        train = batch["train"]
        noise, condition, _ = teacher.draw(train)
        end = teacher.sample(variables["teacher"], noise, condition, steps=config.num_steps)
        train = {**train, "noise": noise, "end": end}
        if condition is not None:
            train["condition"] = condition
        return {**batch, "train": train}, context.memory

    def objective(variables, batch, context):
        batch = batch["train"]
        out = signal(
            student,
            variables["student"],
            batch["noise"],
            teacher.t_min,
            batch.get("condition"),
            train=True,
            rng=context.rng,
        )
        loss = losses.target_regression(out.output, batch["end"])
        return Evaluation({"regression": mean(loss, batch["where"])}, {"student": out.variables})

    update = Update(
        objective,
        ("student",),
        training.transformation,
        microbatches=training.microbatches,
        loss_scale=training.scaling,
    )
    return Program((update,), prepare, training.schedules, values=traced.names(training))


def teacher(task: GenerationTask) -> Generator:
    """The variables of the teacher, which are given."""
    yield from ()
    return task.teacher()


def recipe(task: GenerationTask, config: Config) -> Generator:
    """One stage: the student, taught where trajectories end."""
    training = task.training["student"]
    step = program(task.networks["student"], task.diffusion, traced.static(training), config)
    start, values = task.start("student"), traced.values(training)
    outcome = yield task.stage("trajectory_regression", step, start, {}, values)
    return Trained.of(outcome, "student")
