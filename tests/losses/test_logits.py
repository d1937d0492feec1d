"""The losses on logits: worked numbers, identities, limits, masks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import losses

S = jnp.array([2.0, 1.0, 0.0])
T = jnp.array([0.0, 1.0, 2.0])
Y = jnp.array(0)
# Compiled: step by step they are slow to start.
dist, dkd = jax.jit(losses.dist), jax.jit(losses.dkd)


def batch(seed=0, shape=(6, 5), scale=2.0):
    rng = np.random.default_rng(seed)
    student, teacher = (jnp.asarray(rng.normal(0, scale, shape)) for _ in range(2))
    return student, teacher, jnp.asarray(rng.integers(0, shape[-1], shape[:-1]))


@pytest.mark.parametrize(
    ("temperature", "expected"), [(1.0, 1.150421), (2.0, 1.280627), (4.0, 1.319630)]
)
def test_kd_worked_numbers(temperature, expected):
    np.testing.assert_allclose(losses.kd(S, T, temperature=temperature), expected, atol=1e-6)


def test_kd_gradient_is_temperature_times_the_gap_of_probabilities():
    gradient = jax.grad(lambda s: losses.kd(s, T, temperature=1.0))(S)
    np.testing.assert_allclose(gradient, [0.575210, 0, -0.575210], atol=1e-6)
    gradient = jax.grad(lambda s: losses.kd(s, T, temperature=3.0))(S)
    gap = jax.nn.softmax(S / 3) - jax.nn.softmax(T / 3)
    np.testing.assert_allclose(gradient, 3 * gap, atol=1e-6)


def test_kd_of_infinite_temperature_is_the_squared_gap_of_centred_logits():
    with jax.enable_x64(True):
        student, teacher, _ = batch()
        gap = student - student.mean(-1, keepdims=True) - teacher
        gap += teacher.mean(-1, keepdims=True)
        limit = jnp.sum(gap**2, -1) / 10
        np.testing.assert_allclose(losses.kd(student, teacher, temperature=1e4), limit, rtol=1e-3)
        np.testing.assert_allclose(
            losses.kd(S.astype(float), T.astype(float), temperature=1e4), 4 / 3, rtol=1e-3
        )


def test_kd_is_differentiable_in_the_temperature():
    with jax.enable_x64(True):
        student, teacher, _ = batch()
        slope = jax.grad(lambda t: losses.kd(student, teacher, temperature=t).sum())(2.0)
        above, below = (losses.kd(student, teacher, temperature=t).sum() for t in (2.001, 1.999))
        np.testing.assert_allclose(slope, (above - below) / 0.002, rtol=1e-5)


def test_kd_is_infinite_only_where_the_student_rules_out_what_the_teacher_expects():
    ruled_out = jnp.array([0.0, -jnp.inf])
    assert losses.kd(ruled_out, jnp.zeros(2)) == jnp.inf
    assert np.isfinite(losses.kd(jnp.zeros(2), ruled_out))


def test_dkd_worked_numbers():
    target = dkd(S, T, Y, alpha=1.0, beta=0.0, temperature=1.0)
    others = dkd(S, T, Y, alpha=0.0, beta=1.0, temperature=1.0)
    np.testing.assert_allclose(target, 0.729908, atol=1e-6)
    np.testing.assert_allclose(others, 0.462117, atol=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_dkd_with_the_teachers_doubt_as_beta_is_kd(temperature):
    student, teacher, labels = batch()
    confidence = jax.nn.softmax(teacher / temperature)[jnp.arange(6), labels]

    def one(student, teacher, label, beta):
        return dkd(student, teacher, label, beta=beta, temperature=temperature)

    np.testing.assert_allclose(
        jax.vmap(one)(student, teacher, labels, 1 - confidence),
        losses.kd(student, teacher, temperature=temperature),
        rtol=1e-5,
    )


def test_dkd_of_two_classes_has_no_others_and_of_one_class_nothing():
    student, teacher, labels = batch(shape=(6, 2))
    np.testing.assert_array_equal(dkd(student, teacher, labels, alpha=0.0), 0)
    zero = jnp.zeros(3, int)
    value, gradient = jax.value_and_grad(lambda s: dkd(s, teacher[:3, :1], zero).sum())(
        student[:3, :1]
    )
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("kernel", [losses.dkd, losses.nkd])
def test_a_row_whose_other_classes_are_all_padding_has_only_its_target(kernel):
    only_target = jnp.array([2.0, -jnp.inf, -jnp.inf])
    value, gradient = jax.value_and_grad(kernel)(only_target, only_target, Y)
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)


def test_dkd_stays_finite_where_the_teacher_is_certain():
    value = dkd(S, jnp.array([500.0, 1.0, 2.0]), Y, temperature=1.0)
    certain = losses.cross_entropy(S, Y) + 8 * losses.forward_kl(jnp.array([1.0, 2.0]), S[1:])
    np.testing.assert_allclose(value, certain, rtol=1e-5)


def test_nkd_worked_numbers():
    np.testing.assert_allclose(losses.nkd(S, T, Y, gamma=0.0), 0.036697, atol=1e-6)
    np.testing.assert_allclose(losses.nkd(S, T, Y, gamma=1.5), 1.603177, atol=1e-6)


def test_cross_entropy_smoothing_is_distillation_from_a_uniform_teacher():
    student, _, labels = batch()
    smoothed = losses.cross_entropy(student, labels, label_smoothing=0.1)
    uniform = losses.forward_kl(jnp.zeros_like(student), student) + np.log(5)
    plain = losses.cross_entropy(student, labels)
    np.testing.assert_allclose(smoothed, 0.9 * plain + 0.1 * uniform, rtol=1e-5)
    np.testing.assert_allclose(
        losses.cross_entropy(student, labels, label_smoothing=0.1, smoothed_classes="others"),
        losses.cross_entropy(student, labels, label_smoothing=0.1 * 5 / 4),
        rtol=1e-5,
    )


def test_cross_entropy_of_one_class_is_zero_in_both_conventions():
    for convention in ("all", "others"):
        value = losses.cross_entropy(
            jnp.ones(1), Y, label_smoothing=0.1, smoothed_classes=convention
        )
        assert value == 0


def test_valid_labels_are_the_weight_of_the_rows():
    labels = jnp.array([0, 4, 5, -1, -100])
    np.testing.assert_array_equal(losses.valid_labels(labels, 5), [1, 1, 0, 0, 0])


DIST_STUDENT = jnp.array([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
DIST_TEACHER = jnp.array([[0.0, 2.0, 0.0], [0.0, 0.0, 2.0]])


def test_dist_worked_numbers():
    between_classes = dist(DIST_STUDENT, DIST_TEACHER, gamma=0.0)
    np.testing.assert_allclose(between_classes, 1.5, atol=1e-6)
    # Of two rows a correlation is +1 or -1, or 0 for the constant first column of the teacher:
    # 1 - (0 - 1 + 1) / 3. The column is constant up to the last bit of a softmax only.
    between_examples = dist(DIST_STUDENT, DIST_TEACHER, beta=0.0)
    np.testing.assert_allclose(between_examples, 1.0, atol=1e-6)


def test_dist_is_the_formula_of_correlations():
    student, teacher, _ = batch()
    q, p = (np.asarray(jax.nn.softmax(x / 2.0), np.float64) for x in (student, teacher))
    rows = np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(q, p)])
    columns = np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(q.T, p.T)])
    value = dist(student, teacher, beta=0.5, gamma=2.0, temperature=2.0)
    np.testing.assert_allclose(value, 4 * (0.5 * rows + 2 * columns), rtol=1e-5)


def test_dist_between_examples_does_not_know_their_order_and_pixels_are_examples():
    student, teacher, _ = batch()
    order = jnp.array([4, 2, 0, 5, 1, 3])
    value = dist(student, teacher)
    np.testing.assert_allclose(dist(student[order], teacher[order]), value, rtol=1e-5)
    pixels = student.reshape(2, 3, 5), teacher.reshape(2, 3, 5)
    np.testing.assert_allclose(dist(*pixels), value, rtol=1e-6)


def test_dist_where_leaves_masked_rows_out_exactly():
    student, teacher, _ = batch()
    where = jnp.array([True, False, True, True, False, True])
    dirty = [jnp.where(where[:, None], x, jnp.nan) for x in (student, teacher)]
    value, gradient = jax.value_and_grad(lambda s: dist(s, dirty[1], where=where))(dirty[0])
    kept = jax.value_and_grad(lambda s: dist(s, teacher[where]))(student[where])
    np.testing.assert_allclose(value, kept[0], rtol=1e-6)
    np.testing.assert_allclose(gradient[where], kept[1], rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(gradient[~where], 0)
    nothing, gradient = jax.value_and_grad(lambda s: dist(s, dirty[1], where=jnp.zeros(6, bool)))(
        dirty[0]
    )
    assert nothing == 0
    np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize(
    "student", [DIST_STUDENT[:1], jnp.zeros((3, 3)), jnp.full((3, 3), 0.1), jnp.ones((2, 1))]
)
def test_dist_of_something_constant_has_correlation_zero_and_no_gradient(student):
    teacher = jnp.resize(DIST_TEACHER, student.shape)
    value, gradient = jax.value_and_grad(lambda s: dist(s, teacher, beta=0.0))(student)
    assert value == 1
    np.testing.assert_array_equal(gradient, 0)


def test_dist_takes_a_column_that_differs_in_its_last_bits_for_constant():
    student = jnp.array([[1.0, 2.0, 3.0], [1.0, 3.0, 2.0], [1.0, 2.0, 3.0]]) + 0.1
    teacher = jnp.array([[0.0, 1.0, 2.0], [2.0, 0.0, 1.0], [1.0, 2.0, 0.0]])
    gradient = jax.grad(lambda s: dist(s, teacher, beta=0.0))(student)
    assert np.max(np.abs(gradient)) < 10


def test_standardised_logits_have_mean_zero_and_deviation_one():
    student, _, _ = batch()
    standard = losses.standardize_logits(student)
    np.testing.assert_allclose(standard.mean(-1), 0, atol=1e-6)
    np.testing.assert_allclose(jnp.std(standard, -1, ddof=1), 1, rtol=1e-5)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e4, -1e4])
def test_standardised_constant_logits_are_zero_without_gradient(value):
    logits = jnp.full((2, 7), value)
    standard, pull_back = jax.vjp(losses.standardize_logits, logits)
    np.testing.assert_array_equal(standard, 0)
    np.testing.assert_array_equal(pull_back(jnp.arange(14.0).reshape(2, 7))[0], 0)
    np.testing.assert_array_equal(losses.standardize_logits(jnp.ones((3, 1))), 0)


def test_standardised_kd_knows_neither_scale_nor_offset():
    student, teacher, _ = batch()
    value = losses.logit_standardized_kd(student, teacher)
    for moved in ((student * 8 - 3, teacher), (student, teacher * 0.1 + 5)):
        np.testing.assert_allclose(losses.logit_standardized_kd(*moved), value, rtol=1e-3)
    assert not np.allclose(losses.kd(student, teacher * 8), losses.kd(student, teacher))
