"""TGeo-KD on 8 x 8 digits.

    python -m experiments.run --config=configs/digits/tgeo_kd.py --workdir=runs/digits-tgeo_kd

Teacher 64-256-10, student 64-32-10, Adam at 2e-3, 700 steps of 64 of 500 training digits, of which
the student leaves a fifth to the controller. Seconds.
"""

import dataclasses

from experiments import configuration
from kdjax.methods import tgeo_kd


def get_config():
    config = configuration.defaults()
    config.data.name = "digits"
    config.data.train_examples = 500
    config.teacher.network = dict(name="mlp", widths=(256,))
    config.student.network = dict(name="mlp", widths=(32,))
    for role in ("teacher", "student"):
        config[role].training.update(steps=700, optimizer="adam", learning_rate=2e-3)
    config.teacher.cached = True
    config.checkpoint_every = 0
    config.validate_every = 100
    config.method = dict(name="tgeo_kd", **dataclasses.asdict(tgeo_kd.Config(held_out=0.2)))
    return config
