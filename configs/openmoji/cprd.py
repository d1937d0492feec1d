"""CPRD on signs and their names: a cross-encoder orders the hard negatives of a dual encoder.

    python -m experiments.run --config=configs/openmoji/cprd.py --workdir=runs/openmoji-cprd

The data set and the student are those of `configs/openmoji/contrastive.py`.
"""

from configs.openmoji import contrastive


def get_config():
    config = contrastive.get_config()
    config.teacher.network.name = "cross_encoder"
    config.method = dict(name="cprd", candidates=16, distillation_weight=2.0)
    return config
