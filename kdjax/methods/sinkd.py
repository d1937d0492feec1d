"""SinKD: the batch of the student's answers is moved onto the batch of the teacher's.

Sinkhorn Distance Minimization for Knowledge Distillation, Cui et al., arXiv:2402.17110,
LREC-COLING 2024.

Where teacher and student have little in common, KL averages modes, reverse KL collapses onto one
and Jensen-Shannon saturates; an optimal-transport distance goes on giving a direction. The B
answers of the student and the B answers of the teacher are two clouds of distributions, and the
cost of an entropic transport plan P between them joins the usual losses:

    L = label_weight CE(s, label) + distillation_weight H(softmax(t / T), softmax(s / T))
        + sinkhorn_weight sum_ij P_ij || softmax(s_i / T') - softmax(t_j / T') ||_p

H is a cross-entropy, without the factor T^2 of `kd`. The third term compares sets: the order of
the teacher's rows has no influence on it, so which answer belongs to which example is left to the
other two. How far it is kept nevertheless is the metric `diagonal_mass`, the share of P that joins
an example to itself. The plan is one plan for the global batch, on any number of devices.

In language models the rows are the positions to be predicted, at most `max_positions` of them; the
second term is then the KL, which has the gradient of the cross-entropy.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Generator, Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from kdjax import losses
from kdjax.losses import checks
from kdjax.methods import kd, language_model, language_task, supervised
from kdjax.methods.task import Fields, Task, Trained, classification_metrics, inputs
from kdjax.networks import Network, logits_of
from kdjax.networks.transformer import DecoderConfig, project
from kdjax.training import Evaluation, Program, Stage, Term, Update, mean
from kdjax.training.optimizers import Training

Logits = Float[Array, "batch classes"]
Mask = Bool[Array, " batch"]


TASKS = ("classification", "language")


@dataclasses.dataclass(frozen=True)
class Config:
    """Attributes:
    label_weight, distillation_weight: >= 0; 1 - alpha and alpha of the authors, whose alpha is
      between 0.8 and 1.
    temperature: of the cross-entropy with the teacher, > 0; between 1 and 4 in the paper.
    anneal: the temperature goes linearly to 1, from the first step to the last.
    sinkhorn_weight: of the transport cost, a mean over the batch, >= 0. The authors sum over the
      batch with a weight of 0.001: here 0.001 B, and the default is their B = 32. 0: the cost and
      the plan are measured only.
    sinkhorn_temperature: T', > 0.
    epsilon: of the entropy, > 0.
    num_iterations: of Sinkhorn's steps, >= 0.
    p: 1 or 2, the norm.
    stop_plan_gradient: takes the plan for a constant.
    shuffled: permutes the teacher's rows at random, for the transport alone: a control, as the
      cost does not depend on their order.
    max_positions: of a batch of token rows, how many are transported; >= 2. Logits and plan take
      that many times the vocabulary, and its square.
    """

    label_weight: float = 0.1
    distillation_weight: float = 0.9
    temperature: float = 4.0
    anneal: bool = False
    sinkhorn_weight: float = 0.032
    sinkhorn_temperature: float = 2.0
    epsilon: float = 0.1
    num_iterations: int = 20
    p: int = 1
    stop_plan_gradient: bool = False
    shuffled: bool = False
    max_positions: int = 512

    def __post_init__(self):
        for name in ("temperature", "sinkhorn_temperature", "epsilon"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("label_weight", "distillation_weight", "sinkhorn_weight"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        checks.count(0, num_iterations=self.num_iterations)
        checks.count(2, max_positions=self.max_positions)
        if self.p not in (1, 2):
            raise ValueError(f"p must be 1 or 2, got {self.p}")


def annealed_temperature(step: jax.Array, steps: jax.Array, temperature: float) -> jax.Array:
    """From `temperature` in the first of `steps` steps linearly to 1 in the last.

    The authors change it once an epoch; the line is the same.

    >>> [float(annealed_temperature(step, 4, 4.0)) for step in range(4)]
    [4.0, 3.0, 2.0, 1.0]
    """
    return temperature + (1 - temperature) * step / jnp.maximum(steps - 1, 1)


def measure(
    student_logits: Logits, teacher_logits: Logits, where: Mask, config: Config
) -> dict[str, Term]:
    """`transport_cost` of a batch and `diagonal_mass` of its plan, without gradients.

        diagonal_mass = sum_i P_ii,   transport_cost = sum_ij P_ij W_ij

    Args:
      student_logits, teacher_logits: floats [B, C]. Stopped.
      where: bool [B]; False rows have no mass.
      config: of the plan.

    Returns:
      Terms whose means are in [0, 1] and [0, 2].
    """
    q, p = (
        jax.nn.softmax(
            jnp.where(where[:, None], jax.lax.stop_gradient(x), 0) / config.sinkhorn_temperature
        )
        for x in (student_logits, teacher_logits)
    )
    count = jnp.maximum(jnp.sum(where), 1)
    mass = where.astype(q.dtype) / count
    cost = losses.pairwise_lp_cost(q, p, p=config.p)
    plan = losses.sinkhorn_plan(
        cost, mass, mass, epsilon=config.epsilon, num_iterations=config.num_iterations
    )
    return {
        "diagonal_mass": mean(count * jnp.diagonal(plan), where),
        "transport_cost": mean(count * jnp.sum(plan * cost, axis=-1), where),
    }


def shuffle(rows: Logits, where: Mask, rng: PRNGKeyArray) -> Logits:
    """The rows that count in a random order, in the places of the rows that count.

    >>> rows, where = jnp.array([[5.0], [6.0], [7.0]]), jnp.array([True, False, True])
    >>> sorted({tuple(shuffle(rows, where, jax.random.key(i))[:, 0].tolist()) for i in range(9)})
    [(5.0, 6.0, 7.0), (7.0, 6.0, 5.0)]
    """
    places = jnp.argsort(~where, stable=True)
    order = jnp.argsort(jnp.where(where, jax.random.uniform(rng, where.shape), 1.0), stable=True)
    return rows.at[places].set(rows[order])


def transport(
    student_logits: Logits,
    teacher_logits: Logits,
    where: Mask,
    config: Config,
    rng: PRNGKeyArray,
) -> tuple[Term, dict[str, Term]]:
    """The transport term of a batch, with its weight, and the metrics of its plan.

    A batch are examples, or positions of tokens: see `token_positions`. It compares its rows with
    each other: not for an objective whose batch is cut.

    Args:
      student_logits: floats [B, C]. Differentiated.
      teacher_logits: floats [B, C]. Stopped.
      where: bool [B]; False rows have no mass on either side.
      config: of the term.
      rng: read where `config.shuffled`.
    """
    target = teacher_logits
    if config.shuffled:
        target = shuffle(teacher_logits, where, rng)
    cost = losses.sinkhorn_kd(
        student_logits,
        target,
        temperature=config.sinkhorn_temperature,
        epsilon=config.epsilon,
        num_iterations=config.num_iterations,
        p=config.p,
        stop_plan_gradient=config.stop_plan_gradient,
        where=where,
    )
    metrics = measure(student_logits, teacher_logits, where, config)
    return mean(cost, where, config.sinkhorn_weight), metrics


def token_positions(
    where: Bool[Array, "*positions"], rng: PRNGKeyArray, *, max_positions: int
) -> tuple[Int[Array, " chosen"], Bool[Array, " chosen"]]:
    """Which positions of a batch of sequences are the rows of the transport problem.

    All that count where there are at most `max_positions`, else so many of them, drawn at random
    without replacement. The plan takes `max_positions`^2 memory. Choose before the vocabulary:

        rows, counts = token_positions(mask, rng, max_positions=512)
        student_logits = student_hidden.reshape(-1, width)[rows] @ student_head.T

    Args:
      where: bool [...]; the positions to be predicted.
      rng: the draw.
      max_positions: integer >= 1.

    Returns:
      Indices [N] into the flattened positions, N = min(max_positions, all of them), each at most
      once; and bool [N], False where fewer positions count than that.

    Raises:
      ValueError: max_positions < 1. TypeError: a mask that is not boolean.

    >>> mask = jnp.array([[False, True, True], [False, False, True]])
    >>> rows, counts = token_positions(mask, jax.random.key(0), max_positions=4)
    >>> sorted(rows[counts].tolist()), counts.tolist()
    ([1, 2, 5], [True, True, True, False])
    """
    checks.count(1, max_positions=max_positions)
    where = checks.mask(where, where.shape).reshape(-1)
    draw = jnp.where(where, jax.random.uniform(rng, where.shape), 1.0)
    _, rows = jax.lax.top_k(-draw, min(max_positions, where.size))
    return rows, where[rows]


@functools.lru_cache(maxsize=64)
def program(
    student: Network,
    teacher: Network,
    training: Training,
    config: Config,
    fields: Fields = "image",
    teacher_fields: Fields = "image",
) -> Program:
    """One update of the student. Micro-batches are exact: logits first, then the whole batch."""

    def embed(variables, batch, context):
        x = inputs(batch["train"], fields)
        out = student.apply(variables["student"], *x, train=True, rng=context.rng)
        return logits_of(out.output), {"student": out.variables}

    def objective(variables, batch, context):
        rng, shuffle_rng = jax.random.split(context.rng)
        if "embeddings" in batch:
            logits, new = batch["embeddings"], {}
        else:
            logits, new = embed(variables, batch, context._replace(rng=rng))
        batch = batch["train"]
        taught, where = jax.lax.stop_gradient(batch["teacher_logits"]), batch["where"]
        labelled = where & losses.valid_labels(batch["label"], logits.shape[-1])
        temperature = context.values["temperature"]
        soft = losses.soft_label_cross_entropy(logits / temperature, taught / temperature)
        cost, metrics = transport(logits, taught, where, config, shuffle_rng)
        agree = (jnp.argmax(logits, -1) == jnp.argmax(taught, -1)).astype(jnp.float32)
        return Evaluation(
            {
                "cross_entropy": mean(
                    supervised.label_loss(logits, batch), labelled, config.label_weight
                ),
                "soft_cross_entropy": mean(soft, where, config.distillation_weight),
                "sinkhorn": cost,
            },
            new,
            metrics={"agreement": mean(agree, where), **metrics},
        )

    update = Update(
        objective,
        ("student",),
        training.transformation,
        microbatches=training.microbatches,
        loss_scale=training.scaling,
        batchwise=True,
        embed=embed if training.microbatches > 1 else None,
    )
    return Program(
        (update,), prepare=kd.teach(teacher, teacher_fields), schedules=_schedules(training, config)
    )


def _schedules(training: Training, config: Config) -> dict:
    def temperature(step: jax.Array, steps: jax.Array) -> jax.Array:
        if not config.anneal:
            return jnp.float32(config.temperature)
        return annealed_temperature(step, steps, config.temperature)

    return {**training.schedules, "temperature": temperature}


@functools.lru_cache(maxsize=64)
def token_program(
    student: DecoderConfig, teacher: DecoderConfig, training: Training, config: Config
) -> Program:
    """One update of a decoder; the rows of the transport are positions to be predicted."""

    def objective(variables, batch, context):
        batch = batch["train"]
        rng, choice_rng, shuffle_rng = jax.random.split(context.rng, 3)
        reading = language_task.read(student, variables["student"], batch, train=True, rng=rng)
        labels, where = language_task.targets(batch)
        features = batch["teacher_hidden"][:, :-1]
        head = language_task.head_of(teacher, variables["teacher"])
        (soft, weight), (label, label_weight) = losses.linear_kl(
            reading.hidden,
            reading.head,
            features,
            head,
            labels=labels,
            where=where,
            temperature=context.values["temperature"],
        )
        rows, counts = token_positions(where, choice_rng, max_positions=config.max_positions)
        logits, taught = (
            project(x.reshape(-1, x.shape[-1])[rows], h.weight, h.softcap)
            for x, h in ((reading.hidden, reading.head), (features, head))
        )
        cost, metrics = transport(logits, taught, counts, config, shuffle_rng)
        return Evaluation(
            {
                "cross_entropy": Term(label, label_weight, config.label_weight),
                "kl": Term(soft, weight, config.distillation_weight),
                "sinkhorn": cost,
            },
            {"student": reading.variables},
            metrics=metrics,
        )

    update = Update(
        objective,
        ("student",),
        training.transformation,
        microbatches=training.microbatches,
        loss_scale=training.scaling,
        batchwise=True,
    )
    prepare = language_task.teach(teacher)
    return Program((update,), prepare=prepare, schedules=_schedules(training, config))


@functools.lru_cache(maxsize=64)
def validation_metrics(
    student: Network,
    teacher: Network,
    batch_size: int,
    config: Config,
    fields: Fields = "image",
    teacher_fields: Fields = "image",
):
    """`classification_metrics`, and those of the plan in batches as large as in training."""
    scores = classification_metrics("student", student, fields)

    def batches(x: jax.Array) -> jax.Array:
        padding = [(0, -len(x) % batch_size), *[(0, 0)] * (x.ndim - 1)]
        return jnp.pad(x, padding).reshape(-1, batch_size, *x.shape[1:])

    def evaluate(variables, batch) -> Mapping[str, Term]:
        logits, taught = (
            logits_of(network.apply(variables[role], *inputs(batch, read)).output)
            for role, network, read in (
                ("student", student, fields),
                ("teacher", teacher, teacher_fields),
            )
        )
        arrays = batches(logits), batches(taught), batches(batch["where"])
        found = jax.vmap(lambda s, t, w: measure(s, t, w, config))(*arrays)
        plan = {name: Term(jnp.sum(m.total), jnp.sum(m.weight)) for name, m in found.items()}
        return {**scores(variables, batch), **plan}

    return evaluate


def recipe(task: Task, config: Config) -> Generator:
    """A teacher, given or trained, then one stage that measures the plan on unseen examples too."""
    if isinstance(task, language_task.LanguageTask):
        teacher = yield from language_model.teacher(task)
        roles = task.decoders["student"], task.decoders["teacher"]
        step = token_program(*roles, task.training["student"], config)
        outcome = yield from task.distill(step, teacher)
        return Trained.of(outcome, "student")
    teacher = yield from supervised.teacher(task)
    student, training = task.networks["student"], task.training["student"]
    networks = student, task.networks["teacher"]
    reads = task.reads("student"), task.reads("teacher")
    evaluate = validation_metrics(*networks, training.batch_size, config, *reads)
    # The plan on the validation split needs the teacher, even where its training logits are kept.
    _, train = yield from task.taught_stream(teacher)
    outcome = yield Stage(
        "distill",
        program(*networks, training, config, *reads),
        {"student": task.start("student"), "teacher": task.kept("teacher", teacher)},
        {"train": train},
        training.steps,
        validation=dataclasses.replace(task.validation("student"), evaluate=evaluate),
    )
    return Trained.of(outcome, "student")
