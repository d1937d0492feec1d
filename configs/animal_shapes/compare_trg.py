"""TRG against KD on long-tailed animal silhouettes, three seeds.

    python -m experiments.compare --config=configs/animal_shapes/compare_trg.py \
        --workdir=runs/compare-animals-trg

The training set falls from 696 silhouettes of the first class to 14 of the last one; the teacher
has seen all of them. ResNet-14 teaches ResNet-8, whose last maps of 7 x 7 are 49 tokens. `kd` is
TRG with weights of 0, so that its graphs are measured as well. 250 steps of a teacher and of a
student, some 8 epochs, take a core about 10 minutes in all.
"""

import dataclasses

from experiments import configuration
from kdjax.methods import trg


def get_config():
    config = configuration.defaults()
    config.name = "animal_shapes-trg"
    config.data.name = "animal_shapes"
    config.data.train_imbalance = 50.0
    config.data.balanced_teacher = True
    config.teacher.network = dict(name="resnet14")
    config.teacher.training.update(steps=250, learning_rate=3e-3, schedule="cosine")
    config.student.network = dict(name="resnet8")
    config.student.training.update(steps=250, learning_rate=3e-3, schedule="cosine")
    config.checkpoint_every = 0
    config.validate_every = 125
    config.seeds = 3
    config.vmap = False  # convolutions over stacked kernels are slow on a CPU
    config.apart = ()
    config.baseline = "kd"
    usual = trg.Config()
    none = dict(inner_weight=0.0, local_weight=0.0, global_weight=0.0)
    config.arms = {
        "supervised": dict(name="supervised"),
        "kd": dict(name="trg", **dataclasses.asdict(dataclasses.replace(usual, **none))),
        "trg": dict(name="trg", **dataclasses.asdict(usual)),
    }
    return config
