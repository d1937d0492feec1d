"""Survival analysis: worked numbers, reference loops, ties, invariances, saturation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdjax.losses import binary, survival

SEEDS = st.integers(0, 2**16)
cheap = settings(deadline=None, database=None, derandomize=True, max_examples=20)


@functools.cache
def cox(ties):
    return jax.jit(functools.partial(survival.cox_partial_likelihood, ties=ties))


def cohort(seed, size=8, distinct_times=4):
    """Log-hazards, times with ties, events (at least one)."""
    rng = np.random.default_rng(seed)
    event = rng.random(size) < 0.6
    event[rng.integers(size)] = True
    time = rng.integers(0, distinct_times, size).astype(np.float32)
    return rng.normal(0, 1, size).astype(np.float32), time, event


def loop(log_hazard, time, event, ties):
    """The negative log partial likelihood, from its definition, in float64."""
    hazard, total = np.exp(log_hazard.astype(np.float64)), 0.0
    for at in np.unique(time[event]):
        tied = event & (time == at)
        at_risk, of_tied, number = hazard[time >= at].sum(), hazard[tied].sum(), tied.sum()
        total -= np.log(hazard[tied]).sum()
        for place in range(number):
            taken = place / number * of_tied if ties == "efron" else 0.0
            total += np.log(at_risk - taken)
    return total


def test_worked_numbers():
    log_hazard = jnp.log(jnp.array([1.0, 2.0, 1.0]))
    time, event = jnp.array([1.0, 2.0, 3.0]), jnp.array([True, True, False])
    for ties in ("efron", "breslow"):
        losses = cox(ties)(log_hazard, time, event)
        np.testing.assert_allclose(losses, [np.log(4), np.log(1.5), 0], rtol=1e-6)
    np.testing.assert_allclose(losses.sum(), 1.791759, rtol=1e-6)
    averaged = losses.sum() / survival.num_event_times(time, event)
    np.testing.assert_allclose(averaged, 0.895880, rtol=1e-6)


@pytest.mark.parametrize("ties", ["efron", "breslow"])
@cheap
@given(SEEDS)
def test_cox_agrees_with_a_loop_over_event_times(ties, seed):
    arrays = cohort(seed)
    losses = cox(ties)(*arrays)
    np.testing.assert_allclose(losses.sum(), loop(*arrays, ties), rtol=1e-4, atol=1e-4)
    assert np.all(losses[~arrays[2]] == 0)
    assert survival.num_event_times(*arrays[1:]) == len(np.unique(arrays[1][arrays[2]]))


@pytest.mark.parametrize("ties", ["efron", "breslow"])
@cheap
@given(SEEDS)
def test_cox_follows_a_permutation_and_sees_no_offset_and_no_units_of_time(ties, seed):
    log_hazard, time, event = cohort(seed)
    losses = cox(ties)(log_hazard, time, event)
    order = np.random.default_rng(seed).permutation(8)
    permuted = cox(ties)(log_hazard[order], time[order], event[order])
    np.testing.assert_allclose(permuted, losses[order], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(cox(ties)(log_hazard + 5, time, event), losses, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(cox(ties)(log_hazard, np.exp(time), event), losses)
    gradient = jax.grad(lambda x: cox(ties)(x, time, event).sum())(log_hazard)
    np.testing.assert_allclose(gradient.sum(), 0, atol=1e-4)


@cheap
@given(SEEDS)
def test_ties_differ_exactly_where_events_tie(seed):
    log_hazard, time, event = cohort(seed)
    apart = np.argsort(np.random.default_rng(seed).random(8)).astype(np.float32)
    np.testing.assert_allclose(
        cox("efron")(log_hazard, apart, event), cox("breslow")(log_hazard, apart, event)
    )
    gap = cox("breslow")(log_hazard, time, event) - cox("efron")(log_hazard, time, event)
    tied = [event[i] and (event & (time == time[i])).sum() > 1 for i in range(8)]
    np.testing.assert_array_equal(np.asarray(gap) > 1e-6, tied)


@pytest.mark.parametrize("ties", ["efron", "breslow"])
def test_a_masked_example_is_one_that_is_not_there(ties):
    log_hazard, time, event = cohort(3)
    where = np.arange(8) != 2
    masked = cox(ties)(log_hazard, time, event, where=where)
    without = cox(ties)(log_hazard[where], time[where], event[where])
    np.testing.assert_allclose(masked[where], without, rtol=1e-5, atol=1e-6)
    assert masked[2] == 0


@pytest.mark.parametrize("ties", ["efron", "breslow"])
def test_without_events_the_loss_and_its_gradient_are_0(ties):
    log_hazard, time, event = cohort(0)
    for options in ({"event": np.zeros_like(event)}, {"where": np.zeros_like(event)}):
        arguments = {"event": event, **options}
        value, gradient = jax.value_and_grad(
            lambda x, arguments=arguments: cox(ties)(x, time, **arguments).sum()
        )(log_hazard)
        assert value == 0
        assert np.all(gradient == 0)


def test_when_all_at_risk_have_the_event_the_gradient_is_the_whole_slope():
    log_hazard, time, event = np.array([0.3, -1.0, 0.5]), np.zeros(3), np.ones(3, bool)
    gradient = jax.jit(jax.grad(lambda x: cox("efron")(x, time, event).sum()))(log_hazard)
    step = np.array([1e-6, 0.0, 0.0])
    ends = [loop(log_hazard + sign * step, time, event, "efron") for sign in (1, -1)]
    np.testing.assert_allclose(gradient[0], (ends[0] - ends[1]) / 2e-6, rtol=1e-5)


def test_log_hazard_mse_sees_no_offset():
    student, teacher, _ = cohort(0)
    loss = survival.log_hazard_mse(student, teacher)
    np.testing.assert_allclose(survival.log_hazard_mse(student + 3, teacher - 1), loss, rtol=1e-4)
    np.testing.assert_allclose(survival.log_hazard_mse(student, student + 2), 0, atol=1e-10)
    where = np.arange(8) > 2
    masked = survival.log_hazard_mse(student, teacher, where=where)
    np.testing.assert_allclose(
        masked[3:], survival.log_hazard_mse(student[3:], teacher[3:]), rtol=1e-4
    )


def test_worked_numbers_of_hazards_of_a_half():
    flat = jnp.zeros(4)
    np.testing.assert_allclose(survival.hazards_to_survival(flat), [0.5, 0.25, 0.125, 0.0625])
    np.testing.assert_allclose(survival.survival_risk(flat), -0.9375)
    for label, censored, alpha, expected in (
        (1, False, 0.0, 1.386294),
        (1, True, 0.0, 1.386294),
        (3, True, 0.0, 2.772589),
        (1, True, 0.4, 0.831777),
        (1, False, 0.4, 1.386294),
    ):
        loss = survival.discrete_survival_nll(
            flat, jnp.array(label), jnp.array(censored), alpha=alpha
        )
        np.testing.assert_allclose(loss, expected, rtol=1e-6)


@cheap
@given(SEEDS)
def test_the_likelihoods_of_all_outcomes_sum_to_one(seed):
    logits = np.random.default_rng(seed).normal(0, 2, 4).astype(np.float32)
    rows = np.broadcast_to(logits, (5, 4))
    labels, censored = np.array([0, 1, 2, 3, 3]), np.array([False] * 4 + [True])
    likelihoods = np.exp(-survival.discrete_survival_nll(rows, labels, censored))
    np.testing.assert_allclose(likelihoods.sum(), 1, rtol=1e-5)
    # The cross-entropy asks whether the event came up to the bin: two outcomes.
    failed = np.exp(-survival.discrete_survival_ce(logits, np.array(2), np.array(False)))
    survived = np.exp(-survival.discrete_survival_ce(logits, np.array(2), np.array(True)))
    np.testing.assert_allclose(failed + survived, 1, rtol=1e-5)
    np.testing.assert_allclose(failed, likelihoods[:3].sum(), rtol=1e-5)


def test_logits_after_the_bin_have_no_gradient_and_risk_rises_with_each():
    logits = jnp.array([0.3, -0.5, 1.0, 0.2])
    for kernel in (survival.discrete_survival_nll, survival.discrete_survival_ce):
        for censored in (False, True):
            gradient = jax.grad(kernel)(logits, jnp.array(1), jnp.array(censored), alpha=0.3)
            assert np.all(gradient[2:] == 0)
            assert np.all(gradient[:2] != 0)
    assert np.all(jax.grad(survival.survival_risk)(logits) > 0)


def test_alpha_of_1_leaves_the_likelihood_of_the_events_in_the_cross_entropy():
    logits, label = jnp.array([0.3, -0.5, 1.0]), jnp.array(1)
    arguments = logits, label, jnp.array(False)
    np.testing.assert_allclose(
        survival.discrete_survival_ce(*arguments, alpha=1.0),
        survival.discrete_survival_nll(*arguments),
        rtol=1e-6,
    )
    assert survival.discrete_survival_ce(logits, label, jnp.array(True), alpha=1.0) == 0


def test_saturated_hazards_keep_value_and_gradient():
    for censored, logits, expected in ((True, 1e4, 2e4), (False, -1e4, 1e4)):
        value, gradient = jax.value_and_grad(survival.discrete_survival_nll)(
            jnp.full(2, logits), jnp.array(1), jnp.array(censored)
        )
        np.testing.assert_allclose(value, expected, rtol=1e-6)
        assert abs(gradient[1]) == 1
    rare = survival.discrete_survival_ce(jnp.full(2, -30.0), jnp.array(1), jnp.array(False))
    np.testing.assert_allclose(rare, 30 - np.log(2), rtol=1e-6)


def test_a_label_outside_the_bins_counts_for_nothing():
    for kernel in (survival.discrete_survival_nll, survival.discrete_survival_ce):
        loss = kernel(jnp.full((2, 3), jnp.nan), jnp.array([-1, 3]), jnp.array([True, False]))
        np.testing.assert_array_equal(loss, 0)


def test_hazard_kd_is_binary_kl_and_is_0_at_equality():
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(size=(2, 5, 4)).astype(np.float32)
    np.testing.assert_allclose(
        survival.hazard_kd(student, teacher),
        binary.binary_kl(student, teacher, temperature=1.0),
        rtol=1e-5,
    )
    np.testing.assert_allclose(survival.hazard_kd(student, student), 0, atol=1e-6)
    where = np.broadcast_to(np.arange(4) < 2, (5, 4))
    np.testing.assert_allclose(
        survival.hazard_kd(student, teacher, where=where),
        survival.hazard_kd(student[:, :2], teacher[:, :2]),
        rtol=1e-5,
    )


def test_bins_hold_equally_many_events_and_everyone():
    rng = np.random.default_rng(0)
    time, event = rng.exponential(size=400), rng.random(400) < 0.5
    bins, edges = survival.discretise_survival(time, event, num_bins=4)
    counts = np.bincount(bins[event], minlength=4)
    assert counts.max() - counts.min() <= 1
    assert np.all((edges[bins] <= time) & (time < edges[bins + 1]))
    assert bins.min() == 0
    assert bins.max() == 3
    np.testing.assert_allclose(edges[1:4], np.quantile(time[event], [0.25, 0.5, 0.75]))
