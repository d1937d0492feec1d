"""From a config on images and texts to a run and a comparison."""

import io
import json
import os
import pathlib
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from PIL import Image

from experiments import retrieval_configuration, tasks
from experiments.configuration import ConfigError

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A zip of forty pictures of noise, each with a caption."""
    place = tmp_path_factory.mktemp("photos") / "photos.zip"
    rng = np.random.default_rng(0)
    lines = [{"image": f"{i:02d}.png", "captions": [f"number {i}"]} for i in range(40)]
    with zipfile.ZipFile(place, "w") as out:
        out.writestr("captions.jsonl", "\n".join(map(json.dumps, lines)))
        for line in lines:
            file = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (8, 8, 3)).astype(np.uint8)).save(file, "PNG")
            out.writestr(line["image"], file.getvalue())
    return f"captions:{place}"


@pytest.fixture
def config(photos):
    config = retrieval_configuration.defaults()
    config.data.name, config.data.options = photos, dict(size=8)
    for role in ("teacher", "student"):
        config[role].network.text = dict(width=8, depth=1, heads=2)
        config[role].training.batch_size = 8
    return config


def build(config):
    module, _ = tasks.method(config, config.method, "config.method")
    return module, tasks.task(config)


def test_a_config_with_captions_is_a_retrieval_task(config):
    config.data.train_examples = 20
    module, task = build(config)
    assert task.kind == tasks.kind(config) == "retrieval"
    train = task.dataset.splits["train"]
    assert len(train) == len(task.dataset.texts["train"]) == 20
    decoded = [task.dataset.tokenizer.decode(x["tokens"][0]) for x in (train[0], train[19])]
    assert decoded == [task.dataset.texts["train"][i][0] for i in (0, 19)]
    assert module.__name__.endswith("contrastive")


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("data.train_examples", 33, "config.data.train_examples=33, but 'photos.zip' has 32"),
        ("data.captions.tokens", 3, "config.data.captions has no field 'tokens'"),
        ("student.input", ("image",), "config.student has no field 'input'"),
        ("student.network.embeding", 3, "did you mean 'embedding'"),
        ("student.network.text.wide", 3, "text of dual_encoder has no option 'wide'"),
        ("method.name", "kd", "kd is for classification tasks"),
    ],
)
def test_a_bad_field_is_refused_in_one_line(config, place, value, message):
    *path, last = place.split(".")
    target = config
    for name in path:
        target = target[name]
    target[last] = value
    with pytest.raises(ConfigError, match=message):
        build(config)


@pytest.mark.slow  # two processes that compile
def test_run_and_compare_know_nothing_of_the_kind(photos, tmp_path):
    file = tmp_path / "small.py"
    file.write_text(
        "from experiments import retrieval_configuration\n\n\n"
        "def get_config():\n"
        "    config = retrieval_configuration.defaults()\n"
        f"    config.data.name, config.data.options = {photos!r}, dict(size=8)\n"
        "    for role in ('teacher', 'student'):\n"
        "        config[role].training.update(steps=6, batch_size=8)\n"
        "    config.validate_every = 3\n"
        "    return config\n"
    )
    comparison = tmp_path / "comparison.py"
    comparison.write_text(
        file.read_text().replace(
            "    return config\n",
            "    config.update(name='small', seeds=2, vmap=True, apart=(), baseline='a')\n"
            "    config.arms = {x: dict(name='contrastive') for x in 'ab'}\n    return config\n",
        )
    )
    for command in (["run", f"--config={file}"], ["compare", f"--config={comparison}"]):
        work = tmp_path / command[0]
        done = subprocess.run(
            [sys.executable, "-m", f"experiments.{command[0]}", *command[1:], f"--workdir={work}"],
            cwd=ROOT,
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert "recall at 1 (%)" in done.stdout
    assert "texts, the best first" in (tmp_path / "run" / "report.html").read_text()
    assert len(list((tmp_path / "compare" / "results").glob("*.json"))) == 4
