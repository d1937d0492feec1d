"""Hyperparameters as arguments of the compiled step: configs that differ in them share a program.

A config names such fields in its class attribute `traced`. A recipe builds its program on
`static(config)`, which has no value there, so that the program is the same whatever the values
are; its stage brings `values(config)`; and the objective reads `bind(config, context.values)`. The
config itself is checked when it is made, as ever: what is traced was a valid number.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, TypeVar

import jax

Config = TypeVar("Config")


class _Traced:
    """Stands where a field has no value before the step runs; whoever computes with it fails."""

    def __repr__(self) -> str:
        return "TRACED"

    def __bool__(self) -> bool:
        raise TypeError("a traced field has no value here: read it from bind(config, values)")


TRACED = _Traced()


def _fields(config: Any) -> tuple[str, ...]:
    return getattr(config, "traced", ())


def _with(config: Config, fields: Mapping[str, Any]) -> Config:
    # Not `dataclasses.replace`: neither tracers nor TRACED can pass the checks of a config.
    new = copy.copy(config)
    for name, value in fields.items():
        object.__setattr__(new, name, value)
    return new


def static(config: Config) -> Config:
    """The config without the values of its traced fields: what a program may depend on.

    >>> from kdjax.training.optimizers import Training
    >>> static(Training(learning_rate=0.1)) == static(Training(learning_rate=0.2))
    True
    """
    return _with(config, dict.fromkeys(_fields(config), TRACED))


def names(*configs: Any) -> tuple[str, ...]:
    """The fields of static configs that a stage must bring: what a `Program` takes as `values`."""
    return tuple(n for c in configs for n in _fields(c) if getattr(c, n) is TRACED)


def values(*configs: Any) -> dict[str, float]:
    """The values of the traced fields: what a `Stage` takes as `values`.

    >>> from kdjax.training.optimizers import Training
    >>> values(Training(learning_rate=0.1, weight_decay=0.0))
    {'learning_rate': 0.1, 'weight_decay': 0.0}
    """
    found: dict[str, float] = {}
    for config in configs:
        for name in _fields(config):
            if name in found:
                raise ValueError(f"two configs of a program have a traced field {name!r}")
            found[name] = float(getattr(config, name))
    return found


def bind(config: Config, values: Mapping[str, jax.Array]) -> Config:
    """The config with its traced fields read from `context.values`; others stay as they are.

    Raises:
      ValueError: `values` lacks one of them.
    """
    missing = [name for name in names(config) if name not in values]
    if missing:
        raise ValueError(
            f"{missing[0]!r} of {type(config).__name__} is traced, but the values are only "
            f"{sorted(values)}: name it in Program.values and bring it in Stage.values"
        )
    return _with(config, {name: values[name] for name in names(config)})


def factor(field: Any) -> Any:
    """What a schedule multiplies with: the field, or 1 where it is traced.

    The engine multiplies a schedule with the stage's value of the same name.
    """
    return 1.0 if field is TRACED else field


def differences(configs: Mapping[str, Any]) -> list[str]:
    """The fields, not traced, in which configs of one class differ: such have two programs.

    >>> from kdjax.training.optimizers import Training
    >>> differences({"a": Training(), "b": Training(momentum=0.8)})
    ["momentum (0.9 of 'a', 0.8 of 'b')"]
    """
    (first, one), *others = configs.items()
    found = []
    for name, other in others:
        if type(one) is not type(other):
            a, b = (f"{type(x).__module__}.{type(x).__name__}" for x in (one, other))
            return [f"class ({a} of {first!r}, {b} of {name!r})"]
        a, b = vars(static(one)), vars(static(other))
        found += [
            f"{field} ({a[field]!r} of {first!r}, {b[field]!r} of {name!r})"
            for field in a
            if a[field] != b[field]
        ]
    return found
