"""What holds for every kernel: shapes, types, transformations, extremes, padding and masks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from kdjax import losses

B, C = 4, 5
SETTINGS = settings(deadline=None, database=None, derandomize=True, max_examples=20)


def divergence(name, **options):
    return lambda s, t, y: getattr(losses, name)(t, s, **options)


def teaching(name, **options):
    return lambda s, t, y: getattr(losses, name)(s, t, **options)


def labelled(name, **options):
    return lambda s, t, y: getattr(losses, name)(s, t, y, **options)


def listmle(s, t, y):
    weights = losses.listmle_weights(s.shape[-1])
    return losses.plackett_luce_nll(s, losses.teacher_optimal_ranking(t, y), weights)


# (student_logits, teacher_logits, labels) -> [...]
DIVERGENCES = {
    "kl_divergence": divergence("kl_divergence"),
    "reverse_kl": divergence("reverse_kl"),
    "jeffreys": divergence("jeffreys"),
    "jsd": divergence("generalized_jsd", beta=0.3),
    "jsd_at_0": divergence("generalized_jsd", beta=0.0),
    "jsd_at_1": divergence("generalized_jsd", beta=1.0),
    "skewed_forward_kl": divergence("skewed_forward_kl"),
    "skewed_reverse_kl": divergence("skewed_reverse_kl"),
    "total_variation": divergence("total_variation"),
    "alpha_beta": divergence("alpha_beta_divergence"),
    "alpha_beta_alpha_0": divergence("alpha_beta_divergence", alpha=0.0, beta=0.5),
    "alpha_beta_beta_0": divergence("alpha_beta_divergence", alpha=0.8, beta=0.0),
    "alpha_beta_sum_0": divergence("alpha_beta_divergence", alpha=-0.6, beta=0.6),
    "alpha_beta_both_0": divergence("alpha_beta_divergence", alpha=0.0, beta=0.0),
    "alpha_beta_negative": divergence("alpha_beta_divergence", alpha=-0.5, beta=1.2),
}
TEACHING = {
    "kd": teaching("kd"),
    "dkd": labelled("dkd"),
    "nkd": labelled("nkd", temperature=2.0),
    "logit_standardized_kd": teaching("logit_standardized_kd"),
    "plackett_luce": labelled("plackett_luce"),
    "listmle": listmle,
    "binary_kl": teaching("binary_kl"),
    "binary_kl_norm": teaching("binary_kl_norm"),
}
SUPERVISED = {
    "cross_entropy": lambda s, t, y: losses.cross_entropy(s, y),
    "smoothed": lambda s, t, y: losses.cross_entropy(s, y, label_smoothing=0.1),
    "smoothed_others": lambda s, t, y: losses.cross_entropy(
        s, y, label_smoothing=0.1, smoothed_classes="others"
    ),
}
SCALAR = {"dist": teaching("dist", temperature=2.0)}
ROWWISE = {**DIVERGENCES, **TEACHING, **SUPERVISED}
KERNELS = {**ROWWISE, **SCALAR}
LABELLED = {k: KERNELS[k] for k in ("dkd", "nkd", "plackett_luce", *SUPERVISED)}

every_kernel = pytest.mark.parametrize("name", KERNELS)


@functools.cache
def value_and_gradients(name):
    """(values, student gradient, teacher gradient) of the summed loss, compiled."""

    def total(s, t, y):
        values = KERNELS[name](s, t, y)
        return jnp.sum(values), values

    gradients = jax.value_and_grad(total, argnums=(0, 1), has_aux=True)

    def run(s, t, y):
        (_, values), (of_student, of_teacher) = gradients(s, t, y)
        return values, of_student, of_teacher

    return jax.jit(run)


def example(seed=0, scale=2.0, shape=(B, C)):
    rng = np.random.default_rng(seed)
    student, teacher = (jnp.asarray(rng.normal(0, scale, shape), jnp.float32) for _ in range(2))
    return student, teacher, jnp.asarray(rng.integers(0, shape[-1], shape[:-1]), jnp.int32)


@every_kernel
def test_extreme_logits_have_finite_values_and_gradients(name):
    run = value_and_gradients(name)
    _, _, labels = example()
    # Squares and powers with a negative exponent may outgrow what float16 can hold.
    unbounded = name in ("alpha_beta_both_0", "alpha_beta_sum_0", "alpha_beta_negative")
    largest = np.finfo(np.float32 if unbounded else np.float16).max
    # To two decimals: the slope of standardised logits is 1 / their deviation.
    elements = st.floats(-1e4, 1e4).map(lambda value: round(value, 2))

    @SETTINGS
    @given(arrays(np.float64, (2, B, C), elements=elements))
    def check(logits):
        student, teacher = jnp.asarray(logits, jnp.float32)
        values, gradient, _ = run(student, teacher, labels)
        assert np.all(np.isfinite(values)), values
        assert np.all(np.abs(gradient) <= largest), gradient

    check()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@every_kernel
def test_half_precision_gives_float32_losses_and_gradients_of_its_own_type(name, dtype):
    student, teacher, labels = example()
    half = student.astype(dtype), teacher.astype(dtype), labels
    values, gradient, _ = jax.eval_shape(value_and_gradients(name), *half)
    assert values.dtype == jnp.float32
    assert gradient.dtype == dtype


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("name", ["kd", "plackett_luce", "dist"])
def test_half_precision_is_computed_in_float32(name, dtype):
    student, teacher, labels = example()
    half = (1000 * student).astype(dtype), (1000 * teacher).astype(dtype)
    values, gradient, _ = value_and_gradients(name)(*half, labels)
    wide = value_and_gradients(name)(*(x.astype(jnp.float32) for x in half), labels)
    np.testing.assert_allclose(values, wide[0], rtol=1e-6)
    np.testing.assert_allclose(
        gradient.astype(jnp.float32), wide[1], rtol=float(jnp.finfo(dtype).eps), atol=1e-7
    )


@pytest.mark.parametrize("name", [*TEACHING, *SCALAR])
def test_no_gradient_reaches_the_teacher(name):
    _, of_student, of_teacher = value_and_gradients(name)(*example())
    assert np.all(of_teacher == 0)
    assert np.any(of_student != 0)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_a_divergence_differentiates_both_sides(name):
    _, of_student, of_teacher = value_and_gradients(name)(*example())
    assert np.any(of_teacher != 0)
    assert np.any(of_student != 0)


@pytest.mark.parametrize("name", [k for k in KERNELS if k != "listmle"])
def test_vocabulary_padding_changes_nothing(name):
    student, teacher, labels = example()
    values, gradient, _ = value_and_gradients(name)(student, teacher, labels)
    padding = jnp.full((B, 2), -jnp.inf)
    padded = [jnp.concatenate([x, padding], axis=-1) for x in (student, teacher)]
    padded_values, padded_gradient, of_teacher = value_and_gradients(name)(*padded, labels)
    np.testing.assert_allclose(padded_values, values, rtol=2e-5, atol=2e-6)
    np.testing.assert_allclose(padded_gradient[:, :C], gradient, rtol=2e-5, atol=2e-6)
    assert np.all(padded_gradient[:, C:] == 0)
    assert np.all(np.isfinite(of_teacher))


@pytest.mark.parametrize("label", [-1, -100, C, 2**31 - 1])
@pytest.mark.parametrize("name", LABELLED)
def test_a_row_with_a_label_outside_the_classes_is_exactly_nothing(name, label):
    student, teacher, labels = example()
    values, gradient, _ = value_and_gradients(name)(student, teacher, labels)
    student, teacher = student.at[1].set(jnp.nan), teacher.at[1].set(jnp.nan)
    masked = value_and_gradients(name)(student, teacher, labels.at[1].set(label))
    assert masked[0][1] == 0
    assert np.all(masked[1][1] == 0)
    others = np.array([0, 2, 3])
    np.testing.assert_array_equal(masked[0][others], values[others])
    np.testing.assert_array_equal(masked[1][others], gradient[others])


# A ranking is integers: what a teacher's NaN did to that of `listmle` cannot be seen.
SEES_TEACHER = [name for name in KERNELS if name not in (*SUPERVISED, "listmle")]


@pytest.mark.parametrize(
    ("name", "side"), [(k, "student") for k in KERNELS] + [(k, "teacher") for k in SEES_TEACHER]
)
def test_a_nan_is_never_hidden(name, side):
    student, teacher, labels = example()
    if side == "student":
        student = student.at[1, 2].set(jnp.nan)
    else:
        teacher = teacher.at[1, 2].set(jnp.nan)
    values, _, _ = value_and_gradients(name)(student, teacher, labels)
    assert np.isnan(values[1] if name in ROWWISE else values)


@every_kernel
def test_the_order_of_the_classes_is_irrelevant(name):
    student, teacher, labels = example()
    order = jnp.array([3, 0, 4, 1, 2])
    inverse = jnp.argsort(order)
    values, gradient, _ = value_and_gradients(name)(student, teacher, labels)
    permuted = value_and_gradients(name)(student[:, order], teacher[:, order], inverse[labels])
    np.testing.assert_allclose(permuted[0], values, rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(permuted[1], gradient[:, order], rtol=2e-4, atol=2e-6)


@pytest.mark.parametrize("name", [k for k in KERNELS if not k.startswith("binary")])
def test_a_constant_added_to_all_logits_is_irrelevant(name):
    student, teacher, labels = example()
    values, _, _ = value_and_gradients(name)(student, teacher, labels)
    moved = value_and_gradients(name)(student + 64.0, teacher - 32.0, labels)
    np.testing.assert_allclose(moved[0], values, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(moved[1].sum(-1), 0, atol=1e-5)


@pytest.mark.parametrize(
    "name",
    [*DIVERGENCES, "kd", "dkd", "logit_standardized_kd", "binary_kl", "binary_kl_norm", "dist"],
)
def test_zero_with_zero_gradient_where_student_and_teacher_agree(name):
    student, _, labels = example()
    values, gradient, _ = value_and_gradients(name)(student, student, labels)
    np.testing.assert_allclose(values, 0, atol=3e-6)
    np.testing.assert_allclose(gradient, 0, atol=1e-5)


@every_kernel
def test_never_negative(name):
    run = value_and_gradients(name)
    _, _, labels = example()

    @SETTINGS
    @given(arrays(np.float32, (2, B, C), elements=st.floats(-20, 20, width=32)))
    def check(logits):
        values, _, _ = run(*jnp.asarray(logits), labels)
        # Rounding of a sum of terms of the size of the logits (times T^2 = 16).
        assert np.all(values >= -2e-4), values

    check()


TRACED = {
    "kd": ("kd", {"temperature": (1.0, 3.0, 7.0)}),
    "dkd": ("dkd", {"temperature": (1.0, 3.0), "alpha": (1.0, 0.5), "beta": (8.0, 0.0)}),
    "nkd": ("nkd", {"temperature": (1.0, 3.0), "gamma": (1.5, 0.0)}),
    "dist": ("dist", {"temperature": (1.0, 3.0), "beta": (1.0, 0.0), "gamma": (1.0, 2.0)}),
    "logit_standardized_kd": ("logit_standardized_kd", {"temperature": (1.0, 3.0)}),
    "plackett_luce": ("plackett_luce", {"temperature": (1.0, 4.0)}),
    "binary_kl": ("binary_kl", {"temperature": (1.0, 3.0)}),
    "binary_kl_norm": ("binary_kl_norm", {"temperature": (1.0, 3.0)}),
    "cross_entropy": ("cross_entropy", {"label_smoothing": (0.0, 0.1, 1.0)}),
    "jsd": ("generalized_jsd", {"beta": (0.0, 0.5, 1.0)}),
    "skewed_forward_kl": ("skewed_forward_kl", {"lam": (0.0, 0.1, 1.0)}),
    "skewed_reverse_kl": ("skewed_reverse_kl", {"lam": (0.0, 0.1, 1.0)}),
    "alpha_beta": (
        "alpha_beta_divergence",
        {"alpha": (0.2, 0.0, 0.0, 0.5, -0.5), "beta": (0.7, 0.0, 0.5, 0.0, 0.5)},
    ),
}


@pytest.mark.parametrize("name", TRACED)
def test_a_traced_hyperparameter_means_the_same_and_compiles_once(name):
    public, options = TRACED[name]
    student, teacher, labels = example()
    arrays = (student, teacher, labels) if name in LABELLED else (student, teacher)
    if name == "cross_entropy":
        arrays = (student, labels)
    kernel = getattr(losses, public)
    compiled = jax.jit(lambda *arrays, **values: kernel(*arrays, **values))
    for values in zip(*options.values()):
        chosen = dict(zip(options, values))
        traced = compiled(*arrays, **{k: jnp.float32(v) for k, v in chosen.items()})
        np.testing.assert_allclose(traced, kernel(*arrays, **chosen), rtol=1e-5, atol=1e-6)
    assert compiled._cache_size() == 1
