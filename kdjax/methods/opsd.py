"""OPSD: a model teaches itself, in the role of one that has seen the solution.

Zhao et al. 2026, "Self-Distilled Reasoner: On-Policy Self-Distillation for Large Language Models"
(arXiv:2601.18734).

One model in two contexts. The student is asked a problem x and answers it; the teacher, the same
model as it was at the beginning, reads x and its reference solution y* and judges that answer:

    y ~ student(. | x)                                                   no gradient
    L = mean_t D( teacher(. | x, y*, y_<t), student(. | x, y_<t) )       D: JSD, KL, reverse KL

No labels and no rewards: what the student is taught is what it would have said, had it known the
solution. The rows come from `kdjax.data.privileged_dataset`. The two contexts have prompts of
different length, of which only the answers are compared: both prompts are padded on the left, so
that answers begin at one place of all rows of either context. A teacher of the task is not used.

The authors train low-rank adapters (`LoRA`) on the frozen model, which without them is the fixed
teacher: there is no second copy of it. The recipe returns them merged; `lora_rank` 0 trains the
whole model.

Options of the authors: the teacher a moving average of the student, or the student itself (`live`,
as the algorithm of the paper is written; its experiments have a fixed one); the divergence on the
teacher's `top_k` tokens; a policy gradient from the sampled token alone, which is that of the
reverse KL where `temperature` is the sampling's and nothing is truncated; `max_rationale_tokens`,
for which the teacher explains y* to itself before it judges.

Paper and code differ: the paper's loss is a mean over sequences of their means (`sequence_mean`),
the code's over all tokens; the paper samples at 1.2, the scripts at 1.1, which is the loss's
temperature too. Neither multiplies by the temperature's square. An answer that meets its limit is
trained as far as it goes, without an end. The defaults are those of the scripts.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Generator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kdjax import losses
from kdjax.losses import self_distillation
from kdjax.methods import prompted, rollouts
from kdjax.methods.language_task import (
    LanguageTask,
    Reading,
    decoder,
    head_of,
    language_metrics,
    read,
    targets,
)
from kdjax.methods.task import Trained
from kdjax.networks import LoRA, Network, attach
from kdjax.networks.generation import generate
from kdjax.networks.transformer import DecoderConfig, project
from kdjax.training import Evaluation, Program, Stage, Term, Update, mean
from kdjax.training.averages import follow
from kdjax.training.optimizers import Training

TASKS = ("language",)
FIELDS = ("teacher_prompt", "teacher_prompt_where")


@dataclasses.dataclass(frozen=True)
class Config:
    """The defaults are those of the authors' scripts.

    Attributes:
      loss: "divergence" or "sampled_token".
      beta: in [0, 1], of the divergence: 0 is KL(teacher, student), 1 the reverse.
      top_k: the divergence is between the teacher's k likeliest tokens, at least 2. None: all.
      temperature: > 0, of both sides in the loss.
      reduction: "token_mean" or "sequence_mean".
      teacher: "fixed", the model at the beginning; "ema", a moving average of it; "live", itself.
      ema_decay: in [0, 1], of "ema"; after the first step the average is the student.
      max_new_tokens: of an answer. None: what a row has room for.
      sampling_temperature, sampling_top_k, sampling_top_p: of the student's answers.
      max_rationale_tokens: of the teacher's own explanation of the solution; 0: none. It is written
        at temperature 1.
      lora_rank: of the adapters; 0: the whole model is trained, and a fixed teacher is a copy.
      lora_alpha: > 0, they are scaled by `lora_alpha / lora_rank`.
      lora_dropout: in [0, 1), of their input; the scripts name none.
      lora_pattern: regular expression of the kernels that have one; all of attention and MLP.
    """

    loss: str = "divergence"
    beta: float = 0.5
    top_k: int | None = None
    temperature: float = 1.1
    reduction: str = "token_mean"
    teacher: str = "fixed"
    ema_decay: float = 0.999
    max_new_tokens: int | None = None
    sampling_temperature: float = 1.1
    sampling_top_k: int | None = 20
    sampling_top_p: float | None = 0.95
    max_rationale_tokens: int = 0
    lora_rank: int = 64
    lora_alpha: float = 128.0
    lora_dropout: float = 0.0
    lora_pattern: str = r"/(query|key|value|out|gate|up|down)/kernel$"

    def __post_init__(self):
        for name, options in (
            ("loss", ("divergence", "sampled_token")),
            ("reduction", ("token_mean", "sequence_mean")),
            ("teacher", ("fixed", "ema", "live")),
        ):
            if getattr(self, name) not in options:
                raise ValueError(f"{name} must be one of {options}, got {getattr(self, name)!r}")
        for name in ("beta", "ema_decay"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")
        if not self.temperature > 0:
            raise ValueError(f"temperature must be positive, got {self.temperature}")
        if not self.sampling_temperature >= 0:
            raise ValueError(
                f"sampling_temperature must not be negative, got {self.sampling_temperature}"
            )
        if self.sampling_top_p is not None and not 0 < self.sampling_top_p <= 1:
            raise ValueError(f"sampling_top_p must be in (0, 1], got {self.sampling_top_p}")
        for name, least in (("top_k", 2), ("sampling_top_k", 1), ("max_new_tokens", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} must be at least {least}, or None, got {value}")
        if self.max_rationale_tokens < 0:
            raise ValueError(
                f"max_rationale_tokens must not be negative, got {self.max_rationale_tokens}"
            )
        if self.lora_rank < 0:
            raise ValueError(f"lora_rank must not be negative, got {self.lora_rank}")
        _ = self.lora  # which refuses what it cannot be
        if self.top_k is not None and self.loss == "sampled_token":
            raise ValueError(f"top_k={self.top_k} is of the divergence, not of one sampled token")

    @property
    def lora(self) -> LoRA | None:
        """The adapters; None where the whole model is trained."""
        if not self.lora_rank:
            return None
        return LoRA(self.lora_pattern, self.lora_rank, self.lora_alpha, self.lora_dropout)


def teacher_rows(
    batch: Mapping[str, jax.Array],
    answers: jax.Array,
    where: jax.Array,
    rationale: tuple[jax.Array, jax.Array] | None = None,
) -> dict[str, jax.Array]:
    """The rows of the teacher: its prompt, then the answers that the student gave.

    Args:
      batch: `teacher_prompt`, `teacher_prompt_where`, `[B, P]`, and `transition`, `request`
        `[B, ...]` where the task has them.
      answers: `[B, N]`, tokens; the last N places of the rows.
      where: bool `[B, N]`, which of them belong to an answer.
      rationale: `(tokens, where)`, both `[B, R]`: asked for by `request`, before `transition`.

    Returns:
      `tokens`, `segments` and `positions`, which count what is there.
    """
    parts = [tuple(batch[name] for name in FIELDS)]
    if rationale is not None:
        parts += [_constant(batch["request"]), rationale]
    if "transition" in batch:
        parts.append(_constant(batch["transition"]))
    parts.append((answers, where))
    tokens, seen = (jnp.concatenate(x, axis=1) for x in zip(*parts))
    return {
        "tokens": tokens,
        "segments": seen.astype(jnp.int32),
        "positions": jnp.maximum(jnp.cumsum(seen, axis=1, dtype=jnp.int32) - 1, 0),
    }


def _constant(tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
    return tokens, jnp.ones(tokens.shape, bool)


def total(
    config: Config,
    hidden: jax.Array,
    head: losses.Head,
    teacher_hidden: jax.Array,
    teacher_head: losses.Head,
    tokens: jax.Array,
    where: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """`(total, weight)` of the loss of answers.

    Args:
      config: which loss, and its reduction.
      hidden, head: the student's `[B, N, D]`, where they predict the answers. Differentiated.
      teacher_hidden, teacher_head: the teacher's, for the same tokens. Stopped.
      tokens: `[B, N]`, the answers.
      where: bool `[B, N]`, which of them count.
    """
    whole = config.loss == "divergence" and config.top_k is None
    if whole and config.reduction == "token_mean":
        return losses.linear_generalized_jsd(
            hidden,
            head,
            teacher_hidden,
            teacher_head,
            beta=config.beta,
            where=where,
            temperature=config.temperature,
        )
    values = token_losses(config, hidden, head, teacher_hidden, teacher_head, tokens, where)
    reduce = losses.token_total if config.reduction == "token_mean" else losses.sequence_total
    return reduce(values, where=where)


def token_losses(config, hidden, head, teacher_hidden, teacher_head, tokens, where) -> jax.Array:
    """The loss of every token of the answers, `[B, N]`; arguments as of `total`.

    Logits exist for one place of all rows at a time, in the backward pass too.
    """
    hidden, teacher_hidden = (jnp.where(where[..., None], x, 0.0) for x in (hidden, teacher_hidden))

    @jax.checkpoint
    def place(parts):
        mine, theirs, chosen = parts
        logits = project(mine, head.weight, head.softcap)
        taught = project(theirs, teacher_head.weight, teacher_head.softcap)
        if config.loss == "sampled_token":
            return losses.sampled_token_reverse_kl(
                logits, taught, chosen, temperature=config.temperature
            )
        return self_distillation.opsd(
            logits,
            taught,
            beta=config.beta,
            temperature=config.temperature,
            top_k=config.top_k,
        )

    places = tuple(x.swapaxes(0, 1) for x in (hidden, teacher_hidden, tokens))
    return jax.lax.map(place, places).swapaxes(0, 1)


def whole(config: Config, variables: Mapping[str, Any], role: str) -> Any:
    """The variables of a whole model: those of a role, or the base with the role's adapters."""
    if config.lora is None:
        return variables[role]
    return config.lora.merge(variables["base"], variables[role])


