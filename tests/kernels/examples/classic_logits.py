"""Examples of teacher-free losses, correlations, weighted and adversarial variants of logit KD."""

import numpy as np

from kdjax.losses import correlations, logit_matching, teacher_free, temperature
from kernels.examples.example import Example, Refused, draw, normal

LABELS = np.array([3, -100, 0, 4])
PAIR = draw(student_logits=normal(4, 5), teacher_logits=normal(4, 5))
LABELLED = draw(student_logits=normal(4, 5), teacher_logits=normal(4, 5), labels=LABELS)
MASKED = draw(
    student_logits=normal(4, 5),
    teacher_logits=normal(4, 5),
    where=np.array([True, False, True, True]),
)
LOGITS = ("student_logits", "teacher_logits")
OTHER_CLASSES = Refused(
    {"teacher_logits": np.zeros((4, 6), np.float32)}, r"\(4, 5\) and \(4, 6\)|classes = 5"
)
NO_BATCH = Refused({"student_logits": np.zeros(5, np.float32)}, r"\[batch, classes.*got shape")
COLD = Refused({"temperature": 0.0}, "temperature must be finite and > 0, got 0")
INTEGERS = Refused({"student_logits": np.zeros((4, 5), np.int32)}, "floating-point", TypeError)
OTHER_BATCH = Refused({"labels": np.zeros(3, np.int32)}, r"labels must have the shape \(4,\)")


def correlation(kernel):
    return Example(
        kernel,
        MASKED,
        {"temperature": 2.0},
        differentiated=("student_logits",),
        extreme=LOGITS,
        batched=(*LOGITS, "where"),
        masked={"student_logits": 1, "teacher_logits": 1},
        refused=(
            COLD,
            OTHER_CLASSES,
            NO_BATCH,
            INTEGERS,
            Refused({"where": np.ones(3, bool)}, r"where must have the shape \(4,\)"),
            Refused({"where": np.ones(4)}, "where must be boolean", TypeError),
        ),
    )


def virtual_teacher_kd(official):
    return Example(
        teacher_free.virtual_teacher_kd,
        draw(student_logits=normal(4, 5), labels=LABELS),
        {"temperature": 3.0, "official": official},
        differentiated=("student_logits",),
        extreme=("student_logits",),
        batched=("student_logits", "labels"),
        refused=(
            COLD,
            INTEGERS,
            OTHER_BATCH,
            Refused({"correct": 1.5}, r"correct must lie in \[0, 1\]"),
            Refused({"student_logits": np.zeros((4, 1), np.float32)}, "number of classes must be"),
        ),
    )


def uskd(rank_with):
    return Example(
        teacher_free.uskd,
        draw(student_logits=normal(4, 5), weak_logits=normal(4, 5), labels=LABELS),
        {"rank_with": rank_with},
        differentiated=("student_logits", "weak_logits"),
        extreme=("student_logits", "weak_logits"),
        batched=("student_logits", "weak_logits", "labels"),
        refused=(
            NO_BATCH,
            OTHER_BATCH,
            Refused({"weak_logits": np.zeros((4, 6), np.float32)}, "weak_logits.*classes = 5"),
            Refused({"alpha": -1.0}, "alpha must be finite and >= 0"),
            Refused({"rank_with": "logits"}, "rank_with must be one of 'probabilities', 'offici"),
        ),
        sloped=False,
    )


