"""What scores of architectures need of a network: maps, gradients and Jacobians at initialisation.

Everything runs op by op, without compiling the network: a search looks at each candidate once, and
the operations of one candidate are those of the next. Normalisations use the statistics of the
batch. Kernels are the arrays of two or more axes in `params`: the weights of convolutions and dense
layers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np

from kdjax import losses
from kdjax.losses import zero_cost
from kdjax.networks import Network, available_taps, count_parameters, logits_of
from kdjax.training.flops import matrix_flops

PyTree = Any
Inputs = tuple[jax.Array, ...]

PROXIES = (
    "snip",
    "plain",
    "grad_norm",
    "l2_norm",
    "grasp",
    "fisher",
    "synflow",
    "synflow_bn",
    "nwot",
    "jacov",
    "epe_nas",
    "zen",
)


@dataclasses.dataclass(frozen=True)
class Observation:
    """What DisWOT sees of a network on one batch.

    Attributes:
      maps: the last map before pooling, `[B, H, W, C]` or whatever the tap has.
      head_gradients: of the mean cross-entropy in the classifier's weights, `[classes, features]`.
    """

    maps: jax.Array
    head_gradients: jax.Array


def gaussian(variables: Mapping[str, PyTree], rng: jax.Array) -> dict[str, PyTree]:
    """Kernels drawn from N(0, 1), scales of normalisations 1, and every other parameter 0.

    The initialisation that DisWOT's ResNet space and the Zen-score are computed at (Lin et al.
    2021, arXiv:2102.01063).

    Args:
      variables: of a network; collections other than `params` are kept.
      rng: a key; a parameter's values depend on it and on the place among the parameters.

    >>> import jax.numpy as jnp
    >>> norm = {"scale": jnp.full(2, 3.0), "bias": jnp.ones(2)}
    >>> found = gaussian({"params": {"norm": norm}}, jax.random.key(0))["params"]["norm"]
    >>> found["scale"].tolist(), found["bias"].tolist()
    ([1.0, 1.0], [0.0, 0.0])
    """
    flat = flax.traverse_util.flatten_dict(variables["params"])
    keys = jax.random.split(rng, len(flat))
    drawn = {}
    for key, (path, leaf) in zip(keys, sorted(flat.items())):
        if leaf.ndim >= 2:
            drawn[path] = jax.random.normal(key, leaf.shape, leaf.dtype)
        else:
            drawn[path] = jnp.full_like(leaf, path[-1] == "scale")
    return {**variables, "params": flax.traverse_util.unflatten_dict(drawn)}


def initial(network: Network, rng: jax.Array, inputs: Inputs, initialization: str) -> PyTree:
    """A network's variables: its own (`default`), or with `gaussian` kernels."""
    first, second = jax.random.split(rng)
    shapes = tuple(jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype) for x in inputs)
    if initialization == "default":
        return network.init(first, *[jnp.zeros(x.shape, x.dtype) for x in shapes])
    # The values are drawn anew: only shapes are needed, and nothing is computed for them.
    variables = jax.eval_shape(network.init, first, *shapes)
    started = {
        name: jax.tree_util.tree_map_with_path(_statistic, tree)
        for name, tree in variables.items()
        if name != "params"
    }
    params = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), variables["params"])
    return gaussian({"params": params, **started}, second)


def _statistic(path: tuple, leaf: jax.ShapeDtypeStruct) -> jax.Array:
    return jnp.full(leaf.shape, path[-1].key == "var", leaf.dtype)


def observe(
    network: Network, variables: PyTree, inputs: Inputs, labels: jax.Array, tap: str
) -> Observation:
    """What `similarities` compares, from one forward pass.

    The classifier is a dense layer on the output's `features` h, so that the gradient in its
    weights needs no backward pass: with p the softmax of the logits and y the one-hot labels,

        dL/dW = 1/B sum_b (p_b - y_b) h_b^T

    Args:
      network: its output has `logits` and `features`.
      variables: at initialisation.
      inputs: of a batch, arrays `[B, ...]`.
      labels: integers `[B]`.
      tap: pattern of the last map before pooling; must match one value.

    Raises:
      ValueError: the output has no `features`; the tap matches nothing, or several values.
    """
    found = network.apply(variables, *inputs, train=True, taps=(tap,))
    if len(found.taps) != 1:
        raise ValueError(f"map={tap!r} must match one value, it matches {sorted(found.taps)}")
    if not isinstance(found.output, Mapping) or "features" not in found.output:
        raise ValueError(
            "an architecture is scored by its classifier's gradient: the network's output must "
            "have 'features', the classifier's input"
        )
    (maps,) = found.taps.values()
    logits, features = logits_of(found.output), found.output["features"]
    errors = jax.nn.softmax(logits) - jax.nn.one_hot(labels, logits.shape[-1])
    gradients = jnp.matmul(errors.T, features, precision=jax.lax.Precision.HIGHEST)
    return Observation(maps, gradients / len(labels))


