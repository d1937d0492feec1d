"""Toy networks, streams and programs of the engine's tests: small enough to compile in a blink."""

import copy

import jax
import numpy as np
import optax
from jax import numpy as jnp

from kdjax.training import Evaluation, Program, Settings, Stage, Update, checkpoint, mean, run

checkpoint._SMALL = 64  # bytes: what is kept of the toys has arrays of either kind

# With several programs under way, XLA's devices on one CPU can wait for each other for ever.
ONE_AT_A_TIME = {"JAX_CPU_ENABLE_ASYNC_DISPATCH": "false"}


def problem(examples=96, features=4, classes=3, seed=0):
    """A table of a linearly separable problem, with ids."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(examples, features)).astype(np.float32)
    y = (x @ rng.normal(size=(features, classes))).argmax(-1).astype(np.int32)
    return {"x": x, "y": y, "id": np.arange(examples, dtype=np.int32)}


def rows(table, item):
    return {name: column[item["row"]] for name, column in table.items()}


def padded_rows(table, item):
    return {**rows(table, item), "where": item["where"]}


class TableStream:
    """Rows drawn with a generator of (seed, step): the step is the whole state."""

    stateful = False

    def __init__(self, table, batch_size, seed=0, index=None, assemble=rows):
        self.table, self.batch_size, self.assemble = table, batch_size, assemble
        self._seed, self._attempt = seed, []
        self._index = np.arange(len(table["x"])) if index is None else np.asarray(index)

    def reordered(self, attempt):
        other = copy.copy(self)
        other._attempt = [attempt]
        return other

    def items(self, start=0, state=None):
        step = start
        while True:
            rng = np.random.default_rng([self._seed, step, *self._attempt])
            row = rng.choice(self._index, self.batch_size).astype(np.int32)
            yield {"row": row}
            step += 1


class PaddedStream(TableStream):
    """A last part of each batch is padding, a different one each step."""

    def __init__(self, table, batch_size, seed=0):
        super().__init__(table, batch_size, seed, assemble=padded_rows)

    def items(self, start=0, state=None):
        for step, item in enumerate(super().items(start), start):
            yield {**item, "where": np.arange(self.batch_size) < self.batch_size - step % 5}


class WalkStream(TableStream):
    """A walk whose next place depends on all before: the step alone does not tell where it is."""

    stateful = True

    def items(self, start=0, state=None):
        return _Walk(self, state)


class _Walk:
    def __init__(self, stream, state):
        self._stream, self._at = stream, state["at"] if state else 1

    def __iter__(self):
        return self

    def __next__(self):
        row = np.empty(self._stream.batch_size, np.int32)
        for i in range(len(row)):
            self._at = (self._at * 1103515245 + 12345) % 2**31
            row[i] = self._at // 65536 % len(self._stream.table["x"])
        return {"row": row}

    def state(self):
        return {"at": self._at}


class Split:
    """Each example once, the last batch padded."""

    assemble = staticmethod(padded_rows)

    def __init__(self, table, batch_size):
        self.table, self.batch_size = table, batch_size
        self.batches = -(-len(table["x"]) // batch_size)

    def items(self):
        last = len(self.table["x"]) - 1
        for i in range(self.batches):
            row = np.arange(i * self.batch_size, (i + 1) * self.batch_size, dtype=np.int32)
            yield {"row": np.minimum(row, last), "where": row <= last}


def init(seed, features=4, hidden=8, classes=3):
    """Variables of a perceptron with one hidden layer; equal for equal arguments."""
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return jnp.asarray(rng.normal(size=shape) * 0.3, jnp.float32)

    body = {"kernel": draw(features, hidden), "bias": jnp.zeros(hidden)}
    head = {"kernel": draw(hidden, classes), "bias": jnp.zeros(classes)}
    return {"params": {"body": body, "head": head}}


def features(variables, x):
    body = variables["params"]["body"]
    return jnp.tanh(x @ body["kernel"] + body["bias"])


def logits(variables, x):
    head = variables["params"]["head"]
    return features(variables, x) @ head["kernel"] + head["bias"]


def cross_entropy(logits, labels):
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def supervised(role, where=False):
    """The objective of a role trained on labels."""

    def objective(variables, batch, context):
        batch = batch["train"]
        values = cross_entropy(logits(variables[role], batch["x"]), batch["y"])
        return Evaluation({"ce": mean(values, batch["where"] if where else None)})

    return objective


def distill(variables, batch, context):
    """A student on labels and on the teacher's answers, both weights from a schedule."""
    batch = batch["train"]
    student = logits(variables["student"], batch["x"])
    teacher = jax.nn.softmax(logits(variables["teacher"], batch["x"]))
    gap = -jnp.sum(teacher * jax.nn.log_softmax(student), -1)
    weight = context.values["weight"]
    terms = {
        "ce": mean(cross_entropy(student, batch["y"]), coefficient=1 - weight),
        "kd": mean(gap, coefficient=weight),
    }
    return Evaluation(terms)


def accuracy(role):
    def evaluate(variables, batch):
        right = logits(variables[role], batch["x"]).argmax(-1) == batch["y"]
        return {"accuracy": mean(right.astype(jnp.float32), batch["where"])}

    return evaluate


def sgd(rate=0.1):
    return lambda values: optax.sgd(rate)


def adam(rate=0.02):
    return lambda values: optax.adam(rate)


def program(objective=None, optimizer=None, trains=("student",), **kwargs):
    """A program of one update."""
    names = ("schedules", "carries", "stop", "prepare", "values")
    rest = {name: kwargs.pop(name) for name in names if name in kwargs}
    update = Update(objective or supervised("student"), trains, optimizer or sgd(), **kwargs)
    return Program((update,), **rest)


def difference(a, b):
    """The largest difference of two trees of arrays."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    gaps = jax.tree.map(lambda x, y: float(np.max(np.abs(np.asarray(x) - np.asarray(y)))), a, b)
    return max(jax.tree.leaves(gaps), default=0.0)


def bits(tree):
    """The bytes of every array: equal if and only if the trees are."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(x).tobytes() for path, x in leaves}


def train(program, variables, steps=20, data=None, settings=None, metrics=None, **stage):
    """The outcome of a single stage, in memory."""
    data = {"train": TableStream(problem(), 24)} if data is None else data

    def recipe():
        return (yield Stage("toy", program, variables, data, steps, **stage))

    return run(recipe(), settings=settings or Settings(), metrics=metrics)


def unclocked(row):
    """A row of metrics without what a clock has measured."""
    clocked = ("examples_per_second", "stall")
    return {k: x for k, x in row.items() if k not in clocked and not k.startswith("time/")}
