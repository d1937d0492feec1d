"""From a config to a task and a method: every field is checked before anything is computed."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import ml_collections
from jax.sharding import PartitionSpec

from kdjax import data, methods, networks
from kdjax.methods.task import NOTHING, Task
from kdjax.networks.precision import check_precision
from kdjax.networks.quantization import TYPES, quantizable
from kdjax.networks.rematerialization import check_remat
from kdjax.training import (
    Layout,
    Settings,
    load_variables,
    make_mesh,
)
from kdjax.training.loss_scale import LossScale
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
    "nonfinite",
    "nonfinite_limit",
    "mesh",
    "sharding",
    "backend",
)
ROLE = (
    "network",
    "training",
    "input",
    "precision",
    "remat",
    "quantize",
    "checkpoint",
    "cached",
)


# Of these, what a role has no use for; a role that is not here: the first.
LACKS = {"": ("cached",), "teacher": (), "student": ("cached", "checkpoint")}


class ConfigError(ValueError):
    """A config that cannot be run, said in one line."""


def role_fields(**fields: Any) -> dict[str, Any]:
    """A network of a config; `fields` are those of `ROLE`.

    Methods of more than two networks say which (`needs(config)` of their module); a config file has
    a role of that name: `config.second_teacher = configuration.role_fields(network=...,
    input=...)`, with `training` where the method trains it in a way of its own, and `checkpoint`
    where it is trained already.
    """
    return dict(network=dict(name="mlp"), precision="float32", remat="", input=("image",)) | fields


def defaults() -> ml_collections.ConfigDict:
    """What every config starts from; a config file changes values, and adds only roles here."""
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.data = dict(
        name="mnist5k",
        train_examples=0,
        train_imbalance=0.0,
        balanced_teacher=False,
        mean=(),
        std=(),
    )
    for role in ("teacher", "student"):
        config[role] = role_fields(training=dataclasses.asdict(Training()))
    config.teacher.checkpoint = ""
    config.teacher.cached = False
    config.teacher.quantize = ""
    config.method = dict(name="kd")
    config.validate_every = 100
    config.checkpoint_every = 200
    config.keep = 2
    config.log_every = 50
    config.nonfinite = "stop"
    config.nonfinite_limit = 10
    config.mesh = dict(data=-1, model=1, members_over_data=False)
    config.sharding = dict(teacher="replicated", student="replicated")
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


def roles(config: ml_collections.ConfigDict) -> tuple[str, ...]:
    """Teacher, student, and every other field that has a `network`."""
    others = (k for k, x in config.items() if isinstance(x, ml_collections.ConfigDict))
    return tuple(
        dict.fromkeys(("teacher", "student", *(k for k in others if "network" in config[k])))
    )


def computation(role: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Checks a role's `precision`, `remat` and `quantize`; what its network takes of them."""
    where, options = f"config.{role}", fields["network"]
    for name, ours in (("dtype", "precision"), ("remat", "remat")):
        if name in options:
            raise ConfigError(f"{where}.network.{name}: say it in {where}.{ours}")
    for name, check in (("precision", check_precision), ("remat", check_remat)):
        try:
            check(fields[name])
        except ValueError as error:
            raise ConfigError(f"{where}.{error}") from error
    quantize = fields.get("quantize", "")
    if quantize and role != "teacher":
        raise ConfigError(
            f"{where}.quantize={quantize!r}: the {role} is trained; only a frozen "
            "teacher's weights can be quantised"
        )
    if quantize not in ("", *TYPES):
        raise ConfigError(f"{where}.quantize must be one of {('', *TYPES)}, got {quantize!r}")
    if quantize and importlib.util.find_spec("qwix") is None:
        raise ConfigError(
            f"{where}.quantize={quantize!r} needs Qwix: pip install 'kdjax[quantization]'"
        )
    if not fields["remat"]:
        return {}
    if options["name"] == "mlp":
        raise ConfigError(f"{where}.remat={fields['remat']!r}: an mlp has no blocks")
    return {"remat": fields["remat"]}


