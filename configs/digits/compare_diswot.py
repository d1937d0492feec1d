"""What DisWOT finds within 3,000 parameters, against KD of the largest student there, three seeds.

python -m experiments.compare --config=configs/digits/compare_diswot.py --workdir=runs/diswot

`kd` distils the student that the number of parameters alone would choose (width 8, depth 4: 2,514);
the other arms search the twelve of configs/digits/diswot.py by each combination of similarities.
"""

from configs.digits import diswot


def get_config():
    config = diswot.get_config()
    config.name = "digits-diswot"
    config.seeds = 3
    config.vmap = False  # each seed may find another network
    config.apart = ()
    config.baseline = "kd"
    config.student.network.update(width=8, depth=4)
    searched = config.method.to_dict()
    del config.method
    kd = dict(name="kd", temperature=4.0, label_weight=0.1, distillation_weight=0.9)
    config.arms = {
        "supervised": dict(name="supervised"),
        "kd": kd,
        "diswot-rank_sum": searched,
        "diswot-sum": {**searched, "combine": "sum"},
        "diswot-relation": {**searched, "similarities": ("relation",)},
    }
    return config
