"""Four methods on 500 labelled MNIST digits, five seeds.

    python -m experiments.compare --config=configs/mnist/compare.py --workdir=runs/compare-mnist

A ResNet-8 teaches a fully connected student of 64 hidden units; both see the digits shifted at
random, and the teacher answers for the very view that the student sees: in every step, or, with
`--config.teacher.cached=True`, once for all arms. Seeds run one after the other: a convolution over
stacked kernels is slow on a CPU.
"""

import dataclasses

from configs.mnist import base
from kdjax.methods import dual_head_kd, kd


def get_config():
    config = base.get_config()
    config.name = "mnist5k-500"
    config.data.train_examples = 500
    config.teacher.cached = False
    config.student.training.steps = 1500
    config.student.training.augment = (("pad_crop", {"padding": 2}),)
    config.seeds = 5
    config.vmap = False
    config.apart = ()
    config.baseline = "supervised"
    config.arms = {
        "supervised": dict(name="supervised"),
        "kd": dict(name="kd", **dataclasses.asdict(kd.Config.of("kd"))),
        "plackett_luce": dict(name="plackett_luce"),
        "dual_head_kd": dict(name="dual_head_kd", **dataclasses.asdict(dual_head_kd.Config())),
    }
    return config
