"""Regression, transformed teachers and weighted soft labels: worked numbers and identities."""

import jax
import jax.numpy as jnp
import numpy as np

from kdjax.losses import logits
from kdjax.losses.logit_matching import mse_logits, transformed_teacher_matching, wsld

S = jnp.array([2.0, 1.0, 0.0])
T = jnp.array([0.0, 1.0, 2.0])


def batch(seed=0, shape=(6, 5)):
    rng = np.random.default_rng(seed)
    student, teacher = (jnp.asarray(rng.normal(0, 2, shape), jnp.float32) for _ in range(2))
    return student, teacher, jnp.asarray(rng.integers(0, shape[-1], shape[:-1]))


def test_mse_is_the_infinite_temperature_of_kd_for_centred_logits_and_sees_their_offset():
    with jax.enable_x64(True):
        student, teacher, _ = (jnp.asarray(x, float) for x in batch())
        centred = [x - x.mean(-1, keepdims=True) for x in (student, teacher)]
        hot = logits.kd(student, teacher, temperature=1e4)
        np.testing.assert_allclose(mse_logits(*centred) / 2, hot, rtol=1e-3)
        assert np.all(mse_logits(student + 3, teacher) != mse_logits(student, teacher))


def test_mse_of_padded_classes_counts_the_others_only():
    pad = jnp.array([-jnp.inf])
    value, gradient = jax.value_and_grad(mse_logits)(
        jnp.concatenate([S, pad]), jnp.concatenate([T, pad])
    )
    np.testing.assert_allclose(value, 8 / 3, rtol=1e-6)
    np.testing.assert_allclose(gradient, [4 / 3, 0, -4 / 3, 0], atol=1e-6)


def test_ttm_is_zero_for_the_softened_teacher_itself():
    _, teacher, _ = batch()
    loss = transformed_teacher_matching(teacher * 0.4, teacher, exponent=0.4)
    np.testing.assert_allclose(loss, 0, atol=1e-6)


def test_ttm_with_exponent_one_is_kd_at_temperature_one():
    student, teacher, _ = batch()
    plain = logits.kd(student, teacher, temperature=1.0)
    matched = transformed_teacher_matching(student, teacher, exponent=1.0)
    np.testing.assert_allclose(matched, plain, rtol=1e-5)
    np.testing.assert_allclose(
        transformed_teacher_matching(S, T, exponent=1.0), 1.150421, atol=1e-6
    )


def test_wsld_worked_number():
    # CE_s = 0.407606, CE_t = 2.407606: w = 0.155750, and H(p, q) = 1.150421 + 0.832396.
    np.testing.assert_allclose(wsld(S, T, jnp.array(0), temperature=1.0), 0.308823, atol=2e-5)


def test_wsld_gradient_is_that_of_weighted_kd():
    student, teacher, labels = batch()
    gradient = jax.grad(lambda s: wsld(s, teacher, labels, temperature=3.0).sum())(student)
    ratio = logits.cross_entropy(student, labels) / logits.cross_entropy(teacher, labels)
    plain = jax.grad(lambda s: logits.kd(s, teacher, temperature=3.0).sum())(student)
    expected = (1 - jnp.exp(-ratio))[:, None] * plain
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-6)


def test_wsld_leaves_an_example_alone_that_the_student_knows_better_than_its_teacher():
    sure, doubtful = jnp.array([30.0, 0.0, 0.0]), jnp.array([0.0, 1.0, 2.0])
    assert wsld(sure, doubtful, jnp.array(0)) < 1e-6
    # A teacher that is certain is followed in full.
    full = wsld(doubtful, sure, jnp.array(0), temperature=1.0)
    np.testing.assert_allclose(full, logits.cross_entropy(doubtful, jnp.array(0)), rtol=1e-5)
