"""A sweep on 8 x 8 digits: five temperatures, two learning rates and six seeds of KD, as one stage.

    python -m experiments.compare --config=configs/digits/sweep_temperature.py \\
        --workdir=runs/digits-sweep

The ten arms differ in traced fields only, so that their sixty students train in one compiled step.
`--config.vmap=False` trains them one by one.
"""

import dataclasses

from configs.digits import base
from kdjax.methods import kd


def get_config():
    config = base.get_config()
    config.name = "digits-sweep_temperature"
    config.arms = {
        f"T{temperature:g}-lr{rate}": dict(
            name="kd",
            **dataclasses.asdict(kd.Config.of("kd", temperature=temperature)),
            training=dict(learning_rate=float(rate)),
        )
        for temperature in (1.0, 2.0, 4.0, 8.0, 16.0)
        for rate in ("3e-3", "1e-2")
    }
    config.baseline = "T1-lr3e-3"
    return config
