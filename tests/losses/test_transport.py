"""Entropic transport: worked numbers, limits, gradients, masks, and another library's solver."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.losses.transport import (
    entropic_transport,
    pairwise_lp_cost,
    sinkhorn_divergence,
    sinkhorn_kd,
    sinkhorn_plan,
)

STUDENT = jnp.log(jnp.array([[0.8, 0.2], [0.3, 0.7]]))
TEACHER = jnp.log(jnp.array([[0.6, 0.4], [0.1, 0.9]]))
seeds = st.integers(0, 2**16)
few = hypothesis.settings(deadline=None, database=None, derandomize=True, max_examples=20)
plan_after = jax.jit(sinkhorn_plan, static_argnames="num_iterations")
optimum = jax.jit(entropic_transport, static_argnames="max_iterations")
divergence = jax.jit(lambda xy, xx, yy: sinkhorn_divergence(xy, xx, yy, epsilon=0.3))
sinkd = jax.jit(sinkhorn_kd, static_argnames=("num_iterations", "p", "stop_plan_gradient"))


def problem(seed=0, rows=4, columns=5, dtype=np.float64):
    rng = np.random.default_rng(seed)
    a, b = rng.uniform(0.2, 1, rows), rng.uniform(0.2, 1, columns)
    cost = rng.uniform(0, 1, (rows, columns))
    return [jnp.asarray(x, dtype) for x in (cost, a / a.sum(), b / b.sum())]


def logits(seed=0, shape=(6, 4)):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.normal(0, 2, shape), jnp.float32) for _ in range(2)]


def test_worked_numbers_of_sinkd():
    cost = pairwise_lp_cost(jnp.exp(STUDENT), jnp.exp(TEACHER))
    np.testing.assert_allclose(cost, [[0.4, 1.4], [0.6, 0.4]], rtol=1e-5)
    plan = plan_after(cost, jnp.ones(2), jnp.ones(2))
    expected = [[0.9788075, 0.0002837], [0.0211925, 0.9997163]]
    np.testing.assert_allclose(plan, expected, atol=1e-6)
    np.testing.assert_allclose(plan_after(cost), plan / 2, rtol=1e-5)
    loss = sinkd(STUDENT, TEACHER, temperature=1.0)
    np.testing.assert_allclose(loss.sum(), 0.8045222, rtol=1e-5)


def test_without_a_step_the_plan_is_the_kernel():
    cost, *_ = problem(dtype=np.float32)
    plan = plan_after(cost, jnp.ones(4), jnp.full(5, 0.8), num_iterations=0)
    np.testing.assert_allclose(plan, 0.8 * jnp.exp(-cost / 0.1), rtol=1e-5)


@few
@hypothesis.given(seed=seeds)
def test_columns_are_exact_and_rows_come_closer_with_every_step(seed):
    cost, a, b = problem(seed, dtype=np.float32)
    errors = []
    for steps in (1, 5, 25):
        plan = plan_after(cost, a, b, epsilon=0.2, num_iterations=steps)
        np.testing.assert_allclose(plan.sum(0), b, rtol=1e-5)
        errors.append(float(jnp.abs(plan.sum(1) - a).sum()))
    assert errors[1] <= errors[0] + 1e-6
    assert errors[2] <= errors[1] + 1e-6
    assert errors[2] < 1e-2


def test_logarithms_do_not_underflow_and_agree_with_plain_scaling():
    cost, a, b = problem(dtype=np.float32)
    kernel, left, right = np.exp(-np.asarray(cost, np.float64) / 0.1), None, np.asarray(b)
    for _ in range(20):
        left = np.asarray(a) / (kernel @ right)
        right = np.asarray(b) / (kernel.T @ left)
    plain = left[:, None] * kernel * right
    np.testing.assert_allclose(plan_after(cost, a, b), plain, rtol=2e-4, atol=1e-7)
    sharp = plan_after(cost, a, b, epsilon=1e-3)
    np.testing.assert_allclose(sharp.sum(0), b, rtol=1e-3)


def test_the_optimum_satisfies_its_conditions():
    with jax.enable_x64(True):
        cost, a, b = problem()
        found = optimum(cost, a, b, epsilon=0.05, tolerance=1e-12)
        assert found.error <= 1e-12
        np.testing.assert_allclose(found.plan.sum(0), b, rtol=1e-10)
        np.testing.assert_allclose(found.plan.sum(1), a, rtol=1e-10)
        divergence = (found.plan * jnp.log(found.plan / (a[:, None] * b))).sum()
        value = (found.plan * cost).sum() + 0.05 * divergence
        np.testing.assert_allclose(found.cost, value, rtol=1e-10)


def test_no_plan_with_the_same_marginals_is_cheaper():
    with jax.enable_x64(True):
        cost, a, b = problem()
        found = optimum(cost, a, b, epsilon=1.0, tolerance=1e-12)
        rng = np.random.default_rng(1)
        for _ in range(5):
            change = rng.normal(size=(4, 5))
            change -= change.mean(0)
            change -= change.mean(1, keepdims=True)
            other = found.plan + 1e-3 * change
            assert np.all(other > 0)
            value = (other * cost).sum() + (other * jnp.log(other / (a[:, None] * b))).sum()
            assert value > found.cost


def test_it_stops_at_the_tolerance_and_says_when_it_did_not_get_there():
    cost, a, b = problem(dtype=np.float32)
    loose, tight = (optimum(cost, a, b, tolerance=tol) for tol in (1e-2, 1e-5))
    assert loose.iterations < tight.iterations < 2000
    assert loose.error <= 1e-2
    assert tight.error <= 1e-5
    stopped = optimum(cost, a, b, epsilon=0.01, tolerance=1e-6, max_iterations=3)
    assert stopped.iterations == 3
    assert stopped.error > 1e-6


def test_a_solved_problem_of_a_batch_stops():
    hard, a, b = problem(dtype=np.float32)
    both = optimum(jnp.stack([hard, 0.01 * hard]), jnp.stack([a, a]), jnp.stack([b, b]))
    alone = optimum(0.01 * hard, a, b)
    assert both.iterations[1] == alone.iterations < both.iterations[0]
    np.testing.assert_allclose(both.plan[1], alone.plan, rtol=1e-6)


def test_large_epsilon_is_the_product_of_the_marginals_and_small_is_the_assignment():
    cost, a, b = problem(dtype=np.float32)
    plan = optimum(cost, a, b, epsilon=1e4).plan
    np.testing.assert_allclose(plan, a[:, None] * b, rtol=1e-3)
    order = jnp.array([2, 0, 3, 1])
    cost = 1.0 - jax.nn.one_hot(order, 4)
    found = optimum(cost, epsilon=0.01)
    np.testing.assert_allclose(found.plan, jax.nn.one_hot(order, 4) / 4, atol=1e-6)
    np.testing.assert_allclose((found.plan * cost).sum(), 0, atol=1e-6)


def slope(function, x, direction, step=1e-5):
    return (function(x + step * direction) - function(x - step * direction)) / (2 * step)


@pytest.mark.parametrize("shape", [(4, 5), (5, 3)])
def test_gradients_at_the_optimum_are_its_slopes(shape):
    rng = np.random.default_rng(3)
    weights = rng.normal(size=shape)
    with jax.enable_x64(True):
        arguments = problem(1, *shape)
        directions = [rng.normal(size=x.shape) for x in arguments]
        directions[1:] = [x - x.mean() for x in directions[1:]]

        def of_plan(*arguments):
            return (weights * optimum(*arguments, tolerance=1e-13).plan).sum()

        def of_cost(*arguments):
            return optimum(*arguments, tolerance=1e-13).cost

        for function in (of_plan, of_cost):
            gradients = jax.jit(jax.grad(function, argnums=(0, 1, 2)))(*arguments)
            for i, (gradient, direction) in enumerate(zip(gradients, directions)):

                def along(x, function=function, i=i):
                    return function(*arguments[:i], x, *arguments[i + 1 :])

                measured = slope(along, arguments[i], direction)
                np.testing.assert_allclose((gradient * direction).sum(), measured, rtol=1e-6)


def test_gradients_in_epsilon_are_slopes():
    weights = np.random.default_rng(3).normal(size=(4, 5))
    with jax.enable_x64(True):
        arguments = problem(1)

        def both(epsilon):
            found = optimum(*arguments, epsilon=epsilon, tolerance=1e-13)
            return jnp.stack([found.cost, (weights * found.plan).sum()])

        measured = slope(both, 0.2, 1.0)
        for derivative in (jax.jacrev, jax.jacfwd):
            np.testing.assert_allclose(jax.jit(derivative(both))(0.2), measured, rtol=1e-6)


def test_the_implicit_gradient_is_that_of_many_unrolled_steps():
    weights = np.random.default_rng(3).normal(size=(4, 5))
    with jax.enable_x64(True):
        cost, a, b = problem(1)

        def unrolled(cost):
            return (weights * plan_after(cost, a, b, epsilon=0.2, num_iterations=150)).sum()

        def implicit(cost):
            return (weights * optimum(cost, a, b, epsilon=0.2, tolerance=1e-13).plan).sum()

        first, second = (jax.jit(jax.grad(loss))(cost) for loss in (unrolled, implicit))
        np.testing.assert_allclose(first, second, atol=1e-9)


def test_second_derivatives_in_the_cost_are_slopes_of_the_plan():
    with jax.enable_x64(True):
        cost, a, b = problem(1)
        direction = np.random.default_rng(5).normal(size=cost.shape)

        gradient = jax.jit(jax.grad(lambda c: optimum(c, a, b, tolerance=1e-13).cost))

        second = jax.jvp(gradient, (cost,), (jnp.asarray(direction),))[1]
        np.testing.assert_allclose(second, slope(gradient, cost, direction), rtol=1e-5, atol=1e-9)


def test_the_plan_of_an_assignment_has_a_finite_gradient():
    cost = 1.0 - jnp.eye(4)

    def loss(cost):
        return (jnp.arange(16.0).reshape(4, 4) * optimum(cost, epsilon=0.01).plan).sum()

    np.testing.assert_allclose(jax.grad(loss)(cost), 0, atol=1e-4)


@pytest.mark.parametrize("solver", ["fixed", "optimal"])
def test_what_has_no_mass_is_as_if_it_were_not_there(solver):
    cost, a, b = problem(dtype=np.float32)
    weights = jnp.asarray(np.random.default_rng(0).normal(size=(4, 5)), jnp.float32)
    a, b = a.at[1].set(0), b.at[3].set(0)
    a, b = a / a.sum(), b / b.sum()
    rows, columns = np.array([0, 2, 3]), np.array([0, 1, 2, 4])

    def plan(cost, a, b):
        return plan_after(cost, a, b) if solver == "fixed" else optimum(cost, a, b).plan

    def loss(arrays, weights):
        return (weights * plan(*arrays)).sum()

    gradient = jax.jit(jax.grad(loss))
    whole = gradient((cost.at[1].set(jnp.nan).at[:, 3].set(jnp.inf), a, b), weights)
    kept = np.ix_(rows, columns)
    alone = gradient((cost[kept], a[rows], b[columns]), weights[kept])
    np.testing.assert_allclose(whole[0][kept], alone[0], rtol=1e-3, atol=1e-5)
    assert np.all(whole[0][1] == 0)
    assert np.all(whole[0][:, 3] == 0)
    assert all(np.all(np.isfinite(x)) for x in whole)
    np.testing.assert_array_equal(plan(cost, a, b)[1], 0)


def test_nothing_at_all_has_a_plan_of_zero():
    found = optimum(jnp.ones((3, 2)), jnp.zeros(3), jnp.zeros(2))
    np.testing.assert_array_equal(found.plan, 0)
    assert found.cost == 0


def test_the_divergence_of_a_set_from_itself_is_zero_where_the_cost_is_not():
    def of_points(x, y):
        costs = [pairwise_lp_cost(*pair, p=2) ** 2 for pair in ((x, y), (x, x), (y, y))]
        options = dict(epsilon=0.5, tolerance=1e-12)
        return sinkhorn_divergence(*costs, **options), optimum(costs[0], **options).cost

    with jax.enable_x64(True):
        both = jax.jit(jax.value_and_grad(of_points, argnums=1, has_aux=True))
        points = jnp.asarray(np.random.default_rng(0).normal(size=(5, 2)))
        (zero, cost), gradient = both(points, points)
        np.testing.assert_allclose(zero, 0, atol=1e-9)
        np.testing.assert_allclose(gradient, 0, atol=1e-8)
        assert cost > 0.1
        (moved, _), gradient = both(points, points + jnp.array([0.3, -0.4]))
        np.testing.assert_allclose(moved, 0.25, rtol=1e-8)
        np.testing.assert_allclose(5 * gradient, [[0.6, -0.8]] * 5, rtol=1e-7)


@few
@hypothesis.given(seed=seeds)
def test_the_divergence_is_not_negative_and_symmetric(seed):
    rng = np.random.default_rng(seed)
    x, y = (jnp.asarray(rng.normal(size=(n, 2)), jnp.float32) for n in (4, 5))
    xy, xx, yy = (pairwise_lp_cost(*p, p=2) for p in ((x, y), (x, x), (y, y)))
    there, back = divergence(xy, xx, yy), divergence(xy.T, yy, xx)
    assert there > -1e-4
    np.testing.assert_allclose(there, back, atol=1e-3)


@few
@hypothesis.given(seed=seeds)
def test_sinkd_reads_the_teacher_as_a_set_and_the_classes_without_names(seed):
    student, teacher = logits(seed)
    rng = np.random.default_rng(seed)
    rows, classes = rng.permutation(6), rng.permutation(4)
    loss = sinkd(student, teacher)
    assert np.all(loss >= 0)
    assert loss.mean() <= 2
    np.testing.assert_allclose(sinkd(student, teacher[rows]), loss, rtol=1e-3, atol=1e-5)
    renamed = sinkd(student[:, classes], teacher[:, classes])
    np.testing.assert_allclose(renamed, loss, rtol=1e-3, atol=1e-5)
    offset = sinkd(student + rng.normal(size=(6, 1)).astype(np.float32), teacher)
    np.testing.assert_allclose(offset, loss, rtol=1e-3, atol=1e-5)


def test_sinkd_does_not_ignore_which_classes_the_student_means():
    student, teacher = logits()
    other = sinkd(student[:, ::-1], teacher)
    assert not np.allclose(other.sum(), sinkd(student, teacher).sum(), rtol=1e-2)


def test_sinkd_of_one_example_is_twice_the_total_variation():
    student, teacher = logits(shape=(1, 4))
    q, p = (jax.nn.softmax(x / 2) for x in (student, teacher))
    for epsilon in (0.01, 10.0):
        loss = sinkd(student, teacher, epsilon=epsilon)
        np.testing.assert_allclose(loss, jnp.abs(q - p).sum(-1), rtol=1e-5)


def test_sinkd_of_equal_well_separated_batches_vanishes_with_epsilon():
    student = 20 * jnp.eye(4)
    loss, warm = (sinkd(student, student, epsilon=epsilon).sum() for epsilon in (0.02, 1e4))
    assert loss < 1e-5
    cost = pairwise_lp_cost(jax.nn.softmax(student / 2), jax.nn.softmax(student / 2))
    np.testing.assert_allclose(warm, 4 * cost.mean(), rtol=1e-3)


def test_sinkd_is_symmetric_only_at_convergence():
    student, teacher = logits()
    there, back = (
        sinkd(*pair, num_iterations=1).sum() for pair in ((student, teacher), (teacher, student))
    )
    assert abs(there - back) > 1e-3
    there, back = (
        sinkd(*pair, num_iterations=500).sum() for pair in ((student, teacher), (teacher, student))
    )
    np.testing.assert_allclose(there, back, atol=2e-5)


def test_sinkd_has_a_bounded_gradient_where_the_two_have_no_class_in_common():
    q, p = jnp.array([[1.0, 0, 0, 0]] * 2), jnp.array([[0, 0, 1.0, 0], [0, 0, 0, 1.0]])

    def loss(q):
        cost = pairwise_lp_cost(q, p)
        return 2 * (plan_after(cost) * cost).sum()

    gradient = jax.grad(loss)(q)
    assert 0.5 < jnp.linalg.norm(gradient) < 10


def test_a_stopped_plan_has_the_gradient_of_the_costs_alone():
    student, teacher = logits()
    q, p = (jax.nn.softmax(x / 2) for x in (student, teacher))
    plan = 6 * plan_after(pairwise_lp_cost(q, p))
    stopped = jax.grad(lambda s: sinkd(s, teacher, stop_plan_gradient=True).sum())(student)
    signs = jnp.sign(q[:, None] - p[None])
    of_q = jnp.einsum("ij,ijc->ic", plan, signs)
    expected = q / 2 * (of_q - (q * of_q).sum(-1, keepdims=True))
    np.testing.assert_allclose(stopped, expected, rtol=1e-3, atol=1e-6)
    through = jax.grad(lambda s: sinkd(s, teacher).sum())(student)
    assert not np.allclose(stopped, through, rtol=1e-2)


def test_masked_sinkd_is_that_of_the_other_rows():
    student, teacher = logits()
    keep = np.array([0, 2, 5])
    where = jnp.zeros(6, bool).at[keep].set(True)
    masked = sinkd(student, teacher, where=where)
    np.testing.assert_allclose(masked[keep], sinkd(student[keep], teacher[keep]), rtol=1e-4)
    np.testing.assert_array_equal(sinkd(student, teacher, where=jnp.zeros(6, bool)), 0)


@pytest.fixture
def ott():
    return pytest.importorskip("ott", reason="ott-jax, the oracle of this test, is not installed")


@pytest.mark.usefixtures("ott")
def test_plan_cost_and_gradient_agree_with_ott():
    from ott.geometry import geometry
    from ott.solvers import linear

    def theirs(cost, a, b, epsilon):
        geom = geometry.Geometry(cost, epsilon=epsilon)
        found = linear.solve(geom, a, b, threshold=1e-12, max_iterations=5000)
        return found.reg_ot_cost, found.matrix

    def ours(cost, a, b, epsilon):
        found = optimum(cost, a, b, epsilon=epsilon, tolerance=1e-12, max_iterations=5000)
        return found.cost, found.plan

    with jax.enable_x64(True):
        first, second = (jax.jit(jax.value_and_grad(f, has_aux=True)) for f in (theirs, ours))
        for epsilon in (0.05, 0.5):
            arguments = *problem(2), epsilon
            jax.tree.map(
                lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-8, atol=1e-9),
                first(*arguments),
                second(*arguments),
            )
