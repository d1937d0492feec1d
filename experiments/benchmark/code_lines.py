"""How many lines of code a method is made of: its own, and those that it shares with other methods.

Nothing is run. The sources are parsed, and from a method's module names are followed to the
definitions in `kdjax` that they stand for, at the top level of a module: functions, classes,
constants. What a definition names, it reaches; a class is reached whole, and an annotation is a
name too, since what is called on an argument is a method of its class. The engine that runs the
recipe, `kdjax.training.run`, is reached by every method. Networks that are chosen by a name in a
string are not, so that nothing is followed from their registry.

    own       the method's module, and every definition elsewhere that no other method reaches
    shared    every other definition that it reaches: engine, tasks, data, losses, other methods

A line of code holds something else than a docstring or a comment. The imports of a method's own
module count; those of other modules do not.
"""

from __future__ import annotations

import ast
import collections
import dis
import functools
import io
import pathlib
import tokenize
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import kdjax
from kdjax import methods

ROOT = pathlib.Path(kdjax.__file__).parent
ENGINE = ("kdjax.training", "run")
REGISTRY = "kdjax.networks.registry"
BLANK = (
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
)
Line = tuple[str, int]  # a module and a number


class Module(NamedTuple):
    """What the top level of a module binds, and which of its lines are code."""

    definitions: Mapping[str, ast.stmt]
    imports: Mapping[str, tuple[str, str]]  # name -> (module, its attribute, or "" for itself)
    lines: frozenset[int]


def code_lines(source: str) -> frozenset[int]:
    """The numbers of the lines of a source that are code.

    >>> sorted(code_lines("'A module.'\\n\\nx = 1  # why\\n# nothing\\ny = [\\n    2\\n]\\n"))
    [3, 5, 6, 7]
    """
    found = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in BLANK:
            found.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        value = node.value if isinstance(node, ast.Expr) else None
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            found.difference_update(range(node.lineno, node.end_lineno + 1))
    return frozenset(found)


def path_of(module: str) -> pathlib.Path | None:
    """The file of a module of `kdjax`; None where there is none."""
    name, *parts = module.split(".")
    if name != "kdjax":
        return None
    folder = ROOT.joinpath(*parts)
    files = folder / "__init__.py", folder.with_suffix(".py")
    return next((file for file in files if file.is_file()), None)


def imports_of(nodes: Iterable[ast.AST]) -> dict[str, tuple[str, str]]:
    """What the import statements among these nodes bind."""
    found = {}
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and not node.level:
            for alias in node.names:
                found[alias.asname or alias.name] = node.module, alias.name
        elif isinstance(node, ast.Import):
            for alias in node.names:
                whole = alias.name if alias.asname else alias.name.partition(".")[0]
                found[alias.asname or whole] = whole, ""
    return found


