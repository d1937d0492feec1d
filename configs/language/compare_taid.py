"""TAID beside fixed targets, on the bytes of Python's reference: five seeds.

    python -m experiments.compare --config=configs/language/compare_taid.py --workdir=runs/taid

A teacher of two layers, students of one layer and 16 numbers a token that have seen the text for
200 steps; then 800 steps of each method. alpha = 5 / steps, so that the schedule can adapt.
"""

from experiments import language_configuration


def get_config():
    config = language_configuration.defaults()
    config.data.name = "python_reference"
    config.data.length = 64
    config.data.rows = (3000, 100, 200)
    config.teacher.network = dict(name="decoder", width=64, num_layers=2, num_heads=4, hidden=192)
    config.teacher.training.update(steps=1500, batch_size=16, learning_rate=3e-3)
    config.teacher.cached = True
    config.student.network = dict(name="decoder", width=16, num_layers=1, num_heads=2, hidden=48)
    config.student.training.update(steps=800, batch_size=16, learning_rate=3e-3)
    config.student.warm_up = 200
    config.validate_every = 100
    config.checkpoint_every = 0
    config.log_every = 40
    config.name = "python_reference-taid"
    config.seeds = 5
    config.vmap = False
    config.apart = ()
    config.baseline = "kl"
    alpha = 5 / config.student.training.steps
    config.arms = {
        "kl": dict(name="sequence_kd", divergence="kl"),
        "reverse_kl": dict(name="sequence_kd", divergence="reverse_kl"),
        "jsd": dict(name="sequence_kd", divergence="generalized_jsd", beta=0.1),
        "skewed_kl": dict(name="sequence_kd", divergence="skewed_kl", lam=0.1),
        "taid": dict(name="taid", t_start=0.4, alpha=alpha),
        "taid_linear": dict(name="taid", t_start=0.4, alpha=alpha, adaptive=False),
    }
    return config
