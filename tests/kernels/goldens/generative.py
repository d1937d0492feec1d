"""The goldens of dataset distillation, quantisation and residual quantisation."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from kdjax.losses import dataset_matching, quantization, residual_quantization
from kernels.goldens.support import loss_and_gradients


def gradient_matching(kernels, real, synthetic, wanted):
    """The adapter of {suffix: kernel} on numbered tensors; `wanted` names a gradient's key."""

    def adapter(case, count):
        real_side = [case[f"{real}{i}"] for i in range(count)]
        results = {}
        for suffix, kernel in kernels.items():
            loss, gradients = jax.value_and_grad(lambda x, k=kernel: k(x, real_side))(
                [case[f"{synthetic}{i}"] for i in range(count)]
            )
            results[f"loss{suffix}"] = loss
            for i, gradient in enumerate(gradients):
                results[wanted.format(suffix, synthetic, i)] = gradient
        return results

    return adapter


def rows(synthetic, real):
    """PyTorch's layout: the output units first."""
    return dataset_matching.gradient_matching(synthetic, real, output_axis=0)


def condensation(case):
    kernels = {
        "_ours": rows,
        "_mse": dataset_matching.gradient_matching_mse,
        "_cos": dataset_matching.gradient_matching_cosine,
    }
    adapter = gradient_matching(kernels, "real", "syn", "grad{}_{}{}")
    return adapter(case, int(case["num_tensors"]))


def first_gradient(kernel):
    """Of the gradients only that of the first tensor is recorded."""

    def adapter(case):
        compare = gradient_matching({"": kernel}, "g_real", "g_syn", "grad{}_{}{}")
        results = compare(case, int(case["n"]))
        return {key: results[key] for key in ("loss", "grad_g_syn0")}

    return adapter


def distribution_matching(synthetic, real):
    return loss_and_gradients(
        lambda case: dataset_matching.distribution_matching(case[synthetic], case[real]).sum(),
        synthetic,
        gradient="grad_syn" if synthetic == "syn_features" else "grad_{}",
    )


trajectory_matching = loss_and_gradients(
    lambda case: dataset_matching.trajectory_matching(
        case["theta_student"], case["theta_start"], case["theta_target"]
    ),
    "theta_student",
)


def fp8_round(case):
    return {
        f"{name}": quantization.round_to_float(case["x"], format=format)
        for name, format in (("e4m3fn", "e4m3"), ("e5m2", "e5m2"))
    }


def fake_quant(case):
    """Rows are the output channels of the weight [out, in]."""
    weight, step = case["weight"], case["ste_step"]
    results = {}
    for bits in (2, 3, 4, 8):
        for granularity, axis in (("tensor", None), ("channel", -1)):
            key = f"int{bits}_{granularity}"
            results[f"{key}_scale"] = quantization.symmetric_scale(
                weight, maximum=2 ** (bits - 1) - 1, axis=axis
            )
            results[f"{key}_deq"] = quantization.quantize_int(weight, bits=bits, axis=axis)
    for key, format in (("fp4_e2m1", "e2m1"), ("fp8_e4m3", "e4m3")):
        maximum = quantization.FLOAT_FORMATS[format].maximum
        results[f"{key}_channel_scale"] = quantization.symmetric_scale(
            weight, maximum=maximum, axis=-1
        )
        results[f"{key}_channel_deq"] = quantization.quantize_float(weight, format=format, axis=-1)

    def quantized(weight, step):
        return quantization.learned_step_quantize(weight, step, bits=4)

    output, pull = jax.vjp(quantized, weight, jnp.asarray(step, weight.dtype))
    of_weight, of_step = pull(case["cotangent"])
    return {
        **results,
        "ste_int4_out": output,
        "ste_grad_weight": of_weight,
        "lsq_grad_step": of_step,
    }


def residual_quantizer(case):
    assert case["sk_epsilon"] == 0
    names = [f"codebook{level}" for level in range(case["num_levels"])]

    def loss(arrays):
        quantized = residual_quantization.residual_quantize(
            arrays["x"],
            [arrays[name] for name in names],
            commitment=case["commitment"],
        )
        total = quantized.losses.mean()
        return total + jnp.sum(quantized.vectors * case["cotangent"]), (total, quantized)

    arrays = {name: case[name] for name in ("x", *names)}
    gradients, (total, quantized) = jax.jit(jax.grad(loss, has_aux=True))(arrays)
    balanced = residual_quantization.sinkhorn_assignment(
        residual_quantization.codebook_distances(case["x"], case["codebook0"]),
        epsilon=case["sinkhorn_eps"],
        iterations=case["sinkhorn_iters"],
    )
    return {
        "x_q": quantized.vectors,
        "loss": total,
        "codes": quantized.codes,
        "sinkhorn_Q_level0": balanced,
        **{f"grad_{name}": gradient for name, gradient in gradients.items()},
    }