def scaled(found: Training, fields: Mapping[str, Any]) -> Training:
    """The training of a role, its loss scaled where it computes in float16 and says nothing."""
    if fields["precision"] != "float16" or found.loss_scale:
        return found
    return dataclasses.replace(found, loss_scale=LossScale().initial)


def teacher_weights(config: ml_collections.ConfigDict) -> str:
    """What the teacher's matrices are kept in: its `quantize`, or else its `precision`."""
    kind = config.teacher.quantize or config.teacher.precision
    if config.teacher.quantize and config.sharding.get("teacher", "replicated") != "replicated":
        raise ConfigError(
            f"config.teacher.quantize={kind!r} cannot be used with partition rules of the teacher: "
            "a kernel's scales have another shape than the kernel"
        )
    return kind


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
    large as the last; with `balanced_teacher` what it was is kept as the split `balanced`.
    `padding` above zero puts so many zeros around every image.
    """
    fields = dict(plain(fields))
    for name in ("mean", "std"):
        fields.pop(name, None)
    examples = fields.pop("train_examples", 0)
    imbalance = fields.pop("train_imbalance", 0)
    padding = fields.pop("padding", 0)
    balanced = fields.pop("balanced_teacher", False)
    if balanced and not imbalance:
        raise ConfigError("config.data.balanced_teacher is for a train_imbalance above zero")
    found = data.load(fields.pop("name"), **fields)
    if padding:
        try:
            found = found.padded(padding)
        except ValueError as error:
            raise ConfigError(f"config.data.padding: {error}") from error
    if imbalance:
        try:
            train = found.splits["train"].long_tailed(imbalance, seed=0)
        except ValueError as error:
            raise ConfigError(f"config.data.train_imbalance: {error}") from error
        splits = {**found.splits, "train": train}
        if balanced:
            splits["balanced"] = found.splits["train"]
        found = dataclasses.replace(found, splits=splits)
    if examples:
        train = found.splits["train"]
        if not 0 < examples <= len(train):
            raise ConfigError(
                f"config.data.train_examples={examples}, but {found.name!r} has {len(train)}"
            )
        splits = {**found.splits, "train": train.subset(examples, seed=0)}
        found = dataclasses.replace(found, splits=splits)
    return found


def network(
    role: str,
    fields: Mapping[str, Any],
    size: int,
    of_data: Mapping[str, Any],
    changes: Mapping[str, Any] = NOTHING,
) -> networks.Network:
    """The network of a role's fields for `size` classes, some of its options changed."""
    options = {**fields["network"], **computation(role, fields)}
    try:
        options = networks.changed(options, changes)
        name = options.pop("name")
        made = networks.build(name, size, **options, **of_data)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"config.{role}.network: {error}") from error
    made = networks.in_precision(made, fields["precision"])
    return quantizable(made) if fields.get("quantize") else made


def actor(
    config: ml_collections.ConfigDict,
    role: str,
    size: int,
    known: Sequence[str] = ROLE,
    **of_data: Any,
) -> tuple[networks.Network, Training | None]:
    """The network of a role, for `size` classes, and how it is trained, where the role says so."""
    fields = plain(config[role])
    lacks = LACKS.get(role, LACKS[""])
    only(f"config.{role}", fields, [name for name in known if name not in lacks])
    missing = [name for name in role_fields() if name in known and name not in fields]
    if missing:
        raise ConfigError(
            f"config.{role} has no {missing[0]!r}; `configuration.role_fields` makes a whole one"
        )
    made = network(role, fields, size, of_data)
    if "training" not in fields:
        return made, None
    return made, scaled(training(f"config.{role}.training", fields["training"]), fields)


