"""Losses of networks that learn together, with each other as teachers.

The logits of all peers are one array [..., peers, classes]. Where a peer acts as the teacher it is
stopped, though no argument here is named so. A row whose label is outside [0, classes) has loss 0
and gradient 0. Values in float32, or float64 for float64.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
from numpy import ndarray

from kdjax.losses import checks, log_space
from kdjax.losses.checks import Labels, Losses, Scalar
from kdjax.losses.logits import cross_entropy, kd

HIGHEST = jax.lax.Precision.HIGHEST

PeerLogits = Float[Array | ndarray, "*batch peers classes"]
PeerLosses = Float[Array, "*batch peers"]
TeacherLogits = Float[Array, "*batch classes"]


def dml(peer_logits: PeerLogits, labels: Labels, *, temperature: Scalar = 1.0) -> PeerLosses:
    """Deep mutual learning: every peer learns from the labels and from all others.

        L_k = CE_k + T^2 / (K - 1) sum_{l != k} KL(stop(p_l) || p_k),   p = softmax(z / T)

    The published loss has T = 1. Each peer minimises its own: the caller's loss is the sum over
    peers of the means over the batch, whose gradient for peer k is that of L_k (the other peers are
    stopped in it).

    Args:
      peer_logits: floats [..., peers, classes], peers >= 2. Differentiated, but not as teachers.
      labels: integers [...]. Outside [0, classes): loss 0, gradient 0.
      temperature: scalar > 0, may be traced; of the mutual term.

    Returns:
      [..., peers], >= 0.

    Raises:
      ValueError: one peer, labels of another shape, temperature <= 0.
      TypeError: labels that are not integers, logits that are not floats.

    Source: Zhang et al. 2018, arXiv:1706.00384.

    >>> import jax.numpy as jnp
    >>> loss = dml(jnp.array([[jnp.log(3.0), 0.0], [0.0, 0.0]]), jnp.array(0))
    >>> print(f"{loss[0]:.4f} {loss[1]:.4f}")
    0.4315 0.8240
    """
    valid, labels, peers = _peers(peer_logits, labels)
    checks.positive(temperature=temperature)
    number = peers.shape[-2]
    log_probs = log_space.safe_log_softmax(peers / temperature)
    teachers = jax.lax.stop_gradient(log_probs)
    # [..., teacher, student]
    divergence = log_space.kl(teachers[..., :, None, :], log_probs[..., None, :, :])
    divergence = jnp.where(jnp.eye(number, dtype=bool), 0.0, divergence)
    mutual = jnp.sum(divergence, axis=-2) / (number - 1)
    loss = _hard(peers, labels) + temperature**2 * mutual
    return jnp.where(valid[..., None], loss, 0.0)


def mutual_cotraining_loss(
    peer_logits: PeerLogits,
    labels: Labels,
    *,
    weight: Scalar = 1.0,
    temperature: Scalar = 4.0,
    stop_target_gradient: bool = False,
) -> PeerLosses:
    """MST-Distill's co-training of teachers and student: `dml` whose targets are not stopped.

        L_k = CE_k + weight T^2 sum_{l != k} KL(p_l || p_k),   p = softmax(z / T)

    The published loss is the sum over peers of the caller's means over the batch, with a weight
    of 1. In its code the gradient of each KL flows into both peers.

    Args:
      peer_logits: floats [..., peers, classes], peers >= 2. Differentiated, as targets too unless
        they are stopped.
      labels: integers [...]. Outside [0, classes): loss 0, gradient 0.
      weight: scalar >= 0, may be traced; 0: every peer learns alone.
      temperature: scalar > 0, may be traced; of the mutual term.
      stop_target_gradient: True: each KL moves the peer that learns alone. The gradient is then
        that of `dml` with T^2 instead of T^2 / (K - 1).

    Returns:
      [..., peers], >= 0.

    Raises:
      ValueError: one peer, labels of another shape, weight < 0, temperature <= 0.
      TypeError: labels that are not integers, logits that are not floats.

    Source: MST-Distill, Li et al. 2025, arXiv:2507.07015.

    >>> import jax.numpy as jnp
    >>> peers = jnp.array([[jnp.log(3.0), 0.0], [0.0, 0.0]])
    >>> loss = mutual_cotraining_loss(peers, jnp.array(0), temperature=1.0)
    >>> print(f"{loss[0]:.4f} {loss[1]:.4f}")
    0.4315 0.8240
    """
    valid, labels, peers = _peers(peer_logits, labels)
    checks.positive(temperature=temperature)
    checks.not_negative(weight=weight)
    targets = jax.lax.stop_gradient(peers) if stop_target_gradient else peers
    # [..., target, learner, classes]
    pairs = jnp.broadcast_arrays(targets[..., :, None, :], peers[..., None, :, :])
    divergence = log_space.softmax_kl(*(x / temperature for x in pairs))
    divergence = jnp.where(jnp.eye(peers.shape[-2], dtype=bool), 0.0, divergence)
    loss = _hard(peers, labels) + weight * temperature**2 * jnp.sum(divergence, axis=-2)
    return jnp.where(valid[..., None], loss, 0.0)


def one_loss(
    branch_logits: Float[Array | ndarray, "*batch branches classes"],
    gate_logits: Float[Array | ndarray, "*batch branches"],
    labels: Labels,
    *,
    temperature: Scalar = 3.0,
) -> Losses:
    """ONE, the on-the-fly native ensemble: branches learn from their own gated ensemble.

        z_e = sum_i g_i z_i,   g = softmax(gate_logits)
        L = sum_i CE(z_i, y) + CE(z_e, y) + T^2 sum_i KL(stop(p_e) || p_i),   p = softmax(z / T)

    The gate trains through CE(z_e, y) alone. The caller's mean over the batch is the published
    loss.

    Args:
      branch_logits: floats [..., branches, classes], branches >= 2. Differentiated, but not
        through p_e as the teacher.
      gate_logits: floats [..., branches], from shared features. Differentiated likewise.
      labels: integers [...]. Outside [0, classes): loss 0, gradient 0.
      temperature: scalar > 0, may be traced.

    Returns:
      [...], >= 0.

    Raises:
      ValueError: one branch, shapes that do not fit, temperature <= 0.
      TypeError: labels that are not integers, logits that are not floats.

    Source: Lan et al. 2018, arXiv:1806.04606.

    >>> import jax.numpy as jnp
    >>> branches = jnp.array([[jnp.log(9.0), 0.0], [0.0, 0.0]])
    >>> print(f"{one_loss(branches, jnp.zeros(2), jnp.array(0), temperature=1.0):.4f}")
    1.3093
    """
    checks.shaped(
        {"branch_logits": "... branches>=2 classes", "gate_logits": "... branches"},
        branch_logits=branch_logits,
        gate_logits=gate_logits,
    )
    valid, labels, branches = _peers(branch_logits, labels)
    checks.positive(temperature=temperature)
    gate_logits = jnp.where(valid[..., None], jnp.asarray(gate_logits, branches.dtype), 0.0)
    gates = jax.nn.softmax(gate_logits, axis=-1)
    ensemble = _mixture(branches, gates)
    hard = jnp.sum(_hard(branches, labels), axis=-1) + cross_entropy(ensemble, labels)
    soft = kd(branches, _as_teacher_of(branches, ensemble), temperature=temperature)
    return jnp.where(valid, hard + jnp.sum(soft, axis=-1), 0.0)


def kdcl(
    peer_logits: PeerLogits,
    teacher_logits: Float[Array | ndarray, "*batch classes"],
    labels: Labels,
    *,
    weight: Scalar = 1.0,
    temperature: Scalar = 2.0,
) -> PeerLosses:
    """Collaborative distillation (KDCL): every peer learns from one teacher made of all.

        L_k = CE_k + weight T^2 KL(softmax(t / T) || softmax(z_k / T))

    with t by `kdcl_naive`, `kdcl_linear`, `kdcl_min_logit` or `kdcl_general`. The published loss is
    the sum over peers of the caller's means over the batch. The paper gives each peer another
    augmentation of the same image.

    Args:
      peer_logits: floats [..., peers, classes], peers >= 2. Differentiated.
      teacher_logits: floats [..., classes]. Stopped.
      labels: integers [...]. Outside [0, classes): loss 0, gradient 0.
      weight: scalar >= 0, may be traced.
      temperature: scalar > 0, may be traced.

    Returns:
      [..., peers], >= 0.

    Raises:
      ValueError: one peer, shapes that do not fit, weight < 0, temperature <= 0.
      TypeError: labels that are not integers, logits that are not floats.

    Source: Guo et al. 2020, "Online Knowledge Distillation via Collaborative Learning", CVPR.

    >>> import jax.numpy as jnp
    >>> peers = jnp.array([[jnp.log(3.0), 0.0], [0.0, 0.0]])
    >>> loss = kdcl(peers, peers[0], jnp.array(0), temperature=1.0)
    >>> print(f"{loss[0]:.4f} {loss[1]:.4f}")
    0.2877 0.8240
    """
    checks.shaped(
        {"peer_logits": "... peers>=2 classes", "teacher_logits": "... classes"},
        peer_logits=peer_logits,
        teacher_logits=teacher_logits,
    )
    valid, labels, peers = _peers(peer_logits, labels)
    checks.not_negative(weight=weight)
    teacher = jnp.where(valid[..., None], jnp.asarray(teacher_logits, peers.dtype), 0.0)
    soft = kd(peers, _as_teacher_of(peers, teacher), temperature=temperature)
    return jnp.where(valid[..., None], _hard(peers, labels) + weight * soft, 0.0)


def kdcl_naive(peer_logits: PeerLogits, labels: Labels) -> TeacherLogits:
    """KDCL's simplest teacher: in each row the peer with the least cross-entropy.

        t = z_k,   k = argmin_k CE(z_k, y)

    Args:
      peer_logits: floats [..., peers, classes], peers >= 2. Stopped.
      labels: integers [...]. Outside [0, classes): 0.

    Returns:
      Logits [..., classes], without gradient.

    Raises:
      ValueError: one peer, labels of another shape. TypeError: labels that are not integers,
        logits that are not floats.

    Source: Guo et al. 2020, "Online Knowledge Distillation via Collaborative Learning", CVPR.

    >>> import jax.numpy as jnp
    >>> kdcl_naive(jnp.array([[1.0, 0.0], [3.0, 1.0]]), jnp.array(0)).tolist()
    [3.0, 1.0]
    """
    _, labels, peers = _peers(jax.lax.stop_gradient(peer_logits), labels)
    best = jnp.argmin(_hard(peers, labels), axis=-1)
    return jnp.take_along_axis(peers, best[..., None, None], axis=-2)[..., 0, :]


def kdcl_linear(peer_logits: PeerLogits, labels: Labels, *, steps: int = 32) -> TeacherLogits:
    """KDCL's optimal linear teacher: the mixture of logits with the least cross-entropy.

        t = sum_k a_k z_k,   a = argmin CE(sum_k a_k z_k, y)  over a >= 0, sum a = 1, in each row

    A convex problem, solved by moving weight between the two peers that gain most, with an exact
    line search: exact after one step for two peers, never worse than the mean.

    Args:
      peer_logits: floats [..., peers, classes], peers >= 2. Stopped. A class that is -inf for a
        peer is -inf in the mixture.
      labels: integers [...]. Outside [0, classes): 0.
      steps: integer >= 1.

    Returns:
      Logits [..., classes], without gradient.

    Raises:
      ValueError: one peer, labels of another shape, steps < 1. TypeError: labels that are not
        integers, logits that are not floats.

    Source: Guo et al. 2020, "Online Knowledge Distillation via Collaborative Learning", CVPR.

    >>> import jax.numpy as jnp
    >>> teacher = kdcl_linear(jnp.array([[2.0, 3.0, 0.0], [2.0, 0.0, 3.0]]), jnp.array(0))
    >>> teacher.tolist()
    [2.0, 1.5, 1.5]
    """
    _, labels, peers = _peers(jax.lax.stop_gradient(peer_logits), labels)
    checks.count(1, steps=steps)
    absent = jnp.any(peers == -jnp.inf, axis=-2)
    peers = jnp.where(absent[..., None, :], 0.0, peers)
    margins = peers - jnp.take_along_axis(peers, labels[..., None, None], axis=-1)
    padding = jnp.where(absent, -jnp.inf, 0.0)
    number = peers.shape[-2]

    def slope_along(mixed: Array, direction: Array) -> Array:
        probabilities = jax.nn.softmax(mixed + padding, axis=-1)
        return jnp.sum(probabilities * direction, axis=-1)

    def step(_: int, weights: Array) -> Array:
        mixed = _mixture(margins, weights)
        probabilities = jax.nn.softmax(mixed + padding, axis=-1)
        slope = jnp.einsum("...kc,...c->...k", margins, probabilities, precision=HIGHEST)
        best = jax.nn.one_hot(jnp.argmin(slope, axis=-1), number, dtype=bool)
        held = jnp.where(weights > 0, slope, -jnp.inf)
        worst = jax.nn.one_hot(jnp.argmax(held, axis=-1), number, dtype=bool)
        available = jnp.sum(jnp.where(worst, weights, 0.0), axis=-1)
        direction = _mixture(margins, best.astype(mixed.dtype) - worst.astype(mixed.dtype))

        def halve(_: int, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
            low, high = bounds
            middle = (low + high) / 2
            falls = slope_along(mixed + middle[..., None] * direction, direction) < 0
            return jnp.where(falls, middle, low), jnp.where(falls, high, middle)

        all_of_it = slope_along(mixed + available[..., None] * direction, direction) <= 0
        low, high = jax.lax.fori_loop(0, 30, halve, (jnp.zeros_like(available), available))
        moved = jnp.where(all_of_it, available, (low + high) / 2)[..., None]
        return weights + jnp.where(best, moved, 0.0) - jnp.where(worst, moved, 0.0)

    weights = jnp.full(peers.shape[:-1], 1 / number, peers.dtype)
    weights = jax.lax.fori_loop(0, steps, step, weights)
    return jnp.where(absent, -jnp.inf, _mixture(peers, weights))


def kdcl_min_logit(peer_logits: PeerLogits, labels: Labels) -> TeacherLogits:
    """KDCL's MinLogit teacher: the least margin of every class among the peers.

        t_c = min_k (z_kc - z_ky)

    The target is 0, and its probability at least that of any peer.

    Args:
      peer_logits: floats [..., peers, classes], peers >= 2. Stopped.
      labels: integers [...]. Outside [0, classes): 0.

    Returns:
      Logits [..., classes], without gradient.

    Raises:
      ValueError: one peer, labels of another shape. TypeError: labels that are not integers,
        logits that are not floats.

    Source: Guo et al. 2020, "Online Knowledge Distillation via Collaborative Learning", CVPR.

    >>> import jax.numpy as jnp
    >>> kdcl_min_logit(jnp.array([[2.0, 3.0, 0.0], [2.0, 0.0, 3.0]]), jnp.array(0)).tolist()
    [0.0, -2.0, -2.0]
    """
    _, labels, peers = _peers(jax.lax.stop_gradient(peer_logits), labels)
    target = jnp.take_along_axis(peers, labels[..., None, None], axis=-1)
    return jnp.min(peers - target, axis=-2)


def kdcl_general_weights(
    peer_logits: Float[Array | ndarray, "batch peers classes"],
    labels: Int[Array | ndarray, "batch"],
    *,
    ridge: Scalar = 1e-6,
) -> Float[Array, "peers"]:
    """KDCL-General: the weights of an ensemble whose error is least, from held-out data.

        w_k = sum_j (C^-1)_kj / sum_ij (C^-1)_ij,   C_kj = mean_b e_bk . e_bj
        e_bk = softmax(z_bk) - onehot(y_b)

    They sum to 1 and may be negative: a peer that errs with the others more than by itself is
    subtracted. C gets `ridge` times its mean diagonal on its diagonal, so that peers that are equal
    share their weight.

    Args:
      peer_logits: floats [batch, peers, classes] of held-out examples, peers >= 2. Stopped.
      labels: integers [batch]; rows outside [0, classes) do not count.
      ridge: scalar > 0, may be traced.

    Returns:
      [peers], of sum 1, without gradient.

    Raises:
      ValueError: one peer, labels of another shape, ridge <= 0. TypeError: labels that are not
        integers, logits that are not floats.

    Source: Guo et al. 2020, "Online Knowledge Distillation via Collaborative Learning", CVPR;
      Perrone and Cooper 1992.

    >>> import jax.numpy as jnp
    >>> equal = jnp.zeros((3, 2, 4))
    >>> weights = kdcl_general_weights(equal, jnp.array([0, 1, 2]))
    >>> print(f"{weights[0]:.4f} {weights[1]:.4f}")
    0.5000 0.5000
    """
    checks.shaped({"peer_logits": "batch peers>=2 classes"}, peer_logits=peer_logits)
    valid, labels, peers = _peers(jax.lax.stop_gradient(peer_logits), labels)
    checks.positive(ridge=ridge)
    targets = jax.nn.one_hot(labels, peers.shape[-1], dtype=peers.dtype)
    errors = jax.nn.softmax(peers, axis=-1) - targets[:, None, :]
    errors = jnp.where(valid[:, None, None], errors, 0.0)
    covariance = jnp.einsum("bkc,bjc->kj", errors, errors, precision=HIGHEST)
    scale = jnp.trace(covariance) / len(covariance)
    diagonal = jnp.where(scale == 0, 1.0, ridge * scale) * jnp.eye(len(covariance))
    weights = jnp.linalg.solve(
        covariance + diagonal.astype(peers.dtype), jnp.ones(len(covariance), peers.dtype)
    )
    return weights / jnp.sum(weights)


def kdcl_general(
    peer_logits: PeerLogits, weights: Float[Array | ndarray, "peers"]
) -> TeacherLogits:
    """KDCL-General's teacher: the logits of the peers, weighed by `kdcl_general_weights`.

        t = sum_k w_k z_k

    Args:
      peer_logits: floats [..., peers, classes]. Stopped. A class that is -inf for a peer is -inf
        in the mixture.
      weights: floats [peers]. Stopped.

    Returns:
      Logits [..., classes], without gradient.

    Raises:
      ValueError: shapes that do not fit. TypeError: arrays that are not floats.

    Source: Guo et al. 2020, "Online Knowledge Distillation via Collaborative Learning", CVPR.

    >>> import jax.numpy as jnp
    >>> kdcl_general(jnp.array([[2.0, 0.0], [0.0, 4.0]]), jnp.array([0.75, 0.25])).tolist()
    [1.5, 1.0]
    """
    peers, weights = checks.shaped(
        {"peer_logits": "... peers classes", "weights": "peers"},
        peer_logits=peer_logits,
        weights=weights,
    )
    return jax.lax.stop_gradient(_mixture(peers, weights))


def _peers(peer_logits: Array, labels: Array) -> tuple[Array, Array, Array]:
    """Valid rows, the labels with 0 elsewhere, and the logits with other rows at 0."""
    (peers,) = checks.shaped({"peer_logits": "... peers>=2 classes"}, peer_logits=peer_logits)
    labels = checks.labels(labels, peers.shape[:-2])
    valid = checks.valid_labels(labels, peers.shape[-1])
    return valid, jnp.where(valid, labels, 0), jnp.where(valid[..., None, None], peers, 0.0)


def _hard(peers: Array, labels: Array) -> Array:
    """Cross-entropy of every peer."""
    return cross_entropy(peers, jnp.broadcast_to(labels[..., None], peers.shape[:-1]))


def _as_teacher_of(peers: Array, teacher: Array) -> Array:
    return jnp.broadcast_to(teacher[..., None, :], peers.shape)


def _mixture(peers: Array, weights: Array) -> Array:
    """sum_k w_k z_k; -inf where a peer is, also at weight 0 (0 * inf would be NaN)."""
    absent = jnp.any(peers == -jnp.inf, axis=-2)
    peers = jnp.where(absent[..., None, :], 0.0, peers)
    mixed = jnp.einsum("...kc,...k->...c", peers, weights, precision=HIGHEST)
    return jnp.where(absent, -jnp.inf, mixed)
