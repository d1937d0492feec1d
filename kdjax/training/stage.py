"""The nouns of training: what an objective returns, what a program does, what a recipe yields.

Nothing here computes; `step.py` compiles a program, `loop.py` runs a stage, `journal.py` replays a
recipe.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from kdjax.training.loss_scale import LossScale

PyTree = Any
Variables = Mapping[str, PyTree]  # role -> {"params": ..., other collections}
Scalar = float | jax.Array


@dataclasses.dataclass(frozen=True, eq=False)
class Deferred(Mapping):
    """Variables that do not exist yet: `function(*arguments)`, made where they are to live.

    The function is traced, so that no device and no host ever holds more of the result than its
    part; the same function with other arguments is not compiled again. Looked into, as a mapping
    or a pytree, it is made whole on the default device, as a test or a notebook may want it.

    Attributes:
      function: pure, such as a network's `init`.
      arguments: arrays, such as a key and an example of its input.

    >>> deferred = Deferred(lambda n: {"params": {"w": jnp.full(2, n)}}, (3.0,))
    >>> deferred["params"]["w"].tolist()
    [3.0, 3.0]
    """

    function: Callable[..., PyTree]
    arguments: tuple = ()

    def make(self, shardings: PyTree = None) -> PyTree:
        """The variables: whole on the default device, or cut as a tree of shardings says."""
        options = {} if shardings is None else {"out_shardings": shardings}
        return jax.jit(self.function, **options)(*self.arguments)

    def _whole(self) -> PyTree:
        if "whole" in self.__dict__:
            return self.__dict__["whole"]
        whole = self.make()
        if not any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(whole)):
            self.__dict__["whole"] = whole
        return whole

    def __getitem__(self, name: str) -> PyTree:
        return self._whole()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._whole())

    def __len__(self) -> int:
        return len(self._whole())


jax.tree_util.register_pytree_with_keys(
    Deferred,
    lambda x: ([(jax.tree_util.DictKey(name), x[name]) for name in x], tuple(x)),
    lambda names, children: dict(zip(names, children)),
)


def made(variables: PyTree) -> PyTree:
    """A role's variables, made if they are `Deferred`."""
    return variables.make() if isinstance(variables, Deferred) else variables


def abstract(variables: PyTree) -> PyTree:
    """The shapes of a role's variables if they are `Deferred`, else the variables as they are."""
    return jax.eval_shape(variables.make) if isinstance(variables, Deferred) else variables


class Term(NamedTuple):
    """A mean that has not been divided yet: `coefficient * total / weight`.

    The engine divides once, by the weight of the whole global batch, so that a value does not
    depend on how the batch was cut into micro-batches, devices or padding.
    """

    total: jax.Array
    weight: jax.Array
    coefficient: Scalar = 1.0


def mean(values: jax.Array, where: jax.Array | None = None, coefficient: Scalar = 1.0) -> Term:
    """The mean of `values` over the positions where `where` is true, as a `Term`.

    Args:
      values: `[...]`, one value a position.
      where: `[...]`, bool or non-negative weights, broadcast against `values`; None: all ones.
        A position of weight zero gives neither value nor gradient, whatever it holds.
      coefficient: what the mean is multiplied with in the sum of the terms.

    >>> term = mean(jnp.array([1.0, 3.0, jnp.nan]), where=jnp.array([True, True, False]))
    >>> float(term.total), float(term.weight)
    (4.0, 2.0)
    """
    weights = jnp.ones_like(values) if where is None else jnp.asarray(where, values.dtype)
    weights = lax.stop_gradient(jnp.broadcast_to(weights, values.shape))
    kept = jnp.where(weights > 0, values, 0)
    return Term(jnp.sum(kept * weights), jnp.sum(weights), coefficient)


