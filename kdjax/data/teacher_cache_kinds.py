"""What is kept of a teacher's outputs: all logits, the top k, a sample, or hidden states.

An output is `[*positions, size]`: no position axis for a classifier, `[L]` for a language model,
`[H, W]` for dense prediction. A record holds one example's arrays one after the other, at the
precision asked for; what is read back is float32 and int32.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kdjax.losses import checks, log_space
from kdjax.losses.sparse_targets import gather, members

KINDS = ("dense", "top_k", "sampled", "hidden")
DTYPES = ("float32", "float16", "bfloat16")
ABSENT = -1e9  # log-probability of no entry: exp is 0, and streams refuse infinities
MASS_ROUNDING = {"float16": 4e-3, "bfloat16": 3e-2}  # of a sum of probabilities; others: 1e-4
Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Contents:
    """What a teacher cache holds, and of what: a cache is only opened as what it was written.

    | kind | fields of a batch | |
    | --- | --- | --- |
    | `dense` | `teacher_logits [..., size]` | |
    | `top_k` | `teacher_ids`, `teacher_log_probs [..., k]`, `teacher_tail [...]` | of the whole \
vocabulary, not renormalised; the tail is the mass outside |
    | `sampled` | `teacher_ids`, `teacher_weights [..., n]` | RS-KD (Anshumann et al. 2025, \
arXiv:2503.16870), equal ids merged, n the longest list in the cache, then id -1 and weight 0 |
    | `hidden` | `teacher_hidden [..., size]` | goes with the teacher's head |

    Attributes:
      kind: of the table.
      size: classes or vocabulary; of `hidden`, the width.
      teacher: which teacher it is: `fingerprint(variables)`, or a name and version.
      fields: of an example, what the teacher's output depends on: an entry's key is their hash.
      preprocessing: what was done to the fields before the teacher saw them, as JSON: the
        fingerprint of the tokenizer, the packing, `processing_of(stream)`.
      dtype: of logits, log-probabilities and hidden states on disk.
      k: of `top_k`.
      num_samples, tau, sample_seed: of `sampled`, as in `losses.random_sample_targets`; a sample
        is a function of the seed and the key.

    Raises:
      ValueError: an unknown kind or dtype, an option of another kind, k > size, tau < 0.

    >>> Contents("top_k", 10, "resnet56 of May", ("image",), k=3).k
    3
    """

    kind: str
    size: int
    teacher: str
    fields: tuple[str, ...]
    preprocessing: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    dtype: str = "float32"
    k: int | None = None
    num_samples: int | None = None
    tau: float = 1.0
    sample_seed: int = 0

    def __post_init__(self):
        checks.choice("kind", self.kind, KINDS)
        checks.choice("dtype", self.dtype, DTYPES)
        checks.count(1, size=self.size)
        if not isinstance(self.teacher, str) or not self.teacher:
            raise TypeError(f"teacher must be a fingerprint or a name, got {self.teacher!r}")
        if isinstance(self.fields, str) or not self.fields:
            raise ValueError(f"fields must be names of an example's fields, got {self.fields!r}")
        object.__setattr__(self, "fields", tuple(sorted(self.fields)))
        for name, kind in (("k", "top_k"), ("num_samples", "sampled")):
            value = getattr(self, name)
            if (value is not None) != (self.kind == kind):
                raise ValueError(f"{name} belongs to kind {kind!r}: got {value} for {self.kind!r}")
        if self.k is not None:
            checks.count(1, self.size, k=self.k)
        if self.num_samples is not None:
            checks.count(1, np.iinfo(np.uint16).max, num_samples=self.num_samples)
        checks.not_negative(tau=self.tau)
        checks.count(0, 2**32 - 1, sample_seed=self.sample_seed)

    def to_json(self) -> dict[str, Any]:
        """The same as plain JSON values."""
        return json.loads(json.dumps(dataclasses.asdict(self)))


def differences(old: Mapping[str, Any], new: Mapping[str, Any], path: str = "") -> list[str]:
    """What differs between two JSON objects, `path: old -> new`.

    >>> differences({"k": 3, "preprocessing": {"seed": 0}}, {"k": 3, "preprocessing": {"seed": 1}})
    ['preprocessing.seed: 0 -> 1']
    >>> differences({"k": None}, {"k": 1})
    ['k: null -> 1']
    """
    found = []
    for name in sorted({*old, *new}):
        a, b = old.get(name), new.get(name)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += differences(a, b, f"{path}{name}.")
        elif a != b or (name in old) != (name in new):
            found.append(f"{path}{name}: {json.dumps(a)} -> {json.dumps(b)}")
    return found


def check_contents(path: pathlib.Path, old: Mapping[str, Any], new: Contents) -> None:
    """Refuses contents that are not those of the cache at `path`, and says what differs."""
    found = differences(old, new.to_json())
    if found:
        raise ValueError(f"the teacher cache {path} was made of something else: {'; '.join(found)}")


def prepare(
    contents: Contents,
    outputs: Any,
    examples: int,
    lengths: Sequence[int | None],
    names: Sequence[str],
    rows: Sequence[int],
    keys: Sequence[bytes],
) -> list[Arrays]:
    """The arrays to be kept of some rows of a batch of outputs, cut to their lengths, checked.

    Args:
      contents: what the outputs are made into.
      outputs: logits or hidden states `[B, ..., size]`; for `top_k` also a mapping of `ids`,
        `log_probs` `[B, ..., k]` (and `tail`), for `sampled` one of `ids`, `weights`.
      examples: B.
      lengths: of each example along the first position axis; None: all of it.
      names: what each example is called in errors.
      rows: of the batch, those that are kept.
      keys: of each example.
    """
    sparse = isinstance(outputs, Mapping)
    if sparse and contents.kind not in ("top_k", "sampled"):
        raise TypeError(f"outputs of kind {contents.kind!r} must be one array, got a mapping")
    if sparse:
        arrays = _given(contents, outputs)
    else:
        outputs = outputs if isinstance(outputs, jax.Array) else np.asarray(outputs)
        floats = jnp.issubdtype(outputs.dtype, jnp.floating)
        if not floats or outputs.ndim < 2 or outputs.shape[-1] != contents.size:
            raise ValueError(
                f"the teacher's outputs must be floats [batch, ..., {contents.size}], "
                f"got {outputs.dtype}{list(outputs.shape)}"
            )
        arrays = _made(contents, outputs, keys)
    for name, x in arrays.items():
        long = max((n for n in lengths if n is not None), default=0)
        if len(x) != examples or (long and (x.ndim < 2 or x.shape[1] < long)):
            raise ValueError(
                f"the teacher's {name} {list(x.shape)} do not fit {examples} examples"
                + (f" of up to {long} positions" if long else "")
            )
    kept = []
    for row in rows:
        one = {name: x[row] for name, x in arrays.items()}
        if lengths[row] is not None:
            one = {name: x[: lengths[row]] for name, x in one.items()}
        kept.append(_checked(contents, one, names[row], sparse))
    return kept


def _given(contents: Contents, outputs: Mapping[str, Any]) -> Arrays:
    """Sparse outputs that the teacher made itself."""
    values = "log_probs" if contents.kind == "top_k" else "weights"
    wanted = {"ids", values} | ({"tail"} & {*outputs} if contents.kind == "top_k" else set())
    if {*outputs} != wanted:
        raise ValueError(f"outputs must hold ids and {values}, got {sorted(outputs)}")
    arrays = {name: np.asarray(x) for name, x in outputs.items()}
    ids, x = arrays["ids"], arrays[values]
    if ids.dtype.kind not in "iu" or ids.shape != x.shape or ids.ndim < 2:
        raise ValueError(
            f"ids and {values} must be integers and floats of one shape [batch, ..., k], "
            f"got {ids.dtype}{list(ids.shape)} and {x.dtype}{list(x.shape)}"
        )
    if contents.kind == "top_k" and ids.shape[-1] != contents.k:
        raise ValueError(f"outputs have {ids.shape[-1]} ids a position, k is {contents.k}")
    return arrays


def _made(contents: Contents, outputs: Any, keys: Sequence[bytes]) -> Arrays:
    if contents.kind == "top_k":
        made = most_likely(outputs, k=contents.k)
    elif contents.kind == "sampled":
        seeds = np.frombuffer(b"".join(key[:8] for key in keys), np.uint32).reshape(-1, 2)
        seeds = seeds ^ np.uint32(contents.sample_seed)
        made = _sample(outputs, seeds, contents.tau, num_samples=contents.num_samples)
    else:
        made = {"hidden" if contents.kind == "hidden" else "logits": outputs}
    return {name: np.asarray(x) for name, x in made.items()}


@functools.partial(jax.jit, static_argnames="k")
def most_likely(logits: jax.Array, *, k: int) -> dict[str, jax.Array]:
    """The top k classes of `[..., V]`: `ids`, `log_probs` `[..., k]`, and the `tail` `[...]`.

    The log-probabilities are those of the whole vocabulary; the tail's mass is summed over the
    classes outside. A teacher that returns this spares the way to the host for its logits.

    >>> found = most_likely(jnp.log(jnp.array([0.1, 0.6, 0.3])), k=2)
    >>> found["ids"].tolist(), round(float(found["tail"]), 3)
    ([1, 2], 0.1)
    """
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
    values, ids = jax.lax.top_k(log_p, k)
    listed = members(ids, jnp.ones(ids.shape, bool), logits.shape[-1])
    tail = jnp.sum(jnp.where(listed, 0.0, jnp.exp(log_p)), axis=-1)
    return {"ids": ids, "log_probs": values, "tail": tail}


@functools.partial(jax.jit, static_argnames="num_samples")
def _sample(logits, seeds, tau, *, num_samples: int) -> dict[str, jax.Array]:
    """RS-KD targets, the draws of a position a function of the example's seed and the position.

    As `losses.random_sample_targets`, but by inverting the cumulative distribution: Gumbel noise
    would be num_samples x vocabulary numbers a position. Uniforms of 23 bits: probabilities are
    met within 1.2e-7.
    """
    lead, vocabulary = logits.shape[1:-1], logits.shape[-1]
    logits = logits.astype(jnp.float32).reshape(len(logits), -1, vocabulary)
    log_p = log_space.safe_log_softmax(logits)
    absent = log_p == -jnp.inf
    log_r = jnp.where(absent, -jnp.inf, tau * jnp.where(absent, 0.0, log_p))
    log_r = log_space.safe_log_softmax(log_r)
    positions = jnp.arange(logits.shape[1])

    def draws(seed, position):
        key = jax.random.fold_in(jax.random.wrap_key_data(seed, impl="threefry2x32"), position)
        return jax.random.uniform(key, (num_samples,))

    uniforms = jax.vmap(jax.vmap(draws, (None, 0)), (0, None))(seeds, positions)
    below = jnp.cumsum(jnp.exp(log_r), axis=-1)
    # The first class whose cumulative mass is above: one of mass zero never is. A uniform is at
    # most 1 - 2^-23, so that its product with the last stays below the last.
    search = functools.partial(jnp.searchsorted, side="right")
    ids = jax.vmap(jax.vmap(search))(below, uniforms * below[..., -1:])
    log_ratio = jnp.where(tau == 1, 0.0, gather(log_p, ids) - gather(log_r, ids))
    shape = (len(logits), *lead, num_samples)
    weights = jnp.exp(log_ratio) / num_samples
    # A row of NaN has no distribution: let it be seen.
    weights = jnp.where(jnp.isnan(logits).any(-1, keepdims=True), jnp.nan, weights)
    return {"ids": ids.astype(jnp.int32).reshape(shape), "weights": weights.reshape(shape)}


def _checked(contents: Contents, one: Arrays, name: str, given: bool) -> Arrays:
    """One example's arrays as they are stored; refuses what no teacher can mean."""

    def refuse(what: str):
        raise ValueError(f"{name}: {what}")

    for field, x in one.items():
        if field != "ids" and np.isnan(x.astype(np.float32, copy=False)).any():
            refuse(f"the teacher's {field} are not a number")
    if contents.kind in ("dense", "hidden"):
        (field,) = one
        with np.errstate(over="ignore"):  # refused below
            stored = one[field].astype(jnp.dtype(contents.dtype))
        if not np.isfinite(one[field].astype(np.float32)).all():
            refuse(f"the teacher's {field} are infinite")
        if not np.isfinite(stored.astype(np.float32)).all():
            refuse(f"the teacher's {field} do not fit {contents.dtype}")
        return {field: stored}
    ids = np.where(one["ids"] < 0, -1, one["ids"]).astype(np.int32)
    if given and (one["ids"] >= contents.size).any():
        refuse(f"the id {one['ids'].max()} is outside the {contents.size} classes")
    if contents.kind == "sampled":
        return _merged(contents, ids, one["weights"], refuse)
    values = one["log_probs"]
    ids = np.where(np.isneginf(values.astype(np.float32)), -1, ids)
    exact = np.where(ids < 0, -np.inf, values.astype(np.float64))
    mass = np.exp(exact).sum(-1)
    if given:
        ordered = np.sort(ids, axis=-1)
        twice = (ordered[..., 1:] == ordered[..., :-1]) & (ordered[..., 1:] >= 0)
        if twice.any():
            refuse(f"the id {ordered[..., 1:][twice][0]} is listed twice")
    above = np.max(mass, initial=0)
    if above > 1 + MASS_ROUNDING.get(values.dtype.name, 1e-4):
        refuse(f"the probabilities of the top k sum to {above:.6g}, more than 1")
    tail = one["tail"] if "tail" in one else np.maximum(1 - mass, 0)
    if (tail < 0).any() or np.max(mass + tail, initial=0) > 1 + 3e-2:
        refuse(f"the tail {float(np.max(tail)):.6g} is no mass beside the top k")
    kept = np.where(ids < 0, 0, values).astype(jnp.dtype(contents.dtype))
    return {"ids": ids, "log_probs": kept, "tail": np.asarray(tail, np.float32)}


