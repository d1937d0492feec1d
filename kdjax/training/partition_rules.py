"""Ready sets of partition rules: `replicated`, `fsdp`, `tensor_parallel`, and both together.

A rule set is a function `(path, shape, mesh) -> PartitionSpec`, of shapes alone: nothing is
computed, and the mesh may be abstract. It never cuts unevenly; what does not divide stays whole.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence

from jax.sharding import AbstractMesh, Mesh
from jax.sharding import PartitionSpec as P

RuleSet = Callable[[str, tuple[int, ...], Mesh | AbstractMesh], P]

# Of an array's elements: cutting a smaller one saves less memory than its collectives cost time.
SMALLEST = 2**16

# Column-parallel kernels are cut where their output is, the row-parallel ones that read it where
# their input is (Shoeybi et al. 2019, arXiv:1909.08053): one sum over `model` a pair, and no weight
# is ever gathered. A rule is for arrays of as many axes as it has.
PAIRS: Sequence[tuple[str, P]] = (
    # Decoder: heads side by side in one axis. ViT: heads are an axis of their own.
    (r"/(query|key|value|gate|up|mlp_in)/kernel$", P(None, "model")),
    (r"/(query|key|value|gate|up|mlp_in)/bias$", P("model")),
    (r"/(query|key|value)/kernel$", P(None, "model", None)),
    (r"/(query|key|value)/bias$", P("model", None)),
    (r"/(out|down|mlp_out)/kernel$", P("model", None)),
    (r"/out/kernel$", P("model", None, None)),
    # Embeddings and heads: over the vocabulary, or the classes.
    (r"/(embedding|head)/embedding$", P("model", None)),
    (r"/head/kernel$", P(None, "model")),
    (r"/head/bias$", P("model")),
    # ResNet and WRN: the channels inside a block. The normalisation between is small, and whole.
    (r"/block\d+/conv1/kernel$", P(None, None, None, "model")),
    (r"/block\d+/conv2/kernel$", P(None, None, "model", None)),
    # MLP: its layers are pairs in order.
    (r"/dense\d*[02468]/kernel$", P(None, "model")),
    (r"/dense\d*[02468]/bias$", P("model")),
    (r"/dense\d*[13579]/kernel$", P("model", None)),
)


def replicated(path: str, shape: tuple[int, ...], mesh: Mesh | AbstractMesh) -> P:
    """Whole on every device."""
    return P()


def fsdp(
    path: str, shape: tuple[int, ...], mesh: Mesh | AbstractMesh, *, smallest: int = SMALLEST
) -> P:
    """Cut over `data` along the largest axis that divides, the last of equals.

    Each device keeps its part, and a layer is gathered where it is used (Rajbhandari et al. 2020,
    arXiv:1910.02054, stage 3; Zhao et al. 2023, arXiv:2304.11277).

    Args:
      path: of a variable; not looked at.
      shape: of the variable, without an axis of members.
      mesh: has the axis `data`.
      smallest: an array of fewer elements stays whole.

    >>> mesh = AbstractMesh((4, 2), ("data", "model"))
    >>> tuple(fsdp("params/head/kernel", (1024, 100), mesh))
    ('data', None)
    >>> tuple(fsdp("params/head/bias", (100,), mesh))  # small
    ()
    """
    return _over_data(P(*[None] * len(shape)), shape, mesh, smallest)


def tensor_parallel(path: str, shape: tuple[int, ...], mesh: Mesh | AbstractMesh) -> P:
    """Cut over `model` by the names that the networks of `kdjax.networks` give their layers.

    Attention by heads, an MLP by its hidden units, a block of a ResNet or WRN by its inner
    channels, embeddings and heads by vocabulary or classes; everything else stays whole.

    >>> mesh = AbstractMesh((4, 2), ("data", "model"))
    >>> tuple(tensor_parallel("params/block0/gate/kernel", (64, 256), mesh))
    (None, 'model')
    >>> tuple(tensor_parallel("params/block0/down/kernel", (256, 64), mesh))
    ('model', None)
    """
    parts = mesh.shape["model"]
    for regex, rule in PAIRS:
        if len(rule) == len(shape) and re.search(regex, path):
            divides = shape[rule.index("model")] % parts == 0
            return rule if divides and parts > 1 else P()
    return P()


def fsdp_and_tensor_parallel(
    path: str, shape: tuple[int, ...], mesh: Mesh | AbstractMesh, *, smallest: int = SMALLEST
) -> P:
    """`tensor_parallel`, and the largest of the axes that are left over `data`, as `fsdp` does.

    >>> mesh = AbstractMesh((4, 2), ("data", "model"))
    >>> tuple(fsdp_and_tensor_parallel("params/block0/gate/kernel", (256, 1024), mesh))
    ('data', 'model')
    """
    rule = tensor_parallel(path, shape, mesh)
    rule = P(*rule, *[None] * (len(shape) - len(rule)))
    return _over_data(rule, shape, mesh, smallest)


def _over_data(rule: P, shape: tuple[int, ...], mesh: Mesh | AbstractMesh, smallest: int) -> P:
    """`rule`, as long as the shape, with one more axis cut."""
    parts, axes = mesh.shape["data"], list(rule)
    free = [i for i, size in enumerate(shape) if axes[i] is None and size and size % parts == 0]
    if parts > 1 and free and math.prod(shape) >= smallest:
        axes[max(free, key=lambda i: (shape[i], i))] = "data"
    return P(*axes) if any(axes) else P()


RULE_SETS: Mapping[str, RuleSet] = {
    "replicated": replicated,
    "fsdp": fsdp,
    "tensor_parallel": tensor_parallel,
    "fsdp+tensor_parallel": fsdp_and_tensor_parallel,
}
