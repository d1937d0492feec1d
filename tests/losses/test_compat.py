"""Other libraries' losses, call for call, against what those libraries returned."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import losses
from kdjax.losses.compat import distillm, mdistiller, repdistiller, torchdistill, trl

GOLDENS = Path(__file__).parents[1] / "goldens"


def torchdistill_kd(case, student):
    return torchdistill.kd_loss(
        student,
        case["teacher_logits"],
        case["labels"],
        temperature=case["temperature"],
        alpha=case["alpha"],
    )


def torchdistill_logit_std_kd(case, student):
    return torchdistill.logit_std_kd_loss(
        student,
        case["teacher_logits"],
        case["labels"],
        temperature=case["temperature"],
        alpha=case["alpha"],
    )


def torchdistill_dist(case, student):
    options = {name: case[name] for name in ("beta", "gamma", "tau")}
    return torchdistill.dist_loss(student, case["teacher_logits"], **options)


def mdistiller_kd(logit_stand):
    return lambda case, student: mdistiller.kd_loss(
        student, case["teacher_logits"], case["temperature"], logit_stand
    )


def mdistiller_dkd(logit_stand):
    return lambda case, student: mdistiller.dkd_loss(
        student,
        case["teacher_logits"],
        case["labels"],
        *(case[name] for name in ("alpha", "beta", "temperature")),
        logit_stand,
    )


def trl_jsd(case, student):
    options = {name: case[name] for name in ("beta", "temperature")}
    return trl.generalized_jsd_loss(student, case["teacher_logits"], case["labels"], **options)


def tokens(loss, *options):
    return lambda case, student: loss(
        student, case["teacher_logits"], case["labels"], *(case[name] for name in options)
    )


CALLS = {
    "torchdistill_kd": torchdistill_kd,
    "torchdistill_logit_std_kd": torchdistill_logit_std_kd,
    "torchdistill_dist": torchdistill_dist,
    "kd_loss": mdistiller_kd(logit_stand=False),
    "logit_standardized_kd": mdistiller_kd(logit_stand=True),
    "dkd_loss": mdistiller_dkd(logit_stand=False),
    "logit_standardized_dkd": mdistiller_dkd(logit_stand=True),
    "generalized_jsd": trl_jsd,
    "token_forward_kl": tokens(distillm.forward_kl),
    "token_reverse_kl": tokens(distillm.reverse_kl),
    "token_symmetric_kl": tokens(distillm.symmetric_kl, "lam"),
    "token_js_distance": tokens(distillm.js_distance, "lam"),
    "token_tv_distance": tokens(distillm.tv_distance),
    "token_skewed_forward_kl": tokens(distillm.skewed_forward_kl, "lam"),
    "token_skewed_reverse_kl": tokens(distillm.skewed_reverse_kl, "lam"),
}


@pytest.mark.parametrize("name", CALLS)
def test_value_and_gradient_are_those_of_the_library(name):
    with np.load(GOLDENS / f"00a-{name}.npz") as arrays, jax.enable_x64(True):
        number = 0
        while f"case{number}_loss" in arrays:
            prefix = f"case{number}_"
            case = {k.removeprefix(prefix): arrays[k] for k in arrays if k.startswith(prefix)}
            number += 1
            case = {k: v.item() if v.ndim == 0 else jnp.asarray(v) for k, v in case.items()}
            student, case["teacher_logits"] = (
                case[name].astype(float) for name in ("student_logits", "teacher_logits")
            )
            call = jax.jit(jax.value_and_grad(lambda s, case=case, loss=CALLS[name]: loss(case, s)))
            loss, gradient = call(student)
            np.testing.assert_allclose(loss, case["loss_f64"], rtol=1e-9)
            expected = case["grad_student_logits_f64"]
            np.testing.assert_allclose(gradient, expected, rtol=1e-8, atol=1e-12)
        assert number > 0


S, T = jnp.array([[2.0, 1.0, 0.0], [0.0, 3.0, 1.0]]), jnp.array([[0.0, 1.0, 2.0], [1.0, 1.0, 0.0]])
Y = jnp.array([0, 2])


def test_torchdistill_loses_the_squared_temperature_with_the_last_of_alpha():
    kl = losses.kd(S, T, temperature=4.0).mean() / 16
    for alpha, labels in ((0.0, Y), (None, Y), (0.5, None)):
        loss = torchdistill.kd_loss(S, T, labels, temperature=4.0, alpha=alpha, beta=0.3)
        np.testing.assert_allclose(loss, kl, rtol=1e-6)
    tiny = torchdistill.kd_loss(S, T, Y, temperature=4.0, alpha=1e-12)
    np.testing.assert_allclose(tiny, 16 * kl, rtol=1e-6)


def test_torchdistill_reductions():
    kl, ce = losses.kd(S, T, temperature=2.0) / 4, losses.cross_entropy(S, Y)
    options = dict(temperature=2.0, alpha=0.25, beta=0.5)
    expected = {
        "batchmean": 0.25 * ce.mean() + 0.5 * 4 * kl.mean(),
        "mean": 0.25 * ce.mean() + 0.5 * 4 * kl.mean() / 3,
        "sum": 0.25 * ce.sum() + 0.5 * 4 * kl.sum(),
    }
    for reduction, value in expected.items():
        loss = torchdistill.kd_loss(S, T, Y, reduction=reduction, **options)
        np.testing.assert_allclose(loss, value, rtol=1e-6)
    ignored = torchdistill.kd_loss(S, T, jnp.array([0, -100]), **options)
    np.testing.assert_allclose(ignored, 0.25 * ce[0] + 2 * kl.mean(), rtol=1e-6)


def test_trl_divides_by_what_it_divides_by():
    student, teacher = jnp.stack([S, S + 1, T]), jnp.stack([T, S, S])
    labels = jnp.array([[5, -100], [5, 5], [-100, -100]])
    values = losses.generalized_jsd(teacher, student, beta=0.3)
    total = (values * (labels != -100)).sum()
    for options, value in (
        ({}, total / 3),
        ({"reduction": "sum"}, total),
        ({"reduction": "mean"}, total / 9),
        ({"num_items_in_batch": 17}, total / 17),
    ):
        loss = trl.generalized_jsd_loss(student, teacher, labels, beta=0.3, **options)
        np.testing.assert_allclose(loss, value, rtol=1e-6)
    without_labels = trl.generalized_jsd_loss(student, teacher, beta=0.3)
    np.testing.assert_allclose(without_labels, values.sum() / 3, rtol=1e-6)


def test_trl_and_distillm_agree_on_the_jensen_shannon_divergence_only_inside():
    labels = jnp.array([5, 5])
    inside = distillm.js_distance(S, T, labels, 0.9)
    np.testing.assert_allclose(inside, trl.generalized_jsd_loss(S, T, labels, beta=0.1), rtol=1e-5)
    assert distillm.js_distance(S, T, labels, 0.0) == 0
    assert trl.generalized_jsd_loss(S, T, labels, beta=1.0) > 0.1


def test_distillm_keeps_the_entropy_of_the_teacher_and_its_gradient_is_that_of_the_divergence():
    labels = jnp.array([5, 5])
    p = jax.nn.softmax(T)
    entropy = -(p * jnp.log(p)).sum(-1).mean()
    for loss, kernel in (
        (distillm.forward_kl, losses.forward_kl),
        (distillm.skewed_forward_kl, losses.skewed_forward_kl),
    ):

        def mean(s, kernel=kernel):
            return kernel(T, s).mean()

        np.testing.assert_allclose(loss(S, T, labels) - entropy, mean(S), rtol=1e-5)
        gradient = jax.grad(lambda s, loss=loss: loss(s, T, labels))(S)
        np.testing.assert_allclose(gradient, jax.grad(mean)(S), rtol=1e-4, atol=1e-7)


def test_distillm_leaves_out_classes_that_are_infinite_on_either_side():
    student = S.at[:, 2].set(-jnp.inf)
    labels = jnp.array([5, 5])
    p, log_q = jax.nn.softmax(T), jax.nn.log_softmax(S[:, :2])
    expected = -(p[:, :2] * log_q).sum(-1).mean()
    np.testing.assert_allclose(distillm.forward_kl(student, T, labels), expected, rtol=1e-6)
    for loss in (distillm.reverse_kl, distillm.js_distance, distillm.skewed_reverse_kl):
        value, gradient = jax.value_and_grad(loss)(student, T, labels)
        assert np.isfinite(value)
        assert np.all(np.isfinite(gradient))
        assert loss(S, T, jnp.array([-100, -100])) == 0


def test_repdistiller_and_mdistiller_divide_by_the_batch_alone():
    expected = losses.kd(S, T, temperature=4.0).mean()
    np.testing.assert_allclose(repdistiller.distill_kl(S, T, 4.0), expected)
    np.testing.assert_allclose(mdistiller.kd_loss(S, T, 4.0), expected)
