"""ActiveKD and PCoreSet: a vision-language model teaches in every round of active learning.

Kang et al. 2025, "PCoreSet: Effective Active Learning through Knowledge Distillation from
Vision-Language Models" (arXiv:2506.00910).

    labelled = a few images of every class
    repeat:  a fresh student with two heads learns from labels and teacher (`dho.py`)
             query = k images of the pool (`data.selection`), whose labels are then known

Predictions of such teachers lie in a few clusters of the probability simplex, and the student
inherits that. PCoreSet asks for the images whose predictions are farthest from those of labelled
images: k-centres on the student's mixed probabilities.

A round is a stage, and a query a `Compute` node between two; all rounds run on one compiled step.
The few-shot teacher is CLAP (`zero_shot.py`), trained anew on the labels of every round from the
zero-shot embeddings, before the student of that round; with `lag` after it, as in the authors'
code for the small data sets, so that the student learns from the teacher of the round before.
There alpha is the weight of the other head (1/2 by default, so that nothing changes).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Generator
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from kdjax import losses
from kdjax.data.selection import STRATEGIES, covering_radius, moved, select
from kdjax.methods import dho, supervised, zero_shot
from kdjax.methods.task import Task, Trained
from kdjax.training import Compute, Stage, traced
from kdjax.training.optimizers import Training

TEACHERS = ("given", "clap")


@dataclasses.dataclass(frozen=True)
class Config:
    """Attributes:
    strategy: what is asked for, one of `data.selection.STRATEGIES`.
    rounds: of queries; the student is trained once more than that.
    queries: labels a round; 0: as many as classes.
    labels_per_class: labelled images of each class at the start.
    candidates: the pool is cut at random to so many before a query; 0: all of it.
    epochs: passes over the labelled images a round, which then grow longer; 0: the steps of the
      student's training in every round. The paper: 200.
    last_epochs: of the last round; 0: as the others.
    teacher: "given", or "clap": trained on the labels of each round; the teacher must then be a
      `zero_shot.classifier`, and its training is that of the role `teacher`.
    lag: the student of a round learns from the CLAP teacher of the round before.
    temperature, lam, labeled_batch_size, unlabeled, alpha, beta, class_order: as in
      `dho.Config`. lam = 1 and alpha = 1: active learning without a teacher.
    """

    strategy: str = "pcoreset"
    rounds: int = 15
    queries: int = 0
    labels_per_class: int = 1
    candidates: int = 0
    epochs: int = 0
    last_epochs: int = 0
    teacher: str = "given"
    lag: bool = False
    temperature: float = 2.0
    lam: float = 0.5
    labeled_batch_size: int = 64
    unlabeled: str = "all"
    alpha: float = 0.5
    beta: float = 1.0
    class_order: tuple[int, ...] = ()

    traced: ClassVar[tuple[str, ...]] = ("temperature", "lam")

    def __post_init__(self):
        for name, options in (("strategy", STRATEGIES), ("teacher", TEACHERS)):
            if getattr(self, name) not in options:
                raise ValueError(f"{name} must be one of {options}, got {getattr(self, name)!r}")
        for name in ("rounds", "queries", "candidates", "epochs", "last_epochs"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.labels_per_class < 1:
            raise ValueError(f"labels_per_class must be at least 1, got {self.labels_per_class}")
        if self.lag and self.teacher != "clap":
            raise ValueError('lag needs teacher="clap": a given teacher is the same in all rounds')
        if self.class_order and self.teacher == "clap":
            raise ValueError(
                'class_order is of a given teacher: "clap" learns in the order of the labels'
            )
        _ = self.dho

    @property
    def dho(self) -> dho.Config:
        """How a round trains."""
        shared = {f.name for f in dataclasses.fields(dho.Config)}
        kept = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return dho.Config(**{n: x for n, x in kept.items() if n in shared}, interpolation="fixed")

    def steps(self, number: int, labels: int, training: Training) -> int:
        """Of the round of that number, which has so many labels."""
        last = number == self.rounds and self.last_epochs
        epochs = self.last_epochs if last else self.epochs
        return -(-epochs * labels // self.labeled_batch_size) if epochs else training.steps


@dataclasses.dataclass(frozen=True)
class Rounds(Trained):
    """The student of the last round, and what came before.

    Attributes:
      rounds: its variables at the end of every round.
      labeled: the rows of `train` that were labelled in every round.
      radius: before every query, the largest distance of a prediction to the nearest one of a
        labelled or chosen image, once these are labelled, in probability space.
    """

    rounds: tuple = ()
    labeled: tuple = ()
    radius: tuple = ()


def query(task: Task, config: Config, variables, rows: np.ndarray, k: int):
    """What a `Compute` does after a round: `rng -> {rows, radius}`."""

    def function(rng: np.random.Generator):
        said = dho.answers(task, variables, "train")
        probs, features = np.exp(said["logits"].astype(np.float64)), said["features"]
        probs /= probs.sum(1, keepdims=True)
        labels = task.dataset.splits["train"].labels()
        pool = np.setdiff1d(np.arange(len(labels)), rows)
        if config.candidates and config.candidates < len(pool):
            pool = np.sort(rng.choice(pool, config.candidates, replace=False))
        chosen = select(
            config.strategy,
            k,
            probs=probs[pool],
            features=features[pool],
            labeled_probs=probs[rows],
            labeled_features=features[rows],
            labels=labels[rows],
            rng=rng,
        )
        after = moved(rows, pool[chosen], len(labels))
        radius = covering_radius(probs[pool], probs[after])
        return {"rows": after, "radius": np.float64(radius)}

    return function


def fitted(task: Task, teacher, rows: np.ndarray, name: str, steps: int | None = None) -> Generator:
    """CLAP's stage: the teacher's class embeddings, moved by the labelled images."""
    network, training = task.networks["teacher"], task.training["teacher"]
    initial = teacher["params"]["class_embeddings"]
    train = task.dataset.splits["train"]

    def weights(rng):
        logits = task.predict("teacher", teacher, "train")[rows]
        return {"a": np.asarray(losses.clap_class_weights(logits, train.labels()[rows]))}

    size = jax.ShapeDtypeStruct((len(initial),), jnp.float32)
    found = yield Compute(f"{name}/weights", weights, shapes={"a": size})
    outcome = yield Stage(
        name,
        zero_shot.clap(network, traced.static(training), task.reads("teacher")),
        {
            "teacher": teacher,
            "anchor": {"class_embeddings": jnp.asarray(initial), "class_weights": found["a"]},
        },
        {"labeled": task.stream("teacher", "train", name="labeled", indices=rows)},
        steps or training.steps,
        values=traced.values(training),
    )
    return outcome.variables["teacher"]


def recipe(task: Task, config: Config) -> Generator:
    """Rounds of training and of queries."""
    size, classes = len(task.dataset.splits["train"]), task.dataset.num_classes
    k = config.queries or classes
    rows = dho.labeled_rows(task, config.labels_per_class)
    wanted = len(rows) + k * config.rounds
    if wanted > size:
        raise ValueError(
            f"{config.rounds} rounds of {k} queries after {len(rows)} labels ask for {wanted} "
            f"labels, but train has {size} examples"
        )
    if config.teacher == "clap" and task.cache_teacher:
        raise ValueError('cache_teacher keeps one teacher, but teacher="clap" has one a round')
    zero = yield from supervised.teacher(task)
    if config.teacher == "clap" and "class_embeddings" not in zero["params"]:
        raise ValueError('teacher="clap" needs a zero_shot.classifier: there are no embeddings')
    task, training = dho.dual_task(task, config.dho), task.training["student"]
    taught, fields = yield from task.taught(zero)
    nets = task.networks["student"], task.networks["teacher"]
    fixed = traced.static(training), traced.static(config.dho)
    step = dho.program(*nets, *fixed, task.reads("student"), task.reads("teacher"))
    students, labeled, radius, teacher = [], [rows], [], zero
    for number in range(config.rounds + 1):
        name = f"round/{number:02d}"
        if config.teacher == "clap" and not config.lag:
            teacher = yield from fitted(task, zero, rows, f"{name}/clap")
        if config.teacher == "clap":
            taught = {"teacher": task.kept("teacher", teacher)}
        outcome = yield Stage(
            name,
            step,
            {"student": dho.start(task), **taught},
            dho.streams(task, config.dho, rows, fields),
            config.steps(number, len(rows), training),
            validation=dho.validation(task, config.dho),
            values=traced.values(training, config.dho),
        )
        students.append(outcome.variables["student"])
        if number == config.rounds:
            break
        if config.lag:
            teacher = yield from fitted(task, zero, rows, f"{name}/clap")
        found = yield Compute(f"{name}/query", query(task, config, students[-1], rows, k))
        rows = np.asarray(found["rows"])
        labeled.append(rows)
        radius.append(float(found["radius"]))
    last = Trained.of(outcome, "student")
    return Rounds(
        **{**vars(last), "network": nets[0]},
        rounds=tuple(students),
        labeled=tuple(labeled),
        radius=tuple(radius),
    )
