"""Examples of hard negatives."""

import numpy as np

from kdjax.losses import hard_negatives
from kernels.examples.cross_modal_ranks import WHERE, grades
from kernels.examples.example import Example, Refused, draw, normal

POSITIVES = np.eye(3, 4, dtype=bool)

EXAMPLES = {
    "mine_hard_negatives": Example(
        hard_negatives.mine_hard_negatives,
        draw(student_scores=normal(3, 4), positives=POSITIVES),
        {"negatives": 2},
        extreme=("student_scores",),
        batched=("student_scores", "positives"),
        refused=(
            Refused({"negatives": 1}, "negatives must be >= 2 and <= 3, got 1"),
            Refused({"negatives": 4}, "negatives must be >= 2 and <= 3, got 4"),
            Refused({"negatives": 2.0}, "negatives must be an integer", TypeError),
            Refused({"positives": POSITIVES[:2]}, "positives must have the shape"),
            Refused({"student_scores": np.zeros((3, 4), int)}, "must be a floating", TypeError),
        ),
    ),
    "valid_negatives": Example(
        hard_negatives.valid_negatives,
        draw(teacher_scores=grades, where=WHERE),
        {"threshold": 0.5},
        extreme=("teacher_scores",),
        batched=("teacher_scores", "where"),
        masked={"teacher_scores": (0, 2)},
        refused=(
            Refused({"fraction": 1.5}, r"fraction must lie in \[0, 1\], got 1.5"),
            Refused({"threshold": np.inf}, "threshold must be finite"),
            Refused({"where": WHERE[0]}, "where must have the shape"),
        ),
    ),
    "partial_ranking_contrastive_loss": Example(
        hard_negatives.partial_ranking_contrastive_loss,
        draw(
            student_scores=normal(3, 4),
            teacher_scores=grades,
            valid=lambda generator: grades(generator) > 0,
            where=WHERE,
        ),
        {"temperature": 0.5, "tie_tolerance": 0.1},
        differentiated=("student_scores",),
        extreme=("student_scores", "teacher_scores"),
        batched=("student_scores", "teacher_scores", "valid", "where"),
        masked={"student_scores": (0, 2), "teacher_scores": (0, 2)},
        refused=(
            Refused({"temperature": 0.0}, "temperature must be finite and > 0, got 0"),
            Refused({"tie_tolerance": -1.0}, "tie_tolerance must be finite and >= 0, got -1"),
            Refused({"valid": WHERE[:, :2]}, "valid must have the shape"),
            Refused({"teacher_scores": np.zeros((3, 5), np.float32)}, "items = 4 as in"),
        ),
    ),
}
