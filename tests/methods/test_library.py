"""The calls for a notebook, as the README prints them."""

import pathlib
import re

import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import kdjax
from kdjax import losses
from kdjax.networks import from_function

README = pathlib.Path(__file__).parents[2] / "README.md"


@pytest.mark.parametrize("number", [0, 1, 2])
def test_the_readme_runs_as_printed(number, capsys):
    code = re.findall(r"```python\n(.*?)```", README.read_text(), re.S)[number]
    exec(compile(code, "README.md", "exec"), {"__name__": "readme"})
    assert capsys.readouterr().out.strip()


@pytest.mark.slow
def test_linen_nnx_and_functions_all_learn():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 5)).astype(np.float32)
    weights = rng.normal(size=(5, 3)).astype(np.float32)
    y = (x @ weights).argmax(-1)

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.out = nnx.Linear(5, 3, rngs=rngs)

        def __call__(self, x):
            return self.out(x)

    def function(params, x):
        return x @ params["w"]

    students = {
        "linen": nn.Dense(3),
        "nnx": Net,
        "function": from_function(function, params={"w": jnp.zeros((5, 3))}),
    }

    def loss(student_logits, teacher_logits, labels):
        return losses.kd(student_logits, teacher_logits, temperature=2.0)

    def teacher(x):
        return x @ weights

    for name, student in students.items():
        result = kdjax.distill(
            student, teacher, (x, y), loss, steps=200, learning_rate=0.05, batch_size=32
        )
        assert result.agreement > 0.9, name
        assert result.predict(x[:4]).shape == (4, 3)
        _, values = result.curve["train/loss"]
        assert values[-1] < values[0]


def test_a_loss_of_the_wrong_shape_is_refused():
    x, y = np.zeros((100, 4), np.float32), np.arange(100) % 3
    with pytest.raises(ValueError, match="one value an example"):
        kdjax.distill(nn.Dense(3), lambda x: x[:, :3], (x, y), lambda s, t, y: s, steps=2)
    with pytest.raises(TypeError, match="teacher must be"):
        kdjax.distill(nn.Dense(3), nn.Dense(3), (x, y), lambda s, t, y: s, steps=2)
    with pytest.raises(AttributeError, match="no attribute 'distil'"):
        kdjax.distil  # noqa: B018
