"""TAID: the target moves from the student itself to the teacher, as fast as the student follows.

Shing et al. 2025, "TAID: Temporally Adaptive Interpolated Distillation for Efficient Knowledge
Transfer in Language Models", ICLR 2025 (arXiv:2501.16937).

    p_t = softmax((1 - t) stop(student logits) + t teacher logits)
    L   = label_weight CE(student, next token) + distillation_weight (- sum p_t log q)

t starts at `t_start`, never falls, keeps above the line from `t_start` to `t_end`, and rises faster
while the loss does (`losses.taid_update`). Paper and code differ in what drives it: the code takes
the value of the cross-entropy, the default here; the paper's formula is the KL. In data-parallel
training the code feeds every device its own loss; here it is that of the whole batch.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Generator

import jax.numpy as jnp

from kdjax import losses
from kdjax.methods import language_model
from kdjax.methods.language_task import LanguageTask, head_of, read, targets, teach
from kdjax.methods.task import Trained
from kdjax.networks.transformer import DecoderConfig
from kdjax.training import Evaluation, Program, Term, Update, divide
from kdjax.training.optimizers import Training

TASKS = ("language",)


@dataclasses.dataclass(frozen=True)
class Config:
    """How t moves, and what is added.

    Attributes:
      t_start: in [0, 1); the paper takes 0.4 or 0.2.
      t_end: in (0, 1], at least `t_start`.
      alpha: in [0, 1], the largest adaptive step. With the paper's 5e-4 the schedule is the line in
        runs of fewer than some 4,000 steps; about 5 / steps lets it adapt.
      beta: in [0, 1), of the momentum.
      adaptive: False: t is the line.
      signal: what drives t, "cross_entropy" (the code) or "kl" (the paper).
      label_weight, distillation_weight: >= 0, not both 0.
    """

    t_start: float = 0.4
    t_end: float = 1.0
    alpha: float = 5e-4
    beta: float = 0.99
    adaptive: bool = True
    signal: str = "cross_entropy"
    label_weight: float = 0.0
    distillation_weight: float = 1.0

    def __post_init__(self):
        if not 0 <= self.t_start < 1:
            raise ValueError(f"t_start must be in [0, 1), got {self.t_start}")
        if not 0 < self.t_end <= 1:
            raise ValueError(f"t_end must be in (0, 1], got {self.t_end}")
        if self.t_start > self.t_end:
            raise ValueError(f"t_start={self.t_start} must not be above t_end={self.t_end}")
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha must be in [0, 1], got {self.alpha}")
        if not 0 <= self.beta < 1:
            raise ValueError(f"beta must be in [0, 1), got {self.beta}")
        if self.signal not in ("cross_entropy", "kl"):
            raise ValueError(f"signal must be 'cross_entropy' or 'kl', got {self.signal!r}")
        for name in ("label_weight", "distillation_weight"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if not self.distillation_weight:
            raise ValueError("distillation_weight must be positive: t follows its term")


@functools.lru_cache(maxsize=64)
def program(
    student: DecoderConfig, teacher: DecoderConfig, training: Training, config: Config
) -> Program:
    """One update of the student; the controller's state is the program's memory."""

    def objective(variables, batch, context):
        batch, state = batch["train"], context.memory
        reading = read(student, variables["student"], batch, train=True, rng=context.rng)
        labels, where = targets(batch)
        (total, weight), (label_total, label_weight) = losses.linear_taid(
            reading.hidden,
            reading.head,
            batch["teacher_hidden"][:, :-1],
            head_of(teacher, variables["teacher"]),
            t=state.t,
            form=config.signal,
            labels=labels,
            where=where,
        )
        return Evaluation(
            {
                "taid": Term(total, weight, config.distillation_weight),
                "cross_entropy": Term(label_total, label_weight, config.label_weight),
            },
            {"student": reading.variables},
            metrics={"t": Term(state.t, 1.0)},
        )

    def steer(variables, context, metrics):
        loss = metrics["loss/taid"]
        # A batch without a token to predict says nothing of the student: t follows its line.
        value = jnp.where(loss.weight > 0, divide(loss.total, loss.weight), jnp.nan)
        moved = losses.taid_update(
            context.memory,
            value,
            step=context.values["progress"],
            num_steps=1,
            t_start=config.t_start,
            t_end=config.t_end,
            alpha=config.alpha,
            beta=config.beta,
            adaptive=config.adaptive,
        )
        return variables, moved

    update = Update(
        objective,
        ("student",),
        training.transformation,
        microbatches=training.microbatches,
        loss_scale=training.scaling,
        after=steer,
    )
    schedules = {**training.schedules, "progress": lambda step, steps: step / steps}
    return Program((update,), prepare=teach(teacher), schedules=schedules)


def recipe(task: LanguageTask, config: Config) -> Generator:
    """A teacher, given or trained, then one stage of distillation."""
    teacher = yield from language_model.teacher(task)
    step = program(
        task.decoders["student"], task.decoders["teacher"], task.training["student"], config
    )
    start = losses.TaidState.start(config.t_start)
    outcome = yield from task.distill(step, teacher, memory=start)
    return Trained.of(outcome, "student")
