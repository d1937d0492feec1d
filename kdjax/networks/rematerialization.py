"""Rematerialisation: a block's insides are computed again in the backward pass, and not kept.

On a CPU it saves nothing: XLA takes away the barriers that keep the second computation apart, and
then merges it with the first.
"""

from __future__ import annotations

import jax
from flax import linen as nn

# Those of `jax.checkpoint_policies` that need no arguments.
POLICIES = (
    "dots_saveable",
    "dots_with_no_batch_dims_saveable",
    "everything_saveable",
    "nothing_saveable",
)
NAMES = ("", "block", *POLICIES)


def check_remat(remat: str) -> None:
    """ValueError where `remat` is not one of `NAMES`."""
    if remat not in NAMES:
        raise ValueError(f"remat must be one of {NAMES}, got {remat!r}")


def rematerialized(
    block: type[nn.Module], remat: str, static: tuple[int, ...] = ()
) -> type[nn.Module]:
    """A block of a network that keeps less between the forward and the backward pass.

    Parameters keep their paths, so that weights, checkpoints and partition rules of the one are
    those of the other; random keys, batch statistics and taps are the same too. Chen et al. 2016
    (arXiv:1604.06174).

    Args:
      block: a module; whoever makes an instance names it.
      remat: "": the block as it is. "block": only its inputs are kept. Else the name of one of
        `jax.checkpoint_policies`, which says what else is kept ("dots_saveable": the results of
        matrix products).
      static: which arguments of its call are Python values, counted from 0 for `self`.

    Raises:
      ValueError: another name.

    >>> block = rematerialized(nn.Dense, "block")(3, name="out")
    >>> list(block.init(jax.random.key(0), jax.numpy.ones((1, 2)))["params"])
    ['bias', 'kernel']
    """
    check_remat(remat)
    if not remat:
        return block
    policy = getattr(jax.checkpoint_policies, remat) if remat in POLICIES else None
    return nn.remat(block, static_argnums=static, policy=policy)
