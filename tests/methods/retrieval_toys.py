"""Pictures with texts that a dual encoder can learn in seconds."""

import numpy as np

from kdjax import data, networks
from kdjax.data.tokenizers import ByteTokenizer
from kdjax.methods.retrieval_task import RetrievalTask
from kdjax.training.optimizers import Training

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


TRAINING = Training(steps=40, batch_size=16, learning_rate=1e-2)


def crossed(training=TRAINING):
    """The task of these pairs with a cross-encoder that teaches, given and not trained."""
    options = dict(image=dict(name="mlp", widths=(16,)), embedding=8)
    text = dict(width=8, depth=1, heads=2)
    nets = {
        "teacher": networks.build("cross_encoder", 257, text=text, hidden=8, **options),
        "student": networks.build("dual_encoder", 257, text=text, **options),
    }
    task = RetrievalTask(pairs(), nets, dict.fromkeys(nets, training), validate_every=20)
    return task.with_teacher(task.variables("teacher"))
