"""The golden of on-policy self-distillation."""

from kdjax.losses import self_distillation, tokens
from kernels.goldens.support import loss_and_gradients


def opsd(case):
    temperature, where = case["temperature"], case["labels"] != -100
    options = {"beta": case["beta"], "top_k": case["teacher_top_k"] or None}

    def divergence(case):
        logits = case["student_logits"], case["teacher_logits"]
        values = self_distillation.opsd(*logits, temperature=temperature, **options)
        return tokens.token_mean(values, where=where)

    def sampled(case):
        arrays = case["student_logits"], case["teacher_logits"], case["token_ids"]
        values = tokens.sampled_token_reverse_kl(*arrays, temperature=temperature)
        return tokens.token_mean(values, where=where)

    names = {"value": "sampled_token_loss", "gradient": "sampled_token_grad"}
    return {
        **loss_and_gradients(divergence, "student_logits")(case),
        **loss_and_gradients(sampled, "student_logits", **names)(case),
    }


ADAPTERS = {"41-opsd_loss": opsd}
