"""Scores of an architecture from one batch at initialisation: zero-cost proxies.

Larger is taken for better by all. The functions know no network: they take what it computed (its
activations, gradients, input Jacobian) or a pure function of its parameters. Those that score
parameters return one score an array of the tree: the published scores are sums over the weights of
convolutions and dense layers, without biases and normalisations, so pass, or sum, those alone.
`params` and FLOPs are the baselines to show beside any of them. Values in float32, or float64 for
float64.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree
from numpy import ndarray

from kdjax.losses import checks
from kdjax.losses.checks import Scalar
from kdjax.losses.relation_matrices import unit_vectors

HIGHEST = jax.lax.Precision.HIGHEST

Parameters = PyTree[Float[Array | ndarray, "..."]]
Scores = PyTree[Float[Array, ""]]
Jacobian = Float[Array | ndarray, "batch ..."]


def snip(parameters: Parameters, gradients: Parameters) -> Scores:
    """SNIP: how much the loss depends on the connections.

        S = sum_i |w_i dL/dw_i|,   L = the mean cross-entropy of the batch

    Args:
      parameters: a tree of floats. Differentiated.
      gradients: of L, a tree alike. Differentiated.

    Returns:
      A scalar >= 0 for each array of the tree.

    Raises:
      ValueError: trees or shapes that differ. TypeError: leaves that are not floats.

    Source: Lee et al. 2019, arXiv:1810.02340; Abdelfattah et al. 2021, arXiv:2101.08134.

    >>> import jax.numpy as jnp
    >>> print(snip(jnp.array([1.0, 2.0]), jnp.array([3.0, -1.0])))
    5.0
    """
    parameters, gradients = _alike(parameters, gradients)
    return jax.tree.map(lambda w, g: jnp.sum(jnp.abs(w * g)), parameters, gradients)


def plain_saliency(parameters: Parameters, gradients: Parameters) -> Scores:
    """The proxy "plain": SNIP with signs, the slope of the loss in the size of the weights.

        S = sum_i w_i dL/dw_i

    Args:
      parameters: a tree of floats. Differentiated.
      gradients: of the mean loss, a tree alike. Differentiated.

    Returns:
      A scalar for each array of the tree.

    Raises:
      ValueError: trees or shapes that differ. TypeError: leaves that are not floats.

    Source: Abdelfattah et al. 2021, arXiv:2101.08134.

    >>> import jax.numpy as jnp
    >>> print(plain_saliency(jnp.array([1.0, 2.0]), jnp.array([3.0, -1.0])))
    1.0
    """
    parameters, gradients = _alike(parameters, gradients)
    return jax.tree.map(lambda w, g: jnp.sum(w * g), parameters, gradients)


def grad_norm(gradients: Parameters) -> Scores:
    """The length of the gradient, layer by layer.

        S = ||dL/dw||_2

    The published score is the sum over layers, not the length of the whole gradient.

    Args:
      gradients: of the mean loss, a tree of floats. Differentiated.

    Returns:
      A scalar >= 0 for each array of the tree.

    Raises:
      TypeError: leaves that are not floats.

    Source: Abdelfattah et al. 2021, arXiv:2101.08134.

    >>> import jax.numpy as jnp
    >>> print(grad_norm(jnp.array([3.0, -4.0])))
    5.0
    """
    return jax.tree.map(_length, _floats("gradients", gradients))


def l2_norm(parameters: Parameters) -> Scores:
    """The length of the weights, layer by layer: a proxy that sees no data.

        S = ||w||_2

    Args:
      parameters: a tree of floats. Differentiated.

    Returns:
      A scalar >= 0 for each array of the tree; the published score is their sum.

    Raises:
      TypeError: leaves that are not floats.

    Source: Abdelfattah et al. 2021, arXiv:2101.08134.

    >>> import jax.numpy as jnp
    >>> print(l2_norm(jnp.array([3.0, -4.0])))
    5.0
    """
    return jax.tree.map(_length, _floats("parameters", parameters))


def grasp(loss: Callable[[Parameters], Array], parameters: Parameters) -> Scores:
    """GraSP: how much the weights hold up the flow of the gradient.

        S = -sum_i w_i (H g)_i,   g = dL/dw,  H = d2L/dw2

    One Hessian-vector product, over all of `parameters`: let `loss` close over the biases, which
    take no part in the published score, not even in H g.

    Args:
      loss: a function of the parameters that returns the mean loss of the batch, a scalar.
      parameters: a tree of floats. Differentiated.

    Returns:
      A scalar for each array of the tree.

    Raises:
      TypeError: leaves that are not floats, a loss that is not a scalar.

    Source: Wang et al. 2020, arXiv:2002.07376; Abdelfattah et al. 2021, arXiv:2101.08134.

    >>> import jax.numpy as jnp
    >>> print(grasp(lambda w: jnp.sum(w**4), jnp.array(1.0)))
    -48.0
    """
    parameters = _floats("parameters", parameters)
    gradient_of = jax.grad(loss)
    gradients = gradient_of(parameters)
    _, curved = jax.jvp(gradient_of, (parameters,), (gradients,))
    return jax.tree.map(lambda w, hg: -jnp.sum(w * hg), parameters, curved)


def synflow(outputs: Callable[[Parameters], Array], parameters: Parameters) -> Scores:
    """SynFlow: the flow from an input of ones to the outputs through the sizes of the weights.

        S = sum_i |w_i dR/dw_i|,   R = sum of outputs(|w|)

    `outputs` is the network on one example of ones, with its normalisations bypassed ("synflow_bn"
    keeps them). All of its parameters and buffers must be positive: pass them all, or close over
    their absolute values. A network of L layers without biases has S = L R.

    R is a product over layers and soon overflows float32: the published score is computed in
    float64 (`jax.enable_x64`).

    Args:
      outputs: a function of the parameters that returns the outputs of the network, any array.
      parameters: a tree of floats. Differentiated.

    Returns:
      A scalar >= 0 for each array of the tree.

    Raises:
      TypeError: leaves that are not floats.

    Source: Tanaka et al. 2020, arXiv:2006.05467.

    >>> import jax.numpy as jnp
    >>> weights = {"first": jnp.array([[1.0, -2.0]]), "second": jnp.array([[3.0], [0.5]])}
    >>> synflow(lambda w: jnp.ones(1) @ w["first"] @ w["second"], weights)["first"].item()
    4.0
    """
    positive = jax.tree.map(jnp.abs, _floats("parameters", parameters))
    flow = jax.grad(lambda w: jnp.sum(outputs(w)))(positive)
    return jax.tree.map(lambda w, g: jnp.sum(jnp.abs(w * g)), positive, flow)


def fisher(
    activations: Float[Array | ndarray, "batch *positions channels"],
    gradients: Float[Array | ndarray, "batch *positions channels"],
    *,
    weights_per_channel: int,
) -> Float[Array, "channels"]:
    """Fisher pruning's sensitivity of the channels of one layer's output.

        S_c = weights_per_channel / 2 mean_b ( sum_positions a_bc dL/da_bc )^2

    with a the output of a convolution or dense layer before its activation function. The published
    score sums over channels and layers, once for each weight of the channel.

    Args:
      activations: floats [batch, ..., channels]. Differentiated.
      gradients: of the MEAN loss of the batch in the activations. Differentiated.
      weights_per_channel: integer >= 1, the fan-in of a channel.

    Returns:
      [channels], >= 0.

    Raises:
      ValueError: shapes that differ, one axis only, weights_per_channel < 1.
      TypeError: arrays that are not floats.

    Source: Theis et al. 2018, arXiv:1801.05787; Turner et al. 2020, arXiv:1906.04113.

    >>> import jax.numpy as jnp
    >>> fisher(jnp.array([[2.0], [1.0]]), jnp.array([[1.0], [0.0]]), weights_per_channel=3).tolist()
    [3.0]
    """
    axes = "... channels"
    if jnp.ndim(activations) < 2:
        raise ValueError(
            f"activations must be shaped [batch, ..., channels], got shape {jnp.shape(activations)}"
        )
    activations, gradients = checks.shaped(
        {"activations": axes, "gradients": axes}, activations=activations, gradients=gradients
    )
    checks.count(1, weights_per_channel=weights_per_channel)
    products = activations * gradients
    of_example = jnp.sum(products, axis=range(1, products.ndim - 1))
    return 0.5 * weights_per_channel * jnp.mean(of_example**2, axis=0)


def nwot(pre_activations: Float[Array | ndarray, "batch ..."]) -> Float[Array, ""]:
    """NWOT (NASWOT): how well the patterns of active units tell examples apart.

        S = log det K,   K_ij = number of units that are active for both i and j, or for neither

    Args:
      pre_activations: what enters the ReLUs, floats [batch, ...]. The published K is a sum over
        layers: concatenate their units. Only the signs are read: no gradient.

    Returns:
      Scalar; -inf where K is singular, as for two examples of one pattern.

    Raises:
      ValueError: one axis only. TypeError: an array that is not of floats.

    Source: Mellor et al. 2021, arXiv:2006.04647.

    >>> import jax.numpy as jnp
    >>> print(f"{nwot(jnp.array([[1.0, 1.0, -1.0, -1.0], [1.0, -1.0, 1.0, -1.0]])):.4f}")
    2.4849
    """
    units = _examples(pre_activations=jax.lax.stop_gradient(pre_activations))
    signs = jnp.where(units > 0, 1.0, -1.0).astype(units.dtype)
    product = jnp.matmul(signs, signs.T, precision=HIGHEST)
    # Sums of integers: exact up to 2^24 units.
    eigenvalues = jnp.linalg.eigvalsh((units.shape[1] + product) / 2)
    rounding = len(eigenvalues) * jnp.finfo(units.dtype).eps * jnp.max(eigenvalues)
    singular = eigenvalues <= rounding
    logs = jnp.log(jnp.where(singular, 1.0, eigenvalues))
    return jnp.sum(jnp.where(singular, -jnp.inf, logs))


def jacobian_covariance(jacobian: Jacobian, *, epsilon: Scalar = 1e-5) -> Float[Array, ""]:
    """The proxy "jacov": how differently a network's outputs depend on its inputs.

        S = -sum_i [ log(v_i + epsilon) + 1 / (v_i + epsilon) ]

    with v the eigenvalues of the correlation matrix of the rows of `jacobian`. Largest for rows
    without correlation, where it is -batch. Where there are more examples than inputs, eigenvalues
    are 0 and each costs 1 / epsilon: the score is then that of rounding.

    Args:
      jacobian: the gradient of the sum of the outputs in the inputs of each example,
        `jax.grad(lambda x: apply(x).sum())(inputs)`, floats [batch, ...], batch >= 2.
        Differentiated.
      epsilon: scalar > 0, may be traced.

    Returns:
      Scalar; NaN if a row is constant (all of the example's ReLUs are dead), which is not hidden.

    Raises:
      ValueError: one axis only, a batch of one, epsilon <= 0. TypeError: an array not of floats.

    Source: Mellor et al. 2020 (version 1), arXiv:2006.04647; Abdelfattah et al. 2021,
      arXiv:2101.08134.

    >>> import jax.numpy as jnp
    >>> jacobian = jnp.array([[1.0, -1.0, 0.0, 0.0], [0.0, 0.0, 1.0, -1.0]])
    >>> print(f"{jacobian_covariance(jacobian):.4f}")
    -2.0000
    """
    correlations, constant = _row_correlations(jacobian)
    checks.positive(epsilon=epsilon)
    shifted = jnp.linalg.eigvalsh(correlations) + epsilon
    score = -jnp.sum(jnp.log(shifted) + 1 / shifted)
    return jnp.where(jnp.any(constant), jnp.nan, score)


def epe_nas(
    jacobian: Jacobian,
    labels: Int[Array | ndarray, "batch"],
    *,
    num_classes: int,
    epsilon: Scalar = 1e-5,
) -> Float[Array, ""]:
    """EPE-NAS: how alike a network's input gradients are within classes.

        s_c = sum_{i, j of class c} log(|r_ij| + epsilon)
        S = sum_c |s_c|                             up to 100 classes
        S = mean_c sum_d |s_c / n_c - s_d / n_d|    for more

    with r the correlations of the rows of `jacobian` and n_c the examples of class c. Classes that
    are not in the batch take no part.

    Args:
      jacobian: the gradient of the sum of the outputs in the inputs of each example,
        floats [batch, ...], batch >= 2. Differentiated.
      labels: integers [batch]; rows outside [0, num_classes) take no part.
      num_classes: integer >= 1; decides between the two forms.
      epsilon: scalar > 0, may be traced.

    Returns:
      Scalar, >= 0; NaN if a row of a class is constant (all of the example's ReLUs are dead).

    Raises:
      ValueError: one axis only, a batch of one, labels of another shape, epsilon <= 0.
      TypeError: a Jacobian that is not of floats, labels that are not integers.

    Source: Lopes et al. 2021, arXiv:2102.08099.

    >>> import jax.numpy as jnp
    >>> jacobian = jnp.array([[1.0, -1.0, 0.0], [1.0, 0.0, -1.0]])
    >>> print(f"{epe_nas(jacobian, jnp.array([0, 0]), num_classes=2):.4f}")
    1.3862
    """
    correlations, constant = _row_correlations(jacobian)
    labels = checks.labels(labels, correlations.shape[:1])
    checks.positive(epsilon=epsilon)
    checks.count(1, num_classes=num_classes)
    member = (labels[:, None] == jnp.arange(num_classes)).astype(correlations.dtype)
    logs = jnp.log(jnp.abs(correlations) + epsilon)
    of_class = jnp.sum(member * jnp.matmul(logs, member, precision=HIGHEST), axis=0)
    size = jnp.sum(member, axis=0)
    present = size > 0
    if num_classes <= 100:
        score = jnp.sum(jnp.abs(of_class))
    else:
        mean = of_class / jnp.maximum(size, 1)
        both = present[:, None] & present[None, :]
        gaps = jnp.where(both, jnp.abs(mean[:, None] - mean[None, :]), 0.0)
        score = jnp.sum(gaps) / jnp.maximum(jnp.sum(present), 1)
    dead = jnp.any(constant & checks.valid_labels(labels, num_classes))
    return jnp.where(dead, jnp.nan, score)


def zen(
    outputs: Float[Array | ndarray, "batch ..."],
    perturbed_outputs: Float[Array | ndarray, "batch ..."],
    variances: PyTree[Float[Array | ndarray, "channels"]],
) -> Float[Array, ""]:
    """Zen-score: how strongly a network of Gaussian weights answers to a small change of its input.

        S = log mean_b sum |f(x) - f(x')| + sum_l log sqrt(mean_c variances_lc)

    with x ~ N(0, 1), x' = x + 0.01 N(0, 1), weights N(0, 1), and f the maps before pooling. The
    second term undoes the scaling of the batch normalisations, which keep the activations finite.

    Args:
      outputs: f(x), floats [batch, ...]. Differentiated.
      perturbed_outputs: f(x'), floats of the same shape. Differentiated.
      variances: the batch variances of every normalisation, a tree of floats [channels], > 0.
        Differentiated.

    Returns:
      Scalar; -inf if the outputs are equal.

    Raises:
      ValueError: shapes that differ, one axis only. TypeError: arrays that are not floats.

    Source: Lin et al. 2021 (Zen-NAS), arXiv:2102.01063.

    >>> import jax.numpy as jnp
    >>> score = zen(jnp.array([[1.0, 2.0]]), jnp.array([[0.0, 1.0]]), [jnp.array([4.0, 4.0])])
    >>> print(f"{score:.4f}")
    1.3863
    """
    outputs, perturbed = checks.shaped(
        {"outputs": "...", "perturbed_outputs": "..."},
        outputs=outputs,
        perturbed_outputs=perturbed_outputs,
    )
    if outputs.ndim < 2:
        raise ValueError(f"outputs must be shaped [batch, ...], got shape {outputs.shape}")
    gap = jnp.mean(jnp.sum(jnp.abs(outputs - perturbed), axis=range(1, outputs.ndim)))
    response = jnp.where(gap == 0, -jnp.inf, jnp.log(jnp.where(gap == 0, 1.0, gap)))
    scales = [jnp.log(jnp.mean(v)) / 2 for v in jax.tree.leaves(_floats("variances", variances))]
    return sum(scales, start=response)


def _floats(name: str, tree: Parameters) -> Parameters:
    """The tree in at least float32, after a check that its leaves are floats."""

    def as_float(path: tuple, leaf: Array) -> Array:
        full = name + jax.tree_util.keystr(path)
        return checks.shaped({full: "..."}, **{full: leaf})[0]

    return jax.tree_util.tree_map_with_path(as_float, tree)


def _alike(parameters: Parameters, gradients: Parameters) -> tuple[Parameters, Parameters]:
    parameters, gradients = _floats("parameters", parameters), _floats("gradients", gradients)
    expected, found = jax.tree.structure(parameters), jax.tree.structure(gradients)
    if expected != found:
        raise ValueError(f"gradients must be a tree {expected} as parameters, got {found}")
    shapes = [jax.tree.map(jnp.shape, tree) for tree in (parameters, gradients)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"gradients must be shaped {shapes[0]} as parameters, got {shapes[1]}")
    return parameters, gradients


def _examples(least: int = 1, **named: Array) -> Array:
    """[batch, ...] as [batch, features]."""
    ((name, array),) = named.items()
    if jnp.ndim(array) < 2:
        raise ValueError(f"{name} must be shaped [batch, ...], got shape {jnp.shape(array)}")
    flat = jnp.reshape(array, (jnp.shape(array)[0], -1))
    (flat,) = checks.shaped({name: f"batch>={least} features"}, **{name: flat})
    return flat


def _row_correlations(jacobian: Array) -> tuple[Array, Array]:
    """The correlation matrix of the rows, and which of them are constant."""
    rows = _examples(least=2, jacobian=jacobian)
    centred = rows - jnp.mean(rows, axis=1, keepdims=True)
    directions = unit_vectors(centred)
    correlations = jnp.matmul(directions, directions.T, precision=HIGHEST)
    return correlations, jnp.all(rows == rows[:, :1], axis=1)


def _length(array: Array) -> Array:
    square = jnp.sum(array**2)
    return jnp.where(square == 0, 0.0, jnp.sqrt(jnp.where(square == 0, 1.0, square)))
