"""Language modelling on the bytes of Python's own library: a teacher of 0.8 M, a student of 0.1 M.

    python -m experiments.run --config=configs/language/python.py --workdir=runs/python

Needs nothing but Python; minutes on two cores. Any language method runs on it:
--config.method.name=taid
"""

from experiments import language_configuration


def get_config():
    config = language_configuration.defaults()
    config.data.rows = (4000, 100, 200)
    config.teacher.training.update(steps=600, learning_rate=2e-3)
    config.student.training.update(steps=400, learning_rate=3e-3)
    config.method = dict(name="taid", alpha=5 / 400)
    return config
