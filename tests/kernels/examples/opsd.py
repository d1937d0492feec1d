"""Examples of on-policy self-distillation."""

import numpy as np

from kdjax.losses import self_distillation
from kernels.examples.example import Example, Refused, draw, normal

BOTH = ("student_logits", "teacher_logits")
ARRAYS = draw(student_logits=normal(2, 3, 6), teacher_logits=normal(2, 3, 6))
TEMPERATURE = Refused({"temperature": 0.0}, "temperature must be finite and > 0")
SHAPE = Refused({"teacher_logits": np.zeros((2, 3, 5), np.float32)}, "must have one shape")

EXAMPLES = {
    "topk_teacher_support": Example(
        self_distillation.topk_teacher_support,
        ARRAYS,
        {"k": 3, "temperature": 2.0},
        differentiated=("student_logits",),
        extreme=BOTH,
        batched=BOTH,
        refused=(
            TEMPERATURE,
            SHAPE,
            Refused({"k": 0}, "k must be >= 1 and <= 6, got 0"),
            Refused({"k": 7}, "k must be >= 1 and <= 6, got 7"),
        ),
    ),
    "opsd": Example(
        self_distillation.opsd,
        ARRAYS,
        {"temperature": 1.1},
        differentiated=("student_logits",),
        extreme=BOTH,
        batched=BOTH,
        refused=(
            TEMPERATURE,
            SHAPE,
            Refused({"beta": -0.1}, "beta must lie in"),
            Refused({"top_k": 1}, "top_k must be >= 2 and <= 6, got 1"),
        ),
    ),
    "opsd: top k": Example(
        self_distillation.opsd,
        ARRAYS,
        {"beta": 0.2, "top_k": 3},
        differentiated=("student_logits",),
        extreme=BOTH,
        batched=BOTH,
    ),
}
