"""A generation task: a diffusion model, and a network that is to say in one call where it ends.

There is no data. A trajectory of the model begins with noise eps at `t_max` and ends at `t_min`;
the student maps (eps, t) to the signal y_t = (z_t - sigma_t eps) / alpha_t of the trajectory, which
at `t_min` is the sample. What is measured is how far its samples are from the model's own.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kdjax import losses
from kdjax.data import Dataset, Split, example_keys, numbered
from kdjax.methods.task import Task
from kdjax.networks import Network
from kdjax.training import Program, Stage, Term, Validation, gather, mean

PyTree = Any
SCHEDULES = {
    "cosine": losses.cosine_schedule,
    "linear": losses.linear_schedule,
    "flow": losses.flow_schedule,
}
PREDICTIONS = {
    "clean": lambda noisy, prediction, alpha, sigma: prediction,
    "noise": losses.clean_from_noise,
    "velocity": losses.clean_from_velocity,
    "flow": losses.clean_from_flow,
}
HELD_OUT = 2**31  # seeds of held-out noise begin here; those of training lie below
FEW = (2, 4, 8)  # steps of DDIM whose errors are reported beside the student's


class Draws(NamedTuple):
    """What each example of a numbered batch is made of.

    Attributes:
      noise: `[B, ...]`, standard normal.
      condition: int32 `[B]`, uniform; None where there are no conditions.
      unit: `[B]`, uniform in [0, 1): of the method's times.
    """

    noise: jax.Array
    condition: jax.Array | None
    unit: jax.Array


@dataclasses.dataclass(frozen=True)
class Diffusion:
    """A diffusion model: a network, what it predicts, on which schedule, and its guidance.

    Attributes:
      network: `(noisy [B, ...], times [B]) -> [B, ...]`, and a condition int32 `[B]` in third place
        where there are conditions.
      shape: of an example.
      schedule: "cosine", "linear" or "flow".
      prediction: what the network predicts: "clean" (the data), "noise", "velocity" or "flow" (the
        flow's velocity). It is converted to the data.
      t_min, t_max: where trajectories end and begin: 0 < t_min < t_max, with some signal at t_max.
      conditions: how many there are, 0 to conditions - 1; the number `conditions` stands for none.
      guidance: w of f = f(none) + w (f(condition) - f(none)); 1: the condition alone.
    """

    network: Network
    shape: tuple[int, ...]
    schedule: str = "cosine"
    prediction: str = "clean"
    t_min: float = 0.02
    t_max: float = 0.98
    conditions: int = 0
    guidance: float = 1.0

    def __post_init__(self):
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule must be one of {list(SCHEDULES)}, got {self.schedule!r}")
        if self.prediction not in PREDICTIONS:
            raise ValueError(
                f"prediction must be one of {list(PREDICTIONS)}, got {self.prediction!r}"
            )
        if not 0 < self.t_min < self.t_max <= 1:
            raise ValueError(
                f"t_min={self.t_min} and t_max={self.t_max} must be 0 < t_min < t_max <= 1: at 0 "
                "there is no noise"
            )
        with jax.ensure_compile_time_eval():
            alpha = float(self.levels(self.t_max)[0])
        if not alpha > 0:
            raise ValueError(f"t_max={self.t_max}: no signal is left there, it must be less")
        if self.conditions < 0:
            raise ValueError(f"conditions must not be negative, got {self.conditions}")
        if self.guidance != 1 and not self.conditions:
            raise ValueError(f"guidance={self.guidance} needs conditions, and there are none")

    def levels(self, times: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(alpha, sigma) of times."""
        return SCHEDULES[self.schedule](times)

    def clean(
        self,
        variables: PyTree,
        noisy: jax.Array,
        times: jax.Array,
        condition: jax.Array | None = None,
    ) -> jax.Array:
        """The guided prediction of the data, `[B, ...]`, of noisy `[B, ...]` at times `[B]`."""

        def predict(*condition):
            found = self.network.apply(variables, noisy, times, *condition).output
            return PREDICTIONS[self.prediction](noisy, found, *self.levels(times))

        if condition is None:
            return predict()
        if self.guidance == 1:
            return predict(condition)
        none = jnp.full_like(condition, self.conditions)
        return losses.guided(predict(none), predict(condition), scale=self.guidance)

    def sample(
        self,
        variables: PyTree,
        noise: jax.Array,
        condition: jax.Array | None = None,
        *,
        steps: int,
    ) -> jax.Array:
        """The signal `[B, ...]` at `t_min` after `steps` steps of DDIM, evenly spaced in time."""
        end = losses.ddim_sample(
            noise,
            jnp.linspace(self.t_max, self.t_min, steps + 1),
            denoiser=lambda noisy, times: self.clean(variables, noisy, times, condition),
            schedule=SCHEDULES[self.schedule],
        )
        return losses.clean_from_noise(end, noise, *self.levels(self.t_min))

    def draw(self, batch: Mapping[str, jax.Array]) -> Draws:
        """Noise, conditions and a uniform number for the examples of a numbered batch."""
        noise, condition, unit = jax.vmap(functools.partial(jax.random.split, num=3))(
            example_keys(batch)
        ).T
        return Draws(
            jax.vmap(lambda key: jax.random.normal(key, self.shape))(noise),
            jax.vmap(lambda key: jax.random.randint(key, (), 0, self.conditions))(condition)
            if self.conditions
            else None,
            jax.vmap(jax.random.uniform)(unit),
        )


def signal(
    network: Network,
    variables: PyTree,
    noise: jax.Array,
    times: jax.Array | float,
    condition: jax.Array | None = None,
    **options,
):
    """What a student's `apply` makes of noise, times and conditions, where there are any."""
    times = jnp.broadcast_to(jnp.asarray(times, jnp.float32), noise.shape[:1])
    conditions = () if condition is None else (condition,)
    return network.apply(variables, noise, times, *conditions, **options)


def held_out(name: str, validation: int, test: int) -> Dataset:
    """Noises to select and to report by, as the numbers of `kdjax.data.numbered`; no training data.

    >>> held_out("noise", 4, 8).splits["test"].fields
    {'seed': (), 'step': (), 'row': ()}
    """
    splits = {}
    for i, (split, count) in enumerate({"validation": validation, "test": test}.items()):
        if count < 1:
            raise ValueError(f"{split} must have at least one noise, got {count}")
        rows = np.arange(count, dtype=np.uint32)
        seed = np.full(count, HELD_OUT + i, np.uint32)
        fields = {"seed": seed, "step": np.zeros_like(rows), "row": rows}
        splits[split] = Split.of(fields, f"{name}/{split}")
    return Dataset(name, splits, ())


class Reference(NamedTuple):
    """What the samples of the test noises are compared with.

    Attributes:
      ends: `[N, ...]`, of the teacher's trajectories of `reference_steps` steps.
      errors: steps -> the teacher's own error with so many.
    """

    ends: np.ndarray
    errors: Mapping[int, float]


@dataclasses.dataclass(frozen=True)
class GenerationTask(Task):
    """A diffusion model and a one-step generator; what is not told here is as for `Task`.

    Attributes:
      dataset: of `held_out`; the noise of training is drawn anew in every step.
      networks: the student, and `diffusion`'s network as the teacher.
      diffusion: the model that is distilled.
      reference_steps: of DDIM, for the trajectories that samples are compared with; more than 8.
    """

    diffusion: Diffusion | None = None
    reference_steps: int = 100

    kind: ClassVar[str] = "generation"
    baseline: ClassVar[str] = "trajectory_regression"
    alone: ClassVar[str] = "student of trajectories"
    score: ClassVar[str] = "negative_trajectory_error"
    shown: ClassVar[tuple[str, ...]] = ("trajectory_error", "error_over_ddim_4")

    def __post_init__(self):
        if self.diffusion is None:
            raise ValueError("diffusion must be the model that is to be distilled, got None")
        if "student" not in self.networks:
            raise ValueError(f"networks must have a student, there are {sorted(self.networks)}")
        if self.reference_steps <= max(FEW):
            raise ValueError(
                f"reference_steps must be more than {max(FEW)}, got {self.reference_steps}"
            )
        if self.cache_teacher:
            raise ValueError("cache_teacher keeps outputs on data, and here are none")
        nets = {**self.networks, "teacher": self.diffusion.network}
        object.__setattr__(self, "networks", nets)
        super().__post_init__()

    def check_batch_sizes(self) -> None:
        """Any will do: there are no data to run out of."""

    def check_inputs(self) -> None:
        """All roles read noise, times and conditions."""

    def check_outputs(self) -> None:
        """Refuses networks whose output is not of the shape of what they read."""
        for role, network in self.networks.items():

            def outputs(rng, *x, network=network):
                return network.apply(network.init(rng, *x), *x).output

            found = jax.eval_shape(outputs, jax.random.key(0), *self.examples(role))
            if getattr(found, "shape", None) != (1, *self.diffusion.shape):
                raise ValueError(
                    f"the {role} must give examples of shape {self.diffusion.shape}, one for each "
                    f"that it reads, got {found}"
                )

    def examples(self, role: str) -> tuple[np.ndarray, ...]:
        """One noise, one time and, where there are conditions, one of them, for shapes."""
        found = np.zeros((1, *self.diffusion.shape), np.float32), np.zeros(1, np.float32)
        return (*found, np.zeros(1, np.int32)) if self.diffusion.conditions else found

    def stream(self, role: str, split: str = "train", name: str = "", fields=()):
        """The numbers of the noises that a role trains on: the same for every method of a seed."""
        if split != "train" or fields:
            raise ValueError("a generation task has a stream of training noises only")
        seed = np.random.SeedSequence([self.seed, len(name), *name.encode()])
        number = int(seed.generate_state(1)[0] >> 1)
        return _numbered(self.training[role].batch_size, number)

    def validation(self, role: str) -> Validation:
        """Scores a student by its distance from the teacher's trajectories, and keeps the best."""
        network = self.networks.get(role, self.networks["student"])
        return Validation(
            trajectory_metrics(role, network, self.diffusion, self.reference_steps),
            self.sequential("validation"),
            self.validate_every,
            score=self.score,
        )

    def teacher(self) -> PyTree:
        """The teacher's variables. It is trained elsewhere, on data that nobody needs here."""
        if "teacher" not in self.given:
            raise ValueError("there is no data to train a teacher on: give its weights")
        return self.given["teacher"]

    def stage(
        self,
        name: str,
        program: Program,
        start: PyTree,
        extra: Mapping[str, PyTree],
        values: Mapping[str, float],
        sampled: str = "student",
    ) -> Stage:
        """The stage that trains the student; `sampled` is the role that is validated."""
        return Stage(
            name,
            program,
            {"student": start, "teacher": self.kept("teacher", self.teacher()), **extra},
            {"train": self.stream("student")},
            self.training["student"].steps,
            validation=self.validation(sampled),
            values=values,
        )

    def predict(self, role: str, variables: PyTree, split: str = "test") -> np.ndarray:
        """One-step samples `[N, ...]` of every noise of a split; of the teacher, its f(eps, t_max).

        On several hosts each computes all of them; all must call it.
        """
        steps = 1 if role == "teacher" else 0
        return self._samples(role, variables, split, steps)

    def _samples(self, role: str, variables: PyTree, split: str, steps: int) -> np.ndarray:
        stream, parts = self.sequential(split), []
        network = self.networks[role]
        forward = _sampler(network, self.diffusion, steps, stream.assemble)
        variables = gather(self.kept(role, variables))
        for item in stream.items(whole=True):
            found, where = forward(variables, stream.table, item)
            parts.append(np.asarray(found)[np.asarray(where)])
        return np.concatenate(parts)

    def reference(self, teacher: PyTree) -> Reference:
        """What `scores` compares with: where the teacher's trajectories of the test noises end."""
        ends = self._samples("teacher", teacher, "test", self.reference_steps)
        errors = {
            steps: squared_distance(self._samples("teacher", teacher, "test", steps), ends)
            for steps in (1, *FEW)
        }
        return Reference(ends, errors)

    def scores(self, role: str, variables: PyTree, reference: Reference | None) -> dict:
        """Metric -> number on the test noises.

        `trajectory_error`: the mean squared Euclidean distance of a one-step sample from the end
        of the teacher's trajectory; `ddim_N_error`: that of the teacher's own N steps;
        `error_over_ddim_4`: the first over that of 4 steps, below 1 where one call is better.
        """
        if reference is None:
            if role != "teacher":
                raise ValueError(f"the {role} is compared with the teacher: give its `reference`")
            reference = self.reference(variables)
        error = squared_distance(self.predict(role, variables), reference.ends)
        return {
            "trajectory_error": error,
            "error_over_ddim_4": error / reference.errors[4],
            **{f"ddim_{steps}_error": x for steps, x in reference.errors.items()},
        }


def squared_distance(samples: np.ndarray, ends: np.ndarray) -> float:
    """The mean over the examples of the squared Euclidean distance.

    >>> squared_distance(np.array([[3.0, 4.0], [0.0, 0.0]]), np.zeros((2, 2)))
    12.5
    """
    difference = (np.asarray(samples, np.float64) - ends).reshape(len(ends), -1)
    return float(np.mean(np.sum(difference**2, axis=1)))


@functools.lru_cache(maxsize=64)
def _numbered(batch_size: int, seed: int):
    """One stream for all members that read the same noises."""
    return numbered(batch_size, seed=seed)


@functools.lru_cache(maxsize=64)
def _sampler(network: Network, diffusion: Diffusion, steps: int, assemble):
    """`(variables, table, item) -> (samples, where)`: of one call, or of steps of DDIM."""

    def sample(variables, table, item):
        batch = assemble(table, item)
        noise, condition, _ = diffusion.draw(batch)
        if steps:
            found = diffusion.sample(variables, noise, condition, steps=steps)
        else:
            found = signal(network, variables, noise, diffusion.t_min, condition).output
        return found, batch["where"]

    return jax.jit(sample)


@functools.lru_cache(maxsize=64)
def trajectory_metrics(role: str, network: Network, diffusion: Diffusion, steps: int):
    """`(variables, batch) -> {negative_trajectory_error}` of a role, for a `Validation`."""

    def evaluate(variables, batch) -> dict[str, Term]:
        noise, condition, _ = diffusion.draw(batch)
        found = signal(network, variables[role], noise, diffusion.t_min, condition).output
        ends = diffusion.sample(variables["teacher"], noise, condition, steps=steps)
        error = jnp.sum(jnp.reshape(found - ends, (len(noise), -1)) ** 2, axis=1)
        return {"negative_trajectory_error": mean(-error, batch["where"])}

    return evaluate
