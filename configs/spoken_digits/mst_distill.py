"""MST-Distill on digits that are heard and seen: the student hears them.

    git clone https://github.com/Jakobovski/free-spoken-digit-dataset
    python -m experiments.run --config=configs/spoken_digits/mst_distill.py --workdir=runs/spoken

Pictures of `mnist5k`, beside each a spoken digit of its class, of the Free Spoken Digit Dataset.
The cross-modal teacher sees, the teacher does both. `--config.data.name=spoken_digits:PATH` reads
the recordings from elsewhere, or from one `.npz` (`kdjax/data/spoken_digits.py`).

500 pairs to train, 500 to select, 1,000 to test, whose recordings are the official test ones. The
student is 1024-32-10 on log-mel spectrograms, the cross-modal teacher 784-32-32-10, the teacher has
an encoder 64-16 of each and joins them in 32 units. 25, 13 and 51 epochs; a minute or two.

MST-Distill trains teachers of its own. The row `teacher` of the report is another one, which
learned alone; `student alone` had the steps of the third stage. In `compare_mst_distill.py` all
students see as many examples.
"""

import dataclasses

from experiments import configuration
from kdjax.methods import mst_distill


def get_config():
    config = configuration.defaults()
    config.data = dict(
        name="spoken_digits:free-spoken-digit-dataset/recordings", train_examples=500, seed=0
    )
    encoder = dict(name="mlp", widths=(64, 16))
    config.teacher.network = dict(name="fusion", encoders=(encoder, encoder), hidden=32)
    config.teacher.input = ("image", "audio")
    config.cross_modal_teacher = configuration.role_fields(
        network=dict(name="mlp", widths=(32, 32)), input=("image",)
    )
    config.student.update(network=dict(name="mlp", widths=(32,)), input=("audio",))
    common = dict(batch_size=64, optimizer="adam", learning_rate=1e-3)
    config.teacher.training.update(steps=600, **common)
    config.student.training.update(steps=400, **common)
    config.checkpoint_every = 0
    config.validate_every = 20
    method = mst_distill.Config(cotraining_steps=200, mask_steps=100)
    config.method = dict(name="mst_distill", **dataclasses.asdict(method))
    return config
