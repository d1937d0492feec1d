"""BOOT: a one-step generator that learns a diffusion model from noise alone, by bootstrapping.

Gu et al. 2023, "BOOT: Data-free Distillation of Denoising Diffusion Models with Bootstrapping",
ICML 2024 (arXiv:2306.05544).

The student g(eps, t) says the signal y_t = (z_t - sigma_t eps) / alpha_t of the model's trajectory
that begins with the noise eps. With s = max(t - delta, t_min) and t uniform:

    y = stop g(eps, t),   f = teacher(alpha_t y + sigma_t eps, t)
    L = w mean_d (g(eps, s) - stop target(y, f, t, s))^2
        + boundary_weight mean_d (g(eps, t_max) - teacher(eps, t_max))^2

`losses.boot_target_exact`, the signal of one step of DDIM, is the default target; the paper writes
Euler's and recommends Heun's. The paper gives no w_t, delta, boundary weight or range of times;
the defaults are what works on a mixture of Gaussians. A sample is g(eps, t_min), one call.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Generator
from typing import ClassVar

import jax
import jax.numpy as jnp

from kdjax import losses
from kdjax.losses.bootstrapping import BOOT_WEIGHTINGS
from kdjax.methods.generation_task import SCHEDULES, Diffusion, GenerationTask, signal
from kdjax.methods.task import Trained
from kdjax.networks import Network
from kdjax.training import Deferred, Evaluation, Program, Update, mean, traced
from kdjax.training.averages import follow
from kdjax.training.optimizers import Training

TASKS = ("generation",)
ROLES = ("average",)
TARGETS = ("exact", "euler", "heun")


@dataclasses.dataclass(frozen=True)
class Config:
    """How the student bootstraps.

    Attributes:
      target: "exact", "euler" or "heun"; the last asks the teacher twice.
      weighting: w, of `losses.boot_weight`.
      delta: t - s, in (0, 1).
      boundary_weight: >= 0.
      margin: t is drawn from t_min + margin to t_max, so that no step has a length of 0, where two
        of the weights are infinite; > 0.
      average: decay of a moving average of the student, which is then what is kept; 0: none.
      from_teacher: the student starts from the teacher's variables, and has its architecture.
    """

    target: str = "exact"
    weighting: str = "uniform"
    delta: float = 0.04
    boundary_weight: float = 1.0
    margin: float = 0.01
    average: float = 0.0
    from_teacher: bool = False

    traced: ClassVar[tuple[str, ...]] = ("delta", "boundary_weight")

    def __post_init__(self):
        if self.target not in TARGETS:
            raise ValueError(f"target must be one of {TARGETS}, got {self.target!r}")
        if self.weighting not in BOOT_WEIGHTINGS:
            raise ValueError(f"weighting must be one of {BOOT_WEIGHTINGS}, got {self.weighting!r}")
        if not 0 < self.delta < 1:
            raise ValueError(f"delta must be in (0, 1), got {self.delta}")
        if not self.boundary_weight >= 0:
            raise ValueError(f"boundary_weight must not be negative, got {self.boundary_weight}")
        if not 0 < self.margin < 1:
            raise ValueError(f"margin must be in (0, 1), got {self.margin}")
        if not 0 <= self.average < 1:
            raise ValueError(f"average must be in [0, 1), got {self.average}")


def target(config: Config, teacher: Diffusion, variables, y, noise, t, s, condition) -> jax.Array:
    """The target `[B, ...]` at s of signals y at t; one call of the teacher, or two."""
    schedule = SCHEDULES[teacher.schedule]

    def clean(noisy, times):
        return teacher.clean(variables, noisy, times, condition)

    if config.target == "heun":
        return losses.boot_target_heun(y, noise, t, s, teacher=clean, schedule=schedule)
    step = losses.boot_target_exact if config.target == "exact" else losses.boot_target_euler
    predicted = clean(losses.add_noise(y, noise, *schedule(t)), t)
    return step(y, predicted, t, s, schedule=schedule)


@functools.lru_cache(maxsize=64)
def program(student: Network, teacher: Diffusion, training: Training, config: Config) -> Program:
    """One update of the student; times, targets and weights are made outside every gradient."""

    def prepare(variables, batch, context):
        train, c = batch["train"], traced.bind(config, context.values)
        noise, condition, unit = teacher.draw(train)
        earliest = teacher.t_min + c.margin
        t = earliest + unit * (teacher.t_max - earliest)
        s = jnp.maximum(t - c.delta, teacher.t_min)
        y = signal(student, variables["student"], noise, t, condition).output
        first = jnp.full_like(t, teacher.t_max)
        train = {
            **train,
            "noise": noise,
            "time": s,
            "target": target(c, teacher, variables["teacher"], y, noise, t, s, condition),
            "weight": losses.boot_weight(
                t, s, weighting=c.weighting, schedule=SCHEDULES[teacher.schedule]
            ),
            "boundary": teacher.clean(variables["teacher"], noise, first, condition),
        }
        if condition is not None:
            train["condition"] = condition
        return {**batch, "train": train}, context.memory

    def objective(variables, batch, context):
        batch, c = batch["train"], traced.bind(config, context.values)
        keys, where = jax.random.split(context.rng), batch["where"]

        def generated(variables, times, rng):
            condition = batch.get("condition")
            return signal(student, variables, batch["noise"], times, condition, train=True, rng=rng)

        first = generated(variables["student"], teacher.t_max, keys[0])
        later = generated(first.variables, batch["time"], keys[1])
        bootstrap = losses.target_regression(later.output, batch["target"], weight=batch["weight"])
        boundary = losses.target_regression(first.output, batch["boundary"])
        return Evaluation(
            {
                "bootstrap": mean(bootstrap, where),
                "boundary": mean(boundary, where, c.boundary_weight),
            },
            {"student": later.variables},
        )

    update = Update(
        objective,
        ("student",),
        training.transformation,
        microbatches=training.microbatches,
        loss_scale=training.scaling,
        after=follow("student", "average", config.average) if config.average else None,
    )
    return Program(
        (update,),
        prepare,
        training.schedules,
        carries=("average",) if config.average else (),
        values=traced.names(training, config),
    )


def _copied(variables):
    return jax.tree.map(lambda x: jnp.array(x, copy=True), variables)


def start(task: GenerationTask, config: Config):
    """The student's initial variables: random ones, or a copy of the teacher's."""
    fresh = task.start("student")
    if not config.from_teacher:
        return fresh
    given = task.teacher()
    shapes = [
        jax.tree.map(lambda x: (jnp.shape(x), jnp.result_type(x)), tree)
        for tree in (jax.eval_shape(fresh.make), given)
    ]
    if shapes[0] != shapes[1]:
        raise ValueError(
            "from_teacher: the student must have the teacher's architecture, but their variables "
            "differ in names or shapes"
        )
    return Deferred(_copied, (given,))


def recipe(task: GenerationTask, config: Config) -> Generator:
    """One stage: the student, the teacher beside it, and nothing else."""
    diffusion, training = task.diffusion, task.training["student"]
    if not config.margin < diffusion.t_max - diffusion.t_min:
        raise ValueError(
            f"margin={config.margin} must be less than t_max - t_min = "
            f"{diffusion.t_max - diffusion.t_min:g}"
        )
    fixed = traced.static(training), traced.static(config)
    step = program(task.networks["student"], diffusion, *fixed)
    sampled = "average" if config.average else "student"
    extra = {"average": start(task, config)} if config.average else {}
    values = traced.values(training, config)
    outcome = yield task.stage("distill", step, start(task, config), extra, values, sampled)
    return Trained.of(outcome, sampled)
