"""LoRA: a frozen base network, and low-rank changes of its kernels as the only parameters.

Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models" (arXiv:2106.09685).

    y = W x + (alpha / r) B A dropout(x),    A at random, B zero at the start

The base is a role of its own, frozen like a teacher; what is trained, checkpointed and given
optimizer slots is A and B alone. While training the change is made beside each layer
(`LoRA.network`), so that neither a second copy of the base nor a gradient of its size is held; for
sampling, evaluation and export it is added to the kernels once (`LoRA.merge`).
"""

from __future__ import annotations

import dataclasses
import math
import re
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util

from kdjax.networks.network import Applied, Network

PyTree = Any
BASE = "base"


@dataclasses.dataclass(frozen=True)
class LoRA:
    """Which kernels change, and how.

    A kernel is read as a matrix [in, out], in whichever shape it is kept: its leading `inputs` axes
    are those that the layer contracts, as in Flax. A and B of `block0/query/kernel` are
    `block0/query/kernel/a` [in, r] and `block0/query/kernel/b` [r, out], in float32.

    Attributes:
      pattern: regular expression, searched for in the paths of the base's parameters.
      rank: r, at least 1.
      alpha: > 0; the change is scaled by alpha / r.
      dropout: in [0, 1), of the change's input while training.
      inputs: (regular expression, number of axes) of kernels with more than one contracted axis:
        `(("attention/out/kernel", 2),)` for Flax's multi-head attention. The first match counts.

    Raises:
      ValueError: a field out of its range.

    >>> LoRA(r"kernel$", rank=4, alpha=8.0).scale
    2.0
    """

    pattern: str
    rank: int
    alpha: float
    dropout: float = 0.0
    inputs: tuple[tuple[str, int], ...] = ()

    def __post_init__(self):
        if self.rank < 1:
            raise ValueError(f"rank must be at least 1, got {self.rank}")
        if not self.alpha > 0:
            raise ValueError(f"alpha must be positive, got {self.alpha}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")
        for pattern, axes in self.inputs:
            if axes < 1:
                raise ValueError(f"inputs of {pattern!r} must be at least 1, got {axes}")

    @property
    def scale(self) -> float:
        """alpha / r."""
        return self.alpha / self.rank

    def init(self, rng: jax.Array, base: PyTree) -> dict[str, PyTree]:
        """The first variables: A uniform within +- in^-0.5, B zero, so that nothing is changed yet.

        Args:
          rng: a key; what a kernel gets depends on it and the kernel's path alone.
          base: variables of the base, or their shapes.

        Raises:
          ValueError: the pattern matches no parameter of the base, or one that is no kernel.
        """
        params = {}
        for path, kernel in self._kernels(base).items():
            inside, outside = self._sizes(path, kernel.shape)
            key = jax.random.fold_in(rng, zlib.crc32(path.encode()))
            bound = inside**-0.5
            params[path] = {
                "a": jax.random.uniform(key, (inside, self.rank), minval=-bound, maxval=bound),
                "b": jnp.zeros((self.rank, outside)),
            }
        return {"params": traverse_util.unflatten_dict(params, sep="/")}

    def merge(self, base: PyTree, variables: PyTree) -> dict[str, PyTree]:
        """Variables of the base network that do what base and change do together.

        Args:
          base: variables of the base; differentiated.
          variables: A and B; differentiated.

        Returns:
          The base with `W + (alpha / r) A B`, computed in float32, in the kernels' dtypes.

        >>> lora, base = LoRA("kernel", rank=1, alpha=2.0), {"params": {"kernel": jnp.ones((2, 3))}}
        >>> change = {"params": {"kernel": {"a": jnp.ones((2, 1)), "b": jnp.full((1, 3), 0.5)}}}
        >>> lora.merge(base, change)["params"]["kernel"].tolist()
        [[2.0, 2.0, 2.0], [2.0, 2.0, 2.0]]
        """
        params = traverse_util.flatten_dict(base["params"], sep="/")
        changes = traverse_util.flatten_dict(variables["params"], sep="/")
        for path, kernel in self._kernels(base).items():
            change = self.scale * (changes[f"{path}/a"] @ changes[f"{path}/b"])
            wide = kernel.astype(change.dtype) + change.reshape(kernel.shape)
            params[path] = wide.astype(kernel.dtype)
        return {**base, "params": traverse_util.unflatten_dict(params, sep="/")}

    def network(self, network: Network) -> Network:
        """The network with its kernels changed, whose own parameters are A and B.

        `init` gives A and B. `apply` takes `attach(base, variables)` and returns, as its variables,
        A and B alone. Kernels are those of layers that multiply their first argument with them, as
        `flax.linen.Dense`, `DenseGeneral` and `flax.nnx.Linear` do.

        Raises (from `apply`):
          ValueError: a kernel's layer has an input of another size; the base has mutable
            collections, which training would change; dropout without `rng`.
        """

        def init(rng, *inputs):
            return self.init(rng, jax.eval_shape(network.init, rng, *inputs))

        def apply(variables, *inputs, train=False, rng=None, taps=(), edits=None):
            own = {name: tree for name, tree in variables.items() if name != BASE}
            base = variables[BASE]
            mutable = [name for name in base if name != "params"]
            if train and mutable:
                raise ValueError(f"a frozen base must not change, but it has {mutable[0]!r}")
            if train and self.dropout and rng is None:
                raise ValueError(f"dropout={self.dropout} needs a random key, got rng=None")
            changes = self._edits(base, own, rng if train else None)
            if twice := changes.keys() & (edits or {}).keys():
                raise ValueError(f"edits: {min(twice)!r} is where LoRA acts")
            out = network.apply(
                base, *inputs, train=train, rng=rng, taps=taps, edits={**changes, **(edits or {})}
            )
            return Applied(out.output, own, out.taps)

        return Network(init, apply)

    def _edits(self, base: PyTree, own: PyTree, rng: jax.Array | None) -> dict[str, Any]:
        """What remembers the input of each layer that changes, and what adds to its output."""
        params = traverse_util.flatten_dict(own["params"], sep="/")
        edits: dict[str, Any] = {}
        for path, kernel in self._kernels(base).items():
            axes, held = self._axes(path), []
            a, b = params[f"{path}/a"], params[f"{path}/b"]
            key = None
            if rng is not None and self.dropout:
                key = jax.random.fold_in(rng, zlib.crc32(path.encode()))

            def remember(x, held=held):
                held[:] = [x]
                return x

            def add(y, path=path, kernel=kernel, axes=axes, held=held, a=a, b=b, key=key):
                x = held.pop()
                if x.shape[-axes:] != kernel.shape[:axes]:
                    raise ValueError(
                        f"the layer of {path} must contract the kernel's first {axes} of "
                        f"{list(kernel.shape)}, its input is {list(x.shape)}: see `inputs`"
                    )
                x = x.reshape(*x.shape[:-axes], -1)
                if key is not None:
                    kept = jax.random.bernoulli(key, 1 - self.dropout, x.shape)
                    x = jnp.where(kept, x / (1 - self.dropout), 0)
                change = self.scale * (x @ a.astype(x.dtype) @ b.astype(x.dtype))
                return y + change.reshape(y.shape).astype(y.dtype)

            layer = path.rpartition("/")[0]
            where = f"{layer}/" if layer else ""
            # A layer that is used again has the names in#1, out#1, and so on.
            edits |= {f"{where}in*": remember, f"{where}out*": add}
        return edits

    def _kernels(self, base: PyTree) -> dict[str, Any]:
        params = traverse_util.flatten_dict(base["params"], sep="/")
        found = {path: x for path, x in params.items() if re.search(self.pattern, path)}
        if not found:
            raise ValueError(
                f"pattern={self.pattern!r} matches no parameter of the base; it has "
                f"{sorted(params)}"
            )
        for path, kernel in found.items():
            if len(kernel.shape) <= self._axes(path):
                raise ValueError(
                    f"pattern={self.pattern!r} must match kernels [in, out], but {path} has the "
                    f"shape {list(kernel.shape)}"
                )
        return found

    def _axes(self, path: str) -> int:
        return next((axes for pattern, axes in self.inputs if re.search(pattern, path)), 1)

    def _sizes(self, path: str, shape: tuple[int, ...]) -> tuple[int, int]:
        axes = self._axes(path)
        return math.prod(shape[:axes]), math.prod(shape[axes:])


def attach(base: PyTree, variables: Mapping[str, PyTree]) -> dict[str, PyTree]:
    """What the network of a `LoRA` is applied to: A and B, and the frozen base beside them."""
    return {**variables, BASE: jax.lax.stop_gradient(base)}
