"""Plackett-Luce distillation on 5,000 MNIST digits: the first thing to run.

    python -m experiments.run --config=configs/mnist/plackett_luce.py --workdir=runs/pl

A ResNet-8 teaches a fully connected student of 64 hidden units; minutes on two cores.
"""

from configs.mnist import base


def get_config():
    config = base.get_config()
    config.method = dict(name="plackett_luce", temperature=1.0, weighting="teacher")
    return config
