"""Forward and backward of kernels against PyTorch's.

    pip install torch torchdistill
    python -m experiments.benchmark.kernels --out=results/benchmark/kernels.json

Each kernel and its counterpart (a module of torchdistill, or the plain PyTorch expression) get the
same tensors, channels where each library has them; value and gradient are compared before they are
timed. Both may use all cores of the process; they are run in turn, round by round, and what is
reported is the median of the ratios torch / kdjax (above 1: kdjax is faster). How kernels grow with
their arguments: `growth`.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments.benchmark import measurement
from experiments.command import launch
from kdjax import losses

ROUNDS = flags.DEFINE_integer("rounds", 15, "How many times everything is run in turn.")
OUT = flags.DEFINE_string("out", "", "A JSON file for the result.")
ONLY = flags.DEFINE_string("only", "", "Only kernels whose name holds this.")

LEAST_SECONDS = 0.05  # a timing repeats its function until it takes so long


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


class Case(NamedTuple):
    """A kernel's loss and its counterpart's, of {name: array}, differentiated in `student`."""

    arrays: dict[str, np.ndarray]
    loss: Callable[[dict[str, jax.Array]], jax.Array]
    peer: Callable[[Any, dict[str, Any]], Any]  # (torchdistill.losses.mid_level, tensors)
    maps: tuple[str, ...] = ()  # arrays that are feature maps, channels-last


def outputs(**tensors: Any) -> dict[str, dict[str, Any]]:
    """What torchdistill's modules read: the outputs of modules by their path."""
    return {path: {"output": tensor} for path, tensor in tensors.items()}


def pair(make: Callable[[Any], Any]) -> Callable[[Any, dict[str, Any]], Any]:
    """A torchdistill loss module on the outputs `s` and `t`."""

    def peer(modules, x):
        module = make(modules)
        return lambda: module(outputs(x=x["student"]), outputs(x=x["teacher"]))

    return peer


def feature_pairs() -> dict[str, Any]:
    side = {"io": "output", "path": "x"}
    return {"only": {"student": side, "teacher": side, "weight": 1}}


def logits(batch: int = 256, classes: int = 1000) -> dict[str, np.ndarray]:
    return {"student": 3 * normal(0, batch, classes), "teacher": 3 * normal(1, batch, classes)}


def vectors(batch: int, features: int) -> dict[str, np.ndarray]:
    return {"student": normal(0, batch, features), "teacher": normal(1, batch, features)}


def maps(batch: int = 64, size: int = 16, channels: int = 128) -> dict[str, np.ndarray]:
    shape = (batch, size, size, channels)
    return {"student": normal(0, *shape), "teacher": normal(1, *shape)}


def plain(expression: Callable[[Any, Any, Any], Any]) -> Callable[[Any, dict[str, Any]], Any]:
    """A plain PyTorch expression of (torch, student, teacher)."""

    def peer(modules, x):
        import torch

        return lambda: expression(torch, x["student"], x["teacher"])

    return peer


def kl(torch, p_logits, q_logits):
    p, q = torch.log_softmax(p_logits, -1), torch.log_softmax(q_logits, -1)
    return (p.exp() * (p - q)).sum(-1).mean()


def jsd(torch, student, teacher):
    p, q = torch.log_softmax(teacher, -1), torch.log_softmax(student, -1)
    m = torch.logsumexp(torch.stack([p, q]) - math.log(2), dim=0)
    return 0.5 * ((p.exp() * (p - m)).sum(-1) + (q.exp() * (q - m)).sum(-1)).mean()


def total_variation(torch, student, teacher):
    return 0.5 * (torch.softmax(student, -1) - torch.softmax(teacher, -1)).abs().sum(-1).mean()


def info_nce(torch, student, teacher):
    unit = torch.nn.functional.normalize
    scores = unit(student) @ unit(teacher).T / 0.07
    target = torch.arange(len(scores))
    entropy = torch.nn.functional.cross_entropy
    return 0.5 * (entropy(scores, target) + entropy(scores.T, target))


def nst(torch, student, teacher):
    unit = torch.nn.functional.normalize
    s, t = (unit(x.flatten(2), dim=2) for x in (student, teacher))

    def kernel(a, b):
        return torch.bmm(a, b.transpose(1, 2)).pow(2).mean()

    return kernel(t, t) + kernel(s, s) - 2 * kernel(s, t)


def similarity_preserving(torch, student, teacher):
    # torchdistill divides the rows by their L1 norm: another loss.
    def rows(features):
        flat = features.flatten(1)
        return torch.nn.functional.normalize(flat @ flat.T, dim=1)

    return (rows(student) - rows(teacher)).pow(2).sum() / len(student) ** 2


