"""Plackett-Luce distillation against its ablations and Hinton's KD on 8 x 8 digits, six seeds.

    python -m experiments.compare --config=configs/digits/compare_plackett_luce.py \
        --workdir=runs/digits-plackett-luce
"""

import dataclasses

from configs.digits import base
from kdjax.methods import kd


def get_config():
    config = base.get_config()
    config.name = "digits-plackett_luce"
    config.arms = {
        "supervised": dict(name="supervised"),
        "kd": dict(name="kd", **dataclasses.asdict(kd.Config.of("kd"))),
        "plackett_luce": dict(name="plackett_luce", temperature=1.0),
        "plackett_luce-T4": dict(name="plackett_luce", temperature=4.0),
        "listmle": dict(name="plackett_luce", weighting="uniform"),
        "p_listmle": dict(name="plackett_luce", weighting="position"),
    }
    return config
