"""The goldens of the losses on feature maps and of the networks that project them."""

import jax
import jax.numpy as jnp
import numpy as np

from kdjax.losses import feature_levels, features, pooling, preactivations
from kdjax.networks import projectors
from kernels.goldens.support import channels_last, loss_and_gradients


def maps(case, *names):
    return [channels_last(case[name]) for name in names]


def channels_first(maps):
    return jnp.moveaxis(maps, -1, 1)


def kernel_of_conv(weights):
    """A convolution's weights as Flax has them: (out, in, h, w) -> (h, w, in, out)."""
    return jnp.moveaxis(weights, (0, 1), (3, 2))


def normalisation(case, scale, bias):
    return {"scale": case[scale], "bias": case[bias]}


def trained(module, params, *inputs, **options):
    """What a module with batch normalisation returns while it trains."""
    output, _ = module.apply(
        {"params": params}, *inputs, train=True, mutable=["batch_stats"], **options
    )
    return output


def up_to_rounding(case, results, tolerance, *gradients):
    """The results, with some gradients compared here, in float32, and replaced by the recorded.

    Batch normalisation over a dozen values subtracts most of a gradient from itself: in float32
    what is left is exact to a few parts in a million of the largest element, not to its last bit.
    """
    for name in gradients:
        actual, recorded = results[name], case[name]
        if actual.dtype == jnp.float32:
            atol = tolerance * float(jnp.max(jnp.abs(recorded)))
            np.testing.assert_allclose(actual, recorded, rtol=1e-5, atol=atol, err_msg=name)
            results[name] = recorded
    return results


def with_gradients(function, *wanted):
    """The adapter of function(case) -> (loss, other results), compiled at once."""

    def adapter(case):
        def of_wanted(arrays):
            return function(case.with_(arrays))

        arrays = {name: case[name] for name in wanted}
        run = jax.jit(jax.value_and_grad(of_wanted, has_aux=True))
        (loss, results), gradients = run(arrays)
        return {"loss": loss, **results, **{f"grad_{name}": gradients[name] for name in wanted}}

    return adapter


def of_maps(kernel, student, teacher, **options):
    """The mean of kernel(student, teacher), with its gradient in the student's maps."""
    return loss_and_gradients(mean_of_maps(kernel, student, teacher, **options), student)


def mean_of_maps(kernel, student, teacher, **options):
    def loss(case):
        given = {name: case[key] for name, key in options.items()}
        return kernel(*maps(case, student, teacher), **given).mean()

    return loss


def fsp(case):
    student, teacher = (maps(case, f"{side}_bottom", f"{side}_top") for side in "st")
    results = {"fsp_s": features.fsp_matrix(*student), "fsp_t": features.fsp_matrix(*teacher)}
    return features.fsp(*student, *teacher).mean(), results


def vid(prefix="", epsilon=None):
    """The loss with its regressor; the larger map is pooled before."""

    def loss(case):
        student, teacher = pooling.match_spatial(*maps(case, "f_s", "f_t"))
        weights = {f"conv{i}": case[f"{prefix}w{i}"] for i in (1, 2, 3)}
        params = {name: {"kernel": w.T[None, None]} for name, w in weights.items()}
        params["log_scale"] = case[f"{prefix}log_scale"]
        head = projectors.VIDHead(teacher.shape[-1])
        mean, log_scale = head.apply({"params": params}, student)
        given = {} if epsilon is None else {"minimum_variance": case[epsilon]}
        return features.vid(mean, teacher, log_scale, **given).mean()

    return loss


def activation_boundary(case):
    def total(case):
        return batch * mean(case)

    mean = mean_of_maps(preactivations.activation_boundary, "f_s", "f_t", margin="margin")
    batch = len(case["f_s"])
    results = loss_and_gradients(total, "f_s")(case)
    return {**results, "loss_scaled": results["loss"] / batch * 3 / 1000}


def ofd_partial_l2(case):
    margin = preactivations.ofd_margin(case["bn_weight"], case["bn_bias"])
    loss = preactivations.ofd_partial_l2(*maps(case, "f_s", "f_t"), margin).mean()
    return loss, {"margin": margin}


def abf(case):
    params = {
        "conv1": {"kernel": kernel_of_conv(case["conv1_w"])},
        "norm1": normalisation(case, "bn1_g", "bn1_b"),
        "attention": {"kernel": kernel_of_conv(case["att_w"]), "bias": case["att_b"]},
        "conv2": {"kernel": kernel_of_conv(case["conv2_w"])},
        "norm2": normalisation(case, "bn2_g", "bn2_b"),
    }
    width, channels = len(case["conv1_w"]), len(case["conv2_w"])

    def loss(case):
        output, residual = trained(
            projectors.ABF(width, channels),
            params,
            *maps(case, "x", "residual"),
            size=(case["out_size"], case["out_size"]),
        )
        results = {"out": channels_first(output), "res_out": channels_first(residual)}
        return feature_levels.hcl(output, *maps(case, "target")).mean(), results

    results = with_gradients(loss, "x", "residual")(case)
    return up_to_rounding(case, results, 3e-6, "grad_x", "grad_residual")


