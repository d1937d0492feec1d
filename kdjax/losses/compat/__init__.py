"""Losses of other libraries, call for call: names, defaults, reductions and quirks.

    from kdjax.losses import compat
    loss = compat.torchdistill.kd_loss(student_logits, teacher_logits, labels, temperature=4.0)

For whoever brings an experiment along and must get the number it had. Each is built from the
kernels of `kdjax.losses`, says in which way it departs from them, and returns what the other code
returns: a scalar, already reduced, or a list of them, one a layer. Maps are in the other code's
layout, [batch, channels, height, width]. For new work use the kernels: what is reproduced here is
not endorsed.

No gradient reaches an argument named `teacher_*`. A class at -inf on both sides (vocabulary
padding) adds 0 where an original may return NaN, and an empty mask gives 0 where it divides 0 by 0.
"""

from kdjax.losses.compat import distillm, mdistiller, repdistiller, torchdistill, trl

__all__ = ["distillm", "mdistiller", "repdistiller", "torchdistill", "trl"]
