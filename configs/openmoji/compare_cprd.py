"""CPRD against other ways to teach a dual encoder by a cross-encoder, on signs, three seeds.

    python -m experiments.compare --config=configs/openmoji/compare_cprd.py \
        --workdir=runs/compare-openmoji-cprd

Both directions are summed. `random` is ListMLE on random negatives, `all` is CPRD with all of the
K mined negatives valid; `mse` and `kl` are taught the values of the same K.
"""

from configs.openmoji import cprd


def get_config():
    config = cprd.get_config()
    del config.method
    config.name = "openmoji-cprd"
    config.seeds = 3
    config.vmap = False
    config.apart = ()
    config.baseline = "contrastive"
    usual = dict(name="cprd", candidates=16, distillation_weight=2.0)
    config.arms = {
        "contrastive": dict(name="contrastive"),
        "mse": dict(usual, transfer="score_mse"),
        "kl": dict(usual, transfer="listwise_kl"),
        "random": dict(usual, negatives="random", valid_fraction=1.0),
        "cprd": usual,
        "all": dict(usual, valid_fraction=1.0),
    }
    return config
