"""The derivatives that `log_space` states are those of the plain formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.losses import log_space

INF = jnp.inf


def plain_kl(p_logits, q_logits):
    log_p, log_q = jax.nn.log_softmax(p_logits), jax.nn.log_softmax(q_logits)
    return jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)


# `softmax_kl` has one form for the first and another for the second and third.
FEW, VECTORS, MANY = 5, 2 * log_space.VECTOR, log_space.FEW_CLASSES + 1


def rows(classes=FEW):
    return jnp.asarray(3 * np.random.default_rng(0).normal(size=(3, classes)))


def of_both(kl):
    return lambda x: kl(x, x[::-1] * 0.7)


def of_p(kl):
    return lambda x: kl(x, jnp.flip(rows(x.shape[-1])))


def of_q(kl):
    return lambda x: kl(jnp.flip(rows(x.shape[-1])), x)


PAIRS = {  # ours, the plain formula
    "softmax": (log_space.softmax, jax.nn.softmax),
    "safe_log_softmax": (log_space.safe_log_softmax, jax.nn.log_softmax),
    "logsumexp": (log_space.logsumexp, lambda x: jax.nn.logsumexp(x, axis=-1)),
    "softmax_kl": (of_both(log_space.softmax_kl), of_both(plain_kl)),
    "softmax_kl in p": (of_p(log_space.softmax_kl), of_p(plain_kl)),
    "softmax_kl in q": (of_q(log_space.softmax_kl), of_q(plain_kl)),
}


CASES = [(name, FEW) for name in PAIRS] + [(name, MANY) for name in PAIRS if "kl" in name]


@pytest.mark.parametrize(("name", "classes"), CASES)
def test_derivatives_of_both_orders_and_modes_are_those_of_the_plain_formula(name, classes):
    with jax.enable_x64(True):
        ours, plain = PAIRS[name]
        x = rows(classes)
        # Largest logits that differ by less than their probabilities can tell.
        x = x.at[0].add(-1 - x[0].max()).at[0, :2].set(jnp.array([0.0, -1e-20]))
        direction, other = jnp.cos(x), jnp.sin(x)

        def derivatives(function):
            def scalar(x):
                return jnp.sum(jnp.cos(function(x)))

            gradient = jax.grad(scalar)
            return (
                function(x),
                jax.jvp(function, (x,), (direction,))[1],
                gradient(x),
                jax.jvp(gradient, (x,), (direction,))[1],
                jax.grad(lambda x: jnp.sum(gradient(x) * other))(x),
            )

        for got, expected in zip(jax.jit(lambda: derivatives(ours))(), derivatives(plain)):
            assert got.dtype == jnp.float64
            np.testing.assert_allclose(got, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("classes", [FEW, VECTORS, MANY])
@pytest.mark.parametrize("name", ["p", "q"])
def test_classes_without_mass_change_no_other_and_get_no_gradient(name, classes):
    padded = jnp.full((3, classes), -INF).at[:, 1:-1].set(rows(classes - 2).astype(jnp.float32))
    other = jnp.where(padded == -INF, -INF, padded[:, ::-1])

    def total(x, y):
        return jnp.sum(log_space.softmax_kl(x, y) if name == "p" else log_space.softmax_kl(y, x))

    for function in (total, lambda x, y: jnp.sum(jnp.sin(jax.grad(total)(x, y)))):
        got = jax.jit(jax.grad(function))(padded, other)
        alone = jax.grad(function)(padded[:, 1:-1], other[:, 1:-1])
        np.testing.assert_array_equal(got[:, jnp.array([0, -1])], 0.0)
        np.testing.assert_allclose(got[:, 1:-1], alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("classes", [FEW, VECTORS, MANY])
def test_a_row_without_any_support_has_no_gradient(classes):
    x, empty = jnp.arange(classes, dtype=jnp.float32), jnp.full(classes, -INF)

    def gradients(p_logits, q_logits):
        return jax.grad(log_space.softmax_kl, (0, 1))(p_logits, q_logits)

    assert log_space.softmax_kl(empty, x) == log_space.softmax_kl(empty, empty) == 0
    assert log_space.softmax_kl(x, empty) == INF
    for gradient in (*gradients(empty, x), *gradients(empty, empty)):
        np.testing.assert_array_equal(gradient, 0.0)
    np.testing.assert_array_equal(log_space.softmax(empty), 0.0)
    np.testing.assert_array_equal(log_space.safe_log_softmax(empty), -INF)
    np.testing.assert_array_equal(log_space.logsumexp(empty), -INF)
    for function in (log_space.softmax, log_space.logsumexp):
        _, pull_back = jax.vjp(function, empty)
        np.testing.assert_array_equal(pull_back(jnp.ones_like(function(empty)))[0], 0.0)


def test_a_probability_that_underflows_adds_nothing_beside_an_excluded_class():
    p_logits, q_logits = jnp.array([0.0, 0.0, -1e4]), jnp.array([1.0, 0.0, -INF])
    value, gradient = jax.value_and_grad(log_space.softmax_kl, (0, 1))(p_logits, q_logits)
    two, of_two = jax.value_and_grad(log_space.softmax_kl, (0, 1))(p_logits[:2], q_logits[:2])
    np.testing.assert_allclose(value, two, rtol=1e-6)
    for got, expected in zip(gradient, of_two):
        np.testing.assert_allclose(got, [*expected, 0.0], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("classes", [FEW, VECTORS, MANY])
@pytest.mark.parametrize("at", [0, 1])
def test_a_nan_is_never_hidden(at, classes):
    x = jnp.arange(classes, dtype=jnp.float32)
    arguments = [x, x[::-1]]
    arguments[at] = arguments[at].at[2].set(jnp.nan)
    assert jnp.isnan(log_space.softmax_kl(*arguments))
    assert jnp.all(jnp.isnan(log_space.softmax(arguments[at])))
    assert jnp.isnan(log_space.logsumexp(arguments[at]))


def test_vmap_gives_the_rows():
    x = rows().astype(jnp.float32)
    gradient = jax.grad(lambda p, q: log_space.softmax_kl(p, q).sum(), (0, 1))
    for got, expected in zip(jax.vmap(gradient)(x, x[::-1]), gradient(x, x[::-1])):
        np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-7)


def test_logsumexp_over_another_axis_is_that_of_the_transpose():
    x = rows().astype(jnp.float32).at[:, 1].set(-INF)
    got, expected = log_space.logsumexp(x, axis=0), log_space.logsumexp(x.T)
    np.testing.assert_allclose(got, expected, rtol=1e-6)