def _merged(contents: Contents, ids: np.ndarray, weights: np.ndarray, refuse) -> Arrays:
    """Each position's different ids, one list after the other, and how many each has."""
    weights = np.where(ids < 0, 0, weights.astype(np.float64))
    if not np.isfinite(weights).all() or (weights < 0).any():
        refuse("the weights must be finite and not negative")
    lead, width = ids.shape[:-1], ids.shape[-1]
    rows = np.repeat(np.arange(math.prod(lead)), width)
    ids, weights = ids.reshape(-1), weights.reshape(-1)
    order = np.lexsort((ids, rows))
    order = order[ids[order] >= 0]
    rows, ids, weights = rows[order], ids[order], weights[order]
    first = np.ones(len(ids), bool)
    first[1:] = (rows[1:] != rows[:-1]) | (ids[1:] != ids[:-1])
    sums = np.add.reduceat(weights, np.flatnonzero(first)) if len(ids) else weights
    if contents.tau == 1:  # counts: exact, and half the bytes
        counts = np.rint(sums * contents.num_samples)
        if np.abs(sums * contents.num_samples - counts).max(initial=0) > 1e-3:
            refuse(f"with tau = 1 the weights are multiples of 1 / {contents.num_samples}")
        sums = counts.astype(np.uint16)
    lists = np.bincount(rows[first], minlength=math.prod(lead)).astype(np.uint16).reshape(lead)
    return {"lists": lists, "ids": ids[first], "weights": sums}


