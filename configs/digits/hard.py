"""HARD on 8 x 8 digits in a frame of 3 pixels: a student that has only seen centred digits.

    python -m experiments.run --config=configs/digits/hard.py --workdir=runs/digits-hard

The teacher is a small convolutional network trained on digits shifted by up to 3 pixels each way,
the student a perceptron with 64 hidden units that sees 900 digits where they are; the augmentor
may shift them. The report is on centred digits; shifted ones: `python -m experiments.hard`.
"""

import dataclasses

from experiments import configuration
from kdjax.methods import hard


def get_config():
    config = configuration.defaults()
    config.data.name = "digits"
    config.data.train_examples = 900
    config.data.padding = 3
    config.teacher.network = dict(name="max_pool_convnet", widths=(24, 48))
    config.teacher.training.update(
        steps=300, batch_size=32, learning_rate=3e-3, augment=(("pad_crop", {"padding": 3}),)
    )
    config.student.network = dict(name="mlp", widths=(64,))
    config.student.training.update(steps=2000, batch_size=64, learning_rate=3e-3)
    config.checkpoint_every = 0
    config.validate_every = 500
    config.method = dict(name="hard", **dataclasses.asdict(hard.Config(augmentor_budget=2.0)))
    return config
