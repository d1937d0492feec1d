"""Taps: any intermediate value of a network by the path of its module, without editing the module.

A value has a name:

| name | value |
| --- | --- |
| `stage1/block0/out` | what the `__call__` of module `stage1/block0` returned |
| `stage1/block0/in` | its first positional argument |
| `embed/attend()/out` | what its method `attend` returned; `embed/attend()/in` |
| `stage1/block0/preact` | what the module sowed as `preact` (Linen: into 'intermediates') |
| `block/out/0`, `block/out/key` | the leaves of a tuple or dict |
| `shared/out`, `shared/out#1` | the first and the second call of a module |
| `logits`, `features` | the entries of the network's own output, where that is a dict |
| `out`, `in` | the network's own output, where that is an array, and its first input |

A pattern is matched against whole names, `fnmatch` in each component: `*` and `?` stay inside a
component, `**` crosses; `stage*/out`, `**/attention/in`, `**`.

Values are carried out of Linen modules in the collection 'intermediates', so that jit, grad, vmap,
`nn.remat`, `nn.jit`, `nn.vmap` and `nn.scan` are no obstacle. A module inside `nn.scan` or
`nn.vmap` is reached if its `variable_axes` names 'intermediates' (the error says so where it does
not) and its values are stacked along that axis. `nn.cond`, `nn.switch` and `nn.while_loop` cannot
return the values of a branch: a pattern that could match inside them fails in JAX. NNX modules are
reached through `nnx.remat` and `nnx.scan` as they are.

An edit replaces a value where it arises, and taps see the result. Sown values cannot be edited; a
network's output is edited after it was computed. Where values cannot leave (a scan as above), an
edit acts on every call of the module.
"""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

PyTree = Any
Edits = Mapping[str, Callable[[jax.Array], jax.Array]]
COLLECTION = "intermediates"


@functools.cache
def compile_pattern(pattern: str) -> re.Pattern:
    """The regular expression of a tap pattern.

    >>> bool(compile_pattern("stage*/out").fullmatch("stage1/out"))
    True
    >>> bool(compile_pattern("stage*/out").fullmatch("stage1/block0/out"))
    False
    >>> bool(compile_pattern("**/out").fullmatch("stage1/block0/out"))
    True
    """
    tokens = re.findall(r"\*\*/|\*\*|\*|\?|\[[^]/]+\]|.", pattern, flags=re.DOTALL)
    wild = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}

    def translate(token: str) -> str:
        if len(token) > 1 and token.startswith("["):
            negated = token.startswith("[!")
            return "[" + ("^/" if negated else "") + re.escape(token[1 + negated : -1]) + "]"
        return wild.get(token) or re.escape(token)

    return re.compile("".join(map(translate, tokens)).replace("\\-", "-"))


