"""Pictures with texts that a dual encoder can learn in seconds."""

import numpy as np

from kdjax import data
from kdjax.data.tokenizers import ByteTokenizer

WORDS = ("red", "green", "blue", "dark", "pale", "loud")


def pairs():
    """Pictures made of two numbers, told by words in two languages."""
    rng = np.random.default_rng(0)
    images, texts = {}, {}
    for split, size in (("train", 48), ("validation", 16), ("test", 20)):
        codes = rng.integers(0, 6, (size, 2))
        base = np.random.default_rng(1).integers(0, 256, (2, 6, 4, 4, 3))
        images[split] = (base[0, codes[:, 0]] // 2 + base[1, codes[:, 1]] // 2).astype(np.uint8)
        names = [f"{WORDS[a]} {WORDS[b]}" for a, b in codes]
        texts[split] = [(name, name[::-1]) for name in names]
    return data.caption_dataset(images, texts, ByteTokenizer(), name="colours")
