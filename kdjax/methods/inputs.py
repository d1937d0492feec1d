"""What a network reads of a batch."""

from __future__ import annotations

from collections.abc import Mapping

import jax

Fields = str | tuple[str, ...]  # the names of its arguments, in their order


def inputs(batch: Mapping[str, jax.Array], fields: Fields) -> tuple[jax.Array, ...]:
    """The arguments of a network: the fields of a batch that it reads, in order.

    Raises:
      ValueError: the batch lacks a field.

    >>> batch = {"image": 1, "audio": 2, "label": 3}
    >>> inputs(batch, "image"), inputs(batch, ("image", "audio"))
    ((1,), (1, 2))
    """
    names = (fields,) if isinstance(fields, str) else fields
    for name in names:
        if name not in batch:
            raise ValueError(f"a network reads the field {name!r}, but there are {sorted(batch)}")
    return tuple(batch[name] for name in names)
