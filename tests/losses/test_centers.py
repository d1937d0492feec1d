"""Objects as points: worked numbers, focal limits, drawing, gathering, peaks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdjax.losses import centers

cheap = settings(deadline=None, database=None, derandomize=True, max_examples=20)
FOCAL = jax.jit(centers.centernet_focal)
BINARY = jax.jit(centers.binary_focal)


@pytest.mark.parametrize(
    ("width", "height", "overlap", "radius"),
    [(4, 6, 0.7, 1.3162), (4, 6, 0.1, 2.1048), (1, 1, 0.7, 0.2733), (0, 0, 0.7, 0), (4, 6, 1, 0)],
)
def test_worked_radii(width, height, overlap, radius):
    sizes = jnp.array(float(width)), jnp.array(float(height))
    np.testing.assert_allclose(
        centers.gaussian_radius(*sizes, min_overlap=overlap), radius, atol=5e-5
    )
    np.testing.assert_allclose(
        centers.gaussian_radius(*sizes[::-1], min_overlap=overlap), radius, atol=5e-5
    )


def test_radii_are_the_smallest_of_the_three_printed_ones():
    rng = np.random.default_rng(0)
    w, h, o = rng.uniform(0.1, 50, 100), rng.uniform(0.1, 50, 100), 0.4
    first = ((h + w) + np.sqrt((h + w) ** 2 - 4 * w * h * (1 - o) / (1 + o))) / 2
    second = (2 * (h + w) + np.sqrt(4 * (h + w) ** 2 - 16 * (1 - o) * w * h)) / 2
    third = (-2 * o * (h + w) + np.sqrt(4 * o**2 * (h + w) ** 2 + 16 * o * (1 - o) * w * h)) / 2
    smallest = np.minimum(np.minimum(first, second), third)
    np.testing.assert_allclose(
        centers.gaussian_radius(w.astype(np.float32), h.astype(np.float32), min_overlap=o),
        smallest,
        rtol=1e-5,
    )


def test_a_gaussian_of_radius_1_and_what_falls_out_of_the_map():
    heatmap = centers.draw_gaussian(jnp.array([[2, 1]]), jnp.array([1]), height=5, width=6)
    np.testing.assert_allclose(heatmap[1, 1:4], [0.135335, 1, 0.135335], rtol=1e-5)
    np.testing.assert_allclose(heatmap[2, 1:4], [0.018316, 0.135335, 0.018316], rtol=1e-4)
    assert np.count_nonzero(heatmap) == 9
    corner = centers.draw_gaussian(jnp.array([[0, 0]]), jnp.array([1]), height=5, width=6)
    np.testing.assert_array_equal(corner[:2, :2], heatmap[1:3, 2:4])
    assert np.count_nonzero(corner) == 4
    outside = centers.draw_gaussian(jnp.array([[-5, 0]]), jnp.array([2]), height=5, width=6)
    assert np.count_nonzero(outside) == 0


def test_gaussians_merge_by_their_maximum_and_padding_is_not_drawn():
    where, radii = jnp.array([[2, 1], [3, 1], [5, 4]]), jnp.array([1, 2, 2])
    alone = [
        centers.draw_gaussian(where[i : i + 1], radii[i : i + 1], height=5, width=6)
        for i in range(2)
    ]
    both = centers.draw_gaussian(
        where, radii, height=5, width=6, where=jnp.array([True, True, False])
    )
    np.testing.assert_allclose(both, np.maximum(*alone), rtol=1e-5)
    nothing = centers.draw_gaussian(where[:0], radii[:0], height=2, width=2)
    np.testing.assert_array_equal(nothing, 0)


@cheap
@given(st.floats(-8, 8), st.floats(0, 1))
def test_focal_losses_agree_with_their_definition(logit, target):
    p = 1 / (1 + np.exp(-logit))
    loss = FOCAL(jnp.array([logit, logit]), jnp.array([1.0, target]))
    np.testing.assert_allclose(loss[0], -((1 - p) ** 2) * np.log(p), rtol=1e-4)
    if target < 1:
        expected = -((1 - target) ** 4) * p**2 * np.log(1 - p)
        np.testing.assert_allclose(loss[1], expected, rtol=1e-4, atol=1e-9)
    yes_or_no = BINARY(jnp.array([logit, logit]), jnp.array([True, False]))
    expected = [-0.25 * (1 - p) ** 2 * np.log(p), -0.75 * p**2 * np.log(1 - p)]
    np.testing.assert_allclose(yes_or_no, expected, rtol=1e-4, atol=1e-9)


def test_focal_losses_without_powers_are_cross_entropy():
    logits, targets = jnp.array([-2.0, 0.5, 3.0]), jnp.array([1.0, 0.0, 0.0])
    cross_entropy = jax.nn.softplus(jnp.where(targets == 1, -logits, logits))
    np.testing.assert_allclose(
        centers.centernet_focal(logits, targets, alpha=0.0, beta=0.0), cross_entropy, rtol=1e-5
    )
    half = centers.binary_focal(logits, targets == 1, alpha=0.5, gamma=0.0)
    np.testing.assert_allclose(2 * half, cross_entropy, rtol=1e-5)


def test_the_clamp_bounds_the_loss_and_cuts_the_gradient_and_can_be_left_out():
    logits, targets = jnp.array([-20.0, 20.0]), jnp.array([1.0, 0.0])
    value, gradient = jax.value_and_grad(lambda x: FOCAL(x, targets).sum())(logits)
    np.testing.assert_allclose(value, 2 * (1 - 1e-4) ** 2 * -np.log(1e-4), rtol=1e-5)
    np.testing.assert_array_equal(gradient, 0)
    value, gradient = jax.value_and_grad(
        lambda x: centers.centernet_focal(x, targets, epsilon=0.0).sum()
    )(logits)
    np.testing.assert_allclose(value, 40, rtol=1e-5)
    np.testing.assert_allclose(gradient, [-1, 1], rtol=1e-5)


def test_gathering_reads_row_after_row_and_sends_the_gradient_back():
    maps = jnp.arange(24.0).reshape(1, 3, 4, 2)
    indices = jnp.array([[1 * 4 + 2, 11, 12, 0]])
    where = jnp.array([[True, True, True, False]])
    found = centers.gather_at_centres(maps, indices, where=where)
    np.testing.assert_array_equal(found[0], [maps[0, 1, 2], maps[0, 2, 3], [0, 0], [0, 0]])
    gradient = jax.grad(lambda x: centers.gather_at_centres(x, indices, where=where).sum())(maps)
    assert np.argwhere(gradient[0, ..., 0]).tolist() == [[1, 2], [2, 3]]


def test_regression_is_the_absolute_error_and_0_for_padding():
    maps = jnp.arange(24.0).reshape(1, 3, 4, 2)
    indices, where = jnp.array([[6, 11, 99]]), jnp.array([[True, False, True]])
    loss = centers.center_regression_l1(maps, indices, jnp.full((1, 3, 2), 10.0), where=where)
    np.testing.assert_array_equal(loss[0], [[2, 3], [0, 0], [0, 0]])


def test_what_is_drawn_is_decoded():
    cells, offset = jnp.array([[2, 3], [8, 6], [5, 1]]), jnp.array([0.25, 0.75])
    maps = [
        centers.draw_gaussian(cells[:2], jnp.array([2, 1]), height=8, width=10),
        centers.draw_gaussian(cells[2:], jnp.array([1]), height=8, width=10),
    ]
    heatmaps = jnp.stack(maps, axis=-1)[None] * jnp.array([0.9, 0.8])
    offsets = jnp.broadcast_to(offset, (1, 8, 10, 2))
    result = centers.decode_centres(heatmaps, offsets, k=3)
    np.testing.assert_allclose(result.scores[0], [0.9, 0.9, 0.8], rtol=1e-6)
    assert result.classes.tolist() == [[0, 0, 1]]
    np.testing.assert_allclose(result.positions[0], cells + offset)


def test_a_map_with_fewer_peaks_than_k_says_so():
    heatmaps = jnp.arange(9.0).reshape(1, 3, 3, 1)
    result = centers.decode_centres(heatmaps, k=2)
    assert result.scores.tolist() == [[8.0, -np.inf]]
    assert result.positions[0, 0].tolist() == [2, 2]
