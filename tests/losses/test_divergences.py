"""The divergences: worked numbers, bounds, limits, and distributions that do not overlap."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from kdjax import losses

T = jnp.array([0.0, 1.0, 2.0])
S = jnp.array([2.0, 1.0, 0.0])
INF = jnp.inf


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("forward_kl", {}, 1.150421),
        ("kl_divergence", {}, 1.150421),
        ("reverse_kl", {}, 1.150421),
        ("jeffreys", {}, 2 * 1.150421),
        ("generalized_jsd", {"beta": 0.5}, 0.247588),
        ("generalized_jsd", {"beta": 0.1}, 0.097107),
        ("skewed_forward_kl", {"lam": 0.1}, 0.829915),
        ("skewed_reverse_kl", {"lam": 0.1}, 0.829915),
        ("total_variation", {}, 0.575210),
        ("alpha_beta_divergence", {"alpha": 0.2, "beta": 0.7}, 1.229343),
        ("alpha_beta_divergence", {"alpha": 1.0, "beta": 0.0}, 1.150421),
        ("alpha_beta_divergence", {"alpha": 0.0, "beta": 1.0}, 1.150421),
        ("alpha_beta_divergence", {"alpha": 0.0, "beta": 0.0}, 4.0),
    ],
)
def test_worked_numbers(name, options, expected):
    np.testing.assert_allclose(getattr(losses, name)(T, S, **options), expected, atol=1e-6)


def pair(seed=0, shape=(6, 5)):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(0, 2, shape)), jnp.asarray(rng.normal(0, 2, shape))


def test_directions():
    p, q = pair()
    np.testing.assert_array_equal(losses.reverse_kl(p, q), losses.forward_kl(q, p))
    both = losses.forward_kl(p, q) + losses.reverse_kl(p, q)
    np.testing.assert_allclose(losses.jeffreys(p, q), both)
    np.testing.assert_allclose(
        losses.skewed_reverse_kl(p, q, lam=0.3), losses.skewed_forward_kl(q, p, lam=0.3)
    )
    np.testing.assert_allclose(
        losses.generalized_jsd(p, q, beta=0.3),
        losses.generalized_jsd(q, p, beta=0.7),
        rtol=1e-5,
    )


def test_end_points_are_those_of_the_formulas_users_know():
    p, q = pair()
    forward, reverse = losses.forward_kl(p, q), losses.reverse_kl(p, q)
    np.testing.assert_array_equal(losses.generalized_jsd(p, q, beta=0.0), forward)
    np.testing.assert_array_equal(losses.generalized_jsd(p, q, beta=1.0), reverse)
    np.testing.assert_allclose(losses.skewed_forward_kl(p, q, lam=0.0), forward, rtol=1e-6)
    np.testing.assert_allclose(losses.skewed_reverse_kl(p, q, lam=0.0), reverse, rtol=1e-6)
    np.testing.assert_allclose(losses.skewed_forward_kl(p, q, lam=1.0), 0, atol=1e-6)
    with jax.enable_x64(True):
        p, q = pair()
        scaled = losses.generalized_jsd(p, q, beta=1e-7) / 1e-7
        np.testing.assert_allclose(scaled, losses.forward_kl(p, q), rtol=1e-4)


@settings(deadline=None, database=None, derandomize=True, max_examples=30)
@given(arrays(np.float32, (2, 4, 5), elements=st.floats(-50, 50, width=32)))
def test_mixtures_are_bounded(logits):
    p, q = jnp.asarray(logits)
    assert np.all(losses.generalized_jsd(p, q, beta=0.5) <= np.log(2) + 1e-5)
    assert np.all(losses.skewed_forward_kl(p, q, lam=0.1) <= -np.log(0.1) + 1e-5)
    assert np.all(losses.total_variation(p, q) <= 1 + 1e-6)


def reference_alpha_beta(p, q, a, b):
    """The definition, literally."""
    terms = p**a * q**b - a / (a + b) * p ** (a + b) - b / (a + b) * q ** (a + b)
    return -np.sum(terms, -1) / (a * b)


@settings(deadline=None, database=None, derandomize=True, max_examples=40)
@given(st.floats(-1.5, 1.5), st.floats(-1.5, 1.5))
def test_alpha_beta_is_its_definition(alpha, beta):
    if min(abs(alpha), abs(beta), abs(alpha + beta)) < 0.01:
        return
    with jax.enable_x64(True):
        p_logits, q_logits = pair()
        p, q = (np.asarray(jax.nn.softmax(x)) for x in (p_logits, q_logits))
        value = losses.alpha_beta_divergence(p_logits, q_logits, alpha=alpha, beta=beta)
        expected = reference_alpha_beta(p, q, alpha, beta)
        np.testing.assert_allclose(value, expected, rtol=1e-8)
        assert np.all(value >= 0)


LIMITS = [(0.0, 0.5), (0.8, 0.0), (0.6, -0.6), (-0.6, 0.6), (0.0, 0.0), (1.0, 0.0), (0.0, -0.5)]


@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize(("alpha", "beta"), LIMITS)
def test_alpha_beta_is_continuous_at_its_special_cases(alpha, beta, x64):
    near, tolerance = (1e-6, 1e-4) if x64 else (1e-3, 3e-2)
    with jax.enable_x64(x64):
        p, q = pair()
        special = losses.alpha_beta_divergence(p, q, alpha=alpha, beta=beta)
        for step in ((near, 2 * near), (-near, near / 2)):
            close = losses.alpha_beta_divergence(p, q, alpha=alpha + step[0], beta=beta + step[1])
            np.testing.assert_allclose(close, special, rtol=tolerance)


def test_alpha_beta_special_cases_are_the_printed_ones():
    with jax.enable_x64(True):
        p_logits, q_logits = pair()
        lp, lq = (np.asarray(jax.nn.log_softmax(x)) for x in (p_logits, q_logits))

        def value(alpha, beta, **options):
            return losses.alpha_beta_divergence(
                p_logits, q_logits, alpha=alpha, beta=beta, **options
            )

        a = b = 0.6
        beta_zero = np.exp(a * lp) * a * (lp - lq) - np.exp(a * lp) + np.exp(a * lq)
        alpha_zero = np.exp(b * lq) * b * (lq - lp) - np.exp(b * lq) + np.exp(b * lp)
        sum_zero = a * (lq - lp) + np.exp(a * (lp - lq)) - 1
        for terms, arguments in (
            (beta_zero, (a, 0.0)),
            (alpha_zero, (0.0, b)),
            (sum_zero, (a, -a)),
        ):
            np.testing.assert_allclose(value(*arguments), terms.sum(-1) / a**2, rtol=1e-10)
            official = value(*arguments, official_special_cases=True)
            np.testing.assert_allclose(official, terms.sum(-1) / a, rtol=1e-10)
        np.testing.assert_allclose(value(0.0, 0.0), 0.5 * ((lq - lp) ** 2).sum(-1), rtol=1e-10)
        for general in ((0.2, 0.7), (0.0, 0.0)):
            np.testing.assert_array_equal(
                value(*general, official_special_cases=True), value(*general)
            )


@pytest.mark.parametrize(
    ("name", "options", "where_q_has_none", "where_p_has_none"),
    [
        ("forward_kl", {}, INF, np.log(2)),
        ("reverse_kl", {}, np.log(2), INF),
        ("jeffreys", {}, INF, INF),
        ("generalized_jsd", {"beta": 0.0}, INF, np.log(2)),
        ("generalized_jsd", {"beta": 1.0}, np.log(2), INF),
        ("generalized_jsd", {"beta": 0.5}, 0.215762, 0.215762),
        ("skewed_forward_kl", {"lam": 0.5}, 0.143841, 0.287682),
        ("skewed_forward_kl", {"lam": 1.0}, 0.0, 0.0),
        ("skewed_reverse_kl", {"lam": 1.0}, 0.0, 0.0),
        ("total_variation", {}, 0.5, 0.5),
        ("alpha_beta_divergence", {"alpha": 0.5, "beta": 0.5}, 1.171573, 1.171573),
        ("alpha_beta_divergence", {"alpha": 1.0, "beta": 0.0}, INF, np.log(2)),
        ("alpha_beta_divergence", {"alpha": 0.0, "beta": 1.0}, np.log(2), INF),
        ("alpha_beta_divergence", {"alpha": 0.0, "beta": 0.0}, INF, INF),
        ("alpha_beta_divergence", {"alpha": 1.0, "beta": -0.5}, INF, 1.656854),
    ],
)
def test_a_class_with_mass_on_one_side_only(name, options, where_q_has_none, where_p_has_none):
    full, half = jnp.array([0.0, 0.0]), jnp.array([0.0, -INF])

    def divergence(p, q):
        return getattr(losses, name)(p, q, **options)

    cases = [((full, half), where_q_has_none), ((half, full), where_p_has_none)]
    for (p, q), expected in cases:
        np.testing.assert_allclose(divergence(p, q), expected, atol=2e-6)
        if np.isfinite(expected):
            assert np.all(np.isfinite(jax.grad(divergence, argnums=(0, 1))(p, q)))