def similarities(student: Observation, teacher: Observation) -> dict[str, float]:
    """DisWOT's `relation` and `semantic`; without the latter where classifiers differ in width.

    Raises:
      ValueError: a batch of one, whose relations are always alike.
    """
    found = {"relation": jnp.mean(losses.relation_similarity(student.maps, teacher.maps))}
    if student.head_gradients.shape == teacher.head_gradients.shape:
        pair = student.head_gradients, teacher.head_gradients
        found["semantic"] = jnp.mean(losses.semantic_similarity(*pair))
    return {name: float(value) for name, value in found.items()}


def cost(network: Network, inputs: Inputs) -> dict[str, int]:
    """The baselines of every score: `parameters`, and `flops` of a forward pass of one example.

    Two operations for each multiply-add of matrix products and convolutions; nothing is computed.

    >>> from kdjax.networks import build
    >>> import jax.numpy as jnp
    >>> cost(build("mlp", num_classes=3, widths=(4,)), (jnp.ones((8, 2)),))
    {'parameters': 27, 'flops': 40}
    """
    one = tuple(jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype) for x in inputs)
    variables = jax.eval_shape(network.init, jax.random.key(0), *one)
    forward = jax.make_jaxpr(lambda v, *x: logits_of(network.apply(v, *x).output))
    return {
        "parameters": count_parameters(variables),
        "flops": matrix_flops(forward(variables, *one)),
    }


def proxies(
    network: Network,
    rng: jax.Array,
    inputs: Inputs,
    labels: jax.Array,
    *,
    tap: str,
    rectified: Sequence[str],
    names: Sequence[str] = PROXIES,
    initialization: str = "default",
) -> dict[str, float]:
    """Zero-cost proxies of a classifier on one batch, each the published sum over its layers.

    Larger is taken for better by all; the kernels are in `kdjax.losses`. `zen` always starts from
    `gaussian` kernels and noise; `synflow` puts 1 in place of every normalisation, `synflow_bn`
    keeps them, with the statistics of its one example.

    Args:
      network: a classifier of one input.
      rng: a key, of the initialisation and of `zen`.
      inputs: `([B, ...],)`, floats, B >= 2.
      labels: integers `[B]`.
      tap: pattern of the last map before pooling, for `zen`.
      rectified: patterns of what enters the ReLUs, for `nwot`.
      names: of `PROXIES`.
      initialization: `default` or `gaussian`.

    Returns:
      name -> score. NaN where a proxy is not defined (an example all of whose ReLUs are dead).

    Raises:
      ValueError: an unknown name, several inputs, a batch of one, a pattern that matches nothing.
    """
    unknown = [name for name in names if name not in PROXIES]
    if unknown:
        raise ValueError(f"names must be of {PROXIES}, got {unknown[0]!r}")
    if len(inputs) != 1:
        raise ValueError(f"zero-cost proxies read one input, got {len(inputs)}")
    (x,) = inputs
    if len(x) < 2:
        raise ValueError(
            f"zero-cost proxies need two examples or more, got {len(x)}: normalisations use the "
            "statistics of the batch"
        )
    variables = initial(network, rng, inputs, initialization)
    flat = flax.traverse_util.flatten_dict(variables["params"])
    kernels = {path: leaf for path, leaf in flat.items() if leaf.ndim >= 2}

    def logits_at(kernels: PyTree, x: jax.Array) -> jax.Array:
        params = flax.traverse_util.unflatten_dict({**flat, **kernels})
        return logits_of(network.apply({**variables, "params": params}, x, train=True).output)

    def loss(kernels: PyTree) -> jax.Array:
        return jnp.mean(losses.cross_entropy(logits_at(kernels, x), labels))

    found: dict[str, Any] = {}
    if {"snip", "plain", "grad_norm"} & set(names):
        gradients = jax.grad(loss)(kernels)
        found["snip"] = _total(zero_cost.snip(kernels, gradients))
        found["plain"] = _total(zero_cost.plain_saliency(kernels, gradients))
        found["grad_norm"] = _total(zero_cost.grad_norm(gradients))
    if "l2_norm" in names:
        found["l2_norm"] = _total(zero_cost.l2_norm(kernels))
    if "grasp" in names:
        found["grasp"] = _total(zero_cost.grasp(loss, kernels))
    if "fisher" in names:
        found["fisher"] = _fisher(network, variables, kernels, x, labels)
    if "synflow" in names:
        found["synflow"] = _synflow(network, variables, x, train=False)
    if "synflow_bn" in names:
        found["synflow_bn"] = _synflow(network, variables, x, train=True)
    if "nwot" in names:
        taps = network.apply(variables, x, train=True, taps=tuple(rectified)).taps
        units = [value.reshape(len(x), -1) for value in taps.values()]
        found["nwot"] = zero_cost.nwot(jnp.concatenate(units, axis=1))
    if {"jacov", "epe_nas"} & set(names):
        jacobian = jax.grad(lambda x: jnp.sum(logits_at(kernels, x)))(x)
        classes = jax.eval_shape(logits_at, kernels, x).shape[-1]
        found["jacov"] = zero_cost.jacobian_covariance(jacobian)
        found["epe_nas"] = zero_cost.epe_nas(jacobian, labels, num_classes=classes)
    if "zen" in names:
        found["zen"] = _zen(network, jax.random.fold_in(rng, 1), x, tap)
    return {name: float(found[name]) for name in names}


