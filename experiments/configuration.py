"""From a config to a task and a method: every field is checked before anything is computed."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import ml_collections
from absl import app, flags, logging
from jax.sharding import PartitionSpec

from kdjax import data, methods, networks
from kdjax.methods.task import Task
from kdjax.training import (
    CheckpointError,
    Layout,
    NonFiniteLoss,
    Settings,
    load_variables,
    make_mesh,
)
from kdjax.training.checkpoint import write_text
from kdjax.training.optimizers import Training

FIELDS = (
    "data",
    "teacher",
    "student",
    "method",
    "seed",
    "validate_every",
    "checkpoint_every",
    "keep",
    "log_every",
    "mesh",
    "sharding",
    "backend",
)
# Fields that do not change what is computed: a workdir may go on under other values of these. The
# back-end changes only what is random, or a batch statistic, a device.
FREE = ("checkpoint_every", "keep", "log_every", "backend")


class ConfigError(ValueError):
    """A config that cannot be run, said in one line."""


def defaults() -> ml_collections.ConfigDict:
    """What every config starts from; a config file changes values, and adds none at this level."""
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.data = dict(name="mnist5k", train_examples=0, train_imbalance=0.0, mean=(), std=())
    for role in ("teacher", "student"):
        config[role] = dict(
            network=dict(name="mlp"),
            training=dataclasses.asdict(Training()),
            input=("image",),
        )
    config.teacher.checkpoint = ""
    config.teacher.cached = False
    config.method = dict(name="kd")
    config.validate_every = 100
    config.checkpoint_every = 200
    config.keep = 2
    config.log_every = 50
    config.mesh = dict(data=-1, model=1, members_over_data=False)
    config.sharding = dict()
    config.backend = "jit"
    return config


def only(where: str, given: Mapping[str, Any], known: Sequence[str]) -> None:
    """Refuses a field that is not known, with the nearest one that is."""
    for name in given:
        if name not in known:
            raise ConfigError(f"{where} has no field {name!r}{methods.nearest(name, known)}")


def finite(where: str, fields: Mapping[str, Any]) -> None:
    """Refuses an infinite number, or none, anywhere below: it would be found out hours later."""
    for name, value in flatten(fields).items():
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, float) and not math.isfinite(number):
                raise ConfigError(f"{where}.{name} must be finite, got {number}")


def plain(value: Any) -> Any:
    """A config as plain, hashable-inside Python: dicts, tuples, numbers, strings."""
    if isinstance(value, ml_collections.ConfigDict | Mapping):
        return {str(name): plain(x) for name, x in value.items()}
    if isinstance(value, list | tuple):
        return tuple(plain(x) for x in value)
    return value


def training(where: str, fields: Mapping[str, Any]) -> Training:
    """How a role is trained, of a config's `training`."""
    only(where, fields, [field.name for field in dataclasses.fields(Training)])
    try:
        augment = data.augmentations(fields.get("augment", ()))
        return Training(**{**fields, "augment": augment})
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{where}: {error}") from error


def method(fields: Mapping[str, Any], where: str = "config.method"):
    """`(module, its Config)` of a config's `method`."""
    fields = dict(plain(fields))
    finite(where, fields)
    name = fields.pop("name", None)
    try:
        return methods.get(str(name)), methods.configure(str(name), **fields)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{where}: {error}") from error


def dataset(fields: Mapping[str, Any]) -> data.Dataset:
    """The data set of a config's `data`, with its training split cut to `train_examples`.

    `train_imbalance` above zero makes it long-tailed first, the first class that many times as
    large as the last.
    """
    fields = dict(plain(fields))
    for name in ("mean", "std"):
        fields.pop(name, None)
    examples = fields.pop("train_examples", 0)
    imbalance = fields.pop("train_imbalance", 0)
    found = data.load(fields.pop("name"), **fields)
    if imbalance:
        try:
            train = found.splits["train"].long_tailed(imbalance, seed=0)
        except ValueError as error:
            raise ConfigError(f"config.data.train_imbalance: {error}") from error
        found = dataclasses.replace(found, splits={**found.splits, "train": train})
    if examples:
        train = found.splits["train"]
        if not 0 < examples <= len(train):
            raise ConfigError(
                f"config.data.train_examples={examples}, but {found.name!r} has {len(train)}"
            )
        splits = {**found.splits, "train": train.subset(examples, seed=0)}
        found = dataclasses.replace(found, splits=splits)
    return found


