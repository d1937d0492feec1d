"""The losses of TRG one by one against KD, on long-tailed 8 x 8 digits, eight seeds.

    python -m experiments.compare --config=configs/digits/compare_trg.py \
        --workdir=runs/compare-digits-trg

`kd` is TRG with weights of 0, so that its graphs are measured as well. `inner-100` and `formula`
are what the method's defaults were chosen against: a heavy contextual loss, and the local loss
without its temperature.
"""

import dataclasses

from configs.digits import trg as single
from kdjax.methods import trg


def get_config():
    config = single.get_config()
    usual = trg.Config(**{k: v for k, v in config.method.items() if k != "name"})
    del config.method
    config.seeds = 8
    config.vmap = False  # convolutions over stacked kernels are slow on a CPU
    config.apart = ()
    config.baseline = "kd"
    config.name = "digits-trg"

    def arm(inner=0.0, local=0.0, contrast=0.0, **changes):
        weights = dict(inner_weight=inner, local_weight=local, global_weight=contrast)
        changed = dataclasses.replace(usual, **weights, **changes)
        return dict(name="trg", **dataclasses.asdict(changed))

    config.arms = {
        "supervised": dict(name="supervised"),
        "kd": arm(),
        "inner": arm(inner=5.0),
        "local": arm(local=0.3),
        "global": arm(contrast=0.1),
        "trg": arm(5.0, 0.3, 0.1),
        "inner-100": arm(inner=100.0),
        "formula": arm(local=0.3, local_temperature=1.0),
    }
    return config
