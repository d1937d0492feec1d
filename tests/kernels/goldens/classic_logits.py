"""The goldens of teacher-free losses, correlations, re-weighted and adversarial temperatures."""

import jax
import jax.numpy as jnp

from kdjax.losses import correlations, logit_matching, logits, teacher_free, temperature
from kernels.goldens.support import batch_loss, loss_and_gradients, student_loss


def ctkd(case):
    def loss(case):
        scale = temperature.reversal_schedule(case["epoch"])
        theta = temperature.gradient_reversal(case["theta"], scale=scale)
        learned = temperature.learned_temperature(theta, start=case["t_start"], span=case["t_end"])
        student, teacher = case["student_logits"], case["teacher_logits"]
        return logits.kd(student, teacher, temperature=learned[0]).mean()

    results = loss_and_gradients(loss, "student_logits", "theta")(case)
    # Recorded from the decimal number, before theta was rounded to float32.
    theta = jnp.round(case["theta"], 6)
    learned = temperature.learned_temperature(theta, start=case["t_start"], span=case["t_end"])
    return {
        **results,
        "temperature": learned[0],
        "grl_lambda": temperature.reversal_schedule(case["epoch"]),
        "cosine_schedule_epochs_0_to_12": jax.vmap(temperature.reversal_schedule)(jnp.arange(13)),
    }


def correlation(kernel):
    return student_loss(
        lambda case: kernel(
            case["student_logits"], case["teacher_logits"], temperature=case["temperature"]
        ).mean()
    )


def mlkd_official_total(case):
    """The authors' total, in which masks scale means and the weak view is used throughout."""
    views = ("student_logits_weak", "student_logits_strong")
    base = case["temperature"]

    def of_view(kernel, student, teacher, *temperatures):
        def at(temperature):
            return kernel(student, teacher, temperature=temperature).mean()

        return jax.vmap(at)(jnp.array(temperatures, student.dtype)).sum()

    def terms(students):
        weak = students["student_logits_weak"], case["teacher_logits_weak"]
        strong = students["student_logits_strong"], case["teacher_logits_strong"]
        examples, classes = (mask.mean() for mask in correlations.mlkd_masks(weak[1]))
        hard = [logits.cross_entropy(students[view], case["labels"]).mean() for view in views]
        soft = examples * of_view(logits.kd, *weak, base, 3.0, 5.0, 2.0, 6.0)
        soft += of_view(logits.kd, *strong, base, 3.0, 5.0) + of_view(logits.kd, *weak, 2.0, 6.0)
        of_classes = of_view(correlations.class_correlation, *weak, base, 3.0, 5.0, 2.0, 6.0)
        of_batch = of_view(correlations.batch_correlation, *weak, base, 3.0, 5.0, 2.0, 6.0)
        result = {
            "loss_ce": case["ce_weight"] * sum(hard),
            "loss_kd": case["kd_weight"] * soft,
            "loss_cc": case["kd_weight"] * classes * of_classes,
            "loss_bc": case["kd_weight"] * examples * of_batch,
        }
        return sum(result.values()), result

    with_gradients = jax.jit(jax.value_and_grad(terms, has_aux=True))
    (loss, result), gradients = with_gradients({view: case[view] for view in views})
    results = {"loss": loss, **result, **{f"grad_{view}": gradients[view] for view in views}}
    if loss.dtype == jnp.float64:
        # The reference multiplies its correlations by float32 masks, which rounds them to float32
        # in a float64 run too. What they enter is not a float64 result.
        return {"grad_student_logits_strong": results["grad_student_logits_strong"]}
    return results


def tfkd(soft_loss):
    """(1 - alpha) CE + alpha multiplier / C times the mean of a loss: a mean over classes too."""

    def loss(case):
        hard = logits.cross_entropy(case["student_logits"], case["labels"]).mean()
        soft = soft_loss(case).mean() / case["student_logits"].shape[-1]
        return (1 - case["alpha"]) * hard + case["alpha"] * case["multiplier"] * soft

    return student_loss(loss)


def virtual_teacher(case):
    return teacher_free.virtual_teacher_kd(
        case["student_logits"], case["labels"], temperature=case["temperature"], official=True
    )


def own_twin(case):
    return logits.kd(
        case["student_logits"], case["teacher_logits"], temperature=case["temperature"]
    )


def uskd(case):
    weak = jnp.matmul(
        case["weak_features"], case["weak_kernel"].T, precision=jax.lax.Precision.HIGHEST
    )
    weights = {name: case[name] for name in ("alpha", "beta", "mu")}
    return teacher_free.uskd(
        case["student_logits"],
        weak + case["weak_bias"],
        case["labels"],
        rank_with="official",
        **weights,
    ).mean()


def wsld(case):
    student, teacher, labels = (case[k] for k in ("student_logits", "teacher_logits", "labels"))
    soft = logit_matching.wsld(student, teacher, labels, temperature=case["temperature"]).mean()
    return case["alpha"] * soft


ADAPTERS = {
    "00a-ctkd_global_temperature": ctkd,
    "00a-mlkd_batch_correlation": correlation(correlations.batch_correlation),
    "00a-mlkd_class_correlation": correlation(correlations.class_correlation),
    "00a-mlkd_official_total": mlkd_official_total,
    "00a-tfkd_self": tfkd(own_twin),
    "00a-tfkd_virtual_teacher": tfkd(virtual_teacher),
    "00a-transformed_teacher_matching": batch_loss(
        logit_matching.transformed_teacher_matching, "exponent"
    ),
    "00a-uskd_loss": loss_and_gradients(
        uskd, "student_logits", "weak_features", "weak_kernel", "weak_bias"
    ),
    "00a-wsld_loss": student_loss(wsld),
}
