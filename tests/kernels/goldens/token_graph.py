"""The goldens of graphs of tokens, which sum over tokens and average over images."""

import jax

from kdjax import losses
from kernels.goldens.support import loss_and_gradients


def adjacency(case):
    def graph(case):
        return losses.token_knn_adjacency(case["x"], k=int(case["k"]), sigma=case["sigma"])

    results = loss_and_gradients(lambda case: graph(case).sum(), "x")(case)
    return {**results, "adjacency": jax.jit(lambda x: graph(case.with_({"x": x})))(case["x"])}


def local(case):
    def loss(case, direction="forward"):
        student, teacher = (
            losses.token_knn_adjacency(x, k=int(case["k"]), sigma=case["sigma"])
            for x in (case["x_s"], case["x_t"])
        )
        return losses.token_local_loss(student, teacher, direction=direction).sum()

    results = loss_and_gradients(loss, "x_s")(case)
    return {**results, "loss_student_first": loss(case, "reverse")}


def global_(case):
    student, teacher = map(losses.l2_normalize, (case["x_s"], case["x_t"]))
    return losses.info_nce(student, teacher, temperature=case["tau"]).sum()


def inner(case):
    return losses.inner_context_loss(case["x_s"], case["x_t"]).mean()


ADAPTERS = {
    "07-inner_context_loss": loss_and_gradients(inner, "x_s"),
    "07-token_global_loss": loss_and_gradients(global_, "x_s"),
    "07-token_knn_adjacency": adjacency,
    "07-token_local_loss": local,
}
