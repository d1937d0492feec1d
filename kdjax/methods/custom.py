"""Distillation with networks and a loss of one's own, from a notebook; the same engine beneath."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from kdjax import losses
from kdjax.data import Dataset, augmentations
from kdjax.evaluation import accuracy, agreement, curves
from kdjax.methods import kd, supervised
from kdjax.methods.task import Task, Trained, inputs
from kdjax.networks import Network, as_network, from_function, logits_of
from kdjax.training import (
    Display,
    Evaluation,
    MetricWriter,
    Program,
    Settings,
    Update,
    mean,
    read_metrics,
    run,
)
from kdjax.training.optimizers import Training

PyTree = Any
Loss = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class Student:
    """A network that has been trained: a teacher for the next, or the result.

    Attributes:
      variables: after the last step.
      selected: where the validation accuracy was best.
      curve: metric -> (steps, values), training and validation.
      accuracy: of the last variables, on the test split.
      agreement: with the teacher, on the test split; None where there was no teacher.
      logits, teacher_logits: on the test split, `[N, C]`.
      network: for `predict`.
    """

    variables: PyTree
    selected: PyTree
    curve: Mapping[str, tuple[np.ndarray, np.ndarray]]
    accuracy: float
    agreement: float | None
    logits: np.ndarray
    teacher_logits: np.ndarray | None
    network: Network

    def predict(self, inputs: Any) -> jax.Array:
        """Logits of a batch of inputs, `[N, C]`."""
        return logits_of(self.network.apply(self.variables, jnp.asarray(inputs)).output)


def _teacher(teacher: Any) -> tuple[Network, PyTree]:
    """A trained teacher as a network and its variables."""
    if isinstance(teacher, Student):
        return teacher.network, teacher.variables
    if isinstance(teacher, tuple) and len(teacher) == 2 and not isinstance(teacher, Network):
        return as_network(teacher[0]), teacher[1]
    if isinstance(teacher, nnx.Module):
        return as_network(teacher), None
    if inspect.isroutine(teacher):
        return from_function(lambda params, x: teacher(x), params={}), {"params": {}}
    raise TypeError(
        "teacher must be what train or distill returned, a pair (network, variables), an NNX "
        f"module or a function of a batch, got {type(teacher).__name__}"
    )


def train(student: Any, data: Dataset | tuple[Any, Any], **options: Any) -> Student:
    """Trains a network with the labels alone: a teacher, or a baseline.

    Args:
      student, data: as in `distill`.
      **options: the keyword arguments of `distill` but `batchwise`.
    """
    return _run(student, None, data, None, **options)


def distill(
    student: Any,
    teacher: Any,
    data: Dataset | tuple[Any, Any],
    loss: Loss,
    *,
    steps: int = 1000,
    batch_size: int = 64,
    learning_rate: float = 1e-3,
    optimizer: str = "adamw",
    augment: Sequence[Any] = (),
    batchwise: bool = False,
    seed: int = 0,
    workdir: str | None = None,
    progress: bool = False,
) -> Student:
    """Trains `student` on `loss` and the outputs of `teacher`.

    The value minimised is the mean of the loss over the batch. Where examples are augmented the
    teacher sees the student's view.

    Args:
      student: a Linen module, an NNX module or its constructor, a `Network`, or a pair of plain
        functions; its output is logits, or a dict with `logits`.
      teacher: what `train` or `distill` returned, a pair (such a network, its variables), an NNX
        module with its weights, or a function of a batch of inputs that returns logits and can be
        traced.
      data: a data set, or `(inputs [N, ...], labels [N])`, of which a tenth each is kept aside to
        validate and to test.
      loss: `(student_logits [B, C], teacher_logits [B, C], labels [B]) -> [B]`; every kernel of
        `kdjax.losses` that takes these will do.
      steps, batch_size, learning_rate, optimizer, augment: see `kdjax.training.optimizers`.
      batchwise: the loss compares the examples of a batch with each other.
      seed: initial variables and order of the batches.
      workdir: where checkpoints and metrics go; default: nowhere.
      progress: shows a bar, or lines.

    Returns:
      The student with its curve and its agreement with the teacher.
    """
    options = dict(
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        optimizer=optimizer,
        augment=augment,
        seed=seed,
        workdir=workdir,
        progress=progress,
    )
    return _run(student, _teacher(teacher), data, loss, batchwise=batchwise, **options)


def _program(student, teacher, loss, training, batchwise, fields) -> Program:
    def objective(variables, batch, context):
        batch = batch["train"]
        x = inputs(batch, fields)
        out = student.apply(variables["student"], *x, train=True, rng=context.rng)
        logits = logits_of(out.output)
        values = loss(logits, jax.lax.stop_gradient(batch["teacher_logits"]), batch["label"])
        where = batch["where"] & losses.valid_labels(batch["label"], logits.shape[-1])
        if jnp.shape(values) not in ((), where.shape):
            raise ValueError(
                f"loss must return one value an example, {list(where.shape)}, or one for the "
                f"batch, got {list(jnp.shape(values))}"
            )
        values = jnp.broadcast_to(values, where.shape)
        return Evaluation({"distillation": mean(values, where)}, {"student": out.variables})

    update = Update(
        objective,
        ("student",),
        training.transformation,
        batchwise=batchwise,
        loss_scale=training.scaling,
    )
    return Program((update,), prepare=kd.teach(teacher, fields), schedules=training.schedules)


def _run(
    student: Any,
    teacher: tuple[Network, PyTree] | None,
    data: Dataset | tuple[Any, Any],
    loss: Loss | None,
    *,
    seed: int = 0,
    workdir: str | None = None,
    progress: bool = False,
    batchwise: bool = False,
    augment: Sequence[Any] = (),
    **options: Any,
) -> Student:
    dataset = data if isinstance(data, Dataset) else Dataset.of(data)
    network = as_network(student)
    training = Training(augment=augmentations(augment), **options)
    networks = {"student": network, **({"teacher": teacher[0]} if teacher else {})}
    every = max(1, min(100, training.steps // 5))
    task = Task(dataset, networks, {"student": training}, seed=seed, validate_every=every)
    taught = None
    if teacher:
        taught = task.variables("teacher") if teacher[1] is None else teacher[1]

    def recipe():
        if teacher is None:
            return (yield from supervised.recipe(task, supervised.Config()))
        program = _program(network, teacher[0], loss, training, batchwise, task.reads("student"))
        return Trained.of((yield from task.distill(program, taught)), "student")

    metrics = MetricWriter(workdir)
    trained = run(
        recipe(),
        seed=seed,
        workdir=workdir,
        settings=Settings(
            checkpoint_every=200 if workdir else 0, log_every=max(1, min(50, training.steps // 10))
        ),
        display=Display(progress),
        metrics=metrics,
    )
    rows = metrics.rows if workdir is None else read_metrics(workdir)
    (curve,) = curves(rows).values()
    logits = task.predict("student", trained.last)
    reference = task.predict("teacher", taught) if teacher else None
    return Student(
        trained.last,
        trained.selected,
        curve,
        float(accuracy(logits, dataset.splits["test"].arrays()["label"])),
        None if reference is None else float(agreement(logits, reference)),
        logits,
        reference,
        network,
    )
