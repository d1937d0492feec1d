"""HARD: the student is taught where it disagrees with its teacher, on views that are learned.

HARD: Hard Augmentations for Robust Distillation, arXiv:2305.14890 (2023).

Distillation binds the student only where the training inputs lie. Here an augmentor makes of an
image x and noise a view x~ on which student s and teacher t differ; the student learns to agree
with the teacher there, and the augmentor is taken up again once it does:

    L_st = D(t(x~), s(x~))            L_tt = D(t(x), t(x~)),     D = T^2 KL at temperature T
    augmentor  min  -L_st + consistency_weight L_tt + regularization mean u^2
    student    min  label_weight CE(s(x), y) + distillation_weight (D(t(x), s(x)) + L_st)

L_tt keeps a view meaningful: the teacher's answer is to survive it. The augmentor's gradient goes
through the teacher, which is frozen as a role, to the view; the student's does not reach the
augmentor. Who acts is decided by `losses.phase_controller`, with a limit to the augmentor's steps.

The paper's body was not available to us, and its code has not been published: the two losses, their
direction and weights, the networks of the augmentor and the controller are ours, made after the
abstract. What moves a view has a gradient: crops, flips and JPEG are no families here.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Generator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from kdjax import losses
from kdjax.data.augmentation import denormalize, normalize
from kdjax.losses import checks
from kdjax.losses.phases import AUGMENTOR, STUDENT
from kdjax.methods import autoencoder, supervised
from kdjax.methods.task import Task, Trained, inputs
from kdjax.networks import (
    Augmentor,
    Network,
    affine_transform,
    from_linen,
    logits_of,
    mix_images,
)
from kdjax.networks.spatial_transforms import FAMILIES as SPATIAL
from kdjax.training import Deferred, Evaluation, Program, Update, divide, mean, traced
from kdjax.training.optimizers import Training

ROLES = ("augmentor", "autoencoder")
VIEWS = ("learned", "random", "adversarial", "none")
FAMILIES = (*SPATIAL, "mix", "latent")
RANGES = ("max_shift", "max_angle", "max_linear", "max_latent")
WEIGHTS = ("label_weight", "distillation_weight", "consistency_weight", "regularization")
POSITIVE = (
    "temperature",
    "augmentor_budget",
    "augmentor_learning_rate",
    "augmentor_clip",
    "radius",
)
NOT_NEGATIVE = (*RANGES, *WEIGHTS, "l_min")
SIZES = ("mask_size", "latent", "autoencoder_hidden", "hidden", "noise")
COUNTS = (*SIZES, "autoencoder_steps", "max_phase_steps", "attack_steps")


@dataclasses.dataclass(frozen=True)
class Config:
    """What views are, who makes them, and when.

    Attributes:
      views: "learned"; or, as baselines, "random" (the same family, parameters uniform in its
        range), "adversarial" (the pixels moved by projected gradient ascent on L_st) or "none".
      family: what an augmentor may do. "translation", "rigid" and "affine" move the image
        (`networks.affine_matrices`); "mix" mixes it with another of the batch by a mask; "latent"
        moves it in the latent space of a variational autoencoder, which is trained first.
      max_shift, max_angle, max_linear: ranges of the moves, in pixels, radians and entries of the
        linear part; >= 0. Keep the shift below the border around what is seen.
      mask_size: cells of the mask each way.
      max_latent: range of a move in each latent number, >= 0; these are about standard normal.
      latent, autoencoder_hidden, autoencoder_steps: of the autoencoder, trained with the student's
        batch size and Adam at 1e-3.
      hidden, noise: width of the augmentor; the numbers of its noise.
      temperature: T, > 0.
      label_weight, distillation_weight: >= 0, not both 0.
      consistency_weight, regularization: of L_tt and of mean u^2, >= 0. Without the latter the
        parameters may reach the ends of their range, where tanh has no slope: the metric `spread`
        is then 0, and the augmentor stays there until its budget is spent.
      l_min, l_max, decay, max_phase_steps: see `losses.phase_controller`.
      alternate: (student steps, augmentor steps) of a fixed rhythm in the controller's place.
      augmentor_budget: augmentor steps in all, for each step of the student; > 0. Once they are
        spent the student goes on alone.
      augmentor_learning_rate, augmentor_clip: of its Adam, > 0.
      radius, attack_steps: of the adversarial views: each pixel moves by at most `radius` and stays
        in [0, 1]; steps of 2.5 radius / attack_steps (Madry et al. 2018, arXiv:1706.06083).
    """

    views: str = "learned"
    family: str = "translation"
    max_shift: float = 3.0
    max_angle: float = 0.5
    max_linear: float = 0.3
    mask_size: int = 4
    max_latent: float = 2.0
    latent: int = 8
    autoencoder_hidden: int = 128
    autoencoder_steps: int = 1000
    hidden: int = 64
    noise: int = 4
    temperature: float = 1.0
    label_weight: float = 0.0
    distillation_weight: float = 1.0
    consistency_weight: float = 1.0
    regularization: float = 0.0
    l_min: float = 0.3
    l_max: float = 1.0
    decay: float = 0.8
    max_phase_steps: int = 60
    alternate: tuple[int, ...] = ()
    augmentor_budget: float = 4.0
    augmentor_learning_rate: float = 3e-3
    augmentor_clip: float = 1.0
    radius: float = 0.1
    attack_steps: int = 5

    def __post_init__(self):
        checks.choice("views", self.views, VIEWS)
        if self.family not in FAMILIES:
            raise ValueError(
                f"family must be one of {FAMILIES}, got {self.family!r}: an augmentation is only "
                "learned if it has a gradient"
            )
        for name in POSITIVE:
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name in NOT_NEGATIVE:
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        checks.count(1, **{name: getattr(self, name) for name in COUNTS})
        if not (self.label_weight or self.distillation_weight):
            raise ValueError("label_weight and distillation_weight are both 0: nothing is learned")
        if not self.l_min < self.l_max:
            raise ValueError(f"l_min={self.l_min} must be below l_max={self.l_max}")
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay must be in [0, 1), got {self.decay}")
        if self.alternate:
            if len(self.alternate) != 2:
                raise ValueError(
                    f"alternate must be (student steps, augmentor steps), got {self.alternate}"
                )
            student, augmentor = self.alternate
            checks.count(1, student_steps=student, augmentor_steps=augmentor)

    @property
    def num_parameters(self) -> int:
        """How many numbers say what a view is."""
        sizes = {**SPATIAL, "mix": self.mask_size**2, "latent": self.latent}
        return sizes[self.family]


class Alternation(NamedTuple):
    """The program's memory: the controller, who acts in this step, and the steps of each so far."""

    controller: losses.PhaseState
    acting: jax.Array
    student_steps: jax.Array
    augmentor_steps: jax.Array

    @staticmethod
    def start() -> Alternation:
        zero = jnp.int32(0)
        return Alternation(losses.PhaseState.start(), zero, zero, zero)


