"""What goes wrong in a run is named, stops it, and costs nothing that was good."""

import contextlib
import errno
import itertools
import os
import random
import re
import resource
import socket
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import pytest
import training_toys as toys
from short_run import Killed, go_on

from kdjax.training import (
    CheckpointError,
    Evaluation,
    NonFiniteLoss,
    Settings,
    Stage,
    WorkdirInUse,
    mean,
    run,
)
from kdjax.training.lock import locked

TABLE = {name: jnp.asarray(x) for name, x in toys.problem().items()}


def failing(term, at):
    """Cross-entropy beside a term that breaks at a step: its value, or only its gradient."""

    def objective(variables, batch, context):
        batch = batch["train"]
        loss = toys.cross_entropy(toys.logits(variables["student"], batch["x"]), batch["y"])
        weight = variables["student"]["params"]["head"]["bias"].sum()
        now = context.step == at
        if term == "value":
            other = jnp.where(now, jnp.nan, 0.0)
        else:  # sqrt has an infinite slope where its value is an innocent 0
            other = jax.lax.cond(now, lambda w: jnp.sqrt(w - w), lambda w: 0.0 * w, weight)
        return Evaluation({"ce": mean(loss), "other": mean(jnp.broadcast_to(other, loss.shape))})

    return toys.program(objective)


def recipe(program, steps=40):
    stream = toys.TableStream(TABLE, 16)
    outcome = yield Stage("train", program, {"student": toys.init(0)}, {"train": stream}, steps)
    return outcome


@pytest.mark.parametrize("at", [7, 19, 20, 39])
def test_a_loss_that_is_not_finite_names_stage_step_and_term(at, tmp_path):
    settings = Settings(checkpoint_every=10, log_every=5)
    program = failing("value", at)
    with pytest.raises(
        NonFiniteLoss, match=rf"stage 'train', step {at + 1}: the term 'loss/other' is not finite"
    ):
        run(recipe(program), workdir=tmp_path, settings=settings)
    # Only steps before the fault were saved, and they are whole and finite.
    kept = tmp_path / "checkpoints" / "0000-train"
    steps = [int(p.name) for p in kept.glob("*") if p.name.isdigit()] if kept.exists() else []
    assert all(step <= at for step in steps)
    assert bool(steps) is (at >= 10)
    assert not list((tmp_path / "journal").glob("*.json"))


def test_a_gradient_that_overflows_is_never_saved(tmp_path):
    settings = Settings(checkpoint_every=10, log_every=5)
    with pytest.raises(NonFiniteLoss, match=r"the term 'gradient_norm' is not finite"):
        run(recipe(failing("gradient", 9)), workdir=tmp_path, settings=settings)
    assert not list((tmp_path / "checkpoints").rglob("10.json"))


def test_a_stage_that_cannot_run_is_refused_before_compute():
    def one(**changes):
        fields = dict(
            name="train",
            program=toys.program(),
            variables={"student": toys.init(0)},
            data={"train": toys.TableStream(TABLE, 16)},
            steps=1,
        )
        yield Stage(**{**fields, **changes})

    for changes, message in (
        ({"steps": 0}, "steps must be at least 1"),
        ({"data": {}}, "at least one stream"),
        ({"variables": {"teacher": toys.init(0)}}, "no role 'student'"),
    ):
        with pytest.raises(ValueError, match=message):
            run(one(**changes))


# What Orbax had under way when a write failed reports to an event loop that is closed by then.
orbax_gives_up = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


class Disk:
    """Full from a file's opening for writing on: nothing of this process can grow."""

    def __init__(self):
        self.at, self.opened = None, 0
        sys.addaudithook(self._event)

    def _event(self, event, arguments):
        if self.at is None or event != "open" or not isinstance(arguments[2], int):
            return
        if arguments[2] & (os.O_WRONLY | os.O_RDWR):
            self.opened += 1
            if self.opened == self.at:
                self._limit(0)

    def _limit(self, size):
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))

    @contextlib.contextmanager
    def full(self, at):
        self.at, self.opened = at, 0
        try:
            yield
        finally:
            self.at = None
            self._limit(resource.RLIM_INFINITY)


