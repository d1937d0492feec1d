"""What steps report of themselves, read late so that nothing waits, and refused when not finite."""

from __future__ import annotations

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kdjax.training.nonfinite import NonFiniteLoss, NonFinitePolicy
from kdjax.training.profiling import Clock
from kdjax.training.stage import Stage
from kdjax.training.state import State


class Reports:
    """Reports of steps that were dispatched, read one window late so that nothing waits."""

    def __init__(
        self,
        stage: Stage,
        names: list[str],
        every: int,
        pending: list,
        policy: NonFinitePolicy,
        metrics,
        display,
    ):
        self._stage, self._names, self._every, self._policy = stage, names, every, policy
        self._metrics, self._display = metrics, display
        self._open = [np.asarray(row, np.float32) for row in pending]  # of the unfinished window
        self._closed: tuple | None = None
        self.clock = Clock()
        self._time, self._waited = time.monotonic(), 0.0

    def add(self, step: int, report: jax.Array, waited: float) -> None:
        """The report of `step` (counted from 1) and the time its item was waited for."""
        self._open.append(report)
        self._waited += waited
        if step % self._every == 0 or step == self._stage.steps:
            self.close(step)

    def close(self, step: int) -> None:
        """Ends the window at `step`, and writes the one before it."""
        if not self._open:
            return
        self.write()
        now = time.monotonic()
        self._closed = (step, self._open, self._waited, now - self._time, self.clock.take())
        self._open, self._waited, self._time = [], 0.0, now

    def read(self, step: int, rows: list) -> list[np.ndarray]:
        began = time.monotonic()
        rows = jax.device_get(rows)
        self.clock.blocked += time.monotonic() - began
        for i, row in enumerate(rows):
            if not np.all(np.isfinite(row)):
                self._fail(step - len(rows) + i + 1, row)
        return rows

    def _fail(self, step: int, row: np.ndarray) -> None:
        bad = ~np.isfinite(row).all(axis=-1)
        members = bad if bad.ndim == 1 else bad.any(axis=0)
        names = [name for name, is_bad in zip(self._names, members) if is_bad]
        terms = [name for name in names if "loss/" in name] or names
        who = ""
        if bad.ndim == 2:
            who = f" of seed {self._stage.seeds[int(np.flatnonzero(bad.any(axis=1))[0])]}"
        raise NonFiniteLoss(
            f"stage {self._stage.name!r}, step {step}: the term {terms[0]!r}{who} is not finite"
        )

    def pending(self, step: int) -> list:
        """The reports of the unfinished window, checked: what a checkpoint keeps of it."""
        self.write()
        return [row.tolist() for row in self.read(step, self._open)]

    def write(self, last: bool = False) -> None:
        """Writes the window that was ended; the last one lasts until it is computed."""
        if self._closed is None:
            return
        (step, rows, waited, seconds, parts), self._closed = self._closed, None
        rows = self.read(step, rows)
        count = len(rows)
        counted = self._policy.count(self._names, step - count + 1, rows)
        total = np.sum(np.asarray(rows, np.float64), axis=0)
        if last:
            seconds += time.monotonic() - self._time
            parts["blocked"] += 1000 * self.clock.blocked / count
        values: dict[str, Any] = {}
        for i, name in enumerate(self._names):
            sums, weights = total[..., i, 0], total[..., i, 1]
            if np.any(weights > 0) and name not in counted:
                values[name] = np.divide(
                    sums, weights, out=np.full_like(sums, np.nan), where=weights > 0
                )
        values |= counted
        members = max(len(self._stage.seeds), 1)
        size = self._stage.examples
        if size is None:
            size = sum(stream.batch_size for stream in self._stage.data.values())
        values["examples_per_second"] = count * size * members / seconds
        values["stall"] = waited / seconds
        parts |= {"step": 1000 * seconds / count, "device": 1000 * (seconds - waited) / count}
        values |= {f"time/{name}": value for name, value in parts.items()}
        self._metrics.write(self._stage.name, step, "train", values)
        losses = [x for name, x in values.items() if name.rpartition("/")[2] == "loss"]
        loss = float(np.nanmean(losses[0])) if losses else float("nan")
        self._display.update(step, loss, values["examples_per_second"])


@jax.jit
def _finite(tree) -> jax.Array:
    leaves = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return jnp.all(jnp.array([jnp.all(jnp.isfinite(x)) for x in leaves]))


def check_parameters(stage: Stage, state: State, step: int) -> None:
    """A gradient can be infinite where its loss was not: never keep what it has spoilt."""
    for role, tree in state.variables.items():
        if "params" in tree and not bool(_finite(tree["params"])):
            raise NonFiniteLoss(
                f"stage {stage.name!r}, step {step}: a parameter of {role!r} is not finite, "
                "though no term of the loss was: the gradient overflowed"
            )
