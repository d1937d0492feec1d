"""States of streams that have one: each process reads its own part, and has a state of its own."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from kdjax.training.stage import Stage

States = dict[str, Any]  # stream -> what its iterator's `state()` gave


def of_all(states: States) -> list[States]:
    """The states of every process, for the checkpoint; all must call it where there are any."""
    if jax.process_count() == 1 or not states:
        return [states] * jax.process_count()
    text = np.frombuffer(json.dumps(states).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(len(text)))
    padded = np.pad(text, (0, int(sizes.max()) - len(text)))
    rows = multihost_utils.process_allgather(padded)
    return [json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes)]


def of_this(stage: Stage, saved: Sequence[States]) -> Mapping[str, Any]:
    """What `of_all` kept of this process; nothing where nothing was saved.

    Raises:
      ValueError: another number of processes saved: which part is whose cannot be told.
    """
    names = sorted({name for states in saved for name in states})
    if names and len(saved) != jax.process_count():
        raise ValueError(
            f"stage {stage.name!r}: the stream {names[0]!r} has a state of its own on each of the "
            f"{len(saved)} processes that saved it: it goes on with as many, got "
            f"{jax.process_count()}"
        )
    return saved[jax.process_index()] if names else {}
