"""A tiny model that teaches itself: rows with a privileged prompt, one step at a time."""

import dataclasses
import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import language_toys as toys
import numpy as np

from kdjax.data import Split
from kdjax.methods import opsd
from kdjax.training import divide
from kdjax.training.gradients import gradient
from kdjax.training.stage import Context
from kdjax.training.state import pick

MODEL = dataclasses.replace(toys.STUDENT, max_length=32)
TEACHER_LENGTH, TRANSITION, REQUEST = 8, (1, 2), (3, 4, 5)
PLAIN = opsd.Config(
    temperature=1.0,
    sampling_temperature=1.0,
    sampling_top_k=None,
    sampling_top_p=None,
    lora_rank=0,
)
ADAPTED = dataclasses.replace(PLAIN, lora_rank=2, lora_alpha=6.0)
PLACES = dataclasses.replace(PLAIN, reduction="sequence_mean", top_k=3, beta=0.2, temperature=1.3)
FEATURES = "teacher_hidden"


def privileged(arrays):
    """The arrays with the prompts of a teacher: the beginning of the answer, then the problem."""
    count = len(arrays["tokens"])
    tokens = np.zeros((count, TEACHER_LENGTH), np.int32)
    where = np.zeros(tokens.shape, bool)
    for row in range(count):
        answer = arrays["tokens"][row][arrays["completion"][row]][:3]
        start = arrays["segments"][row].argmax()
        prompt = [*answer, *arrays["tokens"][row, start : toys.PROMPT]]
        tokens[row, -len(prompt) :], where[row, -len(prompt) :] = prompt, True
    cut = np.arange(count) % 2 == 0
    return {
        **arrays,
        "teacher_prompt": tokens,
        "teacher_prompt_where": where,
        "solution_cut": cut,
    }


def reasoning(arrays):
    """Those, and what asks the teacher to reason."""
    constant = {"transition": TRANSITION, "request": REQUEST}
    count = len(arrays["tokens"])
    repeated = {n: np.tile(np.array(x, np.int32), (count, 1)) for n, x in constant.items()}
    return {**privileged(arrays), **repeated}


def alike(arrays):
    """The arrays with a teacher that is shown what the student is."""
    before = ((0, 0), (TEACHER_LENGTH - toys.PROMPT, 0))
    tokens, segments = (np.pad(arrays[n][:, : toys.PROMPT], before) for n in ("tokens", "segments"))
    return {
        **arrays,
        "teacher_prompt": tokens,
        "teacher_prompt_where": segments > 0,
        "solution_cut": np.zeros(len(arrays["tokens"]), bool),
    }


@functools.cache
def dataset(make=privileged):
    data = toys.dataset()
    splits = {n: Split.of(make(x.arrays()), x.where) for n, x in data.splits.items()}
    return dataclasses.replace(data, splits=splits)


def task(make=privileged, **changes):
    training = {"student": toys.task().training["student"]}
    fields = dict(dataset=dataset(make), training=training, decoders={"student": MODEL})
    return toys.task(**{**fields, **changes})


def stage_of(config, make=privileged):
    return opsd.recipe(task(make), config).send(None)


def other_teacher(stage):
    """The stage with a teacher that is another model."""
    moved = jax.tree.map(lambda x: 1.3 * x + 0.05 * jnp.sin(x * 50), stage.variables["student"])
    return dataclasses.replace(stage, variables={**stage.variables, "teacher": moved})


@functools.cache
def preparing(program):
    return toys.preparing(SimpleNamespace(program=program))


def prepared(stage, batch):
    """The batch that the program of a stage prepares; compiled once a program."""
    return preparing(stage.program)(stage.variables, {}, batch, jnp.int32(3))[0]


@functools.cache
def differentiating(program, microbatches):
    (update,) = program.updates
    update = dataclasses.replace(update, microbatches=microbatches)

    @jax.jit
    def compute(live, frozen, batch):
        context = Context({}, jax.random.key(0), jnp.int32(3), {})
        result = gradient(update, pick(live, update.trains), live, frozen, batch, context)
        return result.gradient, {n: divide(*term[:2]) for n, term in result.metrics.items()}

    return compute


def gradient_of(stage, batch, microbatches=1):
    """The gradient of a prepared batch, and the mean of every metric; compiled once a program."""
    live = {"student": stage.variables["student"]}
    frozen = {role: x for role, x in stage.variables.items() if role != "student"}
    return differentiating(stage.program, microbatches)(live, frozen, batch)
