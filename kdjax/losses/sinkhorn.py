"""Sinkhorn's iteration on logarithms, and the derivatives of the optimum it leads to.

    P_ij = a_i b_j exp((f_i + g_j - C_ij) / epsilon)

What `transport` stands on. Costs are [..., rows, columns], the masses a and b and the potentials f
and g [..., rows] and [..., columns]. A row or column without mass has P = 0.
"""

import jax
import jax.numpy as jnp
from jax import Array

from kdjax.losses import log_space
from kdjax.losses.checks import Scalar


def _log_mass(mass: Array) -> Array:
    return jnp.where(mass > 0, jnp.log(jnp.where(mass > 0, mass, 1.0)), -jnp.inf)


def row_potential(cost: Array, column: Array, b: Array, epsilon: Array) -> Array:
    """The f that makes the row sums of a b exp((f + g - C) / epsilon) equal to a."""
    total = log_space.logsumexp(
        _log_mass(b)[..., None, :] + (column[..., None, :] - cost) / epsilon
    )
    empty = total == -jnp.inf
    return jnp.where(empty, 0.0, -epsilon * jnp.where(empty, 0.0, total))


def plan_of(cost: Array, a: Array, b: Array, row: Array, column: Array, epsilon: Array) -> Array:
    exponent = (row[..., :, None] + column[..., None, :] - cost) / epsilon
    return jnp.exp(exponent + _log_mass(a)[..., :, None] + _log_mass(b)[..., None, :])


def solve(
    cost: Array, a: Array, b: Array, epsilon: Array, tolerance: Scalar, max_iterations: int
) -> tuple[Array, Array, Array, Array]:
    """Potentials, error and iterations of one problem [rows, columns]."""
    total = jnp.where(jnp.sum(a) > 0, jnp.sum(a), 1.0)

    def unfinished(state: tuple) -> Array:
        _, _, error, iterations = state
        return (error > tolerance) & (iterations < max_iterations)

    def step(state: tuple) -> tuple:
        before, column, _, iterations = state
        row = row_potential(cost, column, b, epsilon)
        # The row sums of the plan before this step, relative to a, come for free.
        excess = jnp.where(a > 0, jnp.exp((before - row) / epsilon) - 1, 0.0)
        error = jnp.sum(a * jnp.abs(excess)) / total
        return row, row_potential(cost.T, row, a, epsilon), error, iterations + 1

    start = jnp.zeros_like(a), jnp.zeros_like(b), jnp.full((), jnp.inf, cost.dtype), jnp.int32(0)
    return jax.lax.while_loop(unfinished, step, start)


@jax.custom_jvp
def optimal_plan(
    cost: Array, a: Array, b: Array, epsilon: Array, row: Array, column: Array
) -> Array:
    return plan_of(cost, a, b, row, column, epsilon)


@optimal_plan.defjvp
def _optimal_plan_tangent(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    """The implicit function theorem.

    With P = exp((u + v - C) / epsilon) the marginals fix the change of u and v,

        [diag r  P    ] [du]   [epsilon da + (P dC) 1  ]
        [P^T   diag c ] [dv] = [epsilon db + (P dC)^T 1],    r = P 1,  c = P^T 1
    """
    epsilon = primals[3]
    plan = optimal_plan(*primals)
    cost_tangent, a_tangent, b_tangent, epsilon_tangent, _, _ = tangents
    log_plan = jnp.log(jnp.where(plan > 0, plan, 1.0))
    cost_tangent = cost_tangent + epsilon_tangent * log_plan
    moved = plan * cost_tangent
    change = _potential_tangents(
        plan, epsilon * a_tangent + moved.sum(-1), epsilon * b_tangent + moved.sum(-2)
    )
    return plan, plan * (change - cost_tangent) / epsilon


def _potential_tangents(plan: Array, of_rows: Array, of_columns: Array) -> Array:
    """du + dv [..., rows, columns] of the system in `_optimal_plan_tangent`."""
    if plan.shape[-2] < plan.shape[-1]:
        turned = _potential_tangents(jnp.swapaxes(plan, -1, -2), of_columns, of_rows)
        return jnp.swapaxes(turned, -1, -2)
    highest = jax.lax.Precision.HIGHEST
    rows, columns = plan.sum(-1), plan.sum(-2)
    row_scale, column_scale = (
        jnp.where(x > 0, 1 / jnp.sqrt(jnp.where(x > 0, x, 1.0)), 0.0) for x in (rows, columns)
    )
    scaled = row_scale[..., :, None] * plan * column_scale[..., None, :]
    # du is eliminated. What is left has the null vector sqrt(c) (a constant may move from u to v),
    # which is filled, and where the plan falls into parts that exchange nothing it is singular
    # up to rounding, which the ridge outweighs.
    null = jnp.sqrt(
        columns / jnp.maximum(columns.sum(-1, keepdims=True), jnp.finfo(plan.dtype).tiny)
    )
    size = plan.shape[-1]
    matrix = (1 + size * jnp.finfo(plan.dtype).eps) * jnp.eye(size, dtype=plan.dtype)
    matrix = matrix + null[..., :, None] * null[..., None, :]
    matrix = matrix - jnp.einsum("...ij,...ik->...jk", scaled, scaled, precision=highest)
    of_rows, of_columns = row_scale * of_rows, column_scale * of_columns
    right = of_columns - jnp.einsum("...ij,...i->...j", scaled, of_rows, precision=highest)
    solved = jnp.linalg.solve(matrix, right[..., None])[..., 0]
    of_rows = of_rows - jnp.einsum("...ij,...j->...i", scaled, solved, precision=highest)
    return (row_scale * of_rows)[..., :, None] + (column_scale * solved)[..., None, :]


@jax.custom_jvp
def optimal_cost(
    cost: Array, a: Array, b: Array, epsilon: Array, row: Array, column: Array
) -> Array:
    del cost, epsilon
    return jnp.sum(a * row, axis=-1) + jnp.sum(b * column, axis=-1)


@optimal_cost.defjvp
def _optimal_cost_tangent(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    """The envelope theorem."""
    cost, _, _, epsilon, row, column = primals
    cost_tangent, a_tangent, b_tangent, epsilon_tangent, _, _ = tangents
    value, plan = optimal_cost(*primals), optimal_plan(*primals)
    entropy = (value - jnp.sum(plan * cost, axis=(-1, -2))) / epsilon
    tangent = jnp.sum(plan * cost_tangent, axis=(-1, -2)) + entropy * epsilon_tangent
    tangent += jnp.sum(row * a_tangent, axis=-1) + jnp.sum(column * b_tangent, axis=-1)
    return value, tangent
