"""What BOOT owes to its step, its boundary and its target, in short runs of three seeds.

    python -m experiments.compare --config=configs/mixture/compare_boot_short.py \
        --workdir=runs/compare-boot-short

Batches of 128 for 1,500 steps. `delta-` names t - s; `no_boundary`, `euler`, `euler_weighted`
(by 1 / (t - s)^2, as in the paper) and `heun` have that of `delta-4e-2`.
"""

from configs.mixture import compare_boot


def get_config():
    config = compare_boot.get_config()
    config.student.training.update(steps=1500, batch_size=128)
    config.name = "mixture-boot-short"
    config.baseline = "delta-4e-2"
    config.arms = {
        "delta-1e-1": dict(name="boot", delta=0.1),
        "delta-4e-2": dict(name="boot", delta=0.04),
        "delta-2e-2": dict(name="boot", delta=0.02),
        "no_boundary": dict(name="boot", boundary_weight=0.0),
        "euler": dict(name="boot", target="euler"),
        "euler_weighted": dict(name="boot", target="euler", weighting="inverse_squared_time"),
        "heun": dict(name="boot", target="heun"),
    }
    return config
