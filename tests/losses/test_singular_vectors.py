"""KD-SVD against a loop over NumPy's decompositions, and what leaves it unchanged."""

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from kdjax import losses
from kdjax.losses.singular_vectors import _right_singular_vectors

few = hypothesis.settings(deadline=None, database=None, derandomize=True, max_examples=20)
SHAPES = ((2, 4, 4, 5), (2, 2, 4, 6), (2, 3, 4, 5), (2, 4, 4, 6))
kdsvd = jax.jit(losses.kdsvd, static_argnames="num_vectors")


def drawn(seed=0):
    generator = np.random.default_rng(seed)
    return [generator.normal(size=shape).astype(np.float32) for shape in SHAPES]


def by_hand(maps, number):
    """One example: student bottom and top, teacher bottom and top."""

    def vectors(x):
        _, values, rows = np.linalg.svd(x.reshape(-1, x.shape[-1]).astype(float))
        return values, rows

    sides = []
    for student, teacher in zip(maps[:2], maps[2:]):
        values, targets = vectors(teacher)
        weights = values[:number] / np.linalg.norm(values[:number])
        candidates = vectors(student)[1][: number + 3]
        found, wanted = [], []
        for n in range(number):
            target = targets[n] * np.sign(targets[n][np.argmax(np.abs(targets[n]))])
            cosines = candidates @ target
            best = np.argmax(np.abs(cosines))
            found.append(weights[n] * np.sign(cosines[best]) * candidates[best])
            wanted.append(weights[n] * target)
        sides.append((found, wanted))
    (low_s, low_t), (high_s, high_t) = sides
    total = 0.0
    for n in range(number):
        of_student = np.exp(-((high_s[n][:, None] - low_s[n][None]) ** 2) / 8)
        of_teacher = np.exp(-((high_t[n][:, None] - low_t[n][None]) ** 2) / 8)
        total += np.sum((of_student - of_teacher) ** 2)
    return total


@pytest.mark.parametrize("number", [1, 3])
def test_it_is_the_loop_over_vectors(number):
    maps = drawn()
    expected = [by_hand([x[b] for x in maps], number) for b in range(2)]
    np.testing.assert_allclose(kdsvd(*maps, num_vectors=number), expected, rtol=2e-4)


@few
@hypothesis.given(seed=st.integers(0, 10_000), factor=st.floats(0.1, 10))
def test_scale_and_sign_of_a_map_and_the_order_of_its_positions_change_nothing(seed, factor):
    maps = drawn(seed)
    before = kdsvd(*maps)
    for i in range(4):
        changed = list(maps)
        changed[i] = -factor * maps[i][:, ::-1]
        np.testing.assert_allclose(kdsvd(*changed), before, rtol=1e-3, atol=1e-5)


def test_equal_networks_cost_nothing_and_the_order_of_channels_matters():
    bottom, top = drawn()[:2]
    np.testing.assert_allclose(kdsvd(bottom, top, bottom, top, num_vectors=2), 0, atol=1e-9)
    assert np.all(kdsvd(bottom[..., ::-1], top, bottom, top) > 1e-3)


@pytest.mark.parametrize("shape", [(7, 4), (3, 6)])
def test_the_derivative_of_the_vectors_is_their_slope(shape):
    with jax.enable_x64(True):
        generator = np.random.default_rng(0)
        x, direction = (jnp.asarray(generator.normal(size=shape)) for _ in range(2))
        _, tangent = jax.jvp(_right_singular_vectors, (x,), (direction,))
        step = 1e-6 * direction
        above, below = _right_singular_vectors(x + step), _right_singular_vectors(x - step)
        np.testing.assert_allclose(tangent, (above - below) / 2e-6, atol=1e-7)


def test_equal_singular_values_and_a_map_of_zeros_leave_the_gradient_finite():
    alike = jnp.eye(4).reshape(1, 2, 2, 4)
    top = jnp.asarray(drawn()[1][:1, :, :2])
    for student in (alike, jnp.zeros_like(alike)):
        gradient = jax.grad(lambda s: kdsvd(s, top, jnp.ones_like(alike), top).sum())(student)
        assert np.all(np.isfinite(gradient))
