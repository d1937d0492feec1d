"""The small experiment on 8 x 8 digits: 400 labels, a teacher trained with noise, six seeds.

Teacher 64-256-128-10 with Gaussian input noise, student 64-12-10, AdamW at 3e-3, 1,500 steps of
64 examples. Fixed splits: 400 of 1,257 training digits, 180 to select, 360 to report.
"""

from experiments import configuration


def get_config():
    config = configuration.defaults()
    config.data.name = "digits"
    config.data.train_examples = 400
    config.teacher.network = dict(name="mlp", widths=(256, 128))
    config.teacher.training.update(
        steps=1500, learning_rate=3e-3, augment=(("gaussian_noise", {"std": 0.2}),)
    )
    config.teacher.cached = True
    config.student.network = dict(name="mlp", widths=(12,))
    config.student.training.update(steps=1500, learning_rate=3e-3)
    config.checkpoint_every = 0
    config.validate_every = 100
    config.seeds = 6
    config.vmap = True
    config.apart = ()
    config.baseline = "supervised"
    return config
