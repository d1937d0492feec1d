"""A program a device computes what one program over all devices does, or is refused."""

import json
import os
import pathlib
import subprocess
import sys

import pytest
import training_toys as toys


@pytest.fixture(scope="module")
def found():
    script = pathlib.Path(__file__).parent / "per_device.py"
    flags = "--xla_force_host_platform_device_count=8"
    done = subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", **toys.ONE_AT_A_TIME},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("case", ["rich-1", "rich-2", "queue", "jit to pmap", "pmap to jit"])
def test_pmap_equals_jit_to_the_order_of_summation(found, case):
    assert found["devices"] == 8
    assert found[case] < 1e-5


def test_a_stage_is_compiled_once(found):
    assert found["after the first step"] == found["compiled"] == 0


def test_batch_statistics_are_a_devices_own_and_their_averages_are_averaged(found):
    assert found["statistics"] < 1e-6


def test_each_device_draws_its_own_noise(found):
    assert found["noise"] == 8


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("batchwise", "shows a device its own rows only, but its update compares the examples"),
        ("model", "no mesh axis 'model', got rules for [] and model=2; use 'jit'"),
        ("rules", "no partition rules and no mesh axis 'model', got rules for ['student']"),
        ("members", "trains no members together; use 'jit'"),
        ("memory", "step 1: the devices hold different values of .memory"),
        ("backend", "backend must be 'jit' or 'pmap', got 'xmap'"),
    ],
)
def test_what_a_device_cannot_do_alone_is_refused(found, case, message):
    assert message in found[case]