@functools.lru_cache(maxsize=64)
def _adapted(model: DecoderConfig, lora: LoRA) -> Network:
    return lora.network(decoder(model))


def read_student(model, config: Config, variables, batch, rng) -> Reading:
    """What the student makes of a batch while it is trained; its adapters beside the base."""
    if config.lora is None:
        return read(model, variables["student"], batch, train=True, rng=rng)
    out = _adapted(model, config.lora).apply(
        attach(variables["base"], variables["student"]),
        *(batch[name] for name in ("tokens", "positions", "segments")),
        train=True,
        rng=rng,
    )
    head = head_of(model, variables["base"])
    return Reading(out.output["features"][:, :-1], head, out.variables)


@functools.lru_cache(maxsize=64)
def program(
    model: DecoderConfig,
    training: Training,
    config: Config,
    prompt_length: int,
    stop: tuple[int, ...],
) -> Program:
    """One update of the student, on answers that it gives in the step."""

    def judge(variables):
        """The teacher's variables: where it is fixed and there are adapters, the base without."""
        if config.teacher == "fixed":
            return variables["teacher" if config.lora is None else "base"]
        return whole(config, variables, "student" if config.teacher == "live" else "teacher")

    def explain(variables, train, rng):
        """The teacher's explanation of the solution, and which of its tokens are one."""
        context = {name: train[name] for name in FIELDS}
        asked = teacher_rows(context, *_constant(train["request"]))
        found = generate(
            decoder(model),
            model,
            variables,
            asked["tokens"],
            asked["segments"] > 0,
            jax.vmap(jax.random.fold_in, (None, 0))(rng, train["id"]),
            max_new_tokens=config.max_rationale_tokens,
            stop=stop,
        )
        first = asked["tokens"].shape[1]
        tokens, where = found.tokens[:, first:], found.completion[:, first:]
        ends = jnp.isin(tokens, jnp.asarray(stop, tokens.dtype))  # no end before the answer
        return tokens, where & ~ends

    def prepare(variables, batch, context):
        train, teacher = batch["train"], judge(variables)
        writing, explaining = jax.random.split(jax.random.fold_in(context.rng, 0))
        length = train["tokens"].shape[1]
        if config.max_new_tokens is not None:
            length = prompt_length + config.max_new_tokens
        prompts = {n: train[n][:, :length] for n in rollouts.ROW}
        found = rollouts.roll_out(
            model,
            whole(config, variables, "student"),
            {**train, **prompts},
            writing,
            prompt_length=prompt_length,
            stop=stop,
            temperature=config.sampling_temperature,
            top_k=config.sampling_top_k,
            top_p=config.sampling_top_p,
        )
        rows = {n: found.batch[n].astype(train[n].dtype) for n in rollouts.ROW}
        answers = tuple(rows[n][:, prompt_length:] for n in ("tokens", "completion"))
        rationale = None
        if config.max_rationale_tokens:
            rationale = explain(teacher, train, explaining)
        seen = teacher_rows(train, *answers, rationale)
        out = decoder(model).apply(teacher, seen["tokens"], seen["positions"], seen["segments"])
        # The states that predict the answers, of which the last token predicts nothing.
        features = out.output["features"][:, prompt_length - length - 1 : -1]
        written = {**rows, "teacher_hidden": features, "truncated": found.truncated}
        kept = {n: train[n] for n in ("id", "where", "solution_cut") if n in train}
        return {**batch, "train": {**kept, **written}}, context.memory

    def objective(variables, batch, context):
        train = batch["train"]
        reading = read_student(model, config, variables, train, context.rng)
        tokens, where = (x[:, prompt_length - 1 :] for x in targets(train))
        found = total(
            config,
            reading.hidden[:, prompt_length - 1 :],
            reading.head,
            train["teacher_hidden"],
            head_of(model, judge(variables)),
            tokens,
            where,
        )
        metrics = {
            "answer_length": mean(where.sum(1, dtype=jnp.float32), train["where"]),
            "truncated": mean(train["truncated"].astype(jnp.float32), train["where"]),
        }
        if "solution_cut" in train:
            cut = train["solution_cut"].astype(jnp.float32)
            metrics["solution_cut"] = mean(cut, train["where"])
        name = config.loss
        return Evaluation({name: Term(*found)}, {"student": reading.variables}, metrics=metrics)

    averaged = config.teacher == "ema"
    update = Update(
        objective,
        ("student",),
        training.transformation,
        microbatches=training.microbatches,
        loss_scale=training.scaling,
        after=follow("student", "teacher", config.ema_decay, copy_first=True) if averaged else None,
    )
    carries = ("teacher",) if averaged else ()
    return Program((update,), prepare=prepare, schedules=training.schedules, carries=carries)


