"""The goldens of contrast, of distillation of image-text models, and of balance among experts.

Dense weights are recorded as PyTorch has them, [out, in]; queues as [features, queue].
"""

import jax
import jax.numpy as jnp
import numpy as np

from kdjax.losses import (
    clip_distillation,
    clip_features,
    contrastive,
    log_space,
    memory_bank,
    routing,
)
from kdjax.losses.contrastive import l2_normalize
from kernels.goldens.support import loss_and_gradients


def dense(features, weight, bias=0.0):
    return jnp.matmul(features, weight.T, precision=jax.lax.Precision.HIGHEST) + bias


def moving_average(old, new, momentum):
    return momentum * old + (1 - momentum) * new


def clip_infonce(case):
    scale = case["logit_scale"]
    return contrastive.clip_info_nce(case["image"], case["text"], scale=scale).mean()


def moco_infonce(case):
    weight = moving_average(case["w_k"], case["w_q"], case["momentum"])
    key = l2_normalize(dense(case["x_k"], weight))
    queue, temperature = case["queue"].T, case["temperature"]

    def loss(case):
        query = l2_normalize(dense(case["x_q"], case["w_q"]))
        return contrastive.moco_info_nce(query, key, queue, temperature=temperature).mean()

    query = l2_normalize(dense(case["x_q"], case["w_q"]))
    after, _ = memory_bank.enqueue(queue, jnp.array(0), key)
    assert len(queue) == case["queue_size"]
    return {
        **loss_and_gradients(loss, "x_q", "w_q", value="out_loss")(case),
        "out_logits": contrastive.queue_scores(query, key, queue, temperature=temperature),
        "out_queue_after": after.T,
        "out_w_k_after": weight,
    }


def albef_ita(case):
    momentum = case["momentum"]
    image_weight = moving_average(case["w_img_m"], case["w_img"], momentum)
    text_weight = moving_average(case["w_txt_m"], case["w_txt"], momentum)
    teacher_image = l2_normalize(dense(case["image"], image_weight))
    teacher_text = l2_normalize(dense(case["text"], text_weight))
    image_queue, text_queue = case["image_queue"].T, case["text_queue"].T
    assert len(image_queue) == case["queue_size"]

    def loss_at(case, alpha):
        return contrastive.albef_ita(
            l2_normalize(dense(case["image"], case["w_img"])),
            l2_normalize(dense(case["text"], case["w_txt"])),
            teacher_image,
            teacher_text,
            image_queue,
            text_queue,
            temperature=case["temp"],
            alpha=alpha,
        ).mean()

    def loss(case):
        # The reference has the hard part of the targets in float32 in its float64 run too.
        rounding = float(np.float32(1 - case["alpha"])) - (1 - case["alpha"])
        return loss_at(case, case["alpha"]) + rounding * loss_at(case, 0.0)

    wanted = ("image", "text", "w_img", "w_txt")
    images_after, pointer = memory_bank.enqueue(image_queue, jnp.array(0), teacher_image)
    texts_after, _ = memory_bank.enqueue(text_queue, jnp.array(0), teacher_text)
    return {
        **loss_and_gradients(loss, *wanted, value="out_loss")(case),
        "out_image_queue_after": images_after.T,
        "out_text_queue_after": texts_after.T,
        "out_queue_ptr_after": pointer[None],
        "out_w_img_m_after": image_weight,
        "out_w_txt_m_after": text_weight,
    }


