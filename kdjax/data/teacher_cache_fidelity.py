"""How well a teacher cache stands for its teacher, and what it costs and saves."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kdjax.data.teacher_cache import TeacherCache
from kdjax.losses import log_space


@dataclasses.dataclass(frozen=True)
class Fidelity:
    """The report of `fidelity`; `dataclasses.asdict` makes it plain data.

    Attributes:
      kind: of the cache.
      positions: tokens (or images) that were compared.
      kl_mean: of KL(cached || dense) over the positions, in nats.
      kl_quantiles: the same, its median, 90 %, 99 % and 100 % quantiles.
      mass_mean, mass_min: the dense teacher's probability of the classes that are kept.
      payload_bytes: a position, before compression.
      disk_bytes: a position, of all the cache's files.
      teacher_seconds, cache_seconds: a batch from the teacher, and from the cache; medians. The
        first batch is not timed where there are several: it compiles.
    """

    kind: str
    positions: int
    kl_mean: float
    kl_quantiles: dict[str, float]
    mass_mean: float
    mass_min: float
    payload_bytes: float
    disk_bytes: float
    teacher_seconds: float
    cache_seconds: float

    @property
    def seconds_saved(self) -> float:
        """A step, where nothing is read ahead."""
        return self.teacher_seconds - self.cache_seconds

    def text(self) -> str:
        """The report as one paragraph."""
        quantiles = ", ".join(f"{q} {v:.3g}" for q, v in self.kl_quantiles.items())
        return (
            f"Teacher cache of kind {self.kind}, compared with the live teacher at "
            f"{self.positions} positions: KL(cached || dense) is {self.kl_mean:.3g} nats in the "
            f"mean ({quantiles}); the classes kept hold {100 * self.mass_mean:.2f} % of the "
            f"teacher's probability in the mean, {100 * self.mass_min:.2f} % at least. A position "
            f"takes {self.disk_bytes:.1f} bytes on disk, {self.payload_bytes:.1f} before "
            f"compression. A batch takes {1000 * self.teacher_seconds:.3g} ms from the teacher and "
            f"{1000 * self.cache_seconds:.3g} ms from the cache: "
            f"{1000 * self.seconds_saved:.3g} ms saved a step."
        )


def fidelity(
    cache: TeacherCache,
    batches: Iterable[Mapping[str, Any]],
    teacher: Callable[[Mapping[str, Any]], Any],
    *,
    head: Any = None,
) -> Fidelity:
    """Compares a cache with its teacher on some batches.

        KL(cached || dense) = sum_v c_v log(c_v / p_v),   c the cached distribution

    c is the softmax of what is kept: of `top_k` the list renormalised, so that the divergence is
    -log of its mass; of `sampled` the weights over their sum. A sample is one draw: with N draws
    its divergence is not near 0, and unbiased all the same.

    Args:
      cache: open.
      batches: of examples that are in the cache; `where` as in `Writer.write`. With `segments`
        only the positions of documents count.
      teacher: a batch to its logits `[B, ..., classes]`: the live one.
      head: of `hidden`: `[classes, size]`.

    Raises:
      ValueError: no batch, or no head for hidden states. LookupError: an example has no entry.
    """
    if (cache.contents.kind == "hidden") != (head is not None):
        raise ValueError("a head is needed for hidden states, and for nothing else")
    divergences, masses, times = [], [], []
    for examples in batches:
        began = time.perf_counter()
        dense = jax.block_until_ready(teacher(examples))
        middle = time.perf_counter()
        fields = cache.lookup(examples)
        times.append((middle - began, time.perf_counter() - middle))
        kl, mass = (np.asarray(x) for x in _compare(fields, jnp.asarray(dense), head))
        counts = np.asarray(examples.get("where", np.ones(len(kl), bool)))
        counts = np.broadcast_to(counts.reshape(-1, *[1] * (kl.ndim - 1)), kl.shape)
        if "segments" in cache.contents.fields:
            counts = counts & (np.asarray(examples["segments"]) > 0)
        divergences.append(kl[counts])
        masses.append(mass[counts])
    if not divergences:
        raise ValueError("there is no batch to compare")
    kl, mass = np.concatenate(divergences), np.concatenate(masses)
    middle = np.median(times[1:] or times, axis=0)
    levels = {"median": 0.5, "90 %": 0.9, "99 %": 0.99, "max": 1.0}
    return Fidelity(
        kind=cache.contents.kind,
        positions=kl.size,
        kl_mean=float(kl.mean()),
        kl_quantiles={name: float(np.quantile(kl, level)) for name, level in levels.items()},
        mass_mean=float(mass.mean()),
        mass_min=float(mass.min()),
        payload_bytes=cache.payload_bytes / cache.positions,
        disk_bytes=cache.disk_bytes / cache.positions,
        teacher_seconds=float(middle[0]),
        cache_seconds=float(middle[1]),
    )


@jax.jit
def _compare(fields, dense, head):
    log_p = jax.nn.log_softmax(dense.astype(jnp.float32))
    if "teacher_ids" not in fields:
        logits = fields["teacher_hidden"] @ head.T if head is not None else fields["teacher_logits"]
        kl = log_space.kl(jax.nn.log_softmax(logits), log_p)
        return kl, jnp.ones(kl.shape)
    ids = fields["teacher_ids"]
    if "teacher_weights" in fields:
        weights = fields["teacher_weights"]
        kept = jnp.log(weights)
    else:
        kept = fields["teacher_log_probs"]
    present = ids >= 0
    kept = log_space.safe_log_softmax(jnp.where(present, kept, -jnp.inf))
    chosen = jnp.take_along_axis(log_p, jnp.maximum(ids, 0), axis=-1)
    chosen = jnp.where(present, chosen, -jnp.inf)
    return log_space.kl(kept, chosen), jnp.sum(jnp.exp(chosen), axis=-1)
