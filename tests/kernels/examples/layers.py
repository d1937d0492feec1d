"""Examples of the losses between layers of transformers."""

import numpy as np

from kdjax.losses import layers
from kernels.examples.example import Example, Refused, draw, normal

TOKENS = np.array([[True, True, False, True], [True, True, True, True]])
SCORES = ("student_scores", "teacher_scores")
STATES = ("student_states", "teacher_states")
NO_MULTIPLE = Refused(
    {"teacher_layers": 7}, "teacher_layers must be a multiple of student_layers = 3, got 7"
)


def of_scores(kernel):
    return Example(
        kernel,
        draw(
            student_scores=normal(2, 2, 3, 4),
            teacher_scores=normal(2, 2, 3, 4),
            where=TOKENS[:, None, None, :],
        ),
        differentiated=("student_scores",),
        extreme=SCORES,
        batched=(*SCORES, "where"),
        masked=dict.fromkeys(SCORES, (0, ..., 2)),
        refused=(
            Refused({"teacher_scores": np.ones((2, 2, 3, 3))}, "keys = 4 as in student_scores"),
            Refused({"student_scores": np.ones(4)}, r"shaped \[..., queries, keys\], got shape"),
            Refused({"where": np.ones(3, bool)}, r"where must broadcast to the shape \(2, 2, 3"),
            Refused({"where": np.ones(4)}, "where must be boolean", TypeError),
        ),
    )


def of_states(kernel, *refused, **options):
    return Example(
        kernel,
        draw(student_states=normal(2, 4, 3), teacher_states=normal(2, 4, 3), where=TOKENS),
        options,
        differentiated=("student_states",),
        extreme=STATES,
        batched=(*STATES, "where"),
        masked=dict.fromkeys(STATES, (0, 2)),
        refused=(
            Refused({"teacher_states": np.ones((2, 4, 5))}, "features = 3 as in student_states"),
            Refused({"where": np.ones(4, bool)}, r"where must have the shape \(2, 4\)"),
            *refused,
        ),
    )


def of_layer_counts(kernel, *refused, **options):
    options = {"student_layers": 3, "teacher_layers": 6, **options}
    return Example(kernel, draw(), options, refused=refused, jitted=False)


EXAMPLES = {
    "minilm_attention": Example(
        layers.minilm_attention,
        draw(
            student_queries=normal(2, 4, 4),
            student_keys=normal(2, 4, 4),
            teacher_queries=normal(2, 4, 6),
            teacher_keys=normal(2, 4, 6),
            where=TOKENS,
        ),
        {"num_heads": 2},
        differentiated=("student_queries", "student_keys"),
        extreme=("student_queries", "student_keys", "teacher_queries", "teacher_keys"),
        batched=("student_queries", "student_keys", "teacher_queries", "teacher_keys", "where"),
        masked=dict.fromkeys(
            ("student_queries", "student_keys", "teacher_queries", "teacher_keys"), (0, 2)
        ),
        refused=(
            Refused({"num_heads": 3}, "width 4 of student_queries must be a multiple of 3 heads"),
            Refused({"num_heads": 4}, "width 6 of teacher_queries must be a multiple of 4 heads"),
            Refused({"student_keys": np.ones((2, 4, 6))}, "student_width = 4 as in student_queri"),
            Refused({"teacher_keys": np.ones((2, 5, 6))}, "tokens = 4 as in student_queries"),
        ),
    ),
    "minilm_relation": Example(
        layers.minilm_relation,
        draw(student_vectors=normal(2, 4, 4), teacher_vectors=normal(2, 4, 6), where=TOKENS),
        {"num_relation_heads": 2},
        differentiated=("student_vectors",),
        extreme=("student_vectors", "teacher_vectors"),
        batched=("student_vectors", "teacher_vectors", "where"),
        masked=dict.fromkeys(("student_vectors", "teacher_vectors"), (0, 2)),
        refused=(
            Refused({"num_relation_heads": 0}, "heads must be >= 1, got 0"),
            Refused({"num_relation_heads": 4}, "width 6 of teacher_vectors must be a multiple"),
            Refused({"teacher_vectors": np.ones((2, 5, 6))}, "tokens = 4 as in student_vectors"),
            Refused({"where": np.ones((2, 5), bool)}, r"where must have the shape \(2, 4\)"),
        ),
    ),
    "mobilebert_attention": of_scores(layers.mobilebert_attention),
    "mobilebert_features": of_states(
        layers.mobilebert_features,
        Refused({"epsilon": 0.0}, "epsilon must be finite and > 0, got 0"),
    ),
    "patient_kd": of_states(layers.patient_kd),
    "patient_kd_layers": of_layer_counts(
        layers.patient_kd_layers,
        NO_MULTIPLE,
        Refused({"strategy": "first"}, "strategy must be one of 'skip', 'last', got 'first'"),
        Refused({"student_layers": 1}, "student_layers must be >= 2, got 1"),
        Refused({"teacher_layers": 2}, "teacher_layers must be >= 3, got 2"),
    ),
    "tinybert_attention": of_scores(layers.tinybert_attention),
    "tinybert_attention_layers": of_layer_counts(layers.tinybert_attention_layers, NO_MULTIPLE),
    "tinybert_hidden": of_states(layers.tinybert_hidden),
    "tinybert_hidden_layers": of_layer_counts(
        layers.tinybert_hidden_layers,
        NO_MULTIPLE,
        Refused({"student_layers": 0}, "student_layers must be >= 1, got 0"),
    ),
}
