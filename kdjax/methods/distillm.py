"""DistiLLM: a skewed KL, and student samples that are made only when they are needed, and reused.

Ko et al. 2024, "DistiLLM: Towards Streamlined Distillation for Large Language Models", ICML 2024
(arXiv:2402.03898).

    L = KL(p, lam p + (1 - lam) q)   (SKL), or KL(q, (1 - lam) p + lam q)   (SRKL)
        + corpus_weight CE(student, corpus)

Which rows a step trains on follows a threshold phi, 0 at first, and u from U(0, 1):

    s = phi (1 - step / steps) "decreasing", phi / 2 "constant", phi step / steps "increasing"
    u < s, or u < phi and the buffer is not full:  the student answers; its rows enter the buffer
    else u < phi:                                  rows of the buffer
    else:                                          rows of the data

At every validation, if the loss is at least `epsilon` above the one that moved phi last (at first:
that of the untrained student), phi rises by `threshold_step`, at most to 1.

The validation loss that phi needs is the cross-entropy on the data's validation split, as in the
authors' code: of the stage's own validation, every `validate_every` steps. Rows are drawn from the
buffer with replacement, where the code draws without.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Generator

import jax
import jax.numpy as jnp

from kdjax import losses
from kdjax.methods import language_model, prompted, rollouts
from kdjax.methods.language_task import LanguageTask, head_of, read, targets, teach
from kdjax.methods.task import Trained
from kdjax.methods.token_divergence import Divergence, terms
from kdjax.networks.transformer import DecoderConfig
from kdjax.training import Evaluation, Program, Term, Update, mean
from kdjax.training.optimizers import Training

TASKS = ("language",)
REPLAY = ("decreasing", "constant", "increasing")
DATA, STUDENT, BUFFER = range(3)  # where a step's rows come from


@dataclasses.dataclass(frozen=True)
class Config(Divergence):
    """The loss, with the fields of `Divergence`, and where rows come from. Defaults: the paper's.

    Attributes:
      replay: how the share of new samples goes: "decreasing", "constant" or "increasing".
      threshold: in [0, 1], phi at the start.
      threshold_step: in [0, 1], how far phi rises.
      epsilon: >= 0, the rise of the validation loss that moves phi.
      capacity: rows of the buffer, at least a batch.
      sampling_temperature: >= 0, of the student.
      corpus_weight: >= 0, of the cross-entropy on the split `corpus`; the authors' runs have 1.
    """

    divergence: str = "skewed_kl"
    replay: str = "decreasing"
    threshold: float = 0.0
    threshold_step: float = 0.1
    epsilon: float = 0.1
    capacity: int = 1000
    sampling_temperature: float = 1.0
    corpus_weight: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        if self.replay not in REPLAY:
            raise ValueError(f"replay must be one of {REPLAY}, got {self.replay!r}")
        for name in ("threshold", "threshold_step"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")
        for name in ("epsilon", "sampling_temperature", "corpus_weight"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.capacity < 1:
            raise ValueError(f"capacity must be at least 1, got {self.capacity}")
        if self.label_weight:
            raise ValueError(
                f"label_weight={self.label_weight} would teach the student its own samples: it "
                "must be 0"
            )


def source(u, threshold, progress, full, replay: str) -> jax.Array:
    """Where a step's rows come from: `DATA`, `STUDENT` or `BUFFER`.

    Args:
      u: in [0, 1), the draw.
      threshold: phi.
      progress: step / steps.
      full: bool, whether the buffer is.
      replay: a name of `REPLAY`.

    >>> [int(source(u, 0.5, 0.5, True, "decreasing")) for u in (0.2, 0.3, 0.6)]
    [1, 2, 0]
    >>> int(source(0.3, 0.5, 0.5, False, "decreasing"))
    1
    """
    share = {"decreasing": 1 - progress, "constant": 0.5, "increasing": progress}[replay]
    new = (u < threshold * share) | ((u < threshold) & ~jnp.asarray(full))
    return jnp.where(new, STUDENT, jnp.where(u < threshold, BUFFER, DATA))


def raised(threshold, reference, loss, config: Config) -> tuple[jax.Array, jax.Array]:
    """The threshold and the loss it is compared with, after a validation.

    A reference that is not a number yet, at the first validation, becomes the loss.

    >>> [round(float(x), 2) for x in raised(0.3, 2.0, 2.2, Config())]
    [0.4, 2.2]
    >>> [round(float(x), 2) for x in raised(0.3, 2.0, 2.05, Config())]
    [0.3, 2.0]
    """
    worse = loss >= reference + config.epsilon
    moved = jnp.where(worse, jnp.minimum(threshold + config.threshold_step, 1.0), threshold)
    return moved, jnp.where(worse | jnp.isnan(reference), loss, reference)


@functools.lru_cache(maxsize=64)
def controller(config: Config):
    """`(memory, {metric: mean}) -> memory`, the `after` of a validation: `raised`."""

    def after(memory, means):
        loss = -means["log_likelihood"]
        threshold, reference = raised(memory["threshold"], memory["reference"], loss, config)
        return {**memory, "threshold": threshold, "reference": reference}

    return after


@functools.lru_cache(maxsize=64)
def program(
    student: DecoderConfig,
    teacher: DecoderConfig,
    training: Training,
    config: Config,
    prompt_length: int,
    stop: tuple[int, ...],
) -> Program:
    """One update of the student; memory: threshold, reference loss, buffer."""

    def prepare(variables, batch, context):
        train, memory = batch["train"], context.memory
        choice, writing, drawing = jax.random.split(jax.random.fold_in(context.rng, 0), 3)

        buffer = memory["buffer"]

        def answered():
            found = rollouts.roll_out(
                student,
                variables["student"],
                train,
                writing,
                prompt_length=prompt_length,
                stop=stop,
                temperature=config.sampling_temperature,
            )
            rows = {n: found.batch[n].astype(train[n].dtype) for n in rollouts.ROW}
            return rows, rollouts.push(buffer, rows)

        def replayed():
            rows = rollouts.draw(buffer, {n: train[n] for n in rollouts.ROW}, drawing)
            return rows, buffer

        chosen = source(
            jax.random.uniform(choice),
            memory["threshold"],
            context.step / context.values["steps"],
            buffer["written"] >= config.capacity,
            config.replay,
        )
        branches = [lambda: ({n: train[n] for n in rollouts.ROW}, buffer), answered, replayed]
        rows, buffer = jax.lax.switch(chosen, branches)
        flags = {"source": jnp.full(train["where"].shape, chosen)}
        new = {"train": {**train, **rows, **flags}}
        if "corpus" in batch:
            new["corpus"] = batch["corpus"]
        return taught(variables, new, context._replace(memory={**memory, "buffer": buffer}))

    taught = teach(teacher)

    def objective(variables, batch, context):
        train, where = batch["train"], batch["train"]["where"]
        reading = read(student, variables["student"], train, train=True, rng=context.rng)
        head = head_of(teacher, variables["teacher"])
        found = terms(config, reading, train["teacher_hidden"], head, train)
        if config.corpus_weight:
            labels, kept = targets(batch["corpus"])
            text = read(student, variables["student"], batch["corpus"], train=True, rng=context.rng)
            total = losses.linear_cross_entropy(text.hidden, text.head, labels, where=kept)
            found["corpus"] = Term(*total, config.corpus_weight)
        shares = {"generated": STUDENT, "replayed": BUFFER}
        metrics = {
            name: mean((train["source"] == number).astype(jnp.float32), where)
            for name, number in shares.items()
        }
        metrics["threshold"] = Term(context.memory["threshold"], 1.0)
        return Evaluation(found, {"student": reading.variables}, metrics=metrics)

    update = Update(
        objective,
        ("student",),
        training.transformation,
        microbatches=training.microbatches,
        loss_scale=training.scaling,
    )
    schedules = {**training.schedules, "steps": lambda step, steps: steps}
    return Program((update,), prepare=prepare, schedules=schedules)


def check(task: LanguageTask, config: Config) -> int:
    """The place where answers begin; refuses what the method cannot use.

    Raises:
      ValueError: a cached teacher, rows that cannot be answered, a buffer smaller than a batch.
    """
    prompted.check_live_teacher(task)
    start, training = prompted.prompt_length(task), task.training["student"]
    if config.capacity < training.batch_size:
        raise ValueError(
            f"capacity={config.capacity} must hold a batch of the student's, {training.batch_size}"
        )
    return start


def recipe(task: LanguageTask, config: Config) -> Generator:
    """A teacher, given or trained, then one stage of distillation."""
    start, training = check(task, config), task.training["student"]
    teacher = yield from language_model.teacher(task)
    step = program(
        task.decoders["student"],
        task.decoders["teacher"],
        training,
        config,
        start,
        (task.tokenizer.end,),
    )
    streams = {"train": task.stream("student"), **prompted.corpus(task, config.corpus_weight)}
    memory = {
        "threshold": jnp.float32(config.threshold),
        "reference": jnp.float32(jnp.nan),
        "buffer": rollouts.empty_buffer(
            {n: task.dataset.splits["train"].arrays()[n][:1] for n in rollouts.ROW}, config.capacity
        ),
    }
    outcome = yield from task.distill(
        step,
        teacher,
        memory=memory,
        streams=streams,
        examples=prompted.examples(training, config.corpus_weight),
        after_validation=controller(config),
    )
    return Trained.of(outcome, "student")
