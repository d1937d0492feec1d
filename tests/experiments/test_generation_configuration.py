"""From a config without data to a run and a comparison."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from experiments import generation_configuration, tasks
from experiments.configuration import ConfigError

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def config():
    return generation_configuration.defaults()


def build(config):
    module, _ = tasks.method(config, config.method, "config.method")
    return module, tasks.task(config)


def test_a_field_of_the_config_reaches_the_task(config):
    config.data.update(conditions=4, t_min=0.1, test=10, reference_steps=20)
    config.teacher.update(guidance=3.0)
    module, task = build(config)
    assert task.kind == tasks.kind(config) == "generation"
    assert (task.diffusion.t_min, task.diffusion.guidance) == (0.1, 3.0)
    assert (task.reference_steps, len(task.dataset.splits["test"])) == (20, 10)
    assert module.__name__.endswith("boot")
    assert [x.shape for x in task.examples("student")] == [(1, 2), (1,), (1,)]


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("data.test", 0, "config.data: test must have at least one noise, got 0"),
        ("data.schedul", "cosine", "config.data has no field 'schedul'"),
        ("data.schedule", "cosin", "did you mean 'cosine'"),
        ("data.t_max", 1.0, "config: t_max=1.0: no signal is left"),
        ("data.shape", (3,), "config"),
        ("teacher.guidance", 2.0, "guidance=2.0 needs conditions"),
        ("teacher.prediction", "v", "config: prediction must be one of"),
        ("teacher.network.std", 0.0, "config.teacher.network: std must be positive"),
        ("teacher.checkpoint", "somewhere", "the weights of a gaussian_mixture are known"),
        ("teacher.training", 3, "config.teacher has no field 'training'"),
        ("student.network.width", 3, "did you mean 'widths'"),
        ("method.name", "kd", "kd is for classification tasks"),
        ("method.delta", 0.0, "config.method: delta must be in"),
    ],
)
def test_a_bad_field_is_refused_in_one_line(config, place, value, message):
    *path, last = place.split(".")
    target = config
    for name in path:
        target = target[name]
    target[last] = value
    with pytest.raises(ConfigError, match=message):
        build(config)


def test_another_teacher_needs_a_checkpoint(config):
    config.teacher.network = dict(name="denoising_mlp")
    with pytest.raises(ConfigError, match="those of another network are to be given; got ''"):
        build(config)


@pytest.mark.slow  # two processes that compile
def test_run_and_compare_know_nothing_of_the_kind(tmp_path):
    small = [
        "--config.student.training.steps=20",
        "--config.student.training.batch_size=16",
        "--config.validate_every=10",
        "--config.data.test=32",
        "--config.data.reference_steps=12",
    ]
    for command, name in (("run", "boot"), ("compare", "compare_boot")):
        file, work = f"--config=configs/mixture/{name}.py", tmp_path / command
        done = subprocess.run(
            [sys.executable, "-m", f"experiments.{command}", file, f"--workdir={work}", *small],
            cwd=ROOT,
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert "squared distance from the trajectory's end" in done.stdout
    assert "DDIM in 4 steps" in (tmp_path / "run" / "report.html").read_text()
    records = list((tmp_path / "compare" / "results").glob("*.json"))
    assert len(records) == 9
    assert json.loads(records[0].read_text())["metrics"]["last"]["ddim_4_error"] > 0
