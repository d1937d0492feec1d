"""Memory and time of the vocabulary-sized losses against the expressions they replace.

    pip install torch liger-kernel
    python -m experiments.benchmark.vocabulary --out=results/benchmark/vocabulary.json

A loss of T tokens (hidden states and heads of both sides in float32, V tokens in the vocabulary)
and its gradient in the student's hidden states and head. Memory is what is allocated beside the
arguments, results included: temporary and output bytes of the compiled program, and in PyTorch the
largest running sum of the profiler's allocations. These are exact whatever the machine does.

    naive       the same loss of dense logits, in JAX and in PyTorch
    liger       Liger-Kernel's chunked loss, not compiled, with our chunk and with its own
    growth      temporary bytes at 8 T over those at T
    sharded     bytes a device when both heads are cut over four devices, over those of one

Values and gradients are compared before anything is timed. Times are of our loss and of the naive
one in JAX, run in turn; reported is the median of the ratios (below 1: ours is faster).
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from experiments.benchmark import measurement
from experiments.command import launch
from kdjax.losses import divergences, vocabulary

ROUNDS = flags.DEFINE_integer("rounds", 7, "How many times both sides are timed in turn.")
OUT = flags.DEFINE_string("out", "", "A JSON file for the result.")
PARTS = flags.DEFINE_list("parts", ["jax", "torch", "sharded"], "Which parts to run.")

TOKENS, WIDTH, TEACHER_WIDTH, VOCABULARY = 1024, 512, 768, 32768
CHUNK = 128  # what the loss chooses for this width
DEVICES = 4
BETAS = {"kl": 0.0, "jsd": 0.5}
OURS = {"kl": vocabulary.linear_kl, "jsd": vocabulary.linear_generalized_jsd}
NAIVE = {"kl": divergences.forward_kl, "jsd": divergences.generalized_jsd}


def ours(name: str) -> Callable[..., jax.Array]:
    def loss(hidden, head, teacher_hidden, teacher_head):
        total, weight = OURS[name](hidden, head, teacher_hidden, teacher_head)
        return total / weight

    return loss


def naive(name: str) -> Callable[..., jax.Array]:
    def loss(hidden, head, teacher_hidden, teacher_head):
        return jnp.mean(NAIVE[name](teacher_hidden @ teacher_head.T, hidden @ head.T))

    return loss


def shapes(tokens: int) -> list[tuple[int, int]]:
    return [
        (tokens, WIDTH),
        (VOCABULARY, WIDTH),
        (tokens, TEACHER_WIDTH),
        (VOCABULARY, TEACHER_WIDTH),
    ]


def arrays(tokens: int) -> list[np.ndarray]:
    """Logits of unit variance from both heads."""
    rng = np.random.default_rng(0)
    drawn = [rng.normal(size=shape).astype(np.float32) for shape in shapes(tokens)]
    drawn[1] *= WIDTH**-0.5
    drawn[3] *= TEACHER_WIDTH**-0.5
    return drawn


def compiled(loss: Callable[..., jax.Array], tokens: int, shardings: Any = None) -> Any:
    """The value and the gradients in hidden states and head, compiled."""
    kinds = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes(tokens)]
    step = jax.value_and_grad(loss, argnums=(0, 1))
    options = {} if shardings is None else {"in_shardings": shardings}
    return jax.jit(step, **options).lower(*kinds).compile()


def allocated(program: Any) -> dict[str, int]:
    memory = program.memory_analysis()
    temporary, output = memory.temp_size_in_bytes, memory.output_size_in_bytes
    return {"temporary": temporary, "output": output, "bytes": temporary + output}


def difference(actual: Any, expected: Any) -> float:
    """The largest error of any result, in units of its largest element."""
    pairs = zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True)
    return max(
        float(np.max(np.abs(np.asarray(a) - np.asarray(b))) / np.max(np.abs(np.asarray(b))))
        for a, b in pairs
    )


def timed(function: Callable[[], Any]) -> tuple[float, float]:
    """(seconds, seconds of the processors) of a call."""
    wall, processors = time.perf_counter(), time.process_time()
    function()
    return time.perf_counter() - wall, time.process_time() - processors


def against_jax(name: str) -> dict[str, Any]:
    given = [jnp.asarray(array) for array in arrays(TOKENS)]
    programs = [compiled(loss(name), TOKENS) for loss in (ours, naive)]
    results = [jax.block_until_ready(program(*given)) for program in programs]
    error = difference(*results)
    if error > 1e-5:
        raise ValueError(f"{name}: the naive expression gives something else, by {error}")
    del results
    rounds = [
        [
            timed(lambda program=program: jax.block_until_ready(program(*given)))
            for program in programs
        ]
        for _ in range(ROUNDS.value)
    ]
    longer = compiled(ours(name), 8 * TOKENS)
    mine, theirs = (allocated(program) for program in programs)
    return {
        "ours": mine,
        "naive": theirs,
        "bytes_ratio": mine["bytes"] / theirs["bytes"],
        "growth": allocated(longer)["temporary"] / mine["temporary"],
        "difference": error,
        "seconds": float(np.median([mine[0] for mine, _ in rounds])),
        "time_ratio": measurement.quartiles([mine[0] / theirs[0] for mine, theirs in rounds]),
        "processor_ratio": measurement.quartiles([mine[1] / theirs[1] for mine, theirs in rounds]),
    }


def peak_bytes(torch: Any, function: Callable[[], Any]) -> int:
    """The largest running sum of what PyTorch allocates and frees in a call."""
    gc.collect()
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        function()
    events = profile.profiler.kineto_results.events()
    moves = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    return int(np.max(np.cumsum([size for _, size in moves])))


def against_torch(name: str) -> dict[str, Any]:
    """Bytes of the naive PyTorch expression and of Liger-Kernel's chunked loss."""
    import torch
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    given = arrays(TOKENS)
    hidden, head, teacher_hidden, teacher_head = (torch.from_numpy(array) for array in given)
    hidden.requires_grad_(True)
    head.requires_grad_(True)
    labels = torch.zeros(TOKENS, dtype=torch.long)
    beta = BETAS[name]

    def plain():
        q = torch.log_softmax(hidden @ head.T, -1)
        with torch.no_grad():
            p = torch.log_softmax(teacher_hidden @ teacher_head.T, -1)
        if beta == 0:
            return torch.nn.functional.kl_div(q, p, reduction="sum", log_target=True) / TOKENS
        parts = torch.stack([p + np.log(beta), q + np.log(1 - beta)])
        mean = torch.logsumexp(parts, dim=0)
        of_p, of_q = (
            torch.nn.functional.kl_div(mean, side, reduction="sum", log_target=True)
            for side in (p, q)
        )
        return (beta * of_p + (1 - beta) * of_q) / TOKENS

    def liger(chunk):
        module = LigerFusedLinearJSDLoss(
            weight_hard_loss=0.0, weight_soft_loss=1.0, beta=beta, compiled=False, chunk_size=chunk
        )
        return lambda: module(hidden, head, teacher_hidden, teacher_head, labels)

    program = compiled(ours(name), TOKENS)
    expected = jax.device_get(program(*given))
    mine = allocated(program)["bytes"]
    found: dict[str, Any] = {"ours": mine}
    for peer, loss in {
        "torch": plain,
        "liger": liger(CHUNK),
        "liger_default_chunk": liger(1024),
    }.items():

        def step(loss=loss):
            hidden.grad = head.grad = None
            value = loss()
            value.backward()
            return value

        value = step().detach().numpy()
        actual = (value, (hidden.grad.numpy(), head.grad.numpy()))
        row = {"difference": difference(actual, expected)}
        del actual
        hidden.grad = head.grad = None
        row["bytes"] = peak_bytes(torch, step)
        row["bytes_ratio"] = mine / row["bytes"]
        found[peer] = row
    return found


