"""The loss of a student against its teacher on given tokens, which the sequence methods share.

    L = label_weight CE(student, next token) + distillation_weight D(teacher, student)

| divergence | D, with p the teacher and q the student at temperature T |
| --- | --- |
| `kl` | KL(p, q): word-level distillation, Kim and Rush 2016 (arXiv:1606.07947) |
| `reverse_kl` | KL(q, p): Gu et al. 2023 (arXiv:2306.08543) |
| `generalized_jsd` | JSD with `beta`: Agarwal et al. 2023 (arXiv:2306.13649) |
| `skewed_kl` | KL(p, lam p + (1 - lam) q): Ko et al. 2024 (arXiv:2402.03898) |
| `skewed_reverse_kl` | KL(q, (1 - lam) p + lam q): the same |
| `total_variation` | half the L1 distance: Wen et al. 2023 (arXiv:2307.15190) |
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax

from kdjax import losses
from kdjax.methods.language_task import Reading, targets
from kdjax.training import Term

DIVERGENCES = (
    "kl",
    "reverse_kl",
    "generalized_jsd",
    "skewed_kl",
    "skewed_reverse_kl",
    "total_variation",
)


@dataclasses.dataclass(frozen=True)
class Divergence:
    """Which divergence, and its weight beside the next tokens.

    Attributes:
      divergence: a name of the table above.
      beta: in [0, 1], of `generalized_jsd`: 0 is the KL, 1 the reverse KL.
      lam: in [0, 1], of the skewed ones.
      temperature: > 0, of both sides; the labels' cross-entropy is at 1.
      scale_by_t2: D times temperature^2 (DistillKit, f-distill; not TRL, DistiLLM, MiniLLM).
      label_weight, distillation_weight: >= 0, not both 0.
    """

    divergence: str = "kl"
    beta: float = 0.5
    lam: float = 0.1
    temperature: float = 1.0
    scale_by_t2: bool = False
    label_weight: float = 0.0
    distillation_weight: float = 1.0

    def __post_init__(self):
        if self.divergence not in DIVERGENCES:
            raise ValueError(f"divergence must be one of {DIVERGENCES}, got {self.divergence!r}")
        for name in ("beta", "lam"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")
        if not self.temperature > 0:
            raise ValueError(f"temperature must be positive, got {self.temperature}")
        for name in ("label_weight", "distillation_weight"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if not self.label_weight and not self.distillation_weight:
            raise ValueError("label_weight and distillation_weight must not both be 0")


def terms(
    config: Divergence,
    reading: Reading,
    teacher_hidden: jax.Array | None,
    teacher_head: losses.Head,
    batch: Mapping[str, jax.Array],
) -> dict[str, Term]:
    """The terms of a batch, means over the tokens to be predicted: what has no weight is not made.

    Args:
      config: which divergence.
      reading: the student's.
      teacher_hidden: `[B, L, D]`, not yet shifted; None where `distillation_weight` is 0.
      teacher_head: of the teacher.
      batch: `tokens`, `completion`, `where`.
    """
    labels, where = targets(batch)
    if not config.distillation_weight:
        found = losses.linear_cross_entropy(reading.hidden, reading.head, labels, where=where)
        return {"cross_entropy": Term(*found, config.label_weight)}
    function, options = {
        "kl": (losses.linear_kl, {}),
        "reverse_kl": (losses.linear_reverse_kl, {}),
        "generalized_jsd": (losses.linear_generalized_jsd, {"beta": config.beta}),
        "skewed_kl": (losses.linear_skewed_kl, {"lam": config.lam}),
        "skewed_reverse_kl": (
            losses.linear_skewed_kl,
            {"lam": config.lam, "direction": "reverse"},
        ),
        "total_variation": (losses.linear_total_variation, {}),
    }[config.divergence]
    if config.label_weight:
        options = {**options, "labels": labels}
    found = function(
        reading.hidden,
        reading.head,
        teacher_hidden[:, :-1],
        teacher_head,
        where=where,
        temperature=config.temperature,
        **options,
    )
    divergence, *label = found if config.label_weight else (found,)
    scale = config.temperature**2 if config.scale_by_t2 else 1.0
    out = {config.divergence: Term(*divergence, config.distillation_weight * scale)}
    if label:
        out["cross_entropy"] = Term(*label[0], config.label_weight)
    return out
