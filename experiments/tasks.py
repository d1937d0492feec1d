"""From a config to its task, whatever kind that is: its data tell which."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ml_collections

from experiments import configuration, language_configuration, retrieval_configuration
from kdjax import methods
from kdjax.methods.task import Task

MODULES = {"language": language_configuration, "retrieval": retrieval_configuration}


def kind(config: ml_collections.ConfigDict) -> str:
    """What methods know its task by: a text has a tokenizer, images may have captions."""
    if "tokenizer" in config.data:
        return "language"
    return "retrieval" if "captions" in config.data else "classification"


def dataset(config: ml_collections.ConfigDict) -> Any:
    """What `task` reads again and again: the data set, and the tokenizer of a text."""
    module = MODULES.get(kind(config))
    return configuration.dataset(config.data) if module is None else module.dataset(config)


def task(config: ml_collections.ConfigDict, found: Any = None) -> Task:
    """The task of a config; `found` is what `dataset` gave."""
    return MODULES.get(kind(config), configuration).task(config, found)


def method(config: ml_collections.ConfigDict, fields: Mapping[str, Any], where: str):
    """`(module, its Config)`; refuses a method for another kind of task."""
    module, chosen = configuration.method(fields, where)
    try:
        methods.check_task(fields["name"], kind(config))
    except ValueError as error:
        raise configuration.ConfigError(f"{where}: {error}") from error
    return module, chosen
