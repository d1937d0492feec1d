"""The goldens of relations, transformer layers, data-free terms and architecture scores."""

from kdjax.losses import logits, relation_matrices, relations
from kernels.goldens.support import loss_and_gradients


def of_features(kernel, student="f_s", teacher="f_t", *, value="loss", gradient="grad_{}"):
    """Mean over the anchors of a relation of features [batch, ...]."""

    def loss(case):
        return kernel(case[student], case[teacher]).mean()

    return loss_and_gradients(loss, student, value=value, gradient=gradient)


def rkd(case):
    def weighed(case):
        distance = relations.rkd_distance(case["f_s"], case["f_t"]).mean()
        angle = relations.rkd_angle(case["f_s"], case["f_t"]).mean()
        return case["w_d"] * distance + case["w_a"] * angle

    results = loss_and_gradients(weighed, "f_s")(case)
    results["loss_distance"] = relations.rkd_distance(case["f_s"], case["f_t"]).mean()
    results["loss_angle"] = relations.rkd_angle(case["f_s"], case["f_t"]).mean()
    return results


def cc_taylor(case):
    options = {"gamma": case["gamma"], "order": case["p_order"]}
    adapter = of_features(lambda s, t: relations.cc_taylor(s, t, **options))
    return {**adapter(case), "corr_s": relation_matrices.taylor_correlation(case["f_s"], **options)}


def published_rkd(student, teacher):
    distance = relations.rkd_distance(student, teacher)
    return 25 * distance + 50 * relations.rkd_angle(student, teacher)


def feature_losses(case):
    temperature = case["temperature"]
    kernels = {
        "kd": ("logits_s", "logits_t", lambda s, t: logits.kd(s, t, temperature=temperature)),
        "hint": ("f_s", "f_t", lambda s, t: (s - t) ** 2),
        "cc": ("f_s", "f_t", relations.cc_adjacent),
        "pkt": ("g_s", "g_t", relations.pkt),
        "rkd": ("g_s", "g_t", published_rkd),
        "rkd_distance": ("g_s", "g_t", relations.rkd_distance),
        "rkd_angle": ("g_s", "g_t", relations.rkd_angle),
        "sp": ("g_s", "g_t", relations.similarity_preserving),
    }
    results = {}
    for name, (student, teacher, kernel) in kernels.items():
        adapter = of_features(
            kernel, student, teacher, value=f"out_{name}", gradient=f"grad_{name}__{{}}"
        )
        results |= adapter(case)
    # Recorded as an array of one element.
    results["out_sp"] = results["out_sp"][None]
    return results


ADAPTERS = {
    "00c-vector_feature_losses": feature_losses,
    "00f-cc_adjacent_loss": of_features(relations.cc_adjacent),
    "00f-cc_taylor_loss": cc_taylor,
    "00f-pkt_loss": of_features(relations.pkt),
    "00f-rkd_loss": rkd,
    "00f-similarity_preserving_loss": of_features(relations.similarity_preserving),
    "28-similarity_preserving": of_features(
        relations.similarity_preserving, "student_feat", "teacher_feat", value="out_loss"
    ),
}
