"""Sparse teachers: worked numbers, the mass outside, limits, bias, and random samples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from kdjax.losses import divergences, sparse, sparse_targets, tokens

P, Q = np.array([0.5, 0.3, 0.15, 0.05]), np.array([0.4, 0.3, 0.2, 0.1])
STUDENT = jnp.log(jnp.asarray(Q))
IDS, LOG_PROBS = jnp.array([0, 1]), jnp.log(jnp.asarray(P[:2]))
PROPERTIES = settings(deadline=None, database=None, derandomize=True, max_examples=20)
DENSE = {
    "sparse_kl": divergences.forward_kl,
    "sparse_js": divergences.generalized_jsd,
    "sparse_tvd": divergences.total_variation,
}
every_divergence = pytest.mark.parametrize("name", DENSE)
every_missing = pytest.mark.parametrize("missing", ["zero", "tail"])


def top_k(teacher, k):
    log_probs = jax.nn.log_softmax(teacher)
    values, ids = jax.lax.top_k(log_probs, k)
    return ids, values


def pair(seed=0, shape=(4, 7)):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(0, 2, shape)), jnp.asarray(rng.normal(0, 2, shape))


def test_worked_numbers():
    full = divergences.forward_kl(jnp.log(jnp.asarray(P)), STUDENT)
    np.testing.assert_allclose(full, 0.033762, atol=1e-6)
    for missing, number in (("zero", 0.362608), ("tail", 0.030479)):
        value = sparse.sparse_kl(STUDENT, IDS, LOG_PROBS, missing=missing)
        np.testing.assert_allclose(value, number, atol=1e-6)
    target, tail = sparse_targets.sparse_target_log_probs(
        LOG_PROBS, missing="tail", temperature=2.0
    )
    np.testing.assert_allclose(np.exp(target), [0.41545, 0.32180], atol=1e-5)
    np.testing.assert_allclose(np.exp(tail), 0.26276, atol=1e-5)


def test_unnormalised_sum_of_the_naive_top_k():
    cross_entropy = sparse.sparse_cross_entropy(STUDENT, IDS, jnp.exp(LOG_PROBS))
    entropy = -jnp.sum(jnp.exp(LOG_PROBS) * LOG_PROBS)
    np.testing.assert_allclose(cross_entropy - entropy, 0.111572, atol=1e-6)


@every_divergence
@every_missing
def test_the_whole_vocabulary_gives_the_dense_divergence(name, missing):
    student, teacher = pair()
    ids, log_probs = top_k(teacher, 7)
    kernel = getattr(sparse, name)

    def of_sparse(student):
        return kernel(student, ids, log_probs, missing=missing, temperature=2.0).sum()

    def of_dense(student):
        return DENSE[name](teacher / 2, student / 2).sum()

    value, gradient = jax.value_and_grad(of_sparse)(student)
    expected, expected_gradient = jax.value_and_grad(of_dense)(student)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient, expected_gradient, atol=2e-6)


@every_divergence
def test_one_bucket_for_the_tail_never_costs_more_than_the_whole_vocabulary(name):
    kernel = jax.jit(
        lambda student, teacher: (
            getattr(sparse, name)(student, *top_k(teacher, 3), missing="tail"),
            DENSE[name](teacher, student),
        )
    )

    @PROPERTIES
    @given(arrays(np.float32, (2, 4, 7), elements=st.floats(-8, 8, width=32)))
    def holds(logits):
        coarse, fine = kernel(*logits)
        assert np.all(coarse <= fine + 1e-5)
        assert np.all(coarse >= -1e-6)

    holds()


@every_divergence
def test_divergence_from_itself_is_zero_with_the_tail_and_not_without(name):
    student, _ = pair()
    ids, log_probs = top_k(student, 3)
    kernel = getattr(sparse, name)
    np.testing.assert_allclose(kernel(student, ids, log_probs, missing="tail"), 0, atol=1e-6)
    assert np.all(kernel(student, ids, log_probs, missing="zero") > 0.01)


@every_divergence
@every_missing
def test_an_entry_of_minus_infinity_or_without_a_token_is_no_entry(name, missing):
    kernel = getattr(sparse, name)
    expected = kernel(STUDENT, IDS, LOG_PROBS, missing=missing)
    for extra_id, extra in ((0, -jnp.inf), (-1, -1.0), (4, -1.0)):
        padded = kernel(
            STUDENT, jnp.append(IDS, extra_id), jnp.append(LOG_PROBS, extra), missing=missing
        )
        np.testing.assert_allclose(padded, expected, rtol=1e-5)


@every_divergence
@every_missing
def test_order_of_the_list_and_an_offset_of_the_logits_do_not_matter(name, missing):
    kernel = getattr(sparse, name)
    value = kernel(STUDENT, IDS, LOG_PROBS, missing=missing)
    turned = kernel(STUDENT + 3.0, IDS[::-1], LOG_PROBS[::-1], missing=missing)
    np.testing.assert_allclose(turned, value, rtol=1e-5)
    assert not np.allclose(kernel(STUDENT, IDS[::-1], LOG_PROBS, missing=missing), value)


@pytest.mark.parametrize("error", [1e-6, -3e-7])
def test_a_mass_of_one_up_to_rounding_has_no_tail(error):
    log_probs = jnp.log(jnp.array([0.6, 0.4])) + error
    _, tail = sparse_targets.sparse_target_log_probs(log_probs, missing="tail")
    assert tail == -jnp.inf
    assert np.isfinite(sparse.sparse_kl(STUDENT, IDS, log_probs, missing="tail"))


def test_nothing_is_missing_from_a_list_of_the_whole_vocabulary_whatever_its_rounding():
    log_probs = jnp.log(jnp.asarray(P)) - 1e-4
    value = sparse.sparse_kl(STUDENT, jnp.arange(4), log_probs, missing="tail")
    np.testing.assert_allclose(value, 0.033762, atol=2e-4)


def test_gradient_reaches_the_students_tail_where_one_minus_the_rest_is_zero():
    student = jnp.array([30.0, 30.0, 0.0, 0.0])

    def loss(student):
        return sparse.sparse_kl(student, IDS, LOG_PROBS, missing="tail")

    gradient = jax.grad(loss)(student)
    np.testing.assert_allclose(gradient[2:], [-0.1, -0.1], rtol=1e-4)
    np.testing.assert_allclose(
        loss(student),
        divergences.forward_kl(jnp.log(jnp.array([0.5, 0.3, 0.1, 0.1])), student),
        rtol=1e-5,
    )


def test_padding_of_the_vocabulary_at_minus_infinity_is_nothing():
    student = jnp.append(STUDENT, -jnp.inf)
    for missing in ("zero", "tail"):
        expected = sparse.sparse_kl(STUDENT, IDS, LOG_PROBS, missing=missing)
        value, gradient = jax.value_and_grad(sparse.sparse_kl)(
            student, IDS, LOG_PROBS, missing=missing
        )
        np.testing.assert_allclose(value, expected, rtol=1e-6)
        assert np.all(np.isfinite(gradient))


def test_naive_top_k_has_its_optimum_at_an_overconfident_student():
    """Its gradient a q - p 1(listed) vanishes at q = p / a on the list and 0 elsewhere."""
    gradient = jax.grad(sparse.sparse_cross_entropy)
    mass = P[:2].sum()
    at_teacher = gradient(jnp.log(jnp.asarray(P)), IDS, jnp.exp(LOG_PROBS))
    np.testing.assert_allclose(at_teacher, mass * P - P * [1, 1, 0, 0], atol=1e-6)
    biased = jnp.log(jnp.array([*(P[:2] / mass), 1e-9, 1e-9]))
    np.testing.assert_allclose(gradient(biased, IDS, jnp.exp(LOG_PROBS)), 0, atol=1e-6)


@pytest.mark.parametrize("tau", [1.0, 0.5])
def test_random_samples_have_the_teachers_probabilities_in_the_mean(tau):
    teacher = jnp.log(jnp.asarray(P))
    ids, weights = sparse_targets.random_sample_targets(
        jax.random.key(0), jnp.broadcast_to(teacher, (4000, 4)), num_samples=8, tau=tau
    )
    mean = jnp.zeros(4).at[ids.ravel()].add(weights.ravel()) / 4000
    np.testing.assert_allclose(mean, P, atol=0.01)
    gradient = jax.grad(
        lambda s: sparse.sparse_cross_entropy(jnp.broadcast_to(s, (4000, 4)), ids, weights).mean()
    )(STUDENT)
    exact = jax.grad(tokens.soft_cross_entropy)(STUDENT, teacher)
    np.testing.assert_allclose(gradient, exact, atol=0.01)
    if tau == 1.0:
        np.testing.assert_array_equal(weights, np.float32(1 / 8))


def test_an_excluded_token_is_never_sampled():
    teacher = jnp.array([0.0, -jnp.inf, 1.0])
    for tau in (0.0, 1.0):
        ids, _ = sparse_targets.random_sample_targets(
            jax.random.key(1), teacher, num_samples=200, tau=tau
        )
        assert set(np.asarray(ids).tolist()) == {0, 2}


def test_merged_duplicates_have_the_same_cross_entropy():
    rng = np.random.default_rng(0)
    student, _ = pair()
    ids = jnp.asarray(rng.integers(0, 7, (4, 6)))
    weights = jnp.asarray(rng.random((4, 6)))
    merged_ids, merged = sparse_targets.merge_duplicates(ids, weights)
    np.testing.assert_allclose(
        sparse.sparse_cross_entropy(student, merged_ids, merged),
        sparse.sparse_cross_entropy(student, ids, weights),
        rtol=1e-5,
    )
    for row in np.asarray(merged_ids):
        kept = row[row >= 0]
        assert len(kept) == len(set(kept.tolist()))


@pytest.mark.parametrize("add_tail", [True, False])
def test_students_support_of_the_whole_vocabulary_is_the_divergence(add_tail):
    student, teacher = pair()
    log_q, log_p = sparse_targets.topk_student_support(student, teacher, k=7, add_tail=add_tail)
    np.testing.assert_allclose(
        divergences.reverse_kl(log_p, log_q), divergences.reverse_kl(teacher, student), rtol=1e-5
    )


def test_students_support_is_the_students_and_not_the_teachers():
    student, teacher = jnp.array([3.0, 2.0, 0.0, 0.0]), jnp.array([0.0, 1.0, 5.0, 5.0])
    log_q, log_p = sparse_targets.topk_student_support(student, teacher, k=2)
    np.testing.assert_allclose(log_q[:2], jax.nn.log_softmax(student)[:2], rtol=1e-5)
    np.testing.assert_allclose(log_p[:2], jax.nn.log_softmax(teacher)[:2], rtol=1e-5)
    np.testing.assert_allclose(jnp.exp(log_q).sum(), 1, rtol=1e-5)


def test_rankings_are_zero_or_small_where_the_student_keeps_the_teachers_order():
    teacher = jnp.log(jnp.asarray(P))
    ids, log_probs = top_k(teacher, 3)
    total, pairs = sparse.hinge_ranking(teacher, ids, log_probs)
    assert pairs == 3
    np.testing.assert_allclose(total, 0, atol=1e-6)
    ordered, _ = sparse.logistic_ranking(50 * teacher, ids, log_probs)
    turned, _ = sparse.logistic_ranking(-50 * teacher, ids, log_probs)
    assert ordered < 1e-3 < turned


def test_hinge_asks_for_no_less_than_the_teachers_difference_and_for_no_more():
    for first, cost in ((0.9, 0.0), (0.55, 0.1)):
        student = jnp.log(jnp.array([first, 0.95 - first, 0.03, 0.02]))
        ids, log_probs = jnp.array([0, 1]), jnp.log(jnp.array([0.5, 0.25]))
        total, _ = sparse.hinge_ranking(student, ids, log_probs)
        np.testing.assert_allclose(total, cost, atol=1e-6)


def test_tied_and_missing_tokens_make_no_pair():
    ids, log_probs = jnp.array([0, 1, 2]), jnp.log(jnp.array([0.4, 0.4, 0.0]))
    for ranking in (sparse.hinge_ranking, sparse.logistic_ranking):
        (total, pairs), gradient = (
            ranking(STUDENT, ids, log_probs),
            jax.grad(lambda s, ranking=ranking: ranking(s, ids, log_probs)[0])(STUDENT),
        )
        assert total == 0
        assert pairs == 0
        np.testing.assert_array_equal(gradient, 0)
