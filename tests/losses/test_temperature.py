"""CTKD: the gradient that is reversed, the temperature it teaches, and the schedule."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.losses import logits
from kdjax.losses.temperature import gradient_reversal, learned_temperature, reversal_schedule


@pytest.mark.parametrize("scale", [-1.0, -0.25, 0.0, 1.0, 3.0])
def test_the_derivative_is_scaled_and_the_value_is_not(scale):
    x = jnp.array([1.0, -2.0, 0.5])

    def through(x, scale):
        return jnp.sum(gradient_reversal(x, scale=scale) ** 3)

    np.testing.assert_array_equal(gradient_reversal(x, scale=scale), x)
    np.testing.assert_allclose(jax.jit(jax.grad(through))(x, scale), scale * 3 * x**2, rtol=1e-6)
    tangent = jax.jvp(lambda x: through(x, scale), (x,), (jnp.ones(3),))[1]
    np.testing.assert_allclose(tangent, scale * 3 * jnp.sum(x**2), rtol=1e-6)


def test_the_scale_itself_has_no_gradient():
    assert jax.grad(lambda s: jnp.sum(gradient_reversal(jnp.ones(2), scale=s) ** 2))(0.5) == 0


def test_ascending_theta_raises_the_loss_that_the_student_lowers():
    rng = np.random.default_rng(0)
    student, teacher = (jnp.asarray(rng.normal(0, 2, (8, 5)), jnp.float32) for _ in range(2))

    def loss(theta, scale):
        theta = gradient_reversal(theta, scale=scale)
        return logits.kd(student, teacher, temperature=learned_temperature(theta)).mean()

    slope = jax.grad(loss)(0.3, 1.0)
    reversed_slope = jax.grad(loss)(0.3, -1.0)
    assert reversed_slope == -slope != 0
    assert loss(0.3 - 0.1 * reversed_slope / abs(slope), -1.0) > loss(0.3, -1.0)


def test_the_temperature_starts_at_15_62_and_stays_in_its_range():
    np.testing.assert_allclose(learned_temperature(jnp.array([1.0])), [15.62117], rtol=1e-6)
    ends = learned_temperature(jnp.array([-1e4, 1e4]), start=2.0, span=5.0)
    np.testing.assert_allclose(ends, [2.0, 7.0])


def test_the_schedule_goes_from_0_to_minus_1_and_stays():
    values = [float(reversal_schedule(epoch)) for epoch in (0, 1, 5, 10, 20)]
    np.testing.assert_allclose(values, [0, -0.0244717, -0.5, -1, -1], atol=1e-6)
    np.testing.assert_allclose(reversal_schedule(2, num_epochs=4.0, maximum=0.5), -0.25, rtol=1e-6)
