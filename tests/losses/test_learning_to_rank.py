"""Learning to rank: worked numbers, reference loops, what orders mean, padding, ties."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdjax.losses import learning_to_rank, logits, ranking

SEEDS = st.integers(0, 2**16)
cheap = settings(deadline=None, database=None, derandomize=True, max_examples=20)
KERNELS = {
    name: getattr(learning_to_rank, name)
    for name in ("listnet", "listmle", "ranknet", "lambdarank", "approx_ndcg")
}


@functools.cache
def compiled(name):
    return jax.jit(KERNELS[name])


def lists(seed, batch=3, items=6):
    """Scores, and grades without a tie in a list."""
    rng = np.random.default_rng(seed)
    grades = np.stack([rng.permutation(items) for _ in range(batch)])
    return rng.normal(0, 2, (batch, items)).astype(np.float32), grades.astype(np.float32)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("listnet", 1.044320),
        ("listmle", 1.313262),
        ("ranknet", 1.313262),
        ("lambdarank", (1 - 1 / np.log2(3)) * 1.313262),
        ("approx_ndcg", -1 / np.log2(2 + 1 / (1 + np.exp(-1)))),
    ],
)
def test_worked_numbers_of_two_items(name, expected):
    loss = KERNELS[name](jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0]))
    np.testing.assert_allclose(loss, expected, rtol=1e-6)


@cheap
@given(st.floats(-20, 20), st.floats(-20, 20))
def test_listmle_is_ranknet_for_two_items(first, second):
    scores, relevance = np.array([first, second], np.float32), np.array([2.0, 0.0], np.float32)
    np.testing.assert_allclose(
        compiled("listmle")(scores, relevance), compiled("ranknet")(scores, relevance), atol=2e-6
    )


@pytest.mark.parametrize("name", KERNELS)
@cheap
@given(SEEDS)
def test_order_of_the_items_and_offset_of_the_scores_are_not_seen(name, seed):
    scores, relevance = lists(seed)
    loss = compiled(name)(scores, relevance)
    order = np.random.default_rng(seed).permutation(scores.shape[1])
    np.testing.assert_allclose(
        compiled(name)(scores[:, order], relevance[:, order]), loss, rtol=1e-4
    )
    np.testing.assert_allclose(compiled(name)(scores + 3, relevance), loss, rtol=1e-4)
    scaled = compiled(name)(2 * scores, relevance)
    assert np.max(np.abs(scaled - loss)) > 1e-4


@pytest.mark.parametrize(
    ("name", "blind"),
    [
        ("listmle", True),
        ("ranknet", True),
        ("listnet", False),
        ("lambdarank", False),
        ("approx_ndcg", False),
    ],
)
def test_only_the_order_of_the_relevances_matters_to_listmle_and_ranknet(name, blind):
    scores, relevance = lists(0)
    unequal = compiled(name)(scores, relevance**2 / 5) / compiled(name)(scores, relevance) - 1
    assert np.all(np.abs(unequal) < 1e-6) == blind


@pytest.mark.parametrize("name", KERNELS)
@cheap
@given(SEEDS)
def test_padding_is_a_shorter_list(name, seed):
    scores, relevance = lists(seed)
    where = np.arange(6) != seed % 6
    padded = compiled(name)(scores, relevance, where=np.broadcast_to(where, scores.shape))
    np.testing.assert_allclose(
        padded, KERNELS[name](scores[:, where], relevance[:, where]), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("name", KERNELS)
def test_a_list_of_padding_or_of_equal_relevance_is_harmless(name):
    scores, relevance = lists(0)
    nowhere = np.zeros(scores.shape, bool)

    def loss(scores, relevance, where):
        return compiled(name)(scores, relevance, where=where).sum()

    value, gradient = jax.value_and_grad(loss)(scores, relevance, nowhere)
    assert value == 0
    assert np.all(gradient == 0)
    gradient = jax.grad(loss)(scores, np.zeros_like(relevance), ~nowhere)
    assert np.all(np.isfinite(gradient))
    if name in ("ranknet", "lambdarank", "approx_ndcg"):
        assert np.all(gradient == 0)


def test_listnet_is_soft_cross_entropy_and_stationary_at_equality():
    scores, relevance = lists(1)
    entropy_free = learning_to_rank.listnet(scores, relevance) - learning_to_rank.listnet(
        relevance, relevance
    )
    np.testing.assert_allclose(
        entropy_free, logits.kd(scores, relevance, temperature=1.0), rtol=1e-4
    )
    gradient = jax.grad(lambda s: learning_to_rank.listnet(s, relevance).sum())(relevance)
    np.testing.assert_allclose(gradient, 0, atol=1e-6)
    floored = learning_to_rank.listnet(scores - 200 * (relevance == 5), relevance, epsilon=1e-10)
    assert np.all(floored <= -np.log(1e-10) + 1e-4)


def test_listmle_ranks_ties_in_the_order_of_their_index():
    scores = jnp.array([0.3, -1.0, 0.8])
    tied = learning_to_rank.listmle(scores, jnp.array([1.0, 2.0, 1.0]))
    ordered = ranking.plackett_luce_nll(scores, jnp.array([1, 0, 2]), jnp.ones(3))
    np.testing.assert_allclose(tied, ordered, rtol=1e-6)
    swapped = learning_to_rank.listmle(scores[::-1], jnp.array([1.0, 2.0, 1.0]))
    assert abs(swapped - tied) > 1e-3


def test_padding_does_not_matter_to_an_item_of_relevance_minus_infinity():
    scores = jnp.array([0.3, -1.0, 0.8])
    relevance, where = jnp.array([0.0, 1.0, -jnp.inf]), jnp.array([False, True, True])
    loss = learning_to_rank.listmle(scores, relevance, where=where)
    np.testing.assert_allclose(loss, np.log1p(np.exp(1.8)), rtol=1e-6)


@cheap
@given(SEEDS)
def test_partial_listmle_sums_contrastive_losses_of_the_valid_prefix(seed):
    scores, teacher = lists(seed, batch=1)
    valid = teacher >= 4
    loss = learning_to_rank.partial_listmle(scores, teacher, valid)
    order = np.argsort(-teacher[0])
    expected = sum(
        jax.nn.logsumexp(scores[0, order[place:]]) - scores[0, order[place]] for place in range(2)
    )
    np.testing.assert_allclose(loss[0], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        learning_to_rank.partial_listmle(scores, teacher, np.ones_like(valid)),
        learning_to_rank.listmle(scores, teacher),
        rtol=1e-6,
    )
    nothing = learning_to_rank.partial_listmle(scores, teacher, np.zeros_like(valid))
    np.testing.assert_array_equal(nothing, 0)


@pytest.mark.parametrize("weighted", [False, True])
def test_ranknet_agrees_with_a_loop_over_pairs(weighted):
    scores, relevance = lists(2)
    expected = []
    for s, y in zip(scores, relevance):
        pairs = [(i, j) for i in range(6) for j in range(6) if y[i] > y[j]]
        weight = (lambda i, j, y=y: y[i] - y[j]) if weighted else (lambda i, j: 1.0)
        expected.append(np.mean([weight(i, j) * np.log1p(np.exp(s[j] - s[i])) for i, j in pairs]))
    loss = learning_to_rank.ranknet(scores, relevance, weighted=weighted)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def ndcg(scores, relevance):
    ranks = np.argsort(np.argsort(-scores)) + 1
    gains = 2.0**relevance - 1
    best = np.sum(np.sort(gains)[::-1] / np.log2(2 + np.arange(len(gains))))
    return np.sum(gains / np.log2(1 + ranks)) / best


def test_approx_ndcg_is_ndcg_in_the_limit():
    scores, relevance = lists(3)
    loss = learning_to_rank.approx_ndcg(scores, relevance, alpha=1e4)
    expected = [-ndcg(s, y) for s, y in zip(scores, relevance)]
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_lambdarank_weighs_a_pair_by_the_change_of_ndcg_if_swapped():
    scores, relevance = (x[0] for x in lists(4, batch=1))
    expected = 0.0
    for i in range(6):
        for j in range(6):
            if relevance[i] > relevance[j]:
                swapped = scores.copy()
                swapped[[i, j]] = scores[[j, i]]
                change = abs(ndcg(swapped, relevance) - ndcg(scores, relevance))
                expected += change * np.log1p(np.exp(scores[j] - scores[i]))
    np.testing.assert_allclose(learning_to_rank.lambdarank(scores, relevance), expected, rtol=1e-5)


@pytest.mark.parametrize("name", [name for name in KERNELS if name != "listnet"])
@cheap
@given(SEEDS)
def test_the_right_order_costs_less_than_the_reverse(name, seed):
    scores, relevance = lists(seed)
    right = np.take_along_axis(np.sort(scores), relevance.astype(int), axis=1)
    reverse = np.take_along_axis(-np.sort(-scores), relevance.astype(int), axis=1)
    assert np.all(compiled(name)(right, relevance) < compiled(name)(reverse, relevance))


def test_margin_mse_sees_margins_only():
    student, teacher = jnp.array([3.0, 1.0]), jnp.array([5.0, 4.0])
    loss = learning_to_rank.margin_mse(*student, *teacher)
    assert loss == 1
    assert learning_to_rank.margin_mse(*(student + 7), *(teacher - 2)) == loss
    assert learning_to_rank.margin_mse(*student, *student) == 0
    assert learning_to_rank.margin_mse(*student[::-1], *teacher) == 9