def encode(contents: Contents, arrays: Arrays) -> bytes:
    """The bytes of one example: the position axes, then array after array."""
    lead = positions_of(contents, arrays)
    head = np.array([len(lead), *lead], np.uint32).tobytes()
    parts = [
        x.astype(dtype, copy=False).tobytes()
        for x, dtype in zip(arrays.values(), _layout(contents).values())
    ]
    return head + b"".join(parts)


def positions_of(contents: Contents, arrays: Arrays) -> tuple[int, ...]:
    """The position axes of one example's arrays."""
    if contents.kind == "sampled":
        return arrays["lists"].shape
    return next(iter(arrays.values())).shape[:-1]


def _layout(contents: Contents) -> dict[str, np.dtype]:
    ids = np.dtype(np.uint16 if contents.size < 2**16 else np.int32)  # the last one: no entry
    floats = np.dtype(jnp.dtype(contents.dtype))
    return {
        "dense": {"logits": floats},
        "hidden": {"hidden": floats},
        "top_k": {"ids": ids, "log_probs": floats, "tail": np.dtype(np.float32)},
        "sampled": {
            "lists": np.dtype(np.uint16),
            "ids": ids,
            "weights": np.dtype(np.uint16 if contents.tau == 1 else np.float32),
        },
    }[contents.kind]