def divide(total: Any, weight: Any) -> jax.Array:
    """`total / weight`, and zero with zero gradient where the weight is zero.

    >>> float(divide(jnp.float32(3), jnp.float32(2))), float(divide(jnp.float32(0), jnp.float32(0)))
    (1.5, 0.0)
    """
    return jnp.where(weight > 0, total / jnp.where(weight > 0, weight, 1), 0.0)


class Context(NamedTuple):
    """What an objective may read besides variables and batch."""

    memory: PyTree
    rng: jax.Array
    step: jax.Array
    values: Mapping[str, jax.Array]  # the stage's values, and schedules at this step; traced
    axis: str | None = None  # of devices, where each runs a program of its own (pmap)


def gathered(x: jax.Array, context: Context) -> jax.Array:
    """The rows `[batch, ...]` of all devices in order: what an objective may put into a queue.

    Under `jit` an objective sees the whole batch already; under `pmap` only its device's rows.
    """
    return x if context.axis is None else lax.all_gather(x, context.axis, tiled=True)


class Evaluation(NamedTuple):
    """What an objective returns."""

    terms: Mapping[str, Term]
    variables: Variables = types.MappingProxyType(
        {}
    )  # roles whose other collections changed (batch statistics)
    memory: PyTree = None  # None: unchanged
    metrics: Mapping[str, Term] = types.MappingProxyType({})


class Combined(NamedTuple):
    """What an update's `combine` returns: the gradient to apply, and what to report of it."""

    gradient: PyTree
    metrics: Mapping[str, Term] = types.MappingProxyType({})


Objective = Callable[[Variables, PyTree, Context], Evaluation]


@dataclasses.dataclass(frozen=True, eq=False)
class Update:
    """An objective, what it trains, its optimizer, when it acts, how its gradients combine.

    Attributes:
      objective: `(variables, batch, context) -> Evaluation`, pure.
      trains: roles, or `"role:regex"` over parameter paths such as `"student:^head/"`.
      optimizer: `values -> optax.GradientTransformation`; hyperparameters taken from the
        program's schedules are traced and never recompile.
      when: every so many steps, or `context -> bool` (alternation, hysteresis). When an update
        does not act, nothing of it changes.
      combine: `{term: gradient} -> Combined`, applied after the one division. Each gradient
        carries its term's coefficient, and is a tree `{role: {path: array}}`.
      microbatches: into how many parts the batch is cut; the gradient is that of the whole batch.
      batchwise: the objective compares examples with each other, so that cutting the batch would
        change it. Micro-batches are then refused unless `embed` is given.
      embed: `(variables, batch, context) -> (embeddings, variables)`, example by example. The
        objective finds the result under `batch["embeddings"]` for the whole batch, and the exact
        gradient is pulled back one micro-batch at a time (gradient caching, Gao et al. 2021,
        arXiv:2101.06983).
      after: `(variables, context, metrics) -> (variables, memory)`: moving averages, momentum
        teachers, controllers. Runs after the optimizer.
      name: prefix of the update's metrics; needed when two updates share the name of a term.
      loss_scale: for networks that compute in float16 (see `loss_scale.py`); its state lies with
        the optimizer's. None: the loss is not scaled.
    """

    objective: Objective
    trains: tuple[str, ...]
    optimizer: Callable[[Mapping[str, jax.Array]], optax.GradientTransformation]
    when: int | Callable[[Context], jax.Array] = 1
    combine: Callable[[Mapping[str, PyTree]], Combined] | None = None
    microbatches: int = 1
    batchwise: bool = False
    embed: Callable[[Variables, PyTree, Context], tuple[PyTree, Variables]] | None = None
    after: Callable[[Variables, Context, Mapping[str, Term]], tuple[Variables, PyTree]] | None = (
        None
    )
    name: str = ""
    loss_scale: LossScale | None = None

    def __post_init__(self):
        if isinstance(self.trains, str) or not self.trains:
            raise ValueError(f"trains must be a non-empty tuple of roles, got {self.trains!r}")
        if self.microbatches < 1:
            raise ValueError(f"microbatches must be at least 1, got {self.microbatches}")
        if not callable(self.when) and self.when < 1:
            raise ValueError(f"when must be at least 1, or a condition, got {self.when}")
        if self.batchwise and self.microbatches > 1 and self.embed is None:
            raise ValueError(
                f"microbatches={self.microbatches} would change an objective that compares the "
                "examples of a batch; give `embed` (gradient caching) or use microbatches=1"
            )


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """Updates in order, and what is prepared outside every gradient.

    Compared by identity: its identity is the key of one compiled step, so rounds and restarts of
    a stage that share a program share its compilation. Build a program once, outside loops.

    Attributes:
      updates: act in order within a step; a later one sees what an earlier one changed.
      prepare: `(variables, batch, context) -> (batch, memory)`: teacher forward, rollouts, mixup.
      schedules: name -> `(step, steps) -> scalar`, read through `context.values`. A schedule whose
        name is also one of `values` multiplies that value: a rate falls from a peak.
      carries: roles that change without a gradient.
      stop: `context -> bool`, read after the updates: an exact early end of the stage.
      values: names of the scalars that a stage must bring, read through `context.values` too.
    """

    updates: tuple[Update, ...]
    prepare: Callable[[Variables, PyTree, Context], tuple[PyTree, PyTree]] | None = None
    schedules: Mapping[str, Callable[[Any, Any], Any]] = dataclasses.field(default_factory=dict)
    carries: tuple[str, ...] = ()
    stop: Callable[[Context], jax.Array] | None = None
    values: tuple[str, ...] = ()

    def __post_init__(self):
        if not self.updates:
            raise ValueError("updates must hold at least one Update, got none")

    @property
    def live(self) -> tuple[str, ...]:
        """The roles that change; every other role is frozen."""
        trained = {name.partition(":")[0] for update in self.updates for name in update.trains}
        return tuple(sorted(trained | set(self.carries)))