def task(config: ml_collections.ConfigDict, found: data.Dataset | None = None) -> Task:
    """The task of a config, its teacher given where the config names a checkpoint.

    `found` spares reading the data set again.
    """
    only("config", config, FIELDS)
    finite("config", config)
    found = found or dataset(config.data)
    nets, trainings, reads = {}, {}, {}
    for role in ("teacher", "student"):
        fields = plain(config[role])
        only(f"config.{role}", fields, ("network", "training", "input", "checkpoint", "cached"))
        reads[role] = (fields["input"],) if isinstance(fields["input"], str) else fields["input"]
        options = dict(fields["network"])
        name = options.pop("name")
        try:
            nets[role] = networks.build(name, num_classes=found.num_classes, **options)
        except (ValueError, TypeError) as error:
            raise ConfigError(f"config.{role}.network: {error}") from error
        trainings[role] = training(f"config.{role}.training", fields["training"])
    made = Task(
        found,
        nets,
        trainings,
        seed=config.seed,
        validate_every=config.validate_every,
        mean=tuple(config.data.get("mean", ())) or None,
        std=tuple(config.data.get("std", ())) or None,
        cache_teacher=config.teacher.cached,
        input=reads,
    )
    if not config.teacher.checkpoint:
        return made
    shapes = jax.eval_shape(lambda: made.variables("teacher"))
    return made.with_teacher(load_variables(pathlib.Path(config.teacher.checkpoint), shapes))


def settings(config: ml_collections.ConfigDict, **changes: Any) -> Settings:
    """How the stages of a config are run."""
    only("config.mesh", config.mesh, ("data", "model", "members_over_data"))
    rules = {
        role: [(regex, PartitionSpec(*spec)) for regex, spec in plain(rule)]
        for role, rule in config.sharding.items()
    }
    return Settings(
        backend=config.get("backend", "jit"),
        checkpoint_every=config.checkpoint_every,
        keep=config.keep,
        log_every=config.log_every,
        layout=Layout(
            make_mesh(config.mesh.data, config.mesh.model),
            rules,
            config.mesh.get("members_over_data", False),
        ),
        **changes,
    )


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` as `{"a.b": 1}`."""
    out: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping | ml_collections.ConfigDict):
            out.update(flatten(value, f"{prefix}{name}."))
        else:
            out[f"{prefix}{name}"] = list(value) if isinstance(value, list | tuple) else value
    return out


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The fields in which two configs differ, as `name: old -> new`."""
    a, b = flatten(old), flatten(new)
    return [
        f"{name}: {a.get(name, 'absent')!r} -> {b.get(name, 'absent')!r}"
        for name in sorted(set(a) | set(b))
        if a.get(name) != b.get(name) and name not in FREE
    ]


def claim(workdir: pathlib.Path, config: Mapping[str, Any]) -> None:
    """Makes `workdir` this config's, or refuses one that belongs to another config."""
    path = workdir / "config.json"
    new = json.loads(json.dumps(plain(config)))
    if path.exists():
        changed = differences(json.loads(path.read_text()), new)
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


def launch(main: Callable[[Sequence[str]], Any]) -> None:
    """`app.run` in which a mistake of the user's is one line on stderr, and exit status 2."""

    def parse(argv: list[str]) -> list[str]:
        try:
            rest = flags.FLAGS(argv)
        except (AttributeError, KeyError) as error:
            text = str(error.args[0]).encode().decode("unicode_escape") if error.args else ""
            _fail(" ".join(text.replace("'\"", "").split()).strip("'\" "))
        except flags.Error as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            _fail(" ".join(dict.fromkeys((lines[0], lines[-1]))))
        if len(rest) > 1:
            _fail(f"unexpected argument {rest[1]!r}")
        return rest

    def run(argv: Sequence[str]) -> Any:
        logging.set_verbosity(logging.WARNING)
        try:
            return main(argv)
        except (
            ValueError,
            OSError,
            ImportError,
            NonFiniteLoss,
            CheckpointError,
        ) as error:
            if os.environ.get("KDJAX_TRACEBACK"):
                raise
            _fail(" ".join(str(error).split()))

    app.run(run, flags_parser=parse)


def _fail(line: str) -> None:
    print(f"error: {line}", file=sys.stderr)
    raise SystemExit(2)
