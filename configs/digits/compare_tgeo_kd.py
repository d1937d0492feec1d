"""TGeo-KD against fixed ratios and the rules of its paper, on 8 x 8 digits as they are, six seeds.

    python -m experiments.compare --config=configs/digits/compare_tgeo_kd.py \
        --workdir=runs/compare-digits-tgeo_kd

No arm trains on the fifth that is held out for the controller. `python -m experiments.tgeo_kd` has
a teacher and labels that are wrong in part.
"""

from configs.digits import tgeo_kd as single


def get_config():
    config = single.get_config()
    del config.method
    config.seeds = 6
    config.vmap = True
    config.apart = ()
    config.baseline = "fixed-half"
    config.name = "digits-tgeo_kd-clean"
    common = dict(name="tgeo_kd", held_out=0.2)
    config.arms = {
        "fixed-0": dict(ratio="fixed", fixed_ratio=0.0, **common),
        "fixed-half": dict(ratio="fixed", fixed_ratio=0.5, **common),
        "fixed-1": dict(ratio="fixed", fixed_ratio=1.0, **common),
        "wls": dict(ratio="wls", **common),
        "ada": dict(ratio="ada", **common),
        "annealed": dict(ratio="annealed", **common),
        "untrained": dict(ratio="untrained", **common),
        "per_example": dict(ratio="per_example", **common),
        "tgeo": dict(ratio="geometry", **common),
    }
    return config