class Stream(Protocol):
    """Batches in a fixed order.

    Attributes:
      batch_size: the number of examples of a global batch.
      table: arrays that stay on the device for the whole stage; `{}` if records come from the host.
      assemble: `(table, item) -> batch`, pure, part of the compiled step. Its identity is part of
        the step's key, so streams that process alike hold the same function.
      stateful: False: the item of step t is a function of (seed, t), and the step is the whole
        state. True: the iterator has `state()`, checkpointed with the rest.

    A stream that is not stateful may have `reordered(attempt) -> Stream`: the same examples in
    another order, a function of the seed and of `attempt` (1, 2, ...). Rolling back asks for it.
    """

    batch_size: int
    table: PyTree
    assemble: Callable[[PyTree, PyTree], PyTree]
    stateful: bool

    def items(self, start: int = 0, state: dict | None = None) -> Iterator[PyTree]:
        """Host arrays of steps start, start + 1, ..., endless. Arrays lead with the batch axis."""
        ...


class FiniteStream(Protocol):
    """Each example once, the last batch padded: what a validation reads."""

    batch_size: int
    batches: int
    table: PyTree
    assemble: Callable[[PyTree, PyTree], PyTree]

    def items(self) -> Iterator[PyTree]: ...


@dataclasses.dataclass(frozen=True)
class Validation:
    """Scores the live variables now and then, and keeps the best: selection without the test set.

    Attributes:
      evaluate: `(variables, batch) -> {metric: Term}`, pure; batches carry `where`.
      stream: the validation split.
      every: steps between evaluations; the last step of a stage is always evaluated.
      score: the metric whose largest value selects; the earliest of equals wins.
      conclude: `{metric: mean} -> {metric: scalar}`, pure: what only the whole split tells, such as
        the best of a grid. The totals of `evaluate` may then be arrays. None: the means.
      after: `(memory, {metric: scalar}) -> memory`, pure: what the program keeps of an evaluation,
        such as a controller that follows the loss on unseen examples. The stage is then evaluated
        before its first step too, which is not logged and selects nothing. None: nothing is kept.
    """

    evaluate: Callable[[Variables, PyTree], Mapping[str, Term]]
    stream: FiniteStream
    every: int
    score: str = "accuracy"
    conclude: Callable[[Mapping[str, jax.Array]], Mapping[str, jax.Array]] | None = None
    after: Callable[[PyTree, Mapping[str, jax.Array]], PyTree] | None = None