class Cast(NamedTuple):
    """The networks of a program, and how the task normalises images."""

    student: Network
    teacher: Network
    augmentor: Network | None = None
    encode: Network | None = None
    decode: Network | None = None
    field: str = "image"
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def look(self, role: str, variables: Any, pixels: jax.Array, **options: Any):
        """A network applied to images in [0, 1]: views are made before the normalisation."""
        network = self.student if role == "student" else self.teacher
        return network.apply(variables[role], normalize(pixels, self.mean, self.std), **options)


@functools.lru_cache(maxsize=64)
def augmentor(config: Config) -> Network:
    """The augmentor of a config. A mask starts near the image itself, all else at it."""
    start = 1.5 if config.family == "mix" else 0.0
    return from_linen(Augmentor(config.num_parameters, config.hidden, start))


def gap(p_logits: jax.Array, q_logits: jax.Array, temperature: float) -> jax.Array:
    """`T^2 KL(softmax(p / T), softmax(q / T))`, `[B]`; differentiated in both."""
    return temperature**2 * losses.kl_divergence(p_logits / temperature, q_logits / temperature)


def reads(batch: dict, config: Config) -> tuple[jax.Array, ...]:
    """What the augmentor sees of a prepared batch beside the noise."""
    fields = {"mix": ("pixels", "partner"), "latent": ("latent",)}
    return inputs(batch, fields.get(config.family, "pixels"))