def crd(case):
    temperature, momentum = case["nce_t"], case["nce_m"]
    num_examples, num_negatives = case["n_data"], case["nce_k"]
    # The reference's 1e-7 in the denominators, told in the docstring of `crd_nce`.
    epsilon = 1e-7
    noise = num_negatives / num_examples
    constant = 2 * num_negatives * jnp.log1p(epsilon / noise)

    def features(case, step):
        return (
            l2_normalize(dense(case[f"f_s{step}"], case["w_s"], case["b_s"])),
            l2_normalize(dense(case[f"f_t{step}"], case["w_t"], case["b_t"])),
        )

    def scores(case, step, banks):
        indices = case[f"contrast_idx{step}"]
        return [
            memory_bank.crd_scores(side, bank, indices, temperature=temperature)
            for side, bank in zip(features(case, step), reversed(banks), strict=True)
        ]

    def loss(case, step, banks, log_z):
        sides = zip(scores(case, step, banks), log_z, strict=True)
        total = sum(
            memory_bank.crd_nce(table, z, num_examples=num_negatives / (noise + epsilon))
            for table, z in sides
        )
        return (total + constant).mean()

    def updated(banks, step):
        pairs = zip(banks, features(case, step), strict=True)
        return [
            memory_bank.crd_update_bank(bank, case[f"idx{step}"], side, momentum=momentum)
            for bank, side in pairs
        ]

    banks = [case["memory_s"], case["memory_t"]]
    log_z = [
        memory_bank.crd_initial_log_z(table, num_examples=num_examples)
        for table in scores(case, "", banks)
    ]
    after_one = updated(banks, "")
    after_two = updated(after_one, "2")
    first = loss_and_gradients(
        lambda case: loss(case, "", banks, log_z),
        *("f_s", "f_t", "w_s", "b_s", "w_t", "b_t"),
        value="out_loss",
    )
    return {
        **first(case),
        "out_loss_step2": loss(case, "2", after_one, log_z),
        "out_Z_s": jnp.exp(log_z[0]),
        "out_Z_t": jnp.exp(log_z[1]),
        "out_memory_s_after1": after_one[0],
        "out_memory_t_after1": after_one[1],
        "out_memory_s_after2": after_two[0],
        "out_memory_t_after2": after_two[1],
    }


def clip_kd(case):
    def raw(case):
        teacher = case["image_t"], case["text_t"]
        return (case["image_s"], case["text_s"], *teacher)

    def projected(case):
        image, text, *teacher = raw(case)
        if "w_img" in case:
            image = dense(image, case["w_img"], case["b_img"])
            text = dense(text, case["w_txt"], case["b_txt"])
        return (image, text, *teacher)

    def task(case):
        image, text = l2_normalize(case["image_s"]), l2_normalize(case["text_s"])
        return contrastive.clip_info_nce(image, text, scale=case["logit_scale_s"])

    def ckd(case):
        scales = {
            "student_scale": case["logit_scale_s"],
            "teacher_scale": case["logit_scale_t"],
        }
        return clip_distillation.clip_kd_ckd(*raw(case), **scales)

    def icl(case):
        return clip_distillation.clip_kd_icl(*projected(case), scale=case["cross_scale"])

    def cross_kd(case):
        scales = {"scale": case["cross_scale"], "teacher_scale": case["logit_scale_t"]}
        return clip_distillation.clip_kd_cross_kd(*projected(case), **scales)

    def fd(case):
        return clip_features.clip_kd_fd(*projected(case))

    def gd(case):
        # The reference passes scales for temperatures.
        temperatures = {
            "student_temperature": case["logit_scale_s"],
            "teacher_temperature": case["logit_scale_t"],
        }
        return clip_features.clip_kd_gd(*projected(case), **temperatures)

    def afd(case):
        kernels = case["w_fi"].T, case["w_ft"].T
        biases = case["b_fi"], case["b_ft"]
        scale = case["fusion_scale"]
        return clip_features.clip_kd_afd(*raw(case), *kernels, *biases, scale=scale)

    scales = {task: "logit_scale_s", ckd: "logit_scale_s", icl: "cross_scale"}
    scales |= {cross_kd: "cross_scale", fd: None, gd: "logit_scale_s"}
    if "w_fi" in case:
        scales[afd] = "fusion_scale"
    case["fusion_scale"]  # recorded, but without a loss, where there is no fusion

    results = {}
    for kernel, scale in scales.items():
        name = kernel.__name__
        wanted = ("image_s", "text_s") + ((scale,) if scale else ())
        adapter = loss_and_gradients(
            lambda case, kernel=kernel: kernel(case).mean(),
            *wanted,
            value=f"out_{name}",
            gradient=f"grad_{name}__{{}}",
        )
        results |= adapter(case)
    return results


