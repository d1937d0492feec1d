"""MST-Distill on digits that are heard and seen, against labels alone and one teacher, five seeds.

    git clone https://github.com/Jakobovski/free-spoken-digit-dataset
    python -m experiments.compare --config=configs/spoken_digits/compare_mst_distill.py \
        --workdir=runs/compare-spoken-mst --results=results/spoken_digits-mst_distill
    python -m experiments.mst_distill results/spoken_digits-mst_distill

Who is heard beside which picture is drawn anew for each seed. The arms are those of
`configs/digits/compare_mst_distill.py`, but for the one that learns from all teachers at once.
"""

from configs.digits.compare_mst_distill import compared
from configs.spoken_digits import mst_distill as single


def get_config():
    config = compared(single.get_config())
    config.name = "spoken_digits-mst_distill"
    del config.arms["mst-all"]
    return config
