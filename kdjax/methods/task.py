"""What a recipe is given: a data set, networks by role, how each role is trained, and a seed.

Everything here is derived from the seed and a role's name, so that every method of a comparison
starts from the same student and sees the same batches in the same order.
"""

from __future__ import annotations

import dataclasses
import functools
import types
import zlib
from collections.abc import Callable, Generator, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from kdjax import evaluation, losses
from kdjax.data import Dataset, Split, augmentations, resident, sequential
from kdjax.methods.inputs import Fields, inputs
from kdjax.methods.taught_views import taught_views
from kdjax.networks import Network, logits_of
from kdjax.networks.quantization import check_kept, keep
from kdjax.training import (
    Compute,
    Deferred,
    Outcome,
    Program,
    Stage,
    Term,
    Validation,
    gather,
    made,
    mean,
)
from kdjax.training.optimizers import Training

PyTree = Any
NOTHING: Mapping[str, PyTree] = types.MappingProxyType({})


@dataclasses.dataclass(frozen=True)
class Task:
    """A data set and the networks that are to learn it.

    Attributes:
      dataset: its splits `train`, `validation` and `test`; `validation` selects, `test` reports.
      networks: role -> network; the output of each is logits, or a dict with `logits`.
      training: role -> how it is trained.
      seed: initial variables and the order of the batches.
      input: the field of a batch that the networks read; several, for networks of as many
        arguments; or a mapping from roles to these, where roles see different modalities.
      learns_from: role -> the split it is trained on, where that is not `train`: such as a teacher
        that has seen all classes equally often beside a student that has not.
      validate_every: steps between two looks at the validation split.
      given: role -> trained variables; a role that is here is not trained.
      mean, std: what images are normalised with; None: they stay in [0, 1].
      teacher_weights: what a teacher's matrices are kept in once it is trained (`networks.keep`).
      cache_teacher: the teacher is run before the first step instead of in every step: once over
        the training split where the student sees the images as they are, else over every view that
        it will see, which are kept on disk (`taught_views.py`).
      taught_by, lessons: a teacher, and the training split with its outputs, where `prepared` has
        run it already.
      variants: role -> a function from changed options to the role's network with these, for
        recipes that choose an architecture (`network_with`).
    """

    dataset: Dataset
    networks: Mapping[str, Network]
    training: Mapping[str, Training]
    seed: int = 0
    input: Fields | Mapping[str, Fields] = "image"
    validate_every: int = 100
    given: Mapping[str, PyTree] = dataclasses.field(default_factory=dict)
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    cache_teacher: bool = False
    teacher_weights: str = "float32"
    taught_by: PyTree = None
    lessons: Split | None = None
    learns_from: Mapping[str, str] = dataclasses.field(default_factory=dict)
    variants: Mapping[str, Callable[[Mapping[str, Any]], Network]] = dataclasses.field(
        default_factory=dict
    )

    # What methods know a task of this kind by; the method that trains one network alone, and what
    # its student is called; the metric that validation selects by; which scores are shown, the
    # most important one first.
    kind: ClassVar[str] = "classification"
    baseline: ClassVar[str] = "supervised"
    alone: ClassVar[str] = "student alone"
    score: ClassVar[str] = "accuracy"
    shown: ClassVar[tuple[str, ...]] = ("accuracy", "agreement", "ece")

    def __post_init__(self):
        self.check_batch_sizes()
        check_kept(self.teacher_weights)
        if self.validate_every < 1:
            raise ValueError(f"validate_every must be at least 1, got {self.validate_every}")
        self.check_inputs()
        self.check_outputs()

    def check_batch_sizes(self) -> None:
        """Refuses batches that are larger than the training split."""
        for role, training in self.training.items():
            split = self.learns_from.get(role, "train")
            if split not in self.dataset.splits:
                raise ValueError(
                    f"the {role} learns from the split {split!r}, but {self.dataset.name!r} has "
                    f"{sorted(self.dataset.splits)}"
                )
            size = len(self.dataset.splits[split])
            if training.batch_size > size:
                raise ValueError(
                    f"batch_size={training.batch_size} of the {role} is larger than the {split} "
                    f"split of {self.dataset.name!r}, which has {size} examples"
                )

    def check_inputs(self) -> None:
        """Refuses roles that read what the data set does not hold, and views of half an example."""
        for role in self.networks:
            try:
                inputs(self.dataset.splits["train"].fields, self.reads(role))
            except ValueError as error:
                raise ValueError(f"{self.dataset.name!r}, {role}: {error}") from error
            views = augmentations(self.training.get(role, Training()).augment)
            mixed = any(augmentation.name == "mixup" for augmentation in views)
            if mixed and self.reads(role) not in ("image", ("image",)):
                raise ValueError(
                    f"mixup mixes images alone, but the {role} reads {self.reads(role)}: its other "
                    "inputs would belong to another label"
                )

    def reads(self, role: str) -> Fields:
        """The field, or the fields, that the network of a role reads of a batch."""
        fields = self.input
        if isinstance(fields, Mapping):
            if role not in fields:
                raise ValueError(f"input does not say what the {role} reads; it has {list(fields)}")
            fields = fields[role]
        return fields if isinstance(fields, str) else tuple(fields)

    def check_outputs(self) -> None:
        """Refuses networks whose classes are not those of the labels."""
        for role in self.networks:
            size = self.num_outputs(role)
            if size != self.dataset.num_classes:
                raise ValueError(
                    f"the {role} has {size} classes, the data set {self.dataset.name!r} has "
                    f"{self.dataset.num_classes}: teacher, student and labels must agree"
                )

    def num_outputs(self, role: str) -> int:
        """The number of logits of a role's network."""
        network = self.networks[role]

        def outputs(rng, *x):
            return logits_of(network.apply(network.init(rng, *x), *x).output)

        return jax.eval_shape(outputs, jax.random.key(0), *self.examples(role)).shape[-1]

    def examples(self, role: str) -> tuple[np.ndarray, ...]:
        """The arguments of a role's network for a batch of one, for shapes."""
        record = inputs(self.dataset.splits["train"][0], self.reads(role))

        def zeros(x):  # bytes of images become floats in a batch
            kept = np.asarray(x).dtype.kind in "bi"
            return np.zeros((1, *np.shape(x)), np.asarray(x).dtype if kept else np.float32)

        return tuple(map(zeros, record))

    def key(self, name: str) -> jax.Array:
        """A random key of this task that depends on nothing but the seed and the name."""
        return jax.random.fold_in(jax.random.key(self.seed), zlib.crc32(name.encode()))

    def start(self, role: str) -> PyTree | Deferred:
        """The initial variables of a role, for a stage: the same for every method of a seed.

        They do not exist before the stage makes them, cut as its layout says.
        """
        key = self.key(f"variables of {role}")
        return Deferred(self.networks[role].init, (key, *self.examples(role)))

    def variables(self, role: str) -> PyTree:
        """What `start` makes, whole, to look at; the same bits."""
        return made(self.start(role))

    def stream(
        self,
        role: str,
        split: str = "",
        name: str = "",
        fields: Mapping[str, np.ndarray] | Split = NOTHING,
        augmented: bool = True,
        indices: np.ndarray | None = None,
        batch_size: int | None = None,
    ):
        """The batches a role trains on: the same order for every method of a seed.

        Args:
          role: whose batch size and augmentation.
          split: which part of the data set; empty: the one that the role learns from.
          name: tells apart several streams of one role.
          fields: further fields of the split, one row an example; or a split that has them.
          augmented: False: the examples as they are, for what is not trained on them.
          indices: rows that take part; None: all. Batches may be larger than their number.
          batch_size: None: that of the role.
        """
        records = self.dataset.splits[split or self.learns_from.get(role, "train")]
        if isinstance(fields, Split):
            records = fields
        elif fields:
            records = Split.of({**records.arrays(), **fields}, records.where)
        training = self.training[role]
        number = zlib.crc32(f"stream {name} of {role}".encode())
        seed = int(np.random.SeedSequence([self.seed, number]).generate_state(1)[0] >> 1)
        size, rows = batch_size or training.batch_size, None
        if indices is not None:
            rows = tuple(np.asarray(indices).tolist())
        views = training.augment if augmented else ()
        return _resident(records, size, seed, views, self.mean, self.std, rows)

    def sequential(self, split: str):
        """Every example of a split once, as it is; one stream a split."""
        return _sequential(self.dataset.splits[split], self.mean, self.std)

    def validation(self, role: str) -> Validation:
        """Scores a role on the validation split, and keeps the best."""
        return Validation(
            classification_metrics(role, self.networks[role], self.reads(role)),
            self.sequential("validation"),
            self.validate_every,
        )

    def distill(
        self,
        program: Program,
        teacher: PyTree,
        extra: Mapping[str, PyTree] = NOTHING,
        memory: PyTree = None,
        streams: Mapping[str, Any] | None = None,
        examples: int | None = None,
        values: Mapping[str, float] = NOTHING,
        steps: int | None = None,
        beside: Mapping[str, Any] = NOTHING,
        after_validation: Callable[[PyTree, Mapping[str, jax.Array]], PyTree] | None = None,
    ) -> Generator:
        """The stage `distill`: a fresh student, taught by `teacher` on the stream `train`.

        Args:
          program: what a step does; finds the teacher under the role `teacher`, or its outputs in
            the batch under `teacher_logits` where they were cached.
          teacher: its variables, frozen.
          extra: further roles of the program.
          memory: what the program keeps besides variables, at the start; None: nothing.
          streams: what it reads; None: the stream `train` of the student.
          examples: how many of them a step trains on, where that is not all.
          values: of the fields that the program reads as traced ones.
          steps: of the stage, where the student does not learn in every one; None: the student's.
          beside: further streams, where `streams` is None.
          after_validation: the `after` of the stage's validation.
        """
        if streams is None:
            taught, train = yield from self.taught_stream(teacher)
            streams = {"train": train, **beside}
        else:
            taught, _ = yield from self.taught(teacher)
        validation = dataclasses.replace(self.validation("student"), after=after_validation)
        return (
            yield Stage(
                "distill",
                program,
                {"student": self.start("student"), **taught, **extra},
                streams,
                steps or self.training["student"].steps,
                memory={} if memory is None else memory,
                validation=validation,
                examples=examples,
                values=values,
            )
        )

    def prepared(self) -> Generator:
        """This task after what is done once for all methods: the outputs of a cached teacher."""
        cached = self.cache_teacher and not self.training["student"].augment
        if not cached or "teacher" not in self.given:
            return self
        teacher, records = self.given["teacher"], self.dataset.splits["train"]
        _, fields = yield from self.taught(teacher)
        lessons = Split.of({**records.arrays(), **fields}, records.where)
        return dataclasses.replace(self, taught_by=teacher, lessons=lessons)

    def taught(self, teacher: PyTree) -> Generator:
        """`(roles, fields)`: the teacher as a frozen role, or its outputs as fields of `train`."""
        if not self.cache_teacher:
            return {"teacher": self.kept("teacher", teacher)}, {}
        if self.lessons is not None and teacher is self.taught_by:
            return {}, self.lessons
        if self.training["student"].augment:
            raise ValueError(
                "cache_teacher keeps one teacher output an example here, but the student's views "
                "are augmented: take the augmentation away, or the cache"
            )
        size = len(self.dataset.splits["train"]), self.num_outputs("teacher")
        found = yield Compute(
            "teacher_logits",
            lambda rng: {"logits": self.predict("teacher", teacher, "train")},
            shapes={"logits": jax.ShapeDtypeStruct(size, jnp.float32)},
        )
        return {}, {"teacher_logits": found["logits"]}

    def taught_stream(self, teacher: PyTree) -> Generator:
        """`(roles, stream)`: the student's batches, and the teacher as a frozen role or in them."""
        if self.cache_teacher and self.training["student"].augment:
            yield from ()
            return {}, taught_views(self, teacher)
        roles, fields = yield from self.taught(teacher)
        return roles, self.stream("student", fields=fields)

    def kept(self, role: str, variables: PyTree) -> PyTree:
        """A role's variables as a stage that does not train it reads them: `teacher_weights`.

        Everything that is said of the teacher is said of these. The same variables give the same
        arrays, which members that share a teacher then share too.
        """
        if role != "teacher" or self.teacher_weights == "float32":
            return variables
        if any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(variables)):
            return keep(variables, self.teacher_weights)  # a plan is only traced
        return _kept(Identity(variables), self.teacher_weights)

    def predict(self, role: str, variables: PyTree, split: str = "test") -> np.ndarray:
        """The logits of every example of a split, `[N, C]`, in evaluation mode.

        On several hosts each computes all of them; all must call it.
        """
        stream = self.sequential(split)
        forward = _forward(self.networks[role], stream.assemble, self.reads(role))
        variables, parts = gather(self.kept(role, variables)), []
        for item in stream.items(whole=True):
            logits, where = forward(variables, stream.table, item)
            parts.append(np.asarray(logits)[np.asarray(where)])
        return np.concatenate(parts)

    def reference(self, teacher: PyTree) -> np.ndarray:
        """What `scores` compares with: the teacher's logits on the test split, `[N, C]`."""
        return self.predict("teacher", teacher)

    def scores(self, role: str, variables: PyTree, reference: np.ndarray | None) -> dict:
        """Metric -> number on the test split, compared with the teacher's unless that is None."""
        labels, logits = self.dataset.splits["test"].labels(), self.predict(role, variables)
        found = evaluation.scores(logits, labels, reference)
        few = self.few_shot_classes()[labels]
        if few.any() and not few.all():
            found["few_shot_accuracy"] = evaluation.accuracy(logits, labels, few)
        return found

    def few_shot_classes(self) -> np.ndarray:
        """Which classes have fewer than 20 training examples, bool `[C]`.

        Their accuracy is what long-tailed data are judged by: Liu et al. 2019, arXiv:1904.05160.
        """
        labels = self.dataset.splits["train"].labels()
        return np.bincount(labels, minlength=self.dataset.num_classes) < 20

    def with_teacher(self, variables: PyTree) -> Task:
        """This task with a teacher that is already trained."""
        return dataclasses.replace(self, given={**self.given, "teacher": variables})

    def network_with(self, role: str, changes: Mapping[str, Any]) -> Network:
        """The network of a role with some of its options changed; without changes its own.

        Raises:
          ValueError: the task does not know how the network was built, or an option is wrong.
        """
        if not changes:
            return self.networks[role]
        if role not in self.variants:
            raise ValueError(
                f"the task has no variants of the {role}, so that {sorted(changes)} of its network "
                "cannot be chosen; build it from a config, or give Task(variants=...)"
            )
        return self.variants[role](changes)

    def with_network(self, role: str, network: Network) -> Task:
        """This task with another network of a role, such as one that a search has found."""
        return dataclasses.replace(self, networks={**self.networks, role: network})


