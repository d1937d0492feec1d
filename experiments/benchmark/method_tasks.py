"""Tasks of random data on which every method takes a step: what a step costs, not what it learns.

Each is one pair of networks and one batch for all methods that are compared on it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from kdjax import data, networks
from kdjax.data import Dataset, Split, TextDataset
from kdjax.data.tokenizers import ByteTokenizer
from kdjax.methods.generation_task import Diffusion, GenerationTask, held_out
from kdjax.methods.language_task import LanguageTask
from kdjax.methods.retrieval_task import RetrievalTask
from kdjax.methods.task import Task
from kdjax.networks.transformer import DecoderConfig
from kdjax.training.optimizers import Training

SPLITS = ("train", "validation", "test")
STEPS = 10**6  # no stage of a method comes to its end
TOKENIZER = ByteTokenizer()
DOMAINS = ("a", "b", "c", "d")


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Of networks, data and batches. The fields are options of `networks.build`, or numbers.

    Attributes:
      teacher, student, image, classes, batch, rows: of images, `image` pixels wide; `rows` are
        those of a split, of texts and pairs too.
      maps: of teacher and student, the values that are compared or masked.
      reader, writer: decoders, of the teacher and of the student.
      prompt, answer, text_batch: tokens of a row, and rows.
      tower, other_tower: of a teacher and a student that read pairs.
      pair_batch, candidates: pairs, and negatives of each.
      denoiser, generator, dimension, noise_batch: of what makes examples from noise.
      space: of architectures, and the evaluations that a search may have.
    """

    teacher: Mapping[str, Any]
    student: Mapping[str, Any]
    image: int
    classes: int
    batch: int
    rows: int
    maps: tuple[str, str]
    reader: Mapping[str, Any]
    writer: Mapping[str, Any]
    prompt: int
    answer: int
    text_batch: int
    tower: int
    other_tower: int
    pair_batch: int
    candidates: int
    denoiser: tuple[int, ...]
    generator: tuple[int, ...]
    dimension: int
    noise_batch: int
    space: Mapping[str, tuple]
    evaluations: int


USUAL = Sizes(
    teacher=dict(name="resnet20"),
    student=dict(name="resnet8"),
    image=32,
    classes=100,
    batch=64,
    rows=1024,
    maps=("stage3/out", "stage3/out"),
    reader=dict(width=128, num_layers=4, num_heads=4, hidden=384),
    writer=dict(width=64, num_layers=2, num_heads=4, hidden=192),
    prompt=64,
    answer=64,
    text_batch=16,
    tower=64,
    other_tower=32,
    pair_batch=64,
    candidates=16,
    denoiser=(512, 512, 512),
    generator=(256, 256, 256),
    dimension=64,
    noise_batch=256,
    space={"depth/0": (1, 2, 3), "depth/1": (1, 2, 3), "depth/2": (1, 2, 3)},
    evaluations=10,
)
TINY = Sizes(
    teacher=dict(name="convnet", widths=(8, 6), strides=(2, 2)),
    student=dict(name="convnet", widths=(6, 6), strides=(2, 2)),
    image=8,
    classes=4,
    batch=8,
    rows=64,
    maps=("block1/out", "block1/out"),
    reader=dict(width=12, num_layers=1, num_heads=2, hidden=16),
    writer=dict(width=8, num_layers=1, num_heads=2, hidden=12),
    prompt=4,
    answer=4,
    text_batch=4,
    tower=8,
    other_tower=8,
    pair_batch=8,
    candidates=2,
    denoiser=(8,),
    generator=(8,),
    dimension=4,
    noise_batch=8,
    space={"widths/0": (4, 6)},
    evaluations=2,
)


def training(batch_size: int) -> Training:
    return Training(steps=STEPS, batch_size=batch_size, optimizer="sgd", learning_rate=0.01)


