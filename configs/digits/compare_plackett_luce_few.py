"""The same with 10 labels a class.

    python -m experiments.compare --config=configs/digits/compare_plackett_luce_few.py \
        --workdir=runs/digits-plackett-luce-few
"""

from configs.digits import compare_plackett_luce


def get_config():
    config = compare_plackett_luce.get_config()
    config.name = "digits-plackett_luce-100"
    config.data.train_examples = 100
    return config
