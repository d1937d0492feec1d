"""Labelled sentences from a file to a table, and what a user without the file is told."""

import dataclasses
import gzip
import json

import numpy as np
import pytest

from configs.text_classification import compare_sinkd, sst2
from experiments import tasks
from experiments.configuration import ConfigError
from kdjax.data.tokenizers import train_word_tokenizer
from kdjax.methods import dual_head_kd, kd, plackett_luce, sinkd, supervised
from kdjax.training import run

GOOD, BAD = ("fine", "warm", "wise"), ("dull", "flat", "cold")


@pytest.fixture(autouse=True)
def prepared(tmp_path, monkeypatch):
    monkeypatch.setenv("KDJAX_DATA_DIR", str(tmp_path / "prepared"))


def sentences(path):
    """A file in which one word of each sentence is its label's."""
    rng = np.random.default_rng(0)
    with gzip.open(path, "wt") as file:
        for split, count in (("train", 300), ("dev", 60), ("test", 60)):
            for _ in range(count):
                label = int(rng.integers(2))
                words = ["a", "film", "that", "is", str(rng.choice((BAD, GOOD)[label]))]
                words += ["indeed"] * int(rng.integers(3))
                row = {"split": split, "sentence": " ".join(words), "label": label}
                file.write(json.dumps(row) + "\n")
    return path


@pytest.fixture
def config(tmp_path):
    config = sst2.get_config()
    config.data.name = f"jsonl:{sentences(tmp_path / 'sst2.jsonl.gz')}"
    config.data.rows = (200, 0, 0)
    config.data.length = 12
    for role, steps in (("teacher", 60), ("student", 40)):
        config[role].network.update(width=16, num_layers=1, hidden=16, num_heads=2)
        config[role].training.update(steps=steps, batch_size=32, learning_rate=1e-2)
    config.teacher.network.dropout = 0.1
    return config


@pytest.mark.slow
def test_methods_of_classification_learn_from_labelled_text(config):
    task = tasks.task(config)
    assert (task.reads("student"), task.dataset.class_names) == (("tokens", "segments"), ("0", "1"))
    assert len(task.dataset.splits["train"]) == 200
    teacher = run(supervised.teacher(task))
    taught = task.with_teacher(teacher)
    assert taught.scores("teacher", teacher, None)["accuracy"] > 0.9
    module, chosen = tasks.method(config, config.method, "config.method")
    assert module is sinkd
    found = run(module.recipe(taught, chosen))
    assert taught.scores("student", found.last, None)["accuracy"] > 0.9


@pytest.mark.slow
def test_every_method_of_classification_reads_labelled_text(config):
    task = dataclasses.replace(tasks.task(config), cache_teacher=False)
    taught = task.with_teacher(run(supervised.teacher(task)))
    for module in (kd, supervised, plackett_luce, dual_head_kd):
        found = run(module.recipe(taught, module.Config()))
        assert taught.scores("student", found.last, None)["accuracy"] > 0.9, module.__name__


def test_a_user_without_the_file_is_told_what_it_is_in_one_line(config):
    for change, message in (
        ({"name": "jsonl:nowhere.jsonl"}, "there is no file nowhere.jsonl; no installed package"),
        ({"name": ""}, "config.data.name must be a text with labels"),
        ({"rows": (1, 2)}, "must be three numbers"),
        ({"vocabulary": 2}, "vocabulary must be at least 3, got 2"),
        ({"length": 4}, "drop"),
    ):
        with config.unlocked():
            changed = config.copy_and_resolve_references()
            changed.data.drop = False
            changed.data.update(change)
        with pytest.raises(ValueError, match=message) as found:
            tasks.task(changed)
        assert "\n" not in str(found.value)


def test_networks_that_read_no_tokens_are_refused(config):
    config.teacher.network.name = "mlp"
    with pytest.raises(ConfigError, match="mlp has no option"):
        tasks.task(config)


def test_words_are_counted_in_lower_case_and_the_others_are_one():
    tokenizer = train_word_tokenizer(["The film, the FILM!", "the end"], 4)
    assert tokenizer.encode("THE film ends") == [2, 3, 1]
    assert (tokenizer.end, tokenizer.vocabulary) == (0, 4)


def test_the_comparison_measures_every_arm_alike():
    config = compare_sinkd.get_config()
    names = set(config.arms)
    assert names >= {"supervised", "kl", "reverse_kl", "jsd", "sinkd-paper", "shuffled"}
    for name, fields in config.arms.items():
        module, chosen = tasks.method(config, fields, f"config.arms.{name}")
        assert chosen.temperature == 2, (module, name)
