"""Goldens of the vocabulary-sized losses."""

from kdjax.losses import vocabulary
from kdjax.losses.vocabulary_arguments import Head
from kernels.goldens.support import loss_and_gradients


def linear_jsd(case):
    def head(side):
        bias = case[f"{side}_bias"]
        return Head(case[f"{side}_weight"], bias if case["has_bias"] else 0 * bias)

    (soft, count), (hard, labelled) = vocabulary.linear_generalized_jsd(
        case["student_hidden"],
        head("student"),
        case["teacher_hidden"],
        head("teacher"),
        labels=case["labels"],
        where=case["labels"] != -100,
        beta=case["beta"],
        temperature=case["temperature"],
        chunk=4,
    )
    return case["weight_hard"] * hard / labelled + case["weight_soft"] * soft / count


ADAPTERS = {
    "00b-fused_linear_jsd": loss_and_gradients(
        linear_jsd, "student_hidden", "student_weight", "student_bias"
    ),
}
