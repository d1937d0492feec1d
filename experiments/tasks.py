"""From a config to its task, whatever kind that is: its data tell which."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import ml_collections

from experiments import (
    configuration,
    generation_configuration,
    language_configuration,
    retrieval_configuration,
    text_classification_configuration,
)
from kdjax import methods
from kdjax.methods.task import Task

KINDS = {
    generation_configuration: "generation",
    language_configuration: "language",
    retrieval_configuration: "retrieval",
}


def _reader(config: ml_collections.ConfigDict) -> ModuleType:
    """What reads the config: where examples have a shape and nothing else, they are generated;
    images may have captions; text with labels is to be classified, other text to be predicted."""
    if "shape" in config.data:
        return generation_configuration
    if "captions" in config.data:
        return retrieval_configuration
    if "tokenizer" not in config.data:
        return configuration
    if config.data.get("options", {}).get("label"):
        return text_classification_configuration
    return language_configuration


def kind(config: ml_collections.ConfigDict) -> str:
    """What methods know its task by."""
    return KINDS.get(_reader(config), "classification")


def dataset(config: ml_collections.ConfigDict) -> Any:
    """What `task` reads again and again: the data set, and the tokenizer of a text."""
    reader = _reader(config)
    return reader.dataset(config.data if reader is configuration else config)


def task(config: ml_collections.ConfigDict, found: Any = None) -> Task:
    """The task of a config; `found` is what `dataset` gave."""
    return _reader(config).task(config, found)


def members(
    config: ml_collections.ConfigDict, seeds: Sequence[int], reseed_data: bool = False
) -> list[Task]:
    """The task of each seed; with `reseed_data` that is the seed of its data too."""
    if not reseed_data:
        first = task(config)
        return [dataclasses.replace(first, seed=seed) for seed in seeds]
    if "seed" not in config.data:
        raise configuration.ConfigError(
            "config.reseed_data: these data have no seed; it would be config.data.seed"
        )
    found = []
    for seed in seeds:
        mine = config.copy_and_resolve_references()
        mine.seed = mine.data.seed = seed
        found.append(task(mine))
    return found


def check(module: ModuleType, chosen: Any, task: Task, where: str) -> None:
    """Refuses, before a teacher is trained, a method that this task's networks do not suit.

    What that means is said by the method's `check(task, config)`, where it has one.
    """
    try:
        getattr(module, "check", lambda task, config: None)(task, chosen)
    except ValueError as error:
        raise configuration.ConfigError(f"{where}: {error}") from error


def check_roles(task: Task, chosen: Mapping[str, tuple[ModuleType, Any]]) -> None:
    """Refuses methods whose networks are not there, and networks that no method needs.

    Args:
      task: with the networks of the config.
      chosen: where a method stands in the config -> its module, its config.
    """
    needed = {"teacher", "student"}
    for where, (module, config) in chosen.items():
        name = module.__name__.rpartition(".")[2]
        for role in methods.needs(module, config):
            needed.add(role)
            if role not in task.networks:
                raise configuration.ConfigError(
                    f"{where}: {name} needs a network of the role {role!r}: give config.{role}, as "
                    "of configuration.role_fields"
                )
    for role in task.networks:
        if role not in needed:
            hint = methods.nearest(role, needed)
            raise configuration.ConfigError(f"config.{role}: no method needs this role{hint}")


def method(config: ml_collections.ConfigDict, fields: Mapping[str, Any], where: str):
    """`(module, its Config)`; refuses a method for another kind of task."""
    module, chosen = configuration.method(fields, where)
    try:
        methods.check_task(fields["name"], kind(config))
    except ValueError as error:
        raise configuration.ConfigError(f"{where}: {error}") from error
    return module, chosen
