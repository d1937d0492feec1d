"""Alignment of representations and gradients: closed forms, invariances, bias, refusals."""

import hypothesis
import hypothesis.strategies as st
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import ortho_group

from kdjax.evaluation.alignment import gradient_cosine, linear_cka, minibatch_cka, rbf_cka

few = hypothesis.settings(deadline=None, database=None, derandomize=True, max_examples=20)
seeds = st.integers(0, 2**16)
KERNELS = [
    linear_cka,
    rbf_cka,
    lambda x, y: linear_cka(x, y, unbiased=True),
    lambda x, y: rbf_cka(x, y, unbiased=True),
]
NAMES = ["linear", "rbf", "linear unbiased", "rbf unbiased"]
every_cka = pytest.mark.parametrize("cka", KERNELS, ids=NAMES)


def features(seed, n=20, width=6):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, width))
    return x, np.tanh(x @ rng.normal(size=(width, 4))) + 0.3 * rng.normal(size=(n, 4))


def test_linear_cka_in_both_forms_is_the_normalised_hsic():
    for n, width in ((20, 6), (5, 9)):
        x, y = features(0, n, width)
        centre = np.eye(n) - 1 / n
        k, l = centre @ x @ x.T @ centre, centre @ y @ y.T @ centre
        expected = np.trace(k @ l) / np.sqrt(np.trace(k @ k) * np.trace(l @ l))
        np.testing.assert_allclose(linear_cka(x, y), expected, rtol=1e-10)


def test_the_unbiased_hsic_is_the_mean_over_all_quadruples():
    x, y = features(1, n=6)
    k, l = x @ x.T, y @ y.T
    total, count = 0.0, 0
    for i, j, q, r in np.ndindex(6, 6, 6, 6):
        if len({i, j, q, r}) == 4:
            total += k[i, j] * (l[i, j] + l[q, r] - 2 * l[i, q])
            count += 1
    own = [z @ z.T for z in (x, y)]
    expected = []
    for m in own:
        values = [
            m[i, j] * (m[i, j] + m[q, r] - 2 * m[i, q])
            for i, j, q, r in np.ndindex(6, 6, 6, 6)
            if len({i, j, q, r}) == 4
        ]
        expected.append(np.mean(values))
    value = linear_cka(x, y, unbiased=True)
    np.testing.assert_allclose(value, total / count / np.sqrt(np.prod(expected)), rtol=1e-9)


@few
@hypothesis.given(seed=seeds)
def test_rotation_scale_and_offset_do_not_count_and_a_linear_map_does(seed):
    x, y = features(seed)
    turn = ortho_group.rvs(6, random_state=seed)
    stretch = np.diag([30.0, 1, 1, 1, 1, 1])
    for cka in KERNELS:
        value = cka(x, y)
        np.testing.assert_allclose(cka(3 * x @ turn + 5, y), value, rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(cka(y, x), value, rtol=1e-9, atol=1e-12)
        assert abs(cka(x @ stretch, y) - value) > 1e-6


@every_cka
def test_a_representation_is_aligned_with_itself_and_not_with_other_examples(cka):
    x, y = features(2, n=60)
    np.testing.assert_allclose(cka(x, x), 1, rtol=1e-9)
    assert cka(x, y) > cka(x, np.random.default_rng(0).permutation(y)) + 0.1


def test_the_biased_estimate_rises_with_the_width_and_the_unbiased_does_not():
    rng = np.random.default_rng(0)
    biased, unbiased = [], []
    for _ in range(20):
        x, y = rng.normal(size=(2, 10, 200))
        biased.append(linear_cka(x, y))
        unbiased.append(linear_cka(x, y, unbiased=True))
    assert np.mean(biased) > 0.8
    assert abs(np.mean(unbiased)) < 0.05


def test_batches_estimate_what_the_whole_has_and_one_batch_is_the_whole():
    x, y = features(3, n=2000)
    whole = linear_cka(x, y, unbiased=True)
    np.testing.assert_allclose(minibatch_cka([(x, y)]), whole, rtol=1e-9)
    for size in (8, 50):
        batches = ((x[i : i + size], y[i : i + size]) for i in range(0, 2000, size))
        assert abs(minibatch_cka(batches) - whole) < 0.05


@every_cka
def test_what_is_the_same_for_all_is_aligned_with_nothing(cka):
    x, _ = features(4)
    assert abs(cka(x, np.full((20, 3), 2.5))) < 1e-6


def test_maps_are_flattened_and_masked_examples_are_not_looked_at():
    x, y = features(5)
    where = np.arange(20) % 3 > 0
    spoilt = np.where(where[:, None], x, np.nan)
    value = linear_cka(x[where], y[where])
    np.testing.assert_allclose(linear_cka(spoilt, y, where=where), value, rtol=1e-12)
    maps = jnp.asarray(x.reshape(20, 2, 3))
    np.testing.assert_allclose(linear_cka(maps, y), linear_cka(x, y), rtol=1e-5)


def test_a_wide_gaussian_is_the_linear_kernel():
    x, y = features(6)
    np.testing.assert_allclose(rbf_cka(x, y, bandwidth=100.0), linear_cka(x, y), atol=1e-3)
    assert abs(rbf_cka(x, y, bandwidth=0.2) - linear_cka(x, y)) > 0.05


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.zeros((5, 2)), np.zeros((4, 2))), "same examples, got 5 and 4"),
        ((np.zeros(5), np.zeros((5, 2))), "x must be"),
        ((np.zeros((1, 2)), np.zeros((1, 2))), "at least 2 examples, got 1"),
        ((np.full((5, 2), np.nan), np.zeros((5, 2))), "x is not finite"),
    ],
)
def test_bad_representations_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        linear_cka(*arguments)


def test_other_refusals():
    x = np.zeros((5, 2))
    with pytest.raises(ValueError, match="where must be bool"):
        linear_cka(x, x, where=np.ones(4, bool))
    with pytest.raises(ValueError, match="at least 4 examples"):
        minibatch_cka([(x[:3], x[:3])])
    with pytest.raises(ValueError, match="holds no batch"):
        minibatch_cka([])
    with pytest.raises(ValueError, match="bandwidth must be > 0"):
        rbf_cka(x, x, bandwidth=0.0)


def test_gradient_cosine_reads_all_leaves_as_one_vector():
    rng = np.random.default_rng(0)
    first, second = ({"w": rng.normal(size=(3, 2)), "b": rng.normal(size=2)} for _ in range(2))
    g, h = (np.concatenate([t["w"].ravel(), t["b"]]) for t in (first, second))
    expected = g @ h / np.linalg.norm(g) / np.linalg.norm(h)
    np.testing.assert_allclose(gradient_cosine(first, second), expected, rtol=1e-12)
    np.testing.assert_allclose(gradient_cosine(first, {k: -3 * v for k, v in first.items()}), -1)
    assert gradient_cosine(first, {k: 0 * v for k, v in first.items()}) == 0


def test_gradients_of_other_parameters_are_refused():
    tree = {"w": np.ones(3)}
    with pytest.raises(ValueError, match="one structure"):
        gradient_cosine(tree, {"v": np.ones(3)})
    with pytest.raises(ValueError, match="one shape"):
        gradient_cosine(tree, {"w": np.ones((3, 1))})
    with pytest.raises(ValueError, match="must be finite"):
        gradient_cosine(tree, {"w": np.full(3, np.inf)})
