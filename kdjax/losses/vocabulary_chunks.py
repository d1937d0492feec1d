"""The engine of the vocabulary-sized losses: chunks of tokens, one after the other.

The logits of a chunk of tokens are made from hidden states and heads, turned into losses and into
the gradient of the hidden states and of the head, and dropped before the next chunk. So the
backward pass only multiplies what the forward pass kept by the cotangent of each total. Without
differentiation no gradient is computed.

A chunk takes its tokens strided: chunk j of n has tokens j, j + n, j + 2n, ... of every row, so
that rows and lengths that are cut over devices stay where they are.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from kdjax.losses.sparse_targets import members, sparse_target_log_probs


class Student(NamedTuple):
    """What is differentiated."""

    hidden: Array  # [rows, tokens, chunks, width]
    weight: Array  # [vocabulary, width]
    bias: Array | None  # [vocabulary]


class Constants(NamedTuple):
    """What has no gradient, and is the same for all tokens."""

    teacher_weight: Array | None
    teacher_bias: Array | None
    student_softcap: Array | None
    teacher_softcap: Array | None
    temperature: Array
    shared_ids: tuple[Array, Array] | None
    scalars: Mapping[str, Array]


class Plan(NamedTuple):
    """What is known while tracing.

    terms: (log p, log q, **scalars) -> the loss's term of each token of the vocabulary; None for
      none but the labels' cross-entropy.
    interpolates: the teacher's logits are moved to the student's by the scalar t.
    """

    terms: Callable[..., Array] | None
    interpolates: bool
    axis_name: str | None
    dtype: Any  # of all sums
    dtypes: Student  # of the gradients


class Term(NamedTuple):
    """The losses [tokens] of a chunk and their gradient in its logits, made when asked for."""

    losses: Array
    gradient: Callable[[], Array]


def layout(batch: tuple[int, ...], width: int, chunk: int | None) -> tuple[int, int, int]:
    """(rows, tokens of a chunk in each row, chunks) for hidden states [*batch, width].

    Without `chunk` a chunk has a quarter as many tokens as the student is wide, and at least 128:
    its logits are then no larger than the gradient of the head, which has to be held anyway.
    """
    chunk = max(128, width // 4) if chunk is None else chunk
    rows, length = math.prod(batch[:-1]), batch[-1] if batch else 1
    if rows > chunk or rows * length == 0:
        rows, length = 1, rows * length
    chunks = max(1, math.ceil(length / (chunk // rows)))
    return rows, max(1, math.ceil(length / chunks)), chunks


def lay_out(array: Array, batch: tuple[int, ...], cut: tuple[int, int, int]) -> Array:
    """[*batch, ...] as [rows, tokens, chunks, ...], padded with zeros."""
    rows, tokens, chunks = cut
    rest = array.shape[len(batch) :]
    length = math.prod(batch) // rows
    array = array.reshape(rows, length, *rest)
    padding = [(0, 0), (0, tokens * chunks - length)] + [(0, 0)] * len(rest)
    return jnp.pad(array, padding).reshape(rows, tokens, chunks, *rest)


def totals(
    plan: Plan, student: Student, tokens: Mapping[str, Array], constants: Constants
) -> tuple[Array, ...]:
    """The sum over all tokens of the divergence and of the labels' cross-entropy, as given.

    tokens: {name: [rows, tokens, chunks, ...]}: "where", and what is there of "labels",
      "teacher_hidden", "teacher_logits", "teacher_ids" and "teacher_log_probs".
    """
    varying = varying_axes((student, tokens, constants))
    # A gradient is made where the head's shard and the tokens are. That of what is the same on
    # several devices is summed over them by the transpose of this.
    student = jax.tree.map(lambda leaf: _vary(leaf, varying), student)
    return _totals(plan, student, dict(tokens), constants)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _totals(plan, student, tokens, constants):
    return _evaluate(plan, student, tokens, constants, with_gradients=False)[0]


def _forward(plan, student, tokens, constants):
    return _evaluate(plan, student, tokens, constants, with_gradients=True)


def _backward(plan, gradients, cotangents):
    def combined(dtype, *leaves):
        total = sum(cotangent * leaf for cotangent, leaf in zip(cotangents, leaves))
        return total.astype(dtype)

    return jax.tree.map(combined, plan.dtypes, *gradients), None, None


_totals.defvjp(_forward, _backward)


def _evaluate(plan, student, tokens, constants, *, with_gradients):
    """(totals, a gradient of the student for each)."""
    varying = varying_axes((student, tokens, constants))
    summed = varying - {plan.axis_name}
    rows, length, chunks = tokens["where"].shape
    count = (plan.terms is not None) + ("labels" in tokens)

    def zeros(shape, axes):
        return _vary(jnp.zeros(shape, plan.dtype), axes)

    def step(carry, index):
        sums, gradients = carry
        hidden, chunk = jax.tree.map(
            lambda x: lax.dynamic_index_in_dim(x, index, axis=2, keepdims=False).reshape(
                rows * length, *x.shape[3:]
            ),
            (student.hidden, tokens),
        )
        hidden = jnp.where(chunk["where"][:, None], hidden, 0)
        logits, terms = _terms(plan, hidden, student, chunk, constants)
        sums = [total + jnp.sum(term.losses) for total, term in zip(sums, terms)]
        if with_gradients:
            gradients = [
                _accumulate(plan, old, term.gradient(), logits, hidden, student, constants, index)
                for old, term in zip(gradients, terms)
            ]
        return (sums, gradients), None

    sums = [zeros((), summed) for _ in range(count)]
    gradients = [
        jax.tree.map(lambda leaf: zeros(leaf.shape, varying), student)
        for _ in sums[: with_gradients * count]
    ]
    if chunks == 1:
        (sums, gradients), _ = step((sums, gradients), 0)
    else:
        (sums, gradients), _ = lax.scan(step, (sums, gradients), jnp.arange(chunks))
    return tuple(sums), gradients


def _accumulate(plan, gradients, of_logits, logits, hidden, student, constants, index):
    """The student's gradients with what a chunk adds to them."""
    cap = constants.student_softcap
    if cap is not None:
        of_logits = of_logits * (1 - (logits / cap) ** 2)
    rows, length = gradients.hidden.shape[:2]
    of_hidden = _product(plan, of_logits, student.weight, (1, 0), like=hidden)
    of_weight = _product(plan, of_logits, hidden, (0, 0), like=student.weight)
    of_bias = None if student.bias is None else gradients.bias + jnp.sum(of_logits, axis=0)
    of_hidden = of_hidden.reshape(rows, length, -1)
    return Student(
        lax.dynamic_update_index_in_dim(gradients.hidden, of_hidden, index, axis=2),
        gradients.weight + of_weight,
        of_bias,
    )