def pixelwise(torch, student, teacher):
    p, q = torch.log_softmax(teacher, 1), torch.log_softmax(student, 1)
    return (p.exp() * (p - q)).sum(1).mean()


def on_pair(
    kernel: Callable[..., jax.Array],
    first: str = "student",
    second: str = "teacher",
    **options: Any,
):
    return lambda x: kernel(x[first], x[second], **options).mean()


def crd_case() -> Case:
    batch, negatives, examples, width = 64, 1024, 10_000, 128

    def unit(x):
        return x / np.linalg.norm(x, axis=-1, keepdims=True)

    rng = np.random.default_rng(2)
    index = rng.choice(examples, (batch, negatives + 1)).astype(np.int32)
    arrays = {
        "student": unit(normal(0, batch, width)),
        "teacher": unit(normal(1, batch, width)),
        "index": index,
    }
    banks = [unit(normal(3, examples, width)), unit(normal(4, examples, width))]

    def loss(x):
        total = 0.0
        for features, bank in (("student", banks[1]), ("teacher", banks[0])):
            scores = losses.crd_scores(x[features], bank, x["index"], temperature=0.07)
            log_z = losses.crd_initial_log_z(scores, num_examples=examples)
            total += losses.crd_nce(scores, log_z, num_examples=examples).mean()
        return total

    def peer(modules, x):
        import torch

        module = modules.CRDLoss(
            student_norm_module_path="x",
            student_empty_module_path="index",
            teacher_norm_module_path="x",
            input_size=width,
            output_size=examples,
            num_negative_samples=negatives,
            num_samples=examples,
        )
        stored = [torch.from_numpy(bank) for bank in banks]
        index = x["index"].long()
        supplement = {"index": {"input": {"pos_idx": index[:, 0], "contrast_idx": index}}}

        def run():
            module.memory_v1, module.memory_v2 = (bank.clone() for bank in stored)
            module.params[2:4] = -1.0
            students = {**outputs(x=x["student"]), **supplement}
            return module(students, outputs(x=x["teacher"])).sum()

        return run

    return Case(arrays, loss, peer)


def cases() -> dict[str, Case]:
    paths = dict(
        student_module_path="x",
        student_module_io="output",
        teacher_module_path="x",
        teacher_module_io="output",
    )
    outs = dict(student_output_path="x", teacher_output_path="x")
    return {
        "kd": Case(
            logits(),
            lambda x: losses.kd(x["student"], x["teacher"], temperature=4.0).mean() / 16,
            pair(lambda m: m.KDLoss(**paths, temperature=4.0, alpha=0.0)),
        ),
        "logit_standardized_kd": Case(
            logits(),
            lambda x: (
                losses.logit_standardized_kd(x["student"], x["teacher"], temperature=2.0).mean() / 4
            ),
            pair(lambda m: m.LogitStdKDLoss(**paths, temperature=2.0, alpha=0.0)),
        ),
        "dist": Case(
            logits(),
            on_pair(losses.dist, temperature=2.0, epsilon=0.0),
            pair(lambda m: m.DISTLoss(**paths, tau=2.0)),
        ),
        "reverse_kl": Case(logits(), on_pair(losses.reverse_kl, "teacher", "student"), plain(kl)),
        "generalized_jsd": Case(
            logits(), on_pair(losses.generalized_jsd, "teacher", "student"), plain(jsd)
        ),
        "total_variation": Case(
            logits(), on_pair(losses.total_variation, "teacher", "student"), plain(total_variation)
        ),
        "attention_transfer": Case(
            maps(),
            on_pair(losses.attention_transfer),
            pair(lambda m: m.ATLoss(feature_pairs(), mode="code")),
            maps=("student", "teacher"),
        ),
        "similarity_preserving": Case(
            maps(size=8),
            on_pair(losses.similarity_preserving),
            plain(similarity_preserving),
            maps=("student", "teacher"),
        ),
        "rkd": Case(
            vectors(64, 256),
            lambda x: (
                25 * losses.rkd_distance(x["student"], x["teacher"]).mean()
                + 50 * losses.rkd_angle(x["student"], x["teacher"]).mean()
            ),
            pair(lambda m: m.RKDLoss(**outs, dist_factor=25, angle_factor=50, reduction="mean")),
        ),
        "pkt": Case(vectors(256, 512), on_pair(losses.pkt), pair(lambda m: m.PKTLoss(**paths))),
        "cc_taylor": Case(
            vectors(256, 128),
            # torchdistill has the norm of the gap over B^2, of vectors of length 1.
            lambda x: (
                jnp.sqrt(losses.cc_taylor(x["student"], x["teacher"]).mean()) / len(x["student"])
            ),
            _cckd,
        ),
        "vid": Case(
            {**maps(size=8), "scale": normal(2, 128)},
            lambda x: losses.vid(x["student"], x["teacher"], x["scale"]).mean(),
            _vid,
            maps=("student", "teacher"),
        ),
        "crd": crd_case(),
        "nst": Case(
            maps(batch=32, size=8), on_pair(losses.nst), plain(nst), maps=("student", "teacher")
        ),
        "pixelwise_kd": Case(
            maps(batch=16, size=32, channels=21),
            on_pair(losses.pixelwise_kd, temperature=1.0),
            plain(pixelwise),
            maps=("student", "teacher"),
        ),
        "info_nce": Case(
            vectors(256, 256),
            lambda x: losses.clip_info_nce(
                losses.l2_normalize(x["student"]),
                losses.l2_normalize(x["teacher"]),
                scale=1 / 0.07,
            ).mean(),
            plain(info_nce),
        ),
    }


