"""Dual-head optimization on 8 x 8 digits, four labels a class; the teacher is trained on all.

    python -m experiments.run --config=configs/digits/dho.py --workdir=runs/digits-dho

The teacher and the student alone see all 1,257 labels, the distilled student 40 of them and the
teacher's answers. With a zero-shot teacher, over seeds: `python -m experiments.dho`.
"""

import dataclasses

from configs.digits import base
from experiments import configuration
from kdjax.methods import dho


def get_config():
    config, shared = configuration.defaults(), base.get_config()
    config.data.name = "digits"
    config.teacher.network, config.teacher.training = (
        shared.teacher.network,
        shared.teacher.training,
    )
    config.student.network = dict(name="mlp", widths=(64,))
    config.student.training.update(steps=1200, learning_rate=2e-3, weight_decay=0.01)
    config.checkpoint_every = 0
    config.method = dict(
        name="dho",
        **{**dataclasses.asdict(dho.Config()), "labeled_batch_size": 32, "unlabeled": "all"},
    )
    return config
