"""What a plan says is what a run needs; what it cannot know it says it does not know."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import configuration, plan, run
from kdjax import methods
from kdjax.training import Compute, Layout, Settings, Stage, loop, make_mesh, planning
from kdjax.training import run as run_recipe
from kdjax.training.flops import matrix_flops

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = """
from experiments import configuration

def get_config():
    config = configuration.defaults()
    config.data.name = "digits"
    config.teacher.network.widths = (1024,)
    config.student.network.widths = (8,)
    config.sharding = dict(teacher=(("dense0/kernel", (None, "data")),))
    return config
"""


def small():
    config = configuration.defaults()
    config.data.name = "digits"
    config.teacher.network.widths, config.student.network.widths = (16,), (8,)
    for role in ("teacher", "student"):
        config[role].training.update(steps=3, batch_size=32)
    config.method = dict(name="kd")
    config.validate_every = 3
    return config


@pytest.fixture(scope="module")
def layout():
    return Layout(make_mesh(data=1, devices=jax.devices()[:1]))


@pytest.fixture(scope="module")
def found():
    return configuration.dataset(small().data)


def test_planned_bytes_are_those_of_the_run(layout, found, monkeypatch):
    config = small()
    before = {id(x) for x in jax.live_arrays()}
    planned, end = planning.plan(plan.recipe_of(config, found), layout)
    new = [x for x in jax.live_arrays() if id(x) not in before]
    assert end is None
    shapes = {x.shape for x in new} & {(64, 16), (16, 10), (64, 8), (8, 10)}
    assert not shapes  # no kernel of a network was allocated
    states, needed, compile_step = [], [], loop.compiled_step

    def recorded(recipe):
        value = None
        while True:
            try:
                node = recipe.send(value)
            except StopIteration:
                return
            value = yield node
            states.append((node, value.load()))

    def measured(stage, *rest):
        compiled = compile_step(stage, *rest)

        def step(*arguments):
            if stage.name == "distill" and not needed:
                memory = compiled.function.lower(*arguments).compile().memory_analysis()
                needed.append(memory)
            return compiled.function(*arguments)

        return dataclasses.replace(compiled, function=step)

    monkeypatch.setattr(loop, "compiled_step", measured)
    module, chosen = methods.get("kd"), methods.get("kd").Config()
    task = configuration.task(config, found)
    run_recipe(recorded(run.experiment(task, module, chosen)), settings=Settings(layout=layout))
    assert [s.name for s in planned] == [node.name for node, _ in states]
    assert [s.name for s in planned] == ["teacher", "supervised", "distill"]
    for stage, (node, state) in zip(planned, states, strict=True):
        size = {role: planning.bytes_of(x) for role, x in state.variables.items()}
        assert stage.live == size
        assert stage.optimizers == planning.bytes_of(state.optimizers)
        assert stage.kept == planning.bytes_of((state.memory, state.selected))
        frozen = {r: planning.bytes_of(x) for r, x in node.variables.items() if r not in size}
        assert stage.frozen == frozen
    (memory,) = needed
    outputs = memory.output_size_in_bytes - memory.alias_size_in_bytes
    assert planned[2].temporaries == memory.temp_size_in_bytes + outputs
    assert planned[2].frozen["teacher"] == 4 * planned[2].parameters["teacher"] == 4 * 1210
    assert planned[2].prepare_flops == 2 * 32 * (64 * 16 + 16 * 10)
    assert planned[1].prepare_flops == 0
    assert planned[1].forward_flops == 2 * 32 * (64 * 8 + 8 * 10)


def test_a_cached_teacher_is_planned_as_data(layout, found):
    config = small()
    config.teacher.cached = True
    with pytest.raises(ValueError, match=r"no stage 'distil' to plan; there are .*'distill'"):
        planning.plan(plan.recipe_of(config, found), layout, {"distil"})
    (stage,), end = planning.plan(plan.recipe_of(config, found), layout, {"distill"})
    assert end is None
    assert stage.cache == 4 * 10 * len(found.splits["train"])
    assert stage.frozen == {}
    assert stage.prepare_flops == 0


def test_what_follows_computed_values_is_not_planned(layout, found):
    task = configuration.task(small(), found)
    baseline = methods.get("supervised")

    def recipe(shapes, reads):
        first = yield baseline.stage(task, "teacher", "first")
        yield Compute("axes", lambda rng: {"axes": np.zeros(3)}, shapes=shapes)
        if reads and float(jnp.sum(first.variables["teacher"]["params"]["dense0"]["bias"])) > 0:
            return
        yield dataclasses.replace(baseline.stage(task, "student", "second"))

    known = {"axes": jax.ShapeDtypeStruct((3,), np.float64)}
    cases = {
        (None, False): (["first"], "axes"),
        ("known", True): (["first"], "axes"),
        ("known", False): (["first", "second"], None),
    }
    for (shapes, reads), (names, after) in cases.items():
        stages, end = planning.replay(lambda s=shapes, r=reads: recipe(s and known, r))
        assert [stage.name for stage in stages] == names
        assert (end and end.name) == after
        assert all(isinstance(stage, Stage) for stage in stages)


def test_loops_count_as_often_as_they_run():
    x = jnp.ones((4, 4))

    def chain(x, length):
        return jax.lax.scan(lambda c, _: (c @ x, None), x, None, length=length)[0]

    once = matrix_flops(jax.make_jaxpr(lambda x: x @ x)(x))
    assert once == 2 * 4**3 == jax.jit(lambda x: x @ x).lower(x).cost_analysis()["flops"]
    assert matrix_flops(jax.make_jaxpr(lambda x: chain(x, 7))(x)) == 7 * once
    gradient = jax.grad(lambda x: jax.checkpoint(lambda y: chain(y, 7))(x).sum())
    assert matrix_flops(jax.make_jaxpr(gradient)(x)) > 20 * once
    branch = lambda x: jax.lax.cond(x[0, 0] > 0, lambda: x, lambda: x @ x @ x)  # noqa: E731
    assert matrix_flops(jax.make_jaxpr(branch)(x)) == 2 * once


@pytest.mark.parametrize("stride", [1, 2])
def test_convolutions_count_what_xla_counts(stride):
    def forward(x, kernel):
        names = ("NHWC", "HWIO", "NHWC")
        window = (stride, stride)
        return jax.lax.conv_general_dilated(x, kernel, window, "VALID", dimension_numbers=names)

    def backward(x, kernel):
        return jax.value_and_grad(lambda *a: jnp.sum(forward(*a) ** 2), argnums=(0, 1))(x, kernel)

    x, kernel = jnp.ones((2, 17, 17, 4)), jnp.ones((3, 3, 4, 8))
    for function in (forward, backward):
        counted = matrix_flops(jax.make_jaxpr(function)(x, kernel))
        exact = jax.jit(function).lower(x, kernel).cost_analysis()["flops"]
        assert counted == pytest.approx(exact, rel=0.02)  # element-wise operations


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    """The plan of a sharded config on eight devices, in a process of its own: `(stdout, JSON)`."""
    folder = tmp_path_factory.mktemp("plan")
    (folder / "config.py").write_text(CONFIG)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "experiments.plan", f"--config={folder}/config.py"),
            *("--devices=8", "--hbm=1GiB", "--stages=distill", f"--json={folder}/plan.json"),
        ],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "COLUMNS": "100"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads((folder / "plan.json").read_text())


def test_a_sharded_teacher_takes_less_of_each_device(sharded):
    stdout, content = sharded
    assert content["mesh"] == {"data": 8, "model": 1}
    distill = content["stages"][-1]
    kernel, rest = 4 * 64 * 1024, 4 * (1024 + 1024 * 10 + 10)
    assert distill["frozen"]["teacher"] == kernel // 8 + rest
    assert "fits 1.0 GiB" in stdout
    assert content["suggestions"] == {}


def test_what_does_not_fit_gets_micro_batches_that_do(layout, found):
    config = small()
    config.method = dict(name="supervised")
    config.student.network.widths = (16,) * 3
    config.student.training.batch_size = 512
    config.validate_every = 3
    (stage,), _ = planning.plan(plan.recipe_of(config, found), layout, {"supervised"})
    hbm = stage.peak - 1
    advice = plan.suggestion(config, found, stage, layout, hbm)
    assert advice["peak"] <= hbm
    assert f"--config.student.training.microbatches={advice['microbatches']}" in advice["text"]
    for size, words in ((stage.held - 1, "alone take"), (stage.held + 1, "validation needs")):
        advice = plan.suggestion(config, found, stage, layout, size)
        assert advice["microbatches"] is None
        assert words in advice["text"]


@pytest.mark.slow
def test_a_batch_that_must_not_be_cut_gets_no_micro_batches(layout, found):
    config = small()
    config.method = dict(name="kd", loss="dist")
    (stage,), _ = planning.plan(plan.recipe_of(config, found), layout, {"distill"})
    held = dataclasses.replace(stage, temporaries=10**9)
    advice = plan.suggestion(config, found, held, layout, 10**8)
    assert advice["microbatches"] is None
    assert "compares the examples of a batch" in advice["text"]


@pytest.mark.parametrize("text", ["", "16", "GiB", "-1GiB", "0GiB", "16 gib", "1e3MB", "iB"])
def test_a_bad_memory_size_is_refused(text):
    with pytest.raises(configuration.ConfigError, match="--hbm must be a positive number"):
        plan.memory_size(text)


@pytest.mark.slow
def test_an_unknown_config_is_one_line():
    done = subprocess.run(
        [sys.executable, "-m", "experiments.plan", "--config=configs/none.py"],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    (line,) = done.stderr.strip().splitlines()
    assert (done.returncode, done.stdout) == (2, "")
    assert line.startswith("error: ")
    assert "configs/none.py" in line


def test_a_stage_follows_the_training_of_the_role_that_it_trains():
    config = small()
    config.second_teacher = configuration.role_fields(training=config.teacher.training.to_dict())
    config.third_teacher = configuration.role_fields()
    live = {
        "student": ("student", "projector"),
        "teacher": ("teacher",),
        "second_teacher": ("second_teacher",),
    }
    followed = {role: plan.taught(config, _Trains(roles)) for role, roles in live.items()}
    assert followed == {role: role for role in live}
    assert plan.taught(config, _Trains(("mask0", "mask1"))) == "student"
    assert plan.taught(config, _Trains(("third_teacher", "teacher", "student"))) == "student"


class _Trains:
    """A stage as `taught` reads it."""

    def __init__(self, roles):
        self.live = dict.fromkeys(roles, 1)


@pytest.mark.slow
def test_all_networks_of_a_config_are_planned(layout, found):
    config = small()
    network = dict(name="mlp", widths=(6,))
    config.cross_modal_teacher = configuration.role_fields(network=network)
    layers = dict(teacher_layers=("dense0/out",), cross_modal_layers=("dense0/out",))
    config.method = dict(name="mst_distill", cotraining_steps=3, mask_steps=3, **layers)
    stages, end = planning.plan(plan.recipe_of(config, found), layout)
    assert end is None
    assert [stage.name for stage in stages[2:]] == ["cotraining", "masks", "distill"]
    size = 4 * (64 * 6 + 6 + 6 * 10 + 10)
    assert stages[2].live["cross_modal_teacher"] == size
    assert (
        stages[3].frozen["cross_modal_teacher"] == stages[4].frozen["cross_modal_teacher"] == size
    )
    assert set(stages[4].live) == {"student", "gate"}
    del config.cross_modal_teacher
    with pytest.raises(configuration.ConfigError, match="needs a network of the role"):
        plan.recipe_of(config, found)
