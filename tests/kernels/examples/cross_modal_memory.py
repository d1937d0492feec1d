"""Examples of relations to a memory, and of a critic's losses."""

import numpy as np

from kdjax.losses import dense_memory
from kernels.examples.example import Example, Refused, draw, normal

KEY = np.array([0, 7], np.uint32)
LABELS = np.array([[[0, 1, 0], [1, 1, 255]], [[1, 0, 1], [1, 0, 1]]])


def flat(function):
    """The function with the fields of its memory as arguments of their own."""

    def flattened(buffer, pointer, filled, **others):
        memory = dense_memory.ClassMemory(buffer, pointer, filled)
        return function(memory=memory, **others)

    flattened.__doc__ = f"{function.__doc__}{dense_memory.ClassMemory.__doc__}"
    return flattened


MEMORY = dict(buffer=normal(3, 4, 5), pointer=np.array([1, 3, 0]), filled=np.array([4, 3, 0]))
ANCHORS = np.array([[True, True, False], [True, False, True]])

EXAMPLES = {
    "empty_memory": Example(
        dense_memory.empty_memory,
        draw(),
        {"num_classes": 2, "num_slots": 3, "num_features": 4},
        jitted=False,
        refused=(
            Refused({"num_slots": 0}, "num_slots must be >= 1, got 0"),
            Refused({"num_classes": 1.0}, "num_classes must be an integer", TypeError),
        ),
    ),
    "enqueue_by_class": Example(
        flat(dense_memory.enqueue_by_class),
        draw(
            **MEMORY,
            embeddings=normal(6, 5),
            labels=np.array([0, 1, 2, 2, -1, 1]),
            where=np.array([True, True, False, True, True, True]),
        ),
        stopped=("buffer", "embeddings"),
        extreme=("embeddings",),
        batched=("embeddings", "labels", "where"),
        masked={"embeddings": 2},
        refused=(
            Refused({"embeddings": np.zeros((6, 4), np.float32)}, "embeddings .*features = 5"),
            Refused({"labels": np.zeros(5, int)}, "labels must have the shape"),
            Refused({"labels": np.zeros(6)}, "labels must be integers", TypeError),
            Refused({"where": np.zeros(6)}, "where must be boolean", TypeError),
        ),
    ),
    "sample_memory": Example(
        flat(dense_memory.sample_memory),
        draw(key=KEY, **MEMORY),
        {"slots_per_class": 3},
        stopped=("buffer",),
        refused=(Refused({"slots_per_class": 5}, "slots_per_class must be >= 1 and <= 4, got 5"),),
    ),
    "region_embeddings": Example(
        dense_memory.region_embeddings,
        draw(teacher_features=normal(2, 2, 3, 4), labels=LABELS),
        {"num_classes": 2},
        extreme=("teacher_features",),
        batched=("teacher_features", "labels"),
        refused=(
            Refused({"labels": LABELS[:1]}, "labels must have the shape"),
            Refused({"num_classes": 0}, "num_classes must be >= 1, got 0"),
        ),
    ),
    "pixel_embeddings": Example(
        dense_memory.pixel_embeddings,
        draw(key=KEY, teacher_features=normal(2, 2, 3, 4), labels=LABELS),
        {"num_classes": 2, "pixels_per_class": 3},
        extreme=("teacher_features",),
        batched=("teacher_features", "labels"),
        refused=(
            Refused({"labels": LABELS[:1]}, "labels must have the shape"),
            Refused({"pixels_per_class": 7}, "pixels_per_class must be >= 1 and <= 6, got 7"),
        ),
    ),
    "memory_relation_kd": Example(
        dense_memory.memory_relation_kd,
        draw(
            student_embeddings=normal(2, 3, 4),
            teacher_embeddings=normal(2, 3, 4),
            memory_embeddings=normal(5, 4, scale=0.5),
            memory_valid=np.array([True, True, False, True, True]),
            where=ANCHORS,
        ),
        {"temperature": 0.5},
        differentiated=("student_embeddings",),
        stopped=("memory_embeddings",),
        extreme=("student_embeddings", "teacher_embeddings"),
        batched=("student_embeddings", "teacher_embeddings", "where"),
        masked={"student_embeddings": (0, 2), "teacher_embeddings": (0, 2)},
        refused=(
            Refused({"temperature": 0.0}, "temperature must be finite and > 0, got 0"),
            Refused({"teacher_embeddings": np.zeros((2, 3, 5), np.float32)}, "teacher_embeddings"),
            Refused({"memory_embeddings": np.zeros((5, 3), np.float32)}, "memory_embeddings must"),
            Refused({"memory_valid": np.ones(4, bool)}, "memory_valid must have the shape"),
            Refused({"where": ANCHORS[0]}, "where must have the shape"),
        ),
    ),
    "wgan_critic": Example(
        dense_memory.wgan_critic,
        draw(fake_scores=normal(4), real_scores=normal(4)),
        differentiated=("fake_scores", "real_scores"),
        extreme=("fake_scores", "real_scores"),
        batched=("fake_scores", "real_scores"),
        refused=(Refused({"real_scores": np.zeros(3, np.float32)}, "real_scores must be shaped"),),
    ),
    "wgan_generator": Example(
        dense_memory.wgan_generator,
        draw(fake_scores=normal(4)),
        differentiated=("fake_scores",),
        extreme=("fake_scores",),
        batched=("fake_scores",),
        refused=(Refused({"fake_scores": np.zeros(3, int)}, "fake_scores must be", TypeError),),
    ),
    "wgan_gradient_penalty": Example(
        dense_memory.wgan_gradient_penalty,
        draw(gradients=normal(4, 2, 3)),
        differentiated=("gradients",),
        extreme=("gradients",),
        batched=("gradients",),
        refused=(Refused({"gradients": np.zeros(3, np.float32)}, "gradients must be shaped"),),
    ),
}
