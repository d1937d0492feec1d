"""Weights of a small network cut out of those of a large one of the same make."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp


def inherit_weights(
    teacher_params: Any,
    student_shapes: Any,
    *,
    layer: str = r"block(\d+)",
    fused: Mapping[str, int] | None = None,
    head_dim: int | None = None,
) -> Any:
    """A student's first weights: every so many layers of the teacher, the leading part of each.

        layer i of L_s  <-  layer i * floor(L_t / L_s) of L_t
        array           <-  array[:n_1, :n_2, ...],  with the student's sizes n

    TinyCLIP's manual inheritance. An axis of attention heads, [..., heads, head_dim, ...], loses
    its last heads, whole ones as long as both networks have one head_dim; so does an axis in which
    a head's features lie together. An axis that holds several matrices one after another, as a
    fused query-key-value projection, is cut within each of them.

    Args:
      teacher_params: tree of arrays.
      student_shapes: tree of the same names, of arrays or `jax.ShapeDtypeStruct` (as from
        `jax.eval_shape`), with fewer layers and smaller axes.
      layer: regular expression for the number of a layer, in its first group, searched for in the
        path of an array ("block3/attention/query/kernel"). Layers are counted for each
        path before that number by itself, so that two towers may differ in depth.
      fused: {regular expression searched for in the path: how many matrices its last axis holds};
        {r"qkv/(kernel|bias)": 3}.
      head_dim: features of a head; if given, the parts of fused axes must be multiples of it.

    Returns:
      A tree as student_shapes, of its shapes and dtypes.

    Raises:
      ValueError: an array the teacher has no counterpart for, or a smaller one; fewer layers in the
        teacher; an axis that does not hold its matrices or whole heads.

    Source: Wu et al. 2023 (TinyCLIP), arXiv:2309.12314.

    >>> import jax.numpy as jnp
    >>> teacher = {f"block{i}": {"bias": jnp.arange(3) + 10.0 * i} for i in range(4)}
    >>> student = {f"block{i}": {"bias": jnp.zeros(2)} for i in range(2)}
    >>> jax.tree.map(lambda x: x.tolist(), inherit_weights(teacher, student))
    {'block0': {'bias': [0.0, 1.0]}, 'block1': {'bias': [20.0, 21.0]}}
    """
    sources = _by_path(teacher_params)
    wanted = _by_path(student_shapes)
    teacher_depths, student_depths = _depths(sources, layer), _depths(wanted, layer)
    inherited = []
    for path, shape in wanted.items():
        source = path
        if match := re.search(layer, path):
            tower = path[: match.start(1)]
            deep, shallow = teacher_depths.get(tower, 0), student_depths[tower]
            if deep < shallow:
                raise ValueError(
                    f"teacher_params must have at least the student's {shallow} layers "
                    f"{tower}*, got {deep}"
                )
            number = int(match[1]) * (deep // shallow)
            source = f"{tower}{number}{path[match.end(1) :]}"
        if source not in sources:
            raise ValueError(f"teacher_params must hold {source} for the student's {path}")
        parts = next((n for key, n in (fused or {}).items() if re.search(key, path)), 1)
        cut = _cut(path, sources[source], shape.shape, parts, head_dim)
        inherited.append(cut.astype(shape.dtype))
    return jax.tree.unflatten(jax.tree.structure(student_shapes), inherited)


def _cut(
    path: str, array: jax.Array, shape: tuple[int, ...], parts: int, head_dim: int | None
) -> jax.Array:
    """The leading part of an array, in each of the matrices that its last axis holds."""
    array = jnp.asarray(array)
    if array.ndim != len(shape) or any(a < s for a, s in zip(array.shape, shape)):
        raise ValueError(
            f"{path} must be no larger than the teacher's, of shape {array.shape}, got {shape}"
        )
    if parts == 1:
        return array[tuple(slice(size) for size in shape)]
    for whose, size in (("teacher", array.shape[-1]), ("student", shape[-1])):
        if size % parts or (head_dim and size // parts % head_dim):
            heads = f" of heads of {head_dim}" if head_dim else ""
            raise ValueError(
                f"the last axis of {path} must hold {parts} matrices{heads}, "
                f"got {size} features in the {whose}"
            )
    split = array.reshape(*array.shape[:-1], parts, -1)
    sizes = (*shape[:-1], parts, shape[-1] // parts)
    return split[tuple(slice(size) for size in sizes)].reshape(shape)


def _by_path(tree: Any) -> dict[str, Any]:
    """{"block0/attention/query/kernel": leaf}, in the tree's order."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _depths(leaves: Mapping[str, Any], layer: str) -> dict[str, int]:
    """{path before the number of a layer: how many layers there are}."""
    depths: dict[str, int] = {}
    for path in leaves:
        if match := re.search(layer, path):
            tower = path[: match.start(1)]
            depths[tower] = max(depths.get(tower, 0), int(match[1]) + 1)
    return depths
