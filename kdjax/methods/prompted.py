"""What methods share whose models answer prompts while, or before, the student is trained.

A prompted task has rows of one prompt and one answer, which begins at the same place of all rows
(`rollouts`). Besides its three splits a data set may have `corpus`: text that the student was, or
could have been, pre-trained on, and is kept from forgetting.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Generator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kdjax.data import Split
from kdjax.methods import rollouts
from kdjax.methods.language_task import LanguageTask
from kdjax.networks.transformer import DecoderConfig
from kdjax.training import Compute
from kdjax.training.optimizers import Training

PyTree = Any


def prompt_length(task: LanguageTask) -> int:
    """The place where the answers of a task begin, the same in every row of the training split.

    Raises:
      ValueError: rows whose answers begin at different places, rows without an answer, or rows of
        several documents: such rows have no prompt that a model could answer.
    """
    split = task.dataset.splits["train"]
    arrays = split.arrays()
    completion = np.asarray(arrays["completion"])
    starts = np.where(completion.any(1), completion.argmax(1), -1)
    if (odd := np.flatnonzero((starts != starts[0]) | (starts < 1))).size:
        row = int(odd[0])
        found = f"at {starts[row]}" if starts[row] >= 0 else "nowhere"
        raise ValueError(
            f"answers must begin at one place, not the first, of all rows of {split.where}, with "
            f"prompts padded on the left, but begin at {starts[0]} in row 0 and {found} in row "
            f"{row}"
        )
    documents = np.asarray(arrays["segments"]).max(1)
    if (documents > 1).any():
        row = int(documents.argmax())
        raise ValueError(
            f"rows must hold one document each to be answered, but row {row} of {split.where} "
            f"holds {documents[row]}"
        )
    return int(starts[0])


def check_live_teacher(task: LanguageTask) -> None:
    """Refuses a cached teacher where the student trains on rows that the cache does not know."""
    if task.cache_teacher:
        raise ValueError(
            "cache_teacher keeps the teacher's states of the data's rows, but this method trains "
            "on rows that a model writes: take the cache away"
        )


def corpus(task: LanguageTask, weight: float) -> dict[str, Any]:
    """The stream `corpus`, where it has a weight.

    Raises:
      ValueError: a weight, but no split `corpus`.
    """
    if not weight:
        return {}
    if "corpus" not in task.dataset.splits:
        raise ValueError(
            f"corpus_weight={weight} needs a split 'corpus' of the data set, which has "
            f"{sorted(task.dataset.splits)}"
        )
    return {"corpus": task.stream("student", "corpus", "corpus")}


def examples(training: Training, corpus_weight: float) -> int:
    """How many rows a step trains on: a batch, and one of the corpus where that has a weight."""
    return training.batch_size * (2 if corpus_weight else 1)


@functools.lru_cache(maxsize=16)
def _answer(config: DecoderConfig, start: int, stop: tuple[int, ...]):
    def answer(variables, batch, rng, temperature):
        options = dict(prompt_length=start, stop=stop, temperature=temperature)
        found = rollouts.roll_out(config, variables, batch, rng, **options)
        return {name: found.batch[name] for name in rollouts.ROW}

    return jax.jit(answer)


def answered(
    task: LanguageTask, teacher: PyTree, temperature: float, *, batch_size: int = 256
) -> Generator:
    """The task with the teacher's answers in place of the training split's (a `Compute`).

    A row's answer depends on the run's seed, the row and its prompt alone. An answer that meets
    the end of its row without a stop token is kept as it is.
    """
    start = prompt_length(task)
    split = task.dataset.splits["train"]
    arrays = split.arrays()
    answer = _answer(task.decoders["teacher"], start, (task.tokenizer.end,))

    def write(rng: np.random.Generator) -> dict[str, np.ndarray]:
        key, size = jax.random.key(int(rng.integers(2**31))), min(batch_size, len(split))
        parts: list[dict[str, np.ndarray]] = []
        for first in range(0, len(split), size):
            ids = np.arange(first, first + size)
            where = ids < len(split)
            rows = np.minimum(ids, len(split) - 1)
            batch = {name: jnp.asarray(arrays[name][rows]) for name in rollouts.ROW}
            batch |= {"id": jnp.asarray(ids), "where": jnp.asarray(where)}
            found = answer(teacher, batch, key, temperature)
            parts.append({name: np.asarray(x)[where] for name, x in found.items()})
        return {name: np.concatenate([part[name] for part in parts]) for name in rollouts.ROW}

    found = yield Compute("teacher_answers", write)
    others = {name: x for name, x in arrays.items() if name not in rollouts.ROW}
    train = Split.of({**others, **found}, f"{split.where}, answered by the teacher")
    splits = {**task.dataset.splits, "train": train}
    return dataclasses.replace(task, dataset=dataclasses.replace(task.dataset, splits=splits))