def statements(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements of a module's top level, those under an `if` or a `try` among them."""
    for node in body:
        if isinstance(node, ast.If | ast.Try):
            yield from statements([*node.body, *node.orelse])
        else:
            yield node


@functools.cache
def parsed(module: str) -> Module:
    """A module of `kdjax`.

    Raises:
      ValueError: there is no such module.
    """
    path = path_of(module)
    if path is None:
        raise ValueError(f"module must be one of kdjax, got {module!r}")
    source = path.read_text()
    top = list(statements(ast.parse(source).body))
    definitions = {}
    for node in top:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            definitions[node.name] = node
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for name in (x.id for t in targets for x in ast.walk(t) if isinstance(x, ast.Name)):
                definitions[name] = node
    return Module(definitions, imports_of(top), code_lines(source))


def loaded(code: types.CodeType) -> set[str]:
    """The global names that a code object reads, and those within it."""
    found = set()
    for instruction in dis.get_instructions(code):
        if instruction.opname == "LOAD_NAME" or "GLOBAL" in instruction.opname:
            found.add(instruction.argval)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            found |= loaded(constant)
    return found


def chain_of(node: ast.expr) -> tuple[str, ...]:
    """The names of `a.b.c`; () for what is no such chain."""
    if isinstance(node, ast.Name):
        return (node.id,)
    if isinstance(node, ast.Attribute) and (before := chain_of(node.value)):
        return (*before, node.attr)
    return ()


def chains(node: ast.AST) -> Iterator[tuple[str, ...]]:
    """Every longest chain of names in a node."""
    if isinstance(node, ast.expr) and (found := chain_of(node)):
        yield found
        return
    for child in ast.iter_child_nodes(node):
        yield from chains(child)


def annotations(node: ast.AST) -> Iterator[ast.expr]:
    """The annotations within a node."""
    for part in ast.walk(node):
        if isinstance(part, ast.arg | ast.AnnAssign) and part.annotation is not None:
            yield part.annotation
        elif isinstance(part, ast.FunctionDef) and part.returns is not None:
            yield part.returns


def target(module: str, chain: tuple[str, ...], local: Mapping[str, tuple[str, str]]):
    """`(module, name)` of the definition in `kdjax` that a chain of names stands for, or None."""
    name, *rest = chain
    known = parsed(module)
    if name in known.definitions and name not in local:
        return module, name
    place = {**known.imports, **local}.get(name)
    if place is None and path_of(f"{module}.{name}") is not None:
        place = f"{module}.{name}", ""
    if place is None or path_of(place[0]) is None:
        return None
    where, attribute = place
    rest = [attribute, *rest] if attribute else rest
    if not rest or where == module:
        return None
    return target(where, tuple(rest), {})


@functools.cache
def reached_by(module: str, name: str) -> frozenset[tuple[str, str]]:
    """The definitions that a definition names."""
    node = parsed(module).definitions[name]
    local = imports_of(ast.walk(node))
    # Compiled under this module's `from __future__ import annotations`: these are no code here.
    code = compile(ast.Module([node], []), module, "exec")
    known = loaded(code) | set(local)
    found = [chain for chain in chains(node) if chain[0] in known]
    found += [chain for annotation in annotations(node) for chain in chains(annotation)]
    targets = (target(module, chain, local) for chain in found)
    return frozenset(x for x in targets if x is not None)


def reached(roots: Iterable[tuple[str, str]]) -> set[tuple[str, str]]:
    """All definitions that can be reached from some."""
    found: set[tuple[str, str]] = set()
    waiting = list(roots)
    while waiting:
        definition = waiting.pop()
        if definition not in found:
            found.add(definition)
            waiting += reached_by(*definition) if definition[0] != REGISTRY else ()
    return found


def lines_of(definitions: Iterable[tuple[str, str]]) -> set[Line]:
    """The lines of code of definitions."""
    found = set()
    for module, name in definitions:
        node = parsed(module).definitions[name]
        first = min([node.lineno, *(x.lineno for x in getattr(node, "decorator_list", ()))])
        rows = parsed(module).lines.intersection(range(first, node.end_lineno + 1))
        found |= {(module, row) for row in rows}
    return found


def count(names: Iterable[str] = methods.NAMES) -> dict[str, dict]:
    """The lines of code of methods.

    Args:
      names: of the methods that are looked at, which is who may share.

    Returns:
      Method -> `own`, `shared`, and of both what lies where: `own_by` and `shared_by`, part of
      `kdjax` (`losses`, `training`, ...) -> lines.

    >>> found = count()["plackett_luce"]
    >>> 0 < found["own"] < found["shared"]
    True
    """
    engine, out = target(ENGINE[0], ENGINE[1:], {}), {}
    modules = {name: f"kdjax.methods.{name}" for name in names}
    all_of = {
        name: lines_of(reached([engine, *((m, x) for x in parsed(m).definitions)]))
        for name, m in modules.items()
    }
    users = collections.Counter(line for lines in all_of.values() for line in lines)
    for name, module in modules.items():
        whole = {(module, row) for row in parsed(module).lines}
        others = all_of[name] - whole
        alone = {line for line in others if users[line] == 1 and line[0] not in modules.values()}
        parts = {"own": whole | alone, "shared": others - alone}
        out[name] = {part: len(lines) for part, lines in parts.items()}
        for part, lines in parts.items():
            by = collections.Counter(module.split(".")[1] for module, _ in lines)
            out[name][f"{part}_by"] = dict(sorted(by.items()))
    return out
