"""Every golden file agrees with the kernel it was recorded for.

A file holds cases, told by the prefix of its keys (`case0_`, `case1_`, ...): inputs, and what the
reference implementation gave in float32 and, under `*_f64`, in float64. The folder is that of the
environment variable KDJAX_GOLDENS, by default tests/goldens.
"""

import os
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import losses

OWN_FOLDER = Path(__file__).parent / "goldens"
FOLDER = Path(os.environ.get("KDJAX_GOLDENS", OWN_FOLDER))
FILES = sorted(FOLDER.glob("*.npz"))
RTOL = 1e-5
RTOL_FLOAT64 = 1e-12


# An adapter takes the arrays of a case and returns (outputs, gradients) by the key they are
# recorded under.


def student_loss(loss):
    """The adapter of a scalar loss of a case, with its gradient in the student's logits."""

    def adapter(case):
        def of_student(student_logits):
            return loss({**case, "student_logits": student_logits})

        value, gradient = jax.jit(jax.value_and_grad(of_student))(case["student_logits"])
        return {"loss": value}, {"grad_student_logits": gradient}

    return adapter


def batch_loss(kernel, *hyperparameters, labels=False):
    """Mean over the batch of kernel(student, teacher[, labels])."""

    def loss(case):
        arrays = [case["student_logits"], case["teacher_logits"]]
        arrays += [case["labels"]] if labels else []
        return kernel(*arrays, **{name: case[name] for name in hyperparameters}).mean()

    return student_loss(loss)


def token_loss(divergence):
    """Mean over the tokens whose label is not -100 of divergence(teacher, student, case)."""

    def loss(case):
        where = case["labels"] != -100
        values = divergence(case["teacher_logits"], case["student_logits"], case)
        return jnp.sum(jnp.where(where, values, 0.0)) / jnp.maximum(jnp.sum(where), 1)

    return student_loss(loss)


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
    outputs, gradients = batch_loss(losses.plackett_luce, "temperature", labels=True)(case)
    teacher = case["teacher_logits"]
    ranking = losses.teacher_optimal_ranking(teacher, case["labels"])
    weights = jax.nn.softmax(teacher / case["temperature"])
    outputs["ranking_best_first"] = ranking
    outputs["step_weights"] = jnp.take_along_axis(weights, ranking, axis=-1)
    return outputs, gradients


def gradient_alignment(case):
    cuts = [int(case["n_shared"]), int(case["n_shared"] + case["n_head"])]
    main, auxiliary = (jnp.split(case[key], cuts) for key in ("grad_ce", "grad_kd"))
    merged = jnp.concatenate(losses.gradient_align(main, auxiliary))
    return {"dot": jnp.vdot(case["grad_ce"], case["grad_kd"])}, {"merged": merged}


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


def read_cases(path):
    """{number: {key: array}} of the keys of a file that have a case prefix."""
    cases = {}
    with np.load(path) as arrays:
        for key in arrays.files:
            if match := re.fullmatch(r"case(\d+)_(.+)", key):
                cases.setdefault(int(match[1]), {})[match[2]] = arrays[key]
    return cases


def recorded_cases(suffix=""):
    """The cases of known files, those with a key that ends so."""
    return [
        pytest.param(path.stem, arrays, id=f"{path.stem}-case{number}")
        for path in FILES
        for number, arrays in read_cases(path).items()
        if path.stem in ADAPTERS and any(key.endswith(suffix) for key in arrays)
    ]


def is_result(key):
    return key.startswith(("loss", "grad_student")) and not key.endswith("_f64")


def without_results(arrays):
    """The inputs of a case: arrays as JAX arrays, hyperparameters as Python numbers."""
    inputs = {k: v for k, v in arrays.items() if not is_result(k) and not k.endswith("_f64")}
    return {k: jnp.asarray(v) if v.ndim else v.item() for k, v in inputs.items()}


def test_the_folder_holds_goldens():
    assert FILES, f"no *.npz in {FOLDER}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_file_is_known_and_has_cases(path):
    assert read_cases(path), f"{path} has no key with a case prefix"
    if path.stem not in ADAPTERS and FOLDER.resolve() != OWN_FOLDER.resolve():
        pytest.skip(f"no kernel is registered for {path.stem}")
    assert path.stem in ADAPTERS, f"{path.name} has no adapter in tests/test_goldens.py"


@pytest.mark.parametrize(("stem", "arrays"), recorded_cases())
def test_float32_agrees(stem, arrays):
    outputs, gradients = ADAPTERS[stem](without_results(arrays))
    results = {**outputs, **gradients}
    assert {key for key in arrays if is_result(key)} <= set(results), "a result is not compared"
    for key, value in results.items():
        expected = arrays[key]
        # What the reference itself lost to rounding, as its float64 twin tells; without a twin,
        # the last bit of the largest element.
        exact = arrays.get(f"{key}_f64")
        if exact is None:
            rounding = np.finfo(np.float32).eps * np.max(np.abs(expected)) / 2
        else:
            rounding = np.max(np.abs(expected.astype(np.float64) - exact))
        np.testing.assert_allclose(value, expected, rtol=RTOL, atol=2 * rounding, err_msg=key)
        if expected.dtype == np.float32:
            assert value.dtype == jnp.float32, key


@pytest.mark.parametrize(("stem", "arrays"), recorded_cases("_f64"))
def test_float64_agrees(stem, arrays):
    twins = {key.removesuffix("_f64") for key in arrays if key.endswith("_f64")}
    with jax.enable_x64(True):
        inputs = without_results(arrays)
        inputs = {
            key: value.astype(jnp.float64) if jnp.result_type(value) == jnp.float32 else value
            for key, value in inputs.items()
        }
        outputs, gradients = ADAPTERS[stem](inputs)
        results = {**outputs, **gradients}
        assert twins <= set(results), "a result is not compared"
        for key in twins:
            assert results[key].dtype == jnp.float64, key
            expected = arrays[f"{key}_f64"]
            scale = np.max(np.abs(expected))
            np.testing.assert_allclose(
                results[key], expected, rtol=RTOL_FLOAT64, atol=RTOL_FLOAT64 * scale, err_msg=key
            )
