"""The numbers of torchdistill's modules and of plain PyTorch, on the same random arrays."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import losses
from kdjax.losses.compat import torchdistill

pytest.importorskip(
    "torchdistill", reason="torchdistill is not installed: pip install -e '.[peers]'"
)
torch = pytest.importorskip("torch")
mid_level = pytest.importorskip("torchdistill.losses.mid_level")
functional = torch.nn.functional

GENERATOR = np.random.default_rng(0)
LABELS = GENERATOR.integers(0, 7, 6)


def normal(*shape):
    return GENERATOR.normal(size=shape)


LOGITS = {"student": 2 * normal(6, 7), "teacher": 2 * normal(6, 7)}
VECTORS = {"student": normal(6, 5), "teacher": normal(6, 8)}
EQUAL_VECTORS = {"student": normal(6, 5), "teacher": normal(6, 5)}
MAPS = {"student": normal(6, 3, 4, 4), "teacher": normal(6, 5, 4, 4)}
EQUAL_MAPS = {"student": normal(6, 3, 4, 4), "teacher": normal(6, 3, 4, 4)}
VARIANCE = np.exp(normal(1, 3, 1, 1))
LINEAR = {"student": normal(6, 7), "teacher": normal(6, 7)}


def module(name, *arguments, targets=(), **options):
    """torchdistill's loss as a function of two tensors; modules are named "m"."""
    loss = getattr(mid_level, name)(*arguments, **options)

    def call(student, teacher):
        sides = ({"m": {"output": x}} for x in (student, teacher))
        return loss(*sides, *(torch.as_tensor(x) for x in targets))

    return call


LOGIT_PATHS = ("m", "output") * 2
PAIR = {"pair": {side: {"path": "m", "io": "output"} for side in ("student", "teacher")}}


def torch_vid(student, teacher):
    loss = mid_level.VIDLoss(PAIR)
    predicted = (student, torch.as_tensor(VARIANCE, dtype=student.dtype))
    return loss({"m": {"output": predicted}}, {"m": {"output": teacher}})


def torch_srd(student, teacher, **options):
    """The features are of the batch, the logits fixed."""
    loss = mid_level.SRDLoss("f", "output", "f", "output", *LOGIT_PATHS, **options)
    sides = [
        {"f": {"output": x}, "m": {"output": torch.as_tensor(LINEAR[side], dtype=x.dtype)}}
        for side, x in (("student", student), ("teacher", teacher))
    ]
    return loss(*sides)


def srd(student, teacher, **options):
    linear = (jnp.asarray(LINEAR[side], student.dtype) for side in ("student", "teacher"))
    return torchdistill.srd_loss(student, teacher, *linear, **options)


def torch_ft(p, reduction):
    loss = mid_level.FTLoss(p, reduction, "m", "m")
    return lambda s, t: loss({"m": {"output": s}}, {"m": {"output": t}})


def torch_fsp(student, teacher):
    """The first layer is the map, the second a part of it, of another size in each network."""
    path = {"path": "m", "io": "output"}, {"path": "n", "io": "output"}
    sides = zip(("first", "second") * 2, ("student",) * 2 + ("teacher",) * 2, path * 2)
    loss = mid_level.FSPLoss({"pair": {f"{side}_{layer}": p for layer, side, p in sides}})
    students = {"m": {"output": student}, "n": {"output": student[:, :2, :3]}}
    return loss(students, {"m": {"output": teacher}, "n": {"output": teacher[:, :2, :, 1:]}})


def fsp(student, teacher):
    return torchdistill.fsp_loss(
        student, student[:, :2, :3], teacher, jnp.asarray(teacher)[:, :2, :, 1:]
    )


def torch_jsd(beta):
    def loss(student, teacher):
        q, p = student.softmax(-1), teacher.softmax(-1)
        mixture = beta * p + (1 - beta) * q
        of_teacher = (p * (p / mixture).log()).sum(-1)
        return (beta * of_teacher + (1 - beta) * (q * (q / mixture).log()).sum(-1)).mean()

    return loss


def torch_info_nce(student, teacher):
    scores = functional.normalize(student) @ functional.normalize(teacher).T / 0.07
    target = torch.arange(len(scores))
    return (
        functional.cross_entropy(scores, target) + functional.cross_entropy(scores.T, target)
    ) / 2


def info_nce(student, teacher):
    return losses.clip_info_nce(
        losses.l2_normalize(student), losses.l2_normalize(teacher), scale=1 / 0.07
    ).mean()


def cosine(student, teacher):
    """The diagonal of the cosines of all pairs of both."""
    both = losses.cosine_gram(jnp.concatenate([student, teacher]))
    return 1 - jnp.diagonal(both, offset=len(student)).mean()


