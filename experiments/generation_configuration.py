"""From a config to a generation task: a diffusion model, a one-step generator, and no data."""

from __future__ import annotations

import math
import pathlib

import jax
import ml_collections

from experiments import configuration as base
from kdjax import data, networks
from kdjax.methods.generation_task import SCHEDULES, Diffusion, GenerationTask, held_out
from kdjax.training import load_variables

DATA = (
    "name",
    "shape",
    "conditions",
    "schedule",
    "t_min",
    "t_max",
    "reference_steps",
    "validation",
    "test",
)
ROLES = {
    "teacher": ("network", "prediction", "guidance", "checkpoint"),
    "student": ("network", "training"),
}


def defaults() -> ml_collections.ConfigDict:
    """What every config of a generation task starts from: four Gaussians in the plane.

    `data`: `shape` of an example, the number of `conditions`, `schedule`, `t_min` and `t_max` of
    the trajectories, `reference_steps` of those that samples are compared with, and how many noises
    select (`validation`) and report (`test`). The teacher is the `gaussian_mixture` of `means` and
    `std`, whose weights are known, or a network by name with a `checkpoint`; `prediction` is what
    it predicts.
    """
    config = base.defaults()
    config.data = dict(
        name="mixture",
        shape=(2,),
        conditions=0,
        schedule="cosine",
        t_min=0.02,
        t_max=0.98,
        reference_steps=100,
        validation=256,
        test=2000,
    )
    config.teacher = dict(
        network=dict(
            name="gaussian_mixture",
            means=((1.5, 0.0), (-1.5, 0.5), (0.0, 1.5), (0.3, -1.6)),
            std=0.25,
        ),
        prediction="clean",
        guidance=1.0,
        checkpoint="",
    )
    training = config.student.training
    config.student = dict(network=dict(name="denoising_mlp"), training=training)
    config.method = dict(name="boot")
    return config


def dataset(config: ml_collections.ConfigDict) -> data.Dataset:
    """The noises that select and report."""
    fields = base.plain(config.data)
    base.only("config.data", fields, DATA)
    try:
        return held_out(fields["name"], fields["validation"], fields["test"])
    except ValueError as error:
        raise base.ConfigError(f"config.data: {error}") from error


def _network(role: str, fields: dict, shape: tuple, schedule: str, conditions: int):
    options = dict(fields["network"])
    name = options.pop("name")
    try:
        if name == "gaussian_mixture":
            return networks.gaussian_mixture(**options, schedule=SCHEDULES[schedule])
        if conditions:
            options["conditions"] = conditions
        return networks.build(name, math.prod(shape), **options)
    except (ValueError, TypeError) as error:
        raise base.ConfigError(f"config.{role}.network: {error}") from error


def task(config: ml_collections.ConfigDict, found: data.Dataset | None = None) -> GenerationTask:
    """The generation task of a config."""
    base.only("config", config, base.FIELDS)
    base.finite("config", config)
    fields = base.plain(config.data)
    found = found or dataset(config)
    roles = {role: base.plain(config[role]) for role in ROLES}
    for role, known in ROLES.items():
        base.only(f"config.{role}", roles[role], known)
    base.only("config.data.schedule", {fields["schedule"]: None}, tuple(SCHEDULES))
    shape, conditions = fields["shape"], fields["conditions"]
    nets = {
        role: _network(role, x, shape, fields["schedule"], conditions) for role, x in roles.items()
    }
    teacher = roles["teacher"]
    try:
        diffusion = Diffusion(
            nets["teacher"],
            shape,
            fields["schedule"],
            teacher["prediction"],
            fields["t_min"],
            fields["t_max"],
            conditions,
            teacher["guidance"],
        )
        made = GenerationTask(
            found,
            {"student": nets["student"]},
            {"student": base.training("config.student.training", roles["student"]["training"])},
            seed=config.seed,
            validate_every=config.validate_every,
            diffusion=diffusion,
            reference_steps=fields["reference_steps"],
        )
    except (ValueError, TypeError) as error:
        raise base.ConfigError(f"config: {error}") from error
    known = teacher["network"]["name"] == "gaussian_mixture"
    if known == bool(teacher["checkpoint"]):
        raise base.ConfigError(
            "config.teacher.checkpoint: the weights of a gaussian_mixture are known, those of "
            f"another network are to be given; got {teacher['checkpoint']!r}"
        )
    if known:
        return made.with_teacher(made.variables("teacher"))
    shapes = jax.eval_shape(lambda: made.variables("teacher"))
    return made.with_teacher(load_variables(pathlib.Path(teacher["checkpoint"]), shapes))
