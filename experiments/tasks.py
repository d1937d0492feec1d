"""From a config to its task, whatever kind that is: one on text has a tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any

import ml_collections

from experiments import (
    configuration,
    language_configuration,
    text_classification_configuration,
)
from kdjax import methods
from kdjax.methods.task import Task


def _reader(config: ml_collections.ConfigDict) -> ModuleType:
    """What reads the config: text with labels is to be classified, other text to be predicted."""
    if "tokenizer" not in config.data:
        return configuration
    if config.data.get("options", {}).get("label"):
        return text_classification_configuration
    return language_configuration


def dataset(config: ml_collections.ConfigDict) -> Any:
    """What `task` reads again and again: the data set, and the tokenizer of a text."""
    reader = _reader(config)
    return reader.dataset(config.data if reader is configuration else config)


def task(config: ml_collections.ConfigDict, found: Any = None) -> Task:
    """The task of a config; `found` is what `dataset` gave."""
    return _reader(config).task(config, found)


def method(config: ml_collections.ConfigDict, fields: Mapping[str, Any], where: str):
    """`(module, its Config)`; refuses a method for another kind of task."""
    module, chosen = configuration.method(fields, where)
    kind = "language" if _reader(config) is language_configuration else "classification"
    try:
        methods.check_task(fields["name"], kind)
    except ValueError as error:
        raise configuration.ConfigError(f"{where}: {error}") from error
    return module, chosen
