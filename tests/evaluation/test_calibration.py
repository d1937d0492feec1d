"""The best temperature: where it is, what it removes, and the two cases without one."""

import numpy as np

from kdjax.evaluation.calibration import fit_temperature
from kdjax.evaluation.metrics import nll


def model(seed=0, n=400, num_classes=5):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (n, num_classes))
    chances = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    return logits, np.array([rng.choice(num_classes, p=p) for p in chances])


def test_no_temperature_is_better():
    logits, labels = model()
    best = fit_temperature(logits, labels)
    np.testing.assert_allclose(best.nll, nll(logits / best.temperature, labels), rtol=1e-12)
    for factor in (0.5, 0.99, 1.01, 2.0):
        assert nll(logits / (factor * best.temperature), labels) > best.nll
    assert abs(best.temperature - 1) < 0.15  # the labels were drawn from the logits


def test_the_scale_of_the_logits_is_undone():
    logits, labels = model()
    best, scaled = fit_temperature(logits, labels), fit_temperature(7 * logits - 3, labels)
    np.testing.assert_allclose(scaled.temperature, 7 * best.temperature, rtol=1e-9)
    np.testing.assert_allclose(scaled.nll, best.nll, rtol=1e-12)


def test_two_classes_get_the_frequency_of_the_right_one():
    best = fit_temperature(np.array([[4.0, 0.0]] * 4), np.array([0, 0, 0, 1]))
    np.testing.assert_allclose(best.temperature, 4 / np.log(3), rtol=1e-9)


def test_logits_worse_than_none_get_an_infinite_temperature_and_perfect_ones_zero():
    logits = np.array([[2.0, 1.0, 0.0]] * 3)
    assert fit_temperature(logits, np.array([2, 2, 2])) == (np.inf, np.log(3))
    assert fit_temperature(0 * logits, np.array([0, 1, 2])) == (np.inf, np.log(3))
    assert fit_temperature(logits, np.array([0, 0, 0])) == (0.0, 0.0)


def test_masked_examples_are_not_looked_at():
    logits, labels = model()
    where = np.arange(400) % 2 == 0
    spoilt = np.where(where[:, None], logits, np.nan)
    assert fit_temperature(spoilt, labels, where) == fit_temperature(logits[where], labels[where])
