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
loss (`score_mse`, `listwise_kl`, `ranknet`), or other items (`negatives="random"`). The teacher
scores every query with every item of its pool.

The pool is the batch. With `queue` it is the batch and the pairs before it, and its items are
embedded by momentum encoders: a moving average of the student, run without dropout (ALBEF, Li et
al. 2021, arXiv:2107.07651; whether CPRD's authors mine from a queue is not known). A queue keeps
what was embedded and the inputs themselves, for the teacher to read. In it, other texts of a
query's image and equal texts are negatives of neither loss.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Generator, Mapping
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from kdjax import losses
from kdjax.methods import contrastive
from kdjax.methods.retrieval_task import (
    FIELDS,
    OF_CAPTIONS,
    RetrievalTask,
    one_text,
    similarity,
)
from kdjax.methods.task import Fields, Trained, inputs
from kdjax.networks import Network
from kdjax.training import Evaluation, Program, Term, Update, mean, traced
from kdjax.training.averages import follow
from kdjax.training.optimizers import Training

TASKS = ("retrieval",)
TRANSFERS = ("partial_ranking", "score_mse", "listwise_kl", "ranknet")
NEGATIVES = ("hard", "random")


@dataclasses.dataclass(frozen=True)
class Config:
    """Attributes:
    candidates: K, negatives a query, at least 2 and fewer than batch and queue have.
    valid_fraction: of the K, those that the teacher ranks first are taught; in [0, 1]. 1: ListMLE.
    distillation_weight: w, >= 0; the mean of the two directions counts so much, their sum 2.
    tie_tolerance: >= 0; neighbours in the ranking that are no further apart have no order.
    transfer: "partial_ranking" (CPRD), or a baseline: "score_mse" (cosines against the
      probability of a match), "listwise_kl", "ranknet".
    negatives: "hard", by the student's scores, or "random".
    queue: Q, >= 0, pairs before the batch that are in the pool too; 0: none, and no momentum
      encoders. ALBEF has 65,536.
    momentum: decay of the momentum encoders, in [0, 1]; nothing reads it without a queue.
    """

    candidates: int = 16
    valid_fraction: float = 0.5
    distillation_weight: float = 1.0
    tie_tolerance: float = 0.0
    transfer: str = "partial_ranking"
    negatives: str = "hard"
    queue: int = 0
    momentum: float = 0.995

    traced: ClassVar[tuple[str, ...]] = ("distillation_weight", "valid_fraction")

    def __post_init__(self):
        for name, least in (("candidates", 2), ("queue", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise ValueError(f"{name} must be an integer, got {value!r}")
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        for name in ("valid_fraction", "momentum"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")
        for name in ("distillation_weight", "tie_tolerance"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        for name, known in (("transfer", TRANSFERS), ("negatives", NEGATIVES)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {known}, got {getattr(self, name)!r}")


class Queue(NamedTuple):
    """The last Q pairs, the oldest first; places that are not filled yet come before them.

    Attributes:
      image, text: `[Q, D]`, what the momentum encoders of their step made of them; unit vectors.
      inputs: field -> `[Q, ...]`: what the teacher reads of them, and their `tokens`.
      id: int32 `[Q]`, the rows of their images.
      where: bool `[Q]`, which places are filled.
    """

    image: jax.Array
    text: jax.Array
    inputs: Mapping[str, jax.Array]
    id: jax.Array
    where: jax.Array

    @staticmethod
    def empty(task: RetrievalTask, size: int) -> Queue:
        """Places for so many pairs of a task."""
        read = {
            n: x for r in ("student", "teacher") for n, x in zip(task.reads(r), task.examples(r))
        }
        names = dict.fromkeys((*task.reads("teacher"), "tokens"))
        width = task.outputs("student")["image"].shape[-1]
        return Queue(
            jnp.zeros((size, width)),
            jnp.zeros((size, width)),
            {n: jnp.zeros((size, *read[n].shape[1:]), read[n].dtype) for n in names},
            jnp.zeros(size, jnp.int32),
            jnp.zeros(size, bool),
        )

    def followed_by(self, batch: Queue) -> Queue:
        """The last Q of these pairs and those of a batch; padding takes no place."""
        filled = jnp.concatenate([self.where, batch.where])
        last = jnp.argsort(filled, stable=True)[-len(self.where) :]
        return jax.tree.map(lambda old, new: jnp.concatenate([old, new])[last], self, batch)


def others(queries: Mapping[str, jax.Array], items: Mapping[str, jax.Array]) -> jax.Array:
    """Which items are negatives of which queries, bool `[B, N]`: of another image and text.

    Both have `tokens`, `id` and `where`; padding is no negative, and has none.
    """
    pairs = {n: (queries[n][:, None], items[n][None]) for n in ("tokens", "id", "where")}
    (text, other_text), (image, other_image), (real, other_real) = pairs.values()
    return jnp.any(text != other_text, axis=-1) & (image != other_image) & real & other_real


def transferred(cosines, teacher_scores, negative, scale, rng, config: Config):
    """The loss of each query, `[B]`, in one direction, and which queries have one.

    `cosines` and `teacher_scores` `[B, N]`, a query a row; `negative` bool `[B, N]`.
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
    """One update of the student on the stream `train`; memory: the `Queue`, if there is one."""
    embedded = contrastive.embed("student", student, fields)

    def scored(variables, images, texts):
        read = {n: (texts if n in OF_CAPTIONS else images)[n] for n in teacher_fields}
        return similarity(teacher.apply(variables["teacher"], *inputs(read, teacher_fields)).output)

    def prepare(variables, batch, context):
        train = one_text(batch["train"], context.rng)
        train["teacher_scores"] = scored(variables, train, train)
        if config.queue:
            older, encoders = context.memory.inputs, variables["momentum"]
            train["queue_scores"] = {
                "image": scored(variables, train, older),
                "text": scored(variables, older, train).T,
            }
            keys = student.apply(encoders, *inputs(train, fields)).output
            train["keys"] = {name: keys[name] for name in ("image", "text")}
        return {**batch, "train": train}, context.memory

    def with_queue(found, train, queue, scale):
        """InfoNCE `[B]`, and for each direction `[B, B + Q]`: cosines, scores, negatives."""
        where, within = train["where"], others(train, train)
        older = others(train, {**queue.inputs, "id": queue.id, "where": queue.where})
        among = jnp.concatenate([where[:, None] & where, older], 1)
        nce, pools = [], []
        for query, item, scores in (
            ("image", "text", train["teacher_scores"]),
            ("text", "image", train["teacher_scores"].T),
        ):
            keys = jnp.concatenate([train["keys"][item], getattr(queue, item)])
            nce.append(losses.info_nce(found[query], keys, temperature=1 / scale, where=among))
            scores = jnp.concatenate([scores, train["queue_scores"][query]], 1)
            pools.append((found[query] @ keys.T, scores, jnp.concatenate([within, older], 1)))
        return sum(nce) / 2, pools

    def objective(variables, batch, context):
        c, found, new = traced.bind(config, context.values), batch.get("embeddings"), {}
        if found is None:
            found, new = embedded(variables, batch, context)
        train, memory = batch["train"], None
        where, scale = train["where"], contrastive.scale_of(student, variables["student"])
        if config.candidates >= len(where) + config.queue:
            further = f" and the {config.queue} of its queue" if config.queue else ""
            raise ValueError(
                f"candidates={config.candidates} must be fewer than the {len(where)} of a batch"
                + further
            )
        if config.queue:
            nce, pools = with_queue(found, train, context.memory, scale)
            read = {n: train[n] for n in context.memory.inputs}
            pairs = Queue(**train["keys"], inputs=read, id=train["id"], where=where)
            memory = context.memory.followed_by(pairs)
        else:
            nce = losses.clip_info_nce(found["image"], found["text"], scale=scale, where=where)
            cosines, taught = found["image"] @ found["text"].T, train["teacher_scores"]
            negative = others(train, train)
            pools = (cosines, taught, negative), (cosines.T, taught.T, negative)
        rngs = jax.random.split(context.rng)
        terms = {"info_nce": mean(nce, where)}
        for name, pool, rng in zip(("of_images", "of_texts"), pools, rngs):
            loss, some = transferred(*pool, scale, rng, c)
            terms[f"{config.transfer}_{name}"] = mean(loss, where & some, c.distillation_weight / 2)
        return Evaluation(terms, new, memory, {"scale": Term(scale, scale * 0 + 1)})

    update = Update(
        objective,
        ("student",),
        training.transformation,
        microbatches=training.microbatches,
        batchwise=True,
        embed=embedded if training.microbatches > 1 else None,
        after=follow("student", "momentum", config.momentum) if config.queue else None,
        loss_scale=training.scaling,
    )
    return Program(
        (update,),
        prepare,
        training.schedules,
        carries=("momentum",) if config.queue else (),
        values=traced.names(training, config),
    )


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
    started = {}
    if config.queue:
        memory = Queue.empty(task, config.queue)
        started = {"extra": {"momentum": task.start("student")}, "memory": memory}
    values = traced.values(training, config)
    outcome = yield from task.distill(step, teacher, values=values, **started)
    return Trained.of(outcome, "student")
