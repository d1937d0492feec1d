"""TRG against KD on long-tailed animal silhouettes, five seeds; not run yet.

    python -m experiments.compare --config=configs/animal_shapes/compare_trg.py \
        --workdir=runs/compare-animals-trg

The training set falls from 696 silhouettes of the first class to 14 of the last one; the teacher
has seen all of them. ResNet-14 teaches ResNet-8, whose last maps of 7 x 7 are 49 tokens.
"""

import dataclasses

from experiments import configuration
from kdjax.methods import kd, trg


def get_config():
    config = configuration.defaults()
    config.name = "animal_shapes-trg"
    config.data.name = "animal_shapes"
    config.data.train_imbalance = 50.0
    config.data.balanced_teacher = True
    config.teacher.network = dict(name="resnet14")
    config.teacher.training.update(steps=2000, learning_rate=3e-3, schedule="cosine")
    config.student.network = dict(name="resnet8")
    config.student.training.update(steps=2000, learning_rate=3e-3, schedule="cosine")
    config.validate_every = 500
    config.seeds = 5
    config.vmap = False  # convolutions over stacked kernels are slow on a CPU
    config.apart = ()
    config.baseline = "kd"
    usual = kd.Config(label_weight=1.0, distillation_weight=1.0)
    config.arms = {
        "supervised": dict(name="supervised"),
        "kd": dict(name="kd", **dataclasses.asdict(usual)),
        "trg": dict(name="trg", **dataclasses.asdict(trg.Config())),
    }
    return config
