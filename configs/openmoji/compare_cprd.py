"""CPRD against other ways to teach a dual encoder by a cross-encoder, on signs, three seeds.

    python -m experiments.compare --config=configs/openmoji/compare_cprd.py \
        --workdir=runs/compare-openmoji-cprd

Both directions are summed. `random` is ListMLE on random negatives; `mse` and `kl` are taught the
values of the same K. Towers of one block, flipped and shifted pictures, 1,200 steps of the teacher
and 500 of the students, 64 pairs each: some two minutes a seed on one core. Still far from trained:
recall at 5 of 200 is 5.4 to 7.3 %, where chance is 2.5, and the teacher's recall at 1 is no larger
than that of its students.
"""

from configs.openmoji import cprd


def get_config():
    config = cprd.get_config()
    del config.method
    config.name = "openmoji-cprd"
    config.seeds = 3
    for role, width, steps in (("teacher", 64, 1200), ("student", 32, 500)):
        config[role].network.image.update(patch=12, width=width, depth=1)
        config[role].network.text.update(width=32, depth=1)
        config[role].training.update(steps=steps, batch_size=64, learning_rate=3e-3)
        config[role].training.update(weight_decay=0.05)
        config[role].training.augment = ("flip", ("pad_crop", {"padding": 4}))
    config.validate_every = 400
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
    }
    return config
