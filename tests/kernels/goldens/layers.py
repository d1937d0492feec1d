"""The goldens of the losses between layers of transformers."""

import jax.numpy as jnp

from kdjax.losses import layers
from kernels.goldens.support import loss_and_gradients


def tinybert(case):
    def attention(case):
        # The authors' masks are scores of -1e4, which their loss sets to 0 on both sides.
        student, teacher = case["att_s"], case["att_t"]
        return layers.tinybert_attention(student, teacher, where=student > -100).mean()

    def hidden(case):
        projected = jnp.matmul(case["rep_s"], case["w_fit"].T, precision="highest") + case["b_fit"]
        return layers.tinybert_hidden(projected, case["rep_t"]).mean()

    total = loss_and_gradients(lambda case: attention(case) + hidden(case), "att_s", "rep_s")
    return {**total(case), "loss_att": attention(case), "loss_rep": hidden(case)}


def minilm(case):
    return layers.minilm_relation(
        case["v_s"],
        case["v_t"],
        num_relation_heads=case["num_relation_heads"],
        where=case["mask"] == 1,
    ).mean()


ADAPTERS = {
    "00f-minilm_relation_loss": loss_and_gradients(minilm, "v_s"),
    "00f-tinybert_layer_loss": tinybert,
}
