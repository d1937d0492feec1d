"""Examples of the graphs of tokens."""

import numpy as np

from kdjax.losses import token_graph
from kernels.examples.example import Example, Refused, draw, normal

PRESENT = np.array([True, False, True, True, True])
SQUARE = ("student_adjacency", "teacher_adjacency")
ONE = {"tokens": np.ones((1, 3), np.float32), "where": None}
MANY = {"tokens": np.ones((9, 3), np.float32), "where": None, "max_tokens": 8}
OF_A_GRAPH = (
    Refused(ONE, r"tokens >= 2, got shape \(1, 3\)"),
    Refused(MANY, r"at most max_tokens=8, got 9: .* tokens\^2"),
    Refused({"k": 5}, "k must be >= 1 and <= 4, got 5"),
    Refused({"k": 0}, "k must be >= 1 and <= 4, got 0"),
    Refused({"k": 1.5}, "k must be an integer, got 1.5", TypeError),
    Refused({"where": np.ones(4, bool)}, r"where must have the shape \(5,\) of the tokens"),
    Refused({"where": np.ones(5)}, "where must be boolean", TypeError),
)

EXAMPLES = {
    "inner_context_loss": Example(
        token_graph.inner_context_loss,
        draw(student_tokens=normal(4, 3, 2), teacher_tokens=normal(4, 3, 5)),
        differentiated=("student_tokens",),
        extreme=("student_tokens", "teacher_tokens"),
        batched=("student_tokens", "teacher_tokens"),
        refused=(
            Refused({"teacher_tokens": np.ones((4, 4, 5))}, "tokens = 3 as in student_tokens"),
            Refused({"teacher_tokens": np.ones((3, 3, 5))}, "batch = 4 as in student_tokens"),
            Refused({"student_tokens": np.ones((4, 3))}, r"shaped \[batch, tokens, student_width"),
        ),
    ),
    "token_knn_adjacency": Example(
        token_graph.token_knn_adjacency,
        draw(tokens=normal(5, 3), where=PRESENT),
        {"k": 2},
        differentiated=("tokens",),
        extreme=("tokens",),
        batched=("tokens", "where"),
        masked={"tokens": 1},
        sloped=False,  # sigma is stopped
        refused=(
            *OF_A_GRAPH,
            Refused({"sigma": 0.0}, "sigma must be finite and > 0, got 0"),
            Refused({"neighbors": np.zeros((5, 3), int)}, r"shape \(5, 2\) of tokens by k"),
            Refused({"neighbors": np.ones((5, 2))}, "neighbors must be integers", TypeError),
        ),
    ),
    "token_knn_adjacency: sigma, self-edges": Example(
        token_graph.token_knn_adjacency,
        draw(tokens=normal(5, 3)),
        {"k": 3, "sigma": 0.7, "self_edges": True},
        differentiated=("tokens",),
        extreme=("tokens",),
    ),
    "token_local_loss": Example(
        token_graph.token_local_loss,
        draw(student_adjacency=normal(5, 5), teacher_adjacency=normal(5, 5), where=PRESENT),
        {"local_temperature": 0.5},
        differentiated=("student_adjacency",),
        extreme=SQUARE,
        masked={"student_adjacency": 1, "teacher_adjacency": (..., 1)},
        refused=(
            Refused({"teacher_adjacency": np.ones((4, 4))}, "tokens = 5 as in student_adjacency"),
            Refused({"student_adjacency": np.ones((5, 4))}, "tokens = 5 as in student_adjacency"),
            Refused({"local_temperature": 0.0}, "local_temperature must be finite and > 0, got 0"),
            Refused({"direction": "both"}, "direction must be one of 'forward', 'reverse'"),
            Refused({"where": np.ones(4, bool)}, r"where must have the shape \(5,\) of the tokens"),
        ),
    ),
    "token_local_loss: reverse": Example(
        token_graph.token_local_loss,
        draw(student_adjacency=normal(5, 5), teacher_adjacency=normal(5, 5)),
        {"direction": "reverse"},
        differentiated=("student_adjacency",),
        extreme=SQUARE,
    ),
    "token_neighbors": Example(
        token_graph.token_neighbors,
        draw(tokens=normal(5, 3), where=PRESENT),
        {"k": 2},
        extreme=("tokens",),
        stopped=("tokens",),
        masked={"tokens": 1},
        refused=OF_A_GRAPH,
    ),
    "tokenize_feature_map": Example(
        token_graph.tokenize_feature_map,
        draw(features=normal(4, 4, 2, 3)),
        {"patch": 2},
        differentiated=("features",),
        extreme=("features",),
        batched=("features",),
        refused=(
            Refused({"patch": 3}, "patch=3 must divide the feature map, 4 x 2"),
            Refused({"patch": 0}, "patch must be >= 1, got 0"),
            Refused({"features": np.ones((4, 4, 2))}, r"features must be shaped \[batch, height"),
        ),
    ),
}
