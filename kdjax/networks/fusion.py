"""A classifier of several modalities: an encoder each, their features side by side."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn


class Fusion(nn.Module):
    """`features = relu(W [f_1; ...; f_M] + b)`, `f_m = encoder_m(x_m)` or 0 where that is absent.

    Intermediate fusion by concatenation. `hidden/in` is the tap of the features side by side,
    `encoder0`, `encoder1`, ... are the encoders'.

    Attributes:
      num_classes: C.
      encoders: modules whose output has `features` `[B, D_m]`, in the order of the inputs; their
        logits are not read.
      hidden: width of the layer that joins them.
    """

    num_classes: int
    encoders: tuple[nn.Module, ...]
    hidden: int = 64

    @nn.compact
    def __call__(self, *inputs: jax.Array, train: bool = False) -> dict[str, jax.Array]:
        """`M` inputs `[B, ...]`, and where some may be absent `present` bool `[B, M]` ->
        `{"logits": [B, C], "features": [B, hidden]}`.

        Raises:
          ValueError: another number of inputs than encoders, a `present` of another shape.
        """
        modalities = len(self.encoders)
        if len(inputs) not in (modalities, modalities + 1):
            raise ValueError(
                f"{modalities} encoders need {modalities} inputs, and perhaps which are present; "
                f"got {len(inputs)}"
            )
        parts = []
        for i, encoder in enumerate(self.encoders):
            features = encoder.copy(parent=self, name=f"encoder{i}")(inputs[i], train=train)
            parts.append(features["features"])
        if len(inputs) > modalities:
            present = jnp.asarray(inputs[modalities])
            if present.shape != (len(parts[0]), modalities):
                raise ValueError(
                    f"present must be [batch, modalities] = {[len(parts[0]), modalities]}, got "
                    f"{list(present.shape)}"
                )
            parts = [jnp.where(present[:, i, None], x, 0.0) for i, x in enumerate(parts)]
        x = nn.relu(nn.Dense(self.hidden, name="hidden")(jnp.concatenate(parts, -1)))
        return {"logits": nn.Dense(self.num_classes, name="head")(x), "features": x}
