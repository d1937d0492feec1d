"""A recipe replayed from a journal: nothing finished runs twice, nothing unfinished is kept.

Every stage and computation is a node with a name. A finished node is written whole or not at all.
When a run is started again its recipe is replayed: finished nodes are sent back from the journal,
the unfinished stage goes on from its newest checkpoint, and randomness comes from the run's key
and the node's name. A recipe must therefore be deterministic given what it is sent.
"""

from __future__ import annotations

import contextlib
import functools
import pathlib
import shutil
import zlib
from collections.abc import Generator
from typing import Any

import jax
import numpy as np

from kdjax.training.checkpoint import (
    CheckpointError,
    Checkpoints,
    agreed,
    damage,
    load,
    meet,
    put_aside,
    read_manifest,
    reason,
    save,
    write_manifest,
)
from kdjax.training.interrupts import Interrupted, Interrupts
from kdjax.training.lock import locked
from kdjax.training.loop import Settings, abstract_state, continued, train
from kdjax.training.metrics import MetricWriter
from kdjax.training.progress import Display
from kdjax.training.stage import Compute, Outcome, Stage

Recipe = Generator[Stage | Compute, Any, Any]


def run(
    recipe: Recipe,
    *,
    seed: int = 0,
    workdir: str | pathlib.Path | None = None,
    settings: Settings | None = None,
    display: Display | None = None,
    metrics: MetricWriter | None = None,
) -> Any:
    """Runs a recipe to its end and returns what it returns.

    Args:
      recipe: a generator that yields stages and computations and is sent back their outcomes.
      seed: the run's randomness, with the name of each node.
      workdir: the journal, checkpoints and metrics lie here, and a run that is started again goes
        on from them; None: everything stays in memory.
      settings: how stages are run.
      display: progress; default: silent.
      metrics: where metrics go; default: the workdir.

    Raises:
      ValueError: the recipe asks for another node than the journal holds, or twice for one name.
      NonFiniteLoss: a loss is not finite (`Settings.nonfinite`); the last good checkpoint stays.
      Interrupted: SIGTERM or Ctrl-C; the unfinished stage was saved.
      WorkdirInUse: another run holds the workdir.
      CheckpointError: something cannot be written; what was kept before stays.
    """
    settings = settings or Settings()
    display = display or Display(enabled=False)
    folder = None if workdir is None else pathlib.Path(workdir)
    with contextlib.ExitStack() as held:
        if folder is not None:
            held.enter_context(locked(folder, display.say))
        try:
            metrics = metrics or MetricWriter(folder)
            held.callback(metrics.close)
            interrupts = held.enter_context(Interrupts())
            return _replay(recipe, seed, folder, settings, display, metrics, interrupts)
        except OSError as error:
            if folder is None or not str(error.filename).startswith(str(folder)):
                raise  # not of what the run keeps
            raise CheckpointError(
                f"could not write {error.filename}: {error.strerror}; what was kept before stays"
            ) from error


def _replay(recipe, seed, folder, settings, display, metrics, interrupts) -> Any:
    key = jax.random.key(seed)
    position, names, value = 0, set(), None
    while True:
        try:
            node = recipe.send(value)
        except StopIteration as end:
            return end.value
        if not isinstance(node, Stage | Compute):
            raise TypeError(f"a recipe must yield Stage or Compute, got {type(node).__name__}")
        if node.name in names:
            raise ValueError(f"two nodes of the recipe are called {node.name!r}")
        names.add(node.name)
        place = _place(folder, position, node.name)
        position += 1
        number = interrupts.reached()
        if number is not None and folder is not None:
            raise Interrupted(128 + number)
        if isinstance(node, Compute):
            value = _compute(node, seed, place, display)
        else:
            value = _stage(node, key, place, folder, settings, metrics, display, interrupts)


def _place(folder: pathlib.Path | None, position: int, name: str) -> pathlib.Path | None:
    """Where a node lies in the journal; refuses a journal that holds another node there."""
    if folder is None:
        return None
    journal = folder / "journal"
    journal.mkdir(parents=True, exist_ok=True)
    place = journal / f"{position:04d}-{name.replace('/', '_')}"
    for manifest in journal.glob(f"{position:04d}-*.json"):
        found = manifest.stem.partition("-")[2]
        if manifest.stem != place.name:
            raise ValueError(
                f"{folder} ran {found!r} where the recipe now asks for {name!r}: the recipe has "
                "changed; use another workdir"
            )
    return place


def _finished(place: pathlib.Path | None, display: Display) -> bool:
    """Whether a node is in the journal and whole; a damaged one is put aside and run again."""
    if place is None:
        return False
    return bool(agreed(_whole(place, display) if jax.process_index() == 0 else False))


def _whole(place: pathlib.Path, display: Display) -> bool:
    manifest = place.with_name(place.name + ".json")
    if not manifest.exists():
        if place.exists():
            shutil.rmtree(place)  # written, but not to its end
        return False
    wrong = damage(place)
    if wrong is None:
        return True
    display.say(f"the journal's {wrong}: it is put aside and computed again")
    for path in (place, manifest):
        if path.exists():
            put_aside(path)
    return False


def _compute(node: Compute, seed: int, place: pathlib.Path | None, display: Display) -> dict:
    rng = np.random.default_rng([seed, zlib.crc32(node.name.encode())])
    if place is None:
        return {name: np.asarray(x) for name, x in node.function(rng, *node.arguments).items()}
    if not _finished(place, display):
        # On every process, for it may ask for arrays that lie on all; the first one's is kept.
        arrays = {k: np.asarray(x) for k, x in node.function(rng, *node.arguments).items()}
        bad = [name for name, x in arrays.items() if x.dtype == object]
        if bad:
            raise TypeError(f"computation {node.name!r} returned {bad[0]!r}, which is no array")
        if jax.process_index() == 0:
            try:
                place.mkdir()
                np.savez(place / "arrays.npz", **arrays)
                write_manifest(place, name=node.name, kind="compute")
            except OSError as error:
                raise CheckpointError(
                    f"could not write the computation {node.name!r}: {reason(error)}; what was "
                    "finished before it stays"
                ) from error
        meet(node.name)
    with np.load(place / "arrays.npz", allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def _stage(node, key, place, folder, settings, metrics, display, interrupts) -> Outcome:
    if place is None:
        state = train(node, key, settings, None, metrics, display, interrupts)
        return Outcome(lambda: state, int(state.step))
    at = folder / "checkpoints" / place.name
    if not _finished(place, display):
        regular = settings.checkpoint_every if settings.nonfinite == "rollback" else 0
        checkpoints = Checkpoints(at, settings.keep, display.say, regular)
        try:
            state = train(node, key, settings, checkpoints, metrics, display, interrupts)
        finally:
            checkpoints.close()
        steps = int(state.step)
        try:
            save(place, state, {"name": node.name, "kind": "stage", "steps": steps})()
        except (OSError, ValueError, RuntimeError) as error:
            raise CheckpointError(
                f"could not write the finished stage {node.name!r}: {reason(error)}; its newest "
                f"checkpoint in {at} stays"
            ) from error
        if jax.process_index() == 0:
            shutil.rmtree(at, ignore_errors=True)
        meet(node.name)
        return Outcome(lambda: state, steps)
    steps = read_manifest(place)["steps"]

    @functools.cache
    def read():
        return load(place, abstract_state(continued(node), settings.layout))[0]

    return Outcome(read, steps)
