"""Signs and their names: two dual encoders trained on pairs alone.

    python -m experiments.run --config=configs/openmoji/contrastive.py --workdir=runs/openmoji

1,518 pictures of OpenMoji with English names, 200 signs of other families to search among; needs
`pip install -e '.[openmoji]'`. Both towers are small transformers, of patches and of bytes.
"""

from experiments import retrieval_configuration


def get_config():
    config = retrieval_configuration.defaults()
    for role in ("teacher", "student"):
        config[role].training.update(steps=300, learning_rate=2e-3)
    config.validate_every = 50
    return config
