"""Four methods on 7,216 animal silhouettes, five seeds.

    python -m experiments.compare --config=configs/animal_shapes/compare.py \
        --workdir=runs/compare-animals

A ResNet-8 that sees the silhouettes shifted and mirrored teaches a fully connected student of 64
hidden units that sees them as they are.
"""

from configs.mnist import compare


def get_config():
    config = compare.get_config()
    config.name = "animal_shapes"
    config.data.name = "animal_shapes"
    config.data.train_examples = 0
    config.teacher.training.steps = 1000
    config.teacher.training.augment = (("pad_crop", {"padding": 2}), "flip")
    config.teacher.cached = True
    config.student.training.steps = 3000
    config.student.training.augment = ()
    config.vmap = True
    config.apart = ("teacher",)  # a convolution over stacked kernels is slow on a CPU
    return config
