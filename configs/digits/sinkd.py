"""SinKD on 8 x 8 digits.

    python -m experiments.run --config=configs/digits/sinkd.py --workdir=runs/digits-sinkd

Teacher 64-256-256-10 for 60 epochs, student 64-8-10 for 40, Adam at 2e-3, batches of 32 of 898
training digits: 28 steps an epoch.
"""

import dataclasses

from experiments import configuration
from kdjax.methods import sinkd


def get_config():
    config = configuration.defaults()
    config.data.name = "digits"
    config.data.train_examples = 898
    config.teacher.network = dict(name="mlp", widths=(256, 256))
    config.teacher.training.update(steps=1680, batch_size=32, optimizer="adam", learning_rate=2e-3)
    config.teacher.cached = True
    config.student.network = dict(name="mlp", widths=(8,))
    config.student.training.update(steps=1120, batch_size=32, optimizer="adam", learning_rate=2e-3)
    config.checkpoint_every = 0
    config.validate_every = 112
    config.method = dict(name="sinkd", **dataclasses.asdict(sinkd.Config()))
    return config
