"""Dual-head distillation on 5,000 MNIST digits.

python -m experiments.run --config=configs/mnist/dual_head_kd.py --workdir=runs/dhkd
"""

import dataclasses

from configs.mnist import base
from kdjax.methods import dual_head_kd


def get_config():
    config = base.get_config()
    config.method = dict(name="dual_head_kd", **dataclasses.asdict(dual_head_kd.Config()))
    return config