def torch_kl(student, teacher, log_target=True):
    q, p = student.log_softmax(-1), teacher.log_softmax(-1)
    return functional.kl_div(q, p, reduction="batchmean", log_target=log_target)


def labelled(loss, **options):
    return lambda s, t: loss(s, t, jnp.asarray(LABELS), **options)


def smoothed(student, teacher):
    return losses.cross_entropy(student, jnp.asarray(LABELS), label_smoothing=0.1).mean()


def with_options(loss, **options):
    return functools.partial(loss, **options)


# {name: (arrays, ours, theirs)}
CASES = {}
for reduction in ("batchmean", "mean", "sum"):
    for ours, theirs in (("kd_loss", "KDLoss"), ("logit_std_kd_loss", "LogitStdKDLoss")):
        if theirs != "KDLoss" and reduction != "batchmean":
            continue  # one code with KDLoss
        options = {"temperature": 3.0, "alpha": 0.3, "beta": 0.4, "reduction": reduction}
        CASES[f"{theirs} {reduction}"] = (
            LOGITS,
            labelled(getattr(torchdistill, ours), **options),
            module(theirs, *LOGIT_PATHS, targets=(LABELS,), **options),
        )
for alpha in (0.0, 0.3):
    options = {"temperature": 3.0, "alpha": alpha}
    CASES[f"KDLoss alpha={alpha}"] = (
        LOGITS,
        labelled(torchdistill.kd_loss, **options),
        module("KDLoss", *LOGIT_PATHS, targets=(LABELS,), **options),
    )
options = {"beta": 0.7, "gamma": 1.3, "tau": 2.0}
CASES["DISTLoss"] = (
    LOGITS,
    with_options(torchdistill.dist_loss, **options),
    module("DISTLoss", *LOGIT_PATHS, **options),
)
for mode in ("code", "paper"):
    CASES[f"ATLoss {mode}"] = (
        MAPS,
        with_options(torchdistill.at_loss, mode=mode),
        module("ATLoss", PAIR, mode=mode),
    )
for reduction in ("batchmean", "sum"):
    CASES[f"SPKDLoss {reduction}"] = (
        MAPS,
        with_options(torchdistill.spkd_loss, reduction=reduction),
        module("SPKDLoss", "m", "m", reduction),
    )
    for kernel in ({"type": "gaussian", "gamma": 0.3, "max_p": 3}, {"type": "bilinear"}):
        options = {"kernel_type" if k == "type" else k: v for k, v in kernel.items()}
        CASES[f"CCKDLoss {kernel['type']} {reduction}"] = (
            VECTORS,
            with_options(torchdistill.cckd_loss, reduction=reduction, **options),
            module("CCKDLoss", "m", "m", kernel, reduction),
        )
for reduction in ("mean", "sum"):
    options = {"dist_factor": 0.5, "angle_factor": 2.0, "reduction": reduction}
    CASES[f"RKDLoss {reduction}"] = (
        MAPS,
        with_options(torchdistill.rkd_loss, **options),
        module("RKDLoss", "m", "m", **options),
    )
for p, reduction in ((1, "mean"), (1, "sum"), (2, "sum"), (3, "mean")):
    CASES[f"FTLoss p={p} {reduction}"] = (
        EQUAL_MAPS,
        with_options(torchdistill.ft_loss, p=p, reduction=reduction),
        torch_ft(p, reduction),
    )
for exponent, reduction in ((1.0, "batchmean"), (4.0, "mean"), (0.5, "sum")):
    options = {"exponent": exponent, "temperature": 2.0, "reduction": reduction}
    CASES[f"SRDLoss {exponent} {reduction}"] = (
        EQUAL_VECTORS,
        with_options(srd, **options),
        with_options(torch_srd, **options),
    )