def sharded_bytes() -> dict[str, int]:
    """Bytes on each of the devices of this process, the heads cut over all of them."""
    mesh = jax.make_mesh((DEVICES,), ("model",), axis_types=(AxisType.Auto,))
    whole = NamedSharding(mesh, PartitionSpec())
    cut = NamedSharding(mesh, PartitionSpec("model", None))
    program = compiled(ours("kl"), TOKENS, (whole, cut, whole, cut))
    return allocated(program)


def sharded() -> dict[str, Any]:
    """The number of devices is fixed when JAX starts: another process."""
    script = (
        "import json; from experiments.benchmark import vocabulary; "
        "print(json.dumps(vocabulary.sharded_bytes()))"
    )
    simulated = f"--xla_force_host_platform_device_count={DEVICES}"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "XLA_FLAGS": simulated, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=True,
    )
    each = json.loads(done.stdout.splitlines()[-1])
    one = allocated(compiled(ours("kl"), TOKENS))
    return {"device": each, "one": one, "bytes_ratio": each["bytes"] / one["bytes"]}


def main(argv: Sequence[str]) -> None:
    result = measurement.begin(OUT.value)
    result["sizes"] = {
        "tokens": TOKENS,
        "width": WIDTH,
        "teacher_width": TEACHER_WIDTH,
        "vocabulary": VOCABULARY,
    }
    if "torch" in PARTS.value:
        import importlib.metadata

        versions = {name: importlib.metadata.version(name) for name in ("torch", "liger-kernel")}
        result["torch"] = versions
    parts = {"jax": against_jax, "torch": against_torch}
    for part, measure in parts.items():
        if part in PARTS.value:
            result[f"against_{part}"] = {}
            for name in OURS:
                row = result[f"against_{part}"][name] = measure(name)
                print(part, name, json.dumps(row), flush=True)
    if "sharded" in PARTS.value:
        result["sharded"] = sharded()
        print("sharded", json.dumps(result["sharded"]), flush=True)
    measurement.end(result, OUT.value)


if __name__ == "__main__":
    launch(main)
