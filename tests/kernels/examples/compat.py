"""Examples of other libraries' losses."""

import numpy as np

from kdjax.losses.compat import distillm, mdistiller, repdistiller, torchdistill, trl
from kernels.examples.example import Example, Refused, draw, normal

LOGITS = ("student_logits", "teacher_logits")
PAIR = draw(student_logits=normal(4, 5), teacher_logits=normal(4, 5))
LABELLED = draw(
    student_logits=normal(4, 5), teacher_logits=normal(4, 5), labels=np.array([3, -100, 0, 4])
)
TOKENS = draw(
    student_logits=normal(2, 3, 5),
    teacher_logits=normal(2, 3, 5),
    labels=np.array([[3, -100, 0], [4, 1, -100]]),
)
COLD = Refused({"temperature": 0.0}, "temperature must be finite and > 0")
REDUCTION = Refused({"reduction": "none"}, "reduction must be one of 'batchmean', 'mean', 'sum'")


def batch(loss, *refused, arguments=PAIR, **options):
    labels = ("labels",) if arguments is not PAIR else ()
    other = Refused({"teacher_logits": np.zeros((4, 6), np.float32)}, r"\(4, 5\) and \(4, 6\)")
    return Example(
        loss,
        arguments,
        options,
        differentiated=("student_logits",),
        extreme=LOGITS,
        batched=(*LOGITS, *labels),
        refused=(other, *refused),
    )


def tokens(loss, *refused, **options):
    other = Refused({"labels": np.zeros((2, 4), np.int32)}, r"labels must have the shape \(2, 3\)")
    return Example(
        loss,
        TOKENS,
        options,
        differentiated=("student_logits",),
        extreme=LOGITS,
        batched=(*LOGITS, "labels"),
        refused=(other, *refused),
    )


def of_features(loss, student, teacher, *refused, **options):
    """Student and teacher are (name, shape); a teacher of two examples is refused."""
    (student, shape), (teacher, teacher_shape) = student, teacher
    few = Refused({teacher: np.ones((2, *teacher_shape[1:]), np.float32)}, "batch.* = 4 as in ")
    return Example(
        loss,
        draw(**{student: normal(*shape), teacher: normal(*teacher_shape)}),
        options,
        differentiated=(student,),
        extreme=(student, teacher),
        batched=(student, teacher),
        refused=(few, *refused),
    )


SKEW = Refused({"lam": 1.5}, r"lam must lie in \[0, 1\]")

EXAMPLES = {
    "compat.torchdistill.kd_loss": batch(
        torchdistill.kd_loss, COLD, REDUCTION, arguments=LABELLED, temperature=2.0, alpha=0.3
    ),
    "compat.torchdistill.kd_loss: without labels": batch(torchdistill.kd_loss, temperature=2.0),
    "compat.torchdistill.logit_std_kd_loss": batch(
        torchdistill.logit_std_kd_loss,
        COLD,
        REDUCTION,
        arguments=LABELLED,
        temperature=2.0,
        alpha=0.3,
    ),
    "compat.torchdistill.dist_loss": batch(
        torchdistill.dist_loss, Refused({"tau": 0.0}, "tau must be finite and > 0")
    ),
    "compat.torchdistill.at_loss": of_features(
        torchdistill.at_loss,
        ("student_feature_map", (4, 2, 3, 3)),
        ("teacher_feature_map", (4, 3, 3, 3)),
        Refused({"mode": "pape"}, "mode must be one of 'code', 'paper'"),
        mode="paper",
    ),
    "compat.torchdistill.fsp_loss": Example(
        torchdistill.fsp_loss,
        draw(
            student_first=normal(4, 2, 5, 4),
            student_second=normal(4, 3, 2, 3),
            teacher_first=normal(4, 2, 4, 4),
            teacher_second=normal(4, 3, 4, 2),
        ),
        differentiated=("student_first", "student_second"),
        extreme=("student_first", "student_second", "teacher_first", "teacher_second"),
        batched=("student_first", "student_second", "teacher_first", "teacher_second"),
        refused=(
            Refused(
                {"teacher_second": np.zeros((4, 2, 4, 2), np.float32)},
                "teacher_second must be shaped .* with second_channels = 3 as in student_second",
            ),
        ),
    ),
    "compat.torchdistill.cckd_loss": of_features(
        torchdistill.cckd_loss,
        ("student_linear_outputs", (4, 3)),
        ("teacher_linear_outputs", (4, 5)),
        Refused({"kernel_type": "rbf"}, "kernel_type must be one of 'gaussian', 'bilinear'"),
        Refused({"gamma": 0.0}, "gamma must be finite and > 0"),
        Refused({"max_p": 0}, "max_p must be >= 1"),
        kernel_type="gaussian",
        reduction="batchmean",
    ),
    "compat.torchdistill.spkd_loss": of_features(
        torchdistill.spkd_loss,
        ("student_outputs", (4, 2, 3, 3)),
        ("teacher_outputs", (4, 3, 3, 3)),
        Refused({"reduction": "mean"}, "reduction must be one of 'batchmean', 'sum'"),
        reduction="sum",
    ),
    "compat.torchdistill.srd_loss": Example(
        torchdistill.srd_loss,
        draw(
            student_features=normal(4, 3),
            teacher_features=normal(4, 3),
            student_logits=normal(4, 5),
            teacher_logits=normal(4, 5),
        ),
        {"exponent": 4.0},
        differentiated=("student_features", "student_logits"),
        extreme=("student_features", "teacher_features", *LOGITS),
        batched=("student_features", "teacher_features", *LOGITS),
        refused=(COLD, REDUCTION, Refused({"exponent": 0.0}, "exponent must be finite and > 0")),
    ),
    "compat.mdistiller.kd_loss": batch(mdistiller.kd_loss, COLD, temperature=4.0),
    "compat.mdistiller.dkd_loss": batch(
        mdistiller.dkd_loss,
        COLD,
        Refused({"alpha": -1.0}, "alpha must be finite and >= 0"),
        arguments=LABELLED,
        alpha=1.0,
        beta=8.0,
        temperature=4.0,
    ),
    "compat.repdistiller.distill_kl": batch(repdistiller.distill_kl, COLD, temperature=4.0),
    "compat.trl.generalized_jsd_loss": tokens(
        trl.generalized_jsd_loss,
        COLD,
        REDUCTION,
        Refused({"beta": 2.0}, r"beta must lie in \[0, 1\]"),
        Refused({"num_items_in_batch": 0}, "num_items_in_batch must be finite and > 0"),
        beta=0.3,
    ),
    "compat.distillm.forward_kl": tokens(distillm.forward_kl),
    "compat.distillm.reverse_kl": tokens(distillm.reverse_kl),
    "compat.distillm.symmetric_kl": tokens(distillm.symmetric_kl, SKEW),
    "compat.distillm.js_distance": tokens(distillm.js_distance, SKEW),
    "compat.distillm.tv_distance": tokens(distillm.tv_distance),
    "compat.distillm.skewed_forward_kl": tokens(distillm.skewed_forward_kl, SKEW),
    "compat.distillm.skewed_reverse_kl": tokens(distillm.skewed_reverse_kl, SKEW),
}