def change(
    cast: Cast, config: Config, variables: Any, batch: dict, parameters: jax.Array
) -> jax.Array:
    """The views that parameters `[B, P]` in [-1, 1] make of a prepared batch: images in [0, 1]."""
    if config.family == "mix":
        return mix_images(*reads(batch, config), parameters, config.mask_size)
    if config.family == "latent":
        moved = batch["latent"] + config.max_latent * parameters
        return cast.decode.apply(variables["autoencoder"], moved).output
    return affine_transform(
        batch["pixels"],
        parameters,
        config.family,
        max_shift=config.max_shift,
        max_angle=config.max_angle,
        max_linear=config.max_linear,
    )


def augment(cast: Cast, config: Config, variables: Any, batch: dict, noise: jax.Array):
    """`(views, parameters)` of the augmentor on a prepared batch."""
    parameters = cast.augmentor.apply(variables["augmentor"], *reads(batch, config), noise).output
    return change(cast, config, variables, batch, parameters), parameters


def adversarial(
    cast: Cast, config: Config, variables: Any, pixels: jax.Array, start: jax.Array
) -> jax.Array:
    """Images near `pixels`, `[B, H, W, C]` in [0, 1], on which student and teacher differ most.

    Ascent on the sum over the batch of L_st in the pixels, from `pixels + radius start`: each step
    moves a pixel by the sign of its slope.
    """
    size = 2.5 * config.radius / config.attack_steps

    def total(x):
        taught, learned = (
            logits_of(cast.look(role, variables, x).output) for role in ("teacher", "student")
        )
        return jnp.sum(gap(taught, learned, config.temperature))

    def step(_, x):
        x = x + size * jnp.sign(jax.grad(total)(x))
        near = jnp.clip(x, pixels - config.radius, pixels + config.radius)
        return jnp.clip(near, 0, 1)

    first = jnp.clip(pixels + config.radius * start, 0, 1)
    return jax.lax.fori_loop(0, config.attack_steps, step, first)


def prepare_batch(cast: Cast, config: Config, variables: Any, batch: dict, rng: jax.Array) -> dict:
    """A batch with what views are made of, outside every gradient.

    What is random of an example depends on the step's key and the example's id, not on its place.
    """
    pixels = denormalize(batch[cast.field], cast.mean, cast.std)
    keys = jax.vmap(lambda i: jax.random.fold_in(rng, i))(batch["id"])
    new = {"pixels": pixels}
    if "teacher_logits" not in batch:
        new["teacher_logits"] = logits_of(cast.look("teacher", variables, pixels).output)
    if config.views == "none":
        return {**batch, **new}
    if config.family == "mix":
        new["partner"] = jnp.roll(pixels, 1, axis=0)
    if config.family == "latent":
        new["latent"], _ = cast.encode.apply(variables["autoencoder"], pixels).output
    if config.views == "learned":
        draw = jax.vmap(lambda key: jax.random.normal(key, (2, config.noise)))(keys)
        new["noise"], new["other_noise"] = draw[:, 0], draw[:, 1]
    elif config.views == "random":
        shape = (config.num_parameters,)
        u = jax.vmap(lambda key: jax.random.uniform(key, shape, minval=-1, maxval=1))(keys)
        new["view"] = change(cast, config, variables, {**batch, **new}, u)
    else:
        shape = pixels.shape[1:]
        start = jax.vmap(lambda key: jax.random.uniform(key, shape, minval=-1, maxval=1))(keys)
        new["view"] = adversarial(cast, config, variables, pixels, start)
    return {**batch, **new}


