"""Methods whose models write: one device and eight give the same student."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import json
import jax
import numpy as np
import language_toys as toys
from kdjax.methods import distillm, gkd, minillm, sequence_kd
from kdjax.training import Settings, run
from kdjax.training.sharding import Layout, make_mesh

jax.config.update("jax_disable_most_optimizations", True)
data = toys.dataset()
task = toys.given(validate_every=12)
arms = {
    "sequence_kd": (sequence_kd, sequence_kd.Config(label_weight=0.5)),
    "gkd": (gkd, gkd.Config(on_policy=0.5, seq_kd=True)),
    "distillm": (distillm, distillm.Config(threshold=0.9, capacity=32)),
    "minillm": (minillm, minillm.Config(rollouts=32, epochs=2)),
}
layouts = [Layout(make_mesh(devices=jax.devices()[:1])), Layout(make_mesh())]
found = {}
for name, (module, config) in arms.items():
    runs = [run(module.recipe(task, config), settings=Settings(layout=x)) for x in layouts]
    apart = jax.tree.map(lambda a, b: float(abs(np.asarray(a) - np.asarray(b)).max()),
                         *[x.last for x in runs])
    found[name] = max(jax.tree.leaves(apart))
print(json.dumps([len(jax.devices()), found]))
"""


@pytest.mark.slow
def test_eight_devices_give_the_student_of_one():
    flags = "--xla_force_host_platform_device_count=8"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    environment["PYTHONPATH"] = str(Path(__file__).parent)
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    devices, apart = json.loads(done.stdout.splitlines()[-1])
    assert devices == 8
    assert max(apart.values()) < 1e-4, apart
