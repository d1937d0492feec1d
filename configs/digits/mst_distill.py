"""MST-Distill on halves of 8 x 8 digits: the student reads the left one.

    python -m experiments.run --config=configs/digits/mst_distill.py --workdir=runs/digits-mst

The cross-modal teacher reads the right half, the teacher all of the image; Gaussian noise of 0.35
on pixels in [0, 1]; 300 digits to train, 300 to select, 1,197 to test. Networks 64-64-32-10,
32-64-32-10 and 32-32-16-10; 30, 15 and 60 epochs; a minute.

MST-Distill trains teachers of its own. The row `teacher` of the report is another one, which
learned alone; `student alone` had the steps of the third stage. In `compare_mst_distill.py` all
students see as many examples.
"""

import dataclasses

from experiments import configuration
from kdjax.methods import mst_distill


def get_config():
    config = configuration.defaults()
    config.data = dict(name="halves:digits", noise=0.35, sizes=(300, 300), seed=0)
    wide, layers = dict(name="mlp", widths=(64, 32)), ("dense0/out", "dense1/out")
    config.teacher.update(network=wide, input=("image",))
    config.cross_modal_teacher = configuration.role_fields(network=wide, input=("right",))
    config.student.update(network=dict(name="mlp", widths=(32, 16)), input=("left",))
    common = dict(batch_size=64, optimizer="adam", learning_rate=2e-3)
    config.teacher.training.update(steps=423, **common)
    config.student.training.update(steps=282, **common)
    config.checkpoint_every = 0
    config.validate_every = 20
    method = mst_distill.Config(
        teacher_layers=layers,
        cross_modal_layers=layers,
        heads=2,
        cotraining_steps=141,
        mask_steps=71,
    )
    config.method = dict(name="mst_distill", **dataclasses.asdict(method))
    return config
