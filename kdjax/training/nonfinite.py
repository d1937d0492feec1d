"""What is done about a loss or a gradient that is not finite: stop, skip the update, roll back.

stop: the run ends, and its newest checkpoint stays. skip: the update changes nothing and is
counted; the compiled step decides, the host counts when it reads reports. rollback: the stage goes
back to its newest regular checkpoint and on in another order of the data, with other random
numbers. Each is a function of the losses alone, so a run that was killed ends with the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kdjax.training.stage import PyTree, Stage, Stream, Term

POLICIES = ("stop", "skip", "rollback")
SKIPPED = "skipped"


class NonFiniteLoss(RuntimeError):
    """A term of a loss became infinite or not a number; names stage, step and term."""


def unless_finite(
    before: PyTree, after: PyTree, report: Mapping[str, Term], prefix: str
) -> tuple[PyTree, dict[str, Term]]:
    """`(after, report)` of an update, or `(before, zeros)` if a number of the report is not finite.

    Args:
      before, after: what the update may change, trees of one structure.
      report: the update's losses, gradient norm and metrics, by name.
      prefix: of the names.

    The report is sorted by name and gains a row `skipped` of weight 1. Its total is 0 for an update
    that acted; else it is where the row that was not finite lies, counted from its own row.
    """
    name = prefix + SKIPPED
    if name in report:
        raise ValueError(
            f"a metric is called {name!r}, which is what skipped updates are counted in"
        )
    order = sorted([*report, name])
    # The terms of the loss first: a loss that is not finite spoils the norm of its gradient too.
    asked = sorted(report, key=lambda n: (not n.startswith(f"{prefix}loss/"), n))
    bad = jnp.stack(
        [~(jnp.isfinite(report[n].total) & jnp.isfinite(report[n].weight)) for n in asked]
    )
    offsets = jnp.array([order.index(n) - order.index(name) for n in asked], jnp.float32)
    skip = jnp.any(bad)
    kept = jax.tree.map(lambda old, new: jnp.where(skip, old, new), before, after)
    rows = {
        n: Term(*(jnp.where(skip, 0, jnp.asarray(x, jnp.float32)) for x in term[:2]))
        for n, term in report.items()
    }
    rows[name] = Term(jnp.where(skip, offsets[jnp.argmax(bad)], 0), jnp.float32(1))
    return kept, {n: rows[n] for n in order}


def none_acted(report: Mapping[str, Term]) -> jax.Array:
    """Whether every update of a step that was due was skipped, and one was due."""
    rows = [term for name, term in report.items() if name.rpartition("/")[2] == SKIPPED]
    due = sum(term.weight for term in rows)
    return (due > 0) & (sum(jnp.where(term.total != 0, 1.0, 0.0) for term in rows) == due)


class NonFinitePolicy:
    """The policy of a stage's run, and what it has counted: kept in every checkpoint.

    Args:
      stage: for its name, streams and seeds.
      policy: one of `POLICIES`.
      limit: updates in a row that may be skipped, or times that the stage may go back.

    Raises:
      ValueError: a stream has no other order, and the policy is to roll back.
    """

    def __init__(self, stage: Stage, policy: str, limit: int):
        self._stage, self._policy, self._limit = stage, policy, limit
        self.rollbacks = 0
        self._skipped: dict[str, np.ndarray] = {}  # by update, one number a member
        self._in_row: dict[str, np.ndarray] = {}
        if policy == "rollback":
            for name, stream in stage.data.items():
                try:
                    _reordered(stream, 1)
                except ValueError as error:
                    raise ValueError(
                        f"stage {stage.name!r}: nonfinite='rollback' goes on in another order of "
                        f"the data, but stream {name!r}: {error}"
                    ) from error

    @property
    def skips(self) -> bool:
        return self._policy == "skip"

    def restore(self, extra: Mapping[str, Any]) -> None:
        """Takes up what a checkpoint kept; a stage that has gone back does not forget that."""
        kept = extra.get("nonfinite", {})
        self.rollbacks = max(self.rollbacks, kept.get("rollbacks", 0))
        self._skipped = {n: np.asarray(x, np.int64) for n, x in kept.get("skipped", {}).items()}
        self._in_row = {n: np.asarray(x, np.int64) for n, x in kept.get("in_row", {}).items()}

    def kept(self) -> dict[str, Any]:
        """What a checkpoint keeps, as JSON."""
        lists = [{n: x.tolist() for n, x in part.items()} for part in (self._skipped, self._in_row)]
        return {"rollbacks": self.rollbacks, "skipped": lists[0], "in_row": lists[1]}

    def stream(self, stream: Stream) -> Stream:
        """The stream in the order of this attempt."""
        return _reordered(stream, self.rollbacks) if self.rollbacks else stream

    def keys(self, keys: jax.Array) -> jax.Array:
        """The random keys of this attempt; far from those of steps, which count from 0."""
        if not self.rollbacks:
            return keys
        number = np.uint32(2**32 - self.rollbacks)
        fold: Callable = jax.random.fold_in
        return (jax.vmap(fold, in_axes=(0, None)) if keys.ndim else fold)(keys, number)

    def count(self, names: Sequence[str], first: int, rows: Sequence[np.ndarray]) -> dict[str, Any]:
        """What the metrics of a window say: updates skipped in the stage so far, rollbacks.

        Args:
          names: of the report's rows.
          first: the step of the first report.
          rows: `[rows, 2]` a step, or `[members, rows, 2]`.

        Raises:
          NonFiniteLoss: as many updates in a row as the limit were skipped.
        """
        if self._policy == "rollback":
            return {"rollbacks": self.rollbacks}
        if not self.skips:
            return {}
        for i, name in enumerate(names):
            if name.rpartition("/")[2] != SKIPPED:
                continue
            total = self._skipped.get(name, np.int64(0))
            in_row = self._in_row.get(name, np.int64(0))
            for step, row in enumerate(rows, first):
                offset, due = np.asarray(row)[..., i, 0], np.asarray(row)[..., i, 1] > 0
                skipped = due & (offset != 0)
                total = total + skipped
                in_row = np.where(due, np.where(skipped, in_row + 1, 0), in_row)
                if np.any(in_row >= self._limit):
                    member = int(np.argmax(np.atleast_1d(in_row)))
                    term = names[i + int(np.atleast_1d(offset)[member])]
                    who = f" of seed {self._stage.seeds[member]}" if offset.ndim else ""
                    raise NonFiniteLoss(
                        f"stage {self._stage.name!r}, step {step}: {self._limit} updates in a row "
                        f"were skipped (nonfinite_limit); the term {term!r}{who} is not finite"
                    )
            self._skipped[name], self._in_row[name] = np.asarray(total), np.asarray(in_row)
        return dict(self._skipped)

    def roll_back(self, error: NonFiniteLoss) -> str:
        """Counts one more attempt and says so; raises `error` again if there is to be none."""
        if self._policy != "rollback":
            raise error
        if self.rollbacks >= self._limit:
            raise NonFiniteLoss(
                f"{error}; the stage has gone back {self.rollbacks} times (nonfinite_limit)"
            ) from error
        self.rollbacks += 1
        return f"{error}: back to the last checkpoint, in another order ({self.rollbacks})"


def _reordered(stream: Stream, attempt: int) -> Stream:
    if getattr(stream, "stateful", False) or not hasattr(stream, "reordered"):
        raise ValueError(f"{type(stream).__name__} has one order only (no method `reordered`)")
    return stream.reordered(attempt)
