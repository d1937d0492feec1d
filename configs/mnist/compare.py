"""Four methods on 500 labelled MNIST digits, five seeds.

    python -m experiments.compare --config=configs/mnist/compare.py --workdir=runs/compare-mnist

A ResNet-8 that saw the 500 digits, shifted at random, teaches a fully connected student of 64
hidden units that sees them as they are.
"""

import dataclasses

from configs.mnist import base
from kdjax.methods import dual_head_kd, kd


def get_config():
    config = base.get_config()
    config.name = "mnist5k-500"
    config.data.train_examples = 500
    config.student.training.steps = 1500
    config.seeds = 5
    config.vmap = True
    config.apart = ("teacher",)  # a convolution over stacked kernels is slow on a CPU
    config.baseline = "supervised"
    config.arms = {
        "supervised": dict(name="supervised"),
        "kd": dict(name="kd", **dataclasses.asdict(kd.Config.of("kd"))),
        "plackett_luce": dict(name="plackett_luce"),
        "dual_head_kd": dict(name="dual_head_kd", **dataclasses.asdict(dual_head_kd.Config())),
    }
    return config
