"""Examples of learning to rank."""

import numpy as np

from kdjax.losses import learning_to_rank
from kernels.examples.example import Example, Refused, draw, normal

WHERE = np.array([[True, True, False, True], [True] * 4, [False] * 4])


def grades(generator):
    """Grades 0 to 3, a permutation a list: no ties."""
    return np.stack([generator.permutation(4) for _ in range(3)]).astype(np.float32)


LISTS = draw(scores=normal(3, 4), relevance=grades, where=WHERE)
REFUSED = (
    Refused({"relevance": np.zeros((3, 5), np.float32)}, "relevance .*items = 4 as in scores"),
    Refused({"scores": np.zeros((3, 4), int)}, "scores must be a floating", TypeError),
    Refused({"where": WHERE[0]}, "where must have the shape"),
    Refused({"where": WHERE * 1}, "where must be boolean", TypeError),
)


def listwise(kernel, options=None, extreme=("scores",), arguments=LISTS, refused=()):
    return Example(
        kernel,
        arguments,
        options or {},
        differentiated=("scores",),
        stopped=("relevance",),
        extreme=extreme,
        batched=tuple(arguments(np.random.default_rng(0))),
        masked={"scores": (0, 2), "relevance": (0, 2)},
        refused=(*REFUSED, *refused),
    )


BOTH = ("scores", "relevance")
MARGINS = [
    f"{model}_{kind}_scores"
    for model in ("student", "teacher")
    for kind in ("positive", "negative")
]

EXAMPLES = {
    "listnet": listwise(
        learning_to_rank.listnet,
        extreme=BOTH,
        refused=(Refused({"epsilon": -1.0}, "epsilon must be finite and >= 0, got -1"),),
    ),
    "listnet: epsilon": listwise(learning_to_rank.listnet, {"epsilon": 1e-3}, extreme=BOTH),
    "listmle": listwise(learning_to_rank.listmle, extreme=BOTH),
    "partial_listmle": listwise(
        learning_to_rank.partial_listmle,
        extreme=BOTH,
        arguments=draw(
            scores=normal(3, 4),
            relevance=grades,
            valid=lambda generator: grades(generator) > 1,
            where=WHERE,
        ),
        refused=(Refused({"valid": np.ones((3, 5), bool)}, "valid must have the shape"),),
    ),
    "ordered_pairs": Example(
        learning_to_rank.ordered_pairs,
        draw(relevance=grades, where=WHERE),
        extreme=("relevance",),
        batched=("relevance", "where"),
        masked={"relevance": (0, 2)},
        refused=(REFUSED[2],),
    ),
    "ranknet": listwise(learning_to_rank.ranknet, extreme=BOTH),
    "ranknet: weighted": listwise(learning_to_rank.ranknet, {"weighted": True}, extreme=BOTH),
    "lambdarank": listwise(learning_to_rank.lambdarank),
    "approx_ndcg": listwise(
        learning_to_rank.approx_ndcg,
        {"alpha": 2.0},
        refused=(Refused({"alpha": 0.0}, "alpha must be finite and > 0, got 0"),),
    ),
    "margin_mse": Example(
        learning_to_rank.margin_mse,
        draw(**{name: normal(3) for name in MARGINS}),
        differentiated=tuple(MARGINS[:2]),
        extreme=tuple(MARGINS),
        batched=tuple(MARGINS),
        refused=(Refused({MARGINS[1]: np.zeros(2, np.float32)}, f"{MARGINS[1]} must be shaped"),),
    ),
}
