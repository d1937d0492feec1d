"""What OPSD refuses, before anything is trained."""

import dataclasses

import pytest
from opsd_toys import MODEL, PLAIN, alike, privileged, task

from kdjax.methods import opsd


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"loss": "kl"}, "loss must be one of"),
        ({"reduction": "sum"}, "reduction must be one of"),
        ({"teacher": "frozen"}, "teacher must be one of"),
        ({"beta": 1.1}, r"beta must be in \[0, 1\], got 1.1"),
        ({"ema_decay": -0.1}, r"ema_decay must be in \[0, 1\]"),
        ({"temperature": 0.0}, "temperature must be positive, got 0.0"),
        ({"sampling_temperature": -1.0}, "sampling_temperature must not be negative"),
        ({"sampling_top_p": 0.0}, r"sampling_top_p must be in \(0, 1\]"),
        ({"top_k": 1}, "top_k must be at least 2, or None, got 1"),
        ({"sampling_top_k": 0}, "sampling_top_k must be at least 1"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
        ({"lora_rank": -1}, "lora_rank must not be negative, got -1"),
        ({"lora_alpha": 0.0}, "alpha must be positive"),
        ({"lora_dropout": 1.0}, "dropout must be in"),
        ({"max_rationale_tokens": -1}, "max_rationale_tokens must not be negative"),
        ({"top_k": 4, "loss": "sampled_token"}, "top_k=4 is of the divergence"),
    ],
)
def test_bad_configs_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        opsd.Config(**fields)


def test_bad_tasks_are_refused():
    cases = [
        (task(lambda arrays: dict(arrays)), PLAIN, "has no 'teacher_prompt'"),
        (task(), dataclasses.replace(PLAIN, max_new_tokens=7), "more than the 6 tokens"),
        (
            task(alike),
            dataclasses.replace(PLAIN, max_rationale_tokens=2),
            "max_rationale_tokens=2 needs 'request'",
        ),
        (
            task(decoders={"student": dataclasses.replace(MODEL, max_length=13)}),
            PLAIN,
            "context of 14 tokens is longer than the model's max_length of 13",
        ),
        (task(cache_teacher=True), PLAIN, "cache_teacher"),
        (
            task(lambda arrays: _right_padded(privileged(arrays))),
            PLAIN,
            "does not end at the last of its 8 places",
        ),
    ]
    for bad, config, message in cases:
        with pytest.raises(ValueError, match=message):
            opsd.check(bad, config)


def _right_padded(arrays):
    return {**arrays, "teacher_prompt_where": arrays["teacher_prompt_where"][:, ::-1]}
