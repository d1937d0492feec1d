"""Images cut into a left and a right half: two modalities of one thing, out of any images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kdjax.data.source import Dataset, Split, check_finite, stratified


def halves(name: str, *, noise: float = 0.0, sizes: Sequence[int] = (), seed: int = 0) -> Dataset:
    """The images of another data set, whole and in halves, with noise.

    A record has `image` float32 `[H, W, C]`, `left` `[H, W // 2, C]`, `right`
    `[H, W - W // 2, C]` and `label`. Bytes become floats in [0, 1]; then each value gets Gaussian
    noise once and for all, so that the halves are those of the very image.

    Args:
      name: of the data set, as `load` knows it.
      noise: standard deviation, >= 0.
      sizes: of the training and the validation split, dealt anew out of all examples, with the
        classes in proportion; `test` gets the rest. (): the splits as they are.
      seed: of the noise, and of who is dealt where.

    Raises:
      ValueError: images of another kind or too narrow, noise below zero or not finite, sizes that
        are not two or leave no test split.

    >>> found = halves("digits", noise=0.1, sizes=(300, 300))
    >>> {split: len(records) for split, records in found.splits.items()}
    {'train': 300, 'validation': 300, 'test': 1197}
    >>> found.splits["test"].fields["left"]
    (8, 4, 1)
    """
    from kdjax.data.registry import load  # which knows this module

    if not 0 <= noise < np.inf:
        raise ValueError(f"noise must be finite and >= 0, got {noise}")
    whole, rng, title = load(name), np.random.default_rng(seed), f"halves:{name}"
    parts = {}
    for split, records in whole.splits.items():
        arrays = records.arrays()
        image = arrays["image"]
        if image.ndim != 4 or image.shape[2] < 2:
            raise ValueError(
                f"{records.where}: images must be [height, width >= 2, channels] to be halved, got "
                f"{list(image.shape[1:])}"
            )
        image = image / np.float32(255) if image.dtype == np.uint8 else np.float32(image)
        check_finite(image, records.where)
        image = image + noise * rng.standard_normal(image.shape, np.float32)
        parts[split] = image.astype(np.float32), arrays["label"].astype(np.int32)
    if tuple(sizes):
        parts = _dealt(parts, tuple(sizes), seed, title)
    splits = {}
    for split, (image, label) in parts.items():
        middle = image.shape[2] // 2
        fields = {"image": image, "left": image[:, :, :middle], "right": image[:, :, middle:]}
        splits[split] = Split.of({**fields, "label": label}, f"{title}/{split}")
    return Dataset(title, splits, whole.class_names)


def _dealt(parts, sizes: tuple[int, ...], seed: int, title: str):
    """All examples together, dealt anew."""
    image, label = (np.concatenate(x) for x in zip(*parts.values()))
    if len(sizes) != 2 or min(sizes) < 1 or sum(sizes) >= len(label):
        raise ValueError(
            f"{title}: sizes must be two numbers, at least 1 and together below the {len(label)} "
            f"examples, got {sizes}"
        )
    rows = zip(("train", "validation", "test"), stratified(label, sizes, seed))
    return {split: (image[chosen], label[chosen]) for split, chosen in rows}