def task(
    config: ml_collections.ConfigDict,
    found: data.Dataset | None = None,
    **of_data: Any,
) -> Task:
    """The task of a config, its teacher given where the config names a checkpoint.

    `found` spares reading the data set again; `of_data` are the options of all networks that
    follow from the data.
    """
    only("config", config, (*FIELDS, *roles(config)))
    finite("config", config)
    found = found or dataset(config.data)
    nets, trainings, reads, variants = {}, {}, {}, {}
    for role in roles(config):
        nets[role], trained = actor(config, role, found.num_classes, **of_data)
        trainings |= {} if trained is None else {role: trained}
        variants[role] = functools.partial(
            network, role, plain(config[role]), found.num_classes, of_data
        )
        reads[role] = config[role].input
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
        teacher_weights=teacher_weights(config),
        learns_from={"teacher": "balanced"} if config.data.get("balanced_teacher") else {},
        variants=variants,
    )
    trained = [role for role in nets if config[role].get("checkpoint")]
    return dataclasses.replace(made, given={role: restored(config, made, role) for role in trained})


def restored(config: ml_collections.ConfigDict, task: Task, role: str = "teacher") -> Any:
    """A role's variables of its `checkpoint` in the config, read straight into their shards."""
    shapes = jax.eval_shape(lambda: task.variables(role))
    shardings = layout(config).role(role, shapes)
    return load_variables(pathlib.Path(config[role].checkpoint), shapes, shardings)


def layout(config: ml_collections.ConfigDict) -> Layout:
    """The mesh and the partition rules of a config."""
    only("config.mesh", config.mesh, ("data", "model", "members_over_data"))
    rules = {}
    for role, rule in plain(config.sharding).items():
        where = f"config.sharding.{role}"
        if isinstance(rule, str):
            if rule == "tensor_parallel" and config.mesh.model == 1:
                raise ConfigError(f"{where}={rule!r} cuts over `model`, but config.mesh.model=1")
            rules[role] = rule
            continue
        try:
            rules[role] = [(regex, PartitionSpec(*spec)) for regex, spec in rule]
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"{where} must be a rule set's name or pairs (regex, axes), got {rule!r}"
            ) from error
    try:
        mesh = make_mesh(config.mesh.data, config.mesh.model)
        return Layout(mesh, rules, config.mesh.get("members_over_data", False))
    except ValueError as error:
        raise ConfigError(f"config.mesh and config.sharding: {error}") from error


def check_layout(layout: Layout, task: Task) -> None:
    """Refuses, before anything is computed, batches and rules that do not fit the mesh."""
    for role, training in task.training.items():
        layout.check_batch(f"train of the {role}", training.batch_size)
    for role in task.networks:
        shapes = jax.eval_shape(lambda role=role: task.variables(role))
        rules = layout.rules.get(role, "replicated")
        if role == "teacher" and _partly_kept(task) and not isinstance(rules, str):
            raise ConfigError(
                "config.sharding.teacher must be a rule set's name where config.teacher.cached "
                "keeps a part of the teacher only"
            )
        try:
            layout.role(role, shapes)
        except ValueError as error:
            raise ConfigError(f"config.sharding.{role}: {error}") from error


def _partly_kept(task: Task) -> bool:
    return task.kind == "language" and task.cache_teacher  # its head alone


def settings(config: ml_collections.ConfigDict, **changes: Any) -> Settings:
    """How the stages of a config are run; a role may be cut that its methods add to its own."""
    chosen = config.get("arms") or {"method": config.method}
    names = [str(fields.get("name")) for fields in chosen.values()]
    added = [role for name in names for role in getattr(methods.get(name), "ROLES", ())]
    only("config.sharding", config.sharding, (*roles(config), *added))
    return Settings(
        backend=config.get("backend", "jit"),
        checkpoint_every=config.checkpoint_every,
        keep=config.keep,
        log_every=config.log_every,
        nonfinite=config.nonfinite,
        nonfinite_limit=config.nonfinite_limit,
        layout=layout(config),
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