def images_of(sizes: Sizes) -> Dataset:
    """Random images, whole and in two halves, with as many examples of each class."""
    rng = np.random.default_rng(0)
    side, splits = sizes.image, {}
    for split in SPLITS:
        both = rng.integers(0, 256, (sizes.rows, side, side, 3), np.uint8)
        halves = {"left": both[:, :, : side // 2], "right": both[:, :, side // 2 :]}
        label = np.arange(sizes.rows, dtype=np.int32) % sizes.classes
        splits[split] = Split.of({"image": both, **halves, "label": label}, f"random/{split}")
    return Dataset("random images", splits, tuple(map(str, range(sizes.classes))))


def network(options: Mapping[str, Any], classes: int, changes: Mapping[str, Any] = {}):
    options = networks.changed(options, changes)
    return networks.build(options.pop("name"), classes, **options)


def given(task: Task) -> Task:
    """The task with a teacher that is there already, as it was initialised."""
    return task.with_teacher(task.variables("teacher"))


def images(sizes: Sizes) -> Task:
    """Images of all methods of classification; the student's blocks may be searched for."""
    student = dict(sizes.student)
    if student["name"].startswith("resnet"):  # of any number of blocks, at first those of its name
        student = {"name": "resnet", "depth": (1, 1, 1)}
    task = Task(
        images_of(sizes),
        {role: network(getattr(sizes, role), sizes.classes) for role in ("teacher", "student")},
        {role: training(sizes.batch) for role in ("teacher", "student")},
        variants={"student": functools.partial(network, student, sizes.classes)},
    )
    return given(task)


def halves(sizes: Sizes) -> Task:
    """The left halves for the student, the right ones for one teacher, both for the other."""
    roles = {"teacher": "image", "cross_modal_teacher": "right", "student": "left"}
    nets = {role: sizes.student if role == "student" else sizes.teacher for role in roles}
    task = Task(
        images_of(sizes),
        {role: network(options, sizes.classes) for role, options in nets.items()},
        {role: training(sizes.batch) for role in ("teacher", "student")},
        input=roles,
    )
    return given(task)


def texts_of(sizes: Sizes) -> TextDataset:
    """Random bytes: a prompt, its answer, a domain, and another prompt for a teacher."""
    rng, length = np.random.default_rng(0), sizes.prompt + sizes.answer
    there = np.broadcast_to(np.arange(length, dtype=np.int32), (sizes.rows, length))
    splits = {}
    for split in SPLITS:
        arrays = {
            "tokens": rng.integers(0, TOKENIZER.end, there.shape).astype(np.int32),
            "completion": there >= sizes.prompt,
            "segments": np.ones_like(there),
            "positions": there,
            "domain": np.arange(sizes.rows, dtype=np.int32) % len(DOMAINS),
            "teacher_prompt": rng.integers(0, TOKENIZER.end, (sizes.rows, 2 * sizes.prompt)),
            "teacher_prompt_where": np.ones((sizes.rows, 2 * sizes.prompt), bool),
        }
        arrays["teacher_prompt"] = arrays["teacher_prompt"].astype(np.int32)
        splits[split] = Split.of(arrays, f"random/{split}")
    return TextDataset("random bytes", splits, (), DOMAINS, {}, {})


def texts(sizes: Sizes, *, alone: bool = False) -> LanguageTask:
    """Texts of all methods of language; `alone`: teacher and student are one decoder."""
    length = 2 * sizes.prompt + sizes.answer
    student, teacher = (
        DecoderConfig(vocabulary=TOKENIZER.vocabulary, max_length=length, **options)
        for options in (sizes.writer, sizes.writer if alone else sizes.reader)
    )
    task = LanguageTask(
        texts_of(sizes),
        training={role: training(sizes.text_batch) for role in ("teacher", "student")},
        decoders={"teacher": teacher, "student": student},
        tokenizer=TOKENIZER,
    )
    return given(task)


def pairs(sizes: Sizes) -> RetrievalTask:
    """Images with a text each."""
    rng, side = np.random.default_rng(0), sizes.image
    found = data.caption_dataset(
        {split: rng.integers(0, 256, (sizes.rows, side, side, 3), np.uint8) for split in SPLITS},
        {split: [[f"{split} text {row:08}"] for row in range(sizes.rows)] for split in SPLITS},
        TOKENIZER,
        name="random pairs",
    )
    nets = {}
    for role, name in (("teacher", "cross_encoder"), ("student", "dual_encoder")):
        width = sizes.tower if role == "teacher" else sizes.other_tower
        tower = dict(width=width, depth=2, heads=2)
        image = dict(name="vit", patch=max(side // 4, 2), pool="mean", **tower)
        options = dict(image=image, text=tower, embedding=width)
        nets[role] = networks.build(name, TOKENIZER.vocabulary, **options)
    return given(RetrievalTask(found, nets, {role: training(sizes.pair_batch) for role in nets}))


def noises(sizes: Sizes) -> GenerationTask:
    """A diffusion model and a generator, both perceptrons."""
    teacher, student = (
        networks.build("denoising_mlp", sizes.dimension, widths=widths)
        for widths in (sizes.denoiser, sizes.generator)
    )
    task = GenerationTask(
        held_out("noise", 8, 8),
        {"student": student},
        {"student": training(sizes.noise_batch)},
        diffusion=Diffusion(teacher, (sizes.dimension,)),
    )
    return given(task)
