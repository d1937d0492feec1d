"""Two gradients of one set of parameters: whether they conflict, and rules that merge them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from kdjax.losses import checks

Gradient = Any  # A pytree of arrays.


def gradient_align(
    main_gradient: Gradient,
    auxiliary_gradient: Gradient,
    *,
    scope: str = "all",
    shared: Callable[[str], bool] | Any = None,
) -> Gradient:
    """Sum of two gradients after the auxiliary one has lost what opposes the main one.

        h = <g, a> / <g, g> g   if <g, a> < 0,  else 0
        merged = g + (a - h)

    One-sided: the main gradient is never changed. Inner products run over all leaves together
    (not a leaf at a time), in float32.

    "all" is the authors' code: h covers every parameter, so the step of the main head, which the
    auxiliary loss does not touch, grows by 1 + |<g, a>| / <g, g>, and what is left is not quite
    orthogonal to g on the shared parameters. "shared" is the textbook projection: inner products
    and h are restricted to the shared parameters, the others are summed.

    Args:
      main_gradient: pytree of float arrays, zeros where the loss does not depend on a parameter.
      auxiliary_gradient: pytree of the same structure and shapes.
      scope: "all" or "shared".
      shared: for scope "shared" which parameters both losses share: a predicate on the path of a
        leaf ("backbone/dense/kernel"), or a pytree of bools (a prefix of the gradients' tree
        will do: {"backbone": True, "head": False}).

    Returns:
      Pytree of the same structure, shapes and types as main_gradient. A main gradient of 0 leaves
      the auxiliary one as it is.

    Raises:
      ValueError: an unknown scope, trees that differ, shared given without need or not at all.
      TypeError: leaves that are not floats, shared that is neither predicate nor bools.

    Source: Yang et al. 2024 (DHKD), arXiv:2411.08937; Yu et al. 2020 (PCGrad), arXiv:2001.06782.

    >>> import jax.numpy as jnp
    >>> main = {"backbone": jnp.array([1.0, 0.0]), "head": jnp.array([1.0, 0.0])}
    >>> auxiliary = {"backbone": jnp.array([-1.0, 1.0]), "head": jnp.array([0.0, 2.0])}
    >>> merged = gradient_align(main, auxiliary)
    >>> merged["backbone"].tolist(), merged["head"].tolist()
    ([0.5, 1.0], [1.5, 2.0])
    """
    checks.choice("scope", scope, ("all", "shared"))
    main, auxiliary, treedef = _matched_leaves(main_gradient, auxiliary_gradient)
    if scope == "all":
        if shared is not None:
            raise ValueError("shared must not be given with scope 'all'")
        projected = [True] * len(main)
    else:
        projected = _shared_leaves(shared, main_gradient)

    product = _inner_product(main, auxiliary, projected)
    square = _inner_product(main, main, projected)
    opposed = (product < 0) & (square > 0)
    scale = jnp.where(opposed, product / jnp.where(square > 0, square, 1.0), 0.0)
    merged = [
        (_wide(g) + (_wide(a) - scale * _wide(g) if projects else _wide(a))).astype(g.dtype)
        for g, a, projects in zip(main, auxiliary, projected)
    ]
    return jax.tree.unflatten(treedef, merged)


def gradient_cosine(first_gradient: Gradient, second_gradient: Gradient) -> jax.Array:
    """The cosine between two gradients: below 0 they work against each other.

        cos = <g, a> / ( |g| |a| )

    Inner products run over all leaves together, in float32.

    Args:
      first_gradient: g, pytree of float arrays.
      second_gradient: a, pytree of the same structure and shapes.

    Returns:
      A scalar in [-1, 1]; 0 where either gradient is 0.

    Raises:
      ValueError: trees that differ. TypeError: leaves that are not floats.

    Source: Yu et al. 2020 (PCGrad), arXiv:2001.06782.

    >>> import jax.numpy as jnp
    >>> print(f"{gradient_cosine({'w': jnp.array([1.0, 0.0])}, {'w': jnp.array([-1.0, 1.0])}):.4f}")
    -0.7071
    """
    first, second, _ = _matched_leaves(
        first_gradient, second_gradient, ("first_gradient", "second_gradient")
    )
    counted = [True] * len(first)
    squares = [_inner_product(gradient, gradient, counted) for gradient in (first, second)]
    known = (squares[0] > 0) & (squares[1] > 0)
    norms = [jnp.sqrt(jnp.where(known, square, 1.0)) for square in squares]
    return jnp.where(known, _inner_product(first, second, counted) / norms[0] / norms[1], 0.0)


def pcgrad(first_gradient: Gradient, second_gradient: Gradient) -> Gradient:
    """Sum of two gradients, each without what opposes the other: PCGrad of two tasks.

        g' = g - min(0, <g, a>) / <a, a> a,    a' = a - min(0, <g, a>) / <g, g> g
        merged = g' + a'

    `gradient_align` is its one-sided form.

    Args:
      first_gradient: g, pytree of float arrays.
      second_gradient: a, pytree of the same structure and shapes.

    Returns:
      Pytree of the same structure, shapes and types as first_gradient; the sum where the gradients
      agree, or one of them is 0.

    Raises:
      ValueError: trees that differ. TypeError: leaves that are not floats.

    Source: Yu et al. 2020 (PCGrad), arXiv:2001.06782, algorithm 1.

    >>> import jax.numpy as jnp
    >>> merged = pcgrad({"w": jnp.array([1.0, 0.0])}, {"w": jnp.array([-1.0, 1.0])})
    >>> merged["w"].tolist()  # (0.5, 0.5) + (0, 1)
    [0.5, 1.5]
    """
    first, second, treedef = _matched_leaves(
        first_gradient, second_gradient, ("first_gradient", "second_gradient")
    )
    counted = [True] * len(first)
    opposed = jnp.minimum(_inner_product(first, second, counted), 0.0)
    scales = []
    for gradient in (second, first):
        square = _inner_product(gradient, gradient, counted)
        scales.append(jnp.where(square > 0, opposed / jnp.where(square > 0, square, 1.0), 0.0))
    merged = [
        (_wide(g) * (1 - scales[1]) + _wide(a) * (1 - scales[0])).astype(g.dtype)
        for g, a in zip(first, second)
    ]
    return jax.tree.unflatten(treedef, merged)


def _wide(leaf: jax.Array) -> jax.Array:
    return leaf.astype(jnp.result_type(leaf.dtype, jnp.float32))


def _inner_product(first: list, second: list, counted: list[bool]) -> jax.Array:
    products = [jnp.sum(_wide(f) * _wide(s)) for f, s, c in zip(first, second, counted) if c]
    return sum(products, start=jnp.zeros(()))


def _matched_leaves(
    main_gradient: Gradient,
    auxiliary_gradient: Gradient,
    names: tuple[str, str] = ("main_gradient", "auxiliary_gradient"),
) -> tuple:
    main, treedef = jax.tree_util.tree_flatten_with_path(main_gradient)
    auxiliary, other_treedef = jax.tree.flatten(auxiliary_gradient)
    if treedef != other_treedef:
        raise ValueError(
            f"{names[0]} and {names[1]} must be trees of one structure, "
            f"got {treedef} and {other_treedef}"
        )
    for (path, g), a in zip(main, auxiliary):
        if jnp.shape(g) != jnp.shape(a):
            raise ValueError(
                f"{names[0]} and {names[1]} must have one shape at {_name(path)!r}, "
                f"got {jnp.shape(g)} and {jnp.shape(a)}"
            )
        for name, leaf in zip(names, (g, a)):
            if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
                raise TypeError(
                    f"{name} must be of floats, got {jnp.result_type(leaf)} at {_name(path)!r}"
                )
    return [jnp.asarray(g) for _, g in main], [jnp.asarray(a) for a in auxiliary], treedef


def _shared_leaves(shared: Callable[[str], bool] | Any, gradient: Gradient) -> list[bool]:
    if shared is None:
        raise ValueError("scope 'shared' needs shared: a predicate on paths or a tree of bools")
    if callable(shared):
        paths, _ = jax.tree_util.tree_flatten_with_path(gradient)
        leaves = [shared(_name(path)) for path, _ in paths]
    else:
        leaves = jax.tree.leaves(jax.tree.broadcast(shared, gradient))
    for leaf in leaves:
        if not isinstance(leaf, bool):
            raise TypeError(f"shared must say True or False of a parameter, got {leaf!r}")
    if not any(leaves):
        raise ValueError("shared must name at least one parameter, got none")
    return leaves


def _name(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