def decode(contents: Contents, payload: bytes) -> Arrays:
    """The arrays that `encode` was given, float32 and int32."""
    (rank,) = np.frombuffer(payload, np.uint32, 1)
    lead = tuple(int(n) for n in np.frombuffer(payload, np.uint32, rank, 4))
    at, out = 4 + 4 * int(rank), {}
    for name, dtype in _layout(contents).items():
        last = {"logits": contents.size, "hidden": contents.size}.get(name, contents.k)
        shape = lead if name in ("lists", "tail") else (*lead, last)
        if contents.kind == "sampled" and name != "lists":
            shape = (int(out["lists"].sum()),)
        size = math.prod(shape)
        x = np.frombuffer(payload, dtype, size, at).reshape(shape)
        at += size * dtype.itemsize
        if name == "ids":
            absent = x == np.array(-1).astype(dtype)
            x = np.where(absent, -1, x.astype(np.int32))
        out[name] = x.astype(np.int32 if x.dtype.kind in "iu" and name == "ids" else np.float32)
    if contents.kind == "sampled":
        out["lists"] = out["lists"].astype(np.int64)
        if contents.tau == 1:
            out["weights"] = out["weights"] / np.float32(contents.num_samples)
    if contents.kind == "top_k":
        out["log_probs"] = np.where(out["ids"] < 0, np.float32(ABSENT), out["log_probs"])
    return out


