"""SinKD on the sentiment of film reviews, SST-2 at a size for two cores.

    python -m experiments.run --config=configs/text_classification/sst2.py \
        --config.data.name=jsonl:sst2.jsonl.gz --workdir=runs/sst2

SST-2 as JSON lines, `{"split": "train", "sentence": "...", "label": 0}`, gzipped or not: GLUE's
three files joined; it is for research and comes with no package. 4,000 of its training phrases, and
the sentences of dev and test that fit into 40 tokens. Both encoders begin at random, where the
paper's are BERTs of 12 and 6 layers; temperature and weights are its for SST-2.
"""

import dataclasses

from experiments import text_classification_configuration as configuration
from kdjax.methods import sinkd


def get_config():
    config = configuration.defaults()
    config.data.name = "jsonl:sst2.jsonl.gz"
    config.data.options.text = "sentence"
    config.data.rows = (4000, 0, 0)
    config.data.vocabulary = 4000
    config.data.length = 40
    config.data.drop = True
    config.teacher.network.dropout = 0.3
    config.teacher.training.update(
        steps=300, batch_size=64, learning_rate=2e-3, schedule="cosine", warmup=0.1
    )
    config.teacher.cached = True
    config.student.training.update(
        steps=300, batch_size=32, learning_rate=2e-3, schedule="cosine", warmup=0.1
    )
    config.checkpoint_every = 0
    config.validate_every = 100
    config.method = dict(
        name="sinkd",
        **dataclasses.asdict(sinkd.Config(temperature=2.0, sinkhorn_weight=0.8 * 0.032)),
    )
    return config
