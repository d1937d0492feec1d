"""Examples of the losses on feature maps."""

import numpy as np

from kdjax.losses import feature_levels, features, pooling, preactivations, singular_vectors
from kernels.examples.example import Example, Refused, draw, normal

STUDENT, TEACHER = "student_features", "teacher_features"
BEFORE_STUDENT, BEFORE_TEACHER = "student_preactivations", "teacher_preactivations"
FSP = ("student_bottom", "student_top", "teacher_bottom", "teacher_top")


def pair_of_maps(kernel, *, student=(2, 4, 2, 3), teacher=(2, 2, 4, 5), **changes):
    """An example of kernel(student_features, teacher_features)."""
    wrong_rank = f"{STUDENT} must be shaped .*height.*, got shape \\(2, 3\\)"
    return Example(
        kernel,
        draw(student_features=normal(*student), teacher_features=normal(*teacher)),
        differentiated=(STUDENT,),
        extreme=(STUDENT, TEACHER),
        batched=(STUDENT, TEACHER),
        refused=(
            Refused({STUDENT: normal_array(2, 3)}, wrong_rank),
            Refused(
                {TEACHER: normal_array(3, *teacher[1:])},
                f"{TEACHER} must be shaped .* with batch = 2 as in {STUDENT}, got shape \\(3",
            ),
            Refused({TEACHER: normal_array(*teacher).astype(int)}, "floating-point", TypeError),
            *changes.pop("refused", ()),
        ),
    )._replace(**changes)


def normal_array(*shape):
    return normal(*shape)(np.random.default_rng(0))


def semckd_of_arrays(student_values, teacher_values, attention):
    """`semckd` of arrays [batch, S, T, ...]."""
    layers = range(student_values.shape[1])
    values, targets = (
        [[x[:, i, j] for j in range(x.shape[2])] for i in layers]
        for x in (student_values, teacher_values)
    )
    return feature_levels.semckd(values, targets, attention)


semckd_of_arrays.__doc__ = feature_levels.semckd.__doc__

