"""The goldens of co-training, of teachers that a gate picks, and of masks of features."""

import jax.numpy as jnp

from kdjax.losses import mutual, teacher_routing
from kdjax.networks import MaskNet, masked_feature
from kernels.goldens.support import channels_last, loss_and_gradients


def cotraining(case):
    together = jnp.moveaxis(case["logits"], 0, -2)
    loss = mutual.mutual_cotraining_loss(together, case["labels"], temperature=case["T"])
    return loss.mean(0).sum()


def routed(case):
    def loss(case):
        student, teachers = case["student_logits"], jnp.moveaxis(case["teacher_logits"], 0, 1)
        if student.ndim > 2:
            student, teachers = channels_last(student), jnp.moveaxis(teachers, (1, 2), (-2, -1))
        else:
            teachers = teachers.reshape(*student.shape[:1], -1, student.shape[-1])
        return teacher_routing.routed_topk_distillation(
            student, teachers, case["gate_probs"], num_selected=case["k"], temperature=case["T"]
        ).mean()

    results = loss_and_gradients(loss, "student_logits", value="out_loss")(case)
    chosen = teacher_routing.route_topk(case["gate_probs"], num_selected=case["k"])
    return {**results, "out_topk_indices": chosen}


def mask_net(case):
    heads, width, channels = case["num_heads"], case["hidden_dim"], case["x"].shape[-1]
    attention = {}
    weights = jnp.split(case["param_mha_in_proj_weight"], 3)
    biases = jnp.split(case["param_mha_in_proj_bias"], 3)
    for name, weight, bias in zip(("query", "key", "value"), weights, biases):
        attention[name] = {
            "kernel": weight.T.reshape(width, heads, -1),
            "bias": bias.reshape(heads, -1),
        }
    attention["out"] = {
        "kernel": case["param_mha_out_proj_weight"].T.reshape(heads, -1, width),
        "bias": case["param_mha_out_proj_bias"],
    }
    params = {
        "tokens": {"kernel": case["param_embed_weight"].T, "bias": case["param_embed_bias"]},
        "attention": attention,
        "mask": {"kernel": case["param_fc_weight"].T, "bias": case["param_fc_bias"]},
    }
    net = MaskNet(heads=heads, factor=channels // width)
    mask = net.apply({"params": params}, case["x"])
    return {"out_mask": mask, "out_masked": masked_feature(case["x"], mask)}


ADAPTERS = {
    "00-mask_net": mask_net,
    "00-mutual_cotraining_loss": loss_and_gradients(cotraining, "logits", value="out_loss"),
    "00-routed_topk_distillation": routed,
    "00-routed_topk_distillation_dense": routed,
}