CASES |= {
    "FSPLoss": (EQUAL_MAPS, fsp, torch_fsp),
    "PKTLoss": (VECTORS, torchdistill.pkt_loss, module("PKTLoss", *LOGIT_PATHS)),
    "VIDLoss": (
        EQUAL_MAPS,
        lambda s, t: torchdistill.vid_loss(s, jnp.asarray(VARIANCE, s.dtype), t),
        torch_vid,
    ),
    "forward KL": (LOGITS, lambda s, t: losses.kl_divergence(t, s).mean(), torch_kl),
    "reverse KL": (
        LOGITS,
        lambda s, t: losses.reverse_kl(t, s).mean(),
        lambda s, t: torch_kl(t, s),
    ),
    "Jensen-Shannon": (LOGITS, lambda s, t: losses.generalized_jsd(t, s).mean(), torch_jsd(0.5)),
    "generalized Jensen-Shannon": (
        LOGITS,
        lambda s, t: losses.generalized_jsd(t, s, beta=0.2).mean(),
        torch_jsd(0.2),
    ),
    "cross-entropy with label smoothing": (
        LOGITS,
        smoothed,
        lambda s, t: functional.cross_entropy(s, torch.as_tensor(LABELS), label_smoothing=0.1),
    ),
    "cosine": (
        EQUAL_VECTORS,
        cosine,
        lambda s, t: 1 - functional.cosine_similarity(s, t).mean(),
    ),
    "InfoNCE": (EQUAL_VECTORS, info_nce, torch_info_nce),
}


@pytest.mark.filterwarnings("ignore:reduction. 'mean' divides:UserWarning")
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", CASES)
def test_value_and_gradient_are_those_of_pytorch(name, dtype):
    arrays, ours, theirs = CASES[name]
    student, teacher = (arrays[side].astype(dtype) for side in ("student", "teacher"))
    tensor = torch.tensor(student, requires_grad=True)
    expected = theirs(tensor, torch.tensor(teacher))
    expected.backward()
    with jax.enable_x64(dtype == "float64"):
        value, gradient = jax.jit(jax.value_and_grad(ours))(jnp.asarray(student), teacher)
    assert value.dtype == gradient.dtype == dtype
    rtol = 1e-8 if dtype == "float64" else 1e-4
    np.testing.assert_allclose(value, expected.item(), rtol=rtol)
    recorded = tensor.grad.numpy()
    # An element that is nearly 0 is what rounding leaves of large ones.
    atol = 0.1 * rtol * np.abs(recorded).max()
    np.testing.assert_allclose(gradient, recorded, rtol=rtol, atol=atol)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_contrast_over_two_steps_is_that_of_torchdistill(dtype):
    batch, features, examples, negatives = 3, 4, 16, 5
    # Numbers that its float32 buffer of parameters holds exactly.
    options = {"temperature": 0.25, "momentum": 0.5}
    generator = np.random.default_rng(1)
    torch.manual_seed(1)
    peer = mid_level.CRDLoss("m", "e", "m", features, examples, negatives, examples, **options)
    peer = peer.to(getattr(torch, dtype))
    rtol = 1e-8 if dtype == "float64" else 1e-4
    with jax.enable_x64(dtype == "float64"):
        memories = [jnp.array(peer.memory_v1.numpy()), jnp.array(peer.memory_v2.numpy())]
        normalizers = (None, None)
        for _ in range(2):
            pairs = generator.permuted(np.tile(np.arange(examples), (batch, 1)), axis=1)
            pairs = pairs[:, : negatives + 1]
            pairs[:, 0] = generator.permutation(examples)[:batch]
            student, teacher = generator.normal(size=(2, batch, features)).astype(dtype)
            sides = [torch.tensor(x, requires_grad=True) for x in (student, teacher)]
            v1, v2 = (functional.normalize(x) for x in sides)
            supplement = {"pos_idx": torch.tensor(pairs[:, 0]), "contrast_idx": torch.tensor(pairs)}
            expected = peer(
                {"m": {"output": v1}, "e": {"input": supplement}}, {"m": {"output": v2}}
            )
            expected.backward()

            def loss(sides, pairs=pairs, memories=memories, normalizers=normalizers):
                return torchdistill.crd_loss(
                    *map(losses.l2_normalize, sides),
                    pairs,
                    *memories,
                    *normalizers,
                    num_samples=examples,
                    temperature=0.25,
                )

            value, gradients = jax.jit(jax.value_and_grad(loss))((student, teacher))
            np.testing.assert_allclose(value, expected.item(), rtol=rtol)
            for gradient, side in zip(gradients, sides, strict=True):
                recorded = side.grad.numpy()
                atol = 0.1 * rtol * np.abs(recorded).max()
                np.testing.assert_allclose(gradient, recorded, rtol=rtol, atol=atol)
            memories = [
                losses.crd_update_bank(memory, pairs[:, 0], losses.l2_normalize(side), momentum=0.5)
                for memory, side in zip(memories, (student, teacher), strict=True)
            ]
            normalizers = tuple(z.item() for z in peer.params[2:4])


def test_their_draw_of_candidates_does_not_run():
    peer = SimpleNamespace(alias=torch.zeros(3), probs=torch.ones(3))
    with pytest.raises(AttributeError, match="prob"):
        mid_level.CRDLoss.draw(peer, 4)