def _product(plan, left, right, contracted, *, like):
    """Matrix product with sums in the plan's type.

    Operands keep bfloat16 where both the hidden states and the head have it: what the hardware
    multiplies fastest, without a wide copy of the head.
    """
    half = right.dtype == like.dtype == jnp.bfloat16
    operands = (x.astype(jnp.bfloat16 if half else plan.dtype) for x in (left, right))
    dimensions = ((contracted[:1], contracted[1:]), ((), ()))
    return lax.dot_general(*operands, dimensions, preferred_element_type=plan.dtype)


def _logits(plan, hidden, weight, bias, softcap):
    logits = _product(plan, hidden, weight, (1, 1), like=hidden)
    if bias is not None:
        logits = logits + bias.astype(plan.dtype)
    return logits if softcap is None else softcap * jnp.tanh(logits / softcap)


def _terms(plan, hidden, student, chunk, constants):
    """(the student's logits [tokens, vocabulary], the `Term`s of a chunk)."""
    logits = _logits(plan, hidden, student.weight, student.bias, constants.student_softcap)
    terms = []
    if plan.terms is not None:
        kind = _sparse_term if "teacher_ids" in chunk else _dense_term
        terms.append(_masked(kind(plan, logits, chunk, constants), chunk["where"]))
    if "labels" in chunk:
        terms.append(_label_term(plan, logits, chunk))
    return logits, terms


def _masked(term: Term, where: Array) -> Term:
    return Term(
        jnp.where(where, term.losses, 0.0),
        lambda: jnp.where(where[:, None], term.gradient(), 0.0),
    )


def _dense_term(plan, logits, chunk, constants):
    """A divergence from a teacher of which all logits are known.

    With u_v = d loss / d log q_v the gradient in the logits is (u - q sum_v u_v) / T.
    """
    keep, temperature, axis = chunk["where"][:, None], constants.temperature, plan.axis_name
    if "teacher_logits" in chunk:
        teacher = jnp.where(keep, chunk["teacher_logits"].astype(plan.dtype), 0.0)
    else:
        hidden = jnp.where(keep, chunk["teacher_hidden"], 0)
        teacher = _logits(
            plan,
            hidden,
            constants.teacher_weight,
            constants.teacher_bias,
            constants.teacher_softcap,
        )
    compared, ids = logits, constants.shared_ids
    if ids is not None:
        compared, teacher = logits[:, ids[0]], teacher[:, ids[1]]
    scalars = dict(constants.scalars)
    if plan.interpolates:
        t = scalars.pop("t")
        absent = (compared == -jnp.inf) | (teacher == -jnp.inf)
        between = (1 - t) * jnp.where(absent, 0.0, compared) + t * jnp.where(absent, 0.0, teacher)
        teacher = jnp.where(absent, -jnp.inf, between)
    log_p = _log_softmax(teacher / temperature, axis)
    log_q = _log_softmax(compared / temperature, axis)
    values, pull = jax.vjp(lambda log_q: plan.terms(log_p, log_q, **scalars), log_q)

    def gradient():
        (of_log_q,) = pull(jnp.ones_like(values))
        total = _sum(of_log_q, axis)[:, None]
        of_logits = (of_log_q - jnp.exp(log_q) * total) / temperature
        return of_logits if ids is None else jnp.zeros_like(logits).at[:, ids[0]].add(of_logits)

    return Term(_sum(values, axis), gradient)


