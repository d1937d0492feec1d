"""Hinton's distillation on 5,000 MNIST digits.

    python -m experiments.run --config=configs/mnist/kd.py --workdir=runs/kd

`--config.method.loss=dkd` (or dist, nkd, logit_standardized_kd) takes another loss; its paper's
weights are in `kdjax.methods.kd.DEFAULTS`.
"""

import dataclasses

from configs.mnist import base
from kdjax.methods import kd


def get_config():
    config = base.get_config()
    config.method = dict(name="kd", **dataclasses.asdict(kd.Config.of("kd")))
    return config