class Identity:
    """A tree of arrays as a key: equal to another of the very same arrays."""

    def __init__(self, tree: PyTree):
        self.tree = tree
        leaves, structure = jax.tree.flatten(tree)
        self._key = (structure, tuple(map(id, leaves)))

    def __hash__(self) -> int:
        return hash(self._key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Identity) and self._key == other._key


@functools.lru_cache(maxsize=1)
def _kept(variables: Identity, kind: str) -> PyTree:
    return keep(variables.tree, kind)


@functools.lru_cache(maxsize=64)
def _sequential(split: Split, mean, std):
    """One stream a split, so that its table is on the device once; every device gets examples."""
    devices = jax.device_count()
    return sequential(split, -(-min(256, len(split)) // devices) * devices, mean=mean, std=std)


@functools.lru_cache(maxsize=64)
def _resident(split: Split, batch_size: int, seed: int, augment, mean, std, rows=None):
    """One stream for all members that read the same batches: they are then read once."""
    options = dict(augment=augment, mean=mean, std=std)
    return resident(split, batch_size, seed=seed, indices=rows, repeats=rows is not None, **options)


@functools.lru_cache(maxsize=64)
def _forward(network: Network, assemble, fields: Fields):
    def forward(variables, table, item):
        batch = assemble(table, item)
        return logits_of(network.apply(variables, *inputs(batch, fields)).output), batch["where"]

    return jax.jit(forward)


@functools.lru_cache(maxsize=64)
def classification_metrics(role: str, network: Network, fields: Fields = "image"):
    """`(variables, batch) -> {accuracy, cross_entropy}` of a role, for a `Validation`."""

    def evaluate(variables, batch) -> dict[str, Term]:
        logits = logits_of(network.apply(variables[role], *inputs(batch, fields)).output)
        correct = jnp.argmax(logits, -1) == batch["label"]
        return {
            "accuracy": mean(correct.astype(jnp.float32), batch["where"]),
            "cross_entropy": mean(losses.cross_entropy(logits, batch["label"]), batch["where"]),
        }

    return evaluate


@dataclasses.dataclass(frozen=True)
class Trained:
    """What a recipe returns of one role.

    Attributes:
      last: its variables after the last step.
      selected: its variables where the validation accuracy was best.
      network: what reads them, where that is not the task's own network: a method may give a
        student a second head. None: the task's.
      changes: options of the role's network that the recipe chose, with which `network` was built.
    """

    last: PyTree
    selected: PyTree
    selected_step: int
    network: Network | None = None
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def on(self, task: Task, role: str = "student") -> Task:
        """The task whose network of the role reads these variables."""
        if self.network is None:
            return task
        return task.with_network(role, self.network)

    @staticmethod
    def of(outcome: Outcome, role: str) -> Trained:
        return Trained(outcome.variables[role], outcome.selected[role], int(outcome.selected_step))
