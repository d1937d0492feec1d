"""Students of one method that differ in traced hyperparameters, trained in one compiled step.

A method says in its Config's `traced` which fields are arguments of the step: temperatures and
weights of losses; a `Training` has its learning rate and weight decay. Runs that differ in nothing
else are members of one stage: one program, one compilation, and, where they see the same batches,
one forward of the teacher a step for all of them.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from types import ModuleType
from typing import Any

from kdjax.methods.task import Task
from kdjax.training import together, traced

Member = tuple[Task, Any]  # a task and a method's Config


def program_of(module: ModuleType, member: Member) -> tuple:
    """What a member's programs depend on, hashable: members of one sweep have it in common."""
    task, config = member
    training = tuple((r, traced.static(t)) for r, t in sorted(task.training.items()))
    return module.__name__, traced.static(config), training


def sweep(module: ModuleType, members: Mapping[str, Member]) -> Generator:
    """A recipe that trains one student a member together; returns `{name: result}`.

    A member computes what its recipe would alone, `prefixed` with its name, to float32 rounding.
    Several seeds: `together([sweep(module, members_of(seed)) for seed in seeds], seeds)`.

    Args:
      module: of the method.
      members: name -> task and config. The tasks are one task but for `training`; of a config or
        a training only fields that its class names in `traced` may differ.

    Raises:
      ValueError: members that differ in another field, which is named, or in their seeds.

    >>> from kdjax.methods import kd
    >>> from kdjax.training import traced
    >>> traced.differences({"hot": kd.Config(temperature=8.0), "dkd": kd.Config(loss="dkd")})
    ["loss ('kd' of 'hot', 'dkd' of 'dkd')"]
    """
    if not members:
        raise ValueError("members must hold at least one task and config, got none")
    tasks = {name: task for name, (task, _) in members.items()}
    different = traced.differences({name: config for name, (_, config) in members.items()})
    for role in next(iter(tasks.values())).training:
        found = traced.differences({name: task.training[role] for name, task in tasks.items()})
        different += [f"training.{role}.{what}" for what in found]
    seeds = {name: task.seed for name, task in tasks.items()}
    if len(set(seeds.values())) > 1:
        different.append(f"seed ({seeds})")
    if different:
        raise ValueError(
            f"members of a sweep may differ in traced fields only; these differ in {different[0]}"
        )
    recipes = [module.recipe(task, config) for task, config in members.values()]
    results = yield from together(recipes, tuple(seeds.values()), names=tuple(members))
    return dict(zip(members, results))
