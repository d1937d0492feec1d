"""GKD: the student is corrected on what it writes itself; speculative KD: while it writes.

Agarwal et al. 2023, "On-Policy Distillation of Language Models: Learning from Self-Generated
Mistakes", ICLR 2024 (arXiv:2306.13649).

For every batch u is drawn from U(0, 1):

    u < on_policy:  the student answers the prompts       (lambda of the paper)
    else:           the data's answers, or, with `seq_kd`, the teacher's
    L = the token mean of D(teacher, student), without a gradient through the sampling

`on_policy` 0 with the KL is word-level distillation. `on_policy` 1 with the KL is ImitKD without
its mixture of data (Lin et al. 2020, arXiv:2009.07253), which a value in between has, at a
constant share where ImitKD lets it decay. The student should be able to write at the start:
`warm_up` of the task, or `initial`. The paper's loss is a mean over sequences of their means; here,
as in TRL, it is over tokens.

Speculative KD is the same loss on rows that the student writes and the teacher mends: a token that
is not among the teacher's `accept_top_k` most probable ones is replaced by one that the teacher
draws. With 1 the rows are the teacher's but for its randomness, with the whole vocabulary GKD's.
Xu et al. 2024, "Speculative Knowledge Distillation: Bridging the Teacher-Student Gap Through
Interleaved Sampling", ICLR 2025 (arXiv:2410.11325). Their code drafts five tokens before the
teacher judges them, which gives the same distribution; `SPECULATIVE` has its other settings.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Generator

import jax
import jax.numpy as jnp

from kdjax.methods import language_model, prompted, rollouts
from kdjax.methods.language_task import LanguageTask, decoder, head_of, read, targets, teach
from kdjax.methods.task import Trained
from kdjax.methods.token_divergence import Divergence, terms
from kdjax.networks.generation import Corrector
from kdjax.networks.transformer import DecoderConfig
from kdjax.training import Evaluation, Program, Update, mean
from kdjax.training.optimizers import Training

TASKS = ("language",)
SPECULATIVE = dict(
    on_policy=1.0,
    accept_top_k=25,
    sampling_temperature=0.5,
    correction_temperature=0.2,
    top_p=0.5,
)


@dataclasses.dataclass(frozen=True)
class Config(Divergence):
    """The loss, with the fields of `Divergence`, and who writes the answers. Defaults: TRL's.

    Attributes:
      on_policy: in [0, 1], the probability that the student answers a batch.
      seq_kd: otherwise the teacher answers it, not the data.
      sampling_temperature: >= 0, of both.
      accept_top_k: speculative KD's K, in [1, vocabulary]; 0: the teacher does not interfere.
      correction_temperature: >= 0, of the tokens that the teacher puts in.
      top_p: in (0, 1], of all draws.

    >>> Config(**SPECULATIVE).accept_top_k
    25
    """

    divergence: str = "generalized_jsd"
    on_policy: float = 0.5
    seq_kd: bool = False
    sampling_temperature: float = 0.9
    accept_top_k: int = 0
    correction_temperature: float = 0.2
    top_p: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.on_policy <= 1:
            raise ValueError(f"on_policy must be in [0, 1], got {self.on_policy}")
        for name in ("sampling_temperature", "correction_temperature", "accept_top_k"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], got {self.top_p}")
        if self.accept_top_k and not self.on_policy:
            raise ValueError(
                f"accept_top_k={self.accept_top_k} judges what the student writes, but with "
                "on_policy=0 it never does"
            )
        if self.label_weight:
            raise ValueError(
                f"label_weight={self.label_weight} would teach the student its own samples: it "
                "must be 0"
            )


@functools.lru_cache(maxsize=64)
def program(
    student: DecoderConfig,
    teacher: DecoderConfig,
    training: Training,
    config: Config,
    prompt_length: int,
    stop: tuple[int, ...],
) -> Program:
    """One update of the student, on rows that are chosen, and written, in the step."""

    def prepare(variables, batch, context):
        train = batch["train"]
        choice, writing = jax.random.split(jax.random.fold_in(context.rng, 0))
        on_policy = jax.random.uniform(choice) < config.on_policy

        def write(writer, role, corrector=None):
            found = rollouts.roll_out(
                writer,
                variables[role],
                train,
                writing,
                prompt_length=prompt_length,
                stop=stop,
                temperature=config.sampling_temperature,
                top_p=None if config.top_p == 1 else config.top_p,
                corrector=corrector,
            )
            rows = {n: found.batch[n].astype(train[n].dtype) for n in rollouts.ROW}
            return rows | {"corrected": jnp.pad(found.corrected, ((0, 0), (prompt_length, 0)))}

        def written():
            corrector = None
            if config.accept_top_k:
                corrector = Corrector(
                    decoder(teacher),
                    teacher,
                    variables["teacher"],
                    config.accept_top_k,
                    config.correction_temperature,
                )
            return write(student, "student", corrector)

        def otherwise():
            if config.seq_kd:
                return write(teacher, "teacher")
            rows = {n: train[n] for n in rollouts.ROW}
            return rows | {"corrected": jnp.zeros(train["tokens"].shape, bool)}

        if config.on_policy == 0:
            rows = otherwise()
        elif config.on_policy == 1:
            rows = written()
        else:
            rows = jax.lax.cond(on_policy, written, otherwise)
        flag = jnp.full(train["where"].shape, on_policy, jnp.float32)
        return taught(variables, {**batch, "train": {**train, **rows, "on_policy": flag}}, context)

    taught = teach(teacher)

    def objective(variables, batch, context):
        batch = batch["train"]
        reading = read(student, variables["student"], batch, train=True, rng=context.rng)
        head = head_of(teacher, variables["teacher"])
        found = terms(config, reading, batch["teacher_hidden"], head, batch)
        metrics = {"on_policy": mean(batch["on_policy"], batch["where"])}
        if config.accept_top_k:
            corrected = batch["corrected"][:, 1:].astype(jnp.float32)
            metrics["corrected"] = mean(corrected, targets(batch)[1])
        return Evaluation(found, {"student": reading.variables}, metrics=metrics)

    update = Update(
        objective,
        ("student",),
        training.transformation,
        microbatches=training.microbatches,
        loss_scale=training.scaling,
    )
    return Program((update,), prepare=prepare, schedules=training.schedules)


def check(task: LanguageTask, config: Config) -> int:
    """The place where answers begin; refuses rows and a K that the method cannot use.

    Raises:
      ValueError: a cached teacher, rows that cannot be answered, a K above the vocabulary.
    """
    prompted.check_live_teacher(task)
    start = prompted.prompt_length(task)
    if config.accept_top_k > task.tokenizer.vocabulary:
        raise ValueError(
            f"accept_top_k={config.accept_top_k} must be at most the vocabulary, "
            f"{task.tokenizer.vocabulary}"
        )
    return start


def recipe(task: LanguageTask, config: Config) -> Generator:
    """A teacher, given or trained, then one stage of distillation."""
    start = check(task, config)
    teacher = yield from language_model.teacher(task)
    step = program(
        task.decoders["student"],
        task.decoders["teacher"],
        task.training["student"],
        config,
        start,
        (task.tokenizer.end,),
    )
    outcome = yield from task.distill(step, teacher)
    return Trained.of(outcome, "student")
