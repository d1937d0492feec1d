"""Token losses of sequence distillation: masks, reductions, log-probabilities and rankings.

Logits [..., length, vocabulary] at position i predict token i + 1; `next_token_labels` moves the
labels instead of cutting the logits. The divergences of `kdjax.losses.divergences` (forward and
reverse KL, generalised JSD, skewed KL, total variation) are per token too, [..., vocabulary] ->
[...]. A loss of a batch of sequences is one of these and one of the reductions here.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
from numpy import ndarray

from kdjax.losses import checks, log_space
from kdjax.losses.checks import Labels, Logits, Losses, Scalar, valid_labels

Tokens = Int[Array | ndarray, "*batch length"]
TokenMask = Bool[Array | ndarray, "..."]
TokenLosses = Float[Array | ndarray, "..."]
Total = tuple[Float[Array, ""], Float[Array, ""]]


def completion_mask(
    tokens: Tokens,
    *,
    eos_token: int | tuple[int, ...],
    where: Bool[Array | ndarray, "*batch length"] | None = None,
) -> Bool[Array, "*batch length"]:
    """Which tokens belong to a completion: all up to the first end-of-sequence token, and it.

        mask_i = no token before i is an end of sequence

    It counts the ends seen before, where `tokens != padding` would also drop the end itself in
    every vocabulary whose padding is its end of sequence.

    Args:
      tokens: integers [..., length].
      eos_token: the id that ends a sequence, or a tuple of several.
      where: booleans [..., length]: False for the prompt and its padding, whose ends end nothing.

    Returns:
      Booleans [..., length].

    Raises:
      ValueError: shapes that differ, no eos_token. TypeError: tokens that are not integers, a mask
        that is not boolean.

    Source: Agarwal et al. 2023 (GKD), arXiv:2306.13649.

    >>> import jax.numpy as jnp
    >>> completion_mask(jnp.array([5, 7, 2, 2, 2]), eos_token=2).tolist()
    [True, True, True, False, False]
    """
    tokens = _sequences("tokens", tokens)
    ends = eos_token if isinstance(eos_token, tuple) else (eos_token,)
    if not ends:
        raise ValueError("eos_token must be a token id or a tuple of at least one, got ()")
    end = jnp.isin(tokens, jnp.asarray(ends, tokens.dtype))
    if where is not None:
        where = checks.boolean("where", where, tokens.shape, "tokens")
        end &= where
    before = jnp.cumsum(end, axis=-1) - end
    mask = before == 0
    return mask if where is None else mask & where


def next_token_labels(labels: Tokens, *, ignored: int = -100) -> Int[Array, "*batch length"]:
    """The labels that the logits of each position predict: shifted by one, the last ignored.

        next_i = labels_(i+1),   next_(length-1) = ignored

    The logits keep their length, which they would lose, and with it an even cut over devices, in
    the usual logits[:-1] against labels[1:]; both give the same losses. `valid_labels` of the
    result is their mask.

    Args:
      labels: integers [..., length], -100 (or another negative) where nothing is to be learnt.
      ignored: the label of the last position.

    Returns:
      Integers [..., length].

    Raises:
      ValueError: labels without a length. TypeError: labels that are not integers.

    Source: Radford et al. 2018 (GPT).

    >>> import jax.numpy as jnp
    >>> next_token_labels(jnp.array([-100, -100, 4, 9, 2])).tolist()
    [-100, 4, 9, 2, -100]
    """
    labels = _sequences("labels", labels)
    last = jnp.full_like(labels[..., :1], ignored)
    return jnp.concatenate([labels[..., 1:], last], axis=-1)


def token_total(losses: TokenLosses, *, where: TokenMask | None = None) -> Total:
    """The sum of the losses of all tokens and how many they are: every token counts alike.

        total = sum_i w_i l_i,   weight = sum_i w_i

    total / weight is the mean over the tokens of DistiLLM, Liger, TRL ("batchmean") and TAID. With
    gradient accumulation or several devices add both up first and divide once: the sum of means
    weighs the tokens of a short micro-batch more.

    Args:
      losses: floats [...], one a token. Differentiated.
      where: booleans [...]: the tokens that count. What else is there may be NaN or infinite.

    Returns:
      (total, weight), scalars.

    Raises:
      ValueError: shapes that differ. TypeError: losses that are not floats, a mask that is not
        boolean.

    Source: Ko et al. 2024 (DistiLLM), arXiv:2402.03898.

    >>> import jax.numpy as jnp
    >>> losses, where = jnp.array([[1.0, 2.0], [6.0, 0.0]]), jnp.array([[1, 1], [1, 0]], bool)
    >>> [float(x) for x in token_total(losses, where=where)]
    [9.0, 3.0]
    """
    losses, where = _masked_losses(losses, where, "...")
    return jnp.sum(jnp.where(where, losses, 0.0)), jnp.sum(where, dtype=losses.dtype)


def token_mean(losses: TokenLosses, *, where: TokenMask | None = None) -> Float[Array, ""]:
    """The mean loss of the tokens, whatever sequence they stand in; 0 where no token counts.

        L = sum_i w_i l_i / max(sum_i w_i, 1)

    TRL with `num_items_in_batch` divides by the number of tokens of the whole accumulated batch:
    `token_total` and one division.

    Args:
      losses: floats [...], one a token. Differentiated.
      where: booleans [...]: the tokens that count. What else is there may be NaN or infinite.

    Returns:
      A scalar.

    Raises:
      ValueError: shapes that differ. TypeError: losses that are not floats, a mask that is not
        boolean.

    Source: Ko et al. 2024 (DistiLLM), arXiv:2402.03898.

    >>> import jax.numpy as jnp
    >>> losses, where = jnp.array([[1.0, 2.0], [6.0, 0.0]]), jnp.array([[1, 1], [1, 0]], bool)
    >>> print(f"{token_mean(losses, where=where):.2f} {sequence_mean(losses, where=where):.2f}")
    3.00 3.75
    """
    total, weight = token_total(losses, where=where)
    return total / jnp.maximum(weight, 1)


def sequence_total(losses: TokenLosses, *, where: TokenMask | None = None) -> Total:
    """The sum of the sequences' mean losses and how many they are: every sequence counts alike.

        total = sum_b [ sum_i w_bi l_bi / sum_i w_bi ],   weight = number of b with a token

    A sequence without any token (the padding of a batch) is not counted. Code that divides by the
    size of the batch counts it: divide the total by that.

    Args:
      losses: floats [..., length], one a token. Differentiated.
      where: booleans [..., length]: the tokens that count. What else is there may be NaN or
        infinite.

    Returns:
      (total, weight), scalars.

    Raises:
      ValueError: shapes that differ. TypeError: losses that are not floats, a mask that is not
        boolean.

    Source: Agarwal et al. 2023 (GKD), arXiv:2306.13649.

    >>> import jax.numpy as jnp
    >>> losses, where = jnp.array([[1.0, 2.0], [6.0, 0.0]]), jnp.array([[1, 1], [1, 0]], bool)
    >>> [float(x) for x in sequence_total(losses, where=where)]
    [7.5, 2.0]
    """
    losses, where = _masked_losses(losses, where, "... length")
    lengths = jnp.sum(where, axis=-1, dtype=losses.dtype)
    means = jnp.sum(jnp.where(where, losses, 0.0), axis=-1) / jnp.maximum(lengths, 1)
    return jnp.sum(means), jnp.sum(lengths > 0, dtype=losses.dtype)


def sequence_mean(losses: TokenLosses, *, where: TokenMask | None = None) -> Float[Array, ""]:
    """The mean over the sequences of their mean losses; 0 where no token counts.

        L = mean_b [ sum_i w_bi l_bi / sum_i w_bi ]      over the sequences with a token

    Agrees with `token_mean` if and only if all sequences are equally long (or equally hard).

    Args:
      losses: floats [..., length], one a token. Differentiated.
      where: booleans [..., length]: the tokens that count. What else is there may be NaN or
        infinite.

    Returns:
      A scalar.

    Raises:
      ValueError: shapes that differ. TypeError: losses that are not floats, a mask that is not
        boolean.

    Source: Agarwal et al. 2023 (GKD), arXiv:2306.13649.

    >>> import jax.numpy as jnp
    >>> losses, where = jnp.array([[1.0, 2.0], [6.0, 0.0]]), jnp.array([[1, 1], [1, 0]], bool)
    >>> print(f"{sequence_mean(losses, where=where):.2f}")
    3.75
    """
    total, weight = sequence_total(losses, where=where)
    return total / jnp.maximum(weight, 1)


def selective_log_softmax(logits: Logits, tokens: Labels) -> Losses:
    """The log-probability of a token: log softmax of which only one element is made.

        log p(y) = z_y - logsumexp(z)

    `cross_entropy` is its negative. It never holds [..., vocabulary] log-probabilities.

    Args:
      logits: floats [..., vocabulary]. Differentiated.
      tokens: integers [...]. Outside [0, vocabulary): 0, with gradient 0; see `valid_labels`.

    Returns:
      [...], <= 0; -inf for a token at -inf.

    Raises:
      ValueError: tokens of another shape. TypeError: tokens that are not integers, logits that
        are not floats.

    Source: Gu et al. 2023 (MiniLLM), arXiv:2306.08543, uses it throughout.

    >>> import jax.numpy as jnp
    >>> print(f"{selective_log_softmax(jnp.array([2.0, 1.0, 0.0]), jnp.array(1)):.4f}")
    -1.4076
    """
    (logits,) = checks.logits(logits=logits)
    tokens = checks.integers("tokens", tokens, logits.shape[:-1], "logits without their classes")
    valid = valid_labels(tokens, logits.shape[-1])
    logits = jnp.where(valid[..., None], logits, 0.0)
    chosen = jnp.arange(logits.shape[-1]) == tokens[..., None]
    at_token = jnp.sum(jnp.where(chosen, logits, 0.0), axis=-1)
    return jnp.where(valid, at_token - log_space.logsumexp(logits), 0.0)


def soft_cross_entropy(
    student_logits: Logits,
    teacher_logits: Logits,
    *,
    temperature: Scalar = 1.0,
    scale_by_t2: bool = False,
) -> Losses:
    """Cross-entropy of the student under the teacher's probabilities (word-level distillation).

        L = -sum_v p_v log q_v = KL(p || q) + H(p),   p = softmax(t / T),  q = softmax(s / T)

    The gradient is that of `forward_kl`, (q - p) / T; the value is larger by the teacher's
    entropy. This is what DistiLLM, MiniLLM and TAID call forward_kl (without T^2), and torchtune
    ForwardKLLoss. DistillKit and f-distill multiply by T^2: `scale_by_t2`.

    Args:
      student_logits: floats [..., vocabulary]. Differentiated.
      teacher_logits: floats [..., vocabulary]. Stopped.
      temperature: scalar > 0, may be traced.
      scale_by_t2: multiply by temperature^2, which keeps the size of the gradient.

    Returns:
      [...], >= the teacher's entropy; inf where the student excludes what the teacher does not.

    Raises:
      ValueError: shapes that differ, temperature <= 0. TypeError: arrays that are not floats.

    Source: Kim and Rush 2016, arXiv:1606.07947.

    >>> import jax.numpy as jnp
    >>> student, teacher = jnp.log(jnp.array([0.9, 0.1])), jnp.log(jnp.array([0.5, 0.5]))
    >>> print(f"{soft_cross_entropy(student, teacher):.4f}")
    1.2040
    """
    student, teacher = _softened(student_logits, teacher_logits, temperature)
    loss = log_space.cross_entropy(teacher, student)
    return temperature**2 * loss if scale_by_t2 else loss


def engine(student_logits: Logits, teacher_logits: Logits, *, temperature: Scalar = 1.0) -> Losses:
    """ENGINE: the teacher's energy under the student, the reverse KL without the entropy.

        L = -sum_v q_v log p_v = KL(q || p) + H(q),   dL/ds_j = -q_j (log p_j + L) / T

    To be summed over sequences that the student samples. Without the entropy the optimum puts all
    mass on the teacher's best token.

    Args:
      student_logits: floats [..., vocabulary]. Differentiated.
      teacher_logits: floats [..., vocabulary]. Stopped.
      temperature: scalar > 0, may be traced.

    Returns:
      [...], >= 0; inf where the teacher excludes what the student does not.

    Raises:
      ValueError: shapes that differ, temperature <= 0. TypeError: arrays that are not floats.

    Source: Tu et al. 2020, arXiv:2005.00850; Wen et al. 2023 (f-distill), arXiv:2307.15190.

    >>> import jax.numpy as jnp
    >>> student, teacher = jnp.log(jnp.array([0.9, 0.1])), jnp.log(jnp.array([0.5, 0.5]))
    >>> print(f"{engine(student, teacher):.4f}")
    0.6931
    """
    student, teacher = _softened(student_logits, teacher_logits, temperature)
    return log_space.cross_entropy(student, teacher)


def sampled_token_reverse_kl(
    student_logits: Logits,
    teacher_logits: Logits,
    tokens: Labels,
    *,
    temperature: Scalar = 1.0,
) -> Losses:
    """Policy gradient of the reverse KL from one sampled token, without a sum over the vocabulary.

        A = stop[ log p(y) - log q(y) ],   L = -A log q(y),   y ~ q

    The expected gradient over y ~ q is that of `reverse_kl`; the value is no estimate of it. Its
    own gradient is not the slope of the value: the advantage A is stopped.

    Args:
      student_logits: floats [..., vocabulary]. Differentiated.
      teacher_logits: floats [..., vocabulary]. Stopped.
      tokens: integers [...], sampled from the student. Outside [0, vocabulary): loss 0, gradient 0.
      temperature: scalar > 0, may be traced; that of the sampling.

    Returns:
      [...].

    Raises:
      ValueError: shapes that differ, temperature <= 0. TypeError: tokens that are not integers,
        logits that are not floats.

    Source: Gu et al. 2023 (MiniLLM), arXiv:2306.08543.

    >>> import jax.numpy as jnp
    >>> student, teacher = jnp.log(jnp.array([0.9, 0.1])), jnp.log(jnp.array([0.5, 0.5]))
    >>> print(f"{sampled_token_reverse_kl(student, teacher, jnp.array(0)):.4f}")
    -0.0619
    """
    student, teacher = checks.logits(student_logits=student_logits, teacher_logits=teacher_logits)
    checks.positive(temperature=temperature)
    teacher = jax.lax.stop_gradient(teacher)
    log_q = selective_log_softmax(student / temperature, tokens)
    log_p = selective_log_softmax(teacher / temperature, tokens)
    return -jax.lax.stop_gradient(log_p - log_q) * log_q


def _softened(
    student_logits: Logits, teacher_logits: Logits, temperature: Scalar
) -> tuple[Array, Array]:
    """(log q, log p) of both sides at a temperature, the teacher's stopped."""
    student, teacher = checks.logits(student_logits=student_logits, teacher_logits=teacher_logits)
    checks.positive(temperature=temperature)
    teacher = jax.lax.stop_gradient(teacher)
    return tuple(log_space.safe_log_softmax(logits / temperature) for logits in (student, teacher))


def _sequences(name: str, tokens: Tokens) -> Array:
    tokens = checks.integers(name, tokens, None, "")
    if tokens.ndim < 1:
        raise ValueError(f"{name} must be shaped [..., length], got shape {tokens.shape}")
    return tokens


def _masked_losses(losses: TokenLosses, where: TokenMask | None, axes: str) -> tuple[Array, Array]:
    (losses,) = checks.shaped({"losses": axes}, losses=losses)
    if where is None:
        return losses, jnp.ones(losses.shape, bool)
    return losses, checks.boolean("where", where, losses.shape, "losses")
