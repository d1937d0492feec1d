"""Examples of the losses on logits that are not in tests/losses/test_every_kernel.py."""

import numpy as np

from kdjax import losses
from kernels.examples.example import Example, Refused, draw, normal

EXAMPLES = {
    "dist": Example(
        losses.dist,
        draw(
            student_logits=normal(4, 5),
            teacher_logits=normal(4, 5),
            where=np.array([True, False, True, True]),
        ),
        {"temperature": 2.0},
        differentiated=("student_logits",),
        extreme=("student_logits", "teacher_logits"),
        batched=("student_logits", "teacher_logits", "where"),
        masked={"student_logits": 1, "teacher_logits": 1},
        refused=(Refused({"temperature": 0.0}, "temperature must be finite and > 0, got 0"),),
    ),
}
