"""Relations between examples: worked numbers, what they do not see, limits, masks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdjax.losses import relation_matrices, relations

few = settings(deadline=None, database=None, derandomize=True, max_examples=20)
seeds = st.integers(0, 10**6)

KERNELS = {
    "similarity_preserving": relations.similarity_preserving,
    "pkt": relations.pkt,
    "rkd_distance": relations.rkd_distance,
    "rkd_angle": relations.rkd_angle,
    "cc_taylor": relations.cc_taylor,
}
COMPILED = {name: jax.jit(kernel) for name, kernel in KERNELS.items()}
every_relation = pytest.mark.parametrize("name", KERNELS)
SAME, APART = jnp.array([[1.0, 0.0], [1.0, 0.0]]), jnp.eye(2)


def batch(seed, width=3, size=5):
    return np.random.default_rng(seed).normal(size=(size, width)).astype(np.float32)


def rotation(seed, width):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(width, width)))[0].astype("f4")


def value(name, student, teacher):
    return float(COMPILED[name](student, teacher).mean())


@pytest.mark.parametrize(
    ("kernel", "student", "teacher", "expected"),
    [
        (relations.similarity_preserving, SAME, APART, 0.292893),
        (relations.similarity_preserving, APART, SAME, 0.292893),
        (relations.similarity_preserving, APART, jnp.array([[1.0, 0], [2.0, 0]]), 0.329180),
        (relations.pkt, APART, SAME, 0.0294457),
        (relations.rkd_distance, jnp.arange(3.0)[:, None], jnp.array([[0.0], [1], [3]]), 0.0138889),
        (relations.cc_adjacent, APART, SAME, 0.0),
        (relations.cc_adjacent, jnp.array([[1.0, 2], [3, 4]]), jnp.zeros((2, 2)), 11.0),
    ],
)
def test_worked_numbers(kernel, student, teacher, expected):
    value = jax.jit(kernel)(student, teacher).mean()
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-7)


def test_distances_are_in_units_of_their_mean():
    student = jnp.array([[0.0, 0], [3, 0], [0, 4]])
    teacher = jnp.array([[0.0, 0], [1, 0], [0, 1]])
    gap = np.array([0.75, 1.0, 1.25]) - [0.878680, 0.878680, 1.242641]
    expected = 2 * np.sum(gap**2 / 2) / 9
    np.testing.assert_allclose(relations.rkd_distance(student, teacher).mean(), expected, rtol=1e-4)


def test_margin_aware_distillation_is_a_weighted_gap():
    student, teacher = APART, jnp.array([[1.0, 0], [2.0, 0]])
    shares = relation_matrices.entropy_share(jnp.array([[0.0, 0], [jnp.log(9.0), 0]]))
    np.testing.assert_allclose(shares, [0.680737, 0.319263], rtol=1e-5)
    of_student, of_teacher = map(relation_matrices.row_normalized_gram, (student, teacher))
    by_column = relation_matrices.relation_gap(of_student, of_teacher, weights=shares).sum()
    by_row = relation_matrices.relation_gap(of_student, of_teacher, weights=shares[:, None]).sum()
    np.testing.assert_allclose([by_column, by_row], [0.603131, 0.820016], rtol=1e-5)


def test_equally_undecided_examples_have_equal_shares():
    np.testing.assert_allclose(relation_matrices.entropy_share(jnp.ones((4, 3))), np.full(4, 0.25))
    certain = jnp.array([[1e4, 0.0], [0.0, 1e4]])
    first = jax.jit(jax.value_and_grad(lambda z: relation_matrices.entropy_share(z)[0]))
    shares, gradient = first(certain)
    assert shares == 0.5
    assert np.all(gradient == 0)


@every_relation
@few
@given(seeds)
def test_equal_relations_have_no_loss_and_others_have_one(name, seed):
    student = batch(seed)
    assert abs(value(name, student, student)) < 1e-8
    assert value(name, student, batch(seed + 1)) > 1e-5


@every_relation
@few
@given(seeds, st.floats(-2, 2))
def test_scale_and_rotation_of_either_side_are_not_seen(name, seed, exponent):
    student, teacher = batch(seed), batch(seed + 1, width=4)
    moved = np.float32(10**exponent) * student @ rotation(seed, 3)
    turned = np.float32(10**-exponent) * teacher @ rotation(seed, 4)
    expected = value(name, student, teacher)
    np.testing.assert_allclose(value(name, moved, teacher), expected, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(value(name, student, turned), expected, rtol=1e-3, atol=1e-6)


@every_relation
@few
@given(seeds)
def test_permuted_examples_have_permuted_values(name, seed):
    student, teacher = batch(seed), batch(seed + 1, width=4)
    order = np.random.default_rng(seed).permutation(5)
    permuted = COMPILED[name](student[order], teacher[order])
    expected = COMPILED[name](student, teacher)[order]
    np.testing.assert_allclose(permuted, expected, rtol=1e-4, atol=1e-6)


@few
@given(seeds)
def test_only_distances_and_angles_are_blind_to_a_shift(seed):
    student, teacher = batch(seed), batch(seed + 1)
    shifted = student + np.float32(1.5)
    for name in ("rkd_distance", "rkd_angle"):
        expected = value(name, student, teacher)
        np.testing.assert_allclose(value(name, shifted, teacher), expected, rtol=1e-3, atol=1e-6)
    for name in ("similarity_preserving", "pkt", "cc_taylor"):
        assert abs(value(name, shifted, teacher) - value(name, student, teacher)) > 1e-5


def test_adjacent_congruence_sees_rotation_and_order():
    student, teacher = batch(0), batch(1)
    of = jax.jit(lambda s, t: relations.cc_adjacent(s, t).mean())
    expected = of(student, teacher)
    turned = of(student @ rotation(0, 3), teacher @ rotation(0, 3))
    order = np.array([1, 0, 3, 2, 4])
    assert abs(turned - expected) > 1e-2
    assert abs(of(student[order], teacher[order]) - expected) > 1e-2


def test_similarity_preserving_is_a_gap_of_row_normalized_grams():
    student, teacher = batch(0), batch(1, width=4)
    gap = relation_matrices.relation_gap(
        *map(relation_matrices.row_normalized_gram, (student, teacher))
    )
    np.testing.assert_allclose(relations.similarity_preserving(student, teacher), gap, rtol=1e-5)


def test_long_taylor_series_is_the_gaussian_kernel():
    features = batch(0)
    units = features / np.linalg.norm(features, axis=1, keepdims=True)
    squares = np.sum((units[:, None] - units[None]) ** 2, axis=-1)
    series = relation_matrices.taylor_correlation(features, gamma=0.4, order=12)
    np.testing.assert_allclose(series, np.exp(-0.4 * squares), rtol=1e-5)


def test_angles_are_those_of_the_definition():
    student, teacher = batch(0, size=4), batch(1, width=4, size=4)

    def angles(points):
        differences = points[None, :] - points[:, None]
        lengths = np.linalg.norm(differences, axis=-1, keepdims=True)
        units = np.where(lengths == 0, 0.0, differences / np.where(lengths == 0, 1, lengths))
        return np.einsum("ijd,ikd->ijk", units, units)

    gap = np.abs(angles(student) - angles(teacher))
    huber = np.where(gap < 1, gap**2 / 2, gap - 0.5)
    expected = huber.mean(axis=(1, 2))
    np.testing.assert_allclose(relations.rkd_angle(student, teacher), expected, rtol=1e-5)


@pytest.mark.parametrize("anchors_at_once", [1, 2, 5, 8])
def test_angles_in_parts_are_the_same_in_value_and_gradient(anchors_at_once):
    student, teacher = batch(0), batch(1)

    def loss(student, parts):
        return relations.rkd_angle(student, teacher, anchors_at_once=parts).mean()

    whole = jax.jit(jax.value_and_grad(lambda s: loss(s, None)))(student)
    parts = jax.jit(jax.value_and_grad(lambda s: loss(s, anchors_at_once)))(student)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7), whole, parts)


def test_angles_in_parts_take_less_memory():
    shape = jax.ShapeDtypeStruct((64, 256), jnp.float32)

    def memory(parts):
        def loss(student, teacher):
            return relations.rkd_angle(student, teacher, anchors_at_once=parts).mean()

        compiled = jax.jit(jax.grad(loss)).lower(shape, shape).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert memory(1) < memory(None) / 8


@every_relation
def test_coincident_and_zero_examples_have_finite_gradients(name):
    teacher = batch(1)
    gradient_of = jax.jit(jax.grad(lambda s, t: KERNELS[name](s, t).sum()))
    for student in (np.zeros((5, 3), "f4"), np.ones((5, 3), "f4"), batch(0)[[0, 0, 1, 1, 2]]):
        gradient = gradient_of(student, teacher)
        assert np.all(np.isfinite(gradient))
        assert np.max(np.abs(gradient)) < 1e3


@every_relation
def test_masked_examples_are_as_if_absent(name):
    student, teacher = batch(0), batch(1, width=4)
    where = np.array([True, False, True, True, False])
    masked = COMPILED[name](student, teacher, where=where)
    assert np.all(masked[~where] == 0)
    alone = COMPILED[name](student[where], teacher[where])
    np.testing.assert_allclose(masked[where], alone, rtol=1e-4, atol=1e-7)


def test_near_examples_keep_their_angles_far_from_the_origin():
    # The Gram identity would have lost these: the points differ by 1e-3 of their length.
    student = np.array([[1000.0, 0], [1001, 0], [1000, 1]], "f4")
    right = np.array([[0.0, 0], [1, 0], [0, 1]], "f4")
    assert value("rkd_angle", student, right) < 1e-9
    assert value("rkd_distance", student, right) < 1e-9