def _cckd(modules, x):
    import torch

    config = {"type": "gaussian", "gamma": 0.4, "max_p": 2}
    module = modules.CCKDLoss("x", "x", config, reduction="batchmean")
    unit = torch.nn.functional.normalize
    return lambda: module(outputs(x=unit(x["student"])), outputs(x=unit(x["teacher"])))


def _vid(modules, x):
    import torch

    module = modules.VIDLoss(feature_pairs())
    variance = torch.log1p(torch.exp(x["scale"])) + 1e-5
    variance = variance.view(1, -1, 1, 1).expand_as(x["student"])
    return lambda: module(outputs(x=(x["student"], variance)), outputs(x=x["teacher"]))


def seconds(function: Callable[[], Any], repeats: int) -> float:
    began = time.perf_counter()
    for _ in range(repeats):
        function()
    return (time.perf_counter() - began) / repeats


def rested(function: Callable[[], Any], repeats: int) -> float:
    """Seconds a call, when the other side's threads, which spin for a while, have gone to sleep."""
    time.sleep(0.1)
    function()
    return seconds(function, repeats)


def repeats_of(function: Callable[[], Any]) -> int:
    function()
    return max(1, math.ceil(LEAST_SECONDS / max(seconds(function, 3), 1e-7)))


def against_torch(name: str, case: Case) -> dict[str, float]:
    """The median ratio of a kernel's counterpart to it, after both have given the same."""
    import torch
    from torchdistill.losses import mid_level

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    arrays = {k: jnp.asarray(v) for k, v in case.arrays.items()}
    rest = {k: v for k, v in arrays.items() if k != "student"}
    compiled = jax.jit(jax.value_and_grad(lambda s, rest: case.loss({"student": s, **rest})))

    def ours():
        return jax.block_until_ready(compiled(arrays["student"], rest))

    tensors = {}
    for key, array in case.arrays.items():
        if key in case.maps:
            array = np.ascontiguousarray(np.moveaxis(array, -1, 1))
        tensors[key] = torch.from_numpy(array)
    tensors["student"].requires_grad_(True)
    peer = case.peer(mid_level, tensors)

    def theirs():
        tensors["student"].grad = None
        value = peer()
        value.backward()
        return value

    value, gradient = ours()
    expected = theirs().item()
    reference = tensors["student"].grad.numpy()
    if "student" in case.maps:
        reference = np.moveaxis(reference, 1, -1)
    np.testing.assert_allclose(value, expected, rtol=2e-4, err_msg=name)
    scale = float(np.max(np.abs(reference)))
    np.testing.assert_allclose(gradient, reference, rtol=2e-3, atol=2e-4 * scale, err_msg=name)

    counts = repeats_of(ours), repeats_of(theirs)
    times = [(rested(ours, counts[0]), rested(theirs, counts[1])) for _ in range(ROUNDS.value)]
    ratio = measurement.quartiles([b / a for a, b in times])
    return {
        "kdjax_ms": 1000 * float(np.median([a for a, _ in times])),
        "torch_ms": 1000 * float(np.median([b for _, b in times])),
        "ratio": ratio.pop("median"),
        **ratio,
    }


def main(argv: Sequence[str]) -> None:
    import torch
    import torchdistill

    result = measurement.begin(OUT.value)
    result["torch"] = {"torch": torch.__version__, "torchdistill": torchdistill.__version__}
    rows = {name: case for name, case in cases().items() if ONLY.value in name}
    result["against_torch"] = {}
    for name, case in rows.items():
        row = result["against_torch"][name] = against_torch(name, case)
        print(name, json.dumps(row), flush=True)
    ratios = [row["ratio"] for row in result["against_torch"].values()]
    result["geometric_mean"] = float(np.exp(np.mean(np.log(ratios))))
    print(f"geometric mean {result['geometric_mean']:.2f}, least {min(ratios):.2f}")
    measurement.end(result, OUT.value)


if __name__ == "__main__":
    launch(main)