@dataclasses.dataclass(frozen=True)
class Stage:
    """A program run for a number of steps, from given variables, on given streams.

    Attributes:
      name: unique in a run; names the stage's place in the journal and its random numbers.
      variables: the starting point of every role the program reads: arrays, or `Deferred` for what
        is made where it lives when the stage begins.
      memory: what the program keeps besides variables (queues, prototypes, controllers).
      continues: the outcome of an earlier stage with the same program, whose optimizer and memory
        are kept; its variables replace `variables` of the live roles.
      values: what the program's `values` names: scalars, arguments of the compiled step, so that
        stages that differ in them share it.
      seeds: empty for one member. Else the stage trains one member a seed together under `vmap`,
        and live variables, memory, values and whatever is not in `shared` or `grouped` have a
        leading axis of members.
      shared: frozen roles and streams (by name) that all members have in common.
      groups: the members are this many groups of one size, one after the other.
      grouped: frozen roles and streams that the members of a group have in common: their leading
        axis is one of groups.
      names: of each member's random numbers, as `origin` has one; empty: the stage's.
      examples: how many a step trains on, for its reported speed. None: all that its streams bring,
        which is more where a step only reads some of them, or reads them now and then.
      origin: (seed, name) that the random numbers come from, instead of the run's seed and the
        stage's name: a stage of another recipe, run within this one.
    """

    name: str
    program: Program
    variables: Variables
    data: Mapping[str, Stream]
    steps: int
    memory: PyTree = dataclasses.field(default_factory=dict)
    validation: Validation | None = None
    continues: Outcome | None = None
    values: Mapping[str, Scalar] = dataclasses.field(default_factory=dict)
    seeds: tuple[int, ...] = ()
    shared: frozenset[str] = frozenset()
    groups: int = 1
    grouped: frozenset[str] = frozenset()
    names: tuple[str, ...] = ()
    origin: tuple[int, str] | None = None
    examples: int | None = None

    def __post_init__(self):
        if self.examples is not None and self.examples < 1:
            raise ValueError(f"stage {self.name!r}: examples must be positive, got {self.examples}")


@dataclasses.dataclass(frozen=True)
class Compute:
    """Host mathematics between stages: PCA, selection, search, surgery. Run once, and kept.

    Attributes:
      name: unique in a run.
      function: `(numpy Generator, *arguments) -> {name: array}`.
      arguments: arrays, or outcomes of earlier stages.
      shapes: what it returns, where that is known before it runs and the recipe reads no values
        of it: a plan of the recipe (`planning.py`) then goes on past it. None: it ends there.
    """

    name: str
    function: Callable[..., Mapping[str, np.ndarray]]
    arguments: tuple = ()
    shapes: Mapping[str, jax.ShapeDtypeStruct] | None = None


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a recipe is sent back for a stage. Variables are read when they are asked for."""

    load: Callable[[], Any]
    steps: int

    @property
    def variables(self) -> Variables:
        """The live roles after the last step."""
        return self.load().variables

    @property
    def memory(self) -> PyTree:
        return self.load().memory

    @property
    def selected(self) -> Variables:
        """The live roles where the validation score was largest; those of the last step if the
        stage had no validation."""
        state = self.load()
        return state.selected["variables"] if state.selected else state.variables

    @property
    def selected_step(self) -> int | np.ndarray:
        state = self.load()
        return np.asarray(state.selected["step"] if state.selected else state.step)
