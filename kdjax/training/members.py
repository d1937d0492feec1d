"""The axis of members of a stage: who has what in common, and `vmap` over the rest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from kdjax.training.stage import PyTree, Stage

GROUP = "group"  # an axis of one entry a group, read by all members of the group
Axis = int | str | None  # 0: one entry a member; GROUP; None: one entry for all


def axis(stage: Stage, name: str) -> Axis:
    """The leading axis of a frozen role, of a stream, or of `"validation"`."""
    if not stage.seeds or name in stage.shared:
        return None
    return GROUP if name in stage.grouped else 0


def table_axis(stage: Stage, name: str, stream: Any) -> Axis:
    """The leading axis of a stream's table: members that read other rows may read one table."""
    own = axis(stage, name)
    return None if getattr(stream, "table_axis", 0) is None else own


def population_axes(stage: Stage) -> tuple[dict, dict, dict]:
    """The axes of frozen variables, tables and items of a stage with members."""
    roles = [role for role in stage.variables if role not in stage.program.live]
    frozen = {role: axis(stage, role) for role in roles}
    streams = {name: axis(stage, name) for name in stage.data}
    tables = {name: table_axis(stage, name, stage.data[name]) for name in streams}
    return frozen, tables, streams


def _is_none(x: Any) -> bool:
    return x is None


def _map(function: Callable, axes: PyTree, *trees: PyTree) -> PyTree:
    return jax.tree.map(function, axes, *trees, is_leaf=_is_none)


def over_members(function: Callable, in_axes: PyTree, out_axes: PyTree, groups: int) -> Callable:
    """`vmap` over members, those of a group next to each other.

    What has one entry a group (`GROUP`) is batched over groups alone, so that whatever is computed
    from it and from what all share is computed once a group: a teacher's forward among them.
    """
    if groups == 1:
        return jax.vmap(function, in_axes, out_axes)
    inner = _map(lambda a: None if a == GROUP else a, in_axes)
    outer = _map(lambda a: 0 if a == GROUP else a, in_axes)
    mapped = jax.vmap(jax.vmap(function, inner, out_axes), outer, out_axes)

    def cut(a: Axis, tree: PyTree) -> PyTree:
        if a != 0:
            return tree
        return jax.tree.map(lambda x: x.reshape(groups, -1, *x.shape[1:]), tree)

    def join(a: Axis, tree: PyTree) -> PyTree:
        if a is None:
            return tree
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree)

    def run(*arguments):
        return _map(join, out_axes, mapped(*_map(cut, in_axes, arguments)))

    return run
