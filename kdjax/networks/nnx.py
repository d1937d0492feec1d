"""Flax NNX modules as networks."""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx, traverse_util

from kdjax.networks.network import (
    Applied,
    Network,
    check_call_options,
    mode_arguments,
    probed,
)
from kdjax.networks.taps import Probe, call_label

PyTree = Any


def from_nnx(source: nnx.Module | Callable[..., nnx.Module], **call_options: Any) -> Network:
    """A Flax NNX module, or what constructs one, as a network.

    The module's graph is static. Its variables become plain dicts by type: parameters in `params`,
    batch statistics in `batch_stats`, others in a collection of their type's name; the state of
    random streams is no variable, `rng` seeds it anew in every call. Train and eval are set as
    `module.train()` and `module.eval()` do, and passed to `__call__` if it has such an argument.
    In evaluation `rng` may be left out, also where `nnx.split_rngs` draws keys that nobody uses; a
    module that uses them gets the same ones in every call.

    Args:
      source: a class or function that takes `rngs` and returns the module; or a module, whose own
        values `init` then returns, copied, whatever the key.
      **call_options: further keyword arguments of every call.

    Raises:
      TypeError: `source` is or constructs no NNX module, or its call has no such argument.
      ValueError (from `apply`): it trains, needs a random key and `rng` was not given.

    >>> network = from_nnx(lambda rngs: nnx.Linear(2, 3, rngs=rngs))
    >>> variables = network.init(jax.random.key(0))
    >>> network.apply(variables, jnp.ones((5, 2))).output.shape
    (5, 3)
    """
    given = source if isinstance(source, nnx.Module) else None
    if given is None:
        abstract = nnx.eval_shape(lambda: _construct(source, nnx.Rngs(0)))
    else:
        abstract = given
    graph, state = nnx.split(abstract)
    template = dict(nnx.to_flat_state(state))
    function = type(abstract).__call__
    check_call_options(function, call_options, type(abstract).__name__)
    mode = mode_arguments(function)

    def init(rng, *inputs):
        if given is not None:  # copies: training donates its buffers
            return jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), _collect(given))
        return _collect(_construct(source, nnx.Rngs(rng)))

    def apply(variables, *inputs, train=False, rng=None, taps=(), edits=None):
        probe = Probe(taps, edits)
        module = nnx.merge(graph, _fill(template, variables, rng))
        (module.train if train else module.eval)()
        if train and rng is None:
            _forbid_random_keys(module)
        options = {**call_options, **mode(train)}

        def call(*inputs):
            if not probe:
                return module(*inputs, **options), None
            with _tapping(module, probe):
                output, carried = nnx.capture(
                    lambda module: module(*inputs, **options), nnx.Intermediate
                )(module)
            probe.collect(_string_keys(nnx.to_pure_dict(carried)))
            return output, None

        output, _, tapped = probed(probe, inputs, call)
        if train:
            changed = _collect(module)
            variables = {**variables, **{k: v for k, v in changed.items() if k != "params"}}
        return Applied(output, variables, tapped)

    return Network(init, apply)


def takes_rngs(constructor: Callable) -> bool:
    """Whether a class or function has an argument `rngs`."""
    function = constructor.__init__ if isinstance(constructor, type) else constructor
    return "rngs" in inspect.signature(function).parameters


def _construct(constructor: Callable, rngs: nnx.Rngs) -> nnx.Module:
    module = constructor(rngs=rngs) if takes_rngs(constructor) else constructor(rngs)
    if not isinstance(module, nnx.Module):
        raise TypeError(f"from_nnx needs an nnx.Module or its constructor, got {type(module)}")
    return module


def _collection(variable: nnx.Variable) -> str:
    for kind, name in ((nnx.Param, "params"), (nnx.BatchStat, "batch_stats")):
        if isinstance(variable, kind):
            return name
    return type(variable).__name__.lower()


def _collect(module: nnx.Module) -> dict[str, PyTree]:
    """The module's variables by collection; paths are strings, also those of list entries."""
    collections: dict[str, dict] = {"params": {}}
    for path, variable in nnx.to_flat_state(nnx.state(module)):
        if not isinstance(variable, nnx.RngState):
            flat = collections.setdefault(_collection(variable), {})
            flat[tuple(map(str, path))] = variable.get_value()
    return {name: traverse_util.unflatten_dict(flat) for name, flat in collections.items()}


def _fill(template: dict, variables: PyTree, rng: jax.Array | None) -> nnx.State:
    """The state of `template` with the values of `variables`, random streams seeded by `rng`."""
    flat = {name: traverse_util.flatten_dict(tree) for name, tree in variables.items()}
    filled = []
    for number, (path, variable) in enumerate(template.items()):
        name, key = _collection(variable), tuple(map(str, path))
        shape = variable.get_value().shape
        if isinstance(variable, nnx.RngKey):
            seed = jax.random.key(0) if rng is None else jax.random.fold_in(rng, number)
            value = jax.random.split(seed, shape) if shape else seed
        elif isinstance(variable, nnx.RngState):
            value = jnp.zeros(shape, variable.get_value().dtype)
        elif key in flat.get(name, {}):
            value = flat[name][key]
        else:
            raise ValueError(f"variables[{name!r}] has no {'/'.join(key)!r}")
        filled.append((path, variable.replace(value)))
    return nnx.from_flat_state(filled)


class _MissingStream(nnx.RngStream):
    """A random stream of a network that trains and was given no key."""

    def __call__(self):
        raise ValueError(
            f"the module draws from the random stream {self.tag!r}, with train=True and rng=None: "
            "pass rng=jax.random.key(...)"
        )


def _forbid_random_keys(module: nnx.Module) -> None:
    for _, node in nnx.iter_graph(module):
        if type(node) is nnx.RngStream:
            object.__setattr__(node, "__class__", _MissingStream)


# The module is this call's own, so its objects may change class: calls of every submodule are then
# seen without touching the classes that other code uses. The class and the path are part of the
# graph and travel through NNX transforms.
_context = threading.local()


class _tapping:
    def __init__(self, module: nnx.Module, probe: Probe):
        self._module, self._probe = module, probe

    def __enter__(self):
        for path, node in nnx.iter_modules(self._module):
            if path:
                object.__setattr__(node, "__class__", _tapped(type(node)))
                node.tap_path = "/".join(map(str, path))
        self._outer = getattr(_context, "probe", None)
        _context.probe = self._probe

    def __exit__(self, *_):
        _context.probe = self._outer


@functools.cache
def _tapped(module_class: type) -> type:
    def call(self, *args, **kwargs):
        def show(kind: str, value: PyTree) -> PyTree:
            (seen,) = (v for v in self.__captures__ if type(v) is nnx.Intermediate)
            index = len(seen[f"#{kind}"]) if f"#{kind}" in seen else 0
            edited, kept, _ = _context.probe.visit(call_label((self.tap_path, kind), index), value)
            self.sow(nnx.Intermediate, f"#{kind}", kept)
            return edited

        if args:
            args = (show("in", args[0]), *args[1:])
        return show("out", module_class.__call__(self, *args, **kwargs))

    return type(module_class)(module_class.__name__, (module_class,), {"__call__": call})


def _string_keys(tree: PyTree) -> PyTree:
    if isinstance(tree, dict):
        return {str(key): _string_keys(value) for key, value in tree.items()}
    return tree
