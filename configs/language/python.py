"""Language modelling on the bytes of Python's own library: a teacher of 0.8 M, a student of 0.1 M.

    python -m experiments.run --config=configs/language/python.py --workdir=runs/python

Needs nothing but Python; minutes on two cores. Another method that learns from text, with all its
fields as flags:

    python -m experiments.run --config=configs/language/python.py:sequence_kd \
        --config.method.divergence=reverse_kl --workdir=runs/python-reverse_kl
"""

import dataclasses

from experiments import language_configuration
from kdjax import methods


def get_config(method="taid"):
    config = language_configuration.defaults()
    config.data.rows = (4000, 100, 200)
    config.teacher.training.update(steps=600, learning_rate=2e-3)
    config.student.training.update(steps=400, learning_rate=3e-3)
    changed = {"taid": dict(alpha=5 / 400)}.get(method, {})
    config.method = dict(name=method, **dataclasses.asdict(methods.configure(method, **changed)))
    return config
