"""The goldens of losses on maps, learning to rank, survival analysis, and their metrics."""

import jax
import jax.numpy as jnp
import numpy as np

from kdjax.evaluation import concordance, retrieval, segmentation
from kdjax.losses import dense, dense_relations, learning_to_rank, survival
from kernels.goldens.support import channels_last, loss_and_gradients


def on_maps(loss):
    """The adapter of loss(student, teacher, case), a scalar, of maps with the channels last."""
    return loss_and_gradients(
        lambda case: loss(channels_last(case["student"]), channels_last(case["teacher"]), case),
        "student",
        value="out_loss",
    )


def maps(kernel, **hyperparameters):
    """Mean of kernel(student, teacher), its hyperparameters by their name in the file."""

    def loss(student, teacher, case):
        options = {name: case[key] for name, key in hyperparameters.items()}
        return kernel(student, teacher, **options).mean()

    return on_maps(loss)


def skds_pixelwise(student, teacher, case):
    """Summed over the batch, and over the pixels divided by their number."""
    return dense.skds_pixelwise(student, teacher).mean() * student.shape[0]


def intra_class_feature_variation(student, teacher, case):
    num_classes = case["num_classes"]
    return dense_relations.intra_class_feature_variation(
        student, teacher, case["target"], num_classes=num_classes
    ).mean()


def lists(loss):
    """The adapter of loss(scores, relevance, where), a scalar."""

    def of_case(case):
        where = case["relevance"] != case["pad_value"]
        return loss(case["scores"], case["relevance"], where)

    return loss_and_gradients(of_case, "scores", value="out_loss")


def listnet(scores, relevance, where):
    return learning_to_rank.listnet(scores, relevance, epsilon=1e-10, where=where).mean()


def listmle(scores, relevance, where):
    """allRank's 1e-10 in the logarithm is an item that is ranked last and taught nowhere."""
    best = jnp.max(jnp.where(where, scores, -jnp.inf), axis=-1, keepdims=True)
    scores = jnp.concatenate([scores, best + jnp.log(1e-10)], axis=-1)
    last = jnp.full_like(best, -jnp.inf)
    relevance = jnp.concatenate([relevance, last], axis=-1)
    valid = jnp.concatenate([where, last > 0], axis=-1)
    where = jnp.concatenate([where, last < 0], axis=-1)
    return learning_to_rank.partial_listmle(scores, relevance, valid, where=where).mean()


def ranknet(scores, relevance, where):
    """The mean over the pairs of the batch, not of each list."""
    pairs = learning_to_rank.ordered_pairs(relevance, where=where)
    of_lists = learning_to_rank.ranknet(scores, relevance, where=where)
    return jnp.sum(jnp.sum(pairs, axis=(1, 2)) * of_lists) / jnp.sum(pairs)


def approx_ndcg(scores, relevance, where):
    """allRank's ideal DCG has discounts in float32, whatever comes in."""
    gains = jnp.sort(jnp.where(where, 2**relevance - 1, 0.0), axis=-1, descending=True)
    exact = np.log2(np.arange(2.0, gains.shape[-1] + 2))
    rounded = exact.astype(np.float32).astype(gains.dtype)
    ratio = jnp.sum(gains / exact.astype(gains.dtype), axis=-1) / jnp.sum(gains / rounded, axis=-1)
    return jnp.mean(ratio * learning_to_rank.approx_ndcg(scores, relevance, where=where))


def cox(case):
    def loss(case):
        time, event = case["time"], case["event"] == 1
        losses = survival.cox_partial_likelihood(case["log_hazard"], time, event, ties=case["ties"])
        averaged = case["reduction"] == "mean"
        return losses.sum() / (survival.num_event_times(time, event) if averaged else 1)

    results = loss_and_gradients(loss, "log_hazard", value="out_loss")(case)
    if case["log_hazard"].dtype == jnp.float64:
        # The reference computes in float32 whatever comes in: its "float64" gradient too.
        del results["grad_log_hazard"]
    return results