def projection_head(flat, features):
    """LayerNorm(W2 gelu(h) + b2 + h), h = W1 x + b1, of flat parameters; four outputs."""
    size, width = features.shape[-1], 4
    shapes = [(width, size), (width,), (width, width), (width,), (width,), (width,)]
    cuts = np.cumsum([math.prod(shape) for shape in shapes])[:-1]
    first, bias, second, shift, scale, offset = (
        part.reshape(shape) for part, shape in zip(jnp.split(flat, cuts), shapes)
    )
    hidden = features @ first.T + bias
    output = jax.nn.gelu(hidden, approximate=False) @ second.T + shift + hidden
    centred = output - output.mean(-1, keepdims=True)
    deviation = jnp.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    return centred / deviation * scale + offset


def weighted_binary(logits, similarity):
    """LoRS' loss of similarity logits. The reference counts in float32."""
    positive = similarity > 0.5
    probabilities = jax.nn.sigmoid(logits)
    losses = -similarity * jnp.log(probabilities + 1e-6)
    losses -= (1 - similarity) * jnp.log(1 - probabilities + 1e-6)
    total = 0.0
    for where in (positive, ~positive):
        count = jnp.sum(where, dtype=jnp.float32) + jnp.float32(1e-6)
        total += jnp.sum(jnp.where(where, losses, 0.0)) / count.astype(logits.dtype)
    return total / 2


def projection_matching(case):
    """An image's and a text's head, trained together on a synthetic set of blended pairs."""
    start, target = (
        {name: case[f"{name}_{end}"] for name in ("img", "txt")} for end in ("start", "target")
    )
    lam = jnp.asarray(case["lam"])

    def inner_loss(parameters, batch):
        def embedding(name, features):
            blended = batch["lam"] * features + (1 - batch["lam"]) * features[batch["perm"]]
            output = projection_head(parameters[name], blended)
            return output / jnp.linalg.norm(output, axis=-1, keepdims=True)

        images = embedding("img", batch["img"] @ case["enc_weight"].T)
        texts = embedding("txt", batch["txt"])
        low_rank = batch["left"] @ batch["right"].T * (case["alpha"] / case["rank"])
        similarity = jnp.diag(batch["diag"]) + low_rank
        return weighted_binary(images @ texts.T / case["temperature"], similarity)

    names = ("img", "txt", "diag", "left", "right")
    data = {name: case[name] for name in names}
    rates = {name: jnp.asarray(case[f"lr_{name}"], lam.dtype) for name in ("img", "txt")}

    def batches(data):
        picked = {name: array[case["idx"]] for name, array in data.items()}
        return {**picked, "lam": lam, "perm": case["perm"]}

    matching = dataset_matching.trajectory_matching

    def by_branch(end):
        return {name: matching(end[name], start[name], target[name]) for name in end}

    def loss(data, rates, unroll, merge):
        end = unroll(batches(data), start, rates, inner_loss=inner_loss)
        value = matching(end, start, target) if merge else sum(by_branch(end).values())
        return value, end

    def gradients(unroll, merge):
        both = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
        # Compiled once for one call: not worth optimising.
        fast = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
        compiled = jax.jit(lambda *x: both(*x, unroll, merge), compiler_options=fast)
        return compiled(data, rates)

    constant = dataset_matching.unrolled_sgd_in_constant_memory
    (_, end), (of_data, of_rates) = gradients(constant, case["merge"])
    if case["merge"]:
        # The authors' code normalises each branch for the learning rates, merged or not.
        of_rates = gradients(constant, merge=False)[1][1]
    (value, _), exact = gradients(dataset_matching.unrolled_sgd, case["merge"])
    results = {"mtt_loss": value}
    for prefix, (data_side, rate_side) in (("tesla", (of_data, of_rates)), ("mtt", exact)):
        results |= {f"{prefix}_grad_{name}": data_side[name] for name in names}
        results |= {f"{prefix}_grad_lr_{name}": rate_side[name] for name in rate_side}
    for name, grand_loss in by_branch(end).items():
        results[f"{name}_grand_loss"] = grand_loss
        results[f"final_{name}_params"] = end[name]

    def observed(parameters, batch):
        one = jax.tree.map(lambda x: x[None], batch)
        following = constant(one, parameters, rates, inner_loss=inner_loss)
        return following, inner_loss(parameters, batch)

    results["inner_losses"] = jax.lax.scan(observed, start, batches(data))[1]
    return results


ADAPTERS = {
    "00e-distribution_matching": distribution_matching("syn_features", "real_features"),
    "00e-fp8_round": fp8_round,
    "00e-gradient_matching": condensation,
    "00e-residual_quantizer": residual_quantizer,
    "16-tesla_projection_matching": projection_matching,
    "33-fake_quant": fake_quant,
    "36-distribution_matching": distribution_matching("f_syn", "f_real"),
    "36-gradient_matching_cos": first_gradient(dataset_matching.gradient_matching_cosine),
    "36-gradient_matching_mse": first_gradient(dataset_matching.gradient_matching_mse),
    "36-gradient_matching_rowcos": first_gradient(rows),
    "36-trajectory_matching": trajectory_matching,
}
