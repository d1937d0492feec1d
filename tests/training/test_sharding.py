"""Rules cut what they say, teachers are never whole, and a run goes on on any number of devices."""

import json
import os
import pathlib
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
import training_toys as toys
from jax import numpy as jnp
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P

from kdjax.networks import build
from kdjax.training import Deferred, Layout, make_mesh
from kdjax.training.partition_rules import RULE_SETS, SMALLEST

SCRIPT = pathlib.Path(__file__).with_name("sharded.py")


def script(*arguments, devices=8):
    flags = f"--xla_force_host_platform_device_count={devices}"
    return subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, arguments)],
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", **toys.ONE_AT_A_TIME},
        capture_output=True,
        text=True,
        timeout=900,
    )


def findings(*cases):
    done = script(*cases)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def found():
    """One process for all: most of its time is JAX's own start."""
    return findings("chain", "relaid", "slots", "donated", "mlp:fsdp", "decoder:tensor_parallel")


def test_a_teacher_is_made_trained_kept_handed_on_and_read_again_in_its_shards(found):
    chain = found["chain"]
    assert chain["shares"] == [1 / 8] * 4  # alive at any step; the outcome; the journal's; restored
    assert chain["made"] == [True, True]  # teacher and student
    assert chain["start"]  # the bits that one device makes
    assert chain["journal"]
    assert chain["given"]
    assert chain["apart"] < 1e-5


def test_a_sharded_teacher_is_frozen_and_its_stages_compile_once(found):
    assert found["chain"]["frozen"]
    assert found["chain"]["compilations"] == [1, 1, 1, 1]  # two programs, two meshes


def test_a_run_on_eight_devices_goes_on_on_two_and_then_on_four(found):
    assert found["relaid"]["apart"] < 1e-5


def test_optimizer_slots_lie_as_their_parameters(found):
    slots = found["slots"]
    assert slots["adamw"]["follow"] == [8, 8]
    assert slots["sgd"]["follow"] == [4, 4]
    # Factored: the second moments of the biases have their shape, those of the kernels are rows
    # and columns, and what a parameter does not use is of one element.
    assert slots["adafactor"]["follow"] == [2, 2]
    assert slots["adafactor"]["others"] == [10, 10]


def test_the_step_writes_over_the_whole_state_and_over_nothing_else(found):
    donated = found["donated"]
    assert donated["parameters"] == list(range(donated["state"]))  # those of the state come first
    assert donated["bytes"][0] == donated["bytes"][1]
    assert donated["frozen"] == 4
    assert donated["donated"] == [[True, True]] + 5 * [[False, False]]


def check_network(kind, case):
    """The student of one device, and of the teacher no more gathered than its rules need."""
    assert case["moved"] > 1e-4
    assert case["apart"] < 1e-6
    assert case["frozen"]
    weights = [size for size in case["gathers"] if size in case["sizes"]]
    if kind == "tensor_parallel":
        assert case["share"] < 0.6
        assert not weights
    else:
        assert case["share"] < 0.2
        assert max(case["gathers"]) <= max(case["sizes"])  # one kernel at a time
        assert weights or kind != "fsdp"


@pytest.mark.parametrize("name", ["mlp:fsdp", "decoder:tensor_parallel"])
def test_a_replicated_student_learns_beside_a_sharded_teacher(found, name):
    network, kind = name.split(":")
    check_network(kind, found[network][kind])


@pytest.mark.slow
@pytest.mark.parametrize("network", ["decoder", "vit", "resnet8", "wrn_10_1", "mlp"])
def test_every_network_learns_beside_every_sharded_teacher(network):
    kinds = [kind for kind in RULE_SETS if kind != "replicated"]
    found = findings(":".join([network, *kinds]))[network]
    for kind in kinds:
        check_network(kind, found[kind])


@pytest.mark.slow
def test_the_slots_of_every_optimizer_give_the_step_of_one_device():
    found = findings("slots:adamw:sgd:adafactor")["slots"]
    assert all(case["apart"] < 1e-5 for case in found.values()), found


@pytest.mark.slow
def test_a_run_killed_on_eight_devices_goes_on_on_two_and_then_on_four(tmp_path):
    for folder, runs in (("one", [(8, 0)]), ("relaid", [(8, 10), (2, 18), (4, 0)])):
        (tmp_path / folder).mkdir()
        for devices, stop in runs:
            done = script("relay", tmp_path / folder, devices, stop, devices=devices)
            assert done.returncode == (-signal.SIGKILL if stop else 0), done.stderr
    with (
        np.load(tmp_path / "one" / "result.npz") as one,
        np.load(tmp_path / "relaid" / "result.npz") as relaid,
    ):
        assert len(one.files) > 15
        for name in one.files:
            np.testing.assert_allclose(relaid[name], one[name], atol=1e-5, err_msg=name)


MESH = AbstractMesh((4, 2), ("data", "model"))
IMAGE, TOKENS = jnp.zeros((1, 8, 8, 3)), jnp.zeros((1, 2), jnp.int32)


def cut(rules, network, example, mesh=MESH):
    """Path -> axes of the variables that a layout cuts; the mesh may be abstract."""
    shapes = jax.eval_shape(network.init, jax.random.key(0), example)
    layout = Layout(mesh, {"teacher": rules}).role("teacher", shapes)
    leaves = jax.tree_util.tree_leaves_with_path(layout)
    named = {jax.tree_util.keystr(k, simple=True, separator="/"): tuple(x.spec) for k, x in leaves}
    return {name: spec for name, spec in named.items() if any(spec)}


