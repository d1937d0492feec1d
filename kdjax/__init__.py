"""kdjax: knowledge distillation in JAX.

    from kdjax import losses
    loss = losses.kd(student_logits, teacher_logits, temperature=4.0)      # [batch]

`kdjax.train` and `kdjax.distill` take networks, arrays and a loss of one's own.
"""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"
__all__ = ["distill", "train"]


def __getattr__(name: str) -> Any:
    # Not imported with the package: a loss alone needs neither data sets nor the engine.
    if name in __all__:
        from kdjax.methods import custom

        return getattr(custom, name)
    raise AttributeError(f"module 'kdjax' has no attribute {name!r}")
