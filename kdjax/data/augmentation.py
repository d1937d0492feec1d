"""Augmentations: pure functions of a key and an example, so that a view can be made again.

The key of a view is `fold_in(fold_in(key(seed), epoch), example id)`: it does not depend on the
batch, the process, the device or the run in which the view is asked for.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import dm_pix
import jax
import jax.numpy as jnp
import numpy as np


class Augmentation(NamedTuple):
    """A named augmentation and its options; hashable."""

    name: str
    options: tuple[tuple[str, Any], ...] = ()


def pad_crop(key: jax.Array, image: jax.Array, *, padding: int = 4) -> jax.Array:
    """Pads `[H, W, C]` with zeros on every side and crops it back at a random place.

    >>> pad_crop(jax.random.key(0), jnp.ones((8, 8, 1)), padding=2).shape
    (8, 8, 1)
    """
    padded = jnp.pad(image, ((padding, padding), (padding, padding), (0, 0)))
    return dm_pix.random_crop(key, padded, image.shape)


def flip(key: jax.Array, image: jax.Array) -> jax.Array:
    """Mirrors `[H, W, C]` left to right, every other time.

    >>> image = jnp.arange(4.0).reshape(1, 4, 1)
    >>> sorted({tuple(flip(jax.random.key(i), image).ravel().tolist()) for i in range(8)})
    [(0.0, 1.0, 2.0, 3.0), (3.0, 2.0, 1.0, 0.0)]
    """
    return dm_pix.random_flip_left_right(key, image)


def cutout(key: jax.Array, image: jax.Array, *, size: int = 8, fill: Any = 0.0) -> jax.Array:
    """Fills a square of `size` whose centre is anywhere in `[H, W, C]`; the part outside is lost.

    `fill` is a number, or one a channel. Streams give their mean, so that a square is zero once
    the image is normalised, as DeVries and Taylor have it (2017, arXiv:1708.04552).

    >>> int((cutout(jax.random.key(0), jnp.ones((8, 8, 1)), size=20) == 0).sum())
    64
    """
    height, width, _ = image.shape
    row, column = jax.random.randint(key, (2,), 0, jnp.array([height, width]))
    rows = jnp.abs(jnp.arange(height) - row + 0.5 * (size % 2 == 0)) < size / 2
    columns = jnp.abs(jnp.arange(width) - column + 0.5 * (size % 2 == 0)) < size / 2
    return jnp.where((rows[:, None] & columns)[..., None], jnp.asarray(fill, image.dtype), image)


def gaussian_noise(key: jax.Array, image: jax.Array, *, std: float = 0.1) -> jax.Array:
    """Adds normal noise of standard deviation `std`, in the units of the image (0..1 for uint8)."""
    return image + std * jax.random.normal(key, image.shape, image.dtype)


def normalize(image: jax.Array, mean: tuple | None, std: tuple | None) -> jax.Array:
    """`(image - mean) / std`, channel by channel, `[..., C]`; None: no mean, or no std.

    >>> normalize(jnp.array([[0.5, 1.0]]), (0.5, 0.5), (0.25, 0.25)).tolist()
    [[0.0, 2.0]]
    """
    for name, values in (("mean", mean), ("std", std)):
        if values is not None and len(values) not in (1, image.shape[-1]):
            raise ValueError(
                f"{name} has {len(values)} numbers, the images have {image.shape[-1]} channels"
            )
    if std is not None and min(std) <= 0:
        raise ValueError(f"std must be positive, got {std}")
    if mean is not None:
        image = image - jnp.asarray(mean, image.dtype)
    return image if std is None else image / jnp.asarray(std, image.dtype)


def denormalize(image: jax.Array, mean: tuple | None, std: tuple | None) -> jax.Array:
    """`image * std + mean`: what `normalize` was given.

    >>> denormalize(jnp.array([[0.0, 2.0]]), (0.5, 0.5), (0.25, 0.25)).tolist()
    [[0.5, 1.0]]
    """
    image = image if std is None else image * jnp.asarray(std, image.dtype)
    return image if mean is None else image + jnp.asarray(mean, image.dtype)


SINGLE: dict[str, Callable] = {
    "pad_crop": pad_crop,
    "flip": flip,
    "cutout": cutout,
    "gaussian_noise": gaussian_noise,
}
OPTIONS = {
    "pad_crop": ("padding",),
    "flip": (),
    "cutout": ("size",),
    "gaussian_noise": ("std",),
    "mixup": ("alpha",),
}


def augmentations(given: Sequence[Any]) -> tuple[Augmentation, ...]:
    """Augmentations as a config names them: `"flip"`, or `("pad_crop", {"padding": 2})`.

    >>> augmentations(["flip", ("cutout", {"size": 6})])[1].name
    'cutout'
    """
    if isinstance(given, str):
        raise ValueError(f"augmentations must be a list, got {given!r}")
    out = []
    for entry in given:
        if isinstance(entry, Augmentation):
            name, options = entry.name, dict(entry.options)
        else:
            name, options = (entry, {}) if isinstance(entry, str) else entry
        if name not in OPTIONS:
            raise ValueError(f"there is no augmentation {name!r}; there are {sorted(OPTIONS)}")
        wrong = [option for option in options if option not in OPTIONS[name]]
        if wrong:
            raise ValueError(f"augmentation {name} has no option {wrong[0]!r}: {OPTIONS[name]}")
        if any(not value > 0 for value in options.values()):
            raise ValueError(f"the options of {name} must be positive, got {options}")
        out.append(Augmentation(name, tuple(sorted(options.items()))))
    if "mixup" in [a.name for a in out[:-1]]:
        raise ValueError("mixup mixes finished views: name it once, last")
    return tuple(out)


@functools.lru_cache(maxsize=64)
def viewer(augment: tuple[Augmentation, ...], fill: tuple[float, ...] | float = 0.0) -> Callable:
    """`(seed, epoch, id, image) -> image`, one example; mixup is not part of a view.

    Args:
      augment: from `augmentations`.
      fill: what cutout fills with.
    """
    single = [a for a in augment if a.name != "mixup"]

    def view(seed, epoch, example, image):
        key = view_key(seed, epoch, example)
        for i, a in enumerate(single):
            options = dict(a.options) | ({"fill": fill} if a.name == "cutout" else {})
            image = SINGLE[a.name](jax.random.fold_in(key, i), image, **options)
        return image

    return view


def view_key(seed: jax.Array, epoch: jax.Array, example: jax.Array) -> jax.Array:
    """The random key of the view of an example in an epoch."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), epoch), example)