def check(task: LanguageTask, config: Config) -> int:
    """The place where answers begin; refuses a task that has no privileged teacher, or no room."""
    prompted.check_live_teacher(task)
    start = prompted.prompt_length(task)
    split, model = task.dataset.splits["train"], task.decoders["student"]
    fields = split.fields
    missing = [name for name in FIELDS if name not in fields]
    if missing:
        raise ValueError(
            f"{split.where} has no {missing[0]!r}: the teacher needs prompts with the solutions, "
            "as of kdjax.data.privileged.privileged_dataset"
        )
    shown = np.asarray(split.arrays()["teacher_prompt_where"])
    if not shown[:, -1].all():
        row = int(np.flatnonzero(~shown[:, -1])[0])
        raise ValueError(
            f"row {row} of {split.where} has a teacher's prompt that does not end at the last of "
            f"its {shown.shape[1]} places: pad it on the left"
        )
    room = fields["tokens"][0] - start
    new = room if config.max_new_tokens is None else config.max_new_tokens
    if new > room:
        raise ValueError(
            f"max_new_tokens={new} is more than the {room} tokens that rows have for an answer"
        )
    length = fields["teacher_prompt"][0] + new + sum(fields.get("transition", ()))
    if config.max_rationale_tokens:
        for name in ("request", "transition"):
            if name not in fields:
                raise ValueError(
                    f"max_rationale_tokens={config.max_rationale_tokens} needs {name!r} in "
                    f"{split.where}: give it in the Templates"
                )
        length += fields["request"][0] + config.max_rationale_tokens
    if length > model.max_length:
        raise ValueError(
            f"the teacher's context of {length} tokens is longer than the model's max_length of "
            f"{model.max_length}: take a smaller teacher_length"
        )
    return start


