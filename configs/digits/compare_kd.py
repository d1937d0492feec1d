"""The losses on logits, each with its own paper's weights, on 8 x 8 digits, six seeds.

python -m experiments.compare --config=configs/digits/compare_kd.py --workdir=runs/digits-kd
"""

import dataclasses

from configs.digits import base
from kdjax.methods import kd


def get_config():
    config = base.get_config()
    config.name = "digits-kd"
    config.arms = {"supervised": dict(name="supervised")}
    for loss in ("kd", "dkd", "dist", "nkd", "logit_standardized_kd"):
        config.arms[loss] = dict(name="kd", **dataclasses.asdict(kd.Config.of(loss)))
    return config