def mixing(seed: jax.Array, epoch: jax.Array, example: jax.Array, alpha: float) -> jax.Array:
    """Mixup's weight of the example itself, Beta(alpha, alpha) (Zhang et al. 2018,
    arXiv:1710.09412)."""
    key = jax.random.fold_in(view_key(seed, epoch, example), 0x6D69)
    return jax.random.beta(key, alpha, alpha)


def partners(seed: int, epoch: np.ndarray, example: np.ndarray, size: int) -> np.ndarray:
    """Mixup's partner of each example, a place in `[0, size)`: a hash of (seed, epoch, id).

    It is numpy, not JAX: where records come from the host, the partner's must be read as well.

    >>> partners(0, np.array([0, 1]), np.array([5, 5]), 1000).tolist()
    [475, 948]
    """
    with np.errstate(over="ignore"):
        x = (
            np.uint64(seed) * np.uint64(0x9E3779B97F4A7C15)
            + np.asarray(epoch, np.uint64) * np.uint64(0xBF58476D1CE4E5B9)
            + np.asarray(example, np.uint64) * np.uint64(0x94D049BB133111EB)
        )
        # The finaliser of splitmix64 (Steele, Lea and Flood 2014).
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x = x ^ (x >> np.uint64(31))
    return (x % np.uint64(size)).astype(np.int32)
