"""Examples of targets between student and teacher."""

import numpy as np

from kdjax.losses import interpolation
from kernels.examples.example import Example, Refused, draw, normal

LOGITS = draw(student_logits=normal(4, 5), teacher_logits=normal(4, 5))
BOTH = ("student_logits", "teacher_logits")
REFUSED = (
    Refused({"t": 1.5}, r"t must lie in \[0, 1\], got 1.5"),
    Refused({"teacher_logits": np.zeros((4, 6), np.float32)}, "must have one shape"),
    Refused({"student_logits": np.zeros((4, 5), np.int32)}, "floating-point", TypeError),
)


def updated(t, previous_loss, momentum, loss, **options):
    state = interpolation.TaidState(t, previous_loss, momentum)
    return interpolation.taid_update(state, loss, **options)


updated.__doc__ = interpolation.taid_update.__doc__


def scalar(value):
    return np.float32(value)


EXAMPLES = {
    "interpolated_teacher_logits": Example(
        interpolation.interpolated_teacher_logits,
        LOGITS,
        {"t": 0.3},
        stopped=("student_logits",),
        extreme=BOTH,
        batched=BOTH,
        refused=REFUSED,
    ),
    # The target follows the student, and is stopped: the gradient is not the slope.
    "taid": Example(
        interpolation.taid,
        LOGITS,
        {"t": 0.3},
        differentiated=("student_logits",),
        extreme=BOTH,
        batched=BOTH,
        sloped=False,
        refused=(*REFUSED, Refused({"form": "mse"}, "form must be one of 'cross_entropy', 'kl'")),
    ),
    "taid: KL": Example(
        interpolation.taid,
        LOGITS,
        {"t": 0.7, "form": "kl"},
        differentiated=("student_logits",),
        extreme=BOTH,
        batched=BOTH,
        sloped=False,
    ),
    "taid_update": Example(
        updated,
        draw(t=scalar(0.5), previous_loss=scalar(2.0), momentum=scalar(0.1), loss=scalar(1.5)),
        {"step": 3, "num_steps": 10, "alpha": 0.1, "beta": 0.5, "t_start": 0.2},
        stopped=("loss",),
        differentiated=("t", "previous_loss", "momentum"),
        sloped=False,
        refused=(
            Refused({"t_start": 1.0}, "t_start must be below 1"),
            Refused({"t_end": 0.0}, "t_end must be finite and > 0"),
            Refused({"t_start": 0.9, "t_end": 0.5}, "t_start=0.9 must not be above t_end=0.5"),
            Refused({"beta": 1.0}, "beta must be below 1"),
            Refused({"alpha": 2.0}, r"alpha must lie in \[0, 1\]"),
            Refused({"num_steps": 0}, "num_steps must be finite and > 0"),
        ),
    ),
}
