"""The student alone on 5,000 MNIST digits.

python -m experiments.run --config=configs/mnist/supervised.py --workdir=runs/supervised
"""

from configs.mnist import base


def get_config():
    config = base.get_config()
    config.method = dict(name="supervised", label_smoothing=0.0)
    return config
