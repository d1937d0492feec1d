"""What the MNIST configs share: a convolutional teacher, a small fully connected student."""

import ml_collections

from experiments import configuration


def get_config() -> ml_collections.ConfigDict:
    config = configuration.defaults()
    config.data.name = "mnist5k"
    config.teacher.network = dict(name="resnet8")
    config.teacher.training.update(
        steps=600,
        batch_size=64,
        learning_rate=3e-3,
        schedule="cosine",
        warmup=0.05,
        augment=(("pad_crop", {"padding": 2}),),
    )
    config.teacher.cached = True  # the student sees the images as they are
    config.student.network = dict(name="mlp", widths=(64,))
    config.student.training.update(steps=2000, batch_size=64, learning_rate=2e-3, schedule="cosine")
    config.validate_every = 100
    return config
