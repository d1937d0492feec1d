"""Examples of the ratios of teacher to label, and of what they are computed from."""

import numpy as np

from kdjax.losses import fusion_ratios
from kernels.examples.example import Example, Refused, draw, normal

LABELS = np.array([0, 3, 1, -100])
LABEL_SHAPE = Refused({"labels": np.zeros(3, int)}, r"labels must have the shape \(4,\)")
FLOATS = Refused({"labels": np.zeros(4)}, "labels must be integers, got dtype float", TypeError)
TEMPERATURE = Refused({"temperature": 0.0}, "temperature must be finite and > 0, got 0")


def probabilities(*shape):
    return lambda generator: generator.dirichlet(np.ones(shape[-1]), shape[:-1]).astype(np.float32)


def trilateral(mode):
    return Example(
        fusion_ratios.trilateral_features,
        draw(
            student_probs=probabilities(4, 5),
            teacher_probs=probabilities(4, 5),
            labels=LABELS,
            teacher_means=probabilities(5, 5),
        ),
        {"mode": mode},
        stopped=("student_probs",),
        extreme=("student_probs", "teacher_probs"),
        batched=("student_probs", "teacher_probs", "labels"),
        refused=(
            LABEL_SHAPE,
            FLOATS,
            Refused({"mode": "edges"}, "mode must be one of 'vertices', .*, got 'edges'"),
            Refused({"teacher_means": np.ones((5, 4))}, "classes = 5 as in"),
            Refused({"teacher_probs": np.ones((4, 6))}, "classes = 5 as in student_probs"),
        ),
    )


EXAMPLES = {
    "fused_kd": Example(
        fusion_ratios.fused_kd,
        draw(
            student_logits=normal(4, 5),
            teacher_logits=normal(4, 5),
            labels=LABELS,
            ratios=np.array([0.0, 0.3, 1.0, 0.5], np.float32),
        ),
        {"temperature": 1.5},
        differentiated=("student_logits", "ratios"),
        extreme=("student_logits", "teacher_logits"),
        batched=("student_logits", "teacher_logits", "labels", "ratios"),
        refused=(
            LABEL_SHAPE,
            FLOATS,
            TEMPERATURE,
            Refused({"ratios": np.ones(3)}, r"ratios must have the shape \(4,\) of labels"),
            Refused({"ratios": np.ones(4, int)}, "ratios must be a floating-point", TypeError),
        ),
    ),
    "class_mean_predictions": Example(
        fusion_ratios.class_mean_predictions,
        draw(
            teacher_probs=probabilities(4, 5),
            labels=np.array([0, 3, 3, -100]),
            where=np.array([True, False, True, True]),
        ),
        batched=("teacher_probs", "labels", "where"),
        masked={"teacher_probs": 1},
        refused=(
            LABEL_SHAPE,
            FLOATS,
            Refused({"where": np.ones(4)}, "where must be boolean", TypeError),
            Refused({"teacher_probs": np.ones(4)}, r"teacher_probs must be shaped \[examples"),
        ),
    ),
    "trilateral_features": trilateral("vertices+edges"),
    "trilateral_features: norms": trilateral("norms"),
    "wls_ratio": Example(
        fusion_ratios.wls_ratio,
        draw(student_logits=normal(4, 5), teacher_logits=normal(4, 5), labels=LABELS),
        stopped=("student_logits",),
        extreme=("student_logits", "teacher_logits"),
        batched=("student_logits", "teacher_logits", "labels"),
        refused=(
            LABEL_SHAPE,
            FLOATS,
            Refused({"epsilon": 0.0}, "epsilon must be finite and > 0, got 0"),
        ),
    ),
    "ada_ratio": Example(
        fusion_ratios.ada_ratio,
        draw(teacher_probs=probabilities(4, 5), labels=LABELS),
        extreme=("teacher_probs",),
        batched=("teacher_probs", "labels"),
        refused=(
            LABEL_SHAPE,
            FLOATS,
            Refused({"teacher_probs": np.ones((4, 1))}, "classes >= 2"),
        ),
    ),
    "annealed_ratio": Example(
        fusion_ratios.annealed_ratio,
        draw(progress=np.float32(0.35)),
        {"levels": 4},
        refused=(
            Refused({"progress": 1.5}, r"progress must lie in \[0, 1\], got 1.5"),
            Refused({"levels": 1}, "levels must be >= 2, got 1"),
        ),
    ),
}
