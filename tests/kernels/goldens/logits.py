"""The goldens of the losses on logits, the divergences, and the rankings."""

import jax
import jax.numpy as jnp

from kdjax import losses
from kernels.goldens.support import batch_loss, student_loss, token_loss


def entropy(logits):
    """What code that calls a cross-entropy a KL has left in: a constant of the teacher."""
    log_probs = jax.nn.log_softmax(logits)
    return -jnp.sum(jnp.exp(log_probs) * log_probs, axis=-1)


def distillm_forward_kl(teacher, student, case):
    return losses.forward_kl(teacher, student) + entropy(teacher)


def distillm_symmetric_kl(teacher, student, case):
    forward = distillm_forward_kl(teacher, student, case)
    return (1 - case["lam"]) * forward + case["lam"] * losses.reverse_kl(teacher, student)


def distillm_skewed_forward_kl(teacher, student, case):
    return losses.skewed_forward_kl(teacher, student, lam=case["lam"]) + entropy(teacher)


def distillm_skewed_reverse_kl(teacher, student, case):
    return losses.skewed_reverse_kl(teacher, student, lam=case["lam"])


def distillm_js_distance(teacher, student, case):
    return losses.generalized_jsd(teacher, student, beta=1 - case["lam"])


def trl_generalized_jsd(teacher, student, case):
    temperature = case["temperature"]
    return losses.generalized_jsd(teacher / temperature, student / temperature, beta=case["beta"])


def alpha_beta(official_special_cases):
    def divergence(teacher, student, case):
        return losses.alpha_beta_divergence(
            teacher,
            student,
            alpha=case["alpha"],
            beta=case["beta"],
            official_special_cases=official_special_cases,
        )

    return token_loss(divergence)


def standardized_dkd(student_logits, teacher_logits, labels, **hyperparameters):
    student, teacher = map(losses.standardize_logits, (student_logits, teacher_logits))
    return losses.dkd(student, teacher, labels, **hyperparameters)


def dist(**options):
    return lambda case: losses.dist(
        case["student_logits"],
        case["teacher_logits"],
        beta=case["beta"],
        gamma=case["gamma"],
        temperature=case["tau"],
        **options,
    )


def torchdistill(kernel):
    """alpha CE + (1 - alpha) T^2 KL, but the bare KL for alpha = 0."""

    def loss(case):
        soft = kernel(
            case["student_logits"], case["teacher_logits"], temperature=case["temperature"]
        ).mean()
        hard = losses.cross_entropy(case["student_logits"], case["labels"]).mean()
        if case["alpha"] == 0:
            return soft / case["temperature"] ** 2
        return case["alpha"] * hard + (1 - case["alpha"]) * soft

    return student_loss(loss)


def label_smoothing(case):
    return losses.cross_entropy(
        case["student_logits"],
        case["labels"],
        label_smoothing=0.1,
        smoothed_classes="others",
    ).mean()


def plackett_luce(case):
    results = batch_loss(losses.plackett_luce, "temperature", labels=True)(case)
    teacher = case["teacher_logits"]
    ranking = losses.teacher_optimal_ranking(teacher, case["labels"])
    weights = jax.nn.softmax(teacher / case["temperature"])
    results["ranking_best_first"] = ranking
    results["step_weights"] = jnp.take_along_axis(weights, ranking, axis=-1)
    return results


def gradient_alignment(case):
    cuts = [int(case["n_shared"]), int(case["n_shared"] + case["n_head"])]
    main, auxiliary = (jnp.split(case[key], cuts) for key in ("grad_ce", "grad_kd"))
    merged = jnp.concatenate(losses.gradient_align(main, auxiliary))
    return {"dot": jnp.vdot(case["grad_ce"], case["grad_kd"]), "merged": merged}


ADAPTERS = {
    "00a-alpha_beta_divergence": alpha_beta(official_special_cases=False),
    "00a-alpha_beta_official_special_cases": alpha_beta(official_special_cases=True),
    "00a-dist_loss": student_loss(dist()),
    "00a-dkd_loss": batch_loss(losses.dkd, "alpha", "beta", "temperature", labels=True),
    "00a-generalized_jsd": token_loss(trl_generalized_jsd),
    "00a-kd_loss": batch_loss(losses.kd, "temperature"),
    "00a-label_smoothing": student_loss(label_smoothing),
    "00a-logit_standardized_dkd": batch_loss(
        standardized_dkd, "alpha", "beta", "temperature", labels=True
    ),
    "00a-logit_standardized_kd": batch_loss(losses.logit_standardized_kd, "temperature"),
    "00a-nkd_loss": batch_loss(losses.nkd, "gamma", "temperature", labels=True),
    "00a-token_forward_kl": token_loss(distillm_forward_kl),
    "00a-token_js_distance": token_loss(distillm_js_distance),
    "00a-token_reverse_kl": token_loss(lambda t, s, case: losses.reverse_kl(t, s)),
    "00a-token_skewed_forward_kl": token_loss(distillm_skewed_forward_kl),
    "00a-token_skewed_reverse_kl": token_loss(distillm_skewed_reverse_kl),
    "00a-token_symmetric_kl": token_loss(distillm_symmetric_kl),
    "00a-token_tv_distance": token_loss(lambda t, s, case: losses.total_variation(t, s)),
    # torchdistill clamps the norms where DIST adds 1e-8 to their product.
    "00a-torchdistill_dist": student_loss(dist(epsilon=0.0)),
    "00a-torchdistill_kd": torchdistill(losses.kd),
    "00a-torchdistill_logit_std_kd": torchdistill(losses.logit_standardized_kd),
    "14-binary_kl": batch_loss(losses.binary_kl, "temperature"),
    "14-binary_kl_norm": batch_loss(losses.binary_kl_norm, "temperature"),
    "14-gradient_alignment": gradient_alignment,
    "29-plackett_luce_distillation_loss": plackett_luce,
}
