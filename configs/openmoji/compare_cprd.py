"""CPRD against other ways to teach a dual encoder by a cross-encoder, on signs, three seeds.

    python -m experiments.compare --config=configs/openmoji/compare_cprd.py \
        --workdir=runs/compare-openmoji-cprd

Both directions are summed. `random` is ListMLE on random negatives; `mse` and `kl` are taught the
values of the same K. Small towers and 100 steps, so that it takes minutes on one core: far from
trained. The teacher's recall at 1 is 1.75 % and every student is within noise of chance, 0.5 %.
"""

from configs.openmoji import cprd


def get_config():
    config = cprd.get_config()
    del config.method
    config.name = "openmoji-cprd"
    config.seeds = 3
    for role, steps in (("teacher", 200), ("student", 100)):
        config[role].network.image.update(patch=16, width=32, depth=1)
        config[role].network.text.update(width=32, depth=1)
        config[role].training.update(steps=steps, batch_size=64, learning_rate=3e-3)
    config.validate_every = 100
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