EXAMPLES = {
    "batch_correlation": correlation(correlations.batch_correlation),
    "class_correlation": correlation(correlations.class_correlation),
    "mlkd": Example(
        correlations.mlkd,
        draw(
            student_logits=normal(4, 5),
            teacher_logits=normal(4, 5),
            examples=np.array([True, False, True, True]),
            classes=np.array([True, True, False, False, True]),
        ),
        {"temperatures": (2.0, 3.0)},
        differentiated=("student_logits",),
        extreme=LOGITS,
        batched=(*LOGITS, "examples"),
        refused=(
            OTHER_CLASSES,
            NO_BATCH,
            Refused({"temperatures": (2.0, -1.0)}, "temperature must be finite and > 0"),
            Refused({"classes": np.ones(4, bool)}, r"classes must have the shape \(5,\)"),
            Refused({"examples": np.ones(4)}, "examples must be boolean", TypeError),
        ),
    ),
    "mlkd_masks": Example(
        correlations.mlkd_masks,
        draw(teacher_logits=normal(4, 5)),
        extreme=("teacher_logits",),
        batched=("teacher_logits",),
        refused=(Refused({"teacher_logits": np.zeros(5, np.float32)}, r"\[batch, classes\]"),),
    ),
    "virtual_teacher": Example(
        teacher_free.virtual_teacher,
        draw(labels=LABELS),
        {"num_classes": 5},
        batched=("labels",),
        refused=(
            Refused({"num_classes": 1}, "num_classes must be >= 2, got 1"),
            Refused({"correct": -0.1}, r"correct must lie in \[0, 1\]"),
            Refused({"labels": np.zeros(4, np.float32)}, "labels must be integers", TypeError),
        ),
    ),
    "virtual_teacher_kd": virtual_teacher_kd(official=False),
    "virtual_teacher_kd: official": virtual_teacher_kd(official=True),
    "uskd": uskd("probabilities"),
    "uskd: official": uskd("official"),
    "cwtm_weights": Example(
        teacher_free.cwtm_weights,
        draw(teacher_logits=normal(4, 5), where=np.array([True, False, True, True])),
        extreme=("teacher_logits",),
        batched=("teacher_logits", "where"),
        masked={"teacher_logits": 1},
        refused=(
            Refused({"teacher_logits": np.zeros(5, np.float32)}, r"\[batch, classes\]"),
            Refused({"where": np.ones(3, bool)}, r"where must have the shape \(4,\)"),
        ),
    ),
    "permute_dark_knowledge": Example(
        teacher_free.permute_dark_knowledge,
        draw(key=np.array([0, 7], np.uint32), teacher_logits=normal(4, 5)),
        extreme=("teacher_logits",),
        batched=("teacher_logits",),
        refused=(Refused({"teacher_logits": np.float32(1.0)}, r"shaped \[\.\.\., classes\]"),),
    ),
    "mse_logits": Example(
        logit_matching.mse_logits,
        PAIR,
        differentiated=("student_logits",),
        extreme=LOGITS,
        batched=LOGITS,
        refused=(OTHER_CLASSES, INTEGERS),
    ),
    "transformed_teacher_matching": Example(
        logit_matching.transformed_teacher_matching,
        PAIR,
        {"exponent": 0.3},
        differentiated=("student_logits",),
        extreme=LOGITS,
        batched=LOGITS,
        refused=(
            OTHER_CLASSES,
            INTEGERS,
            Refused({"exponent": 0.0}, "exponent must be finite and > 0"),
        ),
    ),
    "wsld": Example(
        logit_matching.wsld,
        LABELLED,
        differentiated=("student_logits",),
        extreme=LOGITS,
        batched=(*LOGITS, "labels"),
        refused=(
            OTHER_CLASSES,
            COLD,
            OTHER_BATCH,
            Refused({"epsilon": 0.0}, "epsilon must be finite and > 0"),
        ),
        sloped=False,
    ),
    "gradient_reversal": Example(
        temperature.gradient_reversal,
        draw(x=normal(4, 5)),
        {"scale": -0.5},
        differentiated=("x",),
        extreme=("x",),
        batched=("x",),
        refused=(
            Refused({"scale": float("nan")}, "scale must be finite"),
            Refused({"x": np.zeros(3, np.int32)}, "floating-point", TypeError),
        ),
        sloped=False,
    ),
    "learned_temperature": Example(
        temperature.learned_temperature,
        draw(theta=normal(4)),
        differentiated=("theta",),
        extreme=("theta",),
        batched=("theta",),
        refused=(
            Refused({"start": 0.0}, "start must be finite and > 0"),
            Refused({"span": -1.0}, "span must be finite and > 0"),
        ),
    ),
    "reversal_schedule": Example(
        temperature.reversal_schedule,
        draw(epoch=np.float32(3.0)),
        differentiated=("epoch",),
        refused=(
            Refused({"epoch": -1.0}, "epoch must be finite and >= 0"),
            Refused({"num_epochs": 0.0}, "num_epochs must be finite and > 0"),
            Refused({"maximum": -1.0}, "maximum must be finite and >= 0"),
        ),
    ),
}
