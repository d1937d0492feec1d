"""The goldens of scores of architectures and of the agreement of rankings."""

import jax
import jax.numpy as jnp
import scipy.stats

from kdjax.losses import logits, student_search, zero_cost
from kernels.goldens.support import channels_last, loss_and_gradients


def channel_correlation(case):
    student, teacher = map(channels_last, (case["f_s"], case["f_t"]))
    return student_search.channel_correlation(student, teacher).mean()


def relation_similarity(case):
    return student_search.relation_similarity(case["f_s"], case["f_t"]).mean()


def semantic_similarity(case):
    return student_search.semantic_similarity(case["g_s"], case["g_t"]).mean()


def zero_cost_proxies(case):
    arrays = {name: value for name, value in case.items() if isinstance(value, jax.Array)}
    return jax.jit(lambda arrays: proxies_of_perceptron(case.with_(arrays)))(arrays)


def proxies_of_perceptron(case):
    """With ReLUs, and weights [outputs, inputs]."""
    layers = range(case["n_layers"])
    weights = [case[f"w{k}"] for k in layers]
    biases = [case[f"b{k}"] for k in layers]
    inputs, labels = case["x"], case["y"]

    def activations(weights, inputs, biases=biases, shifts=None):
        """The outputs of all layers before the ReLUs; `shifts` are added to them."""
        found = []
        for k, (weight, bias) in enumerate(zip(weights, biases)):
            outputs = jnp.matmul(inputs, weight.T, precision="highest") + bias
            outputs = outputs if shifts is None else outputs + shifts[k]
            found.append(outputs)
            inputs = jnp.maximum(outputs, 0)
        return found

    def loss(weights, shifts=None):
        return logits.cross_entropy(activations(weights, inputs, shifts=shifts)[-1], labels).mean()

    def flow(weights):
        ones = jnp.ones((1, inputs.shape[1]), inputs.dtype)
        return activations(weights, ones, biases=[jnp.abs(b) for b in biases])[-1]

    gradients = jax.grad(loss)(weights)
    hidden = activations(weights, inputs)
    no_shifts = [jnp.zeros_like(h) for h in hidden]
    of_hidden = jax.grad(lambda shifts: loss(weights, shifts))(no_shifts)
    # The reference adds its layers in float32, in its run in float64 too.
    fisher = [
        zero_cost.fisher(h, g, weights_per_channel=w.shape[1]).sum().astype(jnp.float32)
        for h, g, w in zip(hidden, of_hidden, weights)
    ]
    jacobian = jax.grad(lambda x: activations(weights, x)[-1].sum())(inputs)
    return {
        "snip": sum(zero_cost.snip(weights, gradients)),
        "plain": sum(zero_cost.plain_saliency(weights, gradients)),
        "grad_norm": sum(zero_cost.grad_norm(gradients)),
        "l2_norm": sum(zero_cost.l2_norm(weights)),
        "grasp": sum(zero_cost.grasp(loss, weights)),
        "synflow": sum(zero_cost.synflow(flow, weights)),
        "fisher": sum(fisher).astype(inputs.dtype),
        "nwot": zero_cost.nwot(jnp.concatenate(hidden[:-1], axis=1)),
        "jacov": zero_cost.jacobian_covariance(jacobian),
        "epe_nas": zero_cost.epe_nas(jacobian, labels, num_classes=hidden[-1].shape[1]),
    }


def rank_consistency(case):
    true, predicted = case["true"], case["pred"]
    counts = [int(len(true) * share) for share in (0.1, 0.25, 0.5)]
    at_top = [student_search.precision_at_top_k(true, predicted, k=k) for k in counts]
    at_bottom = [student_search.precision_at_top_k(-true, -predicted, k=k) for k in counts]
    best = [student_search.best_rank_at_k(true, predicted, k=k) for k in counts]
    correlations = {
        "kendall": scipy.stats.kendalltau,
        "spearman": scipy.stats.spearmanr,
        "pearson": scipy.stats.pearsonr,
    }
    return {
        **{name: jnp.float32(of(true, predicted)[0]) for name, of in correlations.items()},
        "rank_difference": student_search.rank_difference(true, predicted),
        "p_at_top": jnp.stack(at_top),
        "p_at_bottom": jnp.stack(at_bottom),
        "best_rank_at_k": jnp.stack(best),
    }


ADAPTERS = {
    "24-channel_correlation_loss": loss_and_gradients(channel_correlation, "f_s"),
    "24-rank_consistency": rank_consistency,
    "24-relation_similarity": loss_and_gradients(relation_similarity, "f_s"),
    "24-semantic_similarity": loss_and_gradients(semantic_similarity, "g_s"),
    "24-zero_cost_proxies": zero_cost_proxies,
}
