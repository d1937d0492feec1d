"""Checkpoints that are whole or absent: Orbax writes, a checksum of every file decides on trust.

A checkpoint is a directory `<step>/` written by Orbax, beside a manifest `<step>.json` with the
digests of its files and what is not an array. The manifest is written last; a directory without
one is unfinished, and one whose files differ from it is damaged. Neither is ever loaded.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from kdjax.training.stage import PyTree


class CheckpointError(RuntimeError):
    """A checkpoint could not be written, or none that is there can be trusted."""


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a file whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text)
    os.replace(temporary, path)


def digests(folder: pathlib.Path) -> dict[str, str]:
    """The digest of every file below a folder."""
    out = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        digest = hashlib.blake2b(digest_size=16)
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
        out[path.relative_to(folder).as_posix()] = digest.hexdigest()
    return out


def damage(folder: pathlib.Path) -> str | None:
    """What is wrong with the checkpoint `folder`; None if it is as it was written."""
    manifest = folder.with_name(folder.name + ".json")
    if not folder.is_dir():
        return f"{folder.name} is missing"
    try:
        expected = json.loads(manifest.read_text())["files"]
    except FileNotFoundError:
        return f"{folder.name} was not finished"
    except (json.JSONDecodeError, KeyError, UnicodeDecodeError):
        return f"{manifest.name} is damaged"
    found = digests(folder)
    for name, digest in expected.items():
        if name not in found:
            return f"{folder.name}/{name} is missing"
        if found[name] != digest:
            return f"{folder.name}/{name} is damaged"
    return None


def save(folder: pathlib.Path, tree: PyTree, extra: dict[str, Any]) -> Callable[[], None]:
    """Starts writing `tree`; the function returned finishes the write and adds the manifest.

    The arrays have been copied when this returns, so they may be donated at once.
    """
    response = ocp.save_async(folder.absolute(), tree)

    def finish() -> None:
        response.result()
        if jax.process_index() == 0:
            manifest = {"files": digests(folder), **extra}
            write_text(folder.with_name(folder.name + ".json"), json.dumps(manifest))

    return finish


def load(folder: pathlib.Path, like: PyTree) -> tuple[PyTree, dict[str, Any]]:
    """The tree of a checkpoint, with structure, types and shardings of `like`, and its extras."""
    wrong = damage(folder)
    if wrong:
        raise CheckpointError(f"checkpoint {folder}: {wrong}")
    extra = json.loads(folder.with_name(folder.name + ".json").read_text())
    return ocp.load(folder.absolute(), like), extra


class Checkpoints:
    """The checkpoints of one stage: saved in the background, the newest few kept.

    Args:
      folder: where they lie.
      keep: how many whole ones stay.
      say: called with a line when something is worth telling.
    """

    def __init__(self, folder: pathlib.Path, keep: int, say: Callable[[str], None]):
        if keep < 1:
            raise ValueError(f"keep must be at least 1, got {keep}")
        self._folder, self._keep, self._say = folder, keep, say
        self._worker = concurrent.futures.ThreadPoolExecutor(1)
        self._pending: concurrent.futures.Future | None = None
        self._step = 0

    def steps(self) -> list[int]:
        """The steps that have a directory, whole or not."""
        if not self._folder.is_dir():
            return []
        return sorted(int(p.name) for p in self._folder.iterdir() if p.name.isdigit())

    def newest(self, like: PyTree) -> tuple[PyTree, dict[str, Any]] | None:
        """The newest checkpoint that is whole. What is damaged is renamed, and nothing deleted."""
        for step in reversed(self.steps()):
            folder = self._folder / str(step)
            wrong = damage(folder)
            if wrong is None:
                return load(folder, like)
            self._say(f"checkpoint at step {step} is not used: {wrong}")
            aside = folder.with_name(f"{step}.damaged")
            number = 1
            while aside.exists():
                number, aside = number + 1, folder.with_name(f"{step}.damaged-{number + 1}")
            folder.rename(aside)
        return None

    def save(self, step: int, tree: PyTree, extra: dict[str, Any]) -> None:
        """Starts saving; waits for the save before it, and raises if that one failed."""
        self.wait()
        self._folder.mkdir(parents=True, exist_ok=True)
        for left in self._folder.glob("*orbax-checkpoint-tmp*"):
            shutil.rmtree(left)  # what a killed process had not finished
        self._step = step
        try:
            finish = save(self._folder / str(step), tree, extra)
        except (OSError, ValueError) as error:
            raise self._failed(error) from error
        self._pending = self._worker.submit(self._finish, finish)

    def _finish(self, finish: Callable[[], None]) -> None:
        finish()
        if jax.process_index() == 0:
            whole = [s for s in self.steps() if (self._folder / f"{s}.json").exists()]
            for step in whole[: -self._keep]:
                (self._folder / f"{step}.json").unlink()  # first: without it the rest is void
                shutil.rmtree(self._folder / str(step))

    def _failed(self, error: BaseException) -> CheckpointError:
        kept = [s for s in self.steps() if s != self._step and not damage(self._folder / str(s))]
        left = f"the checkpoint at step {kept[-1]} is whole" if kept else "there is none before it"
        reason = str(error).strip().splitlines()[0][:300] if str(error).strip() else repr(error)
        return CheckpointError(
            f"could not save the checkpoint at step {self._step}: {reason}; {left}"
        )

    def wait(self) -> None:
        """Until the save under way is whole; raises `CheckpointError` if it failed."""
        pending, self._pending = self._pending, None
        if pending is None:
            return
        try:
            pending.result()
        except (OSError, ValueError, RuntimeError) as error:
            raise self._failed(error) from error

    def close(self) -> None:
        try:
            self.wait()
        finally:
            self._worker.shutdown()
