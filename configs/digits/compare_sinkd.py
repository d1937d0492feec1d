"""SinKD against the divergences it is to improve on, on 8 x 8 digits, eight seeds.

    python -m experiments.compare --config=configs/digits/compare_sinkd.py \
        --workdir=runs/compare-digits-sinkd

`supervised` and `kl` are SinKD with weights of 0, so that their plans are measured as well;
`reverse_kl` and `jsd` have the temperature and the weights of `kl` (T^2 is taken out of them).
`sinkd-w` adds the transport cost to `kl` with weight w; `shuffled` is `sinkd-1` with the teacher's
rows permuted for the cost.
"""

import dataclasses

from configs.digits import sinkd as single
from kdjax.methods import kd, sinkd


def get_config():
    config = single.get_config()
    del config.method
    config.seeds = 8
    config.vmap = True
    config.apart = ()
    config.baseline = "supervised"
    config.name = "digits-sinkd"
    usual = sinkd.Config()
    scale = usual.distillation_weight / usual.temperature**2
    config.arms = {
        "supervised": dict(
            name="sinkd", label_weight=1.0, distillation_weight=0.0, sinkhorn_weight=0.0
        ),
        "kl": dict(name="sinkd", sinkhorn_weight=0.0),
        "reverse_kl": dict(
            name="kd", **dataclasses.asdict(kd.Config.of("reverse_kl", distillation_weight=scale))
        ),
        "jsd": dict(
            name="kd", **dataclasses.asdict(kd.Config.of("jsd", distillation_weight=scale))
        ),
        "sinkd-3e-2": dict(name="sinkd", sinkhorn_weight=0.03),
        "sinkd-1e-1": dict(name="sinkd", sinkhorn_weight=0.1),
        "sinkd-3e-1": dict(name="sinkd", sinkhorn_weight=0.3),
        "sinkd-1": dict(name="sinkd", sinkhorn_weight=1.0),
        "shuffled": dict(name="sinkd", sinkhorn_weight=1.0, shuffled=True),
    }
    return config
