"""Examples of dual heads, and of classifiers made of embeddings of the classes."""

import numpy as np

from kdjax.losses import dual_head, zero_shot
from kernels.examples.example import Example, Refused, draw, normal

LABELS = np.array([1, 4, 0, 2])
STUDENTS = ("ce_logits_labeled", "kd_logits_labeled", "kd_logits_unlabeled")
TEACHERS = ("teacher_logits_labeled", "teacher_logits_unlabeled")
HEADS = draw(ce_logits=normal(4, 5), kd_logits=normal(4, 5))
BOTH = ("ce_logits", "kd_logits")
REFUSED = (
    Refused({"alpha": 1.5}, r"alpha must lie in \[0, 1\], got 1.5"),
    Refused({"alpha": np.ones(3, np.float32)}, "alpha must be a scalar, or shaped"),
    Refused({"beta": 0.0}, "beta must be finite and > 0, got 0"),
    Refused({"kd_logits": np.zeros((4, 6), np.float32)}, "must have one shape"),
    Refused({"ce_logits": np.zeros((4, 5), np.int32)}, "floating-point", TypeError),
)
SEARCHED = draw(ce_logits=normal(4, 5), kd_logits=normal(4, 5), labels=LABELS)
GRID = (
    Refused({"alphas": ()}, "alphas must hold at least one number"),
    Refused({"alphas": (0.5, 2.0)}, r"alphas must lie in \[0, 1\], got 2"),
    Refused({"betas": (0.0,)}, "betas must be finite and > 0, got 0"),
    Refused({"labels": np.zeros(3, int)}, "labels must have the shape"),
)


def unit(*shape):
    def vectors(generator):
        x = generator.normal(size=shape)
        return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)

    return vectors


EMBEDDED = draw(features=normal(4, 3), class_embeddings=normal(5, 3))
WIDTHS = Refused({"class_embeddings": np.ones((5, 2), np.float32)}, "class_embeddings must be sha")

EXAMPLES = {
    "dho": Example(
        dual_head.dho,
        draw(
            ce_logits_labeled=normal(4, 5),
            kd_logits_labeled=normal(4, 5),
            kd_logits_unlabeled=normal(6, 5),
            teacher_logits_labeled=normal(4, 5),
            teacher_logits_unlabeled=normal(6, 5),
            labels=LABELS,
        ),
        differentiated=STUDENTS,
        stopped=TEACHERS,
        extreme=(*STUDENTS, *TEACHERS),
        refused=(
            Refused({"temperature": 0.0}, "temperature must be finite and > 0, got 0"),
            Refused({"labels": np.zeros(3, int)}, "labels must have the shape"),
            Refused({"kd_logits_labeled": np.zeros((3, 5), np.float32)}, "must have one shape"),
            Refused(
                {name: np.zeros((6, 4), np.float32) for name in (STUDENTS[2], TEACHERS[1])},
                "must have the same classes",
            ),
            Refused({"labels": np.zeros(4, np.float32)}, "labels must be integers", TypeError),
        ),
    ),
    "dual_head_log_probs": Example(
        dual_head.dual_head_log_probs,
        HEADS,
        {"alpha": 0.3, "beta": 0.5},
        differentiated=BOTH,
        extreme=BOTH,
        batched=BOTH,
        refused=REFUSED,
    ),
    "dual_head_probs": Example(
        dual_head.dual_head_probs,
        HEADS,
        {"alpha": 0.3, "beta": 0.5},
        differentiated=BOTH,
        extreme=BOTH,
        batched=BOTH,
        refused=REFUSED,
    ),
    "entropy_adaptive_alpha": Example(
        dual_head.entropy_adaptive_alpha,
        HEADS,
        differentiated=BOTH,
        extreme=BOTH,
        batched=BOTH,
        refused=REFUSED[3:],
    ),
    "dual_head_correct": Example(dual_head.dual_head_correct, SEARCHED, extreme=BOTH, refused=GRID),
    "best_interpolation": Example(
        dual_head.best_interpolation,
        draw(accuracy=lambda generator: generator.random((7, 21)).astype(np.float32)),
        refused=(
            Refused({"accuracy": np.zeros((7, 20), np.float32)}, r"\(7, 21\), got \(7, 20\)"),
            Refused({"accuracy": np.zeros((7, 21), int)}, "floating-point", TypeError),
        ),
    ),
    "search_alpha_beta": Example(
        dual_head.search_alpha_beta,
        SEARCHED,
        extreme=BOTH,
        refused=(
            *GRID,
            Refused({"ce_logits": np.zeros((0, 5), np.float32)}, "at least one example"),
        ),
    ),
    "zero_shot_class_embeddings": Example(
        zero_shot.zero_shot_class_embeddings,
        draw(text_features=normal(4, 2, 3)),
        differentiated=("text_features",),
        batched=("text_features",),
        refused=(
            Refused({"text_features": np.ones((4, 3), np.float32)}, "classes, templates, fe"),
        ),
    ),
    "clip_zero_shot_logits": Example(
        zero_shot.clip_zero_shot_logits,
        EMBEDDED,
        differentiated=("features", "class_embeddings"),
        batched=("features",),
        refused=(WIDTHS, Refused({"scale": 0.0}, "scale must be finite and > 0, got 0")),
    ),
    "tip_adapter_logits": Example(
        zero_shot.tip_adapter_logits,
        draw(
            features=unit(4, 3), keys=unit(6, 3), values=normal(6, 5), class_embeddings=unit(5, 3)
        ),
        differentiated=("features", "keys", "values", "class_embeddings"),
        batched=("features",),
        refused=(
            WIDTHS,
            Refused({"alpha": -1.0}, "alpha must be finite and >= 0, got -1"),
            Refused({"beta": 0.0}, "beta must be finite and > 0, got 0"),
            Refused({"values": np.ones((5, 5), np.float32)}, "examples = 6 as in keys"),
        ),
    ),
    "clap_class_weights": Example(
        zero_shot.clap_class_weights,
        draw(logits=normal(4, 5), labels=LABELS, where=np.array([True, True, True, False])),
        stopped=("logits",),
        extreme=("logits",),
        masked={"logits": (3,)},
        refused=(
            Refused({"logits": np.ones(4, np.float32)}, "logits must be shaped"),
            Refused({"where": np.ones(3, bool)}, "where must have the shape"),
            Refused({"labels": np.zeros(4, np.float32)}, "labels must be integers", TypeError),
        ),
    ),
    "clap_constraint": Example(
        zero_shot.clap_constraint,
        draw(
            class_embeddings=normal(5, 3),
            initial_class_embeddings=normal(5, 3),
            class_weights=normal(5),
        ),
        differentiated=("class_embeddings",),
        stopped=("initial_class_embeddings", "class_weights"),
        refused=(
            Refused({"class_weights": np.ones(4, np.float32)}, "class_weights must be shaped"),
        ),
    ),
}
