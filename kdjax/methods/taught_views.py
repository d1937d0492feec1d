"""A teacher's answers for augmented views, kept on disk: one for each view of the student."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import jax

from kdjax.data import augmentations
from kdjax.data.prepared import data_dir
from kdjax.data.teacher_cache import (
    Contents,
    TeacherCache,
    fingerprint,
    processing_of,
    write_stream,
)
from kdjax.data.teacher_cache_stream import Taught
from kdjax.methods.inputs import inputs
from kdjax.networks import Network, logits_of
from kdjax.training import gather

if TYPE_CHECKING:
    from kdjax.methods.task import Task

PyTree = Any


def taught_views(task: Task, teacher: PyTree) -> Taught:
    """The student's batches with the teacher's logits of the very views that it sees.

    The logits lie under `KDJAX_DATA_DIR`, by the teacher's weights and computation, what it
    reads and what is done to that: one float32 entry for each example of each step, that is
    `steps * batch_size`, or one an example and epoch. They are computed where they are
    missing: after a kill, or for more steps. Another seed of the task has other views and a
    cache of its own.
    """
    training, split = task.training["student"], task.dataset.splits["train"]
    stream, teacher = task.stream("student"), gather(task.kept("teacher", teacher))
    reads, records = task.reads("teacher"), split.arrays()
    seen = {name: records[name] for name in ((reads,) if isinstance(reads, str) else reads)}
    fields = [*seen, "id", "epoch"]
    if "mixup" in [augmentation.name for augmentation in augmentations(training.augment)]:
        fields += ["partner_image", "partner_id"]
    forward = _logits(task.networks["teacher"])
    computation = forward.lower(teacher, *task.examples("teacher")).as_text()
    contents = Contents(
        "dense",
        task.num_outputs("teacher"),
        fingerprint({"computation": computation, "variables": teacher}),
        tuple(fields),
        preprocessing=processing_of(stream),
    )
    folder = data_dir() / "teacher_cache" / fingerprint([contents.to_json(), seen])[:32]
    variables = jax.device_put(teacher)
    write_stream(
        folder,
        stream,
        lambda batch: forward(variables, *inputs(batch, reads)),
        contents,
        steps=training.steps,
        split=split,
    )
    return TeacherCache(folder, contents).stream(stream, split)


@functools.lru_cache(maxsize=64)
def _logits(network: Network):
    return jax.jit(lambda variables, *x: logits_of(network.apply(variables, *x).output))
