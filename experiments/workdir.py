"""A work directory belongs to one config: it is written down there, and another one is refused."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from experiments.configuration import ConfigError, flatten, plain
from kdjax.training.checkpoint import write_text

# Fields that do not change what is computed: a workdir may go on under other values of these. So
# that a run which a loss has stopped can go on under another policy, that is one of them.
# The back-end changes only what is random, or a batch statistic, a device.
FREE = (
    "backend",
    "checkpoint_every",
    "keep",
    "log_every",
    "mesh",
    "nonfinite",
    "nonfinite_limit",
    "sharding",
)


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The fields in which two configs differ, as `name: old -> new`."""
    a, b = flatten(old), flatten(new)
    # Where a stage goes back to, and with that what it computes, lies at multiples of this.
    bound = ("checkpoint_every",) if b.get("nonfinite") == "rollback" else ()
    return [
        f"{name}: {a.get(name, 'absent')!r} -> {b.get(name, 'absent')!r}"
        for name in sorted(set(a) | set(b))
        if a.get(name) != b.get(name) and (name.partition(".")[0] not in FREE or name in bound)
    ]


def claim(workdir: pathlib.Path, config: Mapping[str, Any]) -> None:
    """Makes `workdir` this config's, or refuses one that belongs to another config."""
    path = workdir / "config.json"
    new = json.loads(json.dumps(plain(config)))
    if path.exists():
        try:
            old = json.loads(path.read_text())
        except ValueError as error:
            raise ConfigError(f"{path} is damaged: {error}") from error
        changed = differences(old, new)
        if changed:
            raise ConfigError(
                f"{workdir} belongs to a run with another config ({'; '.join(changed)}): "
                "use another --workdir"
            )
        return
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(new, indent=2) + "\n")
    except OSError as error:
        raise ConfigError(f"--workdir {workdir} cannot be written: {error}") from error