def recipe(task: LanguageTask, config: Config) -> Generator:
    """One stage of distillation, of a model that has been trained: `initial` of the task."""
    start = check(task, config)
    model, training, lora = task.decoders["student"], task.training["student"], config.lora
    step = program(model, training, config, start, (task.tokenizer.end,))
    student, validation = task.variables("student"), task.validation("student")
    roles: dict[str, Any] = {"student": student}
    if lora is not None:
        roles = {"base": student, "student": lora.init(task.key("lora of student"), student)}
        validation = dataclasses.replace(validation, evaluate=_merged_metrics(model, config))
    if config.teacher == "ema" or (config.teacher == "fixed" and lora is None):
        # A copy: the student's own arrays are given up when it changes.
        roles["teacher"] = jax.tree.map(jnp.array, roles["student"])
    outcome = yield Stage(
        "distill",
        step,
        roles,
        {"train": task.stream("student")},
        training.steps,
        validation=validation,
    )
    found = Trained.of(outcome, "student")
    if lora is None:
        return found
    last, selected = (lora.merge(student, x) for x in (found.last, found.selected))
    return dataclasses.replace(found, last=last, selected=selected)


@functools.lru_cache(maxsize=64)
def _merged_metrics(model: DecoderConfig, config: Config):
    scores = language_metrics("student", model)

    def evaluate(variables, batch):
        return scores({"student": whole(config, variables, "student")}, batch)

    return evaluate
