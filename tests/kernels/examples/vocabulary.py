"""Examples of the vocabulary-sized losses."""

import numpy as np

from kdjax.losses import vocabulary
from kernels.examples.example import Example, Refused, draw, normal

MASK = np.array([[True, False, True]])
LABELS = np.array([[4, 0, -100]])
HEADS = {"student_head": normal(5, 2), "teacher_head": normal(5, 3)}
HIDDEN = {"student_hidden": normal(1, 3, 2), "teacher_hidden": normal(1, 3, 3)}
REFUSED = (
    Refused({"temperature": 0.0}, "temperature must be finite and > 0, got 0"),
    Refused({"teacher_head": np.zeros((6, 3), np.float32)}, "vocabulary = 5 as in student_head"),
    Refused({"where": MASK[:, :2]}, r"where must have the shape \(1, 3\) of student_hidden"),
)


def example(kernel, *refused, **options):
    """Not sloped: JAX has no forward mode for a custom gradient, which the test of it uses."""
    return Example(
        kernel,
        draw(**HIDDEN, **HEADS, where=MASK),
        options,
        differentiated=("student_hidden", "student_head"),
        extreme=("student_hidden", "teacher_hidden"),
        batched=("student_hidden", "teacher_hidden", "where"),
        masked={"student_hidden": (0, 1), "teacher_hidden": (0, 1)},
        refused=(*REFUSED, *refused),
        sloped=False,
    )


EXAMPLES = {
    "linear_cross_entropy": Example(
        vocabulary.linear_cross_entropy,
        draw(
            student_hidden=HIDDEN["student_hidden"],
            student_head=HEADS["student_head"],
            labels=LABELS,
            where=MASK,
        ),
        differentiated=("student_hidden", "student_head"),
        extreme=("student_hidden",),
        batched=("student_hidden", "labels", "where"),
        masked={"student_hidden": (0, 1)},
        refused=(
            Refused({"labels": LABELS[0]}, r"labels must have the shape \(1, 3\)"),
            Refused({"chunk": 0}, "chunk must be >= 1, got 0"),
        ),
        sloped=False,
    ),
    "linear_kl": example(vocabulary.linear_kl, temperature=2.0, chunk=2),
    "linear_reverse_kl": example(vocabulary.linear_reverse_kl),
    "linear_generalized_jsd": example(
        vocabulary.linear_generalized_jsd,
        Refused({"beta": 2.0}, r"beta must lie in \[0, 1\], got 2"),
        beta=0.3,
    ),
    "linear_skewed_kl": example(
        vocabulary.linear_skewed_kl,
        Refused({"lam": 2.0}, r"lam must lie in \[0, 1\], got 2"),
        Refused({"direction": "up"}, "direction must be one of 'forward', 'reverse', got 'up'"),
    ),
    "linear_total_variation": example(vocabulary.linear_total_variation),
    "linear_alpha_beta": example(
        vocabulary.linear_alpha_beta,
        Refused({"alpha": np.nan}, "alpha must be finite, got nan"),
    ),
    "linear_taid": example(
        vocabulary.linear_taid,
        Refused({"t": 1.5}, r"t must lie in \[0, 1\], got 1.5"),
        Refused({"form": "js"}, "form must be one of 'cross_entropy', 'kl', got 'js'"),
        t=0.4,
    ),
}
