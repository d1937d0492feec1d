"""Examples of optimal transport and of distillation by it."""

import numpy as np

from kdjax.losses import transport
from kernels.examples.example import Example, Refused, draw, normal


def costs(*shape):
    return lambda generator: generator.uniform(0, 1, shape).astype(np.float32)


def symmetric(*shape):
    def matrix(generator):
        points = generator.uniform(0, 1, shape).astype(np.float32)
        return np.abs(points[..., :, None] - points[..., None, :])

    return matrix


def masses(*shape):
    """Positive, with a total of 1, and one of them 0."""

    def marginal(generator):
        drawn = generator.uniform(0.5, 1, shape).astype(np.float32)
        drawn[..., 1] = 0
        return drawn / drawn.sum(-1, keepdims=True)

    return marginal


COST = draw(cost=costs(2, 3, 4), row_marginal=masses(2, 3), column_marginal=masses(2, 4))
MARGINALS = ("row_marginal", "column_marginal")
EPSILON = Refused({"epsilon": 0.0}, "epsilon must be finite and > 0")
PROBLEM = (
    EPSILON,
    Refused({"cost": np.zeros(3, np.float32)}, r"\[\.\.\., rows, columns\]"),
    Refused({"row_marginal": np.ones((2, 4), np.float32)}, r"rows = 3 as in cost"),
    Refused({"row_marginal": -np.ones((2, 3), np.float32)}, "row_marginal must be >= 0"),
    Refused({"row_marginal": np.ones((2, 3), np.float32)}, "must have one total"),
)
# Iterated to the end: the slope of the optimum is that of the iteration only there.
OPTIMUM = {"epsilon": 0.5, "tolerance": 1e-11, "max_iterations": 100}

EXAMPLES = {
    "pairwise_lp_cost": Example(
        transport.pairwise_lp_cost,
        draw(x=normal(2, 3, 5), y=normal(2, 4, 5)),
        differentiated=("x", "y"),
        extreme=("x", "y"),
        batched=("x", "y"),
        refused=(
            Refused({"p": 3}, "p must be 1 or 2, got 3"),
            Refused({"y": np.zeros((2, 4, 6), np.float32)}, "features = 5 as in x"),
        ),
    ),
    "pairwise_lp_cost: Euclidean": Example(
        transport.pairwise_lp_cost,
        draw(x=normal(3, 5), y=normal(4, 5)),
        {"p": 2},
        differentiated=("x", "y"),
        extreme=("x", "y"),
    ),
    "sinkhorn_plan": Example(
        transport.sinkhorn_plan,
        COST,
        {"epsilon": 0.3, "num_iterations": 5},
        differentiated=("cost",),
        extreme=("cost",),
        batched=("cost", *MARGINALS),
        refused=(*PROBLEM, Refused({"num_iterations": -1}, "num_iterations must be >= 0")),
    ),
    "entropic_transport": Example(
        transport.entropic_transport,
        draw(cost=costs(2, 3, 4)),
        OPTIMUM,
        differentiated=("cost",),
        extreme=("cost",),
        batched=("cost",),
        refused=(
            *PROBLEM[:2],
            Refused({"tolerance": -1.0}, "tolerance must be finite and >= 0"),
            Refused({"max_iterations": 0}, "max_iterations must be >= 1"),
        ),
        sloped=False,
    ),
    "entropic_transport: marginals": Example(
        transport.entropic_transport,
        COST,
        OPTIMUM,
        differentiated=("cost",),
        batched=("cost", *MARGINALS),
        refused=PROBLEM,
        sloped=False,
    ),
    "sinkhorn_divergence": Example(
        transport.sinkhorn_divergence,
        draw(cost=costs(2, 3, 4), row_cost=symmetric(2, 3), column_cost=symmetric(2, 4)),
        OPTIMUM,
        differentiated=("cost", "row_cost", "column_cost"),
        batched=("cost", "row_cost", "column_cost"),
        refused=(
            EPSILON,
            Refused({"row_cost": np.zeros((2, 4, 4), np.float32)}, "rows = 3 as in cost"),
        ),
    ),
    "sinkhorn_kd": Example(
        transport.sinkhorn_kd,
        draw(
            student_logits=normal(4, 5),
            teacher_logits=normal(4, 5),
            where=np.array([True, False, True, True]),
        ),
        differentiated=("student_logits",),
        extreme=("student_logits", "teacher_logits"),
        batched=("student_logits", "teacher_logits", "where"),
        masked={"student_logits": 1, "teacher_logits": 1},
        refused=(
            EPSILON,
            Refused({"temperature": 0.0}, "temperature must be finite and > 0"),
            Refused({"p": 3}, "p must be 1 or 2, got 3"),
            Refused({"num_iterations": -1}, "num_iterations must be >= 0"),
            Refused({"teacher_logits": np.zeros((4, 6), np.float32)}, "classes = 5"),
            Refused({"student_logits": np.zeros(5, np.float32)}, r"\[batch, classes\]"),
        ),
    ),
}
