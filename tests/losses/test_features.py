"""Losses on feature maps: worked numbers, what leaves them unchanged, and what they become."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdjax.losses import features, pooling

few = settings(deadline=None, database=None, derandomize=True, max_examples=20)
seeds = st.integers(0, 2**32 - 1)
scales = st.floats(1e-3, 1e3)

LOSSES = {
    "hint": jax.jit(features.hint),
    "attention_transfer": jax.jit(features.attention_transfer),
    "factor_transfer": jax.jit(features.factor_transfer),
    "nst": jax.jit(features.nst),
    "fsp": jax.jit(lambda s, t: features.fsp(s, s[:, ::2], t, t[:, ::2])),
}
SCALE_FREE = ("attention_transfer", "factor_transfer", "nst")
every_loss = pytest.mark.parametrize("name", LOSSES)


def pair(seed, shape=(2, 4, 3, 5)):
    generator = np.random.default_rng(seed)
    return tuple(generator.normal(size=shape).astype(np.float32) for _ in "st")


def rotation(seed, size):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(size, size)))[0].astype(np.float32)


def test_worked_numbers_of_attention_and_selectivity():
    ones, corner = jnp.ones((1, 2, 2, 1)), jnp.array([1.0, 0, 0, 0]).reshape(1, 2, 2, 1)
    np.testing.assert_allclose(features.attention_transfer(ones, corner), [0.25], rtol=1e-6)
    left, right = (jnp.array(x).reshape(1, 1, 2, 1) for x in ([1.0, 0.0], [0.0, 1.0]))
    np.testing.assert_allclose(features.nst(left, right), [2.0], rtol=1e-6)
    # Channels (1, 0) and (0, 1) against (1, 1) / sqrt 2: 1/2 + 1 - 2 / 2.
    both = jnp.eye(2).reshape(1, 1, 2, 2)
    np.testing.assert_allclose(features.nst(both, left + right), [0.5], rtol=1e-6)


@every_loss
def test_equal_features_cost_nothing_and_others_something(name):
    student, teacher = pair(0)
    np.testing.assert_allclose(LOSSES[name](student, student), 0, atol=1e-6)
    assert np.all(LOSSES[name](student, teacher) > 1e-3)


@every_loss
def test_an_example_has_a_loss_of_its_own(name):
    student, teacher = pair(0, (3, 4, 3, 5))
    one = [LOSSES[name](student[i : i + 1], teacher[i : i + 1])[0] for i in range(3)]
    np.testing.assert_allclose(LOSSES[name](student, teacher), one, rtol=1e-5)


@few
@given(seeds, scales)
def test_scale_of_the_teacher_does_not_matter_where_directions_are_compared(seed, scale):
    student, teacher = pair(seed)
    for name, loss in LOSSES.items():
        expected, scaled = loss(student, teacher), loss(student, np.float32(scale) * teacher)
        if name in SCALE_FREE:
            np.testing.assert_allclose(scaled, expected, rtol=1e-4, atol=1e-6)
        elif not 0.9 < scale < 1.1:
            assert np.all(np.abs(scaled - expected) > 1e-3 * expected), name


@few
@given(seeds)
def test_attention_knows_no_basis_of_channels_and_selectivity_only_their_order_and_sign(seed):
    student, teacher = pair(seed)
    turn = rotation(seed, 5)
    signs = np.sign(np.random.default_rng(seed).normal(size=5)).astype(np.float32)
    permuted = student[..., np.random.default_rng(seed).permutation(5)] * signs
    for name in ("attention_transfer", "factor_transfer"):
        loss = LOSSES[name]
        np.testing.assert_allclose(loss(student @ turn, teacher), loss(student, teacher), rtol=1e-3)
    nst = LOSSES["nst"]
    np.testing.assert_allclose(nst(permuted, teacher), nst(student, teacher), rtol=1e-4, atol=1e-6)
    assert np.any(np.abs(nst(student @ turn, teacher) - nst(student, teacher)) > 1e-4)
    assert np.all(LOSSES["hint"](permuted, student) > 1e-3) or np.all(permuted == student)


@few
@given(seeds)
def test_positions_may_change_places_together_but_not_in_one_network_alone(seed):
    student, teacher = pair(seed, (2, 3, 1, 4))
    order = [2, 0, 1]
    for name in ("hint", "attention_transfer", "factor_transfer", "nst"):
        loss = LOSSES[name]
        expected = loss(student, teacher)
        together = loss(student[:, order], teacher[:, order])
        np.testing.assert_allclose(together, expected, rtol=1e-4, atol=1e-6)
        assert np.any(np.abs(loss(student[:, order], teacher) - expected) > 1e-5), name


@few
@given(seeds)
def test_losses_are_not_negative(seed):
    student, teacher = pair(seed)
    near = student + np.float32(1e-3) * teacher
    for loss in LOSSES.values():
        for other in (teacher, near):
            assert np.all(loss(student, other) >= -1e-6)


def test_factor_transfer_of_order_2_is_attention_transfer():
    student, teacher = pair(1)
    np.testing.assert_array_equal(
        features.factor_transfer(student, teacher, order=2),
        features.attention_transfer(student, teacher),
    )


def test_attention_with_odd_powers_keeps_signs():
    student, teacher = pair(1)
    for power, same in ((1, False), (2, True), (3, False), (4, True)):
        expected = features.attention_transfer(student, teacher, power=power)
        flipped = features.attention_transfer(-student, teacher, power=power)
        assert np.allclose(flipped, expected, rtol=1e-5) is same


@pytest.mark.parametrize("power", [1, 2, 9])
@pytest.mark.parametrize("size", [0.0, 1e-30, 1e4])
def test_attention_of_maps_of_any_size_is_finite(power, size):
    student, teacher = pair(2)
    size = np.float32(size)

    def loss(student):
        return features.attention_transfer(student, teacher, power=power).sum()

    value, gradient = jax.value_and_grad(loss)(size * student)
    assert np.isfinite(value)
    assert np.all(np.isfinite(gradient))
    if size == 0:
        assert np.all(gradient == 0)
    else:
        np.testing.assert_allclose(value, loss(student), rtol=1e-4)


def test_a_dead_channel_has_no_gradient_in_selectivity():
    student, teacher = pair(3)
    student[..., 1] = 0
    gradient = jax.grad(lambda s: features.nst(s, teacher).sum())(student)
    assert np.all(gradient[..., 1] == 0)
    assert np.any(gradient[..., 0] != 0)


def test_selectivity_is_the_distance_of_mean_outer_products():
    student, teacher = pair(4)

    def mean_outer_product(maps):
        unit = maps.reshape(2, -1, 5).astype(np.float64)
        unit = unit / np.linalg.norm(unit, axis=1, keepdims=True)
        return np.einsum("bpc,bqc->bpq", unit, unit) / 5

    difference = mean_outer_product(student) - mean_outer_product(teacher)
    expected = np.sum(difference**2, axis=(1, 2))
    np.testing.assert_allclose(features.nst(student, teacher), expected, rtol=1e-5)


def test_the_larger_map_is_pooled_whichever_it_is():
    student, _ = pair(5, (2, 8, 6, 3))
    _, teacher = pair(6, (2, 4, 3, 5))
    pooled = student.reshape(2, 4, 2, 3, 2, 3).mean((2, 4))
    for name in ("attention_transfer", "factor_transfer", "nst"):
        loss = LOSSES[name]
        np.testing.assert_allclose(loss(student, teacher), loss(pooled, teacher), rtol=1e-5)
        np.testing.assert_allclose(loss(teacher, student), loss(teacher, pooled), rtol=1e-5)


def test_flow_matrix_is_the_mean_product_of_channels():
    bottom, _ = pair(7, (2, 4, 2, 3))
    top, _ = pair(8, (2, 2, 2, 5))
    pooled = bottom.reshape(2, 2, 2, 2, 3).mean(2)
    expected = np.einsum("bhwj,bhwi->bji", top, pooled) / 4
    np.testing.assert_allclose(features.fsp_matrix(bottom, top), expected, rtol=1e-5, atol=1e-6)
    transposed = jnp.swapaxes(features.fsp_matrix(top, bottom), 1, 2)
    np.testing.assert_allclose(transposed, expected, rtol=1e-5, atol=1e-6)


def test_vid_of_a_perfect_mean_is_half_the_logarithm_of_the_variance():
    maps, _ = pair(0)

    def loss(variance):
        log_scale = jnp.log(jnp.expm1(jnp.full(5, variance - 1e-5)))
        return features.vid(maps, maps, log_scale)

    np.testing.assert_allclose(loss(1.0), 0, atol=1e-6)
    np.testing.assert_allclose(loss(5.0), 0.804719, rtol=1e-5)


def test_vid_is_least_where_the_variance_is_the_mean_square_error():
    student, teacher = pair(0)
    error = np.mean((student - teacher) ** 2, axis=(0, 1, 2))
    best = np.log(np.expm1(error - 1e-5))
    gradient = jax.grad(lambda a: features.vid(student, teacher, a).mean())
    np.testing.assert_allclose(gradient(best), 0, atol=1e-7)
    assert np.all(gradient(best + 0.1) > 0)
    assert np.all(gradient(best - 0.1) < 0)


def test_vid_of_a_fixed_variance_is_half_the_hint_and_a_constant():
    student, teacher = pair(0)
    log_scale = jnp.full(5, jnp.log(jnp.expm1(1.0 - 1e-5)))
    np.testing.assert_allclose(
        features.vid(student, teacher, log_scale), features.hint(student, teacher) / 2, rtol=1e-4
    )


def test_hint_takes_features_of_any_rank_and_the_mean_over_all_but_the_batch():
    for shape in ((3, 4), (3, 2, 4), (3, 2, 2, 4), (3, 1, 2, 2, 4)):
        student, teacher = pair(0, shape)
        expected = ((student - teacher) ** 2).reshape(3, -1).mean(1)
        np.testing.assert_allclose(features.hint(student, teacher), expected, rtol=1e-5)


def test_srrl_is_the_hint_of_features_and_of_logits():
    (student, teacher), (logits, target) = pair(0, (3, 4)), pair(1, (3, 6))
    expected = features.hint(student, teacher) + features.hint(logits, target)
    np.testing.assert_allclose(features.srrl(student, teacher, logits, target), expected, rtol=1e-6)


def test_a_nan_is_not_hidden():
    student, teacher = pair(0)
    student[0, 0, 0, 0] = np.nan
    for name, loss in LOSSES.items():
        value = loss(student, teacher)
        assert np.isnan(value[0]), name
        assert np.isfinite(value[1]), name


def windows_mean(row, size):
    """PyTorch's definition, entry by entry."""
    length = len(row)
    cuts = [(i * length // size, -(-(i + 1) * length // size)) for i in range(size)]
    return np.array([row[a:b].mean() for a, b in cuts])


@few
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9), st.integers(1, 9), seeds)
def test_adaptive_pooling_is_the_mean_of_its_windows(height, width, out_height, out_width, seed):
    maps = np.random.default_rng(seed).normal(size=(1, height, width, 2)).astype(np.float32)
    rows = np.apply_along_axis(windows_mean, 1, maps, out_height)
    expected = np.apply_along_axis(windows_mean, 2, rows, out_width)
    actual = pooling.adaptive_average_pool(maps, (out_height, out_width))
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def test_pooling_to_the_own_size_changes_nothing():
    maps, _ = pair(0)
    np.testing.assert_array_equal(pooling.adaptive_average_pool(maps, maps.shape[1:3]), maps)


def test_matched_maps_have_the_smaller_side_each():
    first, second = pooling.match_spatial(jnp.ones((2, 8, 3, 4)), jnp.ones((2, 5, 6, 1)))
    assert (first.shape, second.shape) == ((2, 5, 3, 4), (2, 5, 3, 1))