class Probe:
    """What one application of a network is asked for, what it met, and what it has to show.

    Adapters pass every value they can name through `visit`; `finish` refuses patterns that matched
    nothing.
    """

    def __init__(self, taps: Sequence[str], edits: Edits | None):
        if isinstance(taps, str):
            raise TypeError(f"taps must be a sequence of patterns, got the string {taps!r}")
        self._taps = {pattern: compile_pattern(pattern) for pattern in taps}
        self._edits = {
            pattern: (compile_pattern(pattern), function)
            for pattern, function in (edits or {}).items()
        }
        self._unmatched = {*self._taps, *self._edits}
        self._names: set[str] = set()
        self._closed: set[str] = set()  # of modules whose values cannot leave a lifted transform
        self.taps: dict[str, jax.Array] = {}

    def __bool__(self) -> bool:
        return bool(self._taps or self._edits)

    def concerns(self, path: Sequence[str]) -> bool:
        """Whether any pattern could match a name below the module `path`."""
        return any(
            "**" in pattern
            or compile_pattern("/".join(pattern.split("/")[: len(path)])).fullmatch("/".join(path))
            for pattern in [*self._taps, *self._edits]
        )

    def visit(self, label: str, tree: PyTree, leaves_are_entries: bool = False):
        """Edits `tree` where an edit matches, and marks what taps matched.

        Args:
          label: name of the whole, such as `stage1/out`.
          tree: an array or a pytree of arrays; other leaves are left alone.
          leaves_are_entries: leaves are named by their key alone (a network's own dict output).

        Returns:
          `(tree, kept, names)`: the edited tree; the same tree with None for leaves that no tap
          matched; the names of the leaves, in the order of the leaves of `kept`.
        """
        leaves, structure = jax.tree_util.tree_flatten_with_path(tree)
        edited, kept, names = [], [], []
        for path, leaf in leaves:
            key = jax.tree_util.keystr(path, simple=True, separator="/")
            name = key if leaves_are_entries else "/".join(filter(None, (label, key)))
            if not isinstance(leaf, jax.Array | np.ndarray):
                edited.append(leaf)
                kept.append(None)
                continue
            self._names.add(name)
            for pattern, (expression, function) in self._edits.items():
                if expression.fullmatch(name):
                    leaf = _apply_edit(pattern, function, name, leaf)
                    self._unmatched.discard(pattern)
            matched = [p for p, expression in self._taps.items() if expression.fullmatch(name)]
            edited.append(leaf)
            kept.append(leaf if matched else None)
            names.extend([name] if matched else [])
        return structure.unflatten(edited), structure.unflatten(kept), names

    def record(self, label: str, tree: PyTree, leaves_are_entries: bool = False) -> PyTree:
        """`visit` for a value that needs no carrying: taps take it at once."""
        edited, kept, names = self.visit(label, tree, leaves_are_entries)
        self._store(names, kept)
        return edited

    def note(self, label: str, tree: PyTree) -> None:
        """Remembers the names of `tree`, for the error of a pattern that matches nothing."""
        taps, edits, self._taps, self._edits = self._taps, self._edits, {}, {}
        self.visit(label, tree)
        self._taps, self._edits = taps, edits

    def close(self, names: Iterable[str]) -> None:
        """Remembers that values of these names exist but cannot be carried out."""
        self._closed.update(names)

    def collect(self, carried: Mapping, path: tuple[str, ...] = ()) -> None:
        """Takes the values of a collection 'intermediates': carried ones and sown ones."""
        for key, value in carried.items():
            if key.startswith("#"):  # written by an interceptor: one entry a call
                for call, kept in enumerate(value):
                    self._record_past(call_label((*path, key[1:]), call), kept)
            elif isinstance(value, Mapping):
                self.collect(value, (*path, key))
            elif isinstance(value, tuple):  # sown: one entry a call
                for call, sown in enumerate(value):
                    self._record_past(call_label((*path, key), call), sown)
            else:
                self._record_past("/".join((*path, key)), value)

    def finish(self) -> dict[str, jax.Array]:
        """The tapped values by name; ValueError where a pattern matched nothing."""
        for pattern in [*self._taps, *self._edits]:
            if pattern in self._unmatched:
                raise ValueError(self._nothing_matches(pattern))
        return dict(sorted(self.taps.items()))

    def _record_past(self, label: str, value: PyTree) -> None:
        edits, self._edits = self._edits, {}  # it has been used already, or edited already
        self.record(label, value)
        self._edits = edits

    def _store(self, names: Iterable[str], kept: PyTree) -> None:
        for name, leaf in zip(names, jax.tree.leaves(kept), strict=True):
            self.taps[name] = leaf
            for pattern, expression in self._taps.items():
                if expression.fullmatch(name):
                    self._unmatched.discard(pattern)

    def _nothing_matches(self, pattern: str) -> str:
        closed = [name for name in sorted(self._closed) if compile_pattern(pattern).fullmatch(name)]
        if closed:
            return (
                f"taps: {pattern!r} matches {closed[0]!r}, which cannot leave its lifted "
                "transform: give that nn.scan or nn.vmap variable_axes={'intermediates': 0, ...}"
            )
        kind = "taps" if pattern in self._taps else "edits"
        available = sorted(self._names - self._closed)
        near = difflib.get_close_matches(pattern, available, n=6, cutoff=0.0)
        return (
            f"{kind}: {pattern!r} matches nothing; nearest of {len(available)} available: "
            + ", ".join(near)
        )


def call_label(path: Sequence[str], call: int) -> str:
    """The name of a value of the `call`-th call: `shared/out`, then `shared/out#1`.

    >>> call_label(("shared", "out"), 0), call_label(("shared", "out"), 2)
    ('shared/out', 'shared/out#2')
    """
    return "/".join(path) + (f"#{call}" if call else "")


def linen_interceptor(probe: Probe, method: str):
    """An interceptor for `flax.linen.intercept_methods` that shows every call to `probe`.

    Args:
      probe: what is asked for.
      method: the network's own method; its input and output are the adapter's to show.
    """
    active: list[tuple] = []

    def intercept(next_function, args, kwargs, context):
        module, name = context.module, context.method_name
        if module.scope is None or name == "setup" or name.startswith("<"):  # '<lambda>': a lift
            return next_function(*args, **kwargs)
        call = (module.path, name)
        own = module.path == () and name == method
        # The same call again, before it returned, is super().__call__.
        if own or call in active:
            return next_function(*args, **kwargs)
        prefix = "" if name == "__call__" else f"{name}()/"
        concerned = probe.concerns(module.path)

        def show(kind: str, value: PyTree) -> PyTree:
            key = prefix + kind
            if not concerned:
                probe.note("/".join((*module.path, key)), value)
                return value
            index = len(module.get_variable(COLLECTION, f"#{key}", ()))
            label = call_label((*module.path, key), index)
            edited, kept, names = probe.visit(label, value)
            if not module.sow(COLLECTION, f"#{key}", kept):
                probe.close(names)
            return edited

        active.append(call)
        try:
            if args:
                args = (show("in", args[0]), *args[1:])
            return show("out", next_function(*args, **kwargs))
        finally:
            active.pop()

    return intercept


def _apply_edit(pattern: str, function: Callable, name: str, value: jax.Array) -> jax.Array:
    edited = function(value)
    if np.shape(edited) != value.shape or edited.dtype != value.dtype:
        raise ValueError(
            f"edits[{pattern!r}] must keep shape and dtype of {name!r}: "
            f"{value.shape} {value.dtype} became {np.shape(edited)} {edited.dtype}"
        )
    return edited
