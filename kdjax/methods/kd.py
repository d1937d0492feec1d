"""Logit distillation: the student matches the teacher's output distribution beside the labels.

Hinton et al. 2015 (arXiv:1503.02531) and the losses that took its place in the same recipe:

    L = label_weight * CE(student, label) + distillation_weight * D(student, teacher)

| loss | D | source |
| --- | --- | --- |
| `kd` | T^2 KL(teacher || student) at temperature T | Hinton et al. 2015, arXiv:1503.02531 |
| `dkd` | target and non-target classes apart | Zhao et al. 2022, arXiv:2203.08679 |
| `dist` | correlation between and within classes | Huang et al. 2022, arXiv:2205.10536 |
| `nkd` | target and renormalised non-target cross-entropy | Yang et al. 2023, arXiv:2303.13005 |
| `logit_standardized_kd` | KL of standardised logits | Sun et al. 2024, arXiv:2403.01427 |
| `reverse_kl` | T^2 KL(student || teacher) at T | Gu et al. 2023, arXiv:2306.08543 |
| `jsd` | T^2 JSD(teacher, student) at T | Agarwal et al. 2023, arXiv:2306.13649 |

The defaults of each loss are its paper's for CIFAR-100; `reverse_kl` and `jsd`, which come from
language models, have those of `kd`, so that nothing but the divergence is another.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Generator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from kdjax import losses
from kdjax.methods import supervised
from kdjax.methods.task import Fields, Task, Trained, inputs
from kdjax.networks import Network, logits_of
from kdjax.training import Evaluation, Program, Update, mean
from kdjax.training.optimizers import Training

DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "kd": dict(label_weight=0.1, distillation_weight=0.9, temperature=4.0),
    "dkd": dict(temperature=4.0, alpha=1.0, beta=8.0, warmup=20 / 240),
    "dist": dict(distillation_weight=2.0, temperature=4.0, beta=1.0, gamma=1.0),
    "nkd": dict(temperature=1.0, gamma=1.5),
    "logit_standardized_kd": dict(label_weight=0.1, distillation_weight=9.0, temperature=2.0),
    "reverse_kl": dict(label_weight=0.1, distillation_weight=0.9, temperature=4.0),
    "jsd": dict(label_weight=0.1, distillation_weight=0.9, temperature=4.0),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """How the student is distilled. `Config.of(loss)` has the defaults of a loss.

    Attributes:
      loss: a name of the table above.
      temperature: > 0.
      label_weight, distillation_weight: >= 0.
      warmup: fraction of the steps over which `distillation_weight` rises linearly from zero.
      alpha, beta, gamma: of the losses that have them (`dkd`: alpha, beta; `dist`: beta, gamma;
        `nkd`: gamma).
    """

    loss: str = "kd"
    temperature: float = 4.0
    label_weight: float = 1.0
    distillation_weight: float = 1.0
    warmup: float = 0.0
    alpha: float = 1.0
    beta: float = 1.0
    gamma: float = 1.0

    def __post_init__(self):
        if self.loss not in DEFAULTS:
            raise ValueError(f"loss must be one of {sorted(DEFAULTS)}, got {self.loss!r}")
        if not self.temperature > 0:
            raise ValueError(f"temperature must be positive, got {self.temperature}")
        for name in ("label_weight", "distillation_weight", "alpha", "beta", "gamma"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup is a fraction in [0, 1), got {self.warmup}")

    @staticmethod
    def of(loss: str, **changes: Any) -> Config:
        """The defaults of `loss`, with changes.

        >>> Config.of("nkd").gamma
        1.5
        """
        return Config(**{"loss": loss, **DEFAULTS.get(loss, {}), **changes})


def distance(config: Config):
    """`(student_logits, teacher_logits, labels, where) -> [B]`, the D of a config."""
    t, a, b, g = config.temperature, config.alpha, config.beta, config.gamma

    def softened(divergence, student_logits, teacher_logits):
        return t**2 * divergence(jax.lax.stop_gradient(teacher_logits) / t, student_logits / t)

    return {
        "kd": lambda s, p, y, w: losses.kd(s, p, temperature=t),
        "dkd": lambda s, p, y, w: losses.dkd(s, p, y, temperature=t, alpha=a, beta=b),
        "dist": lambda s, p, y, w: losses.dist(s, p, temperature=t, beta=b, gamma=g, where=w),
        "nkd": lambda s, p, y, w: losses.nkd(s, p, y, temperature=t, gamma=g),
        "logit_standardized_kd": lambda s, p, y, w: losses.logit_standardized_kd(
            s, p, temperature=t
        ),
        "reverse_kl": lambda s, p, y, w: softened(losses.reverse_kl, s, p),
        "jsd": lambda s, p, y, w: softened(losses.generalized_jsd, s, p),
    }[config.loss]


def teach(network: Network, fields: Fields = "image"):
    """A program's `prepare`: the teacher's logits beside the images, outside every gradient.

    A batch that has them already (a cache fills the same key) is left alone.
    """

    def prepare(variables, batch, context):
        train = batch["train"]
        if "teacher_logits" not in train:
            logits = logits_of(network.apply(variables["teacher"], *inputs(train, fields)).output)
            train = {**train, "teacher_logits": logits}
        return {**batch, "train": train}, context.memory

    return prepare


@functools.lru_cache(maxsize=64)
def program(
    student: Network,
    teacher: Network,
    training: Training,
    config: Config,
    fields: Fields = "image",
    teacher_fields: Fields = "image",
) -> Program:
    """One update of the student, taught on the same views that it sees."""
    compare = distance(config)

    def objective(variables, batch, context):
        batch = batch["train"]
        x = inputs(batch, fields)
        out = student.apply(variables["student"], *x, train=True, rng=context.rng)
        logits, taught = logits_of(out.output), batch["teacher_logits"]
        where = batch["where"]
        labelled = where & losses.valid_labels(batch["label"], logits.shape[-1])
        agree = (jnp.argmax(logits, -1) == jnp.argmax(taught, -1)).astype(jnp.float32)
        used = labelled if config.loss in ("dkd", "nkd") else where
        loss = compare(logits, taught, batch["label"], where)
        if config.loss == "dist":  # a mean over the batch already
            loss = jnp.broadcast_to(loss, where.shape)
        return Evaluation(
            {
                "cross_entropy": mean(
                    supervised.label_loss(logits, batch), labelled, config.label_weight
                ),
                config.loss: mean(loss, used, context.values["distillation_weight"]),
            },
            {"student": out.variables},
            metrics={"agreement": mean(agree, where)},
        )

    def weight(step: jax.Array, steps: jax.Array) -> jax.Array:
        if not config.warmup:
            return jnp.float32(config.distillation_weight)
        return config.distillation_weight * jnp.minimum(1.0, (step + 1) / (config.warmup * steps))

    update = Update(
        objective,
        ("student",),
        training.transformation,
        microbatches=training.microbatches,
        loss_scale=training.scaling,
        batchwise=config.loss == "dist",
    )
    schedules = {**training.schedules, "distillation_weight": weight}
    return Program((update,), prepare=teach(teacher, teacher_fields), schedules=schedules)


def recipe(task: Task, config: Config) -> Generator:
    """A teacher, given or trained, then one stage of distillation."""
    teacher = yield from supervised.teacher(task)
    student, training = task.networks["student"], task.training["student"]
    reads = task.reads("student"), task.reads("teacher")
    step = program(student, task.networks["teacher"], training, config, *reads)
    outcome = yield from task.distill(step, teacher)
    return Trained.of(outcome, "student")
