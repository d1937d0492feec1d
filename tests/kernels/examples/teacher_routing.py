"""Examples of distillation from teachers that a gate picks, and of their co-training."""

import numpy as np

from kdjax.losses import mutual, teacher_routing
from kernels.examples.example import Example, Refused, draw, normal
from kernels.examples.mutual import LABEL_SHAPE, LABELS, ONE_PEER, TEMPERATURE
from kernels.examples.routing import NUM_SELECTED, probabilities

LOGITS = draw(
    student_logits=normal(5, 4), teacher_logits=normal(5, 3, 4), gate_probs=probabilities(5, 3)
)
BATCHED = ("student_logits", "teacher_logits", "gate_probs")
REFUSED = (
    *NUM_SELECTED,
    TEMPERATURE,
    Refused({"gate_probs": np.ones((5, 2), np.float32)}, "teachers = 3, got shape"),
    Refused({"teacher_logits": np.ones((5, 3, 6))}, "classes = 4 as in student_logits"),
    Refused({"teacher_logits": np.ones((5, 0, 4))}, "teachers >= 1"),
    Refused({"gate_probs": np.ones((5, 3), int)}, "floating-point", TypeError),
)

EXAMPLES = {
    "mutual_cotraining_loss": Example(
        mutual.mutual_cotraining_loss,
        draw(peer_logits=normal(4, 3, 5), labels=LABELS),
        {"temperature": 2.0},
        differentiated=("peer_logits",),
        extreme=("peer_logits",),
        batched=("peer_logits", "labels"),
        refused=(
            ONE_PEER,
            LABEL_SHAPE,
            TEMPERATURE,
            Refused({"weight": -1.0}, "weight must be finite and >= 0, got -1"),
        ),
    ),
    "route_topk": Example(
        teacher_routing.route_topk,
        draw(gate_probs=probabilities(5, 3)),
        batched=("gate_probs",),
        stopped=("gate_probs",),
        refused=(
            *NUM_SELECTED,
            Refused({"gate_probs": np.ones((5, 0), np.float32)}, "teachers >= 1"),
        ),
    ),
    "routed_topk_distillation": Example(
        teacher_routing.routed_topk_distillation,
        LOGITS,
        {"num_selected": 2},
        differentiated=("student_logits",),
        stopped=("gate_probs",),
        extreme=("student_logits", "teacher_logits"),
        batched=BATCHED,
        refused=REFUSED,
    ),
    "routed_topk_distillation: weighted": Example(
        teacher_routing.routed_topk_distillation,
        LOGITS,
        {"num_selected": 2, "gate_weighted": True},
        differentiated=("student_logits", "gate_probs"),
        batched=BATCHED,
    ),
}