def semckd_attention(case):
    students, teachers = ([f"{side}{i}" for i in range(case[f"n_{side}"])] for side in "st")
    params = {}
    for name, recorded in [("query", "q"), ("key", "k")]:
        for i in range(case["n_s" if recorded == "q" else "n_t"]):
            for layer, number in ((f"{name}{i}_hidden", 1), (f"{name}{i}", 2)):
                params[layer] = {
                    "kernel": case[f"{recorded}{i}_w{number}"].T,
                    "bias": case[f"{recorded}{i}_b{number}"],
                }
    module = projectors.SemCKDAttention(temperature=case["soft"])

    def loss(case):
        layers = [[case[name] for name in names] for names in (students, teachers)]
        attention = module.apply({"params": params}, *layers)
        return jnp.sum(attention**2), {"attention": attention}

    results = with_gradients(loss, "s0")(case)
    # Queries of these batches have one entry, hence are +-1: the gradient recorded is rounding.
    for gradient in (results.pop("grad_s0"), case["grad_s0"]):
        np.testing.assert_allclose(gradient, 0, atol=100 * jnp.finfo(gradient.dtype).eps)
    return results


def semckd(case):
    def loss(case):
        values, targets = (
            [[case[f"{side}{i}_{j}"] for j in range(case["n_t"])] for i in range(case["n_s"])]
            for side in "vg"
        )
        return feature_levels.semckd(values, targets, case["weight"]).mean()

    return loss_and_gradients(loss, "weight", "v0_0")(case)


def simkd(case):
    module = projectors.SimKDProjector(len(case["w3"]), reduction=case["factor"])

    def loss(case):
        student, teacher = pooling.match_spatial(*maps(case, "f_s", "f_t"))
        params = {f"conv{i}": {"kernel": kernel_of_conv(case[f"w{i}"])} for i in (1, 2, 3)}
        for i in (1, 2, 3):
            params[f"norm{i}"] = normalisation(case, f"g{i}", f"b{i}")
        output = trained(module, params, student)
        results = {
            "proj": channels_first(output),
            "target": channels_first(teacher),
            "logits": output.mean((1, 2)) @ case["cls_w"].T + case["cls_b"],
        }
        return features.simkd(output, teacher).mean(), results

    results = with_gradients(loss, "f_s", "w1")(case)
    return up_to_rounding(case, results, 3e-6, "grad_f_s", "grad_w1")


def benchmark_maps(case):
    """Six losses of one benchmark in one file, each with gradients of its own."""

    def boundaries(case):
        layers = [
            preactivations.activation_boundary(*maps(case, f"{layer}_s", f"{layer}_t")).mean()
            for layer in "qp"
        ]
        return 3 / 1000 * sum(2.0 ** (i - 1) * loss for i, loss in enumerate(layers))

    vid_weights = ("vid_w1", "vid_w2", "vid_w3", "vid_log_scale")
    losses = {
        "at": (mean_of_maps(features.attention_transfer, "f_s", "f_t"), ("f_s",)),
        "nst": (mean_of_maps(features.nst, "p_s", "p_t"), ("p_s",)),
        "ft": (mean_of_maps(features.factor_transfer, "p_s", "p_t"), ("p_s",)),
        "fsp": (
            lambda case: features.fsp(*maps(case, "q_s", "p_s", "q_t", "p_t")).mean(),
            ("q_s", "p_s"),
        ),
        "ab": (boundaries, ("q_s", "p_s")),
        "vid": (vid("vid_"), ("f_s", *vid_weights)),
    }

    def every_loss(arrays):
        results = {}
        for name, (loss, wanted) in losses.items():
            value, gradients = jax.value_and_grad(lambda w, loss=loss: loss(case.with_(w)))(
                {key: arrays[key] for key in wanted}
            )
            results[f"out_{name}"] = value
            results |= {f"grad_{name}__{key}": gradients[key] for key in wanted}
        return results

    return jax.jit(every_loss)({key: case[key] for _, wanted in losses.values() for key in wanted})


ADAPTERS = {
    "00c-feature_map_losses": benchmark_maps,
    "00d-spatial_attention_transfer": loss_and_gradients(
        mean_of_maps(features.attention_transfer, "student", "teacher"),
        "student",
        value="out_loss",
    ),
    "00f-abf_module": abf,
    "00f-activation_boundary_loss": activation_boundary,
    "00f-attention_transfer_loss": of_maps(features.attention_transfer, "f_s", "f_t", power="p"),
    "00f-factor_transfer_loss": of_maps(features.factor_transfer, "f_s", "f_t", order="p2"),
    "00f-fsp_loss": with_gradients(fsp, "s_bottom", "s_top"),
    "00f-hcl_loss": of_maps(feature_levels.hcl, "f_s", "f_t"),
    "00f-nst_mmd_loss": of_maps(features.nst, "f_s", "f_t"),
    "00f-ofd_partial_l2_loss": with_gradients(ofd_partial_l2, "f_s"),
    "00f-semckd_attention": semckd_attention,
    "00f-semckd_loss": semckd,
    "00f-simkd_projector": simkd,
    "00f-vid_loss": loss_and_gradients(vid(epsilon="eps"), "f_s", "log_scale", "w3"),
}