@functools.lru_cache(maxsize=64)
def program(cast: Cast, training: Training, config: Config) -> Program:
    """Two updates, of which one acts in a step; only the student's where views are not learned."""
    learned, training = config.views == "learned", traced.static(training)
    budget = augmentor_steps(training, config)

    def prepare(variables, batch, context):
        train = prepare_batch(cast, config, variables, batch["train"], context.rng)
        memory = context.memory
        if learned:
            memory = memory._replace(acting=memory.controller.phase)
        return {**batch, "train": train}, memory

    def student_objective(variables, batch, context):
        batch = batch["train"]
        pixels, taught, where = batch["pixels"], batch["teacher_logits"], batch["where"]
        view, options = None, dict(train=True, rng=context.rng)
        if learned:
            view, _ = augment(cast, config, variables, batch, batch["noise"])
            # Until the student has caught up for the first time it sees the images themselves.
            view = jnp.where(context.memory.controller.n_switches == 0, pixels, view)
            view = jax.lax.stop_gradient(view)
        elif config.views != "none":
            view = batch["view"]
        both = pixels if view is None else jnp.concatenate([pixels, view])
        out = cast.look("student", variables, both, **options)
        logits = logits_of(out.output)[: len(pixels)]
        labelled = where & losses.valid_labels(batch["label"], logits.shape[-1])
        kl = losses.kd(logits, taught, temperature=config.temperature)
        agree = (jnp.argmax(logits, -1) == jnp.argmax(taught, -1)).astype(jnp.float32)
        terms = {
            "cross_entropy": mean(
                supervised.label_loss(logits, batch), labelled, config.label_weight
            ),
            "kd": mean(kl, where, config.distillation_weight),
        }
        metrics = {"agreement": mean(agree, where)}
        if view is not None:
            there = logits_of(cast.look("teacher", variables, view).output)
            apart = losses.kd(
                logits_of(out.output)[len(pixels) :], there, temperature=config.temperature
            )
            terms["view_kd"] = mean(apart, where, config.distillation_weight)
            metrics |= {"gap": mean(apart, where), **accuracy_of(there, batch, labelled)}
        return Evaluation(terms, {"student": out.variables}, metrics=metrics)

    def augmentor_objective(variables, batch, context):
        batch = batch["train"]
        where, taught = batch["where"], batch["teacher_logits"]
        view, parameters = augment(cast, config, variables, batch, batch["noise"])
        there, here = (
            logits_of(cast.look(role, variables, view).output) for role in ("teacher", "student")
        )
        apart = gap(there, here, config.temperature)
        other = cast.augmentor.apply(
            variables["augmentor"], *reads(batch, config), batch["other_noise"]
        ).output
        # Of two draws: half their squared distance is the variance. 0: the noise is not heard.
        spread = jnp.sqrt(jnp.mean((parameters - jax.lax.stop_gradient(other)) ** 2, -1) / 2)
        labelled = where & losses.valid_labels(batch["label"], there.shape[-1])
        return Evaluation(
            {
                "gap": mean(apart, where, -1.0),
                "consistency": mean(
                    losses.kd(there, taught, temperature=config.temperature),
                    where,
                    config.consistency_weight,
                ),
                "size": mean(jnp.mean(parameters**2, -1), where, config.regularization),
            },
            metrics={
                "gap": mean(apart, where),
                "spread": mean(spread, where),
                **accuracy_of(there, batch, labelled),
            },
        )

    def steer(role, variables, context, metrics):
        memory, found = context.memory, metrics["gap"]
        learns = role == STUDENT
        steps = memory.student_steps + learns, memory.augmentor_steps + (not learns)
        # A batch without an example says nothing of the student.
        value = jnp.where(found.weight > 0, divide(found.total, found.weight), jnp.nan)
        spent = steps[1] >= budget
        if config.alternate:
            student, other = config.alternate
            moved = losses.alternating_phases(
                memory.controller, value, student_steps=student, augmentor_steps=other
            )
            stays = moved._replace(
                phase=jnp.int32(STUDENT),
                n_switches=memory.controller.n_switches + (memory.controller.phase == AUGMENTOR),
            )
            moved = jax.tree.map(lambda a, b: jnp.where(spent, a, b), stays, moved)
        else:
            # No average is below -1, and each is above it: the student's turn, for good.
            moved = losses.phase_controller(
                memory.controller,
                value,
                l_min=jnp.where(spent, -1.0, config.l_min),
                l_max=jnp.where(spent, -1.0, config.l_max),
                decay=config.decay,
                max_phase_steps=config.max_phase_steps,
            )
        return variables, Alternation(moved, memory.acting, *map(jnp.int32, steps))

    def optimizer(values):
        # The rate follows the student's own steps, which the optimizer counts.
        usual = training.transformation(values)
        count = optax.scale_by_schedule(lambda step: training.rate(step, training.steps))
        return optax.chain(usual, count)

    student = Update(
        student_objective,
        ("student",),
        optimizer if learned else training.transformation,
        when=(lambda context: context.memory.acting == STUDENT) if learned else 1,
        microbatches=training.microbatches,
        after=functools.partial(steer, STUDENT) if learned else None,
        name="student" if learned else "",
        loss_scale=training.scaling,
    )
    values = traced.names(training)
    if not learned:
        return Program((student,), prepare, training.schedules, values=values)
    opponent = Update(
        augmentor_objective,
        ("augmentor",),
        lambda values: optax.chain(
            optax.clip_by_global_norm(config.augmentor_clip),
            optax.adam(config.augmentor_learning_rate),
        ),
        when=lambda context: context.memory.acting == AUGMENTOR,
        microbatches=training.microbatches,
        after=functools.partial(steer, AUGMENTOR),
        name="augmentor",
        loss_scale=training.scaling,
    )

    def stop(context):
        return context.memory.student_steps >= training.steps

    return Program((student, opponent), prepare, stop=stop, values=values)


