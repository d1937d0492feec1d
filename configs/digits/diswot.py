"""DisWOT on 8 x 8 digits: one of twelve students is found without training, then distilled.

    python -m experiments.run --config=configs/digits/diswot.py --workdir=runs/digits-diswot

Width 4, 8 or 16, depth 1 to 4, at most 3,000 parameters, against a teacher of width 32 and depth 4;
all have classifiers of one shape. `student alone` is the smallest of them.
"""

import dataclasses

from experiments import configuration
from kdjax.methods import diswot


def get_config():
    config = configuration.defaults()
    config.data.name = "digits"
    config.teacher.network = dict(name="normalized_convnet", width=32, depth=4)
    config.student.network = dict(name="normalized_convnet", width=4, depth=1)
    for role in ("teacher", "student"):
        config[role].training.update(steps=200, learning_rate=3e-3, schedule="cosine")
    config.teacher.cached = True
    config.checkpoint_every = 0
    config.validate_every = 50
    method = diswot.Config(
        choices={"width": (4, 8, 16), "depth": (1, 2, 3, 4)},
        student_map="last/out",
        teacher_map="last/out",
        population=3,
        tournament=2,
        evaluations=6,
        finalists=2,
        max_parameters=3000,
    )
    config.method = dict(name="diswot", **dataclasses.asdict(method))
    return config