def _sparse_term(plan, logits, chunk, constants):
    """A divergence on the listed tokens and one bucket of all others."""
    temperature, axis = constants.temperature, plan.axis_name
    vocabulary, first = _shard(logits, axis)
    ids = chunk["teacher_ids"]
    known = chunk["where"][:, None] & (ids >= 0) & (ids < vocabulary)
    values = jnp.where(known, chunk["teacher_log_probs"].astype(plan.dtype), -jnp.inf)
    target, tail = sparse_target_log_probs(values, missing="tail", temperature=temperature)
    present = target > -jnp.inf
    if ids.shape[-1] == vocabulary:
        # Nothing is outside: what is left of the teacher's mass is rounding.
        tail = jnp.where(jnp.all(present, axis=-1), -jnp.inf, tail)
    log_p = jnp.concatenate([target, tail[:, None]], axis=-1)

    local = present & (ids >= first) & (ids < first + logits.shape[-1])
    places = jnp.where(local, ids - first, 0)
    scaled = logits / temperature
    normalizer = _logsumexp(scaled, axis)[:, None]
    listed = members(places, local, logits.shape[-1])
    outside = jnp.where(listed, -jnp.inf, scaled)
    rest = _logsumexp(outside, axis)[:, None]
    found = jnp.where(local, jnp.take_along_axis(scaled, places, axis=-1), 0.0)
    found = found if axis is None else lax.psum(found, axis)
    log_q = jnp.concatenate([jnp.where(present, found, -jnp.inf), rest], axis=-1) - normalizer
    values, pull = jax.vjp(lambda log_q: plan.terms(log_p, log_q, **constants.scalars), log_q)

    def gradient():
        (of_log_q,) = pull(jnp.ones_like(values))
        total = jnp.sum(of_log_q, axis=-1, keepdims=True)
        shares = jnp.exp(outside - jnp.where(rest == -jnp.inf, 0.0, rest))
        of_logits = of_log_q[:, -1:] * shares - jnp.exp(scaled - normalizer) * total
        rows = jnp.arange(len(ids))[:, None]
        of_listed = jnp.where(local, of_log_q[:, :-1], 0.0)
        return of_logits.at[rows, places].add(of_listed) / temperature

    return Term(jnp.sum(values, axis=-1), gradient)


def _label_term(plan, logits, chunk):
    """Cross-entropy on the labels, at temperature 1; labels outside the vocabulary are nothing."""
    vocabulary, first = _shard(logits, plan.axis_name)
    labels = chunk["labels"]
    valid = chunk["where"] & (labels >= 0) & (labels < vocabulary)
    chosen = first + jnp.arange(logits.shape[-1]) == labels[:, None]
    at_label = _sum(jnp.where(chosen, logits, 0.0), plan.axis_name)
    normalizer = _logsumexp(logits, plan.axis_name)
    term = Term(
        normalizer - at_label,
        lambda: jnp.exp(logits - normalizer[:, None]) - chosen,
    )
    return _masked(term, valid)


def _shard(logits: Array, axis: str | None) -> tuple[int, Array | int]:
    """(the size of the whole vocabulary, the first of this device's tokens)."""
    size = logits.shape[-1]
    if axis is None:
        return size, 0
    return size * lax.axis_size(axis), size * lax.axis_index(axis)


def _sum(values: Array, axis: str | None) -> Array:
    total = jnp.sum(values, axis=-1)
    return total if axis is None else lax.psum(total, axis)


def _logsumexp(logits: Array, axis: str | None) -> Array:
    """log sum exp over the vocabulary; -inf for a row without any support."""
    largest = jnp.max(logits, axis=-1)
    largest = largest if axis is None else lax.pmax(largest, axis)
    largest = jnp.where(largest == -jnp.inf, 0.0, largest)
    return largest + jnp.log(_sum(jnp.exp(logits - largest[:, None]), axis))


def _log_softmax(logits: Array, axis: str | None) -> Array:
    normalizer = _logsumexp(logits, axis)[:, None]
    return jnp.where(logits == -jnp.inf, -jnp.inf, logits - normalizer)


def varying_axes(tree: Any) -> frozenset:
    """The axes of `shard_map` along which some array of the tree differs between devices."""
    return frozenset().union(*(_varying(leaf) for leaf in jax.tree.leaves(tree)))


def _varying(array: Array) -> frozenset:
    kind = jax.typeof(array)
    manual = getattr(kind, "manual_axis_type", None)
    return kind.vma if manual is None else manual.varying


def _vary(array: Array, axes: frozenset) -> Array:
    """The same array, with a type that says it may differ along these axes."""
    missing = tuple(sorted(axes - _varying(array)))
    return lax.pcast(array, missing, to="varying") if missing else array
