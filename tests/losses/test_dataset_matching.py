"""Dataset distillation: worked numbers, invariances, and the constant-memory gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdjax.losses import dataset_matching as dm

SETTINGS = settings(deadline=None, database=None, derandomize=True, max_examples=20)


def draws(seed, *shapes):
    generator = np.random.default_rng(seed)
    return [jnp.asarray(generator.normal(size=shape), jnp.float32) for shape in shapes]


def network(seed):
    """Gradients of a convolution [h, w, in, out] with bias and a dense layer."""
    names = ("kernel", "bias", "dense")
    return dict(zip(names, draws(seed, (2, 2, 3, 4), (4,), (5, 2))))


def test_worked_angle():
    row = jnp.array([[3.0], [4.0]]), jnp.array([[4.0], [3.0]])
    np.testing.assert_allclose(dm.gradient_matching(*row), 0.04, rtol=1e-5)


def test_equal_gradients_cost_nothing_opposite_ones_two_and_zero_ones_one_a_unit():
    gradients = network(0)
    units = 4 + 2
    assert abs(dm.gradient_matching(gradients, gradients)) < 1e-5 * units
    opposite = jax.tree.map(jnp.negative, gradients)
    np.testing.assert_allclose(dm.gradient_matching(opposite, gradients), 2 * units, rtol=1e-5)
    zeros = jax.tree.map(jnp.zeros_like, gradients)
    np.testing.assert_allclose(dm.gradient_matching(zeros, gradients), units)
    of_zeros = jax.grad(dm.gradient_matching)(zeros, gradients)
    assert all(np.all(x == 0) for x in jax.tree.leaves(of_zeros))


@given(st.integers(0, 100))
@SETTINGS
def test_each_unit_may_be_scaled_but_not_each_input(seed):
    synthetic, real = draws(seed, (3, 4), (3, 4))
    scales = jnp.array([0.5, 2.0, 7.0, 30.0])
    one = dm.gradient_matching(synthetic, real)
    np.testing.assert_allclose(dm.gradient_matching(synthetic * scales, real), one, rtol=1e-4)
    by_input = dm.gradient_matching(synthetic * scales[:3, None], real)
    assert abs(by_input - one) > 1e-3
    whole = dm.gradient_matching_cosine(synthetic, real)
    assert abs(dm.gradient_matching_cosine(synthetic * scales, real) - whole) > 1e-4
    np.testing.assert_allclose(
        dm.gradient_matching_cosine(9 * synthetic, real), whole, rtol=1e-4, atol=1e-6
    )


def test_biases_count_in_all_distances_but_the_units():
    gradients = network(1)
    other = {**gradients, "bias": gradients["bias"] + 1}
    same = dm.gradient_matching(gradients, gradients)
    assert dm.gradient_matching(other, gradients) == same
    np.testing.assert_allclose(dm.gradient_matching_mse(other, gradients), 4.0, rtol=1e-5)
    assert dm.gradient_matching_cosine(other, gradients) > 1e-3
    bias = {"bias": gradients["bias"]}
    assert dm.gradient_matching(bias, {"bias": gradients["bias"] + 1}) == 0


def test_torch_layout_is_the_first_axis():
    synthetic, real = draws(2, (2, 2, 3, 4), (2, 2, 3, 4))
    ours = dm.gradient_matching(synthetic, real)
    torch = [jnp.transpose(x, (3, 2, 0, 1)) for x in (synthetic, real)]
    np.testing.assert_allclose(dm.gradient_matching(*torch, output_axis=0), ours, rtol=1e-5)
    assert abs(dm.gradient_matching(*torch) - ours) > 1e-2


def test_second_derivatives_reach_the_synthetic_data():
    first, second, real, data = draws(3, (4, 5), (5, 2), (6, 4), (2, 4))

    def loss(weights, inputs):
        return jnp.mean((jnp.tanh(inputs @ weights[0]) @ weights[1]) ** 2)

    def distance(inputs):
        gradients = jax.grad(loss)
        weights = [w.astype(inputs.dtype) for w in (first, second)]
        target = gradients(weights, real.astype(inputs.dtype))
        return dm.gradient_matching(gradients(weights, inputs), target)

    with jax.enable_x64(True):
        inputs = data.astype(jnp.float64)
        slope = jax.jit(jax.grad(distance))(inputs)
        step = 1e-5 * jnp.ones_like(inputs)
        measured = (distance(inputs + step) - distance(inputs - step)) / 2e-5
        np.testing.assert_allclose(jnp.sum(slope), measured, rtol=1e-6)


@given(st.integers(0, 100))
@SETTINGS
def test_distributions_are_known_by_their_means(seed):
    real, shift = draws(seed, (2, 6, 3), (3,))
    synthetic = jnp.broadcast_to(real.mean(1, keepdims=True), (2, 4, 3))
    np.testing.assert_allclose(dm.distribution_matching(synthetic, real), 0.0, atol=1e-9)
    moved = dm.distribution_matching(synthetic + shift, real)
    np.testing.assert_allclose(moved, jnp.sum(shift**2), rtol=1e-4)
    order = np.random.default_rng(seed).permutation(6)
    shuffled = dm.distribution_matching(synthetic + shift, real[:, order])
    np.testing.assert_allclose(shuffled, moved, rtol=1e-4)


def test_mask_is_a_smaller_class_and_an_empty_one_is_nothing():
    synthetic, real = draws(4, (2, 1, 3), (2, 4, 3))
    where = jnp.array([[True, True, False, False], [False] * 4])
    loss = dm.distribution_matching(synthetic, real, where=where)
    short = dm.distribution_matching(synthetic[0], real[0, :2])
    np.testing.assert_allclose(loss, [short, 0.0], rtol=1e-6)
    gradient = jax.grad(lambda x: dm.distribution_matching(x, real, where=where).sum())(synthetic)
    np.testing.assert_array_equal(gradient[1], 0.0)


def test_trajectories_cost_one_at_the_start_and_nothing_at_the_target():
    start, target, end = (network(seed) for seed in (5, 6, 7))
    assert dm.trajectory_matching(start, start, target) == 1
    assert dm.trajectory_matching(target, start, target) == 0
    one = dm.trajectory_matching(end, start, target)
    moved = (jax.tree.map(lambda x: x + 3.0, tree) for tree in (end, start, target))
    np.testing.assert_allclose(dm.trajectory_matching(*moved), one, rtol=1e-4)
    moved = jax.tree.map(lambda x: x + 3.0, end)
    assert abs(dm.trajectory_matching(moved, start, target) - one) > 0.1


def test_an_expert_that_did_not_move_teaches_nothing():
    (end, start) = draws(8, (5,), (5,))
    value, gradient = jax.jit(jax.value_and_grad(dm.trajectory_matching))(end, start, start)
    assert value == 0
    np.testing.assert_array_equal(gradient, 0.0)


def inner_loss(parameters, batch):
    hidden = jnp.tanh(batch["x"] @ parameters["first"])
    logits = hidden @ parameters["second"]
    return dm.soft_label_cross_entropy(logits, batch["y"]).mean()


def problem(steps):
    shapes = ((steps, 3, 4), (steps, 3, 2), (4, 5), (5, 2), (4, 5), (5, 2))
    x, y, *weights = draws(9, *shapes)
    start, target = (dict(zip(("first", "second"), pair)) for pair in (weights[:2], weights[2:]))
    return {"x": x, "y": y}, start, target


def outer_loss(unroll, start, target):
    def loss(batches, rate):
        end = unroll(batches, start, rate, inner_loss=inner_loss)
        return dm.trajectory_matching(end, start, target)

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))


@pytest.mark.parametrize("steps", [1, 4])
def test_constant_memory_has_the_same_value_and_for_one_step_the_same_gradient(steps):
    with jax.enable_x64(True):
        batches, start, target = jax.tree.map(lambda x: x.astype(jnp.float64), problem(steps))
        rate = jnp.array(0.5)
        value, exact = outer_loss(dm.unrolled_sgd, start, target)(batches, rate)
        same, gradient = outer_loss(dm.unrolled_sgd_in_constant_memory, start, target)(
            batches, rate
        )
        np.testing.assert_allclose(same, value, rtol=1e-12)
        agrees = [
            np.allclose(a, b, rtol=1e-10, atol=1e-14)
            for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(exact))
        ]
        assert all(agrees) == (steps == 1)


@pytest.mark.slow
def test_constant_memory_has_the_printed_gradient():
    with jax.enable_x64(True):
        batches, start, target = jax.tree.map(lambda x: x.astype(jnp.float64), problem(3))
        rate = 0.5
        loss = outer_loss(dm.unrolled_sgd_in_constant_memory, start, target)
        _, (found, of_rate) = loss(batches, jnp.array(rate))
        inner = jax.jit(jax.grad(inner_loss))
        steps = [jax.tree.map(lambda x, k=k: x[k], batches) for k in range(3)]
        parameters, total, seen = start, jax.tree.map(jnp.zeros_like, start), []
        for batch in steps:
            seen.append(parameters)
            gradient = inner(parameters, batch)
            parameters = jax.tree.map(lambda p, g: p - rate * g, parameters, gradient)
            total = jax.tree.map(jnp.add, total, gradient)
        vector = jax.tree.map(lambda s, t, g: rate * (t - s) + rate**2 * g, start, target, total)

        def dot(a, b):
            return sum(jnp.vdot(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)))

        way = jax.tree.map(jnp.subtract, start, target)
        for k, batch in enumerate(steps):
            expected = jax.grad(lambda b, k=k: dot(vector, jax.grad(inner_loss)(seen[k], b)))(batch)
            for name in ("x", "y"):
                np.testing.assert_allclose(
                    found[name][k], 2 / dot(way, way) * expected[name], rtol=1e-9, atol=1e-14
                )
        left = jax.tree.map(lambda s, t, g: s - rate * g - t, start, target, total)
        expected = -2 * dot(left, total) / dot(way, way)
        np.testing.assert_allclose(of_rate, expected, rtol=1e-9)


def test_memory_of_activations_does_not_grow_with_the_steps():
    def temporary(unroll, steps):
        batches = draws(0, (steps, 64, 32))[0]
        weights = draws(1, (32, 4))[0]

        def inner(parameters, batch):
            activations = batch @ parameters
            for _ in range(6):
                activations = jnp.tanh(activations + 1)
            return jnp.mean(activations**2)

        def loss(batches):
            return jnp.sum(unroll(batches, weights, 0.1, inner_loss=inner) ** 2)

        analysis = jax.jit(jax.grad(loss)).lower(batches).compile().memory_analysis()
        return analysis.temp_size_in_bytes

    growth = {
        unroll: temporary(unroll, 24) - temporary(unroll, 8)
        for unroll in (dm.unrolled_sgd, dm.unrolled_sgd_in_constant_memory)
    }
    activations = 16 * 64 * 4 * 4  # of one layer in the additional steps
    assert growth[dm.unrolled_sgd] > 3 * activations
    assert growth[dm.unrolled_sgd_in_constant_memory] < activations


def test_rows_that_are_drawn_twice_add_up_and_others_have_no_gradient():
    _, start, target = problem(2)
    x, y = draws(10, (6, 4), (6, 2))
    index = jnp.array([[0, 1], [1, 2]])

    def loss(x):
        end = dm.unrolled_sgd_in_constant_memory(
            {"x": x[index], "y": y[index]}, start, 0.5, inner_loss=inner_loss
        )
        return dm.trajectory_matching(end, start, target)

    gradient = jax.jit(jax.grad(loss))(x)
    np.testing.assert_array_equal(gradient[3:], 0.0)
    assert np.all(np.any(gradient[:3] != 0, axis=1))


def test_each_network_may_have_its_learning_rate():
    batches, start, _ = problem(2)
    rates = {"first": 0.0, "second": 0.5}
    for unroll in (dm.unrolled_sgd, dm.unrolled_sgd_in_constant_memory):
        end = unroll(batches, start, rates, inner_loss=inner_loss)
        np.testing.assert_array_equal(end["first"], start["first"])
        assert np.any(end["second"] != start["second"])


def test_soft_labels_of_one_class_are_labels():
    logits = draws(11, (4, 3))[0]
    labels = jnp.array([0, 2, 1, 1])
    one_hot = jnp.where(jax.nn.one_hot(labels, 3) == 1, 0.0, -jnp.inf)
    loss = dm.soft_label_cross_entropy(logits, one_hot)
    expected = -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1)[:, 0]
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    gradient = jax.grad(lambda x: dm.soft_label_cross_entropy(x, one_hot).sum())(logits)
    assert np.all(np.isfinite(gradient))