def discrete_survival(kernel):
    def loss(case):
        censored = case["censored"] == 1
        return kernel(case["logits"], case["label"], censored, alpha=case["alpha"]).mean()

    return loss_and_gradients(loss, "logits", value="out_loss")


def discrete_survival_ce(logits, labels, censored, *, alpha):
    """With the reference's log(S + 1e-7) in place of log S in the likelihood of the events."""
    losses = survival.discrete_survival_ce(logits, labels, censored, alpha=alpha)
    before = jnp.concatenate(
        [jnp.ones_like(logits[:, :1]), survival.hazards_to_survival(logits)], axis=1
    )
    before = jnp.take_along_axis(before, labels[:, None], axis=1)[:, 0]
    return losses - alpha * jnp.where(censored, 0.0, jnp.log1p(1e-7 / before))


def discrete_survival_nll(case):
    logits = case["logits"]
    return {
        **discrete_survival(survival.discrete_survival_nll)(case),
        "out_hazards": jax.nn.sigmoid(logits),
        "out_survival": survival.hazards_to_survival(logits),
        "out_risk": survival.survival_risk(logits),
    }


def concordance_index(case):
    time = case["time"]
    result = concordance.concordance_index(
        time, np.asarray(case["event"]) == 1, case["risk"], tied_tolerance=case["tied_tol"]
    )
    counts = {f"out_{name}": value for name, value in result._asdict().items() if name != "index"}
    return {"out_cindex": jnp.asarray(result.index, time.dtype), **counts}


def segmentation_metrics(case):
    predictions = jnp.argmax(channels_last(case["logits"]), axis=-1)
    counts = segmentation.segmentation_confusion(
        predictions, case["target"], case["num_classes"], ignore_label=case["ignore_label"]
    )
    results = {"out_confusion": counts}
    scores = {
        "iou": segmentation.iou,
        "f1": segmentation.dice,
        "acc": segmentation.pixel_accuracy,
    }
    dtype = case["logits"].dtype
    for name, score in scores.items():
        of_classes = 100 * score(counts, absent="zero")
        # The reference computes in float32, and rounds to two decimals.
        rounded = np.round(of_classes.astype(np.float32), 2)
        results[f"out_{name}_percent"] = jnp.asarray(rounded, dtype)
        mean = round(segmentation.class_mean(of_classes), 2)
        results[f"out_m{name}_percent"] = jnp.asarray(mean, dtype)
    return results


def retrieval_recall(case):
    scores = case["scores"]
    recalls = retrieval.recall_at_k(scores, case["text_image_id"], ks=(1, 5, 10))
    return {
        f"out_{direction}_recall_at_{k}": jnp.asarray(share, scores.dtype)
        for direction, shares in recalls._asdict().items()
        for k, share in shares.items()
    }


ADAPTERS = {
    "00d-approx_ndcg": lists(approx_ndcg),
    "00d-category_similarity_kd": maps(dense.category_similarity_kd, temperature="T"),
    "00d-channel_wise_distillation": maps(dense.channel_wise_distillation, temperature="T"),
    "00d-concordance_index": concordance_index,
    "00d-cox_partial_likelihood": cox,
    "00d-cross_image_relation_kd": maps(dense_relations.cross_image_relation_kd, temperature="T"),
    "00d-intra_class_feature_variation": on_maps(intra_class_feature_variation),
    "00d-listmle": lists(listmle),
    "00d-listnet": lists(listnet),
    "00d-pairwise_similarity_kd": maps(dense_relations.pairwise_similarity_kd),
    "00d-pixelwise_kd": maps(dense.pixelwise_kd, temperature="T"),
    "00d-ranknet": lists(ranknet),
    "00d-segmentation_metrics": segmentation_metrics,
    "00d-skds_pairwise": maps(dense_relations.skds_pairwise, scale="scale"),
    "00d-skds_pixelwise": on_maps(skds_pixelwise),
    "09-discrete_survival_ce": discrete_survival(discrete_survival_ce),
    "09-discrete_survival_nll": discrete_survival_nll,
    "26-retrieval_recall": retrieval_recall,
}
