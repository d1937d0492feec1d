"""The settings of somebody's file: each is understood or refused, none is passed over."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

REQUIRED = object()


class Settings:
    """Reads settings one by one, and knows at the end which were not read.

    A setting that is None counts as absent.

    >>> settings = Settings({"width": 8, "dropout": 0.1}, "config.json")
    >>> settings.take("width", int)
    8
    >>> settings.finish()
    Traceback (most recent call last):
    ValueError: config.json has settings that are not supported: dropout = 0.1
    """

    def __init__(self, values: Mapping[str, Any], where: str):
        self.where = where
        self._values = {name: value for name, value in values.items() if value is not None}

    def take(self, name: str, kind: type, default: Any = REQUIRED) -> Any:
        """The value, of type `kind` (an int passes for a float), or the default."""
        if name not in self._values:
            if default is REQUIRED:
                raise ValueError(f"{self.where} has no setting {name}, which is needed")
            return default
        value = self._values.pop(name)
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
            raise ValueError(f"{self.where}: {name} must be of type {kind.__name__}, got {value!r}")
        return value

    def expect(self, name: str, *supported: Any) -> None:
        """The setting must be absent or one of the supported values."""
        if name in self._values:
            value = self._values.pop(name)
            if value not in supported:
                expected = " or ".join(repr(s) for s in supported)
                raise ValueError(
                    f"{self.where}: {name} = {value!r} is not supported, only {expected}"
                )

    def skip(self, names: Iterable[str], prefixes: tuple[str, ...] = ()) -> None:
        """Settings that do not change what the network computes."""
        names = set(names)
        for name in [
            n for n in self._values if n in names or (prefixes and n.startswith(prefixes))
        ]:
            del self._values[name]

    def finish(self) -> None:
        """ValueError if anything is left."""
        if self._values:
            shown = ", ".join(f"{name} = {str(v)[:60]}" for name, v in self._values.items())
            raise ValueError(f"{self.where} has settings that are not supported: {shown}")
