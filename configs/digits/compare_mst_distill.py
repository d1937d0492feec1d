"""MST-Distill on halves of 8 x 8 digits, against labels alone and one teacher, five seeds.

    python -m experiments.compare --config=configs/digits/compare_mst_distill.py \
        --workdir=runs/compare-digits-mst --results=results/digits-mst_distill
    python -m experiments.mst_distill results/digits-mst_distill

Splits and noise are drawn anew for each seed. Every arm is a config of the method, with a weight of
0 of what it goes without: all students see as many examples, and so do their teachers. The second
command judges the claims by the records.
"""

from configs.digits import mst_distill as single


def arms(config: dict) -> dict:
    """Arm -> method, of the fields of MST-Distill itself."""
    alone = dict(mutual_weight=0.0, balance_weight=0.0)
    one = dict(teacher_layers=(), cross_modal_layers=None)
    changes = {
        "labels": dict(**alone, **one, distillation_weight=0.0),
        "kd_cross_modal": dict(**alone, teacher_layers=None, cross_modal_layers=()),
        "kd_multimodal": dict(**alone, **one),
        "mst": {},
        "mst-no_masks": dict(teacher_layers=(), cross_modal_layers=()),
        "mst-random": dict(routing="random"),
        "mst-all": dict(active_teachers=4),
        "mst-no_balance": dict(balance_weight=0.0),
    }
    return {name: {**config, **fields} for name, fields in changes.items()}


def compared(config):
    """The config of a run as that of a comparison of its method's arms."""
    method = config.method.to_dict()
    del config.method
    config.seeds = 5
    config.vmap = True
    config.apart = ()
    config.reseed_data = True
    config.baseline = "labels"
    config.arms = arms(method)
    return config


def get_config():
    config = compared(single.get_config())
    config.name = "digits-mst_distill"
    return config