def accuracy_of(logits: jax.Array, batch: dict, labelled: jax.Array) -> dict:
    """How often the teacher is right on the views."""
    right = (jnp.argmax(logits, -1) == batch["label"]).astype(jnp.float32)
    return {"teacher_accuracy": mean(right, labelled)}


def augmentor_steps(training: Training, config: Config) -> int:
    """The largest number of augmentor steps of a run."""
    return max(1, round(config.augmentor_budget * training.steps))


def check_task(task: Task, config: Config) -> tuple[str, tuple[int, int, int]]:
    """The field of the images and their shape `(H, W, C)`; refuses a task without such views."""
    reads = {role: task.reads(role) for role in ("student", "teacher")}
    fields = {(x,) if isinstance(x, str) else x for x in reads.values()}
    if len(fields) != 1 or len(*fields) != 1:
        raise ValueError(
            "student and teacher must read one and the same field, of images: a view is shown to "
            f"both; they read {reads}"
        )
    ((field,),) = fields
    shape = task.examples("student")[0].shape[1:]
    if len(shape) != 3:
        raise ValueError(f"views are made of images [H, W, C], but {field!r} is {list(shape)}")
    if task.cache_teacher:
        raise ValueError("cache_teacher keeps no answers to views that are made in the step")
    if config.family in SPATIAL and config.max_shift >= min(shape[:2]):
        raise ValueError(
            f"max_shift={config.max_shift} would move all of an image of {list(shape[:2])} out of "
            "sight; keep it below the border around what is seen"
        )
    return field, shape


def recipe(task: Task, config: Config) -> Generator:
    """A teacher, given or trained; perhaps an autoencoder; then the alternation."""
    field, shape = check_task(task, config)
    teacher = yield from supervised.teacher(task)
    training, networks = task.training["student"], task.networks
    cast = Cast(networks["student"], networks["teacher"], field=field, mean=task.mean, std=task.std)
    learned, extra = config.views == "learned", {}
    example = jnp.zeros((1, *shape))
    if config.family == "latent" and config.views in ("learned", "random"):
        whole, *parts = autoencoder.networks(shape, config.latent, config.autoencoder_hidden)
        sizes = dict(shape=shape, latent=config.latent, steps=config.autoencoder_steps)
        outcome = yield autoencoder.stage(task, whole, field=field, **sizes)
        cast = cast._replace(encode=parts[0], decode=parts[1])
        extra["autoencoder"] = outcome.variables["autoencoder"]
    if learned:
        cast = cast._replace(augmentor=augmentor(config))
        seen = {"mix": (example, example), "latent": (jnp.zeros((1, config.latent)),)}
        arguments = (*seen.get(config.family, (example,)), jnp.zeros((1, config.noise)))
        key = task.key("variables of augmentor")
        extra["augmentor"] = Deferred(cast.augmentor.init, (key, *arguments))
    outcome = yield from task.distill(
        program(cast, traced.static(training), config),
        teacher,
        extra,
        memory=Alternation.start() if learned else None,
        values=traced.values(training),
        steps=training.steps + augmentor_steps(training, config) if learned else None,
    )
    return Trained.of(outcome, "student")
