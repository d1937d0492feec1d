"""Checkpoints that are whole or absent: Orbax writes, a checksum of every file decides on trust.

A checkpoint is a directory `<step>/` written by Orbax, beside a manifest `<step>.json` with the
digests of its files, the shapes of its arrays and what is not an array. The manifest is written
last; a directory without one is unfinished, and one whose files differ from it is damaged. Neither
is ever loaded.

To Orbax an array costs most of a millisecond whatever its size, and a checkpoint some fifteen; the
state of a small network is a hundred small arrays. Those that every device holds whole therefore go
into one file, byte after byte, `small.npy`. A larger array, or one that is cut, is Orbax's: it goes
from its shards to the disk and back by itself.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import hashlib
import json
import math
import os
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from orbax.checkpoint import v1 as ocp

from kdjax.training.sharding import place
from kdjax.training.stage import PyTree

_UNFINISHED = ".unfinished"
_SMALL = 1 << 18  # bytes of an array that is written together with others, at most


class CheckpointError(RuntimeError):
    """A checkpoint could not be written, or none that is there can be trusted."""


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a file whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text)
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def _manifest(folder: pathlib.Path) -> pathlib.Path:
    return folder.with_name(folder.name + ".json")


def _own_digest(content: dict[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()


def write_manifest(folder: pathlib.Path, **content: Any) -> None:
    """Seals `folder`: the digests of its files and `content`, under a digest of their own."""
    content["files"] = digests(folder)
    sealed = {"digest": _own_digest(content), "content": content}
    write_text(_manifest(folder), json.dumps(sealed))


def read_manifest(folder: pathlib.Path) -> dict[str, Any] | None:
    """What `write_manifest` wrote; None if there is none.

    Raises:
      CheckpointError: it is not as it was written.
    """
    path = _manifest(folder)
    try:
        sealed = json.loads(path.read_text())
        whole = sealed["digest"] == _own_digest(sealed["content"])
    except FileNotFoundError:
        return None
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError):
        whole = False
    if not whole:
        raise CheckpointError(f"{path.name} is damaged")
    return sealed["content"]


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
    if not folder.is_dir():
        return f"{folder.name} is missing"
    try:
        content = read_manifest(folder)
    except CheckpointError as error:
        return str(error)
    if content is None:
        return f"{folder.name} was not finished"
    found = digests(folder)
    for name, digest in content["files"].items():
        if name not in found:
            return f"{folder.name}/{name} is missing"
        if found[name] != digest:
            return f"{folder.name}/{name} is damaged"
    return None


def save(folder: pathlib.Path, tree: PyTree, extra: dict[str, Any]) -> Callable[[], None]:
    """Starts writing `tree`; the function returned finishes the write and adds the manifest.

    The arrays have been copied when this returns, so they may be donated at once.
    """
    named, shapes = _named(tree), _shapes(tree)
    small = {name: x for name, x in named.items() if _is_small(x)}
    content = b"".join(x.tobytes() for x in jax.device_get(list(small.values())))
    large = {name: x for name, x in named.items() if name not in small}
    unfinished = folder.absolute().with_name(folder.name + _UNFINISHED)
    if jax.process_index() == 0:
        if unfinished.exists():
            shutil.rmtree(unfinished)  # what a killed process had left
        unfinished.mkdir()
    response = ocp.save_async(unfinished / "large", large) if large else None

    def finish() -> None:
        if response is not None:
            response.result()
        if jax.process_index() == 0:
            np.save(unfinished / "small.npy", np.frombuffer(content, np.uint8))
            unfinished.rename(folder)
            write_manifest(folder, **extra, shapes=shapes, small=[*small])

    return finish


def _is_small(x: Any) -> bool:
    if not isinstance(x, jax.Array) or jnp.issubdtype(x.dtype, jax.dtypes.extended):
        return False
    return x.nbytes <= _SMALL and x.is_fully_replicated


def load(folder: pathlib.Path, like: PyTree) -> tuple[PyTree, dict[str, Any]]:
    """The tree of a checkpoint, with structure, types and shardings of `like`, and its extras.

    Raises:
      CheckpointError: a file is damaged.
      ValueError: it holds other arrays than `like`.
    """
    wrong = damage(folder)
    if wrong:
        raise CheckpointError(f"checkpoint {folder}: {wrong}")
    content, named = read_manifest(folder), _named(like)
    if "small" not in content:
        raise ValueError(f"checkpoint {folder} is of an earlier version of kdjax")
    problems = _unlike(content, like)
    if problems:
        raise ValueError(f"checkpoint {folder} is not one of this stage; {problems}")
    small = content["small"]
    large = {name: x for name, x in named.items() if name not in small}
    found = dict(ocp.load(folder.absolute() / "large", large)) if large else {}
    sizes = [math.prod(named[name].shape) * named[name].dtype.itemsize for name in small]
    parts = np.split(np.load(folder / "small.npy", allow_pickle=False), np.cumsum(sizes))
    for name, part in zip(small, parts):
        x = named[name]
        found[name] = place(part.view(x.dtype).reshape(x.shape), x.sharding)
    leaves = [found[name] for name in named]
    return jax.tree.unflatten(jax.tree.structure(like), leaves), content


def put_aside(path: pathlib.Path) -> None:
    """Renames what is damaged; nothing is deleted."""
    aside, number = path.with_name(f"damaged-{path.name}"), 1
    while aside.exists():
        number += 1
        aside = path.with_name(f"damaged-{path.name}-{number}")
    path.rename(aside)


def reason(error: BaseException) -> str:
    """The first line of an error."""
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else repr(error)


def agreed(value: int) -> int:
    """What the first process found, on every process: the others look a little later."""
    if jax.process_count() == 1:
        return value
    return int(multihost_utils.broadcast_one_to_all(np.int32(value)))


def meet(name: str) -> None:
    """All processes wait here for each other: what the first wrote is then there for all."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


