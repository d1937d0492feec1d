"""Examples of the losses on maps."""

import jax.numpy as jnp
import numpy as np

from kdjax.losses import dense, dense_relations
from kernels.examples.example import Example, Refused, draw, normal

POSITIONS = np.array([[[True, False, True], [True, True, False]]] * 2)
POSITIONS[1, 0, 1] = True
HIDDEN = (0, 0, 1)


def maps(*student, teacher_channels=None, name="features", **others):
    """Maps of this shape for the student, of another width for the teacher."""
    teacher = (*student[:-1], teacher_channels or student[-1])
    return draw(
        **{f"student_{name}": normal(*student), f"teacher_{name}": normal(*teacher)}, **others
    )


def both(name="features"):
    return (f"student_{name}", f"teacher_{name}")


def refused_sizes(name, *, channels_too):
    """A map of another size, one without channels, and one of integers."""
    teacher = f"teacher_{name}"
    wrong = [
        Refused({teacher: np.zeros((2, 9, 3, 4), np.float32)}, f"{teacher} .*height = "),
        Refused({teacher: np.zeros((2, 3, 4), np.float32)}, f"{teacher} must be shaped"),
        Refused({teacher: np.zeros((2, 2, 3, 4), int)}, f"{teacher} must be a float", TypeError),
    ]
    if channels_too:
        wrong.append(Refused({teacher: np.zeros((2, 2, 3, 9), np.float32)}, f"{teacher} must be"))
    return tuple(wrong)


COLD = Refused({"temperature": 0.0}, "temperature must be finite and > 0, got 0")
LOGITS = maps(2, 2, 3, 4, name="logits", where=POSITIONS)

EXAMPLES = {
    "pixelwise_kd": Example(
        dense.pixelwise_kd,
        LOGITS,
        {"temperature": 2.0},
        differentiated=("student_logits",),
        extreme=both("logits"),
        batched=(*both("logits"), "where"),
        masked=dict.fromkeys(both("logits"), HIDDEN),
        refused=(
            *refused_sizes("logits", channels_too=True),
            COLD,
            Refused({"where": POSITIONS[0]}, "where must have the shape"),
            Refused({"where": POSITIONS * 1.0}, "where must be boolean", TypeError),
        ),
    ),
    "skds_pixelwise": Example(
        dense.skds_pixelwise,
        LOGITS,
        differentiated=("student_logits",),
        extreme=both("logits"),
        batched=(*both("logits"), "where"),
        masked=dict.fromkeys(both("logits"), HIDDEN),
        refused=refused_sizes("logits", channels_too=True),
    ),
    "channel_wise_distillation": Example(
        dense.channel_wise_distillation,
        maps(2, 2, 3, 4, where=POSITIONS),
        {"temperature": 2.0},
        differentiated=("student_features",),
        extreme=both(),
        batched=(*both(), "where"),
        masked=dict.fromkeys(both(), HIDDEN),
        refused=(*refused_sizes("features", channels_too=True), COLD),
    ),
    "skds_pairwise": Example(
        dense_relations.skds_pairwise,
        maps(2, 5, 4, 4, teacher_channels=3),
        {"scale": 0.5},
        differentiated=("student_features",),
        extreme=both(),
        batched=both(),
        sloped=False,
        refused=(
            *refused_sizes("features", channels_too=False),
            Refused({"scale": 0.1}, r"scale must lie in \(0, 1\].* got 0.1 for maps of 5 x 4"),
            Refused({"scale": 2.0}, "scale must lie in"),
            Refused({"epsilon": -1.0}, "epsilon must be finite and >= 0, got -1"),
        ),
    ),
    "skds_pairwise: slope": Example(
        dense_relations.skds_pairwise,
        maps(2, 5, 4, 4, teacher_channels=3),
        {"scale": 0.5, "detach_norm": False},
        differentiated=("student_features",),
        extreme=both(),
        batched=both(),
    ),
    "pairwise_similarity_kd": Example(
        dense_relations.pairwise_similarity_kd,
        maps(2, 3, 4, 4, teacher_channels=3),
        differentiated=("student_features",),
        extreme=both(),
        batched=both(),
        refused=refused_sizes("features", channels_too=False),
    ),
    "cross_image_relation_kd": Example(
        dense_relations.cross_image_relation_kd,
        maps(3, 2, 2, 4, teacher_channels=3, where=np.array([True, False, True])),
        {"temperature": 0.5},
        differentiated=("student_features",),
        extreme=both(),
        batched=(*both(), "where"),
        masked=dict.fromkeys(both(), 1),
        refused=(
            COLD,
            Refused({"max_positions": 3}, "at most max_positions = 3 positions.*got 2 x 2"),
            Refused({"where": np.array([True])}, "where must have the shape"),
        ),
    ),
    "intra_class_feature_variation": Example(
        dense_relations.intra_class_feature_variation,
        maps(
            2,
            2,
            3,
            4,
            teacher_channels=5,
            labels=lambda generator: generator.permutation(np.arange(2 * 4 * 6) % 3).reshape(
                2, 4, 6
            ),
        ),
        {"num_classes": 2},
        differentiated=("student_features",),
        extreme=both(),
        batched=(*both(), "labels"),
        refused=(
            *refused_sizes("features", channels_too=False),
            Refused({"labels": np.zeros((3, 4, 6), int)}, "labels .*batch = 2 as in student"),
            Refused({"labels": np.zeros((2, 4, 6))}, "labels must be integers", TypeError),
            Refused({"num_classes": 0}, "num_classes must be >= 1, got 0"),
            Refused({"num_classes": jnp.array(2)}, "num_classes must be an integer", TypeError),
        ),
    ),
    "category_similarity_kd": Example(
        dense.category_similarity_kd,
        maps(2, 4, 5, 3, name="logits"),
        {"temperature": 1.0},
        differentiated=("student_logits",),
        extreme=both("logits"),
        batched=both("logits"),
        refused=(
            *refused_sizes("logits", channels_too=True),
            COLD,
            Refused(
                {name: np.zeros((2, 1, 4, 3), np.float32) for name in both("logits")},
                "student_logits must be shaped .* with height >= 2",
            ),
        ),
    ),
}