def tinyclip_affinity(case):
    def scales(case):
        return {"student_scale": case["logit_scale_s"], "teacher_scale": case["logit_scale_t"]}

    def loss(case):
        features = case["image_s"], case["text_s"], case["image_t"], case["text_t"]
        return clip_distillation.affinity_mimicking(*features, **scales(case)).mean()

    def log_probs(image, text, scale):
        return log_space.safe_log_softmax(case[scale] * dense(case[image], case[text]))

    def direction(first, second):
        teacher = log_probs(f"{first}_t", f"{second}_t", "logit_scale_t")
        student = log_probs(f"{first}_s", f"{second}_s", "logit_scale_s")
        return log_space.cross_entropy(teacher, student).mean()

    wanted = ("image_s", "text_s", "logit_scale_s")
    return {
        **loss_and_gradients(loss, *wanted, value="out_loss")(case),
        "out_i2t": direction("image", "text"),
        "out_t2i": direction("text", "image"),
    }


def moe_balance(case):
    num_selected = case["top_k"]
    num_experts = case["router_logits"].shape[-1]
    noise_scale = case["noise_std"] / num_experts
    noise, mask = case["noise"], case["mask"] == 1

    def switch(logits, num_selected=1):
        value = routing.switch_balance(logits, num_selected=num_selected)
        # The reference has the shares of tokens in float32 in its float64 run too.
        chosen = jax.nn.one_hot(jax.lax.top_k(logits, num_selected)[1], num_experts).sum(-2)
        share = jnp.mean(chosen.astype(logits.dtype), axis=-2)
        rounding = share.astype(jnp.float32).astype(logits.dtype) - share
        mean_probability = jax.nn.softmax(logits).mean(-2)
        return value + num_experts * jnp.sum(rounding * mean_probability, axis=-1)

    def switch_topk_mask(logits):
        return switch(logits, num_selected)

    def z_loss(logits):
        return routing.router_z_loss(logits)

    def mixtral(logits):
        return routing.mixtral_balance(logits, num_selected=num_selected)

    def mixtral_two_layers(logits):
        return mixtral(jnp.stack([logits, 0.5 * logits[::-1]]))

    def mixtral_masked(logits):
        return routing.mixtral_balance(logits, num_selected=num_selected, where=mask)

    def vmoe_importance(logits):
        return routing.importance_loss(logits)

    def vmoe_load(logits):
        return routing.load_loss(logits, noise, noise_scale=noise_scale, num_selected=num_selected)

    def vmoe_gshard(logits):
        return routing.switch_balance(logits + noise_scale * noise)

    results = {}
    for kernel in (switch, switch_topk_mask, z_loss, mixtral, mixtral_two_layers, mixtral_masked):
        results |= _with_gradient(kernel, f"out_{kernel.__name__}", case)
    for kernel in (vmoe_importance, vmoe_load, vmoe_gshard):
        name = f"out_{kernel.__name__}_per_group"
        # Op by op as the reference: its gradient of the load is a difference of tails of the
        # normal distribution, recorded in float32 alone, and compiled code rounds it otherwise.
        with jax.disable_jit(kernel is vmoe_load):
            results |= _with_gradient(kernel, name, case)
        results[name] = kernel(case["router_logits"])
    if case["router_logits"].dtype == jnp.float64:
        # What the reference's float64 run records of these went through float32: its value is
        # float32, its gradient differs from float64 by up to 1e-7.
        for key in [key for key in results if key.startswith("grad_mixtral")]:
            del results[key]
    return results


def _with_gradient(kernel, value, case):
    return loss_and_gradients(
        lambda case: kernel(case["router_logits"]).mean(),
        "router_logits",
        value=value,
        gradient=f"grad_{kernel.__name__}",
    )(case)


def load_balancing(case):
    mode = case["mode"].lower()

    def loss(case):
        return routing.load_balancing_loss(jax.nn.softmax(case["gate_logits"]), mode=mode)

    return loss_and_gradients(loss, "gate_logits", value="out_loss")(case)


ADAPTERS = {
    "00-load_balancing_loss": load_balancing,
    "00c-albef_ita": albef_ita,
    "00c-clip_infonce": loss_and_gradients(
        clip_infonce, "image", "text", "logit_scale", value="out_loss"
    ),
    "00c-clip_kd": clip_kd,
    "00c-crd": crd,
    "00c-moco_infonce": moco_infonce,
    "00c-moe_balance": moe_balance,
    "00c-tinyclip_affinity": tinyclip_affinity,
}
