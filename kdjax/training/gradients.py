"""The gradient of one update over the whole batch, however the batch is cut."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from kdjax.training.stage import Context, Evaluation, PyTree, Term, Update, Variables, divide
from kdjax.training.state import put


class Result(NamedTuple):
    gradient: PyTree  # {role: {path: array}}, or {term: that} when the update combines
    variables: Variables  # live roles, other collections changed
    memory: PyTree
    metrics: dict[str, Term]


def microbatch(batch: PyTree, parts: int) -> PyTree:
    """`[B, ...]` as `[parts, B / parts, ...]`, row i in part i % parts.

    Interleaved, so that every part keeps its rows spread over the devices as the batch was.
    """

    def cut(path, x):
        name = jax.tree_util.keystr(path)
        if x.ndim == 0 or x.shape[0] % parts:
            raise ValueError(
                f"batch{name} of shape {x.shape} cannot be cut into {parts} micro-batches: "
                "its leading axis must be a multiple of that"
            )
        return x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)

    return jax.tree_util.tree_map_with_path(cut, batch)


def merge(variables: Variables, new: Variables, source: str) -> dict:
    """Live `variables` with the collections other than params of `new`."""
    out = dict(variables)
    for role, collections in new.items():
        if role not in out:
            raise ValueError(
                f"{source} returned variables for {role!r}, which the program neither trains nor "
                f"carries (live roles: {sorted(out)})"
            )
        kept = {name: x for name, x in collections.items() if name != "params"}
        out[role] = {**out[role], **kept}
    return out


def _weights(evaluation: Evaluation) -> dict[str, jax.Array]:
    return {name: term.weight for name, term in evaluation.terms.items()}


def _add(a: PyTree, b: PyTree) -> PyTree:
    return jax.tree.map(jnp.add, a, b)


def _zeros(function: Callable, *arguments) -> PyTree:
    shapes = jax.eval_shape(function, *arguments)
    return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)


def _report(evaluation: Evaluation, parts: Mapping[str, jax.Array], share: float) -> dict:
    losses = {f"loss/{name}": term for name, term in evaluation.terms.items()}
    report = {"loss": Term(sum(parts.values()), jnp.float32(share)), **losses, **evaluation.metrics}
    stopped = {name: lax.stop_gradient((t.total, t.weight)) for name, t in report.items()}
    return {
        name: Term(jnp.asarray(total, jnp.float32), jnp.asarray(weight, jnp.float32))
        for name, (total, weight) in stopped.items()
    }


def _parts(evaluation: Evaluation, weights: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Each term divided by its weight over the whole batch: what the gradient is taken of."""
    if not evaluation.terms:
        raise ValueError("an objective must return at least one term, got none")
    return {
        name: term.coefficient * divide(term.total, lax.stop_gradient(weights[name]))
        for name, term in evaluation.terms.items()
    }


def _pull(update: Update, losses: Callable, params: PyTree, scale: jax.Array | None):
    """Gradient of the sum of the parts, or of each part (one linearisation, one pull-back each).

    Times `scale`, from the loss on: what is small or large on the way back is so in every type.
    """
    times = 1 if scale is None else scale
    if update.combine is None:
        return jax.grad(lambda p: _summed(losses(p), scale), has_aux=True)(params)
    parts, pull, aux = jax.vjp(losses, params, has_aux=True)
    one = {name: {k: jnp.full_like(parts[k], k == name) * times for k in parts} for name in parts}
    return {name: pull(cotangent)[0] for name, cotangent in one.items()}, aux


def _summed(losses, scale):
    parts, aux = losses
    total = sum(parts.values())
    return total if scale is None else total * scale, aux


def gradient(
    update: Update,
    params: PyTree,
    live: Variables,
    frozen: Variables,
    batch: PyTree,
    context: Context,
    scale: jax.Array | None = None,
) -> Result:
    """The gradient of `update` with respect to `params` (see `pick`), divided once.

    With a `scale` it is taken of the loss times that, and divided by it at the end, in the type of
    the parameters; only the numbers in between know of it.
    """
    taken = _cached if update.embed is not None else _accumulated
    result = taken(update, params, live, frozen, batch, context, scale)
    if scale is None:
        return result
    return result._replace(gradient=jax.tree.map(lambda g: g / scale, result.gradient))


