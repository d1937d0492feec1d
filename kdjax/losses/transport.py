"""Entropic optimal transport between weighted sets, and distillation by it.

    min_P  <P, C> + epsilon KL(P || a b^T)    over P >= 0 with row sums a and column sums b

for a cost C [..., rows, columns] and marginals a, b (uniform where they are None). `sinkhorn_plan`
is a fixed number of Sinkhorn's steps and is differentiated through them; `entropic_transport` goes
on to the optimum and is differentiated there, at a cost that does not depend on the steps.
Everything is computed on logarithms: no epsilon underflows.

A row or column of mass 0 is absent: its costs may hold anything, and have no gradient. This is
the mask of these functions.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from kdjax.losses import checks, sinkhorn
from kdjax.losses.checks import Scalar

Cost = Float[Array | np.ndarray, "*batch rows columns"]
RowMass = Float[Array | np.ndarray, "*batch rows"] | None
ColumnMass = Float[Array | np.ndarray, "*batch columns"] | None


class Transport(NamedTuple):
    """The optimum of an entropic transport problem.

    Attributes:
      cost: [...], <P, C> + epsilon KL(P || a b^T). Differentiable.
      plan: [..., rows, columns], P. Differentiable.
      row_potential: [..., rows], f of P = a b exp((f + g - C) / epsilon). Stopped. The derivative
        of the cost in a.
      column_potential: [..., columns], g. Stopped. The derivative of the cost in b.
      error: [...], a bound of sum_i |sum_j P_ij - a_i| / sum a; the column sums are exact.
      iterations: [...], how many steps it took.
    """

    cost: Float[Array, "*batch"]
    plan: Float[Array, "*batch rows columns"]
    row_potential: Float[Array, "*batch rows"]
    column_potential: Float[Array, "*batch columns"]
    error: Float[Array, "*batch"]
    iterations: Int[Array, "*batch"]


def pairwise_lp_cost(
    x: Float[Array | np.ndarray, "*batch rows features"],
    y: Float[Array | np.ndarray, "*batch columns features"],
    *,
    p: int = 1,
) -> Float[Array, "*batch rows columns"]:
    """Distances between two sets of points.

        C_ij = ( sum_c |x_ic - y_jc|^p )^(1/p)

    For distributions and p = 1 twice the total variation, in [0, 2].

    Args:
      x: floats [..., rows, features]. Differentiated; gradient 0 where points coincide.
      y: floats [..., columns, features]. Differentiated likewise.
      p: 1 or 2.

    Returns:
      [..., rows, columns], >= 0.

    Raises:
      ValueError: axes that do not match, p other than 1 and 2. TypeError: arrays not of floats.

    Source: Cui et al. 2024 (SinKD), arXiv:2402.17110.

    >>> import jax.numpy as jnp
    >>> x, y = jnp.array([[0.0, 0.0]]), jnp.array([[3.0, 4.0], [0.0, 1.0]])
    >>> print(pairwise_lp_cost(x, y), pairwise_lp_cost(x, y, p=2))
    [[7. 1.]] [[5. 1.]]
    """
    x, y = checks.shaped({"x": "... rows features", "y": "... columns features"}, x=x, y=y)
    if p not in (1, 2):
        raise ValueError(f"p must be 1 or 2, got {p}")
    # Differences, not a matrix product: a distance from a product has lost half of its digits
    # where points are close. The compiler fuses the sum, and never holds all differences.
    difference = x[..., :, None, :] - y[..., None, :, :]
    if p == 1:
        return jnp.sum(jnp.abs(difference), axis=-1)
    square = jnp.sum(difference**2, axis=-1)
    coincide = square == 0
    return jnp.where(coincide, 0.0, jnp.sqrt(jnp.where(coincide, 1.0, square)))


def sinkhorn_plan(
    cost: Cost,
    row_marginal: RowMass = None,
    column_marginal: ColumnMass = None,
    *,
    epsilon: Scalar = 0.1,
    num_iterations: int = 20,
) -> Float[Array, "*batch rows columns"]:
    """A transport plan by a fixed number of Sinkhorn's steps, differentiated through them.

        P = a b^T exp(-C / epsilon);  repeat: scale the rows to sum to a, then the columns to b

    The columns are last: their sums are exact, those of the rows are approximate. With marginals
    of 1 (a square C) this is SinKD's plan, of total mass B; the default has total mass 1.

    Args:
      cost: floats [..., rows, columns]. Differentiated.
      row_marginal: floats [..., rows], >= 0; None: 1 / rows each. Differentiated.
      column_marginal: floats [..., columns], >= 0, of the same total; None: 1 / columns each.
        Differentiated.
      epsilon: scalar > 0, may be traced. In the units of the cost.
      num_iterations: integer >= 0.

    Returns:
      [..., rows, columns], >= 0.

    Raises:
      ValueError: shapes that do not match, a marginal that is negative, totals that differ,
        epsilon <= 0, num_iterations < 0. TypeError: arrays that are not floats.

    Source: Cuturi 2013, arXiv:1306.0895; Cui et al. 2024 (SinKD), arXiv:2402.17110.

    >>> import jax.numpy as jnp
    >>> plan = sinkhorn_plan(jnp.array([[0.4, 1.4], [0.6, 0.4]]))
    >>> print(f"{2 * plan[0, 0]:.4f} {2 * plan[0, 1]:.6f} {2 * plan[1, 0]:.4f}")
    0.9788 0.000284 0.0212
    """
    checks.positive(epsilon=epsilon)
    checks.count(0, num_iterations=num_iterations)
    cost, a, b = _problem(cost, row_marginal, column_marginal)

    def step(potentials: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], None]:
        row = sinkhorn.row_potential(cost, potentials[1], b, epsilon)
        return (row, sinkhorn.row_potential(jnp.swapaxes(cost, -1, -2), row, a, epsilon)), None

    start = jnp.zeros_like(a), jnp.zeros_like(b)
    (row, column), _ = jax.lax.scan(step, start, length=num_iterations)
    return sinkhorn.plan_of(cost, a, b, row, column, epsilon)


def entropic_transport(
    cost: Cost,
    row_marginal: RowMass = None,
    column_marginal: ColumnMass = None,
    *,
    epsilon: Scalar = 0.1,
    tolerance: Scalar = 1e-4,
    max_iterations: int = 2000,
) -> Transport:
    """The optimal entropic transport, differentiated at the optimum.

        min_P  <P, C> + epsilon KL(P || a b^T),   row sums a, column sums b

    Sinkhorn's steps are repeated until the row sums are right up to the tolerance. The gradients
    do not go through them: that of the cost is P in C and the potentials in a and b (the envelope
    theorem; meant for changes that keep the totals equal), that of the plan is the implicit
    function theorem's, one linear system of the size of the shorter side. Both are those of the
    optimum, so right as far as it is reached: look at `error`. Second derivatives exist in C.

    The steps needed grow like the largest cost / epsilon, and worse where the plan is nearly a
    permutation. float32 reaches errors of about 1e-7 max C / epsilon.

    Args:
      cost: floats [..., rows, columns]. Differentiated.
      row_marginal: floats [..., rows], >= 0; None: 1 / rows each. Differentiated.
      column_marginal: floats [..., columns], >= 0, of the same total; None: 1 / columns each.
        Differentiated.
      epsilon: scalar > 0, may be traced (and differentiated). In the units of the cost.
      tolerance: scalar >= 0, may be traced; of the summed error of the row sums, as a share of the
        total mass.
      max_iterations: integer >= 1, where it stops in any case.

    Returns:
      A `Transport`; its cost is that of regularised transport, with KL to a b^T.

    Raises:
      ValueError: shapes that do not match, a marginal that is negative, totals that differ,
        epsilon <= 0, tolerance < 0, max_iterations < 1. TypeError: arrays that are not floats.

    Source: Cuturi 2013, arXiv:1306.0895; Peyre and Cuturi 2019, arXiv:1803.00567; for the
    implicit gradient Luise et al. 2018, arXiv:1805.11897.

    >>> import jax.numpy as jnp
    >>> found = entropic_transport(jnp.array([[0.0, 1.0], [1.0, 0.0]]), epsilon=0.1)
    >>> print(found.plan.round(3).tolist()[0][0], f"{found.cost:.4f}", found.iterations)
    0.5 0.0693 2
    """
    checks.positive(epsilon=epsilon)
    checks.not_negative(tolerance=tolerance)
    checks.count(1, max_iterations=max_iterations)
    cost, a, b = _problem(cost, row_marginal, column_marginal)
    epsilon = jnp.asarray(epsilon, cost.dtype)
    stopped = jax.lax.stop_gradient((cost, a, b, epsilon))

    def solve(cost: Array, a: Array, b: Array) -> tuple[Array, ...]:
        return sinkhorn.solve(cost, a, b, stopped[3], tolerance, max_iterations)

    # Mapped, not batched: a problem that is solved stops, whatever the others of the batch do.
    for _ in range(cost.ndim - 2):
        solve = jax.vmap(solve)
    row, column, error, iterations = solve(*stopped[:3])
    return Transport(
        sinkhorn.optimal_cost(cost, a, b, epsilon, row, column),
        sinkhorn.optimal_plan(cost, a, b, epsilon, row, column),
        *(row, column, error, iterations),
    )


def sinkhorn_divergence(
    cost: Cost,
    row_cost: Float[Array | np.ndarray, "*batch rows rows"],
    column_cost: Float[Array | np.ndarray, "*batch columns columns"],
    row_marginal: RowMass = None,
    column_marginal: ColumnMass = None,
    *,
    epsilon: Scalar = 0.1,
    tolerance: Scalar = 1e-4,
    max_iterations: int = 2000,
) -> Float[Array, "*batch"]:
    """Entropic transport without its bias: 0 between a set and itself.

        S = OT(C_xy; a, b) - 1/2 OT(C_xx; a, a) - 1/2 OT(C_yy; b, b)

    with OT the cost of `entropic_transport`, whose own minimum in y is not x: entropy blurs, and
    the blurred optimum is a shrunken set. For epsilon -> 0 this is optimal transport, for
    epsilon -> inf half of a squared maximum mean discrepancy with the kernel -C.

    Args:
      cost: floats [..., rows, columns], between both sets. Differentiated.
      row_cost: floats [..., rows, rows], within the first, symmetric. Differentiated.
      column_cost: floats [..., columns, columns], within the second, symmetric. Differentiated.
      row_marginal: floats [..., rows], >= 0; None: 1 / rows each. Differentiated.
      column_marginal: floats [..., columns], >= 0, of the same total; None: 1 / columns each.
        Differentiated.
      epsilon: scalar > 0, may be traced (and differentiated).
      tolerance: scalar >= 0, may be traced; see `entropic_transport`.
      max_iterations: integer >= 1.

    Returns:
      [...], >= 0 (up to the tolerance) for costs such as Euclidean distances and their squares.

    Raises:
      ValueError, TypeError: as `entropic_transport`; costs that are not square.

    Source: Genevay et al. 2018, arXiv:1706.00292; Feydy et al. 2019, arXiv:1810.08278.

    >>> import jax.numpy as jnp
    >>> x, y = jnp.array([[0.0], [1.0]]), jnp.array([[0.5], [1.5]])
    >>> costs = [pairwise_lp_cost(*pair) ** 2 for pair in ((x, y), (x, x), (y, y))]
    >>> print(f"{sinkhorn_divergence(*costs):.3f}")  # the squared shift
    0.250
    """
    axes = {"cost": "... rows columns", "row_cost": "... rows rows"}
    cost, row_cost, column_cost = checks.shaped(
        {**axes, "column_cost": "... columns columns"},
        cost=cost,
        row_cost=row_cost,
        column_cost=column_cost,
    )

    def optimum(cost: Array, a: RowMass, b: ColumnMass) -> Array:
        options = dict(epsilon=epsilon, tolerance=tolerance, max_iterations=max_iterations)
        return entropic_transport(cost, a, b, **options).cost

    within_rows = optimum(row_cost, row_marginal, row_marginal)
    within_columns = optimum(column_cost, column_marginal, column_marginal)
    return optimum(cost, row_marginal, column_marginal) - 0.5 * (within_rows + within_columns)


def sinkhorn_kd(
    student_logits: Float[Array | np.ndarray, "batch classes"],
    teacher_logits: Float[Array | np.ndarray, "batch classes"],
    *,
    temperature: Scalar = 2.0,
    epsilon: Scalar = 0.1,
    num_iterations: int = 20,
    p: int = 1,
    stop_plan_gradient: bool = False,
    where: Bool[Array | np.ndarray, " batch"] | None = None,
) -> Float[Array, " batch"]:
    """SinKD: move the batch of student distributions onto the batch of the teacher's.

        L_i = B sum_j P_ij W_ij,   W_ij = || q_i - p_j ||_p,   P = sinkhorn_plan(W)

    with q, p the probabilities at T. A distance between sets: the order of the teacher's rows
    does not count, so that only the losses beside it (`cross_entropy`, `kd`) say which example is
    which. With one row it is the distance of the two distributions. Unlike a KL divergence it is
    bounded and has a gradient even where the two have no class in common.

    The authors' loss is the sum over i, with a weight of 0.001 (0.0008): 0.001 B of the mean. For
    tokens, flatten those that count into the batch; the plan takes B^2 memory.

    Args:
      student_logits: floats [batch, classes]. Differentiated, through the plan too.
      teacher_logits: floats [batch, classes]. Stopped.
      temperature: scalar > 0, may be traced. The authors' code always takes 2.
      epsilon: scalar > 0, may be traced.
      num_iterations: integer >= 0.
      p: 1 or 2, the norm.
      stop_plan_gradient: take the plan for a constant: cheaper, and another gradient.
      where: booleans [batch]; False rows have no mass on either side, and loss 0.

    Returns:
      [batch], in [0, 2]. The sum over the batch is the published loss.

    Raises:
      ValueError: shapes that differ, not two axes, temperature or epsilon <= 0,
        num_iterations < 0, p other than 1 and 2. TypeError: arrays that are not floats, where
        that is not boolean.

    Source: Cui et al. 2024 (SinKD), arXiv:2402.17110.

    >>> import jax.numpy as jnp
    >>> student = jnp.log(jnp.array([[0.8, 0.2], [0.3, 0.7]]))
    >>> teacher = jnp.log(jnp.array([[0.6, 0.4], [0.1, 0.9]]))
    >>> print(f"{sinkhorn_kd(student, teacher, temperature=1.0).sum():.4f}")
    0.8045
    """
    axes = "batch classes"
    student, teacher = checks.shaped(
        {"student_logits": axes, "teacher_logits": axes},
        student_logits=student_logits,
        teacher_logits=teacher_logits,
    )
    checks.positive(temperature=temperature)
    if where is None:
        where = jnp.ones(student.shape[:1], bool)
    where = checks.mask(where, student.shape[:1])
    student, teacher = (jnp.where(where[:, None], x, 0.0) for x in (student, teacher))
    q, target = (
        jax.nn.softmax(x / temperature, axis=-1) for x in (student, jax.lax.stop_gradient(teacher))
    )
    count = jnp.maximum(jnp.sum(where), 1)
    mass = where.astype(q.dtype) / count
    cost = pairwise_lp_cost(q, target, p=p)
    plan = sinkhorn_plan(
        jax.lax.stop_gradient(cost) if stop_plan_gradient else cost,
        *(mass, mass),
        epsilon=epsilon,
        num_iterations=num_iterations,
    )
    return count * jnp.sum(plan * cost, axis=-1)


def _problem(
    cost: Cost, row_marginal: RowMass, column_marginal: ColumnMass
) -> tuple[Array, Array, Array]:
    """Cost and marginals, checked, with a cost of 0 where there is no mass."""
    cost, *given = checks.shaped(
        {
            "cost": "... rows columns",
            "row_marginal": "... rows",
            "column_marginal": "... columns",
        },
        cost=cost,
        **({} if row_marginal is None else {"row_marginal": row_marginal}),
        **({} if column_marginal is None else {"column_marginal": column_marginal}),
    )
    rows, columns = cost.shape[-2:]
    a = jnp.full((*cost.shape[:-2], rows), 1 / rows, cost.dtype)
    b = jnp.full((*cost.shape[:-2], columns), 1 / columns, cost.dtype)
    a = a if row_marginal is None else given[0]
    b = b if column_marginal is None else given[-1]
    # Values are checked where they are known, as those of numbers are.
    known = {
        name: np.asarray(marginal)
        for name, marginal in (("row_marginal", a), ("column_marginal", b))
        if not isinstance(marginal, jax.core.Tracer)
    }
    for name, marginal in known.items():
        if np.any(marginal < 0):
            raise ValueError(f"{name} must be >= 0, got {np.min(marginal)}")
    if len(known) == 2:
        totals = [marginal.sum(-1) for marginal in known.values()]
        if not np.allclose(*totals, rtol=1e-3):
            raise ValueError(
                "row_marginal and column_marginal must have one total, "
                f"got {totals[0].tolist()} and {totals[1].tolist()}"
            )
    present = (a > 0)[..., :, None] & (b > 0)[..., None, :]
    return jnp.where(present, cost, 0.0), a, b
