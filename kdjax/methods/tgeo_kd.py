"""TGeo-KD: how much each example learns from its teacher is learned, from where it stands.

Less or More From Teacher: Exploiting Trilateral Geometry For Knowledge Distillation, Hu et al.,
ICLR 2024, arXiv:2312.15112.

    L_n = alpha_n T^2 KL(teacher || student) + (1 - alpha_n) CE(student, label)
    alpha_n = sigmoid(f_w(S, T, G, M, edges)),   S, T, G: predictions and label on the simplex,
                                                 M: the teacher's mean prediction of the class

A constant alpha trusts a teacher alike where it is right and where it is wrong. Here a small
network, the role `controller`, maps the triangle of student, teacher and truth, with the class's
mean as a fourth point against outliers, to each example's alpha, and is trained on examples that
the student does not train on, through one virtual step of the student (one-step bilevel):

    theta' = theta - xi d/dtheta mean_n L_n(theta, alpha_w)
    w <- w - eta d/dw CE(theta'; held out)

so that alpha_n rises if and only if moving from label to teacher lowers the held-out loss. A step
is an update of the student under alpha, then one of the controller.

The authors' code computes alpha without a gradient, and so never trains its controller
(`ratio="untrained"`), and gives probabilities to a cross-entropy of logits; here is what the paper
says. How the paper takes the outer gradient is not known to us: one virtual step of plain
gradient descent is our choice. The other ratios are the rules that the paper compares with.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Generator, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from kdjax import losses
from kdjax.data.source import Dataset, shared_rows, stratified
from kdjax.losses.fusion_ratios import TRILATERAL_MODES
from kdjax.methods import kd, supervised
from kdjax.methods.task import Fields, Task, Trained, inputs
from kdjax.networks import Network, build, logits_of
from kdjax.training import (
    Compute,
    Deferred,
    Evaluation,
    Program,
    Term,
    Update,
    divide,
    made,
    mean,
    traced,
)
from kdjax.training.bilevel import virtual_step
from kdjax.training.optimizers import Training

PyTree = Any
ROLES = ("controller", "class_means")  # besides teacher and student
LEARNED = ("geometry", "per_example")
PLACED = ("geometry", "untrained")  # by a controller that reads the features
RULES = ("untrained", "fixed", "wls", "ada", "annealed")
HELD_OUT = "held_out"


@dataclasses.dataclass(frozen=True)
class Config:
    """Attributes:
    ratio: where alpha comes from. Learned from the held-out examples: "geometry" (the paper's),
      "per_example" (RW-KD: one free alpha an example). By a rule: "untrained" (the controller as
      it is initialised), "fixed", "wls", "ada", "annealed" (`kdjax.losses.fusion_ratios`).
    features: what the controller reads, a key of `TRILATERAL_MODES`.
    temperature: > 0.
    hidden: widths of the controller's hidden layers, leaky ReLUs.
    virtual_rate: xi, the learning rate of the virtual step, >= 0; 0 teaches nothing.
    virtual_clip: the largest length of the virtual step's gradient; 0: no clipping.
    controller_learning_rate, controller_weight_decay: of the controller's Adam, the decay added to
      its gradient. The authors' 0.1 and 0.05 are not stable with an outer gradient that is not 0.
    held_out: the fraction of the training split that is taken from the student, stratified, for
      the outer loss. The authors take a tenth.
    held_out_split: a split of the data set for the outer loss instead; the student then keeps all
      of `train`, which must not hold any of its examples.
    fixed_ratio: alpha of "fixed".
    levels: of "annealed", how many values.
    patience: stops the stage after so many checks in a row between which the outer loss changed by
      less than `tolerance`; 0: never. The authors have 10 and 1e-5.
    tolerance: > 0.
    check_every: steps of a check, whose outer loss is their mean.
    """

    ratio: str = "geometry"
    features: str = "vertices+edges"
    temperature: float = 1.5
    hidden: tuple[int, ...] = (32, 16)
    virtual_rate: float = 0.3
    virtual_clip: float = 10.0
    controller_learning_rate: float = 3e-3
    controller_weight_decay: float = 1e-3
    held_out: float = 0.1
    held_out_split: str = ""
    fixed_ratio: float = 0.5
    levels: int = 10
    patience: int = 0
    tolerance: float = 1e-5
    check_every: int = 100

    traced: ClassVar[tuple[str, ...]] = (
        "temperature",
        "virtual_rate",
        "controller_learning_rate",
        "controller_weight_decay",
        "fixed_ratio",
        "tolerance",
    )

    def __post_init__(self):
        for name, allowed in {
            "ratio": (*LEARNED, *RULES),
            "features": tuple(TRILATERAL_MODES),
        }.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {allowed}, got {getattr(self, name)!r}")
        for name in ("temperature", "controller_learning_rate", "tolerance"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("virtual_rate", "virtual_clip", "controller_weight_decay", "patience"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        for name, least in (("levels", 2), ("check_every", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if any(width < 1 for width in self.hidden):
            raise ValueError(f"hidden must hold positive widths, got {self.hidden}")
        if not 0 <= self.fixed_ratio <= 1:
            raise ValueError(f"fixed_ratio must be in [0, 1], got {self.fixed_ratio}")
        if not 0 < self.held_out < 1:
            raise ValueError(f"held_out is a fraction in (0, 1), got {self.held_out}")
        if self.held_out_split in ("train", "test"):
            raise ValueError(
                f"held_out_split={self.held_out_split!r}: the outer loss needs examples that are "
                "neither trained on nor reported"
            )
        if self.patience and self.ratio not in LEARNED:
            raise ValueError(f"patience={self.patience} watches the outer loss of a learned ratio")


@dataclasses.dataclass(frozen=True)
class Weighed(Trained):
    """What the recipe returns.

    Attributes:
      weighing: what `ratios` reads, after the last step: of `ROLES`, those that the ratio has.
    """

    weighing: Mapping[str, PyTree] = dataclasses.field(default_factory=dict)


@functools.lru_cache(maxsize=64)
def controller_network(hidden: tuple[int, ...]) -> Network:
    """The controller: features `[B, F]` to one logit an example, its alpha before the sigmoid."""
    return build("mlp", 1, widths=hidden, negative_slope=0.01)


def start_controller(task: Task, config: Config) -> PyTree | None:
    """The controller's variables before the first step; None for a ratio without one."""
    size = len(task.dataset.splits["train"])
    if config.ratio == "per_example":
        return {"params": {"logits": np.zeros(size, np.float32)}}
    if config.ratio not in PLACED:
        return None
    classes = task.dataset.num_classes
    one = np.zeros((1, classes), np.float32)
    features = jax.eval_shape(
        lambda: losses.trilateral_features(
            one, one, np.zeros(1, np.int32), np.zeros((classes, classes)), mode=config.features
        )
    )
    zeros = np.zeros(features.shape, np.float32)
    return Deferred(
        controller_network(config.hidden).init, (task.key("variables of controller"), zeros)
    )


def answered(teacher_logits: jax.Array) -> jax.Array:
    """Which rows are a teacher's answer: their softmax is a number. `[..., C] -> [...]`."""
    return ~jnp.isnan(jax.nn.softmax(jnp.asarray(teacher_logits, jnp.float32))).any(-1)


def ratios(
    config: Config,
    variables: Mapping[str, PyTree],
    student_logits: jax.Array,
    batch: Mapping[str, jax.Array],
    progress: jax.Array | float,
) -> jax.Array:
    """alpha of each example of a batch, `[B]`, differentiable in the controller alone.

    Args:
      config: which ratio; its traced fields bound.
      variables: the roles `controller` and `class_means`, where the ratio reads them.
      student_logits: `[B, classes]`. Stopped.
      batch: `teacher_logits`, `label` and, for "per_example", `id`.
      progress: the part of the training that is done, in [0, 1].
    """
    student_logits = jax.lax.stop_gradient(student_logits)
    taught, labels = batch["teacher_logits"], batch["label"]
    if config.ratio == "fixed":
        return jnp.full(labels.shape, config.fixed_ratio)
    if config.ratio == "annealed":
        rate = losses.annealed_ratio(progress, levels=config.levels)
        return jnp.broadcast_to(rate, labels.shape)
    if config.ratio == "wls":
        return losses.wls_ratio(student_logits, taught, labels)
    student, teacher = (jax.nn.softmax(x.astype(jnp.float32)) for x in (student_logits, taught))
    if config.ratio == "ada":
        return losses.ada_ratio(teacher, labels)
    if config.ratio == "per_example":
        return jax.nn.sigmoid(variables["controller"]["params"]["logits"][batch["id"]])
    means = variables["class_means"]["teacher_probs"]
    features = losses.trilateral_features(student, teacher, labels, means, mode=config.features)
    out = controller_network(config.hidden).apply(variables["controller"], features)
    return jax.nn.sigmoid(logits_of(out.output)[:, 0])


@functools.lru_cache(maxsize=64)
def program(
    student: Network,
    teacher: Network,
    training: Training,
    config: Config,
    fields: Fields = "image",
    teacher_fields: Fields = "image",
) -> Program:
    """An update of the student and, where the ratio is learned, one of the controller."""
    if training.loss_scale and config.ratio in LEARNED:
        raise ValueError(
            "tgeo_kd does not scale the loss of its virtual step, whose float16 gradients would "
            "vanish: use float32 or bfloat16 for the student"
        )
    clip = config.virtual_clip or None

    def fused(c, variables, batch, context):
        """The student applied, its loss of each example, alpha, and which examples count."""
        if "mix" in batch:
            raise ValueError("tgeo_kd places one label on the simplex: it cannot train on mixup")
        x = inputs(batch, fields)
        out = student.apply(variables["student"], *x, train=True, rng=context.rng)
        logits = logits_of(out.output)
        # One example whose teacher has no answer must not spoil the others.
        known = answered(batch["teacher_logits"])
        taught = jnp.where(known[:, None], batch["teacher_logits"], 0)
        batch = {**batch, "teacher_logits": taught}
        alpha = ratios(c, variables, logits, batch, context.values["progress"])
        where = batch["where"] & losses.valid_labels(batch["label"], logits.shape[-1])
        loss = losses.fused_kd(logits, taught, batch["label"], alpha, temperature=c.temperature)
        return out, loss, alpha, where & known, taught

    def objective(variables, batch, context):
        train, c = batch["train"], traced.bind(config, context.values)
        out, loss, alpha, where, taught = fused(c, variables, train, context)
        logits = logits_of(out.output)
        right = jnp.argmax(taught, -1) == train["label"]
        agree = jnp.argmax(logits, -1) == jnp.argmax(taught, -1)
        return Evaluation(
            {"fused_kd": mean(loss, where)},
            {"student": out.variables},
            metrics={
                "ratio": mean(alpha, where),
                "ratio/teacher_right": mean(alpha, where & right),
                "ratio/teacher_wrong": mean(alpha, where & ~right),
                "taught": mean(where.astype(jnp.float32), train["where"]),
                "agreement": mean(agree.astype(jnp.float32), where),
            },
        )

    def outer(variables, batch, context):
        live, c = variables["student"], traced.bind(config, context.values)

        def inner(params):
            stepping = {**variables, "student": {**live, "params": params}}
            _, loss, _, where, _ = fused(c, stepping, batch["train"], context)
            term = mean(loss, where)
            return divide(term.total, term.weight)

        step = virtual_step(inner, live["params"], c.virtual_rate, max_norm=clip)
        held_out = batch[HELD_OUT]
        out = student.apply({**live, "params": step.parameters}, *inputs(held_out, fields))
        logits, labels = logits_of(out.output), held_out["label"]
        where = held_out["where"] & losses.valid_labels(labels, logits.shape[-1])
        metrics = {"virtual_gradient_norm": Term(step.gradient_norm, 1.0)}
        if clip is not None:
            shortened = (step.gradient_norm > clip).astype(jnp.float32)
            metrics["virtual_clipped"] = Term(shortened, 1.0)
        return Evaluation(
            {"cross_entropy": mean(losses.cross_entropy(logits, labels), where)}, metrics=metrics
        )

    def optimizer(values):
        c = traced.bind(config, values)
        return optax.chain(
            optax.add_decayed_weights(c.controller_weight_decay),
            optax.adam(c.controller_learning_rate),
        )

    updates = [
        Update(
            objective,
            ("student",),
            training.transformation,
            microbatches=training.microbatches,
            loss_scale=training.scaling,
        )
    ]
    if config.ratio in LEARNED:
        updates.append(
            Update(
                outer,
                ("controller",),
                optimizer,
                batchwise=True,
                after=functools.partial(watch, config) if config.patience else None,
                name="controller",
            )
        )
    schedules = {**training.schedules, "progress": lambda step, steps: step / steps}
    stop = None
    if config.patience:
        stop = lambda context: context.memory["calm"] >= config.patience  # noqa: E731
    return Program(
        tuple(updates),
        prepare=kd.teach(teacher, teacher_fields),
        schedules=schedules,
        stop=stop,
        values=traced.names(training, config),
    )


WATCHED = {"total": np.float32(0), "last": np.float32(np.inf), "calm": np.int32(0)}


def watch(config: Config, variables, context, metrics):
    """After an outer loss: adds it up, and counts the checks in a row that changed little.

    Memory: `total`, the losses of this check so far; `last`, the mean of the one before; `calm`.
    The traced fields of `config` are read from the context.
    """
    tolerance = traced.bind(config, context.values).tolerance
    term, memory = metrics["loss/cross_entropy"], context.memory
    total = memory["total"] + divide(term.total, term.weight)
    ends = (context.step + 1) % config.check_every == 0
    value = total / config.check_every
    calm = jnp.where(jnp.abs(value - memory["last"]) < tolerance, memory["calm"] + 1, 0)
    return variables, {
        "total": jnp.where(ends, 0.0, total),
        "last": jnp.where(ends, value, memory["last"]),
        "calm": jnp.where(ends, calm, memory["calm"]),
    }


@functools.lru_cache(maxsize=16)
def divided(dataset: Dataset, held_out: float, name: str, fields: tuple[str, ...]) -> Dataset:
    """The data set with a split `held_out`: a part taken from `train`, or the split of that name.

    Always the same part, and the same object for all seeds.

    Raises:
      ValueError: no such split, one that holds an example of `train`, a part without examples.
    """
    train = dataset.splits["train"]
    if name:
        if name not in dataset.splits:
            raise ValueError(
                f"held_out_split={name!r}: {dataset.name!r} has the splits {sorted(dataset.splits)}"
            )
        part = dataset.splits[name]
        both = shared_rows(part, train, fields)
        if len(both):
            raise ValueError(
                f"{part.where} is to be held out, but {len(both)} of its {len(part)} examples are "
                f"in {train.where} too, the first at row {both[0]}"
            )
        return dataclasses.replace(dataset, splits={**dataset.splits, HELD_OUT: part})
    size = round(held_out * len(train))
    if not 0 < size < len(train):
        raise ValueError(
            f"held_out={held_out} of the {len(train)} examples of {train.where} leaves one side "
            "without examples"
        )
    rows, rest = stratified(train.labels(), (size,), seed=0)
    splits = {
        **dataset.splits,
        "train": train.take(rest, train.where),
        HELD_OUT: train.take(rows, f"{dataset.name}/{HELD_OUT}"),
    }
    return dataclasses.replace(dataset, splits=splits)


def with_held_out(task: Task, config: Config) -> Task:
    """The task whose data set has a split `held_out` that its student does not train on."""
    reads = task.reads("student")
    fields = (reads,) if isinstance(reads, str) else reads
    dataset = divided(task.dataset, config.held_out, config.held_out_split, fields)
    size, batch = len(dataset.splits[HELD_OUT]), task.training["student"].batch_size
    if config.ratio in LEARNED and size < batch:
        raise ValueError(
            f"{size} examples are held out, fewer than a batch of the student's, {batch}: give "
            "held_out a larger fraction, or the student smaller batches"
        )
    return dataclasses.replace(task, dataset=dataset)


def class_means(task: Task, teacher: PyTree) -> np.ndarray:
    """The teacher's mean prediction of each class of the training split, `[classes, classes]`."""
    logits = task.predict("teacher", teacher, "train")
    known = answered(logits)
    probs = jax.nn.softmax(jnp.where(known[:, None], logits, 0.0))
    labels = task.dataset.splits["train"].labels()
    return np.asarray(losses.class_mean_predictions(probs, labels, where=known))


def recipe(task: Task, config: Config) -> Generator:
    """A teacher, given or trained on all of `train`; its class means; one stage."""
    taught = with_held_out(task, config)  # refused now, not after a teacher's training
    teacher = yield from supervised.teacher(task)
    roles, beside = {}, {}
    if config.ratio in PLACED:
        size = task.dataset.num_classes
        roles["class_means"] = yield Compute(
            "class_means",
            lambda rng: {"teacher_probs": class_means(taught, teacher)},
            shapes={"teacher_probs": jax.ShapeDtypeStruct((size, size), jnp.float32)},
        )
    student, training = task.networks["student"], task.training["student"]
    reads = task.reads("student"), task.reads("teacher")
    fixed = traced.static(training), traced.static(config)
    step = program(student, task.networks["teacher"], *fixed, *reads)
    if (controller := start_controller(taught, config)) is not None:
        roles["controller"] = controller
    if config.ratio in LEARNED:
        beside[HELD_OUT] = taught.stream("student", HELD_OUT, HELD_OUT, augmented=False)
    outcome = yield from taught.distill(
        step,
        teacher,
        roles,
        memory=WATCHED if config.patience else None,
        examples=training.batch_size,
        values=traced.values(training, config),
        beside=beside,
    )
    trained = Trained.of(outcome, "student")
    last = {**roles, **outcome.variables}
    weighing = {role: made(last[role]) for role in ROLES if role in last}
    return Weighed(**vars(trained), weighing=weighing)
