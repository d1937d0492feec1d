"""Denoisers: the exact one against sampling, the learned one against what it may be given."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.networks import build, gaussian_mixture

MEANS = ((1.5, 0.0), (-1.5, 0.5), (0.0, 1.5))


def schedule(times):
    return jnp.cos(np.pi / 2 * times), jnp.sin(np.pi / 2 * times)


def test_the_denoiser_of_a_mixture_is_the_mean_of_what_the_noisy_point_may_have_been():
    """By importance sampling of the data, with and without the component given."""
    rng = np.random.default_rng(0)
    component = rng.integers(0, 3, 400_000)
    clean = np.array(MEANS)[component] + 0.5 * rng.normal(size=(400_000, 2))
    network = gaussian_mixture(MEANS, 0.5, schedule)
    variables, noisy = network.init(jax.random.key(0)), np.array([[0.4, 0.3]], np.float32)
    for time in (0.3, 0.7):
        alpha, sigma = map(float, schedule(time))
        logits = -np.sum((noisy - alpha * clean) ** 2, 1) / (2 * sigma**2)
        for condition in (0, 1, 3):
            likely = np.exp(logits) * ((condition == 3) | (component == condition))
            expected = (likely[:, None] * clean).sum(0) / likely.sum()
            given = jnp.array([condition])
            found = network.apply(variables, noisy, jnp.array([time]), given).output[0]
            np.testing.assert_allclose(found, expected, atol=0.02)
        everything = network.apply(variables, noisy, jnp.array([time])).output[0]
        np.testing.assert_array_equal(everything, found)


def test_the_denoiser_of_a_mixture_keeps_data_and_forgets_noise():
    network = gaussian_mixture(MEANS, 0.5, schedule)
    assert network is gaussian_mixture([list(m) for m in MEANS], 0.5, schedule)
    variables = network.init(jax.random.key(0))
    noisy = jnp.array([[3.0, -2.0], [3.0, -2.0]])
    found = network.apply(variables, noisy, jnp.array([0.0, 1.0])).output
    np.testing.assert_allclose(found[0], noisy[0], rtol=1e-6)
    np.testing.assert_allclose(found[1], np.mean(MEANS, 0), atol=1e-5)


@pytest.mark.parametrize(
    ("means", "std", "message"),
    [
        ([1.0, 2.0], 0.5, "means must be K points of D finite values"),
        ([[np.nan]], 0.5, "means must be K points"),
        (MEANS, 0.0, "std must be positive, got 0.0"),
    ],
)
def test_a_bad_mixture_is_refused(means, std, message):
    with pytest.raises(ValueError, match=message):
        gaussian_mixture(means, std, schedule)


def applied(options, *arguments):
    network = build("denoising_mlp", 4, widths=(8,), **options)
    return jax.eval_shape(
        lambda *x: network.apply(network.init(jax.random.key(0), *x), *x).output, *arguments
    )


X, TIMES, CONDITION = jnp.ones((3, 2, 2)), jnp.ones(3), jnp.ones(3, jnp.int32)


def test_a_denoising_mlp_gives_what_it_reads():
    assert applied({}, X, TIMES).shape == X.shape
    assert applied({"conditions": 5}, X, TIMES, CONDITION).shape == X.shape


def test_a_denoising_mlp_hears_the_time_and_the_condition():
    network = build("denoising_mlp", 4, widths=(8,), conditions=5)
    variables = network.init(jax.random.key(0), X, TIMES, CONDITION)
    usual = network.apply(variables, X, TIMES, CONDITION).output
    for other in ((X, TIMES / 2, CONDITION), (X, TIMES, CONDITION + 4)):
        assert float(jnp.abs(network.apply(variables, *other).output - usual).min()) > 1e-4


@pytest.mark.parametrize(
    ("options", "arguments", "message"),
    [
        ({}, (X[:, 0], TIMES), "examples must have 4 values"),
        ({"conditions": 2}, (X, TIMES), "conditions=2, but none was given"),
        ({}, (X, TIMES, CONDITION), "conditions=0, but one was given"),
        ({"time_features": 3}, (X, TIMES), "time_features must be even"),
        ({"max_frequency": 1.0}, (X, TIMES), "max_frequency must be > 1"),
        ({"dimension": 2}, (X, TIMES), "has no option 'dimension'"),
    ],
)
def test_a_bad_denoising_mlp_is_refused(options, arguments, message):
    with pytest.raises(ValueError, match=message):
        applied(options, *arguments)
