"""DDK's weights of domains: worked numbers, fixed points, what changes nothing."""

import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.losses import domain_mixture

ONES = jnp.ones(3)
RATIOS = np.float32([1.1, 1.3, 1.5])
BEFORE = np.float32([0.239694, 0.323554, 0.436752])


def init(ratios, **options):
    return domain_mixture.domain_discrepancy_init(jnp.float32(ratios), ONES, **options)


def update(before, ratios, **options):
    before, ratios = jnp.float32(before), jnp.float32(ratios)
    return domain_mixture.domain_discrepancy_update(before, ratios, ONES, **options)


def near(found, expected, atol=1e-6):
    np.testing.assert_allclose(found, expected, rtol=0, atol=atol)


def test_two_intervals_of_three_domains_worked_by_hand():
    near(init([1.2, 1.5, 1.8]), BEFORE)
    near(update(BEFORE, RATIOS, alpha=1.0), [0.186324, 0.307196, 0.506480])
    near(update(BEFORE, RATIOS), [0.259829, 0.320265, 0.419907])


def test_it_is_a_distribution_with_a_floor_and_alpha_says_how_high():
    for alpha in (0.0, 0.3, 1.0):
        found = update(BEFORE, [1.0, 9.0, 30.0], alpha=alpha)
        near(found.sum(), 1)
        assert found.min() >= (1 - alpha) / 3 - 1e-6
    near(update(BEFORE, RATIOS, alpha=0.0), [1 / 3] * 3)


def test_equal_ratios_lead_back_to_uniform_geometrically():
    near(init([7.0] * 3), [1 / 3] * 3)
    near(update(BEFORE, [1.7] * 3, alpha=0.6), 0.6 * BEFORE + 0.4 / 3)
    near(update(BEFORE, [1.7] * 3, alpha=1.0), BEFORE)
    near(update([1 / 3] * 3, [1.7] * 3), [1 / 3] * 3)


def test_it_follows_the_order_of_the_domains_and_differences_of_ratios():
    order = [2, 0, 1]
    near(update(BEFORE[order], RATIOS[order]), update(BEFORE, RATIOS)[np.array(order)])
    near(update(BEFORE, RATIOS + 4), update(BEFORE, RATIOS))
    near(init(RATIOS + 4), init(RATIOS))
    assert abs(init(2 * RATIOS) - init(RATIOS)).max() > 0.01


def test_the_ratio_is_of_perplexities():
    student, teacher = jnp.array([4.0, 9.0, 5.0]), jnp.array([2.0, 6.0, 5.0])
    found = domain_mixture.domain_discrepancy_init(student, teacher)
    near(found, init([2.0, 1.5, 1.0]))
    near(
        domain_mixture.domain_discrepancy_update(jnp.asarray(BEFORE), student, teacher),
        update(BEFORE, [2.0, 1.5, 1.0]),
    )


def test_a_huge_ratio_takes_all_unless_it_is_bounded():
    near(init([1.0, 1.0, 500.0]), [0, 0, 1])
    near(update(BEFORE, [1.0, 1.0, 500.0]), [1 / 6, 1 / 6, 2 / 3])
    near(init([1.0, 1.0, 500.0], max_ratio=2.0), init([1.0, 1.0, 2.0]))
    near(update(BEFORE, [1.0, 3.0, 500.0], max_ratio=2.0), update(BEFORE, [1.0, 2.0, 2.0]))


def test_perplexity_is_of_sums_not_a_mean_of_perplexities():
    nll, count = np.float32([[6.0, 1.0], [2.0, 3.0]]), np.float32([[3.0, 2.0], [5.0, 1.0]])
    found = domain_mixture.domain_perplexity(nll.sum(0), count.sum(0))
    near(found, np.exp([8 / 8, 4 / 3]), atol=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_never_hidden(bad):
    assert np.isnan(init([1.0, bad, 2.0])).any()
    assert np.isnan(update(BEFORE, [1.0, bad, 2.0])).any()
    assert np.isnan(domain_mixture.domain_perplexity(jnp.float32([0.0]), jnp.float32([0.0]))).all()
