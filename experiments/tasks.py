"""From a config to its task, whatever kind that is: one on text has a tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ml_collections

from experiments import configuration, language_configuration
from kdjax import methods
from kdjax.methods.task import Task


def on_text(config: ml_collections.ConfigDict) -> bool:
    """Whether the config is of a language task."""
    return "tokenizer" in config.data


def dataset(config: ml_collections.ConfigDict) -> Any:
    """What `task` reads again and again: the data set, and the tokenizer of a text."""
    if on_text(config):
        return language_configuration.dataset(config)
    return configuration.dataset(config.data)


def task(config: ml_collections.ConfigDict, found: Any = None) -> Task:
    """The task of a config; `found` is what `dataset` gave."""
    return (language_configuration if on_text(config) else configuration).task(config, found)


def method(config: ml_collections.ConfigDict, fields: Mapping[str, Any], where: str):
    """`(module, its Config)`; refuses a method for another kind of task."""
    module, chosen = configuration.method(fields, where)
    try:
        methods.check_task(fields["name"], "language" if on_text(config) else "classification")
    except ValueError as error:
        raise configuration.ConfigError(f"{where}: {error}") from error
    return module, chosen
