"""Goldens of dual heads, of few-shot teachers and of active selection."""

import jax
import jax.numpy as jnp
import numpy as np

from kdjax import losses
from kdjax.data.selection import badge_embeddings, k_center_greedy, select
from kernels.goldens.support import Case


def published(parts, lam):
    return lam * parts[0].mean() + (1 - lam) * (parts[1].mean() + parts[2].mean())


def dho(case):
    names = ("ce_logits_labeled", "kd_logits_labeled", "kd_logits_unlabeled")

    def loss(*students):
        teachers = (case[f"teacher_logits_{part}"] for part in ("labeled", "unlabeled"))
        parts = losses.dho(*students, *teachers, case["labels"], temperature=case["temperature"])
        return published(parts, case["lam"]), [part.mean() for part in parts]

    gradients = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)
    (value, parts), grads = jax.jit(gradients)(*(case[name] for name in names))
    return {
        "loss": value,
        **dict(zip(("loss_ce", "loss_kd_labeled", "loss_kd_unlabeled"), parts)),
        **{f"grad_{name}": grad for name, grad in zip(names, grads)},
    }


def interpolation(case):
    ce, kd, labels = case["ce_logits"], case["kd_logits"], case["labels"]
    best = losses.search_alpha_beta(ce, kd, labels)
    probs = losses.dual_head_probs(ce, kd, alpha=0.4, beta=0.5)
    return {
        "best_acc": 100 * best.accuracy,
        "best_alpha": best.alpha,
        "best_beta": best.beta,
        "acc_alpha0p4_beta0p5": 100 * jnp.mean((probs.argmax(-1) == labels).astype(ce.dtype)),
        "probs_alpha0p4_beta0p5": probs,
    }


def tip_adapter(case):
    arrays = case["features"], case["adapter_keys"], case["cache_values"], case["text_weights"].T
    logits = losses.tip_adapter_logits(*arrays, alpha=case["alpha"], beta=case["beta"])
    return {"teacher_logits": logits}


def active_kd(case):
    options = {"alpha": 1 - case["alpha"], "beta": case["beta"]}  # of the other head
    probs, labeled_probs = (
        losses.dual_head_probs(case[f"{part}_ce"], case[f"{part}_kd"], **options)
        for part in ("pool", "labeled")
    )
    answers = {
        "probs": np.asarray(probs),
        "features": np.asarray(case["pool_features"]),
        "labeled_probs": np.asarray(labeled_probs),
        "labeled_features": np.asarray(case["labeled_features"]),
        "labels": np.asarray(case["labels"]),
        "rng": np.random.default_rng(0),
    }
    k = case["num_queries"]
    names = {"pcoreset": "pcoreset", "coreset": "coreset", "uncertainty": "entropy"}
    out = {f"out_selected_{name}": select(ours, k, **answers) for name, ours in names.items()}
    # Its first choice is arbitrary: the largest of norms that are all 1.
    embeddings = badge_embeddings(answers["probs"], answers["features"])
    first = int(np.asarray(case["out_selected_badge"])[0])
    out["out_selected_badge"] = k_center_greedy(
        embeddings, np.empty(0), k, metric="cosine", first=first
    )

    def loss(*students):
        teachers = case["teacher_labeled"], case["teacher_pool"]
        parts = losses.dho(*students, *teachers, case["labels"])
        return published(parts, 0.5), [part.mean() for part in parts]

    names = ("labeled_ce", "labeled_kd", "pool_kd")
    gradients = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)
    (value, parts), grads = jax.jit(gradients)(*(case[name] for name in names))
    out |= {"out_dho_loss": value}
    out |= dict(zip(("out_dho_ce", "out_dho_kd_labeled", "out_dho_kd_unlabeled"), parts))
    out |= {f"grad_{name}": grad for name, grad in zip(names, grads)}
    return out | clap(case)


def clap(case: Case):
    features, initial, labels = case["clap_x"], case["clap_w0"].T, case["labels"]
    scale = case["clap_scale"]
    before = losses.clip_zero_shot_logits(features, initial, scale=scale)
    weights = losses.clap_class_weights(before, labels)

    def loss(w):
        logits = losses.clip_zero_shot_logits(features, w.T, scale=scale)
        ce = losses.cross_entropy(logits, labels).mean()
        constraint = losses.clap_constraint(w.T, initial, weights).mean()
        return ce + constraint, (ce, constraint)

    (_, (ce, constraint)), grad = jax.value_and_grad(loss, has_aux=True)(case["clap_w"])
    if features.dtype == np.float64:
        # The recorded rows have unit norm to float32 rounding, which the kernel makes exact.
        for found, name in (
            (weights, "out_clap_class_weight"),
            (ce, "out_clap_ce"),
            (constraint, "out_clap_constraint"),
            (grad, "grad_clap_w"),
        ):
            np.testing.assert_allclose(found, case[name], rtol=1e-5, atol=1e-6)
        return {}
    return {
        "out_clap_class_weight": weights,
        "out_clap_ce": ce,
        "out_clap_constraint": constraint,
        "grad_clap_w": grad,
    }


ADAPTERS = {
    "02-dho_loss": dho,
    "02-dual_head_interpolation": interpolation,
    "02-tip_adapter_teacher_logits": tip_adapter,
    "20-active_kd": active_kd,
}
