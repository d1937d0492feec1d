"""Images are moved where the parameters say, with a gradient that is a slope."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.networks import (
    Augmentor,
    affine_grid,
    affine_matrices,
    affine_transform,
    grid_sample_bilinear,
    mix_images,
)

IMAGE = np.random.default_rng(0).uniform(size=(2, 6, 5, 3)).astype(np.float32)


@functools.cache
def compiled(family):
    return jax.jit(functools.partial(affine_transform, family=family, max_shift=2.0))


def shifted(image, x, y=0.0):
    """By x and y pixels."""
    parameters = jnp.tile(jnp.array([[x, y]], jnp.float32) / 2, (len(image), 1))
    return compiled("translation")(image, parameters)


@pytest.mark.parametrize(("family", "size"), [("translation", 2), ("rigid", 3), ("affine", 6)])
def test_parameters_of_zero_are_the_identity(family, size):
    np.testing.assert_allclose(compiled(family)(IMAGE, jnp.zeros((2, size))), IMAGE, atol=1e-6)


def test_a_whole_pixel_moves_columns_or_rows_and_brings_in_zeros():
    right = shifted(IMAGE, 1.0)
    np.testing.assert_allclose(right[:, :, 1:], IMAGE[:, :, :-1], atol=1e-5)
    np.testing.assert_allclose(right[:, :, 0], 0, atol=1e-5)
    up = shifted(IMAGE, 0.0, -1.0)
    np.testing.assert_allclose(up[:, :-1], IMAGE[:, 1:], atol=1e-5)
    np.testing.assert_allclose(up[:, -1], 0, atol=1e-5)


def test_half_a_pixel_is_shared_by_two():
    delta = jnp.zeros((1, 1, 5, 1)).at[0, 0, 2, 0].set(1.0)
    moved = affine_transform(delta, jnp.array([[0.5, 0.0]]), "translation", max_shift=1.0)
    np.testing.assert_allclose(moved[0, 0, :, 0], [0, 0, 0.5, 0.5, 0], atol=1e-6)


def test_a_grid_outside_the_image_sees_zeros():
    grid = affine_grid(jnp.array([[[1.0, 0.0, 5.0], [0.0, 1.0, 0.0]]] * 2), 6, 5)
    assert not np.asarray(grid_sample_bilinear(IMAGE, grid)).any()


def test_a_quarter_turn_about_the_centre():
    square = jnp.asarray(IMAGE[:, :5])
    turned = affine_transform(
        square, jnp.array([[0.0, 0.0, 1.0]] * 2), "rigid", max_angle=np.pi / 2
    )
    np.testing.assert_allclose(turned, np.rot90(square, axes=(2, 1)), atol=1e-5)


def test_a_turn_keeps_angles_where_the_image_is_not_square():
    turn = affine_matrices(jnp.array([[0.0, 0.0, 1.0]]), "rigid", height=4, width=8, max_angle=0.3)
    pixels = np.diag([8.0, 4.0])
    matrix = pixels @ np.asarray(turn[0, :, :2]) @ np.linalg.inv(pixels)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(2), atol=1e-6)


def test_the_linear_part_of_an_affine_move():
    found = affine_matrices(
        jnp.array([[0.0, 0, 1.0, 0.5, -0.5, -1.0]]), "affine", height=4, width=4, max_linear=0.2
    )
    np.testing.assert_allclose(found[0, :, :2], [[1.2, 0.1], [-0.1, 0.8]], atol=1e-6)


def test_the_gradient_of_a_shift_is_its_slope():
    x, y = np.meshgrid(np.arange(16), np.arange(16))
    smooth = np.exp(-((x - 8.0) ** 2 + (y - 7.0) ** 2) / 20).astype(np.float32)[None, ..., None]
    weights = np.sin(x / 3.0 + y / 5.0)[None, ..., None]

    @jax.jit
    def total(shift):
        return jnp.sum(weights * affine_transform(smooth, shift, "translation", max_shift=1.0))

    at = jnp.array([[0.35, 0.4]])
    slope = jax.grad(total)(at)[0]
    for axis in (0, 1):
        step = jnp.zeros((1, 2)).at[0, axis].set(0.02)
        expected = (total(at + step) - total(at - step)) / 0.04
        np.testing.assert_allclose(slope[axis], expected, rtol=1e-2)


def test_a_mask_of_one_is_the_image_and_of_zero_its_partner():
    other = IMAGE[::-1]
    for value, expected in ((1.0, IMAGE), (-1.0, other)):
        mixed = mix_images(IMAGE, other, jnp.full((2, 4), value), 2)
        np.testing.assert_allclose(mixed, expected, atol=1e-6)
    parameters = jnp.asarray(np.random.default_rng(1).uniform(-1, 1, (2, 4)), jnp.float32)
    mixed = mix_images(IMAGE, other, parameters, 2)
    assert np.all(mixed >= np.minimum(IMAGE, other) - 1e-6)
    assert np.all(mixed <= np.maximum(IMAGE, other) + 1e-6)


def test_an_augmentor_starts_at_its_start_whatever_it_sees_and_then_hears_the_noise():
    module = Augmentor(2, hidden=8, start=0.5)
    noise = jax.random.normal(jax.random.key(0), (2, 4))
    variables = module.init(jax.random.key(1), IMAGE, noise)
    np.testing.assert_allclose(module.apply(variables, IMAGE, noise), np.tanh(0.5), rtol=1e-6)
    moved = jax.tree.map(
        lambda x: x + 0.1 * jnp.arange(x.size).reshape(x.shape) / x.size, variables
    )
    apart = module.apply(moved, IMAGE, noise) - module.apply(moved, IMAGE, -noise)
    assert float(jnp.abs(apart).min()) > 1e-4


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: affine_grid(jnp.zeros((2, 3)), 4, 4), r"theta must be shaped \[batch, 2, 3\]"),
        (lambda: affine_grid(jnp.zeros((1, 2, 3)), 0, 4), "height and width must be at least 1"),
        (lambda: grid_sample_bilinear(IMAGE[0], jnp.zeros((1, 2, 2, 2))), "image must be shaped"),
        (lambda: grid_sample_bilinear(IMAGE, jnp.zeros((1, 2, 2, 2))), "with batch = 2"),
        (lambda: affine_transform(IMAGE, jnp.zeros((2, 3)), "affine"), "affine has 6 parameters"),
        (lambda: affine_transform(IMAGE, jnp.zeros((2, 3)), "crop"), "family must be one of"),
        (lambda: mix_images(IMAGE, IMAGE[:1], jnp.zeros((2, 4)), 2), "must have one shape"),
        (lambda: mix_images(IMAGE, IMAGE, jnp.zeros((2, 5)), 2), r"must be shaped \[2, 4\]"),
    ],
)
def test_bad_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
