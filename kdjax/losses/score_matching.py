"""Training a generator by the scores of two diffusion models: the teacher's and a critic's.

The teacher is a diffusion model of the data; the critic one of what the generator makes, trained
online. Both denoise the generator's data x after noise was added. Arrays are [batch, ...] of any
rank; a loss is [batch], the mean over the other axes, so that the caller's mean is the published
loss.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kdjax.losses import checks
from kdjax.losses.checks import Scalar
from kdjax.losses.step_distillation import (
    Batch,
    Losses,
    Mask,
    Weight,
    example_mean,
    example_weight,
    masked,
)


def gradient_surrogate(
    student_data: Batch, gradient: Batch, *, where: Mask | None = None
) -> Losses:
    """A loss with a given gradient: how a difference of scores trains a generator.

        L = mean_d (x - stop(x - g))^2 / 2,   dL/dx = g / D

    Args:
      student_data: floats [batch, ...], what the generator made. Differentiated.
      gradient: floats of the same shape. Stopped.
      where: booleans of the same shape; False entries take no part, and D counts the others.

    Returns:
      [batch], >= 0. It does not fall as training goes on in any way that means something.

    Raises:
      ValueError: shapes that differ. TypeError: arrays that are not floats, where that is not
      boolean.

    Source: Yin et al. 2023 (DMD), arXiv:2311.18828.

    >>> import jax.numpy as jnp
    >>> print(gradient_surrogate(jnp.array([[1.0, 5.0]]), jnp.array([[0.5, -1.0]])))
    [0.3125]
    """
    student, gradient, where = masked(where, student_data=student_data, gradient=gradient)
    target = jax.lax.stop_gradient(student - gradient)
    return example_mean((student - target) ** 2, where) / 2


def dmd_gradient(
    student_data: Batch,
    critic_prediction: Batch,
    teacher_prediction: Batch,
    *,
    where: Mask | None = None,
) -> Batch:
    """The direction of distribution matching distillation, normalised for each example.

        g = (x_fake - x_real) / mean_d |x - x_real|

    The gradient of the KL divergence from the generator's distribution to the teacher's, at one
    noise level, but for its weight. Where x is x_real itself, g is 0 (authors' code: NaN -> 0).

    Args:
      student_data: floats [batch, ...], x, what the generator made. Stopped.
      critic_prediction: floats of the same shape, x_fake: what the critic, a diffusion model of the
        generator's data, makes of noised x. Stopped.
      teacher_prediction: floats of the same shape, x_real: what the teacher makes of it, with its
        guidance (`guided`). Stopped.
      where: booleans of the same shape; False entries are 0 and not in the mean. LiveTalk
        leaves given frames out of the loss but keeps them in this mean.

    Returns:
      Floats of the same shape, with no gradient.

    Raises:
      ValueError: shapes that differ. TypeError: arrays that are not floats, where that is not
      boolean.

    Source: Yin et al. 2023 (DMD), arXiv:2311.18828, equations 7 and 8.

    >>> import jax.numpy as jnp
    >>> print(dmd_gradient(jnp.array([[1.0]]), jnp.array([[0.5]]), jnp.array([[0.0]])))
    [[0.5]]
    """
    student, critic, teacher, where = masked(
        where,
        student_data=student_data,
        critic_prediction=critic_prediction,
        teacher_prediction=teacher_prediction,
    )
    scale = example_mean(jnp.abs(student - teacher), where)
    scale = scale.reshape(scale.shape + (1,) * (student.ndim - 1))
    gradient = jnp.where(scale == 0, 0.0, (critic - teacher) / jnp.where(scale == 0, 1.0, scale))
    return jax.lax.stop_gradient(gradient)


def dmd(
    student_data: Batch,
    critic_prediction: Batch,
    teacher_prediction: Batch,
    *,
    where: Mask | None = None,
) -> Losses:
    """Distribution matching distillation: the generator's loss.

        L = mean_d (x - stop(x - g))^2 / 2,   dL/dx = g / D,   g = `dmd_gradient`

    The critic learns with `target_regression` on the generator's data, as often as five times per
    step of the generator (DMD2). DMD adds a regression on stored pairs, DMD2 in its place
    `adversarial_generator`.

    Args:
      student_data: floats [batch, ...], x, what the generator made. Differentiated.
      critic_prediction: floats of the same shape, of the data, from noised x. Stopped.
      teacher_prediction: floats of the same shape, of the data, from noised x. Stopped.
      where: booleans of the same shape; False entries take no part.

    Returns:
      [batch], >= 0.

    Raises:
      ValueError: shapes that differ. TypeError: arrays that are not floats, where that is not
      boolean.

    Source: Yin et al. 2023 (DMD), arXiv:2311.18828; Yin et al. 2024 (DMD2), arXiv:2405.14867.

    >>> import jax.numpy as jnp
    >>> print(dmd(jnp.array([[1.0]]), jnp.array([[0.5]]), jnp.array([[0.0]])))
    [0.125]
    """
    gradient = dmd_gradient(student_data, critic_prediction, teacher_prediction, where=where)
    return gradient_surrogate(student_data, gradient, where=where)


def score_distillation(
    student_data: Batch,
    critic_noise: Batch,
    teacher_noise: Batch,
    *,
    weight: Weight = 1.0,
    where: Mask | None = None,
) -> Losses:
    """Variational score distillation, in predictions of the noise.

        L = mean_d (x - stop(x - g))^2 / 2,   dL/dx = g / D,   g = w (eps_real - eps_fake)

    With the noise itself for eps_fake it is score distillation sampling (DreamFusion). The
    direction is that of `dmd`, of which eps_real - eps_fake is alpha / sigma times the difference.

    Args:
      student_data: floats [batch, ...], x, what the generator made. Differentiated.
      critic_noise: floats of the same shape, eps_fake, from noised x. Stopped.
      teacher_noise: floats of the same shape, eps_real, from noised x. Stopped.
      weight: scalar or floats [batch], may be traced; of the gradient. The loss goes as its square.
      where: booleans of the same shape; False entries take no part.

    Returns:
      [batch], >= 0.

    Raises:
      ValueError: shapes that do not fit. TypeError: arrays that are not floats, where that is not
      boolean.

    Source: Wang et al. 2023 (ProlificDreamer), arXiv:2305.16213; Poole et al. 2022 (DreamFusion),
      arXiv:2209.14988.

    >>> import jax.numpy as jnp
    >>> print(score_distillation(jnp.array([[9.0]]), jnp.array([[0.5]]), jnp.array([[2.5]])))
    [2.]
    """
    student, critic, teacher, where = masked(
        where,
        student_data=student_data,
        critic_noise=critic_noise,
        teacher_noise=teacher_noise,
    )
    weight = example_weight(weight, student)
    if weight.ndim:
        weight = weight.reshape(weight.shape + (1,) * (student.ndim - 1))
    return gradient_surrogate(student, weight * (teacher - critic), where=where)


def sid(
    student_data: Batch,
    fake_prediction: Batch,
    real_prediction: Batch,
    *,
    alpha: Scalar = 1.0,
    where: Mask | None = None,
) -> Losses:
    """Score identity distillation: a loss whose gradient passes through both denoisers.

        L = mean_d (x_real - x_fake) ((x_real - x) - alpha (x_real - x_fake))
            / stop mean_d |x - x_real|

    Here the real model's prediction is differentiated with respect to its input, the generator's
    data with noise, so it is no `teacher_prediction`: hold its parameters fixed yourself, and the
    critic's too.

    Args:
      student_data: floats [batch, ...], x, what the generator made. Differentiated.
      fake_prediction: floats of the same shape, the critic's, of the data. Differentiated.
      real_prediction: floats of the same shape, the teacher's, of the data. Differentiated.
      alpha: scalar, may be traced; 0.5 to 1.2.
      where: booleans of the same shape; False entries take no part.

    Returns:
      [batch], of either sign. 0 where x is x_real itself.

    Raises:
      ValueError: shapes that differ, alpha that is not finite. TypeError: arrays that are not
      floats, where that is not boolean.

    Source: Zhou et al. 2024 (SiD), arXiv:2404.04057.

    >>> import jax.numpy as jnp
    >>> print(sid(jnp.array([[1.0]]), jnp.array([[0.5]]), jnp.array([[0.0]])))
    [0.25]
    """
    student, fake, real, where = masked(
        where,
        student_data=student_data,
        fake_prediction=fake_prediction,
        real_prediction=real_prediction,
    )
    checks.finite(alpha=alpha)
    scale = jax.lax.stop_gradient(example_mean(jnp.abs(student - real), where))
    product = (real - fake) * ((real - student) - alpha * (real - fake))
    return jnp.where(
        scale == 0, 0.0, example_mean(product, where) / jnp.where(scale == 0, 1.0, scale)
    )


def adversarial_generator(fake_logits: Batch) -> Float[Array, "batch ..."]:
    """The generator's part of a GAN, not saturating.

        L = softplus(-D(fake)) = -log sigmoid(D(fake))

    DMD2 adds it with the weight 3e-3; D sits on the critic's inner features of noised data.

    Args:
      fake_logits: floats [batch, ...], D of generated data. Differentiated.

    Returns:
      [batch, ...], > 0.

    Raises:
      TypeError: logits that are not floats.

    Source: Goodfellow et al. 2014, arXiv:1406.2661; Yin et al. 2024 (DMD2), arXiv:2405.14867.

    >>> import jax.numpy as jnp
    >>> print(f"{adversarial_generator(jnp.array([0.0]))[0]:.4f}")
    0.6931
    """
    (fake,) = checks.shaped({"fake_logits": "..."}, fake_logits=fake_logits)
    return -jax.nn.log_sigmoid(fake)


def adversarial_critic(real_logits: Batch, fake_logits: Batch) -> Float[Array, "batch ..."]:
    """The critic's part of a GAN: to tell real data from generated data.

        L = softplus(D(fake)) + softplus(-D(real))

    DMD2 adds it to the critic's denoising loss with the weight 1e-2.

    Args:
      real_logits: floats [batch, ...], D of real data. Differentiated.
      fake_logits: floats of the same shape, D of generated data (stop the gradient to the
        generator there). Differentiated.

    Returns:
      [batch, ...], > 0.

    Raises:
      ValueError: shapes that differ. TypeError: logits that are not floats.

    Source: Goodfellow et al. 2014, arXiv:1406.2661; Yin et al. 2024 (DMD2), arXiv:2405.14867.

    >>> import jax.numpy as jnp
    >>> print(f"{adversarial_critic(jnp.array([0.0]), jnp.array([0.0]))[0]:.4f}")
    1.3863
    """
    real, fake = checks.shaped(
        {"real_logits": "...", "fake_logits": "..."},
        real_logits=real_logits,
        fake_logits=fake_logits,
    )
    return -jax.nn.log_sigmoid(-fake) - jax.nn.log_sigmoid(real)
