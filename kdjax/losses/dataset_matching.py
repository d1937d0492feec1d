"""Dataset distillation: what a synthetic data set must match of the real one.

The gradients of a network (gradient matching), its mean features (distribution matching), or where
training takes it (trajectory matching). Parameters and gradients are pytrees. These losses train
the synthetic data, through arguments that were computed from it: second derivatives come from
JAX, not from here. Real data and experts are constants.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree

from kdjax.losses import checks, log_space
from kdjax.losses.checks import Logits, Losses, Scalar

Tree = PyTree[Float[Array | np.ndarray, "..."]]
Value = Float[Array, ""]


def gradient_matching(
    synthetic_gradients: Tree,
    real_gradients: Tree,
    *,
    output_axis: int = -1,
    epsilon: Scalar = 1e-6,
) -> Value:
    """Dataset condensation: the angle between the gradients, for each unit of each layer.

        L = sum_layers sum_units 1 - <a, b> / (|a| |b| + epsilon)

    with a, b the gradients of the weights that lead to one output unit. Tensors of rank 1 (biases,
    norms) and scalars do not count. Where a or b is 0 the distance is 1, with no gradient. The
    published loss is the sum over the classes, each with batches of its own.

    Args:
      synthetic_gradients: pytree of floats, of the loss on synthetic data. Differentiated.
      real_gradients: pytree of the same structure and shapes, on real data. Stopped.
      output_axis: integer, the axis of the output units: last in JAX (kernels are [..., in, out]),
        0 in PyTorch.
      epsilon: scalar >= 0, may be traced.

    Returns:
      Scalar, from 0 to 2 for each unit, but for epsilon.

    Raises:
      ValueError: trees or shapes that differ, epsilon < 0. TypeError: arrays that are not floats.

    Source: Zhao et al. 2021 (DC), arXiv:2006.05929, equation 10 (its "ours").

    >>> import jax.numpy as jnp
    >>> gradients = jnp.array([[3.0], [4.0]]), jnp.array([[4.0], [3.0]])
    >>> print(f"{gradient_matching(*gradients):.4f}")
    0.0400
    """
    checks.not_negative(epsilon=epsilon)
    pairs = _leaves(synthetic_gradients=synthetic_gradients, real_gradients=real_gradients)
    total = jnp.zeros((), jnp.float32)
    for synthetic, real in pairs:
        if synthetic.ndim < 2:
            continue
        synthetic, real = (
            jnp.moveaxis(x, output_axis, 0).reshape(x.shape[output_axis], -1)
            for x in (synthetic, jax.lax.stop_gradient(real))
        )
        total += jnp.sum(_cosine_distance(synthetic, real, epsilon))
    return total


def gradient_matching_mse(synthetic_gradients: Tree, real_gradients: Tree) -> Value:
    """The squared distance between the gradients, all tensors counted.

        L = sum_layers |a - b|^2

    A sum, in spite of the name that it has in the authors' code.

    Args:
      synthetic_gradients: pytree of floats, of the loss on synthetic data. Differentiated.
      real_gradients: pytree of the same structure and shapes, on real data. Stopped.

    Returns:
      Scalar, >= 0.

    Raises:
      ValueError: trees or shapes that differ. TypeError: arrays that are not floats.

    Source: Zhao et al. 2021 (DC), arXiv:2006.05929, table 8.

    >>> import jax.numpy as jnp
    >>> print(gradient_matching_mse(jnp.array([3.0, 4.0]), jnp.array([4.0, 3.0])))
    2.0
    """
    pairs = _leaves(synthetic_gradients=synthetic_gradients, real_gradients=real_gradients)
    return _squared_distance([(a, jax.lax.stop_gradient(b)) for a, b in pairs])


def gradient_matching_cosine(
    synthetic_gradients: Tree, real_gradients: Tree, *, epsilon: Scalar = 1e-6
) -> Value:
    """The angle between the gradients, all tensors as one vector.

        L = 1 - <a, b> / (|a| |b| + epsilon)

    Args:
      synthetic_gradients: pytree of floats, of the loss on synthetic data. Differentiated.
      real_gradients: pytree of the same structure and shapes, on real data. Stopped.
      epsilon: scalar >= 0, may be traced.

    Returns:
      Scalar, from 0 to 2; 1 where either is 0.

    Raises:
      ValueError: trees or shapes that differ, epsilon < 0. TypeError: arrays that are not floats.

    Source: Zhao et al. 2021 (DC), arXiv:2006.05929, table 8.

    >>> import jax.numpy as jnp
    >>> print(f"{gradient_matching_cosine(jnp.array([3.0, 4.0]), jnp.array([4.0, 3.0])):.4f}")
    0.0400
    """
    checks.not_negative(epsilon=epsilon)
    pairs = _leaves(synthetic_gradients=synthetic_gradients, real_gradients=real_gradients)
    synthetic = jnp.concatenate([a.ravel() for a, _ in pairs])
    real = jax.lax.stop_gradient(jnp.concatenate([b.ravel() for _, b in pairs]))
    return _cosine_distance(synthetic, real, epsilon)


def distribution_matching(
    synthetic_features: Float[Array | np.ndarray, "*classes synthetic features"],
    real_features: Float[Array | np.ndarray, "*classes real features"],
    *,
    where: Bool[Array | np.ndarray, "*classes real"] | None = None,
) -> Float[Array, "*classes"]:
    """The squared distance between the mean features of synthetic and real data of a class.

        L_c = | mean_i f(x_ci) - mean_j f(x'_cj) |^2

    f is a network with random parameters, new in every step, and both sides see the same random
    augmentation. The published loss is the sum over the classes, not their mean.

    Args:
      synthetic_features: floats [..., synthetic, features], one set a class. Differentiated.
      real_features: floats [..., real, features]. Stopped.
      where: booleans [..., real]; real examples that are False take no part. A class without any
        has loss 0.

    Returns:
      [...], one a class, >= 0.

    Raises:
      ValueError: shapes that do not fit. TypeError: arrays that are not floats, where that is not
      boolean.

    Source: Zhao & Bilen 2021 (DM), arXiv:2110.04181, equation 5.

    >>> import jax.numpy as jnp
    >>> print(distribution_matching(jnp.array([[1.0, 2.0]]), jnp.array([[0.0, 0.0], [2.0, 0.0]])))
    4.0
    """
    synthetic, real = checks.shaped(
        {
            "synthetic_features": "... synthetic features",
            "real_features": "... real features",
        },
        synthetic_features=synthetic_features,
        real_features=real_features,
    )
    real = jax.lax.stop_gradient(real)
    if where is None:
        return jnp.sum((real.mean(-2) - synthetic.mean(-2)) ** 2, axis=-1)
    where = checks.boolean("where", where, real.shape[:-1], "real_features without its features")
    count = jnp.sum(where, axis=-1)
    total = jnp.sum(jnp.where(where[..., None], real, 0.0), axis=-2)
    mean = total / jnp.maximum(count, 1)[..., None]
    distance = jnp.sum((mean - synthetic.mean(-2)) ** 2, axis=-1)
    return jnp.where(count == 0, 0.0, distance)


def trajectory_matching(
    student_parameters: Tree, teacher_start: Tree, teacher_target: Tree
) -> Value:
    """How far training on synthetic data ends from the expert, as part of the expert's way.

        L = |theta - theta*_end|^2 / |theta*_start - theta*_end|^2

    theta starts at theta*_start and takes a few steps on synthetic data: `unrolled_sgd` (MTT) or
    `unrolled_sgd_in_constant_memory` (TESLA). Several networks (an image's and a text's) are
    either two losses, added, or one of the pair.

    Args:
      student_parameters: pytree of floats, theta. Differentiated.
      teacher_start: pytree of the same structure and shapes, theta*_start. Stopped.
      teacher_target: pytree of the same structure and shapes, theta*_end. Stopped.

    Returns:
      Scalar, >= 0: 1 at the start, 0 at the target. An expert that did not move teaches nothing:
      0, with no gradient (an error where that is known).

    Raises:
      ValueError: trees or shapes that differ, an expert known not to move.
      TypeError: arrays that are not floats.

    Source: Cazenavette et al. 2022 (MTT), arXiv:2203.11932, equation 2.

    >>> import jax.numpy as jnp
    >>> start, target = jnp.array([0.0, 0.0]), jnp.array([2.0, 0.0])
    >>> print(trajectory_matching(jnp.array([1.0, 1.0]), start, target))
    0.5
    """
    leaves = _leaves(
        student_parameters=student_parameters,
        teacher_start=teacher_start,
        teacher_target=teacher_target,
    )
    leaves = [(a, *map(jax.lax.stop_gradient, expert)) for a, *expert in leaves]
    way = _squared_distance([(start, target) for _, start, target in leaves])
    if not isinstance(way, jax.core.Tracer) and way == 0:
        raise ValueError("teacher_start and teacher_target must differ, got equal parameters")
    distance = _squared_distance([(student, target) for student, _, target in leaves])
    return jnp.where(way == 0, 0.0, distance / jnp.where(way == 0, 1.0, way))


def unrolled_sgd(
    batches: PyTree[Any],
    teacher_start: Tree,
    learning_rate: Tree | float,
    *,
    inner_loss: Callable[[Any, Any], Array],
) -> Tree:
    """The parameters after steps of gradient descent, differentiable through all of them.

        theta_{k+1} = theta_k - lr d inner_loss(theta_k, batch_k) / d theta

    Memory grows with the activations of every step; `unrolled_sgd_in_constant_memory` has the same
    value and an approximate gradient.

    Args:
      batches: pytree of arrays [steps, ...]: synthetic data, labels, and whatever else a step
        reads. Differentiated. Index the synthetic set outside: rows that occur twice add up.
      teacher_start: pytree of floats, an expert's parameters. Stopped.
      learning_rate: scalar, or a pytree of scalars that is a prefix of teacher_start (one for each
        network). Differentiated.
      inner_loss: (parameters, batch) -> scalar.

    Returns:
      The parameters, of the structure of teacher_start.

    Raises:
      ValueError: batches without steps or of different numbers of them. TypeError: parameters
      that are not floats.

    Source: Cazenavette et al. 2022 (MTT), arXiv:2203.11932, algorithm 1.

    >>> import jax.numpy as jnp
    >>> loss = lambda theta, x: jnp.sum((theta - x) ** 2) / 2
    >>> print(unrolled_sgd(jnp.array([[1.0], [2.0]]), jnp.array([0.0]), 0.5, inner_loss=loss))
    [1.25]
    """
    start, rates = _start(batches, teacher_start, learning_rate)

    def step(parameters, batch):
        gradients = jax.grad(inner_loss)(parameters, batch)
        return jax.tree.map(_descend, parameters, rates, gradients), None

    return jax.lax.scan(step, start, batches)[0]


def unrolled_sgd_in_constant_memory(
    batches: PyTree[Any],
    teacher_start: Tree,
    learning_rate: Tree | float,
    *,
    inner_loss: Callable[[Any, Any], Array],
) -> Tree:
    """The parameters after steps of gradient descent, without a gradient from step to step.

        theta = theta_0 - lr sum_k g(stop theta_k, batch_k),   g = d inner_loss / d theta

    The value is that of `unrolled_sgd`. The gradient is TESLA's: of `trajectory_matching`,

        dL/dbatch_k = 2 / |theta_0 - theta*|^2  d (v . g(theta_k, batch_k)) / dbatch_k
        v = lr (theta* - theta_0) + lr^2 sum_j g_j

    It leaves out how a batch moves later parameters, and so is exact for one step. Activations of
    one step at a time are in memory, and the parameters of each.

    Args:
      batches: pytree of arrays [steps, ...], as in `unrolled_sgd`. Differentiated.
      teacher_start: pytree of floats, an expert's parameters. Stopped.
      learning_rate: scalar, or a pytree of scalars that is a prefix of teacher_start.
        Differentiated, with the sum of gradients held fixed.
      inner_loss: (parameters, batch) -> scalar.

    Returns:
      The parameters, of the structure of teacher_start.

    Raises:
      ValueError: batches without steps or of different numbers of them. TypeError: parameters
      that are not floats.

    Source: Cui et al. 2023 (TESLA), arXiv:2211.10586, equation 6.

    >>> import jax
    >>> import jax.numpy as jnp
    >>> loss = lambda theta, x: jnp.sum((theta - x) ** 2) / 2
    >>> batches, start = jnp.array([[1.0], [2.0]]), jnp.array([0.0])
    >>> end = lambda x: unrolled_sgd_in_constant_memory(x, start, 0.5, inner_loss=loss)[0]
    >>> print(end(batches), jax.grad(end)(batches).ravel())
    1.25 [0.5 0.5]
    """
    start, rates = _start(batches, teacher_start, learning_rate)

    gradient = jax.checkpoint(jax.grad(inner_loss))

    def step(carry, batch):
        parameters, total = carry
        gradients = gradient(parameters, batch)
        total = jax.tree.map(jnp.add, total, gradients)
        parameters = jax.tree.map(_descend, parameters, rates, gradients)
        return (jax.lax.stop_gradient(parameters), total), None

    zeros = jax.tree.map(jnp.zeros_like, start)
    _, total = jax.lax.scan(step, (start, zeros), batches)[0]
    return jax.tree.map(_descend, start, rates, total)


def soft_label_cross_entropy(student_logits: Logits, label_logits: Logits) -> Losses:
    """The cross-entropy to labels that are probabilities, and may be learned.

        L = -sum_c softmax(l)_c log softmax(s)_c

    The inner loss of synthetic data with soft labels: those of a teacher (TESLA), or learned with
    the data. Hence nothing is stopped; against fixed ones stop them yourself.

    Args:
      student_logits: floats [..., classes]. Differentiated.
      label_logits: floats [..., classes]; -inf is probability 0. Differentiated.

    Returns:
      [...], > 0.

    Raises:
      ValueError: shapes that differ. TypeError: arrays that are not floats.

    Source: Cui et al. 2023 (TESLA), arXiv:2211.10586, section 3.3.

    >>> import jax.numpy as jnp
    >>> loss = soft_label_cross_entropy(jnp.array([1.0, 0.0]), jnp.array([0.0, 0.0]))
    >>> print(f"{loss:.4f}")
    0.8133
    """
    student, label = checks.logits(student_logits=student_logits, label_logits=label_logits)
    return log_space.cross_entropy(
        log_space.safe_log_softmax(label), log_space.safe_log_softmax(student)
    )


def _leaves(**trees: Tree) -> list[tuple[Array, ...]]:
    """The leaves of trees of one structure and shapes, in one dtype each, matched."""
    (first, tree), *others = trees.items()
    structure = jax.tree.structure(tree)
    if structure.num_leaves == 0:
        raise ValueError(f"{first} must hold arrays, got {structure}")
    for other, another in others:
        if jax.tree.structure(another) != structure:
            raise ValueError(
                f"{other} must have the structure of {first}, got "
                f"{jax.tree.structure(another)} and {structure}"
            )
    named = {name: jax.tree.leaves(tree) for name, tree in trees.items()}
    axes = dict.fromkeys(trees, "...")
    return [
        checks.shaped(axes, **dict(zip(named, leaves, strict=True)))
        for leaves in zip(*named.values(), strict=True)
    ]


def _squared_distance(pairs: list[tuple[Array, Array]]) -> Array:
    return sum(jnp.sum((a - b) ** 2) for a, b in pairs)


def _cosine_distance(a: Array, b: Array, epsilon: Scalar) -> Array:
    """1 - cosine over the last axis; 1, with no gradient, where either is 0."""
    squares = [jnp.sum(x**2, axis=-1) for x in (a, b)]
    absent = (squares[0] == 0) | (squares[1] == 0)
    norms = [jnp.sqrt(jnp.where(absent, 1.0, square)) for square in squares]
    cosine = jnp.sum(a * b, axis=-1) / (norms[0] * norms[1] + epsilon)
    return 1 - jnp.where(absent, 0.0, cosine)


def _start(batches: PyTree[Any], start: Tree, learning_rate: Tree | float) -> tuple[Tree, Tree]:
    """The parameters, stopped and in at least float32, and a learning rate for each."""
    steps = {name.shape[:1] for name in map(jnp.asarray, jax.tree.leaves(batches))}
    if len(steps) != 1 or steps & {(), (0,)}:
        raise ValueError(
            "batches must be shaped [steps, ...] with one number of steps >= 1, got leading axes "
            f"{sorted(steps)}"
        )
    for leaf in jax.tree.leaves(start):
        checks.shaped({"teacher_start": "..."}, teacher_start=leaf)
    start = jax.tree.map(
        lambda x: jax.lax.stop_gradient(
            jnp.asarray(x, jnp.result_type(jnp.float32, jnp.asarray(x)))
        ),
        start,
    )
    rates = jax.tree.map(
        lambda rate, branch: jax.tree.map(lambda _: rate, branch), learning_rate, start
    )
    return start, rates


def _descend(parameter: Array, rate: Array, gradient: Array) -> Array:
    return (parameter - rate * gradient).astype(parameter.dtype)