def collect(
    contents: Contents, entries: Sequence[Arrays], lead: tuple[int, ...], width: int
) -> Arrays:
    """Entries as one batch: `teacher_*` fields `[B, *lead, ...]`, padded along the first axis.

    Padding is 0; of ids -1, of log-probabilities -1e9. `width` is the length of sampled lists.
    """
    n = len(entries)
    blank = {
        "dense": {"logits": (np.float32(0), contents.size)},
        "hidden": {"hidden": (np.float32(0), contents.size)},
        "top_k": {
            "ids": (np.int32(-1), contents.k),
            "log_probs": (np.float32(ABSENT), contents.k),
            "tail": (np.float32(0), None),
        },
        "sampled": {"ids": (np.int32(-1), width), "weights": (np.float32(0), width)},
    }[contents.kind]
    out = {
        f"teacher_{name}": np.full((n, *lead, *(() if last is None else (last,))), fill)
        for name, (fill, last) in blank.items()
    }
    for i, entry in enumerate(entries):
        found = positions_of(contents, entry)
        cut = (i, slice(found[0])) if found else (i,)
        if contents.kind == "sampled":
            filled = np.arange(width) < entry["lists"][..., None]
            for name in ("ids", "weights"):
                part = out[f"teacher_{name}"][cut]
                part[filled] = entry[name]
        else:
            for name in blank:
                out[f"teacher_{name}"][cut] = entry[name]
    return out
