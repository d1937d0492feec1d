"""Examples of the relations between examples."""

import numpy as np

from kdjax.losses import relation_matrices, relations
from kernels.examples.example import Example, Refused, draw, normal

PAIR = ("student_features", "teacher_features")
NARROW, WIDE = normal(4, 3), normal(4, 5)
PRESENT = np.array([True, False, True, True])


def of_features(kernel, *refused, student=NARROW, teacher=WIDE, **options):
    """The example of a relation of student and teacher features with a mask of examples."""
    width = np.shape(teacher(np.random.default_rng(0)))[1:]
    of_one = {"student_features": np.ones((1, 3)), "teacher_features": np.ones((1, *width))}
    return Example(
        kernel,
        draw(student_features=student, teacher_features=teacher, where=PRESENT),
        options,
        differentiated=("student_features",),
        extreme=PAIR,
        batched=(*PAIR, "where"),
        masked={"student_features": 1, "teacher_features": 1},
        refused=(
            Refused({**of_one, "where": None}, r"batch >= 2, got shape \(1, 3\)"),
            Refused(
                {"teacher_features": np.ones((3, *width))}, r"with batch = 4 as in student_features"
            ),
            Refused({"student_features": np.ones(4)}, r"student_features must be shaped \[batch"),
            Refused({"where": np.ones(3, bool)}, r"where must have the shape \(4,\) of the batch"),
            Refused({"where": np.ones(4)}, "where must be boolean", TypeError),
            *refused,
        ),
    )


EXAMPLES = {
    "cc_adjacent": of_features(
        relations.cc_adjacent,
        Refused({"teacher_features": np.ones((4, 2))}, "features = 3 as in student_features"),
        teacher=normal(4, 3),
    ),
    "cc_taylor": of_features(
        relations.cc_taylor,
        Refused({"gamma": 0.0}, "gamma must be finite and > 0, got 0"),
        Refused({"order": 0}, "order must be >= 1, got 0"),
        order=3,
    ),
    "cosine_gram": Example(
        relation_matrices.cosine_gram,
        draw(features=normal(4, 3, 2), where=PRESENT),
        differentiated=("features",),
        extreme=("features",),
        batched=("features", "where"),
        masked={"features": 1},
        refused=(Refused({"features": np.ones(4)}, r"shaped \[batch, ...features\], got shape"),),
    ),
    "entropy_share": Example(
        relation_matrices.entropy_share,
        draw(logits=normal(4, 3), where=PRESENT),
        differentiated=("logits",),
        extreme=("logits",),
        batched=("logits", "where"),
        masked={"logits": 1},
        refused=(Refused({"logits": np.ones((4, 3, 2))}, r"logits must be shaped \[batch, cla"),),
    ),
    "pkt": of_features(
        relations.pkt, Refused({"epsilon": 0.0}, "epsilon must be finite and > 0, got 0")
    ),
    "relation_gap": Example(
        relation_matrices.relation_gap,
        draw(
            student_relations=normal(2, 3, 4),
            teacher_relations=normal(2, 3, 4),
            where=np.array([True, False, True, True]) & np.ones((2, 3, 1), bool),
        ),
        differentiated=("student_relations",),
        extreme=("student_relations", "teacher_relations"),
        batched=("student_relations", "teacher_relations", "where"),
        masked={
            "student_relations": (..., 1),
            "teacher_relations": (..., 1),
        },
        refused=(
            Refused({"power": 3}, "power must be 1 or 2, got 3"),
            Refused({"weights": np.ones(3)}, r"weights must broadcast to the shape \(2, 3, 4\)"),
            Refused({"teacher_relations": np.ones((2, 3, 3))}, "columns = 4 as in student_relati"),
            Refused({"where": np.ones((3, 4), bool)}, "where must have the shape"),
        ),
    ),
    "relation_gap: weighted, power 1": Example(
        relation_matrices.relation_gap,
        draw(student_relations=normal(3, 4), teacher_relations=normal(3, 4), weights=normal(4)),
        {"power": 1},
        differentiated=("student_relations", "weights"),
        extreme=("student_relations", "teacher_relations", "weights"),
    ),
    "rkd_angle": of_features(relations.rkd_angle),
    "rkd_angle: in parts": of_features(
        relations.rkd_angle,
        Refused({"anchors_at_once": 0}, "anchors_at_once must be >= 1, got 0"),
        anchors_at_once=3,
    ),
    "rkd_distance": of_features(relations.rkd_distance),
    "row_normalized_gram": Example(
        relation_matrices.row_normalized_gram,
        draw(features=normal(4, 3, 2), where=PRESENT),
        differentiated=("features",),
        extreme=("features",),
        batched=("features", "where"),
        masked={"features": 1},
        refused=(Refused({"features": np.ones(4)}, r"shaped \[batch, ...features\], got shape"),),
    ),
    "similarity_preserving": of_features(
        relations.similarity_preserving, student=normal(4, 2, 2, 3), teacher=normal(4, 1, 1, 5)
    ),
    "taylor_correlation": Example(
        relation_matrices.taylor_correlation,
        draw(features=normal(4, 3), where=PRESENT),
        {"order": 2},
        differentiated=("features",),
        extreme=("features",),
        batched=("features", "where"),
        masked={"features": 1},
        refused=(
            Refused({"features": np.ones((4, 3, 2))}, r"features must be shaped \[batch, features"),
            Refused({"gamma": -1.0}, "gamma must be finite and > 0, got -1"),
            Refused({"order": 1.5}, "order must be an integer, got 1.5", TypeError),
        ),
    ),
}
