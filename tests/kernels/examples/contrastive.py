"""Examples of contrast, with and without a memory."""

import numpy as np

from kdjax.losses import contrastive, memory_bank
from kernels.examples.example import Example, Refused, draw, normal

TEMPERATURE = Refused({"temperature": 0.0}, "temperature must be finite and > 0, got 0")
WHERE = Refused({"where": np.ones(4)}, "where must be boolean, got dtype float32", TypeError)
WRONG_RANK = np.ones(4, np.float32)


def rows(size, features=3):
    """Unit-norm rows."""

    def arrays(generator):
        values = generator.normal(size=(size, features))
        return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)

    return arrays


def integers(*shape, below):
    return lambda generator: generator.integers(0, below, shape).astype(np.int32)


def pairs_where(size, hidden):
    """Every pair takes part but those of a query and a key, and one more."""
    where = np.ones((size, size), bool)
    where[hidden] = where[:, hidden] = where[0, 2] = False
    return where


# Keys of a query in the first axis, that of the batch; query 1 and key 5 are padding.
PADDED_KEYS = np.ones((4, 32), bool)
PADDED_KEYS[:, 5] = PADDED_KEYS[1] = False

EXAMPLES = {
    "l2_normalize": Example(
        contrastive.l2_normalize,
        draw(features=normal(4, 3)),
        differentiated=("features",),
        extreme=("features",),
        batched=("features",),
        refused=(
            Refused({"features": np.ones((2, 3), int)}, "floating-point array, got", TypeError),
            Refused({"features": np.float32(1)}, r"must be shaped \[\.\.\., features\]"),
        ),
    ),
    "info_nce": Example(
        contrastive.info_nce,
        draw(query_features=rows(4), key_features=rows(6)),
        {"temperature": 0.5},
        differentiated=("query_features", "key_features"),
        extreme=("query_features", "key_features"),
        refused=(
            TEMPERATURE,
            Refused({"query_features": WRONG_RANK}, r"query_features must be shaped \[batch, feat"),
            Refused(
                {"key_features": np.ones((6, 2), np.float32)}, "features = 3 as in query_features"
            ),
            Refused({"key_features": np.ones((2, 3), np.float32)}, "for each of the 4 queries"),
            Refused({"positives": np.ones((6, 4), bool)}, r"positives must have the shape \(4, 6"),
            Refused({"where": np.ones((6, 4), bool)}, r"where must have the shape \(4, 6\)"),
        ),
    ),
    "info_nce: positives and where": Example(
        contrastive.info_nce,
        draw(
            query_features=rows(4),
            key_features=rows(32),
            positives=lambda generator: generator.random((4, 32)) < 0.3,
            where=PADDED_KEYS,
        ),
        {"temperature": 0.5},
        differentiated=("query_features", "key_features"),
        extreme=("query_features", "key_features"),
        batched=("query_features", "positives", "where"),
        masked={"query_features": 1, "key_features": 5},
    ),
    "clip_info_nce": Example(
        contrastive.clip_info_nce,
        draw(
            image_features=rows(4),
            text_features=rows(4),
            where=np.array([True, True, False, True]),
        ),
        {"scale": 2.0},
        differentiated=("image_features", "text_features"),
        extreme=("image_features", "text_features"),
        batched=("image_features", "text_features", "where"),
        masked={"image_features": 2, "text_features": 2},
        refused=(
            Refused({"scale": -1.0}, "scale must be finite and > 0, got -1"),
            Refused({"text_features": np.ones((3, 3), np.float32)}, "batch = 4 as in image_feat"),
            WHERE,
        ),
    ),
    "in_batch_scores": Example(
        contrastive.in_batch_scores,
        draw(query_features=rows(4), key_features=rows(4), where=pairs_where(4, hidden=1)),
        {"temperature": 0.5},
        differentiated=("query_features", "key_features"),
        extreme=("query_features", "key_features"),
        masked={"query_features": 1, "key_features": 1},
        refused=(
            TEMPERATURE,
            Refused({"key_features": np.ones((5, 3), np.float32)}, "batch = 4 as in query_feat"),
            Refused({"where": np.ones(4, bool)}, r"where must have the shape \(4, 4\) of queries"),
        ),
    ),
    "in_batch_scores: every pair": Example(
        contrastive.in_batch_scores,
        draw(query_features=rows(4), key_features=rows(4)),
        {"temperature": 0.5},
        differentiated=("query_features", "key_features"),
        batched=("query_features", "key_features"),
    ),
    "queue_scores": Example(
        contrastive.queue_scores,
        draw(
            query_features=rows(4),
            key_features=rows(4),
            queue=rows(6),
            where=np.array([True, True, True, True, False, False]),
        ),
        {"temperature": 0.5},
        differentiated=("query_features", "key_features"),
        stopped=("queue",),
        extreme=("query_features", "key_features", "queue"),
        batched=("query_features", "key_features"),
        masked={"queue": np.s_[4:]},
        refused=(
            TEMPERATURE,
            Refused({"queue": np.ones((3, 6), np.float32)}, "features = 3 as in query_features"),
            Refused({"where": np.ones(4, bool)}, r"where must have the shape \(6,\) of the queue"),
        ),
    ),
    "moco_info_nce": Example(
        contrastive.moco_info_nce,
        draw(
            student_features=rows(4),
            teacher_features=rows(4),
            queue=rows(6),
            where=np.array([True, False, True, True, True, True]),
        ),
        {"temperature": 0.5},
        differentiated=("student_features",),
        stopped=("queue",),
        extreme=("student_features", "teacher_features", "queue"),
        batched=("student_features", "teacher_features"),
        masked={"queue": 1},
        refused=(
            TEMPERATURE,
            Refused({"teacher_features": np.ones((5, 3), np.float32)}, "batch = 4 as in student"),
        ),
    ),
    "momentum_soft_targets": Example(
        contrastive.momentum_soft_targets,
        draw(teacher_similarities=normal(4, 6), hard_targets=np.eye(4, 6, dtype=np.float32)),
        {"alpha": 0.4},
        stopped=("hard_targets",),
        extreme=("teacher_similarities",),
        batched=("teacher_similarities", "hard_targets"),
        refused=(
            Refused({"alpha": 1.5}, r"alpha must lie in \[0, 1\], got 1.5"),
            Refused({"hard_targets": np.eye(4, dtype=np.float32)}, "with keys = 6"),
        ),
    ),
    "albef_ita": Example(
        contrastive.albef_ita,
        draw(
            student_image_features=rows(4),
            student_text_features=rows(4),
            teacher_image_features=rows(4),
            teacher_text_features=rows(4),
            image_queue=rows(5),
            text_queue=rows(5),
            where=np.array([True, False, True, True]),
        ),
        {"temperature": 0.5, "alpha": 0.4},
        differentiated=("student_image_features", "student_text_features"),
        stopped=("image_queue", "text_queue"),
        extreme=(
            "student_image_features",
            "student_text_features",
            "teacher_image_features",
            "teacher_text_features",
            "image_queue",
            "text_queue",
        ),
        batched=(
            "student_image_features",
            "student_text_features",
            "teacher_image_features",
            "teacher_text_features",
            "where",
        ),
        masked={
            "student_image_features": 1,
            "student_text_features": 1,
            "teacher_image_features": 1,
            "teacher_text_features": 1,
        },
        refused=(
            TEMPERATURE,
            Refused({"alpha": -0.1}, r"alpha must lie in \[0, 1\], got -0.1"),
            Refused({"text_queue": np.ones((4, 3), np.float32)}, "queue = 5 as in image_queue"),
            WHERE,
        ),
    ),
    "crd_scores": Example(
        memory_bank.crd_scores,
        draw(features=rows(4), bank=normal(8, 3), indices=integers(4, 5, below=8)),
        {"temperature": 0.5},
        differentiated=("features",),
        stopped=("bank",),
        extreme=("features", "bank"),
        batched=("features", "indices"),
        refused=(
            TEMPERATURE,
            Refused({"indices": np.full((4, 5), 8)}, r"indices must lie in \[0, 8\), got 8"),
            Refused({"indices": np.full((4, 5), -1)}, r"indices must lie in \[0, 8\), got -1"),
            Refused({"indices": np.ones((3, 5), int)}, "batch = 4 as in features"),
            Refused({"indices": np.ones((4, 5))}, "indices must be integers", TypeError),
        ),
    ),
    "crd_initial_log_z": Example(
        memory_bank.crd_initial_log_z,
        draw(scores=normal(4, 6), where=np.arange(24).reshape(4, 6) % 5 > 0),
        {"num_examples": 50},
        stopped=("scores",),
        extreme=("scores",),
        batched=("scores", "where"),
        masked={"scores": np.arange(24).reshape(4, 6) % 5 == 0},
        refused=(
            Refused({"num_examples": 0}, "num_examples must be finite and > 0, got 0"),
            Refused({"scores": WRONG_RANK}, r"scores must be shaped \[batch, candidates\]"),
        ),
    ),
    "crd_nce": Example(
        memory_bank.crd_nce,
        draw(scores=normal(4, 6), log_z=np.float32(3.0), where=np.arange(24).reshape(4, 6) % 5 > 0),
        {"num_examples": 50},
        differentiated=("scores",),
        stopped=("log_z",),
        extreme=("scores", "log_z"),
        batched=("scores", "where"),
        masked={"scores": np.arange(24).reshape(4, 6) % 5 == 0},
        refused=(
            Refused({"num_examples": -1}, "num_examples must be finite and > 0, got -1"),
            Refused({"scores": WRONG_RANK}, r"scores must be shaped \[batch, candidates\]"),
            Refused({"log_z": WRONG_RANK}, r"log_z must be shaped \[\], got shape \(4,\)"),
            Refused({"where": np.ones((4, 5), bool)}, r"where must have the shape \(4, 6\)"),
        ),
    ),
    "crd_update_bank": Example(
        memory_bank.crd_update_bank,
        draw(
            bank=normal(8, 3),
            indices=np.array([5, 2, 5, 7], np.int32),
            features=rows(4),
            where=np.array([True, False, True, True]),
        ),
        {"momentum": 0.5},
        stopped=("bank", "features"),
        extreme=("bank", "features"),
        batched=("indices", "features", "where"),
        masked={"features": 1},
        refused=(
            Refused({"momentum": 1.1}, r"momentum must lie in \[0, 1\], got 1.1"),
            Refused({"indices": np.array([0, 1, 2, 8])}, r"indices must lie in \[0, 8\), got 8"),
            Refused({"indices": np.array([0, 1])}, r"indices must have the shape \(4,\)"),
        ),
    ),
    "crd_sample_indices": Example(
        memory_bank.crd_sample_indices,
        draw(
            key=lambda generator: generator.integers(0, 2**32, 2).astype(np.uint32),
            indices=integers(4, below=8),
            labels=np.array([0, 1, 2, 0, 1, 2, 2, 1], np.int32),
        ),
        {"num_negatives": 4},
        refused=(
            Refused({"num_negatives": -1}, "num_negatives must be >= 0, got -1"),
            Refused({"num_negatives": 2.0}, "num_negatives must be an integer", TypeError),
            Refused({"num_negatives": 7, "replace": False}, "<= the number of examples to draw"),
            Refused({"labels": np.zeros(8, int)}, "<= the number of examples to draw"),
            Refused({"indices": np.array([8])}, r"indices must lie in \[0, 8\), got 8"),
            Refused({"positive": "mine"}, "positive must be one of 'exact', 'relax', got 'mine'"),
            Refused({"negatives": "hard"}, "negatives must be one of 'other_classes', 'all'"),
            Refused({"labels": np.zeros(8)}, "labels must be integers", TypeError),
        ),
    ),
    "enqueue": Example(
        memory_bank.enqueue,
        draw(
            queue=rows(6),
            pointer=np.int32(4),
            features=rows(4),
            where=np.array([True, False, True, True]),
        ),
        stopped=("queue", "features"),
        extreme=("queue", "features"),
        masked={"features": 1},
        refused=(
            Refused({"features": np.ones((7, 3), np.float32)}, "queue must hold a batch of 7 rows"),
            Refused({"features": np.ones((4, 2), np.float32)}, "features = 3 as in queue"),
            Refused({"pointer": np.float32(1)}, "pointer must be integers", TypeError),
        ),
    ),
}
