"""Plackett-Luce distillation (PLD): a choice-theoretic list-wise loss in place of CE + KD.

A Choice-Theoretic List-Wise Knowledge Distillation, arXiv:2506.12542, NeurIPS 2025.

Logits are read as the worths of a Plackett-Luce model: a ranking of the classes is drawn by
successive softmax choices without replacement. From the teacher one target ranking pi is built,
the label first and then the other classes by falling teacher logit, and the student maximises its
likelihood, step k weighted by the teacher's probability of the class chosen there:

    L = sum_k softmax(teacher / T)[pi_k] * (logsumexp_{l >= k} student[pi_l] - student[pi_k])

The first step is a weighted cross-entropy, so there is no label weight to tune. Other weights give
the paper's ablations: `uniform` is ListMLE (Xia et al. 2008), `position` is p-ListMLE (Lan et al.
2014), `first` is cross-entropy itself.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Generator

import jax.numpy as jnp

from kdjax import losses
from kdjax.methods import kd, supervised
from kdjax.methods.task import Fields, Task, Trained, inputs
from kdjax.networks import Network, logits_of
from kdjax.training import Evaluation, Program, Update, mean
from kdjax.training.optimizers import Training

WEIGHTINGS = ("teacher", "uniform", "position", "first")


@dataclasses.dataclass(frozen=True)
class Config:
    """Attributes:
    temperature: of the teacher's step weights, > 0; the paper uses 1 on ImageNet, 4 on CIFAR-100.
    weighting: "teacher" (PLD), or an ablation: "uniform", "position", "first".
    """

    temperature: float = 1.0
    weighting: str = "teacher"

    def __post_init__(self):
        if not self.temperature > 0:
            raise ValueError(f"temperature must be positive, got {self.temperature}")
        if self.weighting not in WEIGHTINGS:
            raise ValueError(f"weighting must be one of {WEIGHTINGS}, got {self.weighting!r}")


def loss(student_logits, teacher_logits, labels, config: Config):
    """The loss of a config, `[B]`."""
    if config.weighting == "teacher":
        return losses.plackett_luce(
            student_logits, teacher_logits, labels, temperature=config.temperature
        )
    classes = student_logits.shape[-1]
    weights = {
        "uniform": lambda: losses.listmle_weights(classes),
        "position": lambda: losses.p_listmle_weights(classes),
        "first": lambda: jnp.zeros(classes).at[0].set(1.0),
    }[config.weighting]()
    ranking = losses.teacher_optimal_ranking(teacher_logits, labels)
    weights = jnp.broadcast_to(weights, student_logits.shape)
    return losses.plackett_luce_nll(student_logits, ranking, weights)


@functools.lru_cache(maxsize=64)
def program(
    student: Network,
    teacher: Network,
    training: Training,
    config: Config,
    fields: Fields = "image",
    teacher_fields: Fields = "image",
) -> Program:
    """One update of the student."""

    def objective(variables, batch, context):
        batch = batch["train"]
        if "mix" in batch:
            raise ValueError("plackett_luce ranks one label first: it cannot train on mixup")
        x = inputs(batch, fields)
        out = student.apply(variables["student"], *x, train=True, rng=context.rng)
        logits, taught = logits_of(out.output), batch["teacher_logits"]
        where = batch["where"] & losses.valid_labels(batch["label"], logits.shape[-1])
        agree = (jnp.argmax(logits, -1) == jnp.argmax(taught, -1)).astype(jnp.float32)
        return Evaluation(
            {"plackett_luce": mean(loss(logits, taught, batch["label"], config), where)},
            {"student": out.variables},
            metrics={"agreement": mean(agree, where)},
        )

    update = Update(
        objective,
        ("student",),
        training.transformation,
        microbatches=training.microbatches,
        loss_scale=training.scaling,
    )
    prepare = kd.teach(teacher, teacher_fields)
    return Program((update,), prepare=prepare, schedules=training.schedules)


def recipe(task: Task, config: Config) -> Generator:
    """A teacher, given or trained, then one stage with the list-wise loss alone."""
    teacher = yield from supervised.teacher(task)
    student, training = task.networks["student"], task.training["student"]
    reads = task.reads("student"), task.reads("teacher")
    step = program(student, task.networks["teacher"], training, config, *reads)
    outcome = yield from task.distill(step, teacher)
    return Trained.of(outcome, "student")
