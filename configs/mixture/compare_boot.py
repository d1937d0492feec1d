"""BOOT and its weights against regression on trajectories, on four Gaussians, three seeds.

    python -m experiments.compare --config=configs/mixture/compare_boot.py \
        --workdir=runs/compare-boot

`inverse_squared_step` weighs an example by 1 / (1 - r)^2; `regression` learns the ends of
trajectories of 16 steps, at 16 calls of the teacher an example instead of two.
"""

from configs.mixture import boot


def get_config():
    config = boot.get_config()
    del config.method
    config.seeds = 3
    config.vmap = True
    config.apart = ()
    config.baseline = "boot"
    config.name = "mixture-boot"
    config.arms = {
        "boot": dict(name="boot"),
        "inverse_squared_step": dict(name="boot", weighting="inverse_squared_step"),
        "regression": dict(name="trajectory_regression"),
    }
    return config
