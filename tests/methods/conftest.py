"""One tiny task for all methods: shared networks, so that compiled programs are shared.

Makes `language_toys`, `opsd_toys`, `retrieval_toys` and `step_toys` importable by the tests.
"""

import sys
from pathlib import Path

import pytest

from kdjax import data, networks
from kdjax.methods.task import Task
from kdjax.training.optimizers import Training

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def digits():
    return data.load("digits")


@pytest.fixture
def task(digits):
    nets = {
        "teacher": networks.build("mlp", 10, widths=(32,)),
        "student": networks.build("mlp", 10, widths=(12,)),
    }
    training = {
        "teacher": Training(steps=60, batch_size=32, learning_rate=3e-3),
        "student": Training(steps=30, batch_size=32, learning_rate=3e-3),
    }
    return Task(digits, nets, training, validate_every=20)