@pytest.fixture(scope="module")
def disk():
    return Disk()


@pytest.fixture(scope="module")
def whole(tmp_path_factory, disk):
    """Bits of a run, and how many files it opens for writing."""
    with disk.full(10**9):
        bits, _ = go_on(tmp_path_factory.mktemp("whole"))
        return bits, disk.opened


def fills(disk, whole, tmp_path, moments):
    for at in moments:
        workdir = tmp_path / str(at)
        with disk.full(at), pytest.raises(CheckpointError) as error:
            go_on(workdir)
        assert re.search("cannot be written|could not (write|save|open)", str(error.value)), at
        assert "\n" not in str(error.value)
        assert go_on(workdir)[0] == whole[0], at


@orbax_gives_up
def test_a_disk_that_fills_up_costs_nothing_that_was_kept(disk, whole, tmp_path):
    opened = whole[1]
    assert opened > 30
    fills(disk, whole, tmp_path, [1, *random.Random(0).sample(range(2, opened - 1), 5)])


@pytest.mark.slow
@orbax_gives_up
def test_at_whatever_file_the_disk_fills_up_nothing_kept_is_lost(disk, whole, tmp_path):
    fills(disk, whole, tmp_path, range(1, whole[1] - 1))


@orbax_gives_up
def test_the_checkpoint_before_a_full_disk_is_named(disk, tmp_path):
    def on_step(stage, step):
        if step == 15:
            while not (tmp_path / "w/checkpoints/0000-train/10.json").exists():
                time.sleep(0.01)
            disk.at = disk.opened + 1

    settings = Settings(checkpoint_every=10, on_step=on_step)
    message = r"could not save the checkpoint at step 20: .*; the checkpoint at step 10 is whole"
    with disk.full(10**9), pytest.raises(CheckpointError, match=message):
        run(_plain(), workdir=tmp_path / "w", settings=settings)


def test_a_workdir_that_cannot_be_written_is_refused_at_once():
    with pytest.raises(CheckpointError, match="workdir /proc/run cannot be written: "):
        run(_plain(), workdir="/proc/run")


def test_a_clock_that_goes_backwards_changes_nothing(whole, tmp_path, monkeypatch):
    clock = itertools.count(2e9, -3600.0)
    monkeypatch.setattr(time, "time", lambda: next(clock))
    with pytest.raises(Killed):
        go_on(tmp_path, ("student", 27))
    assert go_on(tmp_path)[0] == whole[0]
    assert next(clock) < 2e9 - 3600


HOLDER = """
import pathlib, sys, time
from kdjax.training.lock import locked
with locked(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_second_run_is_refused_and_a_killed_one_leaves_no_lock(whole, tmp_path):
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        message = f"in use by process {holder.pid} on {re.escape(socket.gethostname())}"
        with pytest.raises(WorkdirInUse, match=message):
            go_on(tmp_path)
        assert [p.name for p in tmp_path.iterdir()] == [".lock"]
    finally:
        holder.kill()
        holder.communicate()
    assert go_on(tmp_path)[0] == whole[0]


def test_a_workdir_is_held_by_one_thread_which_may_enter_again(tmp_path):
    refused = []

    def second():
        try:
            run(_plain(), workdir=tmp_path)
        except WorkdirInUse as error:
            refused.append(str(error))

    with locked(tmp_path), locked(tmp_path):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    assert len(refused) == 1
    with locked(tmp_path):
        pass


def test_where_a_file_system_has_no_locks_the_run_says_so(tmp_path, monkeypatch):
    def flock(file, how):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("kdjax.training.lock.fcntl.flock", flock)
    said = []
    with locked(tmp_path, said.append):
        pass
    assert len(said) == 1
    assert said[0].startswith(f"workdir {tmp_path}: no locks here")


def _plain():
    stream = toys.TableStream(TABLE, 16)
    outcome = yield Stage("train", toys.program(), {"student": toys.init(0)}, {"train": stream}, 40)
    return outcome