class Checkpoints:
    """The checkpoints of one stage: saved in the background, the newest few kept.

    Args:
      folder: where they lie.
      keep: how many whole ones stay.
      say: called with a line when something is worth telling.
      regular: steps between regular checkpoints, of which the newest `keep` stay besides: rolling
        back must find them though a signal has had others saved. 0: all are alike.
    """

    def __init__(
        self, folder: pathlib.Path, keep: int, say: Callable[[str], None], regular: int = 0
    ):
        if keep < 1:
            raise ValueError(f"keep must be at least 1, got {keep}")
        self._folder, self._keep, self._say, self._regular = folder, keep, say, regular
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
        step = agreed(self._whole() if jax.process_index() == 0 else 0)
        return load(self._folder / str(step), like) if step else None

    def _whole(self) -> int:
        for step in reversed(self.steps()):
            folder = self._folder / str(step)
            wrong = damage(folder)
            if wrong is None:
                return step
            self._say(f"checkpoint at step {step} is not used: {wrong}")
            put_aside(folder)
        return 0

    def save(self, step: int, tree: PyTree, extra: dict[str, Any]) -> None:
        """Starts saving; waits for the save before it, and raises if that one failed."""
        self.wait()
        self._step = step
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            if jax.process_index() == 0:
                for left in self._folder.glob(f"*{_UNFINISHED}"):
                    shutil.rmtree(left)  # what a killed process had been writing
            finish = save(self._folder / str(step), tree, extra)
        except (OSError, ValueError) as error:
            raise self._failed(error) from error
        self._pending = self._worker.submit(self._finish, finish)

    def _finish(self, finish: Callable[[], None]) -> None:
        finish()
        if jax.process_index() == 0:
            whole = [step for step in self.steps() if _manifest(self._folder / str(step)).exists()]
            regular = [step for step in whole if self._regular and step % self._regular == 0]
            for step in whole[: -self._keep]:
                if step not in regular[-self._keep :]:
                    self._drop(step)

    def _drop(self, step: int) -> None:
        folder = self._folder / str(step)
        _manifest(folder).unlink(missing_ok=True)  # first: without it the rest is void
        shutil.rmtree(folder)

    def forget_irregular(self) -> None:
        """Removes what a signal had saved between regular checkpoints: it leads to the fault."""
        self.wait()
        if jax.process_index() == 0:
            for step in self.steps():
                if not self._regular or step % self._regular:
                    self._drop(step)

    def _failed(self, error: BaseException) -> CheckpointError:
        kept = [s for s in self.steps() if s != self._step and not damage(self._folder / str(s))]
        left = f"the checkpoint at step {kept[-1]} is whole" if kept else "there is none before it"
        return CheckpointError(
            f"could not save the checkpoint at step {self._step}: {reason(error)}; {left}"
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


def save_variables(folder: pathlib.Path, variables: PyTree) -> None:
    """Writes one role's variables, for `load_variables`; what is there whole already stays.

    What is there damaged is renamed. All processes of a run must call it.
    """
    folder = pathlib.Path(folder)
    if agreed(_stays(folder) if jax.process_index() == 0 else False):
        return
    ocp.save(folder.absolute(), variables)
    if jax.process_index() == 0:
        write_manifest(folder, shapes=_shapes(variables))
    meet(f"weights {folder.name}")


def _stays(folder: pathlib.Path) -> bool:
    if folder.exists() and damage(folder) is None:
        return True
    for path in (folder, _manifest(folder)):
        if path.exists():
            put_aside(path)
    folder.parent.mkdir(parents=True, exist_ok=True)
    return False


def load_variables(folder: pathlib.Path, like: PyTree, shardings: PyTree = None) -> PyTree:
    """One role's variables, refused where they are not those of the network at hand.

    Args:
      folder: written by `save_variables`; a run leaves one a model under `weights/`.
      like: variables, or their shapes (`jax.eval_shape` of a network's `init`).
      shardings: where each is to lie (`Layout.role`), read there part by part; None: whole.

    Raises:
      ValueError: the folder holds no weights, or other ones: missing, extra or misshapen.
      CheckpointError: a file is damaged.
    """
    folder = pathlib.Path(folder)
    if not _manifest(folder).exists():
        raise ValueError(f"{folder} holds no weights: there is no {folder.name}.json beside it")
    wrong = damage(folder)
    if wrong:
        raise CheckpointError(f"weights {folder}: {wrong}")
    problems = _unlike(read_manifest(folder), like)
    if problems:
        raise ValueError(f"weights {folder} are not those of this network; {problems}")
    if shardings is None and jax.process_count() == 1:
        shardings = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    elif shardings is None:
        shardings = NamedSharding(Mesh(np.array(jax.devices()), ("data",)), PartitionSpec())
    if isinstance(shardings, jax.sharding.Sharding):
        shardings = jax.tree.map(lambda _: shardings, like)
    like = jax.tree.map(
        lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), like, shardings
    )
    return ocp.load(folder.absolute(), like)


def _shapes(tree: PyTree) -> dict[str, list]:
    return {name: [*x.shape, str(x.dtype)] for name, x in _named(tree).items()}


def _unlike(content: dict[str, Any], like: PyTree) -> str:
    """How the arrays that a manifest tells of differ from those of `like`; empty: they do not."""
    found, wanted = content["shapes"], _shapes(like)
    lists = {
        "missing": [k for k in wanted if k not in found],
        "extra": [k for k in found if k not in wanted],
        "of another shape": [k for k in wanted if k in found and wanted[k] != found[k]],
    }
    return "; ".join(f"{what}: {', '.join(names)}" for what, names in lists.items() if names)


def _named(tree: PyTree) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    named = {jax.tree_util.keystr(path, simple=True, separator="/"): x for path, x in leaves}
    if len(named) < len(leaves):
        raise ValueError(f"two arrays have one path among {sorted(named)}")
    return named
