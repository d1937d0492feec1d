"""Dual-head distillation (DHKD): labels teach one head, the teacher's logits another.

Dual-Head Knowledge Distillation: Enhancing Logits Utilization with an Auxiliary Head, Yang et al.,
arXiv:2411.08937, KDD 2025.

A loss on logits keeps the common offset that a softmax discards, but on the head that also serves
cross-entropy the two gradients contradict each other, and the head degenerates, while in the
backbone they agree. So the classifier is split: the student's own head gets only cross-entropy,
an auxiliary head on the same features only the logit loss, and both reach the backbone:

    L = label_weight * CE(head(z), label) + distillation_weight * BinaryKLNorm(aux(z), teacher)

At inference the auxiliary head, a role of its own, is not there. Where teacher and student are of
different kinds the paper adds a non-linear auxiliary head and one-sided gradient alignment: when
the two gradients have a negative inner product, the part of the auxiliary one that works against
the main one is taken out.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Generator
from typing import ClassVar

import jax
import jax.numpy as jnp

from kdjax import losses
from kdjax.methods import kd, supervised
from kdjax.methods.task import Fields, Task, Trained, inputs
from kdjax.networks import Network, from_linen, logits_of
from kdjax.networks.heads import ClassifierHead
from kdjax.training import Combined, Evaluation, Program, Term, Update, mean, traced
from kdjax.training.optimizers import Training

LOSSES = ("binary_kl_norm", "binary_kl")
ROLES = ("auxiliary",)  # besides teacher and student


@dataclasses.dataclass(frozen=True)
class Config:
    """Attributes:
    loss: "binary_kl_norm" (the paper's), or "binary_kl".
    temperature: > 0.
    label_weight: gamma of the paper, >= 0; 0 with heads="single": the logit loss alone.
    distillation_weight: alpha of the paper, >= 0: 1 on CIFAR-100, 0.1 on ImageNet.
    heads: "dual"; "single" puts both losses on the student's own head: the failing case.
    auxiliary: "linear", or "nonlinear" with a hidden layer.
    hidden, dropout: of the non-linear auxiliary head.
    alignment: "none"; "all": over all parameters, as the authors' code; "shared": over the
      backbone only, as projected gradients are usually defined.
    features: where the auxiliary head reads the student: "features" of its output, or the path
      of any intermediate value (a tap).
    main_head: regex over the student's parameter paths that finds its own head.
    report_conflict: reports the cosine between the two gradients, in the backbone and in the
      student's own head.
    """

    loss: str = "binary_kl_norm"
    temperature: float = 2.0
    label_weight: float = 1.0
    distillation_weight: float = 1.0
    heads: str = "dual"
    auxiliary: str = "linear"
    hidden: int = 200
    dropout: float = 0.1
    alignment: str = "none"
    features: str = "features"
    main_head: str = "^head/"
    report_conflict: bool = False

    traced: ClassVar[tuple[str, ...]] = ("temperature", "label_weight", "distillation_weight")

    def __post_init__(self):
        options = {
            "loss": LOSSES,
            "heads": ("dual", "single"),
            "auxiliary": ("linear", "nonlinear"),
            "alignment": ("none", "all", "shared"),
        }
        for name, allowed in options.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {allowed}, got {getattr(self, name)!r}")
        if not self.temperature > 0:
            raise ValueError(f"temperature must be positive, got {self.temperature}")
        for name in ("label_weight", "distillation_weight"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.auxiliary == "nonlinear" and self.hidden < 1:
            raise ValueError(f"hidden must be at least 1, got {self.hidden}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")


@functools.lru_cache(maxsize=64)
def auxiliary_head(num_classes: int, config: Config) -> Network:
    """The auxiliary head of a config, as a network on features."""
    hidden = config.hidden if config.auxiliary == "nonlinear" else 0
    return from_linen(ClassifierHead(num_classes, hidden, config.dropout))


def read_features(student: Network, variables, x: tuple, config: Config, **options):
    """The student applied, and the features `[B, D]` that the auxiliary head reads."""
    if config.features == "features":
        out = student.apply(variables, *x, **options)
        if not isinstance(out.output, dict) or "features" not in out.output:
            raise ValueError(
                "the student's output has no 'features'; set `features` to the path of an "
                "intermediate value, see kdjax.networks.available_taps"
            )
        features = out.output["features"]
    else:
        out = student.apply(variables, *x, taps=(config.features,), **options)
        if len(out.taps) != 1:
            raise ValueError(f"features={config.features!r} must match one value: {list(out.taps)}")
        (features,) = out.taps.values()
    return out, features.reshape(features.shape[0], -1)


def combine(config: Config, gradients) -> Combined:
    """Aligns the auxiliary gradient to the main one, and reports how they conflict."""
    main, auxiliary = gradients["cross_entropy"], gradients[config.loss]

    def part(gradient, head: bool):
        return {
            path: x
            for path, x in gradient["student"].items()
            if bool(re.search(config.main_head, path)) is head
        }

    if not part(main, True) or not part(main, False):
        raise ValueError(
            f"main_head={config.main_head!r} must find some of the student's parameters, not all: "
            f"{sorted(main['student'])}"
        )
    metrics = {}
    if config.report_conflict:
        for name, head in (("backbone", False), ("head", True)):
            cosine = losses.gradient_cosine(part(main, head), part(auxiliary, head))
            metrics[f"cosine/{name}"] = Term(cosine, jnp.float32(1))
    if config.alignment == "none":
        return Combined(jax.tree.map(jnp.add, main, auxiliary), metrics)
    options = {"scope": config.alignment}
    if config.alignment == "shared":
        backbone = part(main, False)
        options["shared"] = {
            role: {path: role == "student" and path in backbone for path in paths}
            for role, paths in main.items()
        }
    return Combined(losses.gradient_align(main, auxiliary, **options), metrics)


@functools.lru_cache(maxsize=64)
def program(
    student: Network,
    teacher: Network,
    auxiliary: Network,
    training: Training,
    config: Config,
    fields: Fields = "image",
    teacher_fields: Fields = "image",
) -> Program:
    """One update of the student and, with two heads, of the auxiliary head."""
    kernel = {"binary_kl_norm": losses.binary_kl_norm, "binary_kl": losses.binary_kl}[config.loss]
    dual = config.heads == "dual"

    def objective(variables, batch, context):
        batch, c = batch["train"], traced.bind(config, context.values)
        rng, head_rng = jax.random.split(context.rng)
        options, x = dict(train=True, rng=rng), inputs(batch, fields)
        new = {}
        if dual:
            out, features = read_features(student, variables["student"], x, config, **options)
            head = auxiliary.apply(variables["auxiliary"], features, train=True, rng=head_rng)
            new["auxiliary"], taught = head.variables, logits_of(head.output)
        else:
            out = student.apply(variables["student"], *x, **options)
            taught = logits_of(out.output)
        logits, where = logits_of(out.output), batch["where"]
        labelled = where & losses.valid_labels(batch["label"], logits.shape[-1])
        loss = kernel(taught, batch["teacher_logits"], temperature=c.temperature)
        return Evaluation(
            {
                "cross_entropy": mean(
                    supervised.label_loss(logits, batch), labelled, c.label_weight
                ),
                config.loss: mean(loss, where, c.distillation_weight),
            },
            {"student": out.variables, **new},
        )

    apart = config.alignment != "none" or config.report_conflict
    update = Update(
        objective,
        ("student", "auxiliary") if dual else ("student",),
        training.transformation,
        combine=functools.partial(combine, config) if apart else None,
        microbatches=training.microbatches,
        loss_scale=training.scaling,
    )
    prepare, values = kd.teach(teacher, teacher_fields), traced.names(training, config)
    return Program((update,), prepare, training.schedules, values=values)


def recipe(task: Task, config: Config) -> Generator:
    """A teacher, given or trained, then one stage; the auxiliary head is left behind."""
    teacher = yield from supervised.teacher(task)
    student, training = task.networks["student"], task.training["student"]
    variables = task.variables("student")
    fixed = traced.static(training), traced.static(config)
    head = auxiliary_head(task.dataset.num_classes, fixed[1])
    extra = {}
    if config.heads == "dual":
        shape = jax.eval_shape(
            lambda v, *x: read_features(student, v, x, config)[1],
            variables,
            *task.examples("student"),
        )
        features = jnp.zeros(shape.shape, shape.dtype)
        extra["auxiliary"] = head.init(task.key("variables of auxiliary"), features)
    reads = task.reads("student"), task.reads("teacher")
    step = program(student, task.networks["teacher"], head, *fixed, *reads)
    values = traced.values(training, config)
    outcome = yield from task.distill(step, teacher, extra, values=values)
    return Trained.of(outcome, "student")
