"""The config for prompts and answers from JSON lines, on a tiny file."""

import json

import pytest

from configs.language import gsm8k
from experiments import tasks
from kdjax.data import load_text
from kdjax.methods import gkd, prompted
from kdjax.training import run


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.setenv("KDJAX_DATA_DIR", str(tmp_path / "prepared"))
    path = tmp_path / "sums.jsonl"
    rows = [
        {"question": f"What is {a} and {b}?", "answer": f"{a} + {b}\n#### {a + b}"}
        for a in range(10)
        for b in range(10)
    ]
    rows.append({"question": "What is " + 40 * "1" + "?", "answer": "too long"})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = gsm8k.get_config()
    config.data.name = f"jsonl:{path}"
    config.data.update(length=40, prompt_length=22, rows=(48, 0, 0))
    config.student.warm_up = 0
    for role in ("teacher", "student"):
        config[role].network.update(width=8, num_layers=1, num_heads=2, hidden=8)
        config[role].training.update(steps=2, batch_size=8)
    return config


def test_answers_begin_at_one_place_and_decode_to_those_of_the_file(config):
    task = tasks.task(config)
    assert prompted.prompt_length(task) == config.data.prompt_length
    assert sum(s.too_long for s in task.dataset.summaries.values()) == 1
    corpus = load_text(config.data.name, **config.data.options)
    answers = {d.text for d in corpus.splits["train"]}
    arrays = task.dataset.splits["train"].arrays()
    for tokens, where in zip(arrays["tokens"], arrays["completion"]):
        assert task.tokenizer.decode(tokens[where].tolist()) in answers
    module, chosen = tasks.method(config, config.method, "config.method")
    assert (module, chosen.on_policy) == (gkd, 0.5)


@pytest.mark.slow
def test_its_method_runs(config):
    task = tasks.task(config)
    module, chosen = tasks.method(config, config.method, "config.method")
    found = run(module.recipe(task, chosen))
    assert 1 < task.scores("student", found.last, None)["perplexity"] < 300


def test_the_default_names_a_file_that_the_user_has_to_bring(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"no file gsm8k\.jsonl\.gz; .*'question' and 'answer'"):
        tasks.task(gsm8k.get_config())
