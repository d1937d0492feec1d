"""The goldens of the losses on tokens."""

import jax
import jax.numpy as jnp

from kdjax.losses import divergences, sparse, sparse_targets, tokens


def losses_and_gradients(named, results=lambda case: {}):
    """The adapter of several losses of the student's logits, compiled together.

    named: {key of the value: (key of the gradient, loss(case))}; results(case): further ones.
    """

    def adapter(case):
        def loss_and_gradient(loss, student_logits):
            return jax.value_and_grad(lambda x: loss(case.with_({"student_logits": x})))(
                student_logits
            )

        @jax.jit
        def everything(student_logits):
            found = dict(results(case))
            for value, (gradient, loss) in named.items():
                found[value], found[gradient] = loss_and_gradient(loss, student_logits)
            return found

        return everything(case["student_logits"])

    return adapter


def per_token_jsd(case):
    student, teacher = (
        case[name] / case["temperature"] for name in ("student_logits", "teacher_logits")
    )
    return divergences.generalized_jsd(teacher, student, beta=case["beta"])


def mean_jsd(case):
    return tokens.token_mean(per_token_jsd(case), where=case["labels"] != -100)


def trl_results(case):
    """num_items_in_batch divides the sum over the tokens."""
    total, _ = tokens.token_total(per_token_jsd(case), where=case["labels"] != -100)
    return {
        "per_token": per_token_jsd(case),
        "loss_num_items": total / case["num_items_in_batch"],
    }


def distillm(divergence):
    def loss(case):
        values = divergence(case["teacher_logits"], case["student_logits"], case)
        return tokens.token_mean(values, where=case["labels"] != -100)

    return loss


def distillm_forward(teacher, student, case):
    return tokens.soft_cross_entropy(student, teacher)


def distillm_symmetric(teacher, student, case):
    lam = case["symmetric_lam"]
    reverse = divergences.reverse_kl(teacher, student)
    return (1 - lam) * tokens.soft_cross_entropy(student, teacher) + lam * reverse


def distillm_skewed_forward(teacher, student, case):
    skewed = divergences.skewed_forward_kl(teacher, student, lam=case["skew_lam"])
    return skewed + tokens.soft_cross_entropy(teacher, teacher)


DISTILLM = {
    "forward_kl": distillm_forward,
    "reverse_kl": lambda t, s, case: divergences.reverse_kl(t, s),
    "symmetric_kl": distillm_symmetric,
    "js_distance": lambda t, s, case: divergences.generalized_jsd(t, s, beta=1 - case["js_lam"]),
    "tv_distance": lambda t, s, case: divergences.total_variation(t, s),
    "skewed_forward_kl": distillm_skewed_forward,
    "skewed_reverse_kl": lambda t, s, case: divergences.skewed_reverse_kl(
        t, s, lam=case["skew_lam"]
    ),
}


def sparse_sum(kernel, missing):
    def loss(case):
        values = kernel(
            case["student_logits"],
            case["topk_ids"],
            case["topk_logprobs"],
            missing=missing,
            temperature=case["temperature"],
        )
        return tokens.token_total(values, where=case["mask"] > 0)[0]

    return loss


def ranking(kernel):
    """The mean over the pairs of the batch."""

    def loss(case):
        total, pairs = kernel(case["student_logits"], case["topk_ids"], case["topk_logprobs"])
        where = case["mask"] > 0
        count = tokens.token_total(pairs, where=where)[0]
        return tokens.token_total(total, where=where)[0] / jnp.maximum(count, 1)

    return loss


def dense_kl_sum(case):
    values = divergences.forward_kl(
        case["teacher_logits"] / case["temperature"], case["student_logits"] / case["temperature"]
    )
    return tokens.token_total(values, where=case["mask"] > 0)[0]


def sparse_targets_of(case):
    def target(missing):
        return sparse_targets.sparse_target_log_probs(
            case["topk_logprobs"], missing=missing, temperature=case["temperature"]
        )[0]

    return {f"target_logprobs_{missing}": target(missing) for missing in ("zero", "tail")}


SPARSE = {
    f"{name}_{missing}": sparse_sum(kernel, missing)
    for name, kernel in (
        ("kl", sparse.sparse_kl),
        ("js", sparse.sparse_js),
        ("tvd", sparse.sparse_tvd),
    )
    for missing in ("zero", "tail")
} | {"dense_kl": dense_kl_sum}
RANKINGS = {
    "hinge": ranking(sparse.hinge_ranking),
    "ranking": ranking(sparse.logistic_ranking),
}


def topk_jsd(case):
    log_q, log_p = sparse_targets.topk_student_support(
        case["student_logits"],
        case["teacher_logits"],
        k=case["k"],
        add_tail=case["add_tail"],
    )
    return divergences.generalized_jsd(log_p, log_q, beta=case["alpha"])


def topk_student_support(case):
    def total(student_logits):
        values = topk_jsd(case.with_({"student_logits": student_logits}))
        return values.sum(), values

    gradient, values = jax.jit(jax.grad(total, has_aux=True))(case["student_logits"])
    return {"per_token": values, "grad_of_sum": gradient}


ADAPTERS = {
    "00b-distillm_losses": losses_and_gradients(
        {name: (f"{name}_grad", distillm(divergence)) for name, divergence in DISTILLM.items()}
    ),
    "00b-generalized_jsd": losses_and_gradients(
        {"loss": ("grad_student_logits", mean_jsd)}, trl_results
    ),
    "00b-sparse_divergences": losses_and_gradients(
        {f"{name}_sum": (f"{name}_grad", loss) for name, loss in SPARSE.items()}
        | {name: (f"{name}_grad", loss) for name, loss in RANKINGS.items()},
        sparse_targets_of,
    ),
    "00b-topk_student_support": topk_student_support,
}