def test_fsdp_cuts_large_variables_on_their_largest_axis_that_divides():
    network = build("mlp", num_classes=6, widths=(1024, 510))
    assert cut("fsdp", network, jnp.zeros((1, 256))) == {
        "params/dense0/kernel": (None, "data"),  # [256, 1024]
        "params/dense1/kernel": ("data", None),  # [1024, 510]: 510 is no multiple of 4
    }
    assert 510 * 6 < SMALLEST <= 256 * 1024
    assert cut("replicated", network, jnp.zeros((1, 256))) == {}
    assert cut("fsdp", network, jnp.zeros((1, 256)), AbstractMesh((1, 8), ("data", "model"))) == {}


PAIRS = {
    "decoder": (
        "decoder",
        dict(num_layers=1, num_key_value_heads=2, attention_bias=True, tied=False),
        TOKENS,
        {
            "params/embedding/embedding": ("model", None),
            "params/head/embedding": ("model", None),
            **{
                f"params/block0/{name}/kernel": (None, "model")
                for name in ("query", "key", "value", "gate", "up")
            },
            **{f"params/block0/{name}/bias": ("model",) for name in ("query", "key", "value")},
            **{f"params/block0/{name}/kernel": ("model", None) for name in ("out", "down")},
        },
    ),
    "vit": (
        "vit",
        dict(depth=1),
        IMAGE,
        {
            **{
                f"params/block0/attention/{name}/{kind}": axes
                for name in ("query", "key", "value")
                for kind, axes in (("kernel", (None, "model", None)), ("bias", ("model", None)))
            },
            "params/block0/attention/out/kernel": ("model", None, None),
            "params/block0/mlp_in/kernel": (None, "model"),
            "params/block0/mlp_in/bias": ("model",),
            "params/block0/mlp_out/kernel": ("model", None),
            "params/head/kernel": (None, "model"),
            "params/head/bias": ("model",),
        },
    ),
    "resnet": (
        "resnet8",
        {},
        IMAGE,
        {
            **{
                f"params/stage{i}/block0/{name}/kernel": axes
                for i in (1, 2, 3)
                for name, axes in (
                    ("conv1", (None, None, None, "model")),
                    ("conv2", (None, None, "model", None)),
                )
            },
            "params/head/kernel": (None, "model"),
            "params/head/bias": ("model",),
        },
    ),
}


@pytest.mark.parametrize("case", PAIRS)
def test_tensor_parallel_cuts_in_pairs(case):
    name, options, example, expected = PAIRS[case]
    network = build(name, num_classes=6, **options)
    assert cut("tensor_parallel", network, example) == expected
    odd = build(name, num_classes=7, **options)  # 7 words or classes stay whole
    heads = ("params/embedding", "params/head")
    kept = {path: axes for path, axes in expected.items() if not path.startswith(heads)}
    assert cut("tensor_parallel", odd, example) == kept


def test_both_together_cut_another_axis_over_data():
    network = build("decoder", num_classes=6, num_layers=1, width=256, hidden=1024)
    found = cut("fsdp+tensor_parallel", network, TOKENS)
    assert found["params/block0/gate/kernel"] == ("data", "model")
    assert found["params/block0/down/kernel"] == ("model", "data")
    assert found["params/embedding/embedding"] == ("model", None)  # small


BAD = {
    "set": ("fdsp", "'teacher': there is no rule set 'fdsp'; did you mean 'fsdp'"),
    "regex": ([("(", P())], r"'teacher': the rule '\(' is no regular expression"),
    "axis": ([("k", P("modle"))], r"'k' names the axis 'modle'; the mesh has \['data', 'model'\]"),
    "twice": ([("k", P("data", "data"))], "the rule 'k' names an axis twice"),
    "nothing": ([("kernal", P())], r"'kernal' matches no variable of 'teacher'.*it has \['params/"),
    "hidden": ([("k", P()), ("kernel", P())], "the rule 'kernel' matches no variable of 'teacher'"),
    "long": ([("bias", P(None, "data"))], "more axes than teacher/params/dense0/bias of shape"),
    "uneven": (
        [("dense0/kernel", P(None, ("data", "model")))],
        r"teacher/params/dense0/kernel of shape \(192, 12\) cannot be cut by .*: 12 is not a "
        r"multiple of 8, the size of \('data', 'model'\)",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_rule_that_cannot_be_followed_is_refused(case):
    rules, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        cut(rules, build("mlp", num_classes=3, widths=(12,)), IMAGE)


def test_tensor_parallel_is_refused_where_it_would_cut_nothing():
    with pytest.raises(
        ValueError, match="tensor_parallel cuts no variable of 'teacher' over the 2"
    ):
        Layout(MESH, {"teacher": "tensor_parallel"}).role(
            "teacher", {"params": {"w": jax.ShapeDtypeStruct((4, 4), jnp.float32)}}
        )


def test_members_are_not_cut():
    layout = Layout(MESH, {"teacher": [("w", P("data"))]})
    shapes = {"params": {"w": jax.ShapeDtypeStruct((5, 4), jnp.float32)}}
    assert tuple(layout.role("teacher", shapes, (None,))["params"]["w"].spec) == (None, "data")


def test_deferred_variables_are_those_of_the_function():
    def init(key, scale):
        return {"params": {"w": jax.random.normal(key, (8,)) * scale}}

    arguments, layout = (jax.random.key(0), 2.0), Layout(make_mesh(devices=jax.devices()[:1]))
    expected = init(*arguments)["params"]["w"]
    for made in (Deferred(init, arguments).make(), layout.make("a", Deferred(init, arguments))):
        np.testing.assert_allclose(made["params"]["w"], expected, rtol=1e-6)
