"""What each augmentation does to an image made by hand, and what its randomness depends on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import data
from kdjax.data import augmentation
from kdjax.data.source import Split

KEYS = jax.random.split(jax.random.key(0), 64)


def each(augment, image, **options):
    """The image under every key."""
    return np.asarray(jax.jit(jax.vmap(lambda key: augment(key, image, **options)))(KEYS))


@pytest.fixture(scope="module")
def split():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (20, 6, 6, 2), np.uint8)
    return Split.of({"image": images, "label": (np.arange(20) % 5).astype(np.int32)}, "toy")


@pytest.mark.parametrize("size", [3, 4])
def test_cutout_zeroes_a_whole_square_inside_and_loses_what_is_outside(size):
    height, width = 20, 16
    whole = 0
    for image in each(augmentation.cutout, jnp.ones((height, width, 2)), size=size):
        hole = image == 0
        assert (hole[..., 0] == hole[..., 1]).all()
        rows, columns = np.flatnonzero(hole.any((1, 2))), np.flatnonzero(hole.any((0, 2)))
        np.testing.assert_array_equal(rows, np.arange(rows[0], rows[-1] + 1))
        np.testing.assert_array_equal(columns, np.arange(columns[0], columns[-1] + 1))
        assert hole[..., 0].sum() == len(rows) * len(columns)
        assert (image[~hole] == 1).all()
        inside = rows[0] > 0 and rows[-1] < height - 1 and columns[0] > 0
        if inside and columns[-1] < width - 1:
            assert hole[..., 0].sum() == size**2
            whole += 1
    assert 0 < whole < len(KEYS)


def test_pad_crop_moves_the_image_by_at_most_the_padding():
    padding, image = 2, np.arange(1.0, 1 + 5 * 7).reshape(5, 7, 1)
    padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)))
    moves = {
        padded[i : i + 5, j : j + 7].tobytes(): (i, j)
        for i in range(2 * padding + 1)
        for j in range(2 * padding + 1)
    }
    seen = [
        moves[x.astype(np.float64).tobytes()]
        for x in each(augmentation.pad_crop, jnp.asarray(image), padding=padding)
    ]
    for axis in range(2):
        assert {move[axis] for move in seen} == set(range(2 * padding + 1))


def test_flip_mirrors_about_every_other_image_and_twice_is_the_image():
    image = jnp.arange(12.0).reshape(3, 4, 1)
    flipped = each(augmentation.flip, image)
    mirrored = (flipped == np.asarray(image)[:, ::-1]).all((1, 2, 3))
    kept = (flipped == np.asarray(image)).all((1, 2, 3))
    assert (mirrored != kept).all()
    assert 16 <= mirrored.sum() <= 48
    twice = jax.vmap(augmentation.flip)(KEYS, jnp.asarray(flipped))
    np.testing.assert_array_equal(twice, np.broadcast_to(image, twice.shape))


def test_images_are_normalised_after_they_are_augmented(split):
    options = dict(seed=0, augment=("flip", ("gaussian_noise", {"std": 0.5})))
    mean, std = (0.1, 0.6), (0.5, 2.0)
    plain, normalised = (
        data.resident(split, 20, **options, **more) for more in ({}, dict(mean=mean, std=std))
    )
    item = next(plain.items())
    view = plain.assemble(plain.table, item)["image"]
    got = normalised.assemble(normalised.table, item)["image"]
    np.testing.assert_allclose(got, (np.asarray(view) - mean) / std, rtol=1e-5, atol=1e-6)


def test_the_same_augmentation_twice_draws_twice(split):
    view = augmentation.viewer(data.augmentations(["gaussian_noise", "gaussian_noise"]))
    once = augmentation.viewer(data.augmentations(["gaussian_noise"]))
    image = jnp.zeros((40, 40, 1))
    assert abs(float(view(0, 0, 0, image).std()) - 0.1 * 2**0.5) < 0.01
    assert abs(float(once(0, 0, 0, image).std()) - 0.1) < 0.01


def test_partners_are_a_function_of_seed_epoch_and_example():
    rows, zero = np.arange(5000), np.zeros(5000, np.int32)
    found = augmentation.partners(3, zero, rows, 5000)
    assert found.dtype == np.int32
    assert found.min() >= 0
    assert found.max() < 5000
    some = np.array([4999, 7, 7, 12])
    np.testing.assert_array_equal(augmentation.partners(3, zero[:4], some, 5000), found[some])
    for other in (
        augmentation.partners(4, zero, rows, 5000),
        augmentation.partners(3, zero + 1, rows, 5000),
    ):
        assert (found == other).mean() < 0.01
    assert (found == rows).mean() < 0.01
    # As many different ones as independent draws give: 1 - 1/e.
    assert abs(len(np.unique(found)) / 5000 - 0.632) < 0.03


@pytest.mark.parametrize("alpha", [0.1, 4.0])
def test_mixing_has_the_moments_of_its_beta_distribution(alpha):
    draw = jax.jit(jax.vmap(lambda i: augmentation.mixing(0, 0, i, alpha)))
    weights = np.asarray(draw(jnp.arange(4000)))
    assert weights.min() >= 0
    assert weights.max() <= 1
    assert abs(weights.mean() - 0.5) < 0.03
    assert abs(weights.var() - 1 / (4 * (2 * alpha + 1))) < 0.01
    np.testing.assert_array_equal(draw(jnp.arange(4000))[::-1], draw(jnp.arange(4000)[::-1]))


def test_augmentations_of_equal_options_are_equal_however_they_are_written():
    short = data.augmentations(["flip", ("cutout", {"size": 6})])
    assert short == data.augmentations([("flip", {}), ["cutout", {"size": 6}]])
    assert data.augmentations(short) == short
    assert hash(short) == hash(data.augmentations(short))
