"""Balance among experts, and hard-concrete gates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdjax.losses import routing

quick = settings(deadline=None, database=None, derandomize=True, max_examples=20)
seeds = given(seed=st.integers(0, 2**31 - 1))
LOGITS = jnp.array([[2.0, 0.0], [2.0, 0.0], [0.0, 2.0], [2.0, 0.0]])
GROUPS, TOKENS, EXPERTS = 2, 5, 3


def load(logits, where=None):
    noise = jnp.zeros_like(jnp.asarray(logits))
    return routing.load_loss(logits, noise, noise_scale=0.6, num_selected=2, where=where)


def gate(logits, where=None, mode="kl"):
    if where is None:
        return routing.load_balancing_loss(jax.nn.softmax(logits), mode=mode)
    shown = jnp.asarray(where)[..., None]
    probabilities = jnp.where(shown, jax.nn.softmax(jnp.where(shown, logits, 0.0)), jnp.nan)
    return routing.load_balancing_loss(probabilities, mode=mode, where=where)


GROUPED = {
    "switch": lambda x, where=None: routing.switch_balance(x, num_selected=2, where=where),
    "importance": lambda x, where=None: routing.importance_loss(x, where=where),
    "load": load,
    "gate_kl": gate,
    "gate_cv": lambda x, where=None: gate(x, where, "cv"),
}
COMPILED = {
    name: jax.jit(lambda x, where=None, loss=loss: loss(x, where)) for name, loss in GROUPED.items()
}
every = pytest.mark.parametrize("name", list(GROUPED))


def draw(seed):
    return np.float32(np.random.default_rng(seed).normal(0, 2, (GROUPS, TOKENS, EXPERTS)))


def close(actual, expected, rtol=2e-5, atol=1e-6):
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=atol)


# By hand.


def test_worked_numbers():
    close(routing.switch_balance(LOGITS), 1.190399)
    close(2 * (0.690399 * 0.75 + 0.309601 * 0.25), 1.190399)
    close(routing.importance_loss(LOGITS), 0.145006)
    close(routing.router_z_loss(jnp.zeros((3, 4))), [1.921812] * 3)


def test_uniform_probabilities_have_the_least_balance_loss():
    zeros = jnp.zeros((GROUPS, TOKENS, EXPERTS))
    close(routing.switch_balance(zeros), [1.0] * GROUPS)
    close(routing.mixtral_balance(zeros, num_selected=2), 2.0)
    close(routing.importance_loss(zeros), [0.0] * GROUPS)
    close(gate(zeros), [0.0] * GROUPS)
    close(gate(zeros, mode="cv"), [0.0] * GROUPS)


def test_a_collapsed_router_has_the_most():
    collapsed = jnp.zeros((TOKENS, EXPERTS)).at[:, 1].set(1e4)
    close(routing.switch_balance(collapsed), EXPERTS)
    close(routing.importance_loss(collapsed), EXPERTS - 1)
    noise = jnp.zeros_like(collapsed)
    close(routing.load_loss(collapsed, noise, noise_scale=1.0), EXPERTS - 1)


def test_the_expected_load_is_the_frequency_of_being_chosen_with_fresh_noise():
    generator = np.random.default_rng(0)
    logits, noise = np.float32(generator.normal(size=(2, 1, EXPERTS)))
    scale = 0.7
    threshold = np.sort(logits + scale * noise)[..., -2]
    fresh = logits + scale * generator.normal(size=(200_000, EXPERTS))
    chosen = np.mean(fresh >= threshold, axis=0)
    expected = np.var(chosen) / np.mean(chosen) ** 2
    loss = routing.load_loss(logits, noise, noise_scale=scale, num_selected=2)
    close(loss, expected, 2e-2)


def test_the_gates_kl_is_divided_by_the_number_of_experts_unless_told_not_to():
    probabilities = jnp.array([[0.9, 0.1], [0.7, 0.3]])
    expected = 0.5 * np.log(0.5 / 0.8) + 0.5 * np.log(0.5 / 0.2)
    close(routing.load_balancing_loss(probabilities, divide_by_experts=False), expected)
    close(routing.load_balancing_loss(probabilities), expected / 2)


def test_importance_is_the_square_of_the_gates_cv_with_population_variance():
    logits = draw(0)
    ratio = EXPERTS / (EXPERTS - 1)
    close(gate(logits, mode="cv") ** 2, ratio * routing.importance_loss(logits))


# Where the gradient goes.


def test_the_gradient_of_switch_flows_through_the_probabilities_alone():
    logits = jnp.asarray(draw(0))
    share = jnp.mean(jax.nn.one_hot(jnp.argmax(logits, -1), EXPERTS), axis=-2)

    def with_fixed_share(logits):
        mean_probability = jnp.mean(jax.nn.softmax(logits), axis=-2)
        return EXPERTS * jnp.sum(share * mean_probability)

    close(
        jax.grad(lambda x: jnp.sum(routing.switch_balance(x)))(logits),
        jax.grad(with_fixed_share)(logits),
    )


def test_balanced_shares_have_no_gradient_of_switch():
    gradient = jax.grad(lambda x: routing.switch_balance(x))(jnp.array([[1.0, 0.0], [0.0, 1.0]]))
    close(gradient, np.zeros((2, 2)))


# Invariances.


@every
@quick
@seeds
def test_experts_and_tokens_have_no_order_and_groups_do_not_mix(name, seed):
    logits = draw(seed)
    generator = np.random.default_rng(seed)
    loss = COMPILED[name](logits)
    assert loss.shape == (GROUPS,)
    assert np.all(loss >= 0)
    close(COMPILED[name](logits[..., generator.permutation(EXPERTS)]), loss, 1e-4, 1e-5)
    close(COMPILED[name](logits[:, generator.permutation(TOKENS)]), loss, 1e-4, 1e-5)
    close(COMPILED[name](logits[::-1]), loss[::-1])


@every
@quick
@seeds
def test_balance_does_not_see_an_offset_of_a_token_but_the_z_loss_does(name, seed):
    logits = draw(seed)
    offset = np.float32(np.random.default_rng(seed).normal(size=(GROUPS, TOKENS, 1)))
    close(COMPILED[name](logits + offset), COMPILED[name](logits), 1e-4, 1e-5)
    z_loss = [routing.router_z_loss(x) for x in (logits, logits + offset)]
    assert np.max(np.abs(z_loss[0] - z_loss[1])) > 1e-3


@every
@pytest.mark.parametrize("hidden", [(0,), (1, 2, 4)])
def test_padding_is_the_same_as_fewer_tokens(name, hidden):
    logits = draw(0)
    where = ~np.isin(np.arange(TOKENS), hidden)
    padded = np.where(where[:, None], logits, np.nan)
    loss = COMPILED[name](padded, np.tile(where, (GROUPS, 1)))
    close(loss, COMPILED[name](logits[:, where]), 1e-4, 1e-5)


@every
def test_a_group_without_tokens_is_zero_not_nan(name):
    where = np.array([[False] * TOKENS, [True] * TOKENS])
    logits = jnp.where(where[..., None], draw(0), jnp.nan)
    loss, gradient = jax.value_and_grad(lambda x: GROUPED[name](x, where)[0])(logits)
    assert loss == 0
    assert np.all(gradient == 0)
    value = routing.mixtral_balance(logits, where=np.zeros_like(where))
    assert value == 0


def test_mixtral_pools_what_switch_keeps_apart():
    logits = draw(0)
    pooled = routing.mixtral_balance(logits, num_selected=1)
    flat = logits.reshape(-1, EXPERTS)
    close(pooled, routing.switch_balance(flat))
    groups = routing.switch_balance(logits).mean()
    assert abs(pooled - groups) > 1e-3


def test_ties_go_to_the_lowest_index():
    logits = jnp.zeros((TOKENS, EXPERTS)).at[:, 2].set(-1.0)
    probability = jax.nn.softmax(logits)[0, 0]
    close(routing.switch_balance(logits), EXPERTS * probability)


def test_an_expert_that_is_switched_off_leaves_no_nan():
    logits = jnp.asarray(draw(0)).at[..., 1].set(-jnp.inf)
    for loss in (routing.router_z_loss, routing.switch_balance, routing.importance_loss):
        value, gradient = jax.value_and_grad(lambda x, f=loss: jnp.sum(f(x)))(logits)
        assert np.isfinite(value)
        assert np.all(np.isfinite(gradient))


# Gates.


def test_a_gate_is_open_as_often_as_it_should_be():
    uniform = jnp.asarray(np.random.default_rng(0).uniform(size=100_000), jnp.float32)
    for log_alpha in (-2.0, 0.0, 1.5):
        gates = routing.l0_gate(jnp.full_like(uniform, log_alpha), uniform)
        open_share = np.mean(np.asarray(gates) > 0)
        close(open_share, routing.l0_open_probability(jnp.array(log_alpha)), 2e-2)
        # The printed form of the same probability.
        logit = np.log(1 / 12) - np.log(11 / 12)
        close(
            routing.l0_open_probability(jnp.array(log_alpha)),
            1 - jax.nn.sigmoid(logit * 2 / 3 - log_alpha),
        )


@quick
@given(log_alpha=st.floats(-20, 20), uniform=st.floats(1e-6, 1 - 1e-6))
def test_a_gate_lies_between_closed_and_open_and_has_no_gradient_there(log_alpha, uniform):
    value, gradient = jax.value_and_grad(routing.l0_gate)(
        jnp.float32(log_alpha), jnp.float32(uniform)
    )
    assert 0 <= value <= 1
    assert gradient >= 0
    assert 0 < value < 1 or gradient == 0


def test_the_ends_of_the_uniform_numbers_are_a_closed_and_an_open_gate():
    gates, gradient = jax.value_and_grad(
        lambda x: jnp.sum(routing.l0_gate(x, jnp.array([0.0, 1.0])) * jnp.array([2.0, 3.0]))
    )(jnp.zeros(2))
    assert gates == 3
    assert np.all(gradient == 0)


def test_sparsity_weighs_gates_by_what_is_behind_them():
    log_alpha = jnp.array([-30.0, 30.0])
    close(routing.l0_expected_sparsity(log_alpha, jnp.array([1.0, 3.0])), 0.25)
    close(routing.l0_expected_sparsity(log_alpha, jnp.array([3.0, 1.0])), 0.75)
    assert routing.l0_expected_sparsity(log_alpha, jnp.zeros(2)) == 0


def test_the_penalty_is_one_sided_and_its_multipliers_grow_by_ascent():
    multipliers = jnp.array([10.0, 10.0])
    close(routing.sparsity_penalty(jnp.array(0.05), multipliers, target=0.25), 2.4)
    assert routing.sparsity_penalty(jnp.array(0.3), multipliers, target=0.25) == 0
    slope, ascent = jax.grad(routing.sparsity_penalty, argnums=(0, 1))(
        jnp.array(0.05), multipliers, target=0.25
    )
    assert slope < 0
    close(ascent, [0.2, 0.04])
