"""Distillation losses: pure, unreduced functions of arrays.

    from kdjax import losses
    loss = losses.kd(student_logits, teacher_logits, temperature=4.0)      # [batch]

Arrays come first (student, teacher, labels), hyperparameters follow by keyword and may be traced.
[..., classes] -> [...] in float32; the caller weighs and reduces. Arguments named `teacher_*` are
constants; a divergence, of p and q, differentiates both.
"""

from kdjax.losses.binary import binary_kl, binary_kl_norm
from kdjax.losses.checks import valid_labels
from kdjax.losses.divergences import (
    alpha_beta_divergence,
    forward_kl,
    generalized_jsd,
    jeffreys,
    kl_divergence,
    reverse_kl,
    skewed_forward_kl,
    skewed_reverse_kl,
    total_variation,
)
from kdjax.losses.gradients import gradient_align
from kdjax.losses.logits import (
    cross_entropy,
    dist,
    dkd,
    kd,
    logit_standardized_kd,
    nkd,
    standardize_logits,
)
from kdjax.losses.ranking import (
    listmle_weights,
    p_listmle_weights,
    plackett_luce,
    plackett_luce_nll,
    teacher_optimal_ranking,
)

__all__ = [
    "alpha_beta_divergence",
    "binary_kl",
    "binary_kl_norm",
    "cross_entropy",
    "dist",
    "dkd",
    "forward_kl",
    "generalized_jsd",
    "gradient_align",
    "jeffreys",
    "kd",
    "kl_divergence",
    "listmle_weights",
    "logit_standardized_kd",
    "nkd",
    "p_listmle_weights",
    "plackett_luce",
    "plackett_luce_nll",
    "reverse_kl",
    "skewed_forward_kl",
    "skewed_reverse_kl",
    "standardize_logits",
    "teacher_optimal_ranking",
    "total_variation",
    "valid_labels",
]
