"""Examples of the losses of networks that learn together."""

import numpy as np

from kdjax.losses import mutual
from kernels.examples.example import Example, Refused, draw, normal

LABELS = np.array([0, 3, 1, -100])
ONE_PEER = Refused({"peer_logits": np.ones((4, 1, 5))}, r"peers >= 2, got shape \(4, 1, 5\)")
LABEL_SHAPE = Refused({"labels": np.zeros(3, int)}, r"labels must have the shape \(4,\)")
TEMPERATURE = Refused({"temperature": 0.0}, "temperature must be finite and > 0, got 0")


def teacher_of(kernel, *refused, **options):
    return Example(
        kernel,
        draw(peer_logits=normal(4, 3, 5), labels=LABELS),
        options,
        stopped=("peer_logits",),
        extreme=("peer_logits",),
        batched=("peer_logits", "labels"),
        refused=(ONE_PEER, LABEL_SHAPE, *refused),
    )


EXAMPLES = {
    "dml": Example(
        mutual.dml,
        draw(peer_logits=normal(4, 3, 5), labels=LABELS),
        {"temperature": 2.0},
        differentiated=("peer_logits",),
        extreme=("peer_logits",),
        batched=("peer_logits", "labels"),
        refused=(ONE_PEER, LABEL_SHAPE, TEMPERATURE),
        sloped=False,
    ),
    "kdcl": Example(
        mutual.kdcl,
        draw(peer_logits=normal(4, 3, 5), teacher_logits=normal(4, 5), labels=LABELS),
        {"weight": 0.5},
        differentiated=("peer_logits",),
        extreme=("peer_logits", "teacher_logits"),
        batched=("peer_logits", "teacher_logits", "labels"),
        refused=(
            ONE_PEER,
            LABEL_SHAPE,
            TEMPERATURE,
            Refused({"weight": -1.0}, "weight must be finite and >= 0, got -1"),
            Refused({"teacher_logits": np.ones((4, 6))}, "classes = 5 as in peer_logits"),
        ),
    ),
    "kdcl_general": Example(
        mutual.kdcl_general,
        draw(peer_logits=normal(4, 3, 5), weights=np.array([0.5, 0.75, -0.25], np.float32)),
        stopped=("peer_logits", "weights"),
        extreme=("peer_logits",),
        batched=("peer_logits",),
        refused=(Refused({"weights": np.ones(4)}, "peers = 3 as in peer_logits"),),
    ),
    "kdcl_general_weights": Example(
        mutual.kdcl_general_weights,
        draw(peer_logits=normal(4, 3, 5), labels=LABELS),
        stopped=("peer_logits",),
        batched=("peer_logits", "labels"),
        refused=(
            ONE_PEER,
            LABEL_SHAPE,
            Refused({"ridge": 0.0}, "ridge must be finite and > 0, got 0"),
        ),
    ),
    "kdcl_linear": teacher_of(
        mutual.kdcl_linear, Refused({"steps": 0}, "steps must be >= 1, got 0"), steps=8
    ),
    "kdcl_min_logit": teacher_of(mutual.kdcl_min_logit),
    "kdcl_naive": teacher_of(mutual.kdcl_naive),
    "one_loss": Example(
        mutual.one_loss,
        draw(branch_logits=normal(4, 3, 5), gate_logits=normal(4, 3), labels=LABELS),
        differentiated=("branch_logits", "gate_logits"),
        extreme=("branch_logits", "gate_logits"),
        batched=("branch_logits", "gate_logits", "labels"),
        refused=(
            TEMPERATURE,
            LABEL_SHAPE,
            Refused({"branch_logits": np.ones((4, 1, 5))}, "branches >= 2, got shape"),
            Refused({"gate_logits": np.ones((4, 2))}, "branches = 3 as in branch_logits"),
        ),
        sloped=False,
    ),
}