def _total(scores: PyTree) -> jax.Array:
    return sum(jax.tree.leaves(scores))


def _fisher(network: Network, variables: PyTree, kernels, x, labels) -> jax.Array:
    """Gradients in the outputs of layers are those in zeros that are added to them."""
    layers = {"/".join((*path[:-1], "out")): kernel for path, kernel in kernels.items()}
    shapes = available_taps(network, variables, x)

    def loss(added):
        edits = {name: lambda value, more=more: value + more for name, more in added.items()}
        found = network.apply(variables, x, train=True, taps=tuple(added), edits=edits)
        mean = jnp.mean(losses.cross_entropy(logits_of(found.output), labels))
        return mean, found.taps

    zeros = {name: jnp.zeros(shapes[name].shape, shapes[name].dtype) for name in layers}
    gradients, activations = jax.grad(loss, has_aux=True)(zeros)
    scores = [
        jnp.sum(
            zero_cost.fisher(
                activations[name],
                gradients[name],
                weights_per_channel=int(np.prod(kernel.shape[:-1])),
            )
        )
        for name, kernel in layers.items()
    ]
    return sum(scores)


def _synflow(network: Network, variables: PyTree, x: jax.Array, train: bool) -> float:
    with jax.enable_x64(True):
        # A new array: of the type that is allowed only here.
        wide = jax.tree.map(lambda a: jnp.abs(jnp.asarray(np.asarray(a), jnp.float64)), variables)
        flat = flax.traverse_util.flatten_dict(wide["params"])
        if not train:  # normalisations become the identity, to the epsilon of their variance
            others = {k: jax.tree_util.tree_map_with_path(_bypassed, wide[k]) for k in wide}
            wide = {**others, "params": wide["params"]}
            flat = {
                path: jnp.ones_like(leaf)
                if path[-1] == "scale"
                else jnp.zeros_like(leaf)
                if (*path[:-1], "scale") in flat
                else leaf
                for path, leaf in flat.items()
            }
        kernels = {path: leaf for path, leaf in flat.items() if leaf.ndim >= 2}
        ones = jnp.ones((1, *x.shape[1:]), jnp.float64)

        def outputs(kernels):
            params = flax.traverse_util.unflatten_dict({**flat, **kernels})
            return logits_of(network.apply({**wide, "params": params}, ones, train=train).output)

        return float(_total(zero_cost.synflow(outputs, kernels)))


def _bypassed(path: tuple, leaf: jax.Array) -> jax.Array:
    return jnp.full_like(leaf, path[-1].key == "var")


def _zen(network: Network, rng: jax.Array, x: jax.Array, tap: str) -> jax.Array:
    first, second, third = jax.random.split(rng, 3)
    variables = initial(network, first, (x,), "gaussian")
    noise = jax.random.normal(second, x.shape, x.dtype)
    near = noise + 0.01 * jax.random.normal(third, x.shape, x.dtype)

    def seen(begun: PyTree, batch: jax.Array) -> tuple[jax.Array, dict]:
        found = network.apply(
            {**begun, "params": variables["params"]}, batch, train=True, taps=(tap,)
        )
        others = flax.traverse_util.flatten_dict(dict(found.variables))
        return next(iter(found.taps.values())), others

    maps, first_statistics = seen(jax.tree.map(jnp.zeros_like, variables), noise)
    # A running variance is kept * start + (1 - kept) * batch's, whatever `kept` is: started again
    # from what it gave from 0, it is 1 + kept times that.
    _, again = seen(flax.traverse_util.unflatten_dict(first_statistics), noise)
    near_maps, _ = seen(variables, near)
    variances = {
        path: jnp.where(
            value == 0, value, value / (2 - again[path] / jnp.where(value == 0, 1, value))
        )
        for path, value in first_statistics.items()
        if path[-1] == "var"
    }
    return zero_cost.zen(maps, near_maps, variances)