EXAMPLES = {
    "adaptive_average_pool": Example(
        pooling.adaptive_average_pool,
        draw(features=normal(2, 5, 4, 3)),
        {"size": (2, 3)},
        differentiated=("features",),
        extreme=("features",),
        batched=("features",),
        refused=(
            Refused({"size": (0, 1)}, "height must be >= 1, got 0"),
            Refused({"size": (1, 2.0)}, "width must be an integer, got 2.0", TypeError),
            Refused({"features": normal_array(2, 3)}, "features must be shaped .*, got shape"),
        ),
    ),
    "match_spatial": Example(
        pooling.match_spatial,
        draw(first=normal(2, 4, 2, 3), second=normal(2, 3, 4, 2)),
        differentiated=("first", "second"),
        extreme=("first", "second"),
        batched=("first", "second"),
        refused=(
            Refused({"second": normal_array(3, 3, 4, 2)}, "with batch = 2 as in first"),
            Refused({"first": normal_array(2, 3)}, "first must be shaped .*, got shape"),
        ),
    ),
    "hint": pair_of_maps(
        features.hint,
        student=(2, 2, 3, 4),
        teacher=(2, 2, 3, 4),
    )._replace(
        refused=(
            Refused(
                {TEACHER: normal_array(2, 2, 3, 5)},
                r"with ... = \(2, 2, 3, 4\) as in student_features, got shape \(2, 2, 3, 5\)",
            ),
            Refused(
                {STUDENT: normal_array(2), TEACHER: normal_array(2)},
                r"student_features must be shaped \[batch, ..., channels\], got \(2,\)",
            ),
        )
    ),
    "simkd": pair_of_maps(features.simkd, student=(2, 3, 2), teacher=(2, 3, 2))._replace(
        refused=(Refused({TEACHER: normal_array(2, 3, 3)}, r"with ... = \(2, 3, 2\)"),)
    ),
    "srrl": Example(
        features.srrl,
        draw(
            student_features=normal(3, 4),
            teacher_features=normal(3, 4),
            student_logits=normal(3, 5),
            teacher_logits=normal(3, 5),
        ),
        differentiated=(STUDENT, "student_logits"),
        extreme=(STUDENT, TEACHER, "student_logits", "teacher_logits"),
        batched=(STUDENT, TEACHER, "student_logits", "teacher_logits"),
        refused=(
            Refused({TEACHER: normal_array(3, 5)}, "with features = 4 as in student_features"),
            Refused({"teacher_logits": normal_array(3, 4)}, "with classes = 5"),
        ),
    ),
    "attention_transfer": pair_of_maps(
        features.attention_transfer,
        refused=(
            Refused({"power": 0}, "power must be >= 1, got 0"),
            Refused({"power": 2.5}, "power must be an integer, got 2.5", TypeError),
        ),
    ),
    "attention_transfer: power 1": pair_of_maps(features.attention_transfer, options={"power": 1}),
    "attention_transfer: power 8": pair_of_maps(features.attention_transfer, options={"power": 8}),
    "factor_transfer": Example(
        features.factor_transfer,
        draw(student_factors=normal(2, 4, 2, 3), teacher_factors=normal(2, 2, 4, 5)),
        differentiated=("student_factors",),
        extreme=("student_factors", "teacher_factors"),
        batched=("student_factors", "teacher_factors"),
        refused=(
            Refused({"order": 3}, "order must be >= 1 and <= 2, got 3"),
            Refused({"power": 0}, "power must be >= 1, got 0"),
            Refused({"student_factors": normal_array(2, 3)}, "student_factors must be shaped"),
        ),
    ),
    "fsp_matrix": Example(
        features.fsp_matrix,
        draw(bottom=normal(2, 4, 2, 3), top=normal(2, 2, 1, 2)),
        differentiated=("bottom", "top"),
        extreme=("bottom", "top"),
        batched=("bottom", "top"),
        refused=(Refused({"top": normal_array(3, 2, 1, 2)}, "with batch = 2 as in bottom"),),
    ),
    "fsp": Example(
        features.fsp,
        draw(
            student_bottom=normal(2, 4, 2, 3),
            student_top=normal(2, 2, 1, 2),
            teacher_bottom=normal(2, 3, 3, 3),
            teacher_top=normal(2, 3, 3, 2),
        ),
        differentiated=("student_bottom", "student_top"),
        extreme=FSP,
        batched=FSP,
        refused=(
            Refused(
                {"teacher_bottom": normal_array(2, 3, 3, 4)},
                "teacher_bottom .* with bottom_channels = 3 as in student_bottom, got shape",
            ),
            Refused({"teacher_top": normal_array(2, 3, 3, 3)}, "with top_channels = 2"),
        ),
    ),
    "kdsvd": Example(
        singular_vectors.kdsvd,
        draw(
            student_bottom=normal(2, 4, 2, 3),
            student_top=normal(2, 2, 2, 4),
            teacher_bottom=normal(2, 3, 3, 3),
            teacher_top=normal(2, 3, 3, 4),
        ),
        {"num_vectors": 2},
        differentiated=("student_bottom", "student_top"),
        extreme=FSP,
        batched=FSP,
        refused=(
            Refused(
                {"teacher_bottom": normal_array(2, 3, 3, 4)},
                "teacher_bottom .* with bottom_channels = 3 as in student_bottom, got shape",
            ),
            Refused({"num_vectors": 0}, "num_vectors must be >= 1, got 0"),
            Refused(
                {"num_vectors": 4},
                "num_vectors must be at most the 3 singular vectors of student_bottom",
            ),
        ),
    ),
    "nst": pair_of_maps(features.nst),
    "vid": Example(
        features.vid,
        draw(
            student_mean=normal(2, 2, 3, 4),
            teacher_features=normal(2, 2, 3, 4),
            log_scale=normal(4),
        ),
        differentiated=("student_mean", "log_scale"),
        extreme=("student_mean", TEACHER, "log_scale"),
        batched=("student_mean", TEACHER),
        refused=(
            Refused({"log_scale": normal_array(3)}, "log_scale .* with channels = 4"),
            Refused({TEACHER: normal_array(2, 2, 3, 5)}, "teacher_features .* channels = 4"),
            Refused({"minimum_variance": 0.0}, "minimum_variance must be finite and > 0, got 0"),
        ),
    ),
    "activation_boundary": Example(
        preactivations.activation_boundary,
        draw(
            student_preactivations=normal(2, 3, 2, 4),
            teacher_preactivations=normal(2, 3, 2, 4),
        ),
        differentiated=(BEFORE_STUDENT,),
        extreme=(BEFORE_STUDENT, BEFORE_TEACHER),
        batched=(BEFORE_STUDENT, BEFORE_TEACHER),
        refused=(
            Refused({"margin": -1.0}, "margin must be finite and >= 0, got -1"),
            Refused({BEFORE_TEACHER: normal_array(2, 3, 2, 5)}, "with channels = 4"),
        ),
    ),
    "ofd_margin": Example(
        preactivations.ofd_margin,
        draw(teacher_scale=normal(5), teacher_bias=normal(5)),
        extreme=("teacher_scale", "teacher_bias"),
        refused=(Refused({"teacher_bias": normal_array(4)}, "with channels = 5"),),
    ),
    "ofd_partial_l2": Example(
        preactivations.ofd_partial_l2,
        draw(
            student_preactivations=normal(2, 2, 1, 4),
            teacher_preactivations=normal(2, 4, 3, 4),
            teacher_margin=lambda generator: -abs(normal(4)(generator)),
        ),
        differentiated=(BEFORE_STUDENT,),
        extreme=(BEFORE_STUDENT, BEFORE_TEACHER, "teacher_margin"),
        batched=(BEFORE_STUDENT, BEFORE_TEACHER),
        refused=(
            Refused({"teacher_margin": normal_array(3)}, "teacher_margin .* with channels = 4"),
            Refused({BEFORE_TEACHER: normal_array(2, 2, 1, 5)}, "with channels = 4"),
        ),
    ),
    "hcl": pair_of_maps(
        feature_levels.hcl,
        student=(2, 5, 3, 2),
        teacher=(2, 5, 3, 2),
        refused=(
            Refused({TEACHER: normal_array(2, 5, 3, 4)}, "with channels = 2"),
            Refused({"pooled_sizes": (4, 0)}, "pooled_sizes must be >= 1, got 0"),
        ),
    ),
    "semckd": Example(
        semckd_of_arrays,
        draw(
            student_values=normal(3, 2, 3, 2, 2),
            teacher_values=normal(3, 2, 3, 2, 2),
            attention=lambda generator: abs(normal(3, 2, 3)(generator)),
        ),
        differentiated=("student_values", "attention"),
        extreme=("student_values", "teacher_values"),
        batched=("student_values", "teacher_values", "attention"),
        refused=(
            Refused(
                {"teacher_values": normal_array(3, 2, 2, 2, 2)},
                r"teacher_values must hold 2 lists of 3 arrays, .* got lists of \[2, 2\]",
            ),
            Refused(
                {"teacher_values": normal_array(3, 2, 3, 2, 3)},
                r"teacher_values\[0\]\[0\] .* got shape \(3, 2, 3\)",
            ),
            Refused({"attention": normal_array(2, 2, 3)}, "with batch = 2 as in attention"),
        ),
    ),
}
