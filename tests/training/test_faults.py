"""What goes wrong in a run is named, stops it, and costs nothing that was good."""

import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import training_toys as toys

from kdjax.training import Evaluation, NonFiniteLoss, Settings, Stage, mean, run

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


FULL_DISK = """
import pathlib, resource, signal, sys, time
sys.path.insert(0, {here!r})
import jax.numpy as jnp
import training_toys as toys
from kdjax.training import CheckpointError, Settings, Stage, run

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
table = {{name: jnp.asarray(x) for name, x in toys.problem().items()}}

saved = pathlib.Path({workdir!r}) / "checkpoints" / "0000-train" / "10.json"

def on_step(stage, step):
    if step == 15:
        while not saved.exists():  # it is written in the background
            time.sleep(0.01)
        resource.setrlimit(resource.RLIMIT_FSIZE, (64, resource.RLIM_INFINITY))

def recipe():
    yield Stage("train", toys.program(), {{"student": toys.init(0)}},
                {{"train": toys.TableStream(table, 16)}}, 40)

try:
    run(recipe(), workdir={workdir!r}, settings=Settings(checkpoint_every=10, on_step=on_step))
except (CheckpointError, OSError) as error:
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    print(type(error).__name__, str(error).splitlines()[0])
"""


def test_a_disk_that_fills_up_leaves_the_previous_checkpoint_whole(tmp_path):
    here = str(pathlib.Path(__file__).parent)
    script = FULL_DISK.format(here=here, workdir=str(tmp_path / "w"))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.startswith("CheckpointError could not save the checkpoint at step 20"), (
        done.stdout + done.stderr
    )
    assert "the checkpoint at step 10 is whole" in done.stdout
    settings = Settings(checkpoint_every=10)
    resumed = run(_plain(), workdir=tmp_path / "w", settings=settings)
    whole = run(_plain())
    jax.tree.map(np.testing.assert_array_equal, resumed.variables, whole.variables)


def _plain():
    stream = toys.TableStream(TABLE, 16)
    outcome = yield Stage("train", toys.program(), {"student": toys.init(0)}, {"train": stream}, 40)
    return outcome
