"""Distillation on fixed sequences: word by word on the data's, or on what the teacher writes.

Kim and Rush 2016, "Sequence-Level Knowledge Distillation", EMNLP 2016 (arXiv:1606.07947).

- Word-level: the student matches the teacher's next-token distribution at every place of the data.
- Sequence-level (`SEQUENCE_LEVEL`): the teacher answers every training prompt once, and its answers
  take the place of the data's; the student learns them by cross-entropy, or by a divergence too.

The paper decodes by beam search (5 beams), which finds the mode of the teacher; here answers are
sampled, as in DistiLLM's script (Ko et al. 2024, arXiv:2402.03898), or, at `answer_temperature` 0,
greedy. The loss is `token_divergence`'s; other divergences than the KL are those of later papers.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Generator, Mapping
from typing import Any

from kdjax.methods import language_model, prompted
from kdjax.methods.language_task import LanguageTask, head_of, read, teach
from kdjax.methods.task import Trained
from kdjax.methods.token_divergence import Divergence, terms
from kdjax.networks.transformer import DecoderConfig
from kdjax.training import Evaluation, Program, Update
from kdjax.training.optimizers import Training

TASKS = ("language",)
# What makes `Config` the paper's SeqKD.
SEQUENCE_LEVEL: Mapping[str, Any] = dict(
    answers="teacher", label_weight=1.0, distillation_weight=0.0
)


@dataclasses.dataclass(frozen=True)
class Config(Divergence):
    """The loss, with the fields of `Divergence`, and whose sequences it is taken on.

    Attributes:
      answers: "data", or "teacher": answers that the teacher writes to the data's prompts.
      answer_temperature: >= 0, of the teacher's sampling; 0 takes the most probable token.

    >>> Config(**SEQUENCE_LEVEL).answers
    'teacher'
    """

    answers: str = "data"
    answer_temperature: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        if self.answers not in ("data", "teacher"):
            raise ValueError(f"answers must be 'data' or 'teacher', got {self.answers!r}")
        if not self.answer_temperature >= 0:
            raise ValueError(
                f"answer_temperature must not be negative, got {self.answer_temperature}"
            )


@functools.lru_cache(maxsize=64)
def program(
    student: DecoderConfig, teacher: DecoderConfig, training: Training, config: Divergence
) -> Program:
    """One update of the student on the stream `train`."""

    def objective(variables, batch, context):
        batch = batch["train"]
        reading = read(student, variables["student"], batch, train=True, rng=context.rng)
        head = head_of(teacher, variables["teacher"])
        found = terms(config, reading, batch.get("teacher_hidden"), head, batch)
        return Evaluation(found, {"student": reading.variables})

    update = Update(
        objective,
        ("student",),
        training.transformation,
        microbatches=training.microbatches,
        loss_scale=training.scaling,
    )
    prepare = teach(teacher) if config.distillation_weight else None
    return Program((update,), prepare=prepare, schedules=training.schedules)


def recipe(task: LanguageTask, config: Config) -> Generator:
    """A teacher, given or trained; its answers where they are asked for; one stage on them."""
    teacher = yield from language_model.teacher(task)
    if config.answers == "teacher":
        task = yield from prompted.answered(task, teacher, config.answer_temperature)
    step = program(
        task.decoders["student"], task.decoders["teacher"], task.training["student"], config
    )
    outcome = yield from task.distill(step, teacher)
    return Trained.of(outcome, "student")
