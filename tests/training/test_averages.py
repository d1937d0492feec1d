"""A role that follows another by a moving average."""

import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.training.averages import follow, moving_average
from kdjax.training.stage import Context


def variables():
    def role(weight, mean):
        return {"params": {"w": jnp.array(weight)}, "batch_stats": {"mean": jnp.array(mean)}}

    return {"student": role(2.0, 7.0), "teacher": role(0.0, 1.0), "router": role(5.0, 5.0)}


def context(step, **values):
    return Context({"kept": 1}, None, jnp.int32(step), values)


def test_parameters_are_averaged_and_statistics_copied():
    new, memory = follow("student", "teacher", 0.75)(variables(), context(4), {})
    assert float(new["teacher"]["params"]["w"]) == 0.5
    assert float(new["teacher"]["batch_stats"]["mean"]) == 7.0
    for role in ("student", "router"):
        assert float(new[role]["params"]["w"]) == float(variables()[role]["params"]["w"])
    assert memory == {"kept": 1}


@pytest.mark.parametrize(("step", "expected"), [(0, 2.0), (1, 0.5)])
def test_the_first_step_can_copy_the_leader(step, expected):
    after = follow("student", "teacher", 0.75, copy_first=True)
    assert float(after(variables(), context(step), {})[0]["teacher"]["params"]["w"]) == expected


def test_the_decay_can_follow_a_schedule():
    after = follow("student", "teacher", lambda context: context.values["decay"])
    found, _ = after(variables(), context(1, decay=jnp.float32(0.5)), {})
    assert float(found["teacher"]["params"]["w"]) == 1.0


def test_the_average_of_many_steps_is_the_closed_form():
    average, values = jnp.float32(0), np.random.default_rng(0).standard_normal(50)
    for value in values:
        average = moving_average(average, jnp.float32(value), 0.9)
    closed = sum(0.1 * 0.9 ** (49 - i) * value for i, value in enumerate(values))
    assert float(average) == pytest.approx(closed, rel=1e-4)


def test_types_are_those_of_the_average():
    assert moving_average(jnp.bfloat16(1), jnp.float32(2), 0.5).dtype == jnp.bfloat16


def test_what_cannot_follow_is_refused():
    with pytest.raises(ValueError, match=r"decay must be in \[0, 1\], got 1.5"):
        follow("student", "teacher", 1.5)
    with pytest.raises(ValueError, match="'student' cannot follow itself"):
        follow("student", "student", 0.5)
