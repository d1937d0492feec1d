"""Contrastive partial ranking distillation (CPRD): a cross-encoder orders the hard negatives.

How to Make Cross Encoder a Good Teacher for Efficient Image-Text Retrieval?, Chen et al. 2024
(arXiv:2407.07479), CVPR 2024.

A cross-encoder ranks better than a dual encoder but cannot be indexed. Its scores are concentrated
where those of a dual encoder are spread, so that values transfer badly; ranks have no scale, and
of these only the ones among hard negatives are knowledge. Per query the K negatives that the
student scores highest are sorted by the teacher, and each of the valid ones is the positive of a
contrast with those below it:

    L = InfoNCE + w/2 sum_directions 1/|V| sum_{j in V} ( logsumexp_{k >= j} s_k / T - s_j / T )

The temperature is the one of InfoNCE, and learned. The student's text that reads as another one of
the batch is no negative of it. The other transfers are the baselines: the same K items, another
loss (`score_mse`, `listwise_kl`, `ranknet`), or other items (`negatives="random"`). The negatives
are those of the batch, all of whose pairs the teacher scores.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Generator
from typing import ClassVar

import jax
import jax.numpy as jnp

from kdjax import losses
from kdjax.methods import contrastive
from kdjax.methods.retrieval_task import FIELDS, RetrievalTask, one_text, similarity
from kdjax.methods.task import Fields, Trained, inputs
from kdjax.networks import Network
from kdjax.training import Evaluation, Program, Term, Update, mean, traced
from kdjax.training.optimizers import Training

TASKS = ("retrieval",)
TRANSFERS = ("partial_ranking", "score_mse", "listwise_kl", "ranknet")
NEGATIVES = ("hard", "random")


@dataclasses.dataclass(frozen=True)
class Config:
    """Attributes:
    candidates: K, negatives a query, at least 2 and fewer than the batch has.
    valid_fraction: of the K, those that the teacher ranks first are taught; in [0, 1]. 1: ListMLE.
    distillation_weight: w, >= 0; the mean of the two directions counts so much, their sum 2.
    tie_tolerance: >= 0; neighbours in the ranking that are no further apart have no order.
    transfer: "partial_ranking" (CPRD), or a baseline: "score_mse" (cosines against the
      probability of a match), "listwise_kl", "ranknet".
    negatives: "hard", by the student's scores, or "random".
    """

    candidates: int = 16
    valid_fraction: float = 0.5
    distillation_weight: float = 1.0
    tie_tolerance: float = 0.0
    transfer: str = "partial_ranking"
    negatives: str = "hard"

    traced: ClassVar[tuple[str, ...]] = ("distillation_weight", "valid_fraction")

    def __post_init__(self):
        if isinstance(self.candidates, bool) or not isinstance(self.candidates, int):
            raise ValueError(f"candidates must be an integer, got {self.candidates!r}")
        if self.candidates < 2:
            raise ValueError(f"candidates must be at least 2, got {self.candidates}")
        if not 0 <= self.valid_fraction <= 1:
            raise ValueError(f"valid_fraction must be in [0, 1], got {self.valid_fraction}")
        for name in ("distillation_weight", "tie_tolerance"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        for name, known in (("transfer", TRANSFERS), ("negatives", NEGATIVES)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {known}, got {getattr(self, name)!r}")


def transferred(cosines, teacher_scores, negative, scale, rng, config: Config):
    """The loss of each query, `[B]`, in one direction, and which queries have one.

    `cosines` and `teacher_scores` `[B, B]`, a query a row; `negative` bool `[B, B]`.
    """
    pool = cosines
    if config.negatives == "random":
        pool = jax.random.uniform(rng, cosines.shape)
    mined = losses.mine_hard_negatives(pool, ~negative, negatives=config.candidates)
    student, teacher = (
        jnp.take_along_axis(x, mined.indices, axis=1) for x in (cosines, teacher_scores)
    )
    found, teacher = mined.found, jax.lax.stop_gradient(teacher)
    some = found.sum(1) > 1
    if config.transfer == "partial_ranking":
        valid = losses.valid_negatives(teacher, fraction=config.valid_fraction, where=found)
        loss = losses.partial_ranking_contrastive_loss(
            student,
            teacher,
            valid,
            temperature=1 / scale,
            tie_tolerance=config.tie_tolerance,
            where=found,
        )
        return loss / jnp.maximum(valid.sum(1), 1), some
    if config.transfer == "score_mse":
        error = jnp.where(found, (student - jax.nn.sigmoid(teacher)) ** 2, 0.0)
        return error.sum(1) / jnp.maximum(found.sum(1), 1), some
    if config.transfer == "ranknet":
        return losses.ranknet(scale * student, teacher, where=found), some
    # The cross-entropy less the entropy of the teacher, which is the listwise loss at its minimum.
    least = losses.listnet(teacher, teacher, where=found)
    return losses.listnet(scale * student, teacher, where=found) - least, some


@functools.lru_cache(maxsize=64)
def program(
    student: Network,
    teacher: Network,
    training: Training,
    config: Config,
    fields: Fields = FIELDS,
    teacher_fields: Fields = FIELDS,
) -> Program:
    """One update of the student on the stream `train`."""
    embedded = contrastive.embed("student", student, fields)

    def prepare(variables, batch, context):
        train = one_text(batch["train"], context.rng)
        out = teacher.apply(variables["teacher"], *inputs(train, teacher_fields)).output
        return {**batch, "train": {**train, "teacher_scores": similarity(out)}}, context.memory

    def objective(variables, batch, context):
        c, found, new = traced.bind(config, context.values), batch.get("embeddings"), {}
        if found is None:
            found, new = embedded(variables, batch, context)
        train = batch["train"]
        where, scale = train["where"], contrastive.scale_of(student, variables["student"])
        if config.candidates >= len(where):
            raise ValueError(
                f"candidates={config.candidates} must be fewer than the {len(where)} of a batch"
            )
        nce = losses.clip_info_nce(found["image"], found["text"], scale=scale, where=where)
        texts = train["tokens"]
        negative = jnp.any(texts[:, None] != texts[None], axis=-1)
        negative &= where[:, None] & where[None]
        cosines, taught = found["image"] @ found["text"].T, train["teacher_scores"]
        rngs = jax.random.split(context.rng)
        terms = {"info_nce": mean(nce, where)}
        for name, one, other, rng in (
            ("of_images", cosines, taught, rngs[0]),
            ("of_texts", cosines.T, taught.T, rngs[1]),
        ):
            loss, some = transferred(one, other, negative, scale, rng, c)
            terms[f"{config.transfer}_{name}"] = mean(loss, where & some, c.distillation_weight / 2)
        return Evaluation(terms, new, metrics={"scale": Term(scale, scale * 0 + 1)})

    update = Update(
        objective,
        ("student",),
        training.transformation,
        microbatches=training.microbatches,
        batchwise=True,
        embed=embedded if training.microbatches > 1 else None,
        loss_scale=training.scaling,
    )
    values = traced.names(training, config)
    return Program((update,), prepare, training.schedules, values=values)


def recipe(task: RetrievalTask, config: Config) -> Generator:
    """A teacher, given or trained to match pairs, then one stage of a student by both losses."""
    if task.cache_teacher:
        raise ValueError(
            "cprd needs the teacher's scores of the pairs of a batch: no cache_teacher"
        )
    teacher = yield from contrastive.teacher(task)
    student, training = task.networks["student"], task.training["student"]
    fixed = traced.static(training), traced.static(config)
    reads = task.reads("student"), task.reads("teacher")
    step = program(student, task.networks["teacher"], *fixed, *reads)
    outcome = yield from task.distill(step, teacher, values=traced.values(training, config))
    return Trained.of(outcome, "student")
