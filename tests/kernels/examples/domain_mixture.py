"""Examples of the kernels that weigh domains."""

import numpy as np

from kdjax.losses import domain_mixture
from kernels.examples.example import Example, Refused, draw


def between(low, high, *shape):
    return lambda generator: generator.uniform(low, high, shape).astype(np.float32)


STUDENT, TEACHER = between(4, 6, 2, 3), between(2, 3, 2, 3)
RATIOS = (
    Refused({"teacher_perplexity": np.ones((2, 4), np.float32)}, "teacher_perplexity must be sha"),
    Refused({"student_perplexity": np.ones((2, 3), int)}, "floating-point", TypeError),
    Refused({"max_ratio": 0.0}, "max_ratio must be finite and > 0, got 0"),
)

EXAMPLES = {
    "domain_perplexity": Example(
        domain_mixture.domain_perplexity,
        draw(nll_sum=between(4, 8, 2, 3), token_count=between(3, 5, 2, 3)),
        differentiated=("nll_sum",),
        stopped=("token_count",),
        refused=(
            Refused({"token_count": np.ones((2, 4), np.float32)}, "token_count must be shaped"),
            Refused({"nll_sum": np.ones((2, 3), int)}, "floating-point", TypeError),
        ),
    ),
    "domain_discrepancy_init": Example(
        domain_mixture.domain_discrepancy_init,
        draw(student_perplexity=STUDENT, teacher_perplexity=TEACHER),
        differentiated=("student_perplexity",),
        extreme=("student_perplexity",),
        refused=RATIOS,
    ),
    "domain_discrepancy_update": Example(
        domain_mixture.domain_discrepancy_update,
        draw(
            factor=between(0.2, 0.5, 2, 3), student_perplexity=STUDENT, teacher_perplexity=TEACHER
        ),
        {"alpha": 0.7, "max_ratio": 50.0},
        differentiated=("factor", "student_perplexity"),
        extreme=("student_perplexity",),
        refused=(
            *RATIOS,
            Refused({"alpha": 1.5}, r"alpha must lie in \[0, 1\], got 1.5"),
            Refused({"factor": np.ones((2, 4), np.float32)}, "domains = 4 as in factor"),
        ),
    ),
}
