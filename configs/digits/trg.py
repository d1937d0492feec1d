"""TRG on long-tailed 8 x 8 digits.

    python -m experiments.run --config=configs/digits/trg.py --workdir=runs/digits-trg

The student's training set falls from 125 examples of the first class to 6 of the last; its teacher,
convolutions of 32, 64 and 64 channels, has seen all 1,257 digits for 15 epochs. Student of 8, 16
and 16 channels, 60 epochs, Adam at 2e-3, batches of 64: graphs of 256 tokens.
"""

import dataclasses

from experiments import configuration
from kdjax.methods import trg


def get_config():
    config = configuration.defaults()
    config.data.name = "digits"
    config.data.train_imbalance = 20.0
    config.data.balanced_teacher = True
    config.teacher.network = dict(name="convnet", widths=(32, 64, 64), strides=(1, 2, 1))
    config.teacher.training.update(steps=295, batch_size=64, optimizer="adam", learning_rate=2e-3)
    config.student.network = dict(name="convnet", widths=(8, 16, 16), strides=(1, 2, 1))
    config.student.training.update(steps=400, batch_size=64, optimizer="adam", learning_rate=2e-3)
    config.checkpoint_every = 0
    config.validate_every = 100
    method = trg.Config(student_map="block2/out", teacher_map="block2/out", embedding_width=32)
    config.method = dict(name="trg", **dataclasses.asdict(method))
    return config
