"""SinKD against the divergences it is to improve on, on SST-2, ten seeds of the student.

    DATA=--config.data.name=jsonl:sst2.jsonl.gz
    python -m experiments.run --config=configs/text_classification/sst2.py $DATA \
        --config.data.rows='(0,0,0)' --config.student.training.steps=1 --workdir=runs/sst2-teacher
    python -m experiments.compare --config=configs/text_classification/compare_sinkd.py $DATA \
        --config.teacher.checkpoint=runs/sst2-teacher/weights/teacher --workdir=runs/compare-sst2

In place of pre-training the one teacher has seen 19,200 of 67,349 phrases, the students learn from
2,000 of them. Arms as in `configs/digits/compare_sinkd.py`, with the paper's temperature and
weights for SST-2: `sinkd-paper` adds the transport cost to `kl` with the paper's weight, 0.0256,
`sinkd-1` with a weight of 1. Minutes of two cores.
"""

import dataclasses

from configs.text_classification import sst2
from kdjax.methods import kd


def get_config():
    config = sst2.get_config()
    usual = dict(config.method)
    del config.method
    config.data.rows = (2000, 0, 0)
    config.seeds = 10
    config.vmap = True
    config.apart = ()
    config.baseline = "supervised"
    config.name = "sst2-sinkd"
    scale = usual["distillation_weight"] / usual["temperature"] ** 2
    same = dict(distillation_weight=scale, temperature=usual["temperature"])
    config.arms = {
        "supervised": {
            **usual,
            "label_weight": 1.0,
            "distillation_weight": 0.0,
            "sinkhorn_weight": 0.0,
        },
        "kl": {**usual, "sinkhorn_weight": 0.0},
        "reverse_kl": dict(name="kd", **dataclasses.asdict(kd.Config.of("reverse_kl", **same))),
        "jsd": dict(name="kd", **dataclasses.asdict(kd.Config.of("jsd", **same))),
        "sinkd-paper": usual,
        "sinkd-1": {**usual, "sinkhorn_weight": 1.0},
        "shuffled": {**usual, "sinkhorn_weight": 1.0, "shuffled": True},
    }
    return config
