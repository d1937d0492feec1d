"""PyTorch's layout of feature maps, and lists of layers."""

from collections.abc import Sequence

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from kdjax.losses import checks


def channels_last(**named: ArrayLike) -> tuple[Float[Array, "batch height width channels"], ...]:
    """Maps [batch, channels, height, width] as [batch, height, width, channels].

    Raises:
      ValueError: another rank. TypeError: maps that are not floats.

    >>> import jax.numpy as jnp
    >>> (maps,) = channels_last(maps=jnp.ones((2, 3, 4, 5)))
    >>> maps.shape
    (2, 4, 5, 3)
    """
    moved = []
    for name, maps in named.items():
        (maps,) = checks.shaped({name: "batch channels height width"}, **{name: maps})
        moved.append(jnp.moveaxis(maps, 1, -1))
    return tuple(moved)


def layers(
    student_layers: Sequence[ArrayLike], teacher_layers: Sequence[ArrayLike]
) -> list[tuple[ArrayLike, ArrayLike]]:
    """The layers of both networks in pairs.

    Raises:
      ValueError: lists of two lengths.

    >>> layers([1.0, 2.0], [3.0, 4.0])
    [(1.0, 3.0), (2.0, 4.0)]
    """
    if len(student_layers) != len(teacher_layers):
        raise ValueError(
            f"student and teacher must have one number of layers, "
            f"got {len(student_layers)} and {len(teacher_layers)}"
        )
    return list(zip(student_layers, teacher_layers))
