"""Other libraries' losses on features, call for call, against what those libraries returned."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import losses
from kdjax.losses.compat import repdistiller, torchdistill

GOLDENS = Path(__file__).parents[1] / "goldens"
HIGHEST = jax.lax.Precision.HIGHEST


def of_pair(loss, student="f_s", teacher="f_t", **options):
    def call(case, arrays):
        given = {name: case[key] for name, key in options.items()}
        return loss(arrays[student], case[teacher], **given)

    return call, (student,)


def of_layers(loss, *layers, wanted=None, **options):
    """Sum over layers, each a (student, teacher) pair of names."""

    def call(case, arrays):
        given = {name: case[key] for name, key in options.items()}
        student = [arrays.get(s, case[s]) for s, _ in layers]
        return sum(loss(student, [case[t] for _, t in layers], **given))

    return call, wanted or tuple(s for s, _ in layers)


def regressor(maps, *weights):
    for number, weight in enumerate(weights):
        maps = jnp.einsum("oi,bihw->bohw", weight, maps, precision=HIGHEST)
        maps = maps if number == len(weights) - 1 else jax.nn.relu(maps)
    return maps


def vid(loss, prefix=""):
    weights = tuple(f"{prefix}w{i}" for i in (1, 2, 3))
    wanted = ("f_s", f"{prefix}w3", f"{prefix}log_scale")

    def call(case, arrays):
        case = {**case, **arrays}
        student, teacher = (jnp.moveaxis(case[x], 1, -1) for x in ("f_s", "f_t"))
        student = jnp.moveaxis(losses.match_spatial(student, teacher)[0], -1, 1)
        mean = regressor(student, *(case[name] for name in weights))
        return loss(mean, case["f_t"], case[f"{prefix}log_scale"])

    return call, wanted


def torchdistill_vid(mean, teacher, log_scale):
    variance = jax.nn.softplus(log_scale) + 1e-5
    return torchdistill.vid_loss(mean, variance[None, :, None, None], teacher)


def rkd(student="f_s", teacher="f_t"):
    def call(case, arrays):
        return torchdistill.rkd_loss(
            arrays[student],
            case[teacher],
            dist_factor=case.get("w_d", 25.0),
            angle_factor=case.get("w_a", 50.0),
            reduction="mean",
        )

    return call, (student,)


def activation_boundary(case, arrays):
    (scaled,) = repdistiller.ab_loss([arrays["f_s"]], [case["f_t"]], case["margin"])
    return scaled * len(case["f_t"]) * 1000 / 3


REP, TORCH = repdistiller, torchdistill
MAPS = ("f_s", "f_t")
# {golden: {result: [(call, arrays with a gradient)]}}
CALLS = {
    "00c-vector_feature_losses": {
        "hint": [of_pair(REP.hint_loss)],
        "cc": [of_pair(REP.correlation)],
        "pkt": [of_pair(REP.pkt, "g_s", "g_t"), of_pair(TORCH.pkt_loss, "g_s", "g_t")],
        "rkd": [of_pair(REP.rkd_loss, "g_s", "g_t"), rkd("g_s", "g_t")],
        "sp": [of_layers(REP.similarity, ("g_s", "g_t"))],
    },
    "00c-feature_map_losses": {
        "at": [of_layers(REP.attention, MAPS)],
        "nst": [of_layers(REP.nst_loss, ("p_s", "p_t"))],
        "ft": [of_pair(REP.factor_transfer, "p_s", "p_t")],
        "fsp": [of_layers(REP.fsp, ("q_s", "q_t"), ("p_s", "p_t"))],
        "ab": [of_layers(REP.ab_loss, ("q_s", "q_t"), ("p_s", "p_t"))],
        "vid": [vid(REP.vid_loss, "vid_")],
    },
    "00f-attention_transfer_loss": {"loss": [of_layers(REP.attention, MAPS, p="p")]},
    "00f-factor_transfer_loss": {"loss": [of_pair(REP.factor_transfer, p2="p2")]},
    "00f-fsp_loss": {
        "loss": [of_layers(REP.fsp, ("s_bottom", "t_bottom"), ("s_top", "t_top"))],
    },
    "00f-nst_mmd_loss": {"loss": [of_layers(REP.nst_loss, MAPS)]},
    "00f-similarity_preserving_loss": {
        "loss": [of_layers(REP.similarity, MAPS)],
    },
    "00f-pkt_loss": {"loss": [of_pair(REP.pkt), of_pair(TORCH.pkt_loss)]},
    "00f-rkd_loss": {
        "loss": [of_pair(REP.rkd_loss, w_d="w_d", w_a="w_a"), rkd()],
    },
    "00f-cc_adjacent_loss": {"loss": [of_pair(REP.correlation)]},
    "00f-vid_loss": {"loss": [vid(REP.vid_loss), vid(torchdistill_vid)]},
    "00f-activation_boundary_loss": {"loss": [(activation_boundary, ("f_s",))]},
}


def cases(stem):
    """The cases of a golden, as NumPy arrays, floats in float64, and Python numbers."""
    with np.load(GOLDENS / f"{stem}.npz") as arrays:
        found = {}
        for key in arrays:
            case, _, name = key.partition("_")
            value = arrays[key]
            if np.issubdtype(value.dtype, np.floating):
                value = value.astype(float)
            value = value if value.ndim else value.item()
            found.setdefault(case, {})[name] = value
    assert found
    return found.values()


@pytest.mark.parametrize("stem", CALLS)
def test_value_and_gradient_are_those_of_the_library(stem):
    calls = [(name, *call) for name, several in CALLS[stem].items() for call in several]
    with jax.enable_x64(True):
        for case in cases(stem):

            def every_call(case=case):
                results = []
                for _, call, wanted in calls:
                    of_wanted = jax.value_and_grad(lambda a, call=call: call(case, a))
                    results.append(of_wanted({name: case[name] for name in wanted}))
                return results

            for (name, _, wanted), (value, gradients) in zip(calls, jax.jit(every_call)()):
                alone = name == "loss"
                expected = case["loss" if alone else f"out64_{name}"]
                assert value.shape == ()
                np.testing.assert_allclose(value, np.squeeze(expected), rtol=1e-9, err_msg=name)
                for array in wanted:
                    recorded = case[f"grad_{array}" if alone else f"grad64_{name}__{array}"]
                    atol = 1e-9 * np.max(np.abs(recorded))
                    np.testing.assert_allclose(gradients[array], recorded, 1e-7, atol, err_msg=name)


def test_contrast_over_two_steps_is_that_of_the_library():
    with jax.enable_x64(True):
        for case in cases("00c-crd"):
            options = {"n_data": case["n_data"], "nce_t": case["nce_t"]}
            heads = ("w_s", "b_s", "w_t", "b_t")

            def embedded(case, step):
                return [
                    losses.l2_normalize(
                        jnp.matmul(case[f"f_{side}{step}"], case[f"w_{side}"].T, precision=HIGHEST)
                        + case[f"b_{side}"]
                    )
                    for side in "st"
                ]

            def loss(arrays, case=case, options=options, embedded=embedded):
                v1, v2 = embedded({**case, **arrays}, "")
                memories = case["memory_s"], case["memory_t"]
                value = repdistiller.crd_loss(v1, v2, case["contrast_idx"], *memories, **options)
                again = torchdistill.crd_loss(
                    v1,
                    v2,
                    case["contrast_idx"],
                    *memories,
                    num_samples=case["n_data"],
                    temperature=case["nce_t"],
                )
                return value, again

            run = jax.jit(jax.value_and_grad(loss, has_aux=True))
            (value, again), gradients = run({name: case[name] for name in ("f_s", *heads)})
            np.testing.assert_allclose(value, case["out64_loss"], rtol=1e-9)
            np.testing.assert_allclose(again, value, rtol=1e-12)
            for name, gradient in gradients.items():
                recorded = case[f"grad64_{name}"]
                np.testing.assert_allclose(gradient, recorded, rtol=1e-7, atol=1e-10, err_msg=name)

            @jax.jit
            def second(case=case, options=options, embedded=embedded):
                momentum = {"momentum": case["nce_m"]}
                memories = [
                    losses.crd_update_bank(case[f"memory_{side}"], case["idx"], v, **momentum)
                    for side, v in zip("st", embedded(case, ""), strict=True)
                ]
                z = case["out64_Z_s"], case["out64_Z_t"]
                later = embedded(case, "2")
                return repdistiller.crd_loss(
                    *later, case["contrast_idx2"], *memories, *z, **options
                )

            np.testing.assert_allclose(second(), case["out64_loss_step2"], rtol=1e-9)


F = jnp.array([[1.0, 0.0], [2.0, 1.0], [0.0, 3.0]])
G = jnp.array([[0.5, 1.0], [-1.0, 1.0], [1.0, 0.0]])


def test_layers_come_back_one_by_one_and_must_be_as_many():
    small, large = jnp.ones((2, 3, 4, 4)), jnp.arange(128.0).reshape(2, 1, 8, 8)
    for loss in (repdistiller.attention, repdistiller.nst_loss, repdistiller.similarity):
        first, second, again = jax.jit(
            lambda a, b, loss=loss: (*loss([a, b], [b, a]), *loss([a], [b]))
        )(small, large)
        assert first.shape == second.shape == ()
        np.testing.assert_allclose(first, again)
        with pytest.raises(ValueError, match="one number of layers, got 1 and 2"):
            loss([small], [large, small])
    maps = [jnp.ones((2, 3, 4, 4))] * 3
    assert len(jax.eval_shape(repdistiller.fsp, maps, maps)) == 2
    with pytest.raises(ValueError, match=r"\[batch, channels, height, width\], got shape \(3, 2\)"):
        repdistiller.attention([F], [G])


def test_boundaries_of_deeper_layers_weigh_twice_as_much():
    student, teacher = [jnp.full((2, 1, 1, 2), 0.5)] * 3, [-jnp.ones((2, 1, 1, 2))] * 3
    values = repdistiller.ab_loss(student, teacher)
    np.testing.assert_allclose(values, np.array([0.25, 0.5, 1.0]) * 2 * 2.25 * 3 / 1000, rtol=1e-6)


def test_the_mask_of_attention_is_a_length_in_the_paper_and_a_square_in_the_code():
    student = jnp.arange(1.0, 25.0).reshape(2, 3, 2, 2)
    teacher = jnp.flip(student, axis=(1, 2))
    squares = losses.attention_transfer(*(jnp.moveaxis(x, 1, -1) for x in (student, teacher))) * 4
    np.testing.assert_allclose(torchdistill.at_loss(student, teacher), squares.mean() / 4)
    paper = torchdistill.at_loss(student, teacher, mode="paper")
    np.testing.assert_allclose(paper, jnp.sqrt(squares).mean(), rtol=1e-6)


def test_equal_features_and_teachers_have_no_gradient():
    ones = jnp.ones((3, 4, 2, 2))  # its lengths are powers of two: no rounding, on either side
    logits = jnp.zeros((3, 2))

    def total(student, teacher):
        rows = (x.reshape(3, -1) for x in (student, teacher))
        return (
            torchdistill.at_loss(student, teacher, mode="paper")
            + torchdistill.cckd_loss(*rows, kernel_type="bilinear", reduction="sum")
            + torchdistill.ft_loss(student, teacher, p=2)
            + torchdistill.srd_loss(student, teacher, logits, logits, exponent=0.5)
            + torchdistill.vid_loss(student, ones, teacher)
        )

    gradients = jax.jit(jax.grad(total, argnums=(0, 1)))
    np.testing.assert_array_equal(gradients(ones, ones), 0)
    of_student, of_teacher = gradients(ones + jnp.arange(48.0).reshape(ones.shape), ones)
    assert np.all(np.isfinite(of_student) & (of_student != 0))
    np.testing.assert_array_equal(of_teacher, 0)


def test_torchdistill_takes_the_distance_of_correlations_not_its_square():
    u, v = (losses.l2_normalize(x) for x in (F, G))
    options = {"kernel_type": "gaussian", "gamma": 0.4, "max_p": 2}
    squared = losses.cc_taylor(u, v, gamma=0.4, order=2).mean()
    distance = torchdistill.cckd_loss(u, v, reduction="sum", **options)
    np.testing.assert_allclose(distance, 3 * jnp.sqrt(squared), rtol=1e-5)
    mean = torchdistill.cckd_loss(u, v, reduction="batchmean", **options)
    np.testing.assert_allclose(mean, distance / 9, rtol=1e-6)
    assert abs(torchdistill.cckd_loss(F, G, reduction="sum", **options) - distance) > 1


def test_torchdistill_divides_rows_of_similarities_by_their_sum():
    gram = [x @ x.T for x in (np.abs(F), np.abs(G))]
    student, teacher = (x / x.sum(1, keepdims=True) for x in gram)
    value = torchdistill.spkd_loss(jnp.abs(F), jnp.abs(G), reduction="sum")
    np.testing.assert_allclose(value, ((student - teacher) ** 2).sum(), rtol=1e-5)
    published = 9 * losses.similarity_preserving(jnp.abs(F), jnp.abs(G)).mean()
    assert abs(value - published) > 0.1


def test_the_logarithm_of_gaps_survives_large_powers():
    zeros = jnp.zeros((1, 2))
    value = torchdistill.srd_loss(1e4 * F, G, zeros, zeros, exponent=16.0)
    assert np.isfinite(value)
    gaps = np.sum(np.abs(1e4 * np.asarray(F, float) - np.asarray(G, float)) ** 16)
    np.testing.assert_allclose(value, 2 * np.log(gaps), rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: torchdistill.at_loss(jnp.ones((1, 1, 2, 2)), jnp.ones((1, 1, 4, 4))),
            "one height",
        ),
        (lambda: torchdistill.vid_loss(F, jnp.ones((3, 3)), G), r"broadcast to the shape \(3, 2\)"),
        (lambda: torchdistill.ft_loss(F, G, p=0.5), "p must be >= 1, got 0.5"),
        (lambda: repdistiller.rkd_loss(F, G, -1.0), "w_d must be finite and >= 0"),
        (lambda: repdistiller.hint_loss(F, G[:2]), r"got shape \(2, 2\)"),
        (
            lambda: repdistiller.crd_loss(F, G, jnp.zeros((3, 1), int), F, G),
            "candidates >= 2, got shape",
        ),
        (
            lambda: repdistiller.crd_loss(F, G, jnp.zeros((3, 2), int), F, G, -1.0),
            "z must be finite and > 0",
        ),
    ],
)
def test_what_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