def _accumulated(update, params, live, frozen, batch, context, scale) -> Result:
    """The gradients of the micro-batches, added up."""

    def evaluate(params, live, memory, part, i):
        inner = context._replace(memory=memory, rng=jax.random.fold_in(context.rng, i))
        evaluation = update.objective(put({**frozen, **live}, params), part, inner)
        live = merge(live, evaluation.variables, "the objective")
        return evaluation, live, memory if evaluation.memory is None else evaluation.memory

    def part_gradient(live, memory, part, i, weights, share):
        def losses(params):
            evaluation, new, kept = evaluate(params, live, memory, part, i)
            parts = _parts(evaluation, weights or _weights(evaluation))
            return parts, (new, kept, _report(evaluation, parts, share))

        return _pull(update, losses, params, scale)

    n = update.microbatches
    if n == 1:
        grads, (live, memory, metrics) = part_gradient(live, context.memory, batch, 0, None, 1.0)
        return Result(grads, live, memory, metrics)

    cut, first = microbatch(batch, n), jax.tree.map(lambda x: x[0], microbatch(batch, n))

    def weigh(carry, x):  # the compiler drops what weights do not need
        return _add(carry, _weights(evaluate(params, live, context.memory, *x)[0])), None

    start = _zeros(lambda: _weights(evaluate(params, live, context.memory, first, 0)[0]))
    weights, _ = lax.scan(weigh, start, (cut, jnp.arange(n)))

    def accumulate(carry, x):
        total, live, memory, metrics = carry
        grads, (live, memory, report) = part_gradient(live, memory, *x, weights, 1.0 / n)
        return (_add(total, grads), live, memory, _add(metrics, report)), None

    zero = _zeros(
        lambda: (lambda g, aux: (g, aux[2]))(
            *part_gradient(live, context.memory, first, 0, weights, 1.0 / n)
        )
    )
    start = (zero[0], live, context.memory, zero[1])
    (grads, live, memory, metrics), _ = lax.scan(accumulate, start, (cut, jnp.arange(n)))
    return Result(grads, live, memory, metrics)


def _cached(update, params, live, frozen, batch, context, scale) -> Result:
    """Gradient caching: embed all, differentiate the objective once, pull back part by part."""
    n = update.microbatches
    cut = microbatch(batch, n)

    def embed(params, live, part, i):
        inner = context._replace(rng=jax.random.fold_in(context.rng, i))
        embeddings, new = update.embed(put({**frozen, **live}, params), part, inner)
        return embeddings, merge(live, new, "embed")

    def forward(carry, x):
        embeddings, new = embed(params, carry, *x)
        return new, (carry, embeddings)

    live, (before, parts) = lax.scan(forward, live, (cut, jnp.arange(n)))
    whole = jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), parts)

    def losses(arguments):
        params, embeddings = arguments
        joined = {**batch, "embeddings": embeddings}
        inner = context._replace(rng=jax.random.fold_in(context.rng, n))
        evaluation = update.objective(put({**frozen, **live}, params), joined, inner)
        new = merge(live, evaluation.variables, "the objective")
        kept = context.memory if evaluation.memory is None else evaluation.memory
        parts = _parts(evaluation, _weights(evaluation))
        return parts, (new, kept, _report(evaluation, parts, 1.0))

    grads, (new, memory, metrics) = _pull(update, losses, (params, whole), scale)

    def pull_back(direct, embedded):
        def body(total, x):
            part, i, at, cotangent = x
            _, pull = jax.vjp(lambda p: embed(p, at, part, i)[0], params)
            return _add(total, pull(cotangent)[0]), None

        cotangents = microbatch(embedded, n)
        return lax.scan(body, direct, (cut, jnp.arange(n), before, cotangents))[0]

    if update.combine is None:
        grads = pull_back(*grads)
    else:
        grads = {name: pull_back(*pair) for name, pair in grads.items()}
    return Result(grads, new, memory, metrics)
