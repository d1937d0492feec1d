"""Examples of distillation of image-text models."""

import numpy as np

from kdjax.losses import clip_distillation, clip_features
from kernels.examples.contrastive import rows
from kernels.examples.example import Example, Refused, draw, normal

STUDENT = ("student_image_features", "student_text_features")
TEACHER = ("teacher_image_features", "teacher_text_features")
SCALES = {"student_scale": 2.0, "teacher_scale": 3.0}
TEMPERATURES = {"student_temperature": 0.5, "teacher_temperature": 0.3}


def example(kernel, options, student_width=3, student=normal, more=None, refused=()):
    """One of pairs, of which one is hidden."""
    return Example(
        kernel,
        draw(
            student_image_features=student(4, student_width),
            student_text_features=student(4, student_width),
            teacher_image_features=rows(4),
            teacher_text_features=rows(4),
            **(more or {}),
            where=np.array([True, True, False, True]),
        ),
        options,
        differentiated=(*STUDENT, *(more or {})),
        extreme=(*STUDENT, *TEACHER, *(more or {})),
        batched=(*STUDENT, *TEACHER, "where"),
        masked=dict.fromkeys((*STUDENT, *TEACHER), 2),
        refused=(
            *(Refused({name: 0.0}, f"{name} must be finite and > 0, got 0") for name in options),
            Refused({TEACHER[1]: np.ones((4, 2), np.float32)}, f"{TEACHER[1]} must be shaped"),
            Refused({TEACHER[0]: np.ones(4, np.float32)}, f"{TEACHER[0]} must be shaped"),
            Refused({STUDENT[1]: np.ones((3, 3), np.float32)}, f"{STUDENT[1]} must be shaped"),
            Refused({"where": np.ones(4, int)}, "where must be boolean", TypeError),
            Refused({"where": np.ones(3, bool)}, r"where must have the shape \(4,\) of the batch"),
            *refused,
        ),
    )


EXAMPLES = {
    "clip_kd_ckd": example(clip_distillation.clip_kd_ckd, SCALES, student_width=2),
    "clip_kd_fd": example(clip_features.clip_kd_fd, {}),
    "clip_kd_icl": example(clip_distillation.clip_kd_icl, {"scale": 2.0}),
    "clip_kd_cross_kd": example(
        clip_distillation.clip_kd_cross_kd, {"scale": 2.0, "teacher_scale": 3.0}
    ),
    "clip_kd_gd": example(clip_features.clip_kd_gd, TEMPERATURES),
    "clip_kd_afd": example(
        clip_features.clip_kd_afd,
        {"scale": 2.0},
        student_width=2,
        more={
            "image_kernel": normal(5, 3),
            "text_kernel": normal(5, 3),
            "image_bias": normal(3),
            "text_bias": normal(3),
        },
        refused=(
            Refused(
                {name: np.ones((6, 3), np.float32) for name in ("image_kernel", "text_kernel")},
                r"image_kernel must be shaped .* student \+ teacher = 5, got shape \(6, 3\)",
            ),
            Refused({"text_bias": np.ones(2, np.float32)}, "text_bias must be shaped"),
        ),
    ),
    "affinity_mimicking": example(
        clip_distillation.affinity_mimicking, SCALES, student_width=2, student=rows
    ),
}
