"""The goldens of the terms that stand in for data."""

from kdjax.losses import data_free, logits
from kernels.goldens.support import channels_last, loss_and_gradients


def bn_statistics(case):
    return data_free.bn_statistics(
        channels_last(case["x"]), case["running_mean"], case["running_var"]
    )


def generator_terms(case):
    def one_hot(case):
        return data_free.one_hot_loss(case["logits"]).mean()

    def activation(case):
        return data_free.activation_loss(case["feat"]).mean()

    def balance(case):
        return data_free.class_balance(case["logits"])

    total = loss_and_gradients(
        lambda case: one_hot(case) + 0.1 * activation(case) + 5 * balance(case), "logits", "feat"
    )
    student, teacher, temperature = case["logits_s"], case["logits"], case["T"]
    jsd = data_free.clamped_jsd(student, teacher, temperature=temperature)
    return {
        **total(case),
        "loss_onehot": one_hot(case),
        "loss_activation": activation(case),
        "loss_balance": balance(case),
        "jsdiv_clamped": jsd.mean(),
        "kldiv": logits.kd(student, teacher, temperature=temperature).mean(),
    }


def total_variation(case):
    return data_free.image_tv_prior(channels_last(case["x"])).mean()


ADAPTERS = {
    "00f-bn_statistics_loss": loss_and_gradients(bn_statistics, "x"),
    "00f-dafl_generator_terms": generator_terms,
    "00f-image_tv_prior": loss_and_gradients(total_variation, "x"),
}
