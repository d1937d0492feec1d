"""A tiny language task: rows of prompt and answer from a random Markov chain, and two decoders."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from kdjax.data import Dataset, Split
from kdjax.data.tokenizers import CharacterTokenizer
from kdjax.methods.language_task import LanguageTask
from kdjax.networks.transformer import DecoderConfig
from kdjax.training import divide
from kdjax.training.gradients import gradient
from kdjax.training.optimizers import Training
from kdjax.training.stage import Context
from kdjax.training.state import pick

TOKENIZER = CharacterTokenizer("abcdefghijk")  # 11 characters and the end: a vocabulary of 12
PROMPT, LENGTH = 4, 10
SIZES = {"train": 48, "validation": 16, "test": 12}

TEACHER = DecoderConfig(
    vocabulary=TOKENIZER.vocabulary, width=12, num_layers=1, num_heads=2, hidden=16, max_length=16
)
STUDENT = dataclasses.replace(TEACHER, width=8, hidden=12)


def chain(seed: int = 0) -> np.ndarray:
    """Transition probabilities `[V, V]`, row a token, column the next; the end is never left."""
    rng = np.random.default_rng(seed)
    matrix = rng.dirichlet(np.full(TOKENIZER.vocabulary, 0.3), TOKENIZER.vocabulary)
    matrix[TOKENIZER.end] = np.eye(TOKENIZER.vocabulary)[TOKENIZER.end]
    return matrix


def rows(count: int, seed: int, prompt: int = PROMPT, length: int = LENGTH) -> dict:
    """Arrays of a split: prompts of 1 to `prompt` tokens, left-padded, answers that may end."""
    rng, matrix, end = np.random.default_rng([7, seed]), chain(), TOKENIZER.end
    out = {
        "tokens": np.zeros((count, length), np.int32),
        "completion": np.zeros((count, length), bool),
        "segments": np.zeros((count, length), np.int32),
        "positions": np.zeros((count, length), np.int32),
    }
    for row in range(count):
        start = prompt - int(rng.integers(1, prompt + 1))
        token = int(rng.integers(end))
        for place in range(start, length):
            out["tokens"][row, place] = token
            out["completion"][row, place] = place >= prompt
            out["segments"][row, place] = 1
            out["positions"][row, place] = place - start
            if place >= prompt and token == end:
                break
            chances = matrix[token].copy()
            if place + 1 < prompt:  # a prompt has no end
                chances[end] = 0
            token = int(rng.choice(len(chances), p=chances / chances.sum()))
    return out


@functools.lru_cache(maxsize=1)
def dataset() -> Dataset:
    splits = {
        name: Split.of(rows(size, seed), f"toys/{name}")
        for seed, (name, size) in enumerate(SIZES.items())
    }
    return Dataset("toys", splits, (*"abcdefghijk", "<end>"))


def task(**changes) -> LanguageTask:
    """The task; its decoders and how they are trained are always the same objects, so that
    compiled programs are shared."""
    training = {
        "teacher": Training(steps=20, batch_size=16, learning_rate=3e-3),
        "student": Training(steps=12, batch_size=16, learning_rate=3e-3),
    }
    fields = dict(
        dataset=dataset(),
        training=training,
        validate_every=6,
        decoders={"teacher": TEACHER, "student": STUDENT},
        tokenizer=TOKENIZER,
    )
    return LanguageTask(**{**fields, **changes})


def given(**changes) -> LanguageTask:
    """The task with an untrained teacher."""
    found = task(**changes)
    return found.with_teacher(found.variables("teacher"))


def batch(rows_: int = 8, seed: int = 5, **changes) -> dict:
    """A batch of that many rows, as an objective finds it under `train`."""
    arrays = rows(rows_, seed)
    return {**arrays, "id": np.arange(rows_), "where": np.ones(rows_, bool), **changes}


def padded(batch: dict, rows_: int = 4, places: int = 0) -> dict:
    """The batch with rows that do not count, and places after the end of every row."""
    out = {}
    for name, x in batch.items():
        x = np.asarray(x)
        fill = {"where": False, "tokens": 3, "completion": name == "completion"}.get(name, 1)
        more = np.full((rows_, *x.shape[1:]), fill).astype(x.dtype)
        x = np.concatenate([x, more])
        if places and name in ("tokens", "completion", "segments", "positions"):
            after = np.zeros((len(x), places), x.dtype)
            x = np.concatenate([x, after], axis=1)
        out[name] = x
    return out


def preparing(stage, steps: int = 12):
    """`(variables, memory, batch, step) -> (batch, memory)` of a stage's program, compiled."""
    program = stage.program

    @jax.jit
    def prepare(variables, memory, batch, step):
        values = {n: jnp.asarray(f(step, steps), jnp.float32) for n, f in program.schedules.items()}
        rng = jax.random.fold_in(jax.random.key(0), step)
        return program.prepare(variables, batch, Context(memory, rng, step, values))

    return prepare


def prepared(stage, batch: dict, step: int = 3):
    """`(batch, memory)` that the program of a stage prepares."""
    return preparing(stage)(stage.variables, stage.memory, batch, jnp.int32(step))


def gradient_of(stage, batch: dict, microbatches: int = 1, memory=None):
    """The gradient of a prepared batch, and the mean of every metric."""
    (update,) = stage.program.updates
    update = dataclasses.replace(update, microbatches=microbatches)
    live = {"student": stage.variables["student"]}
    frozen = {role: x for role, x in stage.variables.items() if role != "student"}

    @jax.jit
    def compute(live, frozen, memory, batch):
        schedules = stage.program.schedules
        values = {n: jnp.asarray(f(3, 12), jnp.float32) for n, f in schedules.items()}
        context = Context(memory, jax.random.key(0), jnp.int32(3), values)
        params = pick(live, update.trains)
        result = gradient(update, params, live, frozen, batch, context)
        return result.gradient, {n: divide(*term[:2]) for n, term in result.metrics.items()}

    return compute(live, frozen, stage.memory if memory is None else memory, batch)


def close(a, b, rtol: float = 2e-5) -> None:
    """Trees agree within rtol of the largest number of the second."""
    scale = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(b))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=rtol * scale), a, b)
