"""What the kernels of dual heads and of zero-shot classifiers claim of themselves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from kdjax import losses
from kdjax.training import mean

RNG = np.random.default_rng(0)
CE, KD, TEACHER = (jnp.asarray(RNG.normal(0, 2, (6, 4)), jnp.float32) for _ in range(3))
LABELS = jnp.asarray(RNG.integers(0, 4, 6))
SETTINGS = settings(deadline=None, database=None, derandomize=True, max_examples=20)


def published(ce, kd_labeled, kd_unlabeled, lam=0.5, rows=6):
    teachers = TEACHER[:rows], TEACHER
    parts = losses.dho(ce[:rows], kd_labeled[:rows], kd_unlabeled, *teachers, LABELS[:rows])
    terms = [mean(x) for x in parts]
    ce, kd_labeled, kd_unlabeled = (t.total / jnp.maximum(t.weight, 1) for t in terms)
    return lam * ce + (1 - lam) * (kd_labeled + kd_unlabeled)


def test_worked_numbers_of_the_mixture():
    ce, kd = jnp.array([2.0, 0.0, 0.0]), jnp.array([0.0, 1.0, 0.0])
    found = losses.dual_head_probs(ce, kd, alpha=0.4, beta=0.5)
    np.testing.assert_allclose(found, [0.3787, 0.5148, 0.1065], atol=5e-5)


def test_worked_numbers_of_the_loss():
    zeros, teacher = jnp.zeros((1, 2)), jnp.array([[2.0, 0.0]])
    parts = losses.dho(zeros, zeros, zeros, teacher, teacher, jnp.array([0]))
    ce, labeled, unlabeled = (float(x[0]) for x in parts)
    assert ce == pytest.approx(0.693147, abs=1e-6)
    assert labeled == unlabeled == pytest.approx(0.443776, abs=1e-6)
    assert 0.5 * ce + 0.5 * (labeled + unlabeled) == pytest.approx(0.790350, abs=1e-6)


def test_the_ends_of_the_mixture_are_the_heads():
    one, other = jax.nn.softmax(CE), jax.nn.softmax(KD)
    np.testing.assert_allclose(losses.dual_head_probs(CE, KD, alpha=1.0), one, rtol=1e-6)
    np.testing.assert_allclose(losses.dual_head_probs(CE, KD, alpha=0.0), other, rtol=1e-6)
    hard = losses.dual_head_probs(CE, KD, alpha=0.0, beta=1e-4)
    np.testing.assert_allclose(hard, jax.nn.one_hot(KD.argmax(-1), 4), atol=1e-6)
    for alpha in (0.0, 1.0):
        grads = jax.grad(
            lambda ce, kd, a: losses.dual_head_log_probs(ce, kd, alpha=a).max(), (0, 1)
        )(CE, KD, alpha)
        assert all(bool(jnp.isfinite(g).all()) for g in grads)


@SETTINGS
@given(
    arrays(np.float32, (2, 3, 4), elements=st.floats(-1e4, 1e4, width=32)),
    st.floats(0, 1),
    st.floats(0.1, 4),
)
def test_mixtures_are_distributions(logits, alpha, beta):
    found = losses.dual_head_probs(*logits, alpha=alpha, beta=beta)
    np.testing.assert_allclose(found.sum(-1), 1, rtol=1e-5)
    assert (found >= 0).all()


def test_each_head_has_the_gradient_of_its_own_loss():
    for lam, zero in ((0.0, 0), (1.0, 1)):
        grads = jax.grad(lambda *x, lam=lam: published(*x, lam=lam), (0, 1, 2))(CE, KD, KD)
        labels, teacher = float(jnp.abs(grads[0]).max()), float(jnp.abs(grads[1]).max())
        assert (labels, teacher)[zero] == 0
        assert (labels, teacher)[1 - zero] > 0
    np.testing.assert_allclose(  # affine in lam
        published(CE, KD, KD, 0.3),
        0.7 * published(CE, KD, KD, 0.0) + 0.3 * published(CE, KD, KD, 1.0),
        rtol=1e-6,
    )


def test_an_empty_batch_adds_nothing():
    value, grads = jax.value_and_grad(published, (0, 1, 2))(CE, KD, KD, rows=0)
    assert float(value) == pytest.approx(
        0.5 * float(losses.kd(KD, TEACHER, temperature=2.0).mean())
    )
    assert all(bool(jnp.isfinite(g).all()) for g in grads)
    assert not grads[0].any()


def test_one_head_with_both_losses_is_best_at_the_mixture_of_their_targets():
    lam, target, teacher = 0.3, jnp.array([0.0, 1.0, 0.0]), jnp.array([0.6, 0.3, 0.1])

    def loss(logits):
        ce = losses.cross_entropy(logits, jnp.array(1))
        return lam * ce + (1 - lam) * losses.kd(logits, jnp.log(teacher), temperature=1.0)

    def descend(logits, _):
        return logits - jax.grad(loss)(logits), None

    logits, _ = jax.lax.scan(descend, jnp.zeros(3), None, 500)
    best = lam * target + (1 - lam) * teacher
    np.testing.assert_allclose(jax.nn.softmax(logits), best, atol=1e-4)
    perfect = losses.dual_head_probs(jnp.array([-60.0, 60.0, -60.0]), jnp.log(teacher), alpha=lam)
    np.testing.assert_allclose(perfect, best, rtol=1e-5)


def test_the_search_takes_the_first_of_equals_betas_outside():
    alphas, betas = losses.dual_head.ALPHAS, losses.dual_head.BETAS
    expected, best = None, -1.0
    for beta in betas:
        for alpha in alphas:
            probs = losses.dual_head_probs(CE, KD, alpha=alpha, beta=beta)
            accuracy = float((probs.argmax(-1) == LABELS).mean())
            if accuracy > best:
                expected, best = (alpha, beta), accuracy
    found = losses.search_alpha_beta(CE, KD, LABELS)
    np.testing.assert_allclose(found, (*expected, best), rtol=1e-6)
    heads = [float((x.argmax(-1) == LABELS).mean()) for x in (CE, KD)]
    assert float(found.accuracy) >= max(heads)
    # Everything is right everywhere: the first of all.
    sure = 9.0 * jax.nn.one_hot(LABELS, 4)
    assert losses.search_alpha_beta(sure, sure, LABELS)[:2] == (0.0, 0.5)


def test_the_surer_head_counts_more():
    alpha = losses.entropy_adaptive_alpha(jnp.stack([3 * CE[0], CE[0]]), jnp.stack([CE[0]] * 2))
    assert float(alpha[0]) > 0.5
    assert float(alpha[1]) == pytest.approx(0.5)
    expected = jnp.exp(-1.0 * jnp.array([0.0, jnp.log(2.0)]))
    found = losses.entropy_adaptive_alpha(jnp.array([90.0, 0.0]), jnp.zeros(2))
    assert float(found) == pytest.approx(float(expected[0] / expected.sum()))


def test_a_cache_without_weight_is_the_zero_shot_classifier():
    features, keys, classes = (
        losses.l2_normalize(jnp.asarray(RNG.normal(size=(n, 3)), jnp.float32)) for n in (5, 7, 4)
    )
    values = jax.nn.one_hot(jnp.arange(7) % 4, 4)
    found = losses.tip_adapter_logits(features, keys, values, classes, alpha=0.0)
    expected = losses.clip_zero_shot_logits(features, classes)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)


def test_worked_numbers_of_clap():
    features, labels = jnp.eye(2)[jnp.array([0, 0, 1])], jnp.array([0, 1, 1])
    logits = losses.clip_zero_shot_logits(features, jnp.eye(2), scale=10.0)
    weights = losses.clap_class_weights(logits, labels)
    np.testing.assert_allclose(weights, [0.999955, 0.5], atol=1e-6)
    assert not losses.clap_constraint(jnp.eye(2), jnp.eye(2), weights).any()
    weights = losses.clap_class_weights(logits, jnp.zeros(3, int))
    assert float(weights[1]) == 0  # no image of it


def test_a_zero_feature_is_like_nothing():
    logits, grad = jax.value_and_grad(lambda f: losses.clip_zero_shot_logits(f, jnp.eye(3)).sum())(
        jnp.zeros((1, 3))
    )
    assert float(logits) == 0
    assert bool(jnp.isfinite(grad).all())


OPPOSED = {"w": jnp.array([1.0, 0.0])}, {"w": jnp.array([-1.0, 1.0])}


def test_pcgrad_leaves_nothing_of_either_that_opposes_the_other():
    np.testing.assert_allclose(losses.pcgrad(*OPPOSED)["w"], [0.5, 1.5])
    np.testing.assert_allclose(losses.pcgrad(*OPPOSED[::-1])["w"], [0.5, 1.5])
    g, a = OPPOSED
    both = jax.tree.map(
        lambda x, y, z: x + y - z,
        losses.gradient_align(g, a),
        losses.gradient_align(a, g),
        jax.tree.map(jnp.add, g, a),
    )
    np.testing.assert_allclose(losses.pcgrad(g, a)["w"], both["w"])
    agreeing = {"w": jnp.array([2.0, 1.0])}
    np.testing.assert_array_equal(losses.pcgrad(g, agreeing)["w"], g["w"] + agreeing["w"])
    zero = {"w": jnp.zeros(2)}
    np.testing.assert_array_equal(losses.pcgrad(g, zero)["w"], g["w"])


def test_the_cosine_of_gradients():
    assert float(losses.gradient_cosine(*OPPOSED)) == pytest.approx(-(0.5**0.5))
    assert float(losses.gradient_cosine(OPPOSED[0], {"w": jnp.zeros(2)})) == 0
    big, small = ({"w": scale * OPPOSED[0]["w"]} for scale in (1e15, 1e-15))
    assert float(losses.gradient_cosine(big, small)) == pytest.approx(1.0)


@pytest.mark.parametrize("kernel", [losses.pcgrad, losses.gradient_cosine])
@pytest.mark.parametrize(
    ("second", "error", "message"),
    [
        ({"v": jnp.ones(2)}, ValueError, "first_gradient and second_gradient must be trees"),
        ({"w": jnp.ones(3)}, ValueError, "must have one shape at 'w', got"),
        ({"w": jnp.ones(2, int)}, TypeError, "second_gradient must be of floats, got int32"),
    ],
)
def test_gradients_that_do_not_match_are_refused(kernel, second, error, message):
    with pytest.raises(error, match=message):
        kernel({"w": jnp.ones(2)}, second)
