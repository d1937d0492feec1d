"""What the vocabulary-sized losses take: output heads, teachers and options, checked.

The losses are in `kdjax.losses.vocabulary`, which tells what they are for.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypedDict

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from numpy import ndarray

from kdjax.losses import checks
from kdjax.losses import vocabulary_chunks as chunks
from kdjax.losses.checks import Scalar
from kdjax.losses.tokens import Total


class Head(NamedTuple):
    """An output head: logits = c tanh( (hidden weight^T + bias) / c ), c the soft cap.

    weight: floats [vocabulary, width].
    bias: floats [vocabulary], or None.
    softcap: scalar > 0, may be traced, not differentiated; None: logits are not capped.
    """

    weight: Float[Array | ndarray, "vocabulary width"]
    bias: Float[Array | ndarray, " vocabulary"] | None = None
    softcap: Scalar | None = None


StudentHidden = Float[Array | ndarray, "*batch student_width"]
TeacherHidden = Float[Array | ndarray, "*batch teacher_width"]
StudentHead = Float[Array | ndarray, "vocabulary student_width"] | Head
TeacherHead = Float[Array | ndarray, "teacher_vocabulary teacher_width"] | Head
Totals = Total | tuple[Total, Total]


class Options(TypedDict, total=False):
    """What every loss from a teacher takes by keyword.

    Attributes:
      teacher_logits: floats [..., vocabulary]. Stopped.
      teacher_ids: integers [..., k], different ones; outside [0, vocabulary): no entry.
      teacher_log_probs: floats [..., k], of the whole vocabulary; -inf: no entry. Stopped. A mass
        above 1 - 8 eps is taken for 1.
      labels: integers [...]: also the cross-entropy on them, at temperature 1. Outside
        [0, vocabulary): not counted, gradient 0.
      where: booleans [...]: the tokens that count. What else is there may be NaN or infinite.
      temperature: scalar > 0, may be traced, of both sides; not differentiated. Losses are not
        multiplied by its square.
      shared_ids: (student's ids, teacher's ids), integers [shared] each, for vocabularies that
        differ: the i-th of one is the i-th of the other, and both softmaxes run over these alone.
        Labels stay ids of the whole student's vocabulary.
      chunk: tokens whose logits exist at a time, rounded to whole tokens of every row; by default
        max(128, width of the student / 4).
      axis_name: in `jax.shard_map`: the axis along which heads, biases and `teacher_logits` are cut
        over the vocabulary. Ids and labels are those of the whole vocabulary.
    """

    teacher_logits: Float[Array | ndarray, "..."]
    teacher_ids: Int[Array | ndarray, "..."]
    teacher_log_probs: Float[Array | ndarray, "..."]
    labels: Int[Array | ndarray, "..."]
    where: Bool[Array | ndarray, "..."]
    temperature: Scalar
    shared_ids: tuple[Int[Array | ndarray, " shared"], Int[Array | ndarray, " shared"]]
    chunk: int
    axis_name: str


def linear(
    terms: Callable[..., Array] | None,
    student_hidden: StudentHidden,
    student_head: StudentHead,
    teacher_hidden: TeacherHidden | None,
    teacher_head: TeacherHead | None,
    *,
    scalars: Mapping[str, Scalar] | None = None,
    interpolates: bool = False,
    teacher_logits: Array | None = None,
    teacher_ids: Array | None = None,
    teacher_log_probs: Array | None = None,
    labels: Array | None = None,
    where: Array | None = None,
    temperature: Scalar = 1.0,
    shared_ids: tuple[Array, Array] | None = None,
    chunk: int | None = None,
    axis_name: str | None = None,
) -> Totals:
    """The (total, weight) of a divergence and, with labels, of their cross-entropy.

    terms: the divergence's terms (`kdjax.losses.vocabulary_terms`), with scalars by keyword; None
      for the cross-entropy alone. interpolates: the scalar t moves the teacher to the student.
    """
    student = _head("student_head", student_head)
    given = {"teacher_hidden": teacher_hidden, "teacher_logits": teacher_logits}
    given["teacher_log_probs"] = teacher_log_probs
    given = {name: array for name, array in given.items() if array is not None}
    if terms is not None:
        _one_teacher(given, teacher_head, teacher_ids)
    teacher = Head(None) if teacher_head is None else _head("teacher_head", teacher_head)
    named = {
        "student_hidden": student_hidden,
        "student_head": student.weight,
        "student_head.bias": student.bias,
        **given,
        "teacher_head": teacher.weight,
        "teacher_head.bias": teacher.bias,
    }
    named = {name: jnp.asarray(x) for name, x in named.items() if x is not None}
    if axis_name is not None:
        _check_shards(axis_name, named, shared_ids)
    # Only shapes and types: what the check returns would be copies in float32.
    checked = jax.eval_shape(
        lambda *values: checks.shaped(_axes(shared_ids), **dict(zip(named, values))),
        *named.values(),
    )
    batch, vocabulary = named["student_hidden"].shape[:-1], named["student_head"].shape[0]
    checks.positive(temperature=temperature)
    for side, head in (("student_head", student), ("teacher_head", teacher)):
        if head.softcap is not None:
            checks.positive(**{f"{side}.softcap": head.softcap})
    where = jnp.ones(batch, bool) if where is None else where
    tokens = {"where": checks.boolean("where", where, batch, "student_hidden without its width")}
    tokens |= {name: jax.lax.stop_gradient(named[name]) for name in given}
    if teacher_ids is not None:
        k = tokens["teacher_log_probs"].shape[-1]
        meaning = "teacher_log_probs"
        tokens["teacher_ids"] = checks.integers("teacher_ids", teacher_ids, (*batch, k), meaning)
    whole = vocabulary if axis_name is None else vocabulary * jax.lax.axis_size(axis_name)
    if teacher_ids is not None:
        checks.count(1, whole, k=k)
    if labels is not None:
        meaning = "student_hidden without its width"
        tokens["labels"] = checks.integers("labels", labels, batch, meaning)
    if chunk is not None:
        checks.count(1, chunk=chunk)
    if shared_ids is not None:
        shared_ids = _shared(shared_ids, tokens, named, vocabulary)

    dtype = checked[0].dtype

    def scalar(value):
        return None if value is None else jax.lax.stop_gradient(jnp.asarray(value, dtype))

    constants = chunks.Constants(
        teacher_weight=jax.lax.stop_gradient(named.get("teacher_head")),
        teacher_bias=jax.lax.stop_gradient(named.get("teacher_head.bias")),
        student_softcap=scalar(student.softcap),
        teacher_softcap=scalar(teacher.softcap),
        temperature=scalar(temperature),
        shared_ids=shared_ids,
        scalars={name: scalar(value) for name, value in (scalars or {}).items()},
    )
    hidden = named["student_hidden"]
    arrays = chunks.Student(hidden, named["student_head"], named.get("student_head.bias"))
    plan = chunks.Plan(
        terms, interpolates, axis_name, dtype, jax.tree.map(lambda x: x.dtype, arrays)
    )
    cut = chunks.layout(batch, hidden.shape[-1], chunk)
    laid_out = {name: chunks.lay_out(array, batch, cut) for name, array in tokens.items()}
    arrays = arrays._replace(hidden=chunks.lay_out(hidden, batch, cut))
    found = list(chunks.totals(plan, arrays, laid_out, constants))

    counted = []
    if terms is not None:
        counted.append(tokens["where"])
    if labels is not None:
        valid = (tokens["labels"] >= 0) & (tokens["labels"] < whole)
        counted.append(tokens["where"] & valid)
    pairs = [(total, jnp.sum(mask, dtype=dtype)) for total, mask in zip(found, counted)]
    return pairs[0] if len(pairs) == 1 else tuple(pairs)


def _head(name: str, head: StudentHead | TeacherHead) -> Head:
    if isinstance(head, Head):
        return head
    if isinstance(head, tuple | list | Mapping):
        raise TypeError(
            f"{name} must be an array [vocabulary, width] or a Head, got a {type(head).__name__}"
        )
    return Head(head)


def _axes(shared_ids: Any) -> dict[str, str]:
    theirs = "vocabulary" if shared_ids is None else "teacher_vocabulary"
    return {
        "student_hidden": "... width",
        "student_head": "vocabulary>=1 width",
        "student_head.bias": "vocabulary",
        "teacher_hidden": "... teacher_width",
        "teacher_head": f"{theirs}>=1 teacher_width",
        "teacher_head.bias": theirs,
        "teacher_logits": f"... {theirs}>=1",
        "teacher_log_probs": "... k>=1",
    }


def _one_teacher(given: Mapping[str, Any], teacher_head: Any, teacher_ids: Any) -> None:
    if len(given) != 1:
        raise ValueError(
            "one teacher must be given: teacher_hidden and teacher_head, or teacher_logits, or "
            f"teacher_ids and teacher_log_probs; got {' and '.join(given) or 'none'}"
        )
    for name, other, value in (
        ("teacher_hidden", "teacher_head", teacher_head),
        ("teacher_log_probs", "teacher_ids", teacher_ids),
    ):
        if (name in given) != (value is not None):
            there, missing = (name, other) if name in given else (other, name)
            raise ValueError(f"{there} needs {missing}, which is not given")


def _shared(
    shared_ids: tuple[Array, Array],
    tokens: Mapping[str, Array],
    named: Mapping[str, Array],
    vocabulary: int,
) -> tuple[Array, Array]:
    """The ids, after a check that they are different tokens of either vocabulary."""
    if "teacher_ids" in tokens:
        raise ValueError("shared_ids is for dense teachers: teacher_ids must not be given")
    if not isinstance(shared_ids, tuple) or len(shared_ids) != 2:
        raise TypeError("shared_ids must be a tuple (student's ids, teacher's ids)")
    first, second = (
        checks.integers(f"shared_ids[{i}]", ids, None, "") for i, ids in enumerate(shared_ids)
    )
    if first.ndim != 1 or first.shape != second.shape or not first.size:
        raise ValueError(
            "shared_ids must be two arrays of one shape [shared] with shared >= 1, "
            f"got shapes {first.shape} and {second.shape}"
        )
    theirs = named["teacher_logits"].shape[-1] if "teacher_logits" in named else None
    theirs = theirs or named["teacher_head"].shape[0]
    for i, (ids, size) in enumerate(((first, vocabulary), (second, theirs))):
        if isinstance(ids, jax.core.Tracer):
            continue
        values = np.asarray(ids)
        if values.min() < 0 or values.max() >= size:
            raise ValueError(
                f"shared_ids[{i}] must lie in [0, {size}), got {values.min()} to {values.max()}"
            )
        if len(np.unique(values)) != len(values):
            raise ValueError(f"shared_ids[{i}] must be different ids, got some more than once")
    return first, second


def _check_shards(axis_name: str, named: Mapping[str, Array], shared_ids: Any) -> None:
    """What is cut along the axis must be, by its type, and what is not must not be."""
    if shared_ids is not None:
        raise ValueError("shared_ids must not be given with axis_name: their rows lie elsewhere")
    for name, array in named.items():
        cut = name.startswith(("student_head", "teacher_head")) or name == "teacher_logits"
        varying = axis_name in chunks.varying_axes(array)
        if cut != varying:
            expected = "cut over the vocabulary along" if cut else "the same on all devices of"
            raise ValueError(
                f"{name} must be {expected} axis {axis_name!r}, inside jax.shard_map with "
                f"check_vma=True; its type varies along {sorted(chunks.varying_axes(array))}"
            )
